"""Trails: made, described, changed, started, stopped, deleted.

Invariants:
- A trail delivers events of its own account, of the labels that its own label dominates, into a bucket that is visible
  at its label; what it writes carries its label.
- It begins with the events after StartLogging, and what was recorded before StopLogging is still delivered.
- A trail is made only into a bucket whose policy lets CloudTrail write there, as with AWS.
- A trail's key of KMS is one whose policy lets CloudTrail use it with the trail's ARN as `aws:cloudtrail:arn`; what is
  delivered is sealed under it, and a key that cannot be used stops the delivery, never the sealing.
- What this enclave has not got (SNS, delivery to CloudWatch Logs, organisations' trails) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session, platform_session
from honmaru.ports.deliveries import Deliveries
from honmaru.ports.keys import Keys
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.ledger import Ledger
from honmaru.services.cloudtrail import selectors

TRAIL = "trail"
CONTEXT = "aws:cloudtrail:arn"
MAX_TRAILS = 5
MAX_TAGS = 50
Request = Mapping[str, Any]
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[._-](?![._-])){1,126}[A-Za-z0-9]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_BY_EITHER = frozenset({"AddTags", "RemoveTags", "ListTags"})
"""Operations whose door takes a name for an ARN."""

_REFUSED = {
    "SnsTopicName": "InvalidSnsTopicNameException",
    "CloudWatchLogsLogGroupArn": "InvalidCloudWatchLogsLogGroupArnException",
    "CloudWatchLogsRoleArn": "InvalidCloudWatchLogsRoleArnException",
    "IsOrganizationTrail": "OrganizationsNotInUseException",
    "RecursiveLogging": "InvalidParameterException",
}


class Trails:
    """The trails' operations, over the ledger and the buckets."""

    def __init__(self, ledger: Ledger, deliveries: Deliveries, keys: Keys[Call] | None) -> None:
        self._ledger = ledger
        self._deliveries = deliveries
        self._keys = keys

    def create(self, call: Call, request: Request) -> dict[str, Any]:
        name = request["Name"]
        if _NAME.fullmatch(name) is None or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name):
            raise ValidationFault(
                "Trail name must have 3 to 128 letters, digits, periods, underscores and dashes, begin and end with a "
                "letter or digit, and not be an IP address",
                code="InvalidTrailNameException",
            )
        tags = _tags(request.get("TagsList") or ())
        settings = self._settings(request, {})
        self._check_bucket(call, name, settings)
        settings["key"] = self._key(call, name, request, "")
        if sum(1 for _ in call.records.iterate(TRAIL)) >= MAX_TRAILS:
            raise QuotaExceeded(
                f"User: {call.session.account} already has {MAX_TRAILS} trails in {call.session.region}.",
                code="MaximumNumberOfTrailsExceededException",
            )
        body = {"settings": settings, "tags": tags, "logging": False, "positions": {}, "until": {}, "files": []}
        try:
            record = call.records.create(TRAIL, name, {**body, "uid": call.request_id})
        except Conflict:
            raise Conflict(
                f"Trail {name} already exists for customer: {call.session.account}", code="TrailAlreadyExistsException"
            ) from None
        call.resources.append((arn(call.session, name), "AWS::CloudTrail::Trail"))
        return _described(call, record)

    def update(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, request["Name"])
        settings = self._settings(request, record.body["settings"])
        self._check_bucket(call, record.name, settings)
        settings["key"] = self._key(call, record.name, request, settings.get("key") or "")
        return _described(call, _changed(call, record, settings=settings))

    def get(self, call: Call, request: Request) -> dict[str, Any]:
        return {"Trail": _shown(call, find(call, request["Name"]))}

    def describe(self, call: Call, request: Request) -> dict[str, Any]:
        """The named trails that there are; all of them when none is named."""
        names = [_plain(call, name) for name in request.get("trailNameList") or ()]
        if names:
            found = [record for name in dict.fromkeys(names) if (record := call.records.get(TRAIL, name)) is not None]
        else:
            found = list(call.records.iterate(TRAIL))
        return {"trailList": [_shown(call, record) for record in found]}

    def listed(self, call: Call) -> dict[str, Any]:
        return {
            "Trails": [
                {"TrailARN": arn(call.session, record.name), "Name": record.name, "HomeRegion": call.session.region}
                for record in call.records.iterate(TRAIL)
            ]
        }

    def delete(self, call: Call, request: Request) -> dict[str, Any]:
        call.records.delete(find(call, request["Name"]))
        return {}

    def start(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, request["Name"])
        if not record.body["logging"]:
            now = sizes(self._ledger, call.session.label)
            positions = {**now, **{token: at for token, at in record.body["positions"].items() if _owed(record, token)}}
            _changed(call, record, logging=True, positions=positions, until={}, started=call.now.isoformat())
        return {}

    def stop(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, request["Name"])
        if record.body["logging"]:
            until = sizes(self._ledger, call.session.label)
            _changed(call, record, logging=False, until=until, stopped=call.now.isoformat())
        return {}

    def status(self, call: Call, request: Request) -> dict[str, Any]:
        body = find(call, request["Name"]).body
        delivered, digested = body.get("delivered"), body.get("digested")
        return {
            "IsLogging": body["logging"],
            "LatestDeliveryError": body.get("error") or None,
            "LatestDeliveryTime": _time(delivered),
            "LatestDigestDeliveryTime": _time(digested),
            "StartLoggingTime": _time(body.get("started")),
            "StopLoggingTime": _time(body.get("stopped")),
            "LatestDeliveryAttemptTime": _stamp(body.get("attempted")),
            "LatestDeliveryAttemptSucceeded": _stamp(delivered),
            "TimeLoggingStarted": _stamp(body.get("started")),
            "TimeLoggingStopped": _stamp(body.get("stopped")),
            "LatestNotificationAttemptTime": "",
            "LatestNotificationAttemptSucceeded": "",
        }

    def put_selectors(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, request["TrailName"])
        basic, advanced = request.get("EventSelectors"), request.get("AdvancedEventSelectors")
        if bool(basic) == bool(advanced):
            raise ValidationFault(
                "Give either EventSelectors or AdvancedEventSelectors", code="InvalidEventSelectorsException"
            )
        settings = {
            **record.body["settings"],
            "selectors": selectors.check_basic(basic) if basic else None,
            "advanced": selectors.check_advanced(advanced) if advanced else None,
        }
        return self._selectors(call, _changed(call, record, settings=settings))

    def get_selectors(self, call: Call, request: Request) -> dict[str, Any]:
        return self._selectors(call, find(call, request["TrailName"]))

    def _selectors(self, call: Call, record: Record) -> dict[str, Any]:
        settings = record.body["settings"]
        shown: dict[str, Any] = {"TrailARN": arn(call.session, record.name)}
        if settings.get("advanced"):
            return shown | {"AdvancedEventSelectors": settings["advanced"]}
        return shown | {"EventSelectors": settings.get("selectors") or list(selectors.DEFAULT)}

    def public_keys(self) -> dict[str, Any]:
        """The ledger's key, which signs the checkpoints that digests hold."""
        verifier = self._ledger.signer.verifier
        return {"PublicKeyList": [{"Value": verifier.public_key, "Fingerprint": verifier.fingerprint}]}

    # Tags

    def add_tags(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, request["ResourceId"])
        _changed(call, record, tags=_tags(request["TagsList"], record.body["tags"]))
        return {}

    def remove_tags(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, request["ResourceId"])
        gone = {tag["Key"] for tag in request["TagsList"]}
        _changed(call, record, tags={key: value for key, value in record.body["tags"].items() if key not in gone})
        return {}

    def tags(self, call: Call, request: Request) -> dict[str, Any]:
        found = []
        for identifier in request["ResourceIdList"]:
            record = find(call, identifier)
            tags = [{"Key": key, "Value": value} for key, value in sorted(record.body["tags"].items())]
            found.append({"ResourceId": arn(call.session, record.name), "TagsList": tags})
        return {"ResourceTagList": found}

    # Inside

    def _settings(self, request: Request, old: Mapping[str, Any]) -> dict[str, Any]:
        for member, code in _REFUSED.items():
            if request.get(member):
                raise ValidationFault(f"{member} is not carried by this enclave: leave it out", code=code)
        bucket = request.get("S3BucketName") or old.get("bucket")
        prefix = request.get("S3KeyPrefix", old.get("prefix")) or ""
        if not bucket or _BUCKET.fullmatch(bucket) is None:
            raise ValidationFault(f"{bucket!r} is no name of a bucket", code="InvalidS3BucketNameException")
        if len(prefix) > 200:
            raise ValidationFault("S3KeyPrefix has at most 200 characters", code="InvalidS3PrefixException")

        def flag(member: str, key: str, default: bool) -> bool:
            given = request.get(member)
            return bool(old.get(key, default) if given is None else given)

        return {
            **old,
            "bucket": bucket,
            "prefix": prefix.strip("/"),
            "global": flag("IncludeGlobalServiceEvents", "global", True),
            "regions": flag("IsMultiRegionTrail", "regions", False),
            "digests": flag("EnableLogFileValidation", "digests", False),
        }

    def _key(self, call: Call, name: str, request: Request, old: str) -> str:
        """The ARN of the key that a trail seals under; "" for none. Raises NotFound, ValidationFault."""
        named = request.get("KmsKeyId")
        if not named:
            return old if named is None else ""
        try:
            if self._keys is None:
                raise NotFound("there is no key service")
            facts = self._keys.resolve(call, named, "cloudtrail")
        except NotFound:
            raise NotFound(f"KMS key {named} does not exist", code="KmsKeyNotFoundException") from None
        if facts.state != "Enabled":
            raise ValidationFault(f"KMS key {named} is not enabled", code="KmsKeyDisabledException")
        session = working_session(call.session, call.session.label)
        source = arn(session, name)
        try:
            self._deliveries.check_key(session, facts.arn, source_arn=source, context={CONTEXT: source})
        except AccessDenied:
            raise ValidationFault(
                f"Insufficient permissions to access KMS key {named}: its policy must allow cloudtrail.amazonaws.com "
                "to kms:GenerateDataKey*",
                code="InsufficientEncryptionPolicyException",
            ) from None
        return facts.arn

    def _check_bucket(self, call: Call, name: str, settings: Mapping[str, Any]) -> None:
        session = working_session(call.session, call.session.label)
        key = f"{base(settings)}AWSLogs/{session.account}/CloudTrail/{session.region}/check"
        try:
            self._deliveries.check(session, settings["bucket"], key, source_arn=arn(session, name))
        except NotFound:
            raise NotFound(
                f"S3 bucket {settings['bucket']} does not exist!", code="S3BucketDoesNotExistException"
            ) from None
        except AccessDenied:
            raise ValidationFault(
                f"Incorrect S3 bucket policy is detected for bucket: {settings['bucket']}: it must allow "
                "cloudtrail.amazonaws.com to s3:PutObject",
                code="InsufficientS3BucketPolicyException",
            ) from None


