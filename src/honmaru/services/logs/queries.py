"""Logs Insights: StartQuery, GetQueryResults, StopQuery, DescribeQueries, GetLogRecord.

Invariants:
- A query is kept with its asker's label, and evaluated when its results are asked for, with the rights of that moment
  and of whoever asks.
- One evaluation looks at a bounded number of events; when there are more, the status is Timeout, never Complete.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import orjson

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.logs.finding import Request, find_group, group_arn, invalid
from honmaru.services.logs.insights import Moment, Row, parse
from honmaru.services.logs.insights.rows import Value, shown
from honmaru.services.logs.store import LogStore, StoredEvent, name_of

KIND = "query"
SCAN_EVENTS = 1_000_000
"""Events that one evaluation looks at, at most."""

_KEPT = timedelta(days=7)
_LIMIT = 10_000
_GROUPS = 50
_PAGE = 10_000


def start(call: Call, request: Request, groups: Iterable[Record]) -> dict[str, Any]:
    """Keep a query; returns its id."""
    names = [group.name for group in groups]
    if not names:
        raise invalid("name at least one log group")
    if len(names) > _GROUPS:
        raise invalid(f"a query takes at most {_GROUPS} log groups")
    if (request.get("queryLanguage") or "CWLI") != "CWLI":
        raise invalid("queryLanguage must be CWLI: the other languages are not carried")
    if request["startTime"] > request["endTime"]:
        raise invalid("Query's end date and time is either before the start or it is too far in the past.")
    text = request.get("queryString") or ""
    parse(text)
    body = {
        "text": text,
        "groups": names,
        "start": _milliseconds(int(request["startTime"])),
        "end": _milliseconds(int(request["endTime"]) + 1),
        "limit": int(request.get("limit") or _LIMIT),
        "by": call.session.principal_arn,
    }
    for old in call.records.list(KIND):
        if old.label == call.session.label and call.now - old.created > _KEPT:
            call.records.delete(old)
    call.records.create(KIND, call.request_id, body, "Scheduled")
    return {"queryId": call.request_id}


def results(call: Call, request: Request, store: LogStore) -> dict[str, Any]:
    """The rows of a query, evaluated now."""
    record = _find(call, request)
    if record.state == "Cancelled":
        return {"status": "Cancelled", "queryLanguage": "CWLI", "results": []}
    body, query = record.body, parse(record.body["text"])
    scan = _Scan(call, store, body)
    found = query.run(scan.rows(), body["limit"])
    status = "Timeout" if scan.cut else "Complete"
    if record.state != status and record.label == call.session.label:
        try:
            call.records.update(record, record.body, status)
        except Conflict:
            pass  # it was stopped or answered meanwhile; this answer stays right
    columns = query.columns if query.grouped else [*query.columns, "@ptr"]
    first, size = _page(request)
    shown_rows = found[first : first + size]
    more = len(found) > first + size
    return {
        "status": status,
        "queryLanguage": "CWLI",
        "results": [
            [{"field": name, "value": shown(value)} for name in columns if (value := row.get(name)) is not None]
            for row in shown_rows
        ],
        "statistics": {
            "recordsMatched": float(len(found)),
            "recordsScanned": float(scan.events),
            "bytesScanned": float(scan.size),
            "logGroupsScanned": float(len(body["groups"])),
        },
        "nextToken": str(first + size) if more else None,
    }


def _page(request: Request) -> tuple[int, int]:
    at = request.get("nextToken") or "0"
    if not at.isdecimal():
        raise invalid("The specified nextToken is invalid.")
    return int(at), int(request.get("maxItems") or _PAGE)


class _Scan:
    """The events of a query's groups and time, as rows."""

    def __init__(self, call: Call, store: LogStore, body: Mapping[str, Any]) -> None:
        self._call, self._store, self._body = call, store, body
        self.events = 0
        self.size = 0
        self.cut = False

    def rows(self) -> Iterator[Row]:
        start, end = self._body["start"], self._body["end"]
        for name in self._body["groups"]:
            group = find_group(self._call, self._store, {"logGroupIdentifier": name})
            for stream in self._store.streams(self._call.records, group.name):
                first, last = stream.body["first_ms"], stream.body["last_ms"]
                if last is None or last < start or (first is not None and first >= end):
                    continue
                for event in self._store.events(self._call.records, stream, since_ms=start):
                    if not start <= event.timestamp_ms < end:
                        continue
                    if self.events == SCAN_EVENTS:
                        self.cut = True
                        return
                    self.events += 1
                    self.size += len(event.message)
                    yield Row(_fields(self._call.session.account, group.name, name_of(stream), event))


