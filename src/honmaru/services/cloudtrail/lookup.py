"""LookupEvents: events as a view of the audit ledger.

Invariants:
- A session sees the logs of labels that its own dominates, and of its own account; nothing about any other log.
- Newest first over all of these logs, by the time the ledger recorded; page after page shows each event once.
- One call looks at a bounded number of entries: a page may be short, or empty, and still have a NextToken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from honmaru.core.errors import ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.security.ledger import Ledger
from honmaru.security.ledger.entries import API_CALL

MAX_RESULTS = 50
SCAN_LIMIT = 100_000
"""Entries of one log that one call looks at, at most."""

Entry = Mapping[str, Any]


class Lookup:
    """Answers LookupEvents from a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def events(self, call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
        """Events with one attribute, in a span of time, newest first; 50 a page at most."""
        if request.get("EventCategory"):
            return {"Events": []}  # the only category that can be asked for is "insight", and there are none
        attribute = _attribute(request.get("LookupAttributes") or [])
        wanted = _matches(attribute, call.session.account)
        query = _digest(call.session, request)
        streams = self._streams(call.session.label, request, attribute, wanted)
        if token := request.get("NextToken"):
            positions = _read_token(token, query)
            for stream in streams:  # a log that began after the first page is not part of the answer
                stream.before = min(stream.before, positions.get(stream.label.token, 0))
        events = [_event(entry) for entry in self._merge(streams, _page_size(request))]
        rest = {stream.label.token: stream.before for stream in streams if stream.before > stream.low}
        return {"Events": events, "NextToken": _write_token(query, rest) if rest else None}

    def _streams(
        self,
        label: Label,
        request: Mapping[str, Any],
        attribute: tuple[str, str] | None,
        wanted: Callable[[Entry], bool],
    ) -> list[_Stream]:
        start, end = request.get("StartTime"), request.get("EndTime")
        if start and end and start > end:
            raise ValidationFault("StartTime is after EndTime: exchange them", code="InvalidTimeRangeException")
        words = _words(attribute)
        streams = []
        for seen in sorted(self._ledger.labels(), key=lambda other: other.canonical):
            if label.dominates(seen):
                low = self._ledger.position(seen, _moment(start)) if start else 0
                last = end.replace(microsecond=0) + timedelta(seconds=1) if end else None
                before = self._ledger.position(seen, _moment(last)) if last else self._ledger.size(seen)
                streams.append(_Stream(self._ledger, seen, words, wanted, low, before))
        return streams

    def _merge(self, streams: Sequence[_Stream], count: int) -> list[Entry]:
        """The next `count` entries of all streams; moves each stream behind what it gave or passed over."""
        for stream in streams:
            stream.begin()
        # Below this time a stream that reached its scan limit might hold entries that nobody has looked at.
        horizon = max((stream.horizon for stream in streams if stream.until > stream.low), default="")
        page: list[Entry] = []
        while len(page) < count:
            newest = max((stream for stream in streams if stream.head), key=_Stream.recorded, default=None)
            if newest is None or newest.recorded() < horizon:
                break
            page.append(newest.take())
        for stream in streams:
            stream.stop()
        return page


@dataclass(slots=True)
class _Stream:
    """Matching entries of one log from index `before` - 1 down to `low`, in one call down to `until`."""

    ledger: Ledger
    label: Label
    words: Sequence[str]
    wanted: Callable[[Entry], bool]
    low: int
    before: int
    until: int = 0
    horizon: str = ""
    head: tuple[int, Entry] | None = None
    _rest: Iterator[tuple[int, dict[str, Any]]] = field(default_factory=lambda: iter(()))

    def begin(self) -> None:
        self.until = max(self.low, self.before - SCAN_LIMIT)
        if self.until > self.low:
            self.horizon = str(next(self.ledger.entries(self.label, self.until, self.until + 1))["recorded"])
        self._rest = self.ledger.backward(self.label, self.before, self.words, until=self.until)
        self._advance()

    def _advance(self) -> None:
        self.head = next(((index, entry) for index, entry in self._rest if self.wanted(entry)), None)

    def recorded(self) -> str:
        return str(self.head[1]["recorded"]) if self.head else ""

    def take(self) -> Entry:
        if self.head is None:
            raise IndexError("the stream is at its end")
        self.before, entry = self.head
        self._advance()
        return entry

    def stop(self) -> None:
        """Entries between what was given and the next match need not be looked at again."""
        self.before = self.head[0] + 1 if self.head else min(self.before, max(self.until, self.low))


def _attribute(attributes: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
    if len(attributes) > 1:
        raise ValidationFault(
            f"LookupAttributes has {len(attributes)} items; CloudTrail takes one",
            code="InvalidLookupAttributesException",
        )
    if not attributes:
        return None
    key, value = attributes[0]["AttributeKey"], attributes[0]["AttributeValue"]
    if not value or (key == "ReadOnly" and value not in ("true", "false")):
        raise ValidationFault(f"{value!r} is no value for {key}", code="InvalidLookupAttributesException")
    return key, value


_ATTRIBUTES: dict[str, Callable[[Entry, str], bool]] = {
    "EventId": lambda entry, value: entry.get("eventID") == value,
    "EventName": lambda entry, value: entry.get("eventName") == value,
    "EventSource": lambda entry, value: entry.get("eventSource") == value,
    "ReadOnly": lambda entry, value: entry.get("readOnly") is (value == "true"),
    "Username": lambda entry, value: _user_name(entry) == value,
    "AccessKeyId": lambda entry, value: entry.get("userIdentity", {}).get("accessKeyId") == value,
    "ResourceType": lambda entry, value: any(item["type"] == value for item in entry.get("resources", ())),
    "ResourceName": lambda entry, value: any(value in _names(item["ARN"]) for item in entry.get("resources", ())),
}


def _matches(attribute: tuple[str, str] | None, account: str) -> Callable[[Entry], bool]:
    def wanted(entry: Entry) -> bool:
        if entry.get("eventType") != API_CALL or entry.get("recipientAccountId") != account:
            return False
        return attribute is None or _ATTRIBUTES[attribute[0]](entry, attribute[1])

    return wanted


def _words(attribute: tuple[str, str] | None) -> list[str]:
    """Text that every matching entry contains, so that bundles without it need not be parsed."""
    words = ["AwsApiCall"]
    if attribute and attribute[0] != "ReadOnly" and attribute != ("Username", "root"):
        words.append(attribute[1])
    return words


def _names(arn: str) -> tuple[str, str, str]:
    """What may be given as ResourceName: the ARN, its resource part, and that without the type."""
    resource = arn.split(":", 5)[-1]
    return arn, resource, resource.partition("/")[2] or resource


def _user_name(entry: Entry) -> str | None:
    identity = entry.get("userIdentity", {})
    if identity.get("type") == "Root":
        return "root"
    name = identity.get("userName") or str(identity.get("arn", "")).rpartition("/")[2]
    return str(name) if name else None


def _event(entry: Entry) -> dict[str, Any]:
    identity = entry.get("userIdentity", {})
    return {
        "EventId": entry["eventID"],
        "EventName": entry.get("eventName"),
        "ReadOnly": "true" if entry.get("readOnly") else "false",
        "AccessKeyId": identity.get("accessKeyId") or None,
        "EventTime": datetime.fromisoformat(entry["recorded"]).replace(microsecond=0),
        "EventSource": entry.get("eventSource"),
        "Username": _user_name(entry),
        "Resources": [
            {"ResourceType": item["type"], "ResourceName": item["ARN"]} for item in entry.get("resources", ())
        ],
        "CloudTrailEvent": orjson.dumps(dict(entry)).decode(),
    }


def _page_size(request: Mapping[str, Any]) -> int:
    count = request.get("MaxResults")
    if count is None:
        return MAX_RESULTS
    if not 1 <= count <= MAX_RESULTS:
        raise ValidationFault(f"MaxResults is {count}; expected 1 to 50", code="InvalidMaxResultsException")
    return int(count)


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _digest(session: Session, request: Mapping[str, Any]) -> str:
    """Ties a token to the question and to who asks at which label."""
    question = {key: value for key, value in request.items() if key not in ("NextToken", "MaxResults")}
    asked = [session.account, session.label.canonical, question]
    return hashlib.sha384(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _write_token(query: str, positions: Mapping[str, int]) -> str:
    return orjson.dumps([query, positions]).decode()


def _read_token(token: str, query: str) -> dict[str, int]:
    try:
        asked, positions = orjson.loads(token)
        valid = asked == query and all(isinstance(at, int) and at >= 0 for at in positions.values())
    except (ValueError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise ValidationFault(
            "NextToken is not of this question: repeat the request that gave it, with the same parameters",
            code="InvalidNextTokenException",
        )
    return {str(name): int(at) for name, at in positions.items()}
