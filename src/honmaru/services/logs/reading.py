"""GetLogEvents and FilterLogEvents: pages of events, and the tokens that lead from one to the next.

Invariants:
- A forward token names the place after the last event given, a backward token the place of the first: at the end of a
  stream the same token comes back, and used again later it gives what was appended meanwhile.
- A page holds at most `limit` events and about 1 MiB.
- FilterLogEvents goes over all streams of a group in order of time, then stream, then place; its token is such a key.
- One call looks at a bounded number of events: a page may be short, or empty, and still lead on.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.guard import GuardedRecords, Record
from honmaru.security.page_tokens import read_place, write_place
from honmaru.services.logs.patterns import compiled
from honmaru.services.logs.store import LogStore, StoredEvent, event_id, name_of

PAGE_EVENTS = 10_000
PAGE_BYTES = 1 << 20
SCAN_EVENTS = 100_000
"""Events that one call looks at, at most."""

Request = Mapping[str, Any]


def get(store: LogStore, records: GuardedRecords, stream: Record, request: Request) -> dict[str, Any]:
    """One page of a stream; forward from its head or a forward token, else backward from its end."""
    limit = int(request.get("limit") or PAGE_EVENTS)
    token = request.get("nextToken")
    forward, place = _position(token) if token else (bool(request.get("startFromHead")), None)
    end = int(stream.body["events"])
    if forward:
        start = min(place or 0, end)
        events = store.events(records, stream, start, since_ms=request.get("startTime"))
        shown, scanned = _page(events, request, limit)
        after = scanned + 1 if scanned is not None else start
        before = shown[0].place if shown else start
    else:
        start = end if place is None else min(place, end)
        shown, scanned = _page(store.events_before(records, stream, start), request, limit)
        shown.reverse()
        before = scanned if scanned is not None else start
        after = shown[-1].place + 1 if shown else start
    return {
        "events": [
            {"timestamp": event.timestamp_ms, "message": event.message, "ingestionTime": event.ingested_ms}
            for event in shown
        ],
        "nextForwardToken": f"f/{after:056d}",
        "nextBackwardToken": f"b/{before:056d}",
    }


def filtered(store: LogStore, records: GuardedRecords, streams: list[Record], request: Request) -> dict[str, Any]:
    """One page of matching events over streams."""
    limit = int(request.get("limit") or PAGE_EVENTS)
    matches = compiled(request.get("filterPattern") or "")
    last = _key(str(request["nextToken"])) if request.get("nextToken") else None
    start, end = request.get("startTime"), request.get("endTime")
    since = start if last is None else max(int(start or 0), last[0])
    timely = [stream for stream in streams if _may_hold(stream, start, end)]
    merged = heapq.merge(*(_keyed(store, records, stream, since) for stream in timely), key=lambda item: item[0])
    found: list[dict[str, Any]] = []
    size = scanned = 0
    token: str | None = None
    seen: tuple[int, str, int] | None = None
    for key, stream, event in merged:
        if last is not None and key <= last:
            continue
        if scanned == SCAN_EVENTS or len(found) == limit or size > PAGE_BYTES:
            token = write_place(*seen) if seen is not None else None
            break
        seen = key
        scanned += 1
        if not _in_time(event, request) or not matches(event.message):
            continue
        found.append(
            {
                "logStreamName": name_of(stream),
                "timestamp": event.timestamp_ms,
                "message": event.message,
                "ingestionTime": event.ingested_ms,
                "eventId": event_id(stream, event),
            }
        )
        size += len(event.message) + 26
    searched = [{"logStreamName": name_of(stream), "searchedCompletely": token is None} for stream in streams]
    return {"events": found, "searchedLogStreams": searched, "nextToken": token}


def _page(events: Iterable[StoredEvent], request: Request, limit: int) -> tuple[list[StoredEvent], int | None]:
    """Events that are in time, and the place of the last one looked at."""
    found: list[StoredEvent] = []
    size = 0
    scanned: int | None = None
    for count, event in enumerate(events, start=1):
        scanned = event.place
        if _in_time(event, request):
            found.append(event)
            size += len(event.message) + 26
        if len(found) >= limit or size > PAGE_BYTES or count == SCAN_EVENTS:
            break
    return found, scanned


def _keyed(
    store: LogStore, records: GuardedRecords, stream: Record, since_ms: int | None
) -> Iterator[tuple[tuple[int, str, int], Record, StoredEvent]]:
    """Events with a key that never falls, though writers may state times out of order."""
    highest = 0
    for event in store.events(records, stream, since_ms=since_ms):
        highest = max(highest, event.timestamp_ms)
        yield (highest, name_of(stream), event.place), stream, event


def _may_hold(stream: Record, start: int | None, end: int | None) -> bool:
    """Whether a stream can have events in a span of time."""
    first, last = stream.body["first_ms"], stream.body["last_ms"]
    return last is not None and (start is None or last >= start) and (end is None or first is None or first < end)


def _in_time(event: StoredEvent, request: Request) -> bool:
    start, end = request.get("startTime"), request.get("endTime")
    return (start is None or event.timestamp_ms >= start) and (end is None or event.timestamp_ms < end)


def _position(token: str) -> tuple[bool, int]:
    match = re.fullmatch(r"([fb])/(\d{1,60})", token)
    if match is None:
        raise ValidationFault("The specified nextToken is invalid.", code="InvalidParameterException")
    return match[1] == "f", int(match[2])


def _key(token: str) -> tuple[int, str, int]:
    key: tuple[int, str, int] = read_place(token, int, str, int, code="InvalidParameterException")
    return key
