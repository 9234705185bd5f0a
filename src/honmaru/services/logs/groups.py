"""Log groups: made, described, tagged, kept for a number of days, protected, deleted.

Invariants:
- A group's settings and tags are changed at the group's own label only.
- Events older than the group's retention are deleted by `expire`; those that are left are never renumbered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.logs import metric_filters
from honmaru.services.logs.finding import (
    Request,
    exists,
    find_group,
    group_arn,
    invalid,
    plain_name,
)
from honmaru.services.logs.store import GROUP, LogStore

RETENTIONS = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
"""Days that PutRetentionPolicy takes."""

MAX_TAGS = 50


def create(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    tags = dict(request.get("tags") or {})
    _check_tags(tags)
    if request.get("logGroupClass") not in (None, "STANDARD"):
        raise invalid("logGroupClass must be STANDARD: this enclave has one class of log groups")
    try:
        store.create_group(
            call.records,
            request["logGroupName"],
            tags,
            protected=bool(request.get("deletionProtectionEnabled")),
            key=request.get("kmsKeyId") or "",
        )
    except Conflict:
        raise exists("The specified log group already exists") from None
    call.resources.append((group_arn(call, request["logGroupName"]), "AWS::Logs::LogGroup"))
    return {}


def delete(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    group = find_group(call, store, request)
    if group.label == call.session.label and group.body.get("protected"):
        raise ValidationFault(
            "The log group has deletion protection enabled: disable it before you delete the group.",
            code="ValidationException",
        )
    store.delete_group(call.records, group)
    return {}


def describe(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    prefix, pattern = request.get("logGroupNamePrefix") or "", request.get("logGroupNamePattern") or ""
    if prefix and pattern:
        raise invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
    names = [plain_name(each) for each in request.get("logGroupIdentifiers") or ()]
    if names and (prefix or pattern):
        raise invalid("logGroupIdentifiers excludes logGroupNamePrefix and logGroupNamePattern.")
    if names:
        records = (store.group(call.records, name) for name in sorted(set(names)))
        return {"logGroups": [_described(call, store, record) for record in records if record is not None]}
    shown, token = _page(
        _of_class(call, request, prefix),
        lambda name: pattern.lower() in name.lower(),
        int(request.get("limit") or 50),
    )
    return {"logGroups": [_described(call, store, record) for record in shown], "nextToken": token}


def names(call: Call, request: Request) -> dict[str, Any]:
    """ListLogGroups: names only. `logGroupNamePattern` is text or ^prefix, alternatives separated by |."""
    wanted = [part for part in (request.get("logGroupNamePattern") or "").split("|") if part]
    tags = request.get("logGroupTags") or ()

    def fits(name: str) -> bool:
        return not wanted or any(name.startswith(p[1:]) if p.startswith("^") else p in name for p in wanted)

    records = (record for record in _of_class(call, request, "") if _tagged(record, tags))
    shown, token = _page(records, fits, int(request.get("limit") or 50))
    groups = [
        {"logGroupName": each.name, "logGroupArn": group_arn(call, each.name), "logGroupClass": "STANDARD"}
        for each in shown
    ]
    return {"logGroups": groups, "nextToken": token}


def _of_class(call: Call, request: Request, prefix: str) -> Iterator[Record]:
    if request.get("logGroupClass") not in (None, "STANDARD"):
        return iter(())
    return call.records.iterate(GROUP, prefix=prefix, after=(request.get("nextToken") or ""))


def _tagged(record: Record, filters: Any) -> bool:
    own = record.body["tags"]
    return all(
        each["key"] in own and (not each.get("values") or own[each["key"]] in each["values"]) for each in filters
    )


def _page(records: Iterator[Record], fits: Any, limit: int) -> tuple[list[Record], str | None]:
    shown: list[Record] = []
    for record in records:
        if not fits(record.name):
            continue
        if len(shown) == limit:
            return shown, shown[-1].name
        shown.append(record)
    return shown, None


def _described(call: Call, store: LogStore, record: Record) -> dict[str, Any]:
    arn = group_arn(call, record.name)
    stored = sum(int(stream.body["bytes"]) for stream in store.streams(call.records, record.name))
    return {
        "logGroupName": record.name,
        "creationTime": int(record.created.timestamp() * 1000),
        "retentionInDays": record.body.get("retention"),
        "kmsKeyId": record.body.get("key") or None,
        "metricFilterCount": sum(1 for _ in metric_filters.of_group(call.records, record.name)),
        "arn": f"{arn}:*",
        "logGroupArn": arn,
        "storedBytes": stored,
        "logGroupClass": "STANDARD",
        "deletionProtectionEnabled": bool(record.body.get("protected")),
    }


# Settings


def put_retention(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    days = int(request["retentionInDays"])
    if days not in RETENTIONS:
        raise invalid(f"1 validation error detected: retentionInDays is {days}; expected one of {list(RETENTIONS)}")
    return _set(call, find_group(call, store, request), retention=days)


def delete_retention(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    return _set(call, find_group(call, store, request), retention=None)


def protect(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    return _set(call, find_group(call, store, request), protected=bool(request["deletionProtectionEnabled"]))


def associate(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    """What is written from now on is sealed under the key; what was written before stays as it is."""
    group = _of_identifier(call, store, request)
    return _set(call, group, **store.seals.associated(call.session, group.name, group.body, request["kmsKeyId"]))


def disassociate(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    return _set(call, _of_identifier(call, store, request), key="")


def _of_identifier(call: Call, store: LogStore, request: Request) -> Record:
    """The group that logGroupName or resourceIdentifier names, at the session's own label: its key is not another's."""
    identifier = request.get("resourceIdentifier") or ""
    if identifier and ":log-group:" not in identifier:
        raise invalid("resourceIdentifier must be the ARN of a log group: results of queries are not kept under keys")
    named = {"logGroupName": request.get("logGroupName"), "logGroupIdentifier": identifier}
    group = find_group(call, store, named)
    if group.label != call.session.label:
        raise AccessDenied("The log group is of a lower label, and only a session of its own label changes it")
    return group


def _set(call: Call, group: Record, **settings: Any) -> dict[str, Any]:
    try:
        call.records.update(group, {**group.body, **settings})
    except Conflict:
        raise Conflict(
            "A concurrent change of the log group won; try again.", code="OperationAbortedException"
        ) from None
    return {}


# Tags


def tag(call: Call, group: Record, tags: Mapping[str, str]) -> dict[str, Any]:
    merged = {**group.body["tags"], **tags}
    _check_tags(merged)
    return _set(call, group, tags=merged)


def untag(call: Call, group: Record, keys: Any) -> dict[str, Any]:
    return _set(call, group, tags={key: value for key, value in group.body["tags"].items() if key not in set(keys)})


def tagged_group(call: Call, store: LogStore, request: Request) -> Record:
    """The group that `resourceArn` names. Raises NotFound for every other resource."""
    arn = str(request["resourceArn"])
    if re.fullmatch(r"arn:[^:]+:logs:[^:]*:\d{12}:log-group:[^:]+", arn) is None:
        raise NotFound("The specified resource does not exist.", code="ResourceNotFoundException")
    if arn.split(":")[4] != call.session.account:
        raise AccessDenied(f"{arn} belongs to another account")
    return find_group(call, store, {"logGroupName": plain_name(arn)})


def _check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > MAX_TAGS:
        raise QuotaExceeded(f"a log group has at most {MAX_TAGS} tags", code="TooManyTagsException")
    if any(key.lower().startswith("aws:") for key in tags):
        raise invalid("Tag keys may not begin with aws:")
