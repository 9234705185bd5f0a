"""Keys as records: their names, what `DescribeKey` says of them, the states in which they may be used.

A key is a record of kind "key" named by its id (a UUID) at the label of the session that made it; an alias is a record
of kind "alias" named `alias/...` whose body names the key's id.

Invariants:
- A key above the session is answered exactly like one that does not exist.
- Every operation on a key asks IAM about the key's ARN, where its policy and grants govern (`key_policy`), before it
  reads the key for the caller.
- A key whose deletion date has come, or whose imported material has expired, is treated so from that instant, whether
  the custodian has been there already or not.

Source: AWS KMS developer guide, "Key states of AWS KMS keys", "Key identifiers".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict, NotFound, RequestFault, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.crypto.key_specs import ALGORITHM_MEMBERS, KEY_SPECS, KeySpec
from honmaru.security.guard import Record

KEY, ALIAS, GRANT = "key", "alias", "grant"
ENABLED, DISABLED, PENDING_DELETION, PENDING_IMPORT = "Enabled", "Disabled", "PendingDeletion", "PendingImport"
_ATTEMPTS = 16
_KEY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ARN = re.compile(r"arn:([a-z-]+):kms:([a-z0-9-]+):([0-9]{12}):(key/.+|alias/.+)")


@dataclass(frozen=True, slots=True)
class Named:
    """What a KeyId stands for: a key's id in an account, and the alias that named it."""

    account: str
    key_id: str
    alias: str = ""


def missing(arn: str) -> NotFound:
    return NotFound(f"Key '{arn}' does not exist", code="NotFoundException")


def invalid_state(message: str) -> Conflict:
    return Conflict(message, code="KMSInvalidStateException")


def unsupported(message: str) -> ValidationFault:
    return ValidationFault(message, code="UnsupportedOperationException")


def key_arn(call: Call, key_id: str, account: str = "") -> str:
    session = call.session
    return f"arn:{session.partition}:kms:{session.region}:{account or session.account}:key/{key_id}"


def named(call: Call, stated: str, *, aliases: bool) -> Named:
    """What a KeyId member stands for: key id, key ARN, and where `aliases`, alias name and alias ARN.

    Raises NotFound, and ValidationFault (InvalidArnException) for an ARN of another partition or of no known form.
    """
    account = call.session.account
    rest = stated
    if stated.startswith("arn:"):
        match = _ARN.fullmatch(stated)
        if match is None or match[1] != call.session.partition:
            raise ValidationFault(f"Invalid arn {stated}", code="InvalidArnException")
        if match[2] != call.session.region:
            raise NotFound(f"Invalid arn {match[2]}", code="NotFoundException")
        account, rest = match[3], match[4]
        if rest.startswith("key/"):
            rest = rest.removeprefix("key/")
    if rest.startswith("alias/"):
        if not aliases:
            raise NotFound(f"Invalid keyId '{stated}'", code="NotFoundException")
        found = call.sight("kms").get(ALIAS, rest, account=account)
        if found is None:
            arn = f"arn:{call.session.partition}:kms:{call.session.region}:{account}:{rest}"
            raise NotFound(f"Alias {arn} is not found.", code="NotFoundException")
        return Named(account, found.body["key"], rest)
    if not _KEY_ID.fullmatch(rest):
        raise NotFound(f"Invalid keyId '{stated}'", code="NotFoundException")
    return Named(account, rest)


def permitted(
    call: Call,
    stated: str,
    action: str,
    context: Mapping[str, Any] | None = None,
    *,
    aliases: bool = False,
) -> tuple[Call, Record]:
    """The key that a request names, once IAM has allowed the action on it, and the call in the key's account.

    Raises NotFound, AccessDenied. Label: reads at or below the session's label.
    """
    name = named(call, stated, aliases=aliases)
    return allowed(call, name, action, context)


def allowed(call: Call, name: Named, action: str, context: Mapping[str, Any] | None = None) -> tuple[Call, Record]:
    """As `permitted`, for a key that is named already."""
    arn = key_arn(call, name.key_id, name.account)
    asked = {"kms:CallerAccount": call.session.account, **(context or {})}
    if name.alias:
        asked["kms:RequestAlias"] = name.alias
    inside = call.within(call.authorize(f"kms:{action}", arn, asked))
    record = None
    if inside.account == name.account:
        record = current(inside.records_of("kms").get(KEY, name.key_id), call.now)
    if record is None:
        raise missing(arn)
    call.resources.append((arn, "AWS::KMS::Key"))
    return inside, record


