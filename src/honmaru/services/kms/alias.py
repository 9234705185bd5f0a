"""Aliases: names of keys that may be pointed at another key later.

An alias is made at the session's label and names a key at or below it. `alias/aws/<service>` names the key that the
platform makes for a service, for each account and label, when it is first used; it is listed before that, as AWS does.

Source: AWS KMS API reference, CreateAlias, UpdateAlias, ListAliases; "AWS managed keys".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.crypto.key_specs import ENCRYPT, SYMMETRIC
from honmaru.security.guard import Creation, Record
from honmaru.services.kms import grant_tokens, key_policy
from honmaru.services.kms.key import drafted
from honmaru.services.kms.keys import (
    ALIAS,
    KEY,
    lists,
    metadata,
    moment,
    named,
    page,
    permitted,
    require_kept,
    require_own,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
MANAGED = ("ebs", "logs", "s3", "sagemaker")
"""Services that have a key of their own, by the last part of the alias."""
_NAME = re.compile(r"alias/[a-zA-Z0-9/_-]{1,250}")


def _arn(call: Call, alias: str) -> str:
    return call.arn("kms", alias)


def _check_name(alias: str) -> None:
    if not alias.startswith("alias/"):
        raise ValidationFault('Alias must start with the prefix "alias/".')
    if not _NAME.fullmatch(alias):
        raise ValidationFault(f"Alias name {alias} is invalid", code="InvalidAliasNameException")
    if alias.startswith("alias/aws/"):
        raise NotFound(f"{alias} is reserved for the platform's own keys", code="NotFoundException")


def create(call: Call, request: Request) -> None:
    alias = request["AliasName"]
    _check_name(alias)
    call.authorize("kms:CreateAlias", _arn(call, alias))
    _, key = permitted(call, request["TargetKeyId"], "CreateAlias")
    _check_target(call, key)
    moments = {"created": call.now.isoformat(), "changed": call.now.isoformat()}
    try:
        call.records.create(ALIAS, alias, {"key": key.name, **moments})
    except Conflict:
        raise Conflict(
            f"An alias with the name {_arn(call, alias)} already exists", code="AlreadyExistsException"
        ) from None


def _check_target(call: Call, key: Record) -> None:
    require_own(key)
    require_kept(key)
    if key.account != call.session.account:
        raise NotFound(f"Key '{key.body['arn']}' does not exist", code="NotFoundException")


def update(call: Call, request: Request) -> None:
    alias = request["AliasName"]
    call.authorize("kms:UpdateAlias", _arn(call, alias))
    record = _find(call, alias)
    old = _present(call, record, "UpdateAlias")
    _, new = permitted(call, request["TargetKeyId"], "UpdateAlias")
    _check_target(call, new)
    if old is not None and (
        (old.body["spec"] == SYMMETRIC) != (new.body["spec"] == SYMMETRIC) or old.body["usage"] != new.body["usage"]
    ):
        raise ValidationFault(
            f"Alias {_arn(call, alias)} cannot be changed to a key of another type or usage than its present one"
        )
    call.records.update(record, {**record.body, "key": new.name, "changed": call.now.isoformat()})


def delete(call: Call, request: Request) -> None:
    alias = request["AliasName"]
    call.authorize("kms:DeleteAlias", _arn(call, alias))
    record = _find(call, alias)
    _present(call, record, "DeleteAlias")
    call.records.delete(record)


def _present(call: Call, alias: Record, action: str) -> Record | None:
    """The key that an alias names, once the action on it is allowed; None when it was destroyed below the alias."""
    if call.sight("kms").get(KEY, alias.body["key"], account=alias.account) is None:
        return None
    return permitted(call, alias.body["key"], action)[1]


def _find(call: Call, alias: str) -> Record:
    record = call.records.get(ALIAS, alias) if _NAME.fullmatch(alias) else None
    if record is None or alias.startswith("alias/aws/"):
        raise NotFound(f"Alias {_arn(call, alias)} is not found.", code="NotFoundException")
    return record


def list_all(call: Call, request: Request) -> dict[str, Any]:
    wanted = None
    if request.get("KeyId"):
        wanted = named(call, request["KeyId"], aliases=False).key_id
    found: dict[str, Record | None] = {record.name: record for record in call.records.iterate(ALIAS)}
    for service in MANAGED:
        found.setdefault(f"alias/aws/{service}", None)
    names = sorted(
        name for name, record in found.items() if wanted is None or (record and record.body["key"] == wanted)
    )
    start, end, marker = page(request, names, 50, 100)
    return lists("Aliases", [_described(call, name, found[name]) for name in names[start:end]], marker)


def _described(call: Call, name: str, record: Record | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"AliasName": name, "AliasArn": _arn(call, name)}
    if record is not None:
        answer |= {
            "TargetKeyId": record.body["key"],
            "CreationDate": moment(record.body["created"]),
            "LastUpdatedDate": moment(record.body["changed"]),
        }
    return answer


def describe_key(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    """DescribeKey: it makes the platform's own key of a service when asked about it for the first time."""
    grant_tokens.check(call, request)
    stated = request["KeyId"]
    service = stated.removeprefix("alias/aws/")
    if stated.startswith("alias/aws/") and service in MANAGED:
        call.authorize("kms:DescribeKey", _arn(call, stated))
        managed_key(call, vault, service)
    _, key = permitted(call, stated, "DescribeKey", aliases=True)
    return {"KeyMetadata": metadata(key, call.now)}


def managed_key(call: Call, vault: Vault, service: str) -> Record:
    """The platform's key of a service at the session's label, made on first use: always that of the session's own
    account, also where the call acts in another (an object put into somebody else's bucket).

    Its policy lets everybody of the account use it through that service, as AWS's managed keys do; nobody may change
    or delete it.
    """
    alias = f"alias/aws/{service}"
    call = call.within(call.session.account)
    records = call.records_of("kms")
    for _ in range(3):
        held = next((one for one in records.instances(ALIAS, alias) if one.label == call.session.label), None)
        if held is not None:
            key = records.get(KEY, held.body["key"])
            if key is not None:
                return key
        session = call.session
        changes, key_creation = drafted(
            call,
            vault,
            vault.ids.uuid(),
            SYMMETRIC,
            ENCRYPT,
            manager="AWS",
            policy=key_policy.managed(session.partition, session.account, session.region, service),
            description=f"Default key that protects my {service} data when no other key is defined",
        )
        moments = {"created": call.now.isoformat(), "changed": call.now.isoformat()}
        named_as = Creation(ALIAS, alias, {"key": key_creation.name, **moments})
        try:
            return records.apply([*changes, named_as, key_creation])[-1]
        except Conflict:
            continue  # another request made it at the same moment
    raise Conflict("the key is being made by another request; try again", code="DependencyTimeoutException")
