"""Metric filters: numbers taken out of log events as they arrive, kept as metrics.

Invariants:
- A filter makes metrics at the label of the events, never below.
- A filter sees the events that arrive after it was made; a fault of one filter keeps no event from being stored.

A metric value is a number, or the selector of a member or column (`$.ms`, `$bytes`). An event whose value is not a
number gives none. `defaultValue` is given once for a batch that has no match. Between the commit of the events and
that of the metric a `kill -9` loses the metric's points, not the events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from honmaru.core.errors import Conflict, NotFound, QuotaExceeded
from honmaru.core.sessions import Session
from honmaru.ports.logs import LogEvent
from honmaru.ports.metrics import Datum, MetricSink
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.services.logs.finding import Request, find_group, invalid
from honmaru.services.logs.patterns import Pattern, compiled, number
from honmaru.services.logs.store import LogStore

KIND = "metric-filter"
MAX_FILTERS = 100
"""Filters of one group, at most."""


def of_group(records: GuardedRecords, group: str) -> Iterator[Record]:
    """The visible filters of a group, by name."""
    return records.iterate(KIND, prefix=f"{group}:")


def put(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    group = find_group(call, store, request)
    compiled(request["filterPattern"])
    transformation = request["metricTransformations"][0]
    _check(transformation)
    for unsupported in ("applyOnTransformedLogs", "fieldSelectionCriteria", "emitSystemFieldDimensions"):
        if request.get(unsupported):
            raise invalid(f"{unsupported} is not supported: leave it out")
    if group.label != call.session.label:
        store.own_group(call.records, group.name)
    body = {"pattern": request["filterPattern"], "transformation": dict(transformation)}
    name = f"{group.name}:{request['filterName']}"
    found = call.records.get(KIND, name)
    try:
        if found is not None and found.label == call.session.label:
            call.records.update(found, body)
        else:
            if sum(1 for _ in of_group(call.records, group.name)) >= MAX_FILTERS:
                raise QuotaExceeded(f"a log group has at most {MAX_FILTERS} metric filters")
            call.records.create(KIND, name, body)
    except Conflict:
        raise Conflict("A concurrent change of the filter won; try again.", code="OperationAbortedException") from None
    return {}


def delete(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    group = find_group(call, store, request)
    record = call.records.get(KIND, f"{group.name}:{request['filterName']}")
    if record is None:
        raise NotFound("The specified metric filter does not exist.", code="ResourceNotFoundException")
    call.records.delete(record)
    return {}


def describe(call: Call, store: LogStore, request: Request) -> dict[str, Any]:
    metric, namespace = request.get("metricName"), request.get("metricNamespace")
    if bool(metric) != bool(namespace):
        raise invalid("metricName and metricNamespace must be given together.")
    start = request.get("filterNamePrefix") or ""
    prefix = ""
    if request.get("logGroupName"):
        prefix = f"{find_group(call, store, request).name}:{start}"
    limit = int(request.get("limit") or 50)
    shown: list[dict[str, Any]] = []
    last = ""
    for record in call.records.iterate(KIND, prefix=prefix, after=(request.get("nextToken") or "")):
        group, _, name = record.name.partition(":")
        transformation = record.body["transformation"]
        if not name.startswith(start) or (
            metric and (metric, namespace) != (transformation["metricName"], transformation["metricNamespace"])
        ):
            continue
        if len(shown) == limit:
            return {"metricFilters": shown, "nextToken": last}
        last = record.name
        shown.append(
            {
                "filterName": name,
                "logGroupName": group,
                "filterPattern": record.body["pattern"],
                "metricTransformations": [transformation],
                "creationTime": int(record.created.timestamp() * 1000),
                "applyOnTransformedLogs": False,
            }
        )
    return {"metricFilters": shown}


def test(request: Request) -> dict[str, Any]:
    pattern = compiled(request["filterPattern"])
    matches = [
        {"eventNumber": place, "eventMessage": message, "extractedValues": dict(pattern.values(message))}
        for place, message in enumerate(request["logEventMessages"], start=1)
        if pattern(message)
    ]
    return {"matches": matches}


def apply(sink: MetricSink, records: GuardedRecords, session: Session, group: str, events: Sequence[LogEvent]) -> None:
    """Put what the group's filters make of events that were just stored."""
    for record in of_group(records, group):
        transformation = record.body["transformation"]
        data = list(_data(compiled(record.body["pattern"]), transformation, events))
        if data:
            sink.put(session, transformation["metricNamespace"], data)


def _data(pattern: Pattern, transformation: Mapping[str, Any], events: Sequence[LogEvent]) -> Iterator[Datum]:
    any_match = False
    unit = transformation.get("unit") or "None"
    for event in events:
        if not pattern(event.message):
            continue
        any_match = True
        values = pattern.values(event.message)
        value = _value(transformation["metricValue"], values)
        wanted = transformation.get("dimensions") or {}
        dimensions = {name: values.get(selector) for name, selector in wanted.items()}
        found = {name: text[:1024] for name, text in dimensions.items() if text}
        if value is not None and len(found) == len(wanted):
            yield Datum(transformation["metricName"], value, _at(event), found, unit)
    default = transformation.get("defaultValue")
    if not any_match and default is not None and events and not transformation.get("dimensions"):
        yield Datum(transformation["metricName"], float(default), _at(events[-1]), {}, unit)


def _value(stated: str, values: Mapping[str, str]) -> float | None:
    return number(values.get(stated, "") if stated.startswith("$") else stated)


def _at(event: LogEvent) -> datetime:
    return datetime.fromtimestamp(event.timestamp_ms / 1000, UTC)


def _check(transformation: Mapping[str, Any]) -> None:
    value, dimensions = transformation["metricValue"], transformation.get("dimensions") or {}
    if not value.startswith("$") and number(value) is None:
        raise invalid(f"metricValue {value!r} is neither a number nor a selector such as $.member or $column")
    if len(dimensions) > 3:
        raise invalid("metricTransformations: at most 3 dimensions")
    if dimensions and transformation.get("defaultValue") is not None:
        raise invalid("defaultValue and dimensions exclude each other")
