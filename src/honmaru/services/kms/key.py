"""Keys: create, describe, list, enable, disable, describe anew, schedule their deletion and take that back.

Invariants:
- A key is made with its material in one transaction, at the session's label: there is no key without material but one
  that waits for an import.
- Deletion takes effect no earlier than its date, and then for good: the custodian destroys the material.

Source: AWS KMS API reference, CreateKey, DescribeKey, ScheduleKeyDeletion.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.crypto import key_material
from honmaru.security.crypto.key_specs import ENCRYPT, KEY_SPECS, SYMMETRIC
from honmaru.security.guard import Creation, GuardedChange, Record
from honmaru.services.kms import key_policy, tags
from honmaru.services.kms.keys import (
    DISABLED,
    ENABLED,
    KEY,
    PENDING_DELETION,
    PENDING_IMPORT,
    current,
    invalid_state,
    key_arn,
    lists,
    metadata,
    page,
    permitted,
    require_kept,
    require_own,
    revise,
    state_of,
    unsupported,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
_IMPORTABLE = ("aes", "hmac", "rsa", "ec", "ec-k1", "ed25519")
_WINDOW_DAYS = 30


def create(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    spec_name = request.get("KeySpec") or request.get("CustomerMasterKeySpec") or SYMMETRIC
    if request.get("KeySpec") and request.get("CustomerMasterKeySpec"):
        raise ValidationFault("You cannot specify KeySpec and CustomerMasterKeySpec in the same request.")
    spec = KEY_SPECS.get(spec_name)
    if spec is None:
        raise unsupported(f"KeySpec {spec_name} is not supported by honmaru: the library that computes it lacks it")
    usage = request.get("KeyUsage") or ENCRYPT
    if usage not in spec.usages:
        raise ValidationFault(f"KeyUsage {usage} is not compatible with KeySpec {spec_name}")
    origin = request.get("Origin") or "AWS_KMS"
    if request.get("MultiRegion"):
        raise unsupported("multi-Region keys do not exist in honmaru: an enclave is one Region and shares no key")
    if origin not in ("AWS_KMS", "EXTERNAL") or request.get("CustomKeyStoreId") or request.get("XksKeyId"):
        raise unsupported("custom key stores do not exist in honmaru; a PKCS#11 token can hold the enclave's root key")
    if origin == "EXTERNAL" and spec.family not in _IMPORTABLE:
        raise unsupported(f"key material of {spec_name} cannot be imported")
    key_id = vault.ids.uuid()
    arn = key_arn(call, key_id)
    policy = request.get("Policy")
    if policy is None:
        policy = key_policy.default(call.session.partition, call.session.account)
    key_policy.check(call, arn, policy, bypass=bool(request.get("BypassPolicyLockoutSafetyCheck")))
    change, creation = drafted(
        call,
        vault,
        key_id,
        spec_name,
        usage,
        origin=origin,
        policy=policy,
        description=request.get("Description") or "",
        labels=tags.checked(request.get("Tags"), call.session),
    )
    record = call.records.apply([*change, creation])[-1]
    call.resources.append((arn, "AWS::KMS::Key"))
    return {"KeyMetadata": metadata(record, call.now)}


def drafted(
    call: Call,
    vault: Vault,
    key_id: str,
    spec_name: str,
    usage: str,
    *,
    origin: str = "AWS_KMS",
    manager: str = "CUSTOMER",
    policy: str,
    description: str = "",
    labels: Mapping[str, str] | None = None,
) -> tuple[list[GuardedChange], Creation]:
    """(the material's creation if it has any yet, the key's) of a new key at the session's label."""
    spec = KEY_SPECS[spec_name]
    session = call.session
    body: dict[str, Any] = {
        "arn": key_arn(call, key_id),
        "description": description,
        "usage": usage,
        "spec": spec_name,
        "origin": origin,
        "manager": manager,
        "policy": policy,
        "tags": dict(labels or {}),
        "created": call.now.isoformat(),
        "materials": [],
        "current": None,
        "public": "",
        "rotation": None,
    }
    if origin == "EXTERNAL":
        return [], Creation(KEY, key_id, body, PENDING_IMPORT)
    material = key_material.generate(spec, vault.ids.secret)
    material_id = vault.ids.secret(32).hex()
    if spec.asymmetric:
        body["public"] = key_material.public_der(material).hex()
    body["materials"] = [{"id": material_id, "created": call.now.isoformat(), "type": None}]
    body["current"] = material_id
    stored = vault.stored(session.account, session.label, key_id, material_id, material)
    return [stored], Creation(KEY, key_id, body, ENABLED)


def list_all(call: Call, request: Request) -> dict[str, Any]:
    keys = [key for key in call.records.iterate(KEY) if current(key, call.now) is not None]
    if "SELF" not in (request.get("ResourceOwners") or ["SELF"]):
        keys = []  # no account shares keys by a resource share
    start, end, marker = page(request, [key.name for key in keys], 100, 1000)
    return lists("Keys", [{"KeyId": key.name, "KeyArn": key.body["arn"]} for key in keys[start:end]], marker)


def enable(call: Call, request: Request) -> None:
    inside, key = permitted(call, request["KeyId"], "EnableKey")
    _change_state(inside, key, ENABLED)


def disable(call: Call, request: Request) -> None:
    inside, key = permitted(call, request["KeyId"], "DisableKey")
    require_own(key)
    _change_state(inside, key, DISABLED)


def _change_state(inside: Call, key: Record, state: str) -> None:
    require_kept(key)
    if state_of(key, inside.now) == PENDING_IMPORT:
        raise invalid_state(f"{key.body['arn']} is pending import.")
    if key.state != state:
        inside.records.update(key, key.body, state)


def update_description(call: Call, request: Request) -> None:
    inside, key = permitted(call, request["KeyId"], "UpdateKeyDescription")
    require_own(key)
    require_kept(key)
    revise(inside, key, lambda body: {**body, "description": request["Description"]})


def schedule_deletion(call: Call, request: Request) -> dict[str, Any]:
    days = request.get("PendingWindowInDays") or _WINDOW_DAYS
    if not 7 <= days <= 30:
        raise ValidationFault(f"PendingWindowInDays must be between 7 and 30, not {days}")
    context = {"kms:ScheduleKeyDeletionPendingWindowInDays": days}
    inside, key = permitted(call, request["KeyId"], "ScheduleKeyDeletion", context)
    require_own(key)
    require_kept(key)
    date = call.now + timedelta(days=days)
    body = {**key.body, "deletion": date.isoformat()}
    inside.records.update(key, body, PENDING_DELETION)
    return {
        "KeyId": key.body["arn"],
        "DeletionDate": date,
        "KeyState": PENDING_DELETION,
        "PendingWindowInDays": days,
    }


def cancel_deletion(call: Call, request: Request) -> dict[str, Any]:
    inside, key = permitted(call, request["KeyId"], "CancelKeyDeletion")
    if key.state != PENDING_DELETION:
        raise invalid_state(f"{key.body['arn']} is not pending deletion.")
    body = {name: value for name, value in key.body.items() if name != "deletion"}
    lacking = not body["current"] or any(one.get("gone") for one in body["materials"])
    inside.records.update(key, body, PENDING_IMPORT if lacking else DISABLED)
    return {"KeyId": key.body["arn"]}
