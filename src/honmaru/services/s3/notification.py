"""Notifications: which events of a bucket's objects go where, and the outbox in which they wait for their takers.

Invariants:
- An event is stored in the transaction of the change that it tells of, at that session's label.
- A configuration is refused as a whole when one of its destinations has no taker in this enclave: nothing is accepted
  that would never be delivered. The event bus (EventBridge) is the enclave's own outbox and is always there.
- No two configurations of a bucket may ask for the same event of the same key, as in S3.

Source: S3 user guide, "Amazon S3 Event Notifications", "Event message structure" (version 2.4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.core.sessions import Session
from honmaru.ports.events import KEPT_DAYS, Destinations, Event
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, Guard, GuardedChange, GuardedRecords, Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import settings
from honmaru.services.s3.requests import canonical_id

if TYPE_CHECKING:
    from honmaru.services.s3.events import ObjectEvent

_KINDS: Mapping[str, str] = {
    # list of configurations → its member that names the destination
    "TopicConfigurations": "TopicArn",
    "QueueConfigurations": "QueueArn",
    "LambdaFunctionConfigurations": "LambdaFunctionArn",
}
_BUS = "EventBridgeConfiguration"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EVENTS = "ObjectCreated:", "ObjectRemoved:", "LifecycleExpiration:", "ObjectTagging:"
"""Families of events that honmaru's S3 gives."""


class NoDestinations:
    """An enclave in which nothing but the event bus takes events."""

    def takes(self, arn: str) -> bool:  # noqa: ARG002
        return False


def bus_of(partition: str, region: str, account: str) -> str:
    """The destination of events that a bucket sends to EventBridge."""
    return f"arn:{partition}:events:{region}:{account}:event-bus/default"


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return dict(settings.stored(buckets.require(call.records, request), "notification") or {})


def put(call: Call, request: Mapping[str, Any], destinations: Destinations) -> dict[str, Any]:
    """An empty configuration turns notifications off. Raises ValidationFault in S3's words."""
    buckets.require(call.records, request)
    stated = request["NotificationConfiguration"]
    kept: dict[str, Any] = {}
    for kind, destination in _KINDS.items():
        for number, one in enumerate(stated.get(kind) or ()):
            _check(one, destination, destinations)
            identity = one.get("Id") or f"{call.request_id[:36]}-{number}"
            kept.setdefault(kind, []).append({**one, "Id": identity})
    every = [one for kind in _KINDS for one in kept.get(kind, ())]
    if len({one["Id"] for one in every}) != len(every):
        raise _argument("Same ID used for multiple configurations. IDs must be unique")
    for one, other in combinations(every, 2):
        if _overlap(one, other):
            raise _argument(
                "Configurations overlap. Configurations on the same bucket cannot share a common event type."
            )
    if _BUS in stated:
        kept[_BUS] = {}
    settings.keep(call, request, "notification", kept or None)
    return {}


def _check(one: Mapping[str, Any], destination: str, destinations: Destinations) -> None:
    if not one["Events"]:
        raise ValidationFault(
            "The XML you provided was not well-formed or did not validate against our published schema",
            code="MalformedXML",
        )
    for event in one["Events"]:
        if not event.removeprefix("s3:").startswith(_EVENTS):
            raise _argument(f"The event '{event}' is not supported for notifications")
    rules = _rules(one)
    names = [name for name, _ in rules]
    if len(set(names)) != len(names):
        raise _argument(f"Cannot specify more than one {names[0]} rule in a filter.")
    if any(len(value.encode()) > 1024 for _, value in rules):
        raise _argument("Size of filter rule value cannot exceed 1024 bytes in UTF-8 representation")
    arn = one[destination]
    if not destinations.takes(arn):
        raise ValidationFault(
            "Unable to validate the following destination configurations",
            code="InvalidArgument",
            members={"ArgumentName": arn, "ArgumentValue": "The destination does not exist or takes no events"},
        )


def _rules(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(prefix or suffix, value) of a configuration's filter."""
    stated = ((one.get("Filter") or {}).get("Key") or {}).get("FilterRules") or ()
    return [(str(rule.get("Name", "")).lower(), rule.get("Value", "")) for rule in stated]


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if not any(_covers(a, b) or _covers(b, a) for a in one["Events"] for b in other["Events"]):
        return False
    mine, theirs = dict(_rules(one)), dict(_rules(other))
    a, b = mine.get("prefix", ""), theirs.get("prefix", "")
    c, d = mine.get("suffix", ""), theirs.get("suffix", "")
    return (a.startswith(b) or b.startswith(a)) and (c.endswith(d) or d.endswith(c))


def _covers(pattern: str, name: str) -> bool:
    return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))