def revise(inside: Call, key: Record, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Record:
    """The key with `change` made to its body, as it is then: a concurrent change of another part of it is kept.

    Raises AccessDenied for a key that is not at the session's label, NotFound when it went away meanwhile.
    """
    for _ in range(_ATTEMPTS):
        try:
            return inside.records.update(key, change(key.body))
        except Conflict:
            again = current(inside.records.get(KEY, key.name), inside.now)
            if again is None:
                raise missing(key.body["arn"]) from None
            require_kept(again)
            key = again
    raise Conflict("The key is being changed by other requests; try again", code="ConflictException")


def current(record: Record | None, now: datetime) -> Record | None:
    """The key, or None when its deletion date has come."""
    if record is not None and record.state == PENDING_DELETION and now >= moment(record.body["deletion"]):
        return None
    return record


def spec_of(key: Record) -> KeySpec:
    return KEY_SPECS[key.body["spec"]]


def state_of(key: Record, now: datetime) -> str:
    """The key's state now: imported material that has expired makes it PendingImport."""
    expires = key.body.get("valid_to")
    if key.state in (ENABLED, DISABLED) and expires and now >= moment(expires):
        return PENDING_IMPORT
    return key.state


def require_usable(call: Call, key: Record) -> None:
    """Raises unless the key may be used in cryptographic operations now, in AWS's words."""
    state, arn = state_of(key, call.now), key.body["arn"]
    if state == DISABLED:
        raise RequestFault(f"{arn} is disabled.", code="DisabledException")
    if state == PENDING_DELETION:
        raise invalid_state(f"{arn} is pending deletion.")
    if state == PENDING_IMPORT:
        raise invalid_state(f"{arn} is pending import.")


def require_kept(key: Record) -> None:
    """Raises while the key waits for its deletion: hardly anything may be changed about it then."""
    if key.state == PENDING_DELETION:
        raise invalid_state(f"{key.body['arn']} is pending deletion.")


def require_own(key: Record) -> None:
    """Raises for a key that the platform made (alias/aws/...): its settings are the platform's."""
    if key.body["manager"] != "CUSTOMER":
        raise unsupported(f"{key.body['arn']} is managed by the platform: this operation is for customer managed keys")


def require_usage(key: Record, usage: str, algorithm: str | None = None) -> None:
    """Raises InvalidKeyUsageException unless the key serves a usage, and holds an algorithm for it."""
    body = key.body
    if body["usage"] != usage:
        raise ValidationFault(
            f"{body['arn']} key usage is {body['usage']} which is not valid for this operation.",
            code="InvalidKeyUsageException",
        )
    if algorithm is not None and algorithm not in spec_of(key).usages[usage]:
        raise ValidationFault(
            f"Algorithm {algorithm} and key spec {body['spec']} are incompatible.", code="InvalidKeyUsageException"
        )


def rehearse(request: Mapping[str, Any]) -> None:
    """Ends a request that states DryRun, once everything about it has been checked."""
    if request.get("DryRun"):
        raise DryRun("The request would have succeeded, but the DryRun option is set.", code="DryRunOperationException")


class DryRun(RequestFault):
    """The caller asked whether it would have worked: it would."""


def material_of(key: Record, material_id: str) -> Mapping[str, Any] | None:
    """What a key's record says about one of its materials."""
    return next((one for one in key.body["materials"] if one["id"] == material_id), None)


def metadata(key: Record, now: datetime) -> dict[str, Any]:
    """The KeyMetadata shape."""
    body, state = key.body, state_of(key, now)
    described = {
        "AWSAccountId": key.account,
        "KeyId": key.name,
        "Arn": body["arn"],
        "CreationDate": moment(body["created"]),
        "Enabled": state == ENABLED,
        "Description": body["description"],
        "KeyUsage": body["usage"],
        "KeyState": state,
        "Origin": body["origin"],
        "KeyManager": body["manager"],
        "KeySpec": body["spec"],
        "CustomerMasterKeySpec": body["spec"],
        "MultiRegion": False,
        ALGORITHM_MEMBERS[body["usage"]]: list(spec_of(key).usages[body["usage"]]),
    }
    if state == PENDING_DELETION:
        described["DeletionDate"] = moment(body["deletion"])
    if body["origin"] == "EXTERNAL" and state != PENDING_IMPORT and body.get("current"):
        expires = body.get("valid_to")
        described["ExpirationModel"] = "KEY_MATERIAL_EXPIRES" if expires else "KEY_MATERIAL_DOES_NOT_EXPIRE"
        if expires:
            described["ValidTo"] = moment(expires)
    if not spec_of(key).asymmetric and spec_of(key).family == "aes" and body.get("current"):
        described["CurrentKeyMaterialId"] = body["current"]
    return described


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def page(request: Mapping[str, Any], names: list[str], default: int, most: int) -> tuple[int, int, str | None]:
    """(start, end, next marker) of a list request over sorted names. Raises InvalidMarkerException, ValidationFault."""
    limit = request.get("Limit") or default
    if limit > most:
        raise ValidationFault(
            f"1 validation error detected: Value '{limit}' at 'limit' failed to satisfy constraint: Member must have "
            f"value less than or equal to {most}"
        )
    start = 0
    marker = request.get("Marker")
    if marker is not None:
        start = next((at for at, name in enumerate(names) if name > marker), len(names))
    end = min(start + limit, len(names))
    return start, end, names[end - 1] if end < len(names) else None


def lists(member: str, shown: list[Any], marker: str | None) -> dict[str, Any]:
    """The answer of a list operation."""
    return {member: shown, "NextMarker": marker, "Truncated": marker is not None}
