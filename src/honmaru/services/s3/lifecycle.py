"""Lifecycle configurations: what may be put, and what the rules say of one object, version or upload.

Invariants:
- A document is refused whole, in S3's words, before anything of it is kept; actions that honmaru does not have
  (transitions: it has one storage class) are refused, never ignored.
- Decisions here are pure: rules, facts and a time. `expiry` carries them out.
- Days are counted to the next midnight UTC, as S3 counts them.

Source: S3 user guide, "Lifecycle configuration elements", "Setting lifecycle configuration on a bucket".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from honmaru.core.errors import NotImplementedYet, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import settings

_LIMIT = 1000
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)
_SIZE_MODE = "all_storage_classes_128K"
_FILTERS = ("Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan", "And")
_ACTIONS = ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
_UNWRITTEN = ("Transitions", "NoncurrentVersionTransitions")

Rule = Mapping[str, Any]


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    found = settings.required(call, request, "lifecycle")
    return {
        "Rules": [_shown(rule) for rule in found["rules"]],
        "TransitionDefaultMinimumObjectSize": found["sizes"],
    }


def put(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    buckets.require(call.records, request)
    rules = (request.get("LifecycleConfiguration") or {}).get("Rules") or ()
    check(rules)
    sizes = request.get("TransitionDefaultMinimumObjectSize") or _SIZE_MODE
    kept = [_kept(rule, f"{call.request_id[:36]}-{number}") for number, rule in enumerate(rules)]
    settings.keep(call, request, "lifecycle", {"rules": kept, "sizes": sizes})
    return {"TransitionDefaultMinimumObjectSize": sizes}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    settings.keep(call, request, "lifecycle", None)
    return {}


def rules_of(bucket: Record) -> Sequence[Rule]:
    """The rules of a bucket that are enabled."""
    found = settings.stored(bucket, "lifecycle")
    return [rule for rule in found["rules"] if rule["Status"] == "Enabled"] if found else ()


# What may be put


def check(rules: Sequence[Rule]) -> None:
    """Raises ValidationFault (MalformedXML, InvalidArgument, InvalidRequest) or NotImplementedYet."""
    if not 1 <= len(rules) <= _LIMIT:
        raise _malformed()
    seen: set[str] = set()
    legacy = {"Prefix" in rule for rule in rules}
    for rule in rules:
        identity = rule.get("ID") or ""
        if len(identity) > 255:
            raise _argument("ID length should not exceed allowed limit of 255")
        if identity and identity in seen:
            raise _argument("Rule ID must be unique. Found same ID for more than one rule")
        seen.add(identity)
        if ("Prefix" in rule) == ("Filter" in rule):
            raise _malformed()
        if len(legacy) > 1:
            raise _invalid(
                "Base level prefix cannot be used in Lifecycle V2, prefixes are only supported in the Filter."
            )
        for name in _UNWRITTEN:
            if rule.get(name):
                raise NotImplementedYet(
                    f"{name} is not implemented by honmaru, which has one storage class", code="NotImplemented"
                )
        if not any(name in rule for name in _ACTIONS):
            raise _invalid("At least one action needs to be specified in a rule")
        _check_filter(rule.get("Filter") or {})
        _check_actions(rule)


def _check_filter(stated: Mapping[str, Any]) -> None:
    if len([name for name in _FILTERS if name in stated]) > 1:
        raise _malformed()
    both = stated.get("And")
    if both is not None:
        tags = [tag["Key"] for tag in both.get("Tags") or ()]
        if len(tags) + sum(name in both for name in ("Prefix", "ObjectSizeGreaterThan", "ObjectSizeLessThan")) < 2:
            raise _malformed()
        if len(set(tags)) != len(tags):
            raise _invalid("Duplicate Tag Keys are not allowed.")
    scope = both if both is not None else stated
    more, less = scope.get("ObjectSizeGreaterThan"), scope.get("ObjectSizeLessThan")
    for name, size in (("ObjectSizeGreaterThan", more), ("ObjectSizeLessThan", less)):
        if size is not None and size < 0:
            raise _invalid(f"'{name}' must not be negative")
    if more is not None and less is not None and less <= more:
        raise _invalid("'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'.")


def _check_actions(rule: Rule) -> None:
    conditions = _Conditions.of(rule)
    expiration = rule.get("Expiration")
    if expiration is not None:
        if len([name for name in ("Days", "Date", "ExpiredObjectDeleteMarker") if name in expiration]) != 1:
            raise _malformed()
        _check_days(expiration.get("Days"), "Days", "Expiration")
        date = expiration.get("Date")
        if date is not None and date.astimezone(UTC) != _midnight(date):
            raise _argument("'Date' must be at midnight GMT")
        if "ExpiredObjectDeleteMarker" in expiration and conditions.narrow:
            raise _invalid("ExpiredObjectDeleteMarker cannot be specified with Tags.")
    older = rule.get("NoncurrentVersionExpiration")
    if older is not None:
        if "NoncurrentDays" not in older:
            raise _malformed()
        _check_days(older["NoncurrentDays"], "NoncurrentDays", "NoncurrentVersionExpiration")
        newer = older.get("NewerNoncurrentVersions")
        if newer is not None:
            if not 1 <= newer <= 100:
                raise _argument(
                    "'NewerNoncurrentVersions' for NoncurrentVersionExpiration action must be between 1 and 100"
                )
            if "Filter" not in rule:
                raise _invalid("NewerNoncurrentVersions needs the rule to have a Filter element.")
    stale = rule.get("AbortIncompleteMultipartUpload")
    if stale is not None:
        if "DaysAfterInitiation" not in stale:
            raise _malformed()
        _check_days(stale["DaysAfterInitiation"], "DaysAfterInitiation", "AbortIncompleteMultipartUpload")
        if conditions.narrow:
            raise _invalid("AbortIncompleteMultipartUpload cannot be specified with Tags.")


def _check_days(days: int | None, name: str, action: str) -> None:
    if days is not None and days <= 0:
        raise _argument(f"'{name}' for {action} action must be a positive integer")


def _kept(rule: Rule, identity: str) -> dict[str, Any]:
    kept = {**rule, "ID": rule.get("ID") or identity}
    date = (rule.get("Expiration") or {}).get("Date")
    if date is not None:
        kept["Expiration"] = {"Date": date.astimezone(UTC).isoformat()}
    return kept


def _shown(rule: Rule) -> dict[str, Any]:
    date = (rule.get("Expiration") or {}).get("Date")
    return {**rule, "Expiration": {"Date": datetime.fromisoformat(date)}} if date else dict(rule)


# What the rules say


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What a rule's Filter, or its older Prefix, wants of an object. `narrow`: it asks for tags or a size."""

    prefix: str
    tags: Mapping[str, str]
    more: int | None
    less: int | None

    @classmethod
    def of(cls, rule: Rule) -> _Conditions:
        stated = rule.get("Filter") or {}
        scope = stated.get("And") or stated
        tags = [*(scope.get("Tags") or ()), *([scope["Tag"]] if "Tag" in scope else [])]
        return cls(
            scope.get("Prefix") or rule.get("Prefix") or "",
            {tag["Key"]: tag["Value"] for tag in tags},
            scope.get("ObjectSizeGreaterThan"),
            scope.get("ObjectSizeLessThan"),
        )

    @property
    def narrow(self) -> bool:
        return bool(self.tags) or self.more is not None or self.less is not None

    def hold(self, key: str, size: int | None, tags: Mapping[str, str]) -> bool:
        """`size` is None for what has none (an upload, a delete marker): then only the prefix can be met."""
        if not key.startswith(self.prefix):
            return False
        if size is None:
            return not self.narrow
        return (
            all(tags.get(name) == value for name, value in self.tags.items())
            and (self.more is None or size > self.more)
            and (self.less is None or size < self.less)
        )


