"""Logs Insights: StartQuery and GetQueryResults, for the part of its query language that is a search.

    fields @timestamp, @message | filter @logStream like /^job\\// | sort @timestamp desc | limit 20

Commands: fields, display, filter (=, !=, like, not like; one condition each), sort, limit. A pattern is a quoted text,
or a regular expression that is a plain text with escapes and the anchors ^ and $: others could run for ever, and are
refused.

Invariants:
- A command or pattern that is not understood is refused by name, never ignored.
- A query is kept with its asker's label, and evaluated when its results are asked for, with the rights of that moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from honmaru.core.errors import NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.logs.store import LogStore, name_of

KIND = "query"
_KEPT = timedelta(days=1)
_LIMIT = 10_000
_FIELD = r"@timestamp|@ingestionTime|@message|@logStream|@log"
_FILTER = re.compile(
    rf"(?P<field>{_FIELD})\s*(?P<operator>=|!=|not\s+like|like)\s*"
    r"(?:/(?P<regex>(?:[^/\\]|\\.)+)/|\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)')",
    re.IGNORECASE,
)
_PART = re.compile(r"(?:[^|/\"']|/(?:[^/\\]|\\.)*/|\"[^\"]*\"|'[^']*')+")
Row = Mapping[str, str]
Test = Callable[[Row], bool]


@dataclass(slots=True)
class Query:
    """A parsed query."""

    shown: list[str] = field(default_factory=lambda: ["@timestamp", "@message"])
    tests: list[Test] = field(default_factory=list)
    descending: bool = True
    limit: int = _LIMIT


def parse(text: str) -> Query:
    """Raises ValidationFault for whatever is not understood."""
    query = Query()
    for part in _PART.findall(text.strip().removeprefix("|")):
        words = part.strip()
        command, _, rest = words.partition(" ")
        rest = rest.strip()
        if command in ("fields", "display"):
            query.shown = [name.strip() for name in rest.split(",")]
            unknown = [name for name in query.shown if not re.fullmatch(_FIELD, name)]
            if unknown:
                raise _malformed(f"field {unknown[0]!r} is not known; use {_FIELD.replace('|', ', ')}")
        elif command == "filter":
            query.tests.append(_test(rest))
        elif command == "sort":
            match = re.fullmatch(r"@timestamp(?:\s+(asc|desc))?", rest)
            if match is None:
                raise _malformed(f"sort {rest!r} is not supported; use sort @timestamp asc or desc")
            query.descending = match[1] != "asc"
        elif command == "limit" and rest.isdigit():
            query.limit = min(_LIMIT, int(rest))
        elif words:
            raise _malformed(f"command {words[:80]!r} is not supported; use fields, filter, sort and limit")
    return query


def _test(text: str) -> Test:
    match = _FILTER.fullmatch(text)
    if match is None:
        raise _malformed(f"filter {text[:200]!r} is not supported; use one condition, for example @message like /text/")
    name, operator = match["field"], " ".join(match["operator"].lower().split())
    found = _pattern(match["regex"]) if match["regex"] is not None else _text(match, exact=operator in ("=", "!="))
    if operator in ("!=", "not like"):
        return lambda row: not found(row[name])
    return lambda row: found(row[name])


def _text(match: re.Match[str], *, exact: bool) -> Callable[[str], bool]:
    wanted = match["double"] if match["double"] is not None else match["single"]
    return (lambda value: value == wanted) if exact else (lambda value: wanted in value)


def _pattern(regex: str) -> Callable[[str], bool]:
    start, end = regex.startswith("^"), regex.endswith("$") and not regex.endswith("\\$")
    inner = regex[1 if start else 0 : -1 if end else None]
    text = re.sub(r"\\([^A-Za-z0-9])", lambda match: f"\0{ord(match[1]):06x}\0", inner)
    if re.search(r"[\\.*+?\[\](){}|^$]", text):
        raise _malformed(
            f"the regular expression /{regex}/ is not a plain text; only the anchors ^ and $ are supported"
        )
    wanted = re.sub(r"\0([0-9a-f]{6})\0", lambda match: chr(int(match[1], 16)), text)
    if start and end:
        return lambda value: value == wanted
    if start:
        return lambda value: value.startswith(wanted)
    return (lambda value: value.endswith(wanted)) if end else (lambda value: wanted in value)


def start(call: Call, request: Mapping[str, Any], groups: Iterable[Record]) -> dict[str, Any]:
    """Keep a query; returns its id."""
    text = request.get("queryString") or ""
    if (request.get("queryLanguage") or "CWLI") != "CWLI":
        raise ValidationFault("queryLanguage must be CWLI")
    parse(text)
    if request["startTime"] > request["endTime"]:
        raise ValidationFault("startTime is after endTime")
    body = {
        "text": text,
        "groups": [group.name for group in groups],
        "start": _milliseconds(int(request["startTime"])),
        "end": _milliseconds(int(request["endTime"]) + 1),
        "limit": int(request.get("limit") or _LIMIT),
    }
    for old in call.records.list(KIND):
        if old.label == call.session.label and call.now - old.created > _KEPT:
            call.records.delete(old)
    call.records.create(KIND, call.request_id, body)
    return {"queryId": call.request_id}


def results(call: Call, request: Mapping[str, Any], store: LogStore, group: Callable[[str], Record]) -> dict[str, Any]:
    """The rows of a query, evaluated now."""
    record = call.records.get(KIND, request["queryId"])
    if record is None:
        raise NotFound("The specified query does not exist.", code="ResourceNotFoundException")
    body, query = record.body, parse(record.body["text"])
    rows: list[tuple[int, dict[str, str]]] = []
    scanned = 0
    for name in body["groups"]:
        for stream in store.streams(call.records, group(name).name, ""):
            for event in store.events(call.records, stream, 0):
                if not body["start"] <= event.timestamp_ms < body["end"]:
                    continue
                scanned += 1
                row = {
                    "@timestamp": _shown(event.timestamp_ms),
                    "@ingestionTime": _shown(event.ingested_ms),
                    "@message": event.message,
                    "@logStream": name_of(stream),
                    "@log": f"{call.session.account}:{name}",
                }
                if all(test(row) for test in query.tests):
                    rows.append((event.timestamp_ms, row))
    rows.sort(key=lambda item: item[0], reverse=query.descending)
    shown = rows[: min(query.limit, body["limit"])]
    return {
        "status": "Complete",
        "queryLanguage": "CWLI",
        "results": [[{"field": name, "value": row[name]} for name in query.shown] for _, row in shown],
        "statistics": {"recordsMatched": float(len(rows)), "recordsScanned": float(scanned), "bytesScanned": 0.0},
    }


def _shown(milliseconds: int) -> str:
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{milliseconds % 1000:03d}"


def _milliseconds(moment: int) -> int:
    """Seconds, as documented, or milliseconds, as clients also send."""
    return moment if moment > 10**11 else moment * 1000


def _malformed(message: str) -> ValidationFault:
    return ValidationFault(message, code="MalformedQueryException")
