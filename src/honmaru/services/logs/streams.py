"""Log streams: made, described, deleted."""

from __future__ import annotations

from typing import Any

from honmaru.core.errors import Conflict
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.logs.finding import (
    Request,
    exists,
    find_group,
    find_stream,
    group_arn,
    invalid,
)
from honmaru.services.logs.store import LogStore, name_of


def create(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    group, stream = find_group(call, store, request), request["logStreamName"]
    try:
        if group.label != call.session.label:
            store.own_group(call.records, group.name)
        store.create_stream(call.records, group.name, stream)
    except Conflict:
        raise exists("The specified log stream already exists") from None
    return {}


def delete(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    store.delete_stream(call.records, find_stream(call, store, request))
    return {}


def describe(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    """By name, or by the time of the last event; a stream without events counts as the oldest."""
    group = find_group(call, store, request)
    prefix, limit = request.get("logStreamNamePrefix") or "", int(request.get("limit") or 50)
    by_time = request.get("orderBy") == "LastEventTime"
    if by_time and prefix:
        raise invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")

    def key(stream: Record) -> str:
        return f"{stream.body['last_ms'] or 0:020d} {name_of(stream)}" if by_time else name_of(stream)

    descending = bool(request.get("descending"))
    ordered = sorted(store.streams(call.records, group.name, prefix), key=key, reverse=descending)
    after = request.get("nextToken") or ""
    if after:
        ordered = [stream for stream in ordered if (key(stream) < after if descending else key(stream) > after)]
    shown = ordered[:limit]
    return {
        "logStreams": [_described(call, group, stream) for stream in shown],
        "nextToken": key(shown[-1]) if len(ordered) > limit else None,
    }


def _described(call: Call, group: Record, stream: Record) -> dict[str, Any]:
    name, body = name_of(stream), stream.body
    return {
        "logStreamName": name,
        "creationTime": int(stream.created.timestamp() * 1000),
        "firstEventTimestamp": body["first_ms"],
        "lastEventTimestamp": body["last_ms"],
        "lastIngestionTime": body["ingested_ms"],
        "uploadSequenceToken": str(body["events"]),
        "arn": f"{group_arn(call, group.name)}:log-stream:{name}",
        "storedBytes": 0,
    }