def _fields(account: str, group: str, stream: str, event: StoredEvent) -> dict[str, Value]:
    return {
        "@timestamp": Moment(event.timestamp_ms),
        "@ingestionTime": Moment(event.ingested_ms),
        "@message": event.message,
        "@logStream": stream,
        "@log": f"{account}:{group}",
        "@ptr": base64.urlsafe_b64encode(orjson.dumps([group, stream, event.place])).decode(),
    }


def stop(call: Call, request: Request) -> dict[str, Any]:
    record = _find(call, request)
    if record.state != "Scheduled":
        raise invalid(f"Query is not running: its status is {record.state}")
    call.records.update(record, record.body, "Cancelled")
    return {"success": True}


def describe(call: Call, request: Request) -> dict[str, Any]:
    """Newest first."""
    if request.get("queryLanguage") not in (None, "CWLI"):
        return {"queries": []}
    wanted, group = request.get("status"), request.get("logGroupName")
    found = [
        record
        for record in call.records.iterate(KIND)
        if wanted in (None, record.state) and (group is None or group in record.body["groups"])
    ]
    found.sort(key=lambda record: (record.created, record.name), reverse=True)
    at = request.get("nextToken") or "0"
    if not at.isdecimal():
        raise invalid("The specified nextToken is invalid.")
    first, size = int(at), int(request.get("maxResults") or 1000)
    page = found[first : first + size]
    return {
        "queries": [
            {
                "queryLanguage": "CWLI",
                "queryId": record.name,
                "queryString": record.body["text"],
                "status": record.state,
                "createTime": int(record.created.timestamp() * 1000),
                "logGroupName": record.body["groups"][0],
                "userIdentity": record.body.get("by"),
            }
            for record in page
        ],
        "nextToken": str(first + size) if len(found) > first + size else None,
    }


def record_of(call: Call, request: Request, store: LogStore) -> dict[str, Any]:
    """Every field of the event behind a result's @ptr."""
    try:
        group, stream, place = orjson.loads(base64.urlsafe_b64decode(request["logRecordPointer"].encode()))
        place = int(place)
    except (ValueError, TypeError):
        raise invalid("The specified logRecordPointer is invalid.") from None
    call.authorize("logs:GetLogRecord", f"{group_arn(call, str(group))}:log-stream:")
    found = store.stream(call.records, str(group), str(stream))
    event = None if found is None else next(store.events(call.records, found, max(0, place)), None)
    if event is None or event.place != place:
        raise NotFound("The specified log record does not exist.", code="ResourceNotFoundException")
    row = Row(_fields(call.session.account, str(group), str(stream), event))
    return {
        "logRecord": {
            name: str(int(value)) if isinstance(value, Moment) else shown(value)
            for name, value in (row.fields | dict(row.discovered)).items()
        }
    }


def fields_of(call: Call, request: Request, store: LogStore, group: Record) -> dict[str, Any]:
    """Fields of the events around a time (by default the last 15 minutes), with the share of events that have them."""
    at = _milliseconds(int(request["time"])) if request.get("time") else int(call.now.timestamp() * 1000)
    before = 8 * 60_000 if request.get("time") else 15 * 60_000
    after = 8 * 60_000 if request.get("time") else 60_000
    body = {"groups": [group.name], "start": at - before, "end": at + after}
    counts: dict[str, int] = {}
    total = 0
    for row in _Scan(call, store, body).rows():
        total += 1
        for name in (*(each for each in row.fields if each != "@ptr"), *row.discovered):
            counts[name] = counts.get(name, 0) + 1
        if total == 10_000:
            break
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000]
    return {"logGroupFields": [{"name": name, "percent": count * 100 // total} for name, count in found]}


def _find(call: Call, request: Request) -> Record:
    record = call.records.get(KIND, request["queryId"])
    if record is None:
        raise NotFound("The specified query does not exist.", code="ResourceNotFoundException")
    return record


def _milliseconds(moment: int) -> int:
    """Seconds, as documented, or milliseconds, as clients also send."""
    if moment > 10**14:
        raise ValidationFault("a time is in seconds or milliseconds since 1970", code="InvalidParameterException")
    return moment if moment > 10**11 else moment * 1000
