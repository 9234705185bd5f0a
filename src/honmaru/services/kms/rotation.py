"""Rotation of symmetric keys: automatic by a period, or on demand. What older material sealed still opens.

Invariants:
- The new material and the key's turn to it are one transaction: a crash leaves the old or the new, both usable.
- Material is never removed by a rotation.

Source: AWS KMS developer guide, "Rotate AWS KMS keys"; quota: 25 on-demand rotations a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from honmaru.core.errors import QuotaExceeded
from honmaru.core.labels import Label
from honmaru.security.calls import Call
from honmaru.security.crypto import key_material
from honmaru.security.guard import GuardedRecords, Record, Revision
from honmaru.services.kms.keys import (
    PENDING_DELETION,
    invalid_state,
    lists,
    moment,
    page,
    permitted,
    require_own,
    require_usable,
    revise,
    spec_of,
    unsupported,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
_PERIOD_DAYS = 365
_ON_DEMAND_LIMIT = 25


def _rotatable(key: Record, *, automatic: bool) -> None:
    if spec_of(key).family != "aes":
        raise unsupported(f"{key.body['arn']} is no symmetric encryption key: it cannot be rotated")
    if automatic and key.body["origin"] != "AWS_KMS":
        raise unsupported(f"{key.body['arn']} origin is {key.body['origin']} which is not valid for this operation.")


def enable(call: Call, request: Request) -> None:
    days = request.get("RotationPeriodInDays") or _PERIOD_DAYS
    context = {"kms:RotationPeriodInDays": days}
    inside, key = permitted(call, request["KeyId"], "EnableKeyRotation", context)
    _rotatable(key, automatic=True)
    require_own(key)
    require_usable(call, key)
    rotation = {"days": days, "next": (call.now + timedelta(days=days)).isoformat()}
    revise(inside, key, lambda body: {**body, "rotation": rotation})


def disable(call: Call, request: Request) -> None:
    inside, key = permitted(call, request["KeyId"], "DisableKeyRotation")
    _rotatable(key, automatic=True)
    require_own(key)
    require_usable(call, key)
    revise(inside, key, lambda body: {**body, "rotation": None})


def status(call: Call, request: Request) -> dict[str, Any]:
    _, key = permitted(call, request["KeyId"], "GetKeyRotationStatus")
    _rotatable(key, automatic=False)
    rotation = key.body["rotation"]
    waiting = key.state == PENDING_DELETION
    return {
        "KeyId": key.body["arn"],
        "KeyRotationEnabled": rotation is not None and not waiting,
        "RotationPeriodInDays": rotation["days"] if rotation else None,
        "NextRotationDate": moment(rotation["next"]) if rotation and not waiting else None,
    }


def on_demand(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    inside, key = permitted(call, request["KeyId"], "RotateKeyOnDemand")
    _rotatable(key, automatic=False)
    require_own(key)
    require_usable(call, key)
    if sum(one["type"] == "ON_DEMAND" for one in key.body["materials"]) >= _ON_DEMAND_LIMIT:
        raise QuotaExceeded(
            f"a key is rotated on demand at most {_ON_DEMAND_LIMIT} times", code="LimitExceededException"
        )
    if key.body["origin"] == "EXTERNAL":
        _turn_to_imported(inside, key)
    else:
        turn(inside.records, vault, key, call.now, "ON_DEMAND")
    return {"KeyId": key.body["arn"]}


def turn(records: GuardedRecords, vault: Vault, key: Record, now: datetime, kind: str) -> Record:
    """Give a key new current material. Raises AccessDenied for a key that is not at the session's label."""
    material_id, material = new_material(vault, key)
    stored = vault.stored(key.account, _own(records, key), key.name, material_id, material)
    body = turned(key, material_id, now, kind)
    return records.apply([Revision(key, body), stored])[0]


def new_material(vault: Vault, key: Record) -> tuple[str, bytes]:
    return vault.ids.secret(32).hex(), key_material.generate(spec_of(key), vault.ids.secret)


def _own(records: GuardedRecords, key: Record) -> Label:
    # Wrapped for the key's label: a session at another one is refused by the guard when it applies the change.
    return key.label if key.label == records.session.label else records.session.label


def turned(key: Record, material_id: str, now: datetime, kind: str) -> dict[str, Any]:
    """The key's body once a new material is current."""
    body = dict(key.body)
    body["materials"] = [*body["materials"], {"id": material_id, "created": now.isoformat(), "type": kind}]
    body["current"] = material_id
    rotation = body["rotation"]
    if rotation and kind == "AUTOMATIC":
        body["rotation"] = {**rotation, "next": (now + timedelta(days=rotation["days"])).isoformat()}
    return body


def due(key: Record, now: datetime) -> bool:
    """Whether automatic rotation of a key is due."""
    rotation = key.body["rotation"]
    return rotation is not None and key.state == "Enabled" and now >= moment(rotation["next"])


def _turn_to_imported(inside: Call, key: Record) -> None:
    """Imported keys are rotated to material that was imported for it (ImportType NEW_KEY_MATERIAL)."""
    waiting = next((one for one in key.body["materials"] if one.get("waiting")), None)
    if waiting is None:
        raise invalid_state(f"{key.body['arn']} has no new key material: import it with ImportType NEW_KEY_MATERIAL")
    materials = [
        {**{name: value for name, value in one.items() if name != "waiting"}, "type": "ON_DEMAND"}
        if one is waiting
        else one
        for one in key.body["materials"]
    ]
    for one in materials:
        if one["id"] == waiting["id"]:
            one["created"] = inside.now.isoformat()
    body = {**key.body, "materials": materials, "current": waiting["id"]}
    inside.records.update(key, body)


def list_all(call: Call, request: Request) -> dict[str, Any]:
    _, key = permitted(call, request["KeyId"], "ListKeyRotations")
    _rotatable(key, automatic=False)
    every = request.get("IncludeKeyMaterial") == "ALL_KEY_MATERIAL"
    found = [one for one in key.body["materials"] if one["type"] is not None or every]
    names = [f"{at:06}" for at in range(len(found))]
    start, end, marker = page(request, names, 100, 1000)
    return lists("Rotations", [_described(key, one) for one in found[start:end]], marker)


def _described(key: Record, one: Mapping[str, Any]) -> dict[str, Any]:
    state = "CURRENT" if one["id"] == key.body["current"] else "NON_CURRENT"
    answer = {
        "KeyId": key.body["arn"],
        "KeyMaterialId": one["id"],
        "KeyMaterialState": "PENDING_ROTATION" if one.get("waiting") else state,
        "RotationDate": moment(one["created"]) if one["type"] else None,
        "RotationType": one["type"],
    }
    if key.body["origin"] == "EXTERNAL":
        expires = one.get("expires")
        answer |= {
            "KeyMaterialDescription": one.get("description") or None,
            "ImportState": "PENDING_IMPORT" if one.get("gone") else "IMPORTED",
            "ExpirationModel": "KEY_MATERIAL_EXPIRES" if expires else "KEY_MATERIAL_DOES_NOT_EXPIRE",
            "ValidTo": moment(expires) if expires else None,
        }
    return answer
