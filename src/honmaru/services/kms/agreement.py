"""Shared secrets: ECDH with a peer's public key, and ML-KEM encapsulation.

A session derives and encapsulates with keys of its own label only: a secret that a lower key can find out is none for
the session. Decapsulating with a lower key reads what lower sessions sealed, which a session may.

Source: AWS KMS API reference, DeriveSharedSecret, Encapsulate, Decapsulate; SP 800-56A; FIPS 203.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.security.calls import Call
from honmaru.security.crypto import key_material
from honmaru.security.crypto.key_specs import AGREE, ENCAPSULATE
from honmaru.security.guard import Record
from honmaru.services.kms import grant_tokens
from honmaru.services.kms.encryption import invalid_ciphertext, refuse_recipient, require_same_label
from honmaru.services.kms.keys import permitted, rehearse, require_usable, require_usage, spec_of
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]


def derive(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    refuse_recipient(request)
    algorithm = request["KeyAgreementAlgorithm"]
    inside, key = _key(call, request, "DeriveSharedSecret", AGREE, algorithm)
    require_same_label(inside, key)
    rehearse(request)
    with vault.opened(inside.records_of("kms"), key, key.body["current"]) as material:
        secret = key_material.agree(spec_of(key), material, request["PublicKey"])
    return {
        "KeyId": key.body["arn"],
        "SharedSecret": secret,
        "KeyAgreementAlgorithm": algorithm,
        "KeyOrigin": key.body["origin"],
    }


def encapsulate(call: Call, request: Request) -> dict[str, Any]:
    algorithm = request["EncapsulationAlgorithm"]
    inside, key = _key(call, request, "Encapsulate", ENCAPSULATE, algorithm)
    require_same_label(inside, key)
    rehearse(request)
    secret, ciphertext = key_material.encapsulate(bytes.fromhex(key.body["public"]))
    return {
        "KeyId": key.body["arn"],
        "SharedSecret": secret,
        "SharedSecretCiphertextBlob": ciphertext,
        "EncapsulationAlgorithm": algorithm,
    }


def decapsulate(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    algorithm = request["EncapsulationAlgorithm"]
    inside, key = _key(call, request, "Decapsulate", ENCAPSULATE, algorithm)
    rehearse(request)
    with vault.opened(inside.records_of("kms"), key, key.body["current"]) as material:
        secret = key_material.decapsulate(material, request["SharedSecretCiphertextBlob"])
    if secret is None:
        raise invalid_ciphertext()
    return {"KeyId": key.body["arn"], "SharedSecret": secret, "EncapsulationAlgorithm": algorithm}


def _key(call: Call, request: Request, action: str, usage: str, algorithm: str) -> tuple[Call, Record]:
    grant_tokens.check(call, request)
    name = "kms:KeyAgreementAlgorithm" if usage == AGREE else "kms:EncapsulationAlgorithm"
    inside, key = permitted(call, request["KeyId"], action, {name: algorithm}, aliases=True)
    require_usage(key, usage, algorithm)
    require_usable(call, key)
    return inside, key
