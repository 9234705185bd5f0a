"""Object lock: a bucket's lock configuration, retention and legal holds of versions, and what they forbid.

A bucket's record has "lock" once lock is enabled: {} or the default rule {"mode", "days" or "years"}. A version's body
has "retention" {"mode", "until"} and "hold" (True or False) where they were set.

Invariants:
- A version under a legal hold, or whose retention lies in the future, is never deleted and never replaced. GOVERNANCE
  gives way to who asks for it (x-amz-bypass-governance-retention) and may (s3:BypassGovernanceRetention); COMPLIANCE
  gives way to nobody, and is only ever extended.
- Lock can be enabled, never disabled, and versioning cannot be suspended beneath it.
- Whoever may not see retention or holds (s3:GetObjectRetention, s3:GetObjectLegalHold) is not told of them.

Source: Amazon S3 User Guide, "Locking objects with Object Lock".
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record

GOVERNANCE = "GOVERNANCE"
COMPLIANCE = "COMPLIANCE"
_MODES = (GOVERNANCE, COMPLIANCE)
_LONGEST = {"Days": 36_500, "Years": 100}
_CHECKSUM_HEADERS = ("content-md5", "x-amz-trailer")


# The bucket's configuration


def check_versioning_may_stop(bucket: Record) -> None:
    """Raises Conflict (InvalidBucketState) for a bucket with object lock."""
    if "lock" in bucket.body:
        raise Conflict(
            "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.",
            code="InvalidBucketState",
        )


def with_configuration(request: Mapping[str, Any], bucket: Record) -> dict[str, Any]:
    """The bucket's body after a PutObjectLockConfiguration. Raises ValidationFault, Conflict (InvalidBucketState)."""
    configuration = request.get("ObjectLockConfiguration") or {}
    if configuration.get("ObjectLockEnabled") != "Enabled":
        raise _malformed()
    rule = _rule(configuration.get("Rule"))
    if bucket.body.get("versioning") != "Enabled":
        raise Conflict(
            "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration", code="InvalidBucketState"
        )
    return {**bucket.body, "lock": rule}


def _rule(stated: Mapping[str, Any] | None) -> dict[str, Any]:
    if stated is None:
        return {}
    default = stated.get("DefaultRetention") or {}
    units = [unit for unit in _LONGEST if default.get(unit) is not None]
    if default.get("Mode") not in _MODES or len(units) != 1:
        raise _malformed()
    unit, length = units[0], default[units[0]]
    if length < 1:
        raise ValidationFault("Default retention period must be a positive integer value.", code="InvalidArgument")
    if length > _LONGEST[unit]:
        raise ValidationFault(f"Default retention period too large: {length} {unit.lower()}", code="InvalidArgument")
    return {"mode": default["Mode"], unit.lower(): length}


