"""Imported key material: the wrapping key that protects its way here, the import itself, deletion and expiry.

The import token holds the private wrapping key, sealed for the key's account and label: nothing is kept here between
the two calls, and a token is worth nothing without this enclave's keyring.

Invariants:
- Material comes in wrapped only, and is checked to be a key of the key's spec before it is stored.
- A key's material may be imported again after it was deleted or has expired, and only the same material.

Source: AWS KMS developer guide, "Importing key material"; RFC 8017 (OAEP), RFC 5649 (AES key wrap with padding).
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import keywrap

from honmaru.core.errors import IntegrityFault, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.crypto import key_material
from honmaru.security.crypto.key_specs import KEY_SPECS
from honmaru.security.guard import GuardedChange, GuardedRecords, Record, Removal, Revision
from honmaru.services.kms.keys import (
    ENABLED,
    PENDING_IMPORT,
    material_of,
    permitted,
    require_kept,
    spec_of,
    state_of,
    unsupported,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
_TOKEN_HOURS = 24
_ALGORITHMS = ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256")


def parameters(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    algorithm, wrapping = request["WrappingAlgorithm"], KEY_SPECS.get(request["WrappingKeySpec"])
    context = {"kms:WrappingAlgorithm": algorithm, "kms:WrappingKeySpec": request["WrappingKeySpec"]}
    inside, key = permitted(call, request["KeyId"], "GetParametersForImport", context)
    _require_external(key)
    if algorithm not in _ALGORITHMS or wrapping is None:
        raise unsupported(f"WrappingAlgorithm {algorithm} with {request['WrappingKeySpec']} is not supported")
    private = key_material.generate(wrapping, vault.ids.secret)
    expires = call.now + timedelta(hours=_TOKEN_HOURS)
    plain = (
        uuid.UUID(key.name).bytes
        + int(expires.timestamp()).to_bytes(8, "big")
        + bytes([_ALGORITHMS.index(algorithm)])
        + private
    )
    return {
        "KeyId": key.body["arn"],
        "ImportToken": vault.token(inside.account, call.session.label, plain),
        "PublicKey": key_material.public_der(private),
        "ParametersValidTo": expires,
    }


def _require_external(key: Record) -> None:
    if key.body["origin"] != "EXTERNAL":
        raise unsupported(f"{key.body['arn']} origin is {key.body['origin']} which is not valid for this operation.")
    require_kept(key)


def import_material(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    model = request.get("ExpirationModel") or "KEY_MATERIAL_EXPIRES"
    expires: datetime | None = request.get("ValidTo")
    context = {"kms:ExpirationModel": model, "kms:ValidTo": expires}
    inside, key = permitted(call, request["KeyId"], "ImportKeyMaterial", context)
    _require_external(key)
    if (model == "KEY_MATERIAL_EXPIRES") != (expires is not None):
        raise ValidationFault("A validTo date must be set if, and only if, the ExpirationModel is KEY_MATERIAL_EXPIRES")
    if expires is not None and expires <= call.now:
        raise ValidationFault("ValidTo must lie in the future")
    material = _unwrapped(inside, key, request, vault)
    material_id = _material_id(key, material)
    if request.get("KeyMaterialId") not in (None, material_id):
        raise _incorrect(key)
    changes = _changes(inside, vault, key, material_id, material, request, expires)
    inside.records.apply(changes)
    return {"KeyId": key.body["arn"], "KeyMaterialId": material_id}


def _changes(
    inside: Call,
    vault: Vault,
    key: Record,
    material_id: str,
    material: bytes,
    request: Request,
    expires: datetime | None,
) -> list[GuardedChange]:
    body = dict(key.body)
    known = material_of(key, material_id)
    kind = request.get("ImportType") or ("EXISTING_KEY_MATERIAL" if body["materials"] else "NEW_KEY_MATERIAL")
    entry: dict[str, Any] = {
        "id": material_id,
        "created": inside.now.isoformat(),
        "type": None,
        "expires": expires.isoformat() if expires else None,
        "description": request.get("KeyMaterialDescription") or "",
    }
    if known is not None:
        kept = {name: value for name, value in known.items() if name not in ("gone", "expires")}
        entry = {**kept, "expires": entry["expires"], "description": entry["description"] or known.get("description")}
        body["materials"] = [entry if one is known else one for one in body["materials"]]
    elif kind == "EXISTING_KEY_MATERIAL":
        raise _incorrect(key)
    else:
        if body["materials"]:
            if spec_of(key).family != "aes" or any(one.get("waiting") for one in body["materials"]):
                raise _incorrect(key)
            entry["waiting"] = True
        else:
            body["current"] = material_id
        body["materials"] = [*body["materials"], entry]
    if spec_of(key).asymmetric:
        body["public"] = key_material.public_der(material).hex()
    state = _settled(body, state_of(key, inside.now), inside.now)
    changes: list[GuardedChange] = [Revision(key, body, state)]
    stored = vault.stored(inside.account, inside.session.label, key.name, material_id, material)
    held = vault.find(inside.records, key, material_id)
    changes.append(stored if held is None else Revision(held, stored.body))
    return changes


def _settled(body: dict[str, Any], state: str, now: datetime) -> str:
    """Note the earliest expiry, and whether the key can work: one whose materials are all there."""
    dates = [one["expires"] for one in body["materials"] if one.get("expires") and not one.get("gone")]
    body["valid_to"] = min(dates, key=datetime.fromisoformat) if dates else None
    whole = bool(body["current"]) and not any(one.get("gone") for one in body["materials"])
    whole = whole and not any(datetime.fromisoformat(date) <= now for date in dates)
    if not whole:
        return PENDING_IMPORT
    return ENABLED if state == PENDING_IMPORT else state


def _unwrapped(inside: Call, key: Record, request: Request, vault: Vault) -> bytes:
    try:
        plain = vault.opened_token(key.account, key.label, request["ImportToken"])
    except IntegrityFault:
        raise ValidationFault("", code="InvalidImportTokenException") from None
    if plain[:16] != uuid.UUID(key.name).bytes:
        raise ValidationFault("", code="InvalidImportTokenException")
    if inside.now >= datetime.fromtimestamp(int.from_bytes(plain[16:24], "big"), UTC):
        raise ValidationFault("", code="ExpiredImportTokenException")
    algorithm, private, sealed = _ALGORITHMS[plain[24]], plain[25:], request["EncryptedKeyMaterial"]
    refused = ValidationFault(
        "The key material does not open under the wrapping key", code="InvalidCiphertextException"
    )
    oaep = algorithm.replace("RSA_AES_KEY_WRAP", "RSAES_OAEP")
    if oaep == algorithm:
        opened = key_material.rsa_decrypt(private, oaep, sealed)
    else:
        width = len(key_material.rsa_encrypt(key_material.public_der(private), oaep, b""))
        transport = key_material.rsa_decrypt(private, oaep, sealed[:width])
        opened = None if transport is None else _key_unwrapped(transport, sealed[width:])
    if opened is None:
        raise refused
    try:
        return key_material.checked(spec_of(key), opened)
    except ValidationFault as fault:
        raise ValidationFault(fault.message, code="IncorrectKeyMaterialException") from None


def _key_unwrapped(transport: bytes, wrapped: bytes) -> bytes | None:
    try:
        return keywrap.aes_key_unwrap_with_padding(transport, wrapped)
    except (keywrap.InvalidUnwrap, ValueError):
        return None


def _material_id(key: Record, material: bytes) -> str:
    """The same for the same material of the same key, and telling nothing about it."""
    return hmac.digest(material, b"honmaru kms material id " + key.name.encode(), "sha384")[:32].hex()


def _incorrect(key: Record) -> ValidationFault:
    return ValidationFault(
        f"The key material is not the one that was imported into {key.body['arn']} before",
        code="IncorrectKeyMaterialException",
    )


def delete(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    inside, key = permitted(call, request["KeyId"], "DeleteImportedKeyMaterial")
    _require_external(key)
    material_id = request.get("KeyMaterialId") or key.body["current"]
    known = material_of(key, material_id) if material_id else None
    if known is not None:
        inside.records.apply(without(vault, inside.records, key, [material_id], inside.now))
    elif request.get("KeyMaterialId"):
        raise _incorrect(key)
    return {"KeyId": key.body["arn"], "KeyMaterialId": material_id}


def without(vault: Vault, records: GuardedRecords, key: Record, gone: list[str], now: datetime) -> list[GuardedChange]:
    """The changes that take materials away from a key and leave it waiting for them."""
    body = dict(key.body)
    body["materials"] = [{**one, "gone": True} if one["id"] in gone else one for one in body["materials"]]
    state = _settled(body, key.state, now)
    found = [vault.find(records, key, material_id) for material_id in gone]
    return [Revision(key, body, state), *(Removal(record) for record in found if record is not None)]


def expired(key: Record, now: datetime) -> list[str]:
    """Ids of a key's materials whose time is over and which are still there."""
    return [
        one["id"]
        for one in key.body["materials"]
        if one.get("expires") and not one.get("gone") and now >= datetime.fromisoformat(one["expires"])
    ]
