"""PutLogEvents: which events are taken, and which are turned away.

Invariants (Amazon CloudWatch Logs API reference, PutLogEvents):
- A batch is in order of time, spans at most 24 hours, has at most 10,000 events and 1,048,576 bytes, counting 26 for
  each event; an event has at most 1 MiB. A batch that breaks a rule is refused whole, and nothing of it is stored.
- Events over 2 hours ahead, over 14 days old or older than the group's retention are turned away one by one and named
  in `rejectedLogEventsInfo`; the others are stored.
"""

from __future__ import annotations

from typing import Any

from honmaru.ports.logs import LogEvent
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.logs.finding import Request, find_group, find_stream, invalid
from honmaru.services.logs.seals import EVENT_OVERHEAD
from honmaru.services.logs.store import AHEAD_MS, LogStore

_DAY_MS = 86_400_000
_OLDEST_DAYS = 14
_BATCH_BYTES = 1 << 20


def put(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    group, stream = find_group(call, store, request), find_stream(call, store, request)
    events = [LogEvent(event["timestamp"], event["message"]) for event in request["logEvents"]]
    times = [event.timestamp_ms for event in events]
    if times != sorted(times):
        raise invalid("Log events in a single PutLogEvents request must be in chronological order.")
    if times and times[-1] - times[0] > _DAY_MS:
        raise invalid("The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
    size = sum(len(event.message.encode("utf-8", "replace")) + EVENT_OVERHEAD for event in events)
    if size > _BATCH_BYTES:
        raise invalid(f"Upload too large: {size} bytes exceeds limit of {_BATCH_BYTES}")
    now_ms = int(call.now.timestamp() * 1000)
    first, last, rejected = _accepted(times, now_ms, group)
    if first < last:
        store.append(call.session, group.name, request["logStreamName"], events[first:last])
    call.details["events"] = last - first
    return {
        "nextSequenceToken": str(int(stream.body["events"]) + last - first),
        "rejectedLogEventsInfo": rejected or None,
    }


def _accepted(times: list[int], now_ms: int, group: Record) -> tuple[int, int, dict[str, int]]:
    """(first, end) of the events to store, and what is said about the others. `times` never falls."""
    rejected = {}
    too_old = sum(1 for at in times if at < now_ms - _OLDEST_DAYS * _DAY_MS)
    if too_old:
        rejected["tooOldLogEventEndIndex"] = too_old
    first = too_old
    if group.body.get("retention"):
        expired = sum(1 for at in times if at < now_ms - int(group.body["retention"]) * _DAY_MS)
        if expired > too_old:
            rejected["expiredLogEventEndIndex"] = first = expired
    last = sum(1 for at in times if at <= now_ms + AHEAD_MS)
    if last < len(times):
        rejected["tooNewLogEventStartIndex"] = last
    return first, max(first, last), rejected
