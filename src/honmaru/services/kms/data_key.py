"""Data keys and data key pairs: made here, sealed under a symmetric key, kept nowhere.

Source: AWS KMS API reference, GenerateDataKey and its siblings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.crypto import key_material
from honmaru.security.crypto.key_specs import ENCRYPT, KEY_SPECS, SYMMETRIC
from honmaru.security.guard import Record
from honmaru.services.kms import grant_tokens
from honmaru.services.kms.encryption import facts, refuse_recipient, sealed
from honmaru.services.kms.keys import permitted, rehearse, require_usable, require_usage, unsupported
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
_SIZES = {"AES_256": 32, "AES_128": 16}


def _key(call: Call, request: Request, action: str) -> tuple[Call, Record]:
    refuse_recipient(request)
    grant_tokens.check(call, request)
    asked = facts(request.get("EncryptionContext"), SYMMETRIC)
    if "KeyPairSpec" in request:
        asked["kms:DataKeyPairSpec"] = request["KeyPairSpec"]
    inside, key = permitted(call, request["KeyId"], action, asked, aliases=True)
    require_usage(key, ENCRYPT, SYMMETRIC)
    require_usable(call, key)
    return inside, key


def generate(call: Call, request: Request, vault: Vault, *, plaintext: bool) -> dict[str, Any]:
    name = "GenerateDataKey" if plaintext else "GenerateDataKeyWithoutPlaintext"
    if (request.get("KeySpec") is None) == (request.get("NumberOfBytes") is None):
        raise ValidationFault("Please specify either number of bytes or key spec.")
    size = _SIZES[request["KeySpec"]] if request.get("KeySpec") else request["NumberOfBytes"]
    inside, key = _key(call, request, name)
    rehearse(request)
    made = vault.ids.secret(size)
    return {
        "CiphertextBlob": sealed(inside, vault, key, request.get("EncryptionContext"), made),
        "Plaintext": made if plaintext else None,
        "KeyId": key.body["arn"],
        "KeyMaterialId": key.body["current"],
    }


def generate_pair(call: Call, request: Request, vault: Vault, *, plaintext: bool) -> dict[str, Any]:
    name = "GenerateDataKeyPair" if plaintext else "GenerateDataKeyPairWithoutPlaintext"
    spec = KEY_SPECS.get(request["KeyPairSpec"])
    if spec is None:
        raise unsupported(f"KeyPairSpec {request['KeyPairSpec']} is not supported by honmaru")
    inside, key = _key(call, request, name)
    rehearse(request)
    made = key_material.generate(spec, vault.ids.secret)
    return {
        "PrivateKeyCiphertextBlob": sealed(inside, vault, key, request.get("EncryptionContext"), made),
        "PrivateKeyPlaintext": made if plaintext else None,
        "PublicKey": key_material.public_der(made),
        "KeyId": key.body["arn"],
        "KeyPairSpec": spec.name,
        "KeyMaterialId": key.body["current"],
    }