def find(call: Call, identifier: str) -> Record:
    """The trail of a name or ARN. Raises NotFound (TrailNotFoundException)."""
    name = _plain(call, identifier)
    if identifier != name or call.operation in _BY_EITHER:
        # The door asked about what the caller wrote; policies speak of the trail's ARN.
        call.authorize(f"cloudtrail:{call.operation}", arn(call.session, name))
    record = call.records.get(TRAIL, name)
    if record is None:
        raise NotFound(
            f"Unknown trail: {identifier} for the user: {call.session.account}", code="TrailNotFoundException"
        )
    return record


def arn(session: Session, name: str) -> str:
    return f"arn:{session.partition}:cloudtrail:{session.region}:{session.account}:trail/{name}"


def working_session(like: Session, label: Label) -> Session:
    """CloudTrail's own session, which delivers."""
    return platform_session(like.account, like.partition, like.region, "cloudtrail", label)


def sizes(ledger: Ledger, label: Label) -> dict[str, int]:
    """Log (label token) → durable entries, of the logs that a label dominates."""
    return {seen.token: ledger.size(seen) for seen in ledger.labels() if label.dominates(seen)}


def base(settings: Mapping[str, Any]) -> str:
    return f"{settings['prefix']}/" if settings["prefix"] else ""


def _owed(record: Record, token: str) -> bool:
    """Whether events recorded before the last StopLogging still wait for delivery."""
    return int(record.body["positions"][token]) < int(record.body["until"].get(token, 0))


