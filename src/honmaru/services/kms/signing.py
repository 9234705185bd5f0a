"""Signatures, MACs and public keys.

Source: AWS KMS API reference, Sign, Verify, GenerateMac, VerifyMac, GetPublicKey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.crypto import key_material
from honmaru.security.crypto.key_specs import ALGORITHM_MEMBERS, MAC, SIGN
from honmaru.security.guard import Record
from honmaru.services.kms import grant_tokens
from honmaru.services.kms.keys import (
    permitted,
    rehearse,
    require_usable,
    require_usage,
    spec_of,
    unsupported,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]


def _signer(call: Call, request: Request, action: str) -> tuple[Call, Record, str]:
    grant_tokens.check(call, request)
    kind, algorithm = request.get("MessageType") or "RAW", request["SigningAlgorithm"]
    context = {"kms:SigningAlgorithm": algorithm, "kms:MessageType": kind}
    inside, key = permitted(call, request["KeyId"], action, context, aliases=True)
    require_usage(key, SIGN, algorithm)
    require_usable(call, key)
    return inside, key, kind


def sign(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    inside, key, kind = _signer(call, request, "Sign")
    rehearse(request)
    algorithm = request["SigningAlgorithm"]
    with vault.opened(inside.records_of("kms"), key, key.body["current"]) as material:
        signature = key_material.sign(spec_of(key), material, algorithm, request["Message"], kind)
    return {"KeyId": key.body["arn"], "Signature": signature, "SigningAlgorithm": algorithm}


def verify(call: Call, request: Request) -> dict[str, Any]:
    _, key, kind = _signer(call, request, "Verify")
    public, algorithm = bytes.fromhex(key.body["public"]), request["SigningAlgorithm"]
    holds = key_material.verify(spec_of(key), public, algorithm, request["Message"], kind, request["Signature"])
    if not holds:
        raise ValidationFault("", code="KMSInvalidSignatureException")
    rehearse(request)
    return {"KeyId": key.body["arn"], "SignatureValid": True, "SigningAlgorithm": algorithm}


def _maker(call: Call, request: Request, action: str) -> tuple[Call, Record]:
    grant_tokens.check(call, request)
    context = {"kms:MacAlgorithm": request["MacAlgorithm"]}
    inside, key = permitted(call, request["KeyId"], action, context, aliases=True)
    require_usage(key, MAC, request["MacAlgorithm"])
    require_usable(call, key)
    return inside, key


def generate_mac(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    inside, key = _maker(call, request, "GenerateMac")
    rehearse(request)
    algorithm = request["MacAlgorithm"]
    with vault.opened(inside.records_of("kms"), key, key.body["current"]) as material:
        tag = key_material.mac(material, algorithm, request["Message"])
    return {"Mac": tag, "MacAlgorithm": algorithm, "KeyId": key.body["arn"]}


def verify_mac(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    inside, key = _maker(call, request, "VerifyMac")
    algorithm = request["MacAlgorithm"]
    with vault.opened(inside.records_of("kms"), key, key.body["current"]) as material:
        holds = key_material.mac_holds(material, algorithm, request["Message"], request["Mac"])
    if not holds:
        raise ValidationFault("", code="KMSInvalidMacException")
    rehearse(request)
    return {"KeyId": key.body["arn"], "MacValid": True, "MacAlgorithm": algorithm}


def public_key(call: Call, request: Request) -> dict[str, Any]:
    grant_tokens.check(call, request)
    _, key = permitted(call, request["KeyId"], "GetPublicKey", aliases=True)
    body = key.body
    if not spec_of(key).asymmetric:
        raise unsupported(f"{body['arn']} is a symmetric key: it has no public key")
    require_usable(call, key)
    return {
        "KeyId": body["arn"],
        "PublicKey": bytes.fromhex(body["public"]),
        "KeySpec": body["spec"],
        "CustomerMasterKeySpec": body["spec"],
        "KeyUsage": body["usage"],
        ALGORITHM_MEMBERS[body["usage"]]: list(spec_of(key).usages[body["usage"]]),
    }
