"""What an alarm watches: its rule, its period, and its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.security.guard import GuardedRecords
from honmaru.services.cloudwatch.data import query, read
from honmaru.services.cloudwatch.evaluation import Rule
from honmaru.services.cloudwatch.series import Values
from honmaru.services.cloudwatch.store import MetricStore


def rule_of(settings: Mapping[str, Any]) -> Rule:
    """When an alarm with these settings is in ALARM."""
    periods = int(settings["EvaluationPeriods"])
    return Rule(
        periods,
        int(settings.get("DatapointsToAlarm") or periods),
        float(settings["Threshold"]),
        settings["ComparisonOperator"],
        settings.get("TreatMissingData") or "missing",
    )


def period_of(queries: Sequence[Mapping[str, Any]]) -> int:
    """The period of an alarm on several queries: that of the one which returns data, else the longest."""
    stated = [int(each["MetricStat"]["Period"]) for each in queries if each.get("MetricStat")]
    shown = next((each for each in queries if each.get("ReturnData") is not False), None)
    own = (shown or {}).get("Period")
    return int(own) if own else max(stated, default=60)


def read_queries(
    account: str,
    records: GuardedRecords,
    store: MetricStore | None,
    queries: Sequence[Mapping[str, Any]],
    start: int,
    end: int,
) -> Values:
    """The one series that an alarm's queries return. Without a store the queries are only checked."""
    found = query(account, records, store or _Empty(), list(queries), start, end)
    shown = next(each for each in queries if each.get("ReturnData") is not False)
    series = found[shown["Id"]]
    return series[0][1] if series else Values({}, 60)


def measured(
    account: str, records: GuardedRecords, store: MetricStore, settings: Mapping[str, Any], start: int, end: int
) -> Values:
    """The series that an alarm watches."""
    if settings.get("Metrics"):
        return read_queries(account, records, store, settings["Metrics"], start, end)
    stat = {
        "Metric": {member: settings.get(member) for member in ("Namespace", "MetricName", "Dimensions")},
        "Period": settings["Period"],
        "Stat": settings.get("Statistic") or settings["ExtendedStatistic"],
        "Unit": settings.get("Unit"),
    }
    return read(records, store, stat, start, end)


class _Empty(MetricStore):
    """A store without metrics: what checks queries."""

    def __init__(self) -> None:
        pass

    def metric(self, *_: Any) -> None:
        return None


def alarm_period(settings: Mapping[str, Any]) -> int:
    """The period of an alarm, in seconds."""
    return period_of(settings["Metrics"]) if settings.get("Metrics") else int(settings["Period"])