def expires(
    rules: Sequence[Rule], key: str, size: int, tags: Mapping[str, str], since: datetime
) -> tuple[datetime, str] | None:
    """When the current version of an object expires, and by which rule: the earliest of those that apply."""
    found: list[tuple[datetime, str]] = []
    for rule in rules:
        stated = rule.get("Expiration") or {}
        if not _Conditions.of(rule).hold(key, size, tags):
            continue
        if "Days" in stated:
            found.append((due(since, stated["Days"]), rule["ID"]))
        elif "Date" in stated:
            found.append((datetime.fromisoformat(stated["Date"]), rule["ID"]))
    return min(found, default=None)


def expiration_header(bucket: Record, key: str, size: int, tags: Mapping[str, str], since: datetime) -> str | None:
    """The x-amz-expiration header of an object, None when no rule will expire it."""
    rules = rules_of(bucket)
    found = expires(rules, key, size, tags, since) if rules else None
    if found is None:
        return None
    at, identity = found
    return f'expiry-date="{at:%a, %d %b %Y %H:%M:%S} GMT", rule-id="{quote(identity, safe="")}"'


def announced(bucket: Record, record: Record) -> str | None:
    """`expiration_header` of a current version; None for others, and where the object lies below its bucket's label."""
    if record.kind != "object" or record.label != bucket.label or "size" not in record.body:
        return None
    body = record.body
    key = record.name.partition("/")[2]
    return expiration_header(bucket, key, body["size"], body["tags"], datetime.fromisoformat(body["modified"]))