def get_configuration(bucket: Record) -> dict[str, Any]:
    """GetObjectLockConfiguration. Raises NotFound where lock was never enabled."""
    lock = bucket.body.get("lock")
    if lock is None:
        raise NotFound(
            "Object Lock configuration does not exist for this bucket",
            code="ObjectLockConfigurationNotFoundError",
            members={"BucketName": bucket.name},
        )
    default = {"Mode": lock.get("mode"), "Days": lock.get("days"), "Years": lock.get("years")}
    rule = {"DefaultRetention": {name: value for name, value in default.items() if value is not None}}
    return {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled", "Rule": rule if lock else None}}


# What a write asks for


def stated(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a new version's body that its request's object-lock headers ask for; authorised.

    Raises ValidationFault for what contradicts itself, and AccessDenied. Whether the bucket has lock at all is checked
    when the version is stored (`of_new_version`).
    """
    mode, until = request.get("ObjectLockMode"), request.get("ObjectLockRetainUntilDate")
    hold = request.get("ObjectLockLegalHoldStatus")
    if mode is None and until is None and hold is None:
        return {}
    arn = f"arn:{call.session.partition}:s3:::{request['Bucket']}/{request['Key']}"
    members: dict[str, Any] = {}
    if mode is not None or until is not None:
        if mode is None or until is None:
            raise ValidationFault(
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
                code="InvalidArgument",
            )
        members["retention"] = _retention(call, mode, until)
        call.authorize("s3:PutObjectRetention", arn)
    if hold is not None:
        members["hold"] = _hold(hold)
        call.authorize("s3:PutObjectLegalHold", arn)
    if call.operation == "PutObject" and not _has_checksum(call, request):
        raise ValidationFault(
            "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock "
            "parameters",
            code="InvalidRequest",
        )
    return members


def _has_checksum(call: Call, request: Mapping[str, Any]) -> bool:
    named = any(name in call.headers for name in _CHECKSUM_HEADERS)
    return named or any(name.startswith("Checksum") and request[name] for name in request) or "ContentMD5" in request


def of_new_version(bucket: Record, body: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The default retention that a new version gets where it states none.

    Raises ValidationFault (InvalidRequest) when it states retention or a hold and the bucket has no lock.
    """
    lock = bucket.body.get("lock")
    if lock is None:
        if "retention" in body or "hold" in body:
            raise _no_lock()
        return {}
    if not lock or "retention" in body:
        return {}
    until = _years_later(now, lock["years"]) if "years" in lock else now + timedelta(days=lock["days"])
    return {"retention": {"mode": lock["mode"], "until": until.isoformat()}}


def _years_later(now: datetime, years: int) -> datetime:
    try:
        return now.replace(year=now.year + years)
    except ValueError:  # 29 February
        return now.replace(year=now.year + years, day=28)


# Retention and holds of a version


def set_retention(call: Call, request: Mapping[str, Any], bucket: Record, version: Record) -> dict[str, Any]:
    """The version's body with the retention that PutObjectRetention asks for.

    Raises AccessDenied when the present retention forbids it, ValidationFault.
    """
    if "lock" not in bucket.body:
        raise _no_lock()
    wanted = request.get("Retention") or {}
    mode, until = wanted.get("Mode"), wanted.get("RetainUntilDate")
    new = None
    if mode is not None or until is not None:
        if mode not in _MODES or until is None:
            raise _malformed()
        new = _retention(call, mode, until)
    present = _in_force(version.body, call.now)
    if present is not None and not _extends(present, new):
        _require_bypass(call, request, present, _arn(call, request))
    body = {name: value for name, value in version.body.items() if name != "retention"}
    return body if new is None else body | {"retention": new}


def _extends(present: Mapping[str, str], new: Mapping[str, str] | None) -> bool:
    """Whether the new retention forbids everything that the present one does."""
    if new is None or new["mode"] != present["mode"]:
        return False
    return datetime.fromisoformat(new["until"]) >= datetime.fromisoformat(present["until"])


def get_retention(bucket: Record, version: Record) -> dict[str, Any]:
    """GetObjectRetention. Raises ValidationFault (no lock), NotFound (none set)."""
    if "lock" not in bucket.body:
        raise _no_lock()
    kept = version.body.get("retention")
    if kept is None:
        raise _nothing_set()
    return {"Retention": {"Mode": kept["mode"], "RetainUntilDate": datetime.fromisoformat(kept["until"])}}


def set_hold(request: Mapping[str, Any], bucket: Record, version: Record) -> dict[str, Any]:
    """The version's body with the hold that PutObjectLegalHold asks for. Raises ValidationFault."""
    if "lock" not in bucket.body:
        raise _no_lock()
    status = (request.get("LegalHold") or {}).get("Status")
    if status not in ("ON", "OFF"):
        raise _malformed()
    return {**version.body, "hold": status == "ON"}


def get_hold(bucket: Record, version: Record) -> dict[str, Any]:
    """GetObjectLegalHold. Raises ValidationFault (no lock), NotFound (never set)."""
    if "lock" not in bucket.body:
        raise _no_lock()
    if "hold" not in version.body:
        raise _nothing_set()
    return {"LegalHold": {"Status": "ON" if version.body["hold"] else "OFF"}}


def described(call: Call, request: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The object-lock members of GetObject's and HeadObject's answers, as far as the caller may know them."""
    answer: dict[str, Any] = {}
    kept = body.get("retention")
    if kept is not None and _may(call, "s3:GetObjectRetention", request):
        answer["ObjectLockMode"] = kept["mode"]
        answer["ObjectLockRetainUntilDate"] = datetime.fromisoformat(kept["until"])
    if "hold" in body and _may(call, "s3:GetObjectLegalHold", request):
        answer["ObjectLockLegalHoldStatus"] = "ON" if body["hold"] else "OFF"
    return answer


def _may(call: Call, action: str, request: Mapping[str, Any]) -> bool:
    try:
        call.authorize(action, _arn(call, request))
    except AccessDenied:
        return False
    return True


# What lock forbids


def check_removable(version: Record, call: Call | None = None, request: Mapping[str, Any] | None = None) -> None:
    """Raises AccessDenied when a hold or retention keeps the version.

    Args:
        call, request: Who asks to delete it and how; None where nobody may bypass (a version that is overwritten).
    """
    if version.body.get("hold"):
        raise _protected()
    kept = version.body.get("retention")
    if kept is None:
        return
    if call is None or request is None:
        raise _protected()
    present = _in_force(version.body, call.now)
    if present is not None:
        _require_bypass(call, request, present, _arn(call, request))


def _require_bypass(call: Call, request: Mapping[str, Any], present: Mapping[str, str], arn: str) -> None:
    if present["mode"] == COMPLIANCE or not request.get("BypassGovernanceRetention"):
        raise _protected()
    call.authorize("s3:BypassGovernanceRetention", arn)


def _in_force(body: Mapping[str, Any], now: datetime) -> Mapping[str, str] | None:
    kept: Mapping[str, str] | None = body.get("retention")
    return kept if kept is not None and datetime.fromisoformat(kept["until"]) > now else None


def _retention(call: Call, mode: str, until: datetime) -> dict[str, str]:
    if mode not in _MODES:
        raise ValidationFault("Unknown wormMode directive.", code="InvalidArgument")
    until = until.astimezone(UTC)
    if until <= call.now:
        raise ValidationFault("The retain until date must be in the future!", code="InvalidArgument")
    return {"mode": mode, "until": until.isoformat()}


def _hold(status: str) -> bool:
    if status not in ("ON", "OFF"):
        raise ValidationFault("Legal Hold must be either of 'ON' or 'OFF'", code="InvalidArgument")
    return status == "ON"


def _arn(call: Call, request: Mapping[str, Any]) -> str:
    return f"arn:{call.session.partition}:s3:::{request['Bucket']}/{request['Key']}"


def _protected() -> AccessDenied:
    return AccessDenied("Access Denied because object protected by object lock.", code="AccessDenied")


def _no_lock() -> ValidationFault:
    return ValidationFault("Bucket is missing Object Lock Configuration", code="InvalidRequest")


def _nothing_set() -> NotFound:
    return NotFound(
        "The specified object does not have a ObjectLock configuration", code="NoSuchObjectLockConfiguration"
    )


def _malformed() -> ValidationFault:
    return ValidationFault(
        "The XML you provided was not well-formed or did not validate against our published schema",
        code="MalformedXML",
    )