def _argument(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidArgument")


# What happens to objects


def listener(call: Call, event: ObjectEvent) -> Iterable[GuardedChange]:
    """The outbox records of one event: one for each destination that wants it. An `events.Listener`."""
    stated = settings.stored(event.bucket, "notification")
    if not stated:
        return
    session = call.session
    for identity, destination in _wanted(stated, event, bus_of(session.partition, session.region, call.account)):
        unique = hashlib.sha256(
            f"{call.request_id}/{event.name}/{event.bucket.name}/{event.key}/{event.version_id}/{identity}".encode()
        ).hexdigest()[:32]
        body = {"destination": destination, "detail": _detail(call, event, identity), "at": call.now.isoformat()}
        yield Creation("event", f"{call.now:%Y%m%dT%H%M%S.%f}-{unique}", body, _state(destination))


def _wanted(stated: Mapping[str, Any], event: ObjectEvent, bus: str) -> Iterator[tuple[str, str]]:
    """(configuration id, destination) of those who want an event."""
    for kind, destination in _KINDS.items():
        for one in stated.get(kind) or ():
            rules = _rules(one)
            if any(_covers(pattern, f"s3:{event.name}") for pattern in one["Events"]) and all(
                event.key.startswith(value) if name == "prefix" else event.key.endswith(value) for name, value in rules
            ):
                yield one["Id"], one[destination]
    if _BUS in stated:
        yield "EventBridge", bus


def _detail(call: Call, event: ObjectEvent, identity: str) -> dict[str, Any]:
    """One member of `Records`, as S3 sends it."""
    session = call.session
    found: dict[str, Any] = {"key": quote_plus(event.key, safe="/"), "sequencer": _sequencer(call, event)}
    for name, value in (("size", event.size), ("eTag", event.etag), ("versionId", event.version_id)):
        if value is not None:
            found[name] = value
    return {
        "eventVersion": "2.4",
        "eventSource": "aws:s3",
        "awsRegion": session.region,
        "eventTime": call.now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{call.now.microsecond // 1000:03}Z",
        "eventName": event.name,
        "userIdentity": {"principalId": session.principal_id},
        "requestParameters": {"sourceIPAddress": session.source_ip or ""},
        "responseElements": {"x-amz-request-id": call.request_id, "x-amz-id-2": call.request_id},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": identity,
            "bucket": {
                "name": event.bucket.name,
                "ownerIdentity": {"principalId": canonical_id(call.acting)},
                "arn": f"arn:{session.partition}:s3:::{event.bucket.name}",
            },
            "object": found,
        },
    }


def _sequencer(call: Call, event: ObjectEvent) -> str:
    """Hexadecimal text that sorts the events of one key, oldest first.

    An object that is made, and a delete marker, have their place among the versions, newest first, which is turned
    round; what happens to a version later is told by the time.
    """
    if not event.name.startswith("ObjectCreated:") and not event.name.endswith(":DeleteMarkerCreated"):
        return f"{int((call.now - _EPOCH) / _MICROSECOND):014X}"
    return "".join(f"{15 - int(digit, 16):X}" for digit in event.order)


def _state(destination: str) -> str:
    """Destinations as record states, so that the store can filter: states are short, ARNs need not be."""
    return hashlib.sha256(destination.encode()).hexdigest()[:32]


# Who takes them


class Outbox:
    """A `ports.events.EventOutbox` over S3's event records."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def read(self, session: Session, destination: str, limit: int = 100) -> Sequence[Event]:
        records = self._guard.records(session, "s3")
        found = []
        for record in records.list("event", state=_state(destination), limit=limit):
            detail = record.body["detail"]
            order = str(detail["s3"]["object"]["sequencer"])
            found.append(Event(record.name, record.body["destination"], record.account, record.label, detail, order))
        return found

    def acknowledge(self, session: Session, events: Sequence[Event]) -> None:
        records = self._guard.records(session, "s3")
        for event in events:
            record = records.get("event", event.id)
            if record is not None:
                _forget(records, record)


def prune(records: GuardedRecords, now: datetime) -> int:
    """Forget events at the session's own label that nobody took in KEPT_DAYS; returns how many."""
    before = f"{now - timedelta(days=KEPT_DAYS):%Y%m%dT%H%M%S.%f}"
    gone = 0
    for record in records.iterate("event"):
        if record.name >= before:
            break
        if record.label == records.session.label:
            _forget(records, record)
            gone += 1
    return gone


def _forget(records: GuardedRecords, record: Record) -> None:
    try:
        records.delete(record)
    except (Conflict, NotFound):
        return  # somebody else forgot it
