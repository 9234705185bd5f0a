"""GetMetricStatistics and GetMetricData: points of metrics, gathered in periods.

Invariants:
- A period that has no observation has no datapoint; nothing is made up.
- GetMetricStatistics counts its periods from the start of the request, GetMetricData from 1970.
- One request reads a bounded number of datapoints; a larger one is refused before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords
from honmaru.services.cloudwatch.faults import contradictory, invalid, malformed, missing
from honmaru.services.cloudwatch.metric_math import Environment, evaluate
from honmaru.services.cloudwatch.points import BASIC, Point, Statistic, statistic
from honmaru.services.cloudwatch.putting import dimensions
from honmaru.services.cloudwatch.searching import MAX_SERIES, parsed
from honmaru.services.cloudwatch.series import Values
from honmaru.services.cloudwatch.store import MetricStore, Series, moment
from honmaru.services.cloudwatch.tokens import read_token, write_token

MAX_STATISTICS = 1440
"""Datapoints that GetMetricStatistics gives, at most."""

MAX_DATA = 100_800
"""Datapoints that a page of GetMetricData holds, at most."""

MAX_QUERIES = 500
_MAX_PERIODS = 700_000
"""Periods that one query of GetMetricData may span."""


def get_statistics(call: Call, store: MetricStore, request: Mapping[str, Any]) -> dict[str, Any]:
    basic, extended = list(request.get("Statistics") or ()), list(request.get("ExtendedStatistics") or ())
    if not basic and not extended:
        raise missing("At least one of the parameters Statistics and ExtendedStatistics must be specified.")
    functions = {name: _known(name) for name in (*basic, *extended)}
    start, end, period = _span(request)
    check_period(period)
    if (end - start) / period > MAX_STATISTICS:
        raise contradictory(
            f"You have requested up to {-(-(end - start) // period):,} datapoints, which exceeds the limit of "
            f"{MAX_STATISTICS:,}. You may reduce the datapoints requested by increasing Period, or decreasing the time "
            "range."
        )
    start -= start % (60 if period >= 60 else 1)
    records = store.records(call.session)
    metric = store.metric(records, request["Namespace"], request["MetricName"], dimensions(request.get("Dimensions")))
    points: dict[tuple[int, str], Point] = {}
    if metric is not None:
        for (second, unit), point in store.series(records, metric, start, end, fine=period < 60).items():
            if request.get("Unit") in (None, unit):
                key = ((second - start) // period * period + start, unit)
                points[key] = points[key].merged(point) if key in points else point
    found = []
    for (second, unit), point in sorted(points.items()):
        datapoint: dict[str, Any] = {"Timestamp": moment(second), "Unit": unit}
        datapoint |= {name: functions[name](point) for name in basic}
        stated = {name: value for name in extended if (value := functions[name](point)) is not None}
        if stated:
            datapoint["ExtendedStatistics"] = stated
        elif extended and not basic:
            continue
        found.append(datapoint)
    return {"Label": request["MetricName"], "Datapoints": found}


def get_data(call: Call, store: MetricStore, request: Mapping[str, Any]) -> dict[str, Any]:
    queries = list(request["MetricDataQueries"])
    start, end, _ = _span({**request, "Period": 1})
    results = query(call.session.account, store.records(call.session), store, queries, start, end)
    shown = []
    for each in queries:
        if each.get("ReturnData") is not False:
            for label, values in results[each["Id"]]:
                shown.append((each["Id"], label, values))
    ascending = request.get("ScanBy") == "TimestampAscending"
    most = min(MAX_DATA, int(request.get("MaxDatapoints") or MAX_DATA))
    page = max(1, most // max(1, len(shown)))
    first = 0
    if request.get("NextToken"):
        token = read_token(request["NextToken"])
        first = token if isinstance(token, int) and token > 0 else 0
    answers, more = [], False
    for identifier, label, values in shown:
        points = sorted(values.points.items(), reverse=not ascending)
        kept = points[first : first + page]
        rest = len(points) > first + page
        more = more or rest
        answers.append(
            {
                "Id": identifier,
                "Label": label,
                "Timestamps": [moment(second) for second, _ in kept],
                "Values": [value for _, value in kept],
                "StatusCode": "PartialData" if rest else "Complete",
            }
        )
    return {
        "MetricDataResults": answers,
        "Messages": [],
        "NextToken": write_token(first + page) if more else None,
    }


def query(
    account: str,
    records: GuardedRecords,
    store: MetricStore,
    queries: list[Mapping[str, Any]],
    start: int,
    end: int,
) -> dict[str, list[tuple[str, Values]]]:
    """The (label, values) of every query by its id. Raises ValidationFault (ValidationError)."""
    _check(account, queries)
    known: dict[str, list[tuple[str, Values]]] = {}
    periods: dict[str, int] = {}
    for each in queries:
        stat = each.get("MetricStat")
        if stat is not None:
            period = periods[each["Id"]] = int(stat["Period"])
            check_period(period)
            if (end - start) // period > _MAX_PERIODS:
                raise malformed(f"The time range holds more than {_MAX_PERIODS} periods of {period} seconds.")
            values = read(records, store, stat, start, end)
            known[each["Id"]] = [(each.get("Label") or _label(stat, queries), values)]
    environment = Environment(
        {name: values[0][1] for name, values in known.items()},
        {each["Id"]: each["Expression"] for each in queries if each.get("Expression")},
        {each["Id"]: each.get("Period") for each in queries},
        start,
        end,
        lambda text, stat, period: _search(records, store, text, stat, period, start, end),
    )
    for each in queries:
        if each.get("Expression"):
            found = evaluate(each["Id"], environment)
            base = each.get("Label") or each["Id"]
            known[each["Id"]] = [(base if len(found) == 1 else f"{base} {name}", values) for name, values in found]
    return known


def _search(
    records: GuardedRecords, store: MetricStore, text: str, stat: str, period: int, start: int, end: int
) -> list[tuple[str, Values]]:
    """The series of every visible metric that a search expression fits, by name."""
    check_period(period)
    if (end - start) // period > _MAX_PERIODS:
        raise malformed(f"The time range holds more than {_MAX_PERIODS} periods of {period} seconds.")
    namespace, fits = parsed(text)
    found: list[tuple[str, Values]] = []
    for record in store.metrics(records, namespace, ""):
        if not fits(record.body):
            continue
        if len(found) == MAX_SERIES:
            raise malformed(f"SEARCH finds more than {MAX_SERIES} metrics: say more exactly which")
        body = record.body
        named = [{"Name": name, "Value": value} for name, value in body["dimensions"]]
        metric = {"Namespace": body["namespace"], "MetricName": body["name"], "Dimensions": named}
        label = " ".join([*(value for _, value in body["dimensions"]), body["name"]])
        found.append((label, read(records, store, {"Metric": metric, "Period": period, "Stat": stat}, start, end)))
    found.sort(key=lambda pair: pair[0])
    return found


def read(records: GuardedRecords, store: MetricStore, stat: Mapping[str, Any], start: int, end: int) -> Values:
    """One statistic of one metric in periods since 1970; observations of all units unless one is asked for."""
    metric, period = stat["Metric"], int(stat["Period"])
    if not metric.get("Namespace") or not metric.get("MetricName"):
        raise malformed("MetricStat.Metric needs Namespace and MetricName")
    function = _known(stat["Stat"])
    found = store.metric(records, metric["Namespace"], metric["MetricName"], dimensions(metric.get("Dimensions")))
    start -= start % period
    series: Series = {} if found is None else store.series(records, found, start, end, fine=period < 60)
    points: dict[int, Point] = {}
    for (second, unit), point in series.items():
        if stat.get("Unit") in (None, unit):
            key = second // period * period
            points[key] = points[key].merged(point) if key in points else point
    values = {second: value for second, point in points.items() if (value := function(point)) is not None}
    return Values(values, period)


def check_period(period: int) -> None:
    """Raises ValidationFault unless the period is one that AWS takes."""
    if period < 1 or (period not in (1, 5, 10, 20, 30) and period % 60):
        raise invalid("The parameter Period must be 1, 5, 10, 20, 30 or a multiple of 60.")


def _check(account: str, queries: list[Mapping[str, Any]]) -> None:
    identifiers = [each["Id"] for each in queries]
    if not 1 <= len(queries) <= MAX_QUERIES:
        raise malformed(f"MetricDataQueries must have 1 to {MAX_QUERIES} members")
    if len(set(identifiers)) != len(identifiers):
        raise malformed("The ids of MetricDataQueries must be unique")
    for each in queries:
        name = each["Id"]
        if not (name[0].islower() and name.isascii() and name.replace("_", "a").isalnum()):
            raise malformed(f"The Id {name!r} must begin with a lower-case letter and hold letters, digits and _")
        if bool(each.get("MetricStat")) == bool(each.get("Expression")):
            raise malformed(f"The query {name} must have exactly one of MetricStat and Expression")
        if each.get("AccountId") not in (None, account):
            raise malformed("AccountId must be this account: metrics of other accounts are not shared")


def _label(stat: Mapping[str, Any], queries: list[Mapping[str, Any]]) -> str:
    """As AWS: the metric's name; with its statistic where that is what tells the queries apart."""
    name = str(stat["Metric"]["MetricName"])
    others = [each["MetricStat"] for each in queries if each.get("MetricStat")]
    same = [other for other in others if other["Metric"] == stat["Metric"]]
    return f"{name} {stat['Stat']}" if len(same) > 1 else name


def _known(name: str) -> Statistic:
    found = statistic(name)
    if found is None:
        raise invalid(
            f"The value {name} for parameter Statistics is invalid: use {', '.join(BASIC)}, a percentile such as "
            "p99.9, or a trimmed statistic such as tm90"
        )
    return found


def _span(request: Mapping[str, Any]) -> tuple[int, int, int]:
    start, end = _second(request["StartTime"]), _second(request["EndTime"])
    if start >= end:
        raise invalid("The parameter StartTime must be less than the parameter EndTime.")
    return start, end, int(request["Period"])


def _second(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp())