def removes_lone_marker(rules: Sequence[Rule], key: str, since: datetime, now: datetime) -> bool:
    """Whether a delete marker with no version behind it goes: by ExpiredObjectDeleteMarker, or by age in days."""
    for rule in rules:
        stated = rule.get("Expiration") or {}
        if not _Conditions.of(rule).hold(key, None, {}):
            continue
        if stated.get("ExpiredObjectDeleteMarker") or ("Days" in stated and due(since, stated["Days"]) <= now):
            return True
    return False


def removes_noncurrent(
    rules: Sequence[Rule],
    key: str,
    size: int | None,
    tags: Mapping[str, str],
    superseded: datetime,
    newer: int,
    now: datetime,
) -> bool:
    """Whether a version that is no longer the current one goes.

    Args:
        size: None for a delete marker.
        superseded: When it stopped being the current one.
        newer: How many noncurrent versions of the key are newer.
    """
    for rule in rules:
        stated = rule.get("NoncurrentVersionExpiration")
        if stated is None or not _Conditions.of(rule).hold(key, size, tags):
            continue
        if newer >= stated.get("NewerNoncurrentVersions", 0) and due(superseded, stated["NoncurrentDays"]) <= now:
            return True
    return False


def abortion(bucket: Record, key: str, since: datetime) -> dict[str, Any]:
    """The members that announce when an upload will be aborted and by which rule; none when no rule will."""
    found = aborts(rules_of(bucket), key, since)
    return {} if found is None else {"AbortDate": found[0], "AbortRuleId": found[1]}


def aborts(rules: Sequence[Rule], key: str, since: datetime) -> tuple[datetime, str] | None:
    """When an unfinished upload that began at `since` is aborted, and by which rule."""
    found = [
        (due(since, rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]), str(rule["ID"]))
        for rule in rules
        if "AbortIncompleteMultipartUpload" in rule and _Conditions.of(rule).hold(key, None, {})
    ]
    return min(found, default=None)


def due(since: datetime, days: int) -> datetime:
    """The midnight UTC that ends a number of days: S3 adds the days and rounds up to the next midnight.

    At most `_NEVER`: days may be more than a calendar has.
    """
    since = since.astimezone(UTC)
    if days >= (_NEVER - since).days:
        return _NEVER
    moment = since + timedelta(days=days)
    floor = _midnight(moment)
    return floor if floor == moment else floor + timedelta(days=1)


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _malformed() -> ValidationFault:
    return ValidationFault(
        "The XML you provided was not well-formed or did not validate against our published schema", code="MalformedXML"
    )


def _argument(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidArgument")


def _invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidRequest")