def _plain(call: Call, identifier: str) -> str:
    if not identifier.startswith("arn:"):
        return identifier
    own = arn(call.session, "")
    if not identifier.startswith(own):
        raise ValidationFault(f"{identifier} is no ARN of a trail here", code="CloudTrailARNInvalidException")
    return identifier.removeprefix(own)


def _changed(call: Call, record: Record, **members: Any) -> Record:
    try:
        return call.records.update(record, {**record.body, **members})
    except Conflict:
        raise Conflict("A concurrent change of the trail won; try again.", code="ConflictException") from None


def _tags(given: Any, old: Mapping[str, str] | None = None) -> dict[str, str]:
    tags = {**(old or {}), **{tag["Key"]: tag.get("Value") or "" for tag in given}}
    if len(tags) > MAX_TAGS:
        raise QuotaExceeded(f"a trail has at most {MAX_TAGS} tags", code="TagsLimitExceededException")
    if any(key.lower().startswith("aws:") for key in tags):
        raise ValidationFault("Tag keys may not begin with aws:", code="InvalidTagParameterException")
    return tags


def _described(call: Call, record: Record) -> dict[str, Any]:
    settings = record.body["settings"]
    return {
        "Name": record.name,
        "S3BucketName": settings["bucket"],
        "S3KeyPrefix": settings["prefix"] or None,
        "IncludeGlobalServiceEvents": settings["global"],
        "IsMultiRegionTrail": settings["regions"],
        "TrailARN": arn(call.session, record.name),
        "LogFileValidationEnabled": settings["digests"],
        "IsOrganizationTrail": False,
        "KmsKeyId": settings.get("key") or None,
    }


def _shown(call: Call, record: Record) -> dict[str, Any]:
    settings = record.body["settings"]
    return _described(call, record) | {
        "HomeRegion": call.session.region,
        "HasCustomEventSelectors": bool(settings.get("selectors") or settings.get("advanced")),
        "HasInsightSelectors": False,
    }


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _stamp(text: str | None) -> str:
    return "" if text is None else datetime.fromisoformat(text).strftime("%Y-%m-%dT%H:%M:%SZ")
