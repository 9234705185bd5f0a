"""The states of alarms, evaluated again and again: a background step.

Invariants:
- An alarm is evaluated as the platform's session at the alarm's own label: it sees no metric above it.
- The step reads across labels only which alarms there are (a trusted handle on the kind `alarm`).
- A state that changes is written with its history in one transaction; a state that stays is not written.
- One alarm that fails holds no other up.

An alarm is looked at each time one of its periods ends (for periods under a minute every ten seconds).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from honmaru.core.errors import Conflict
from honmaru.core.sessions import platform_session
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Guard, GuardedRecords, Record
from honmaru.services.cloudwatch.alarms import ALARM, HISTORY, HISTORY_KEPT, is_composite, transition
from honmaru.services.cloudwatch.composite import judged
from honmaru.services.cloudwatch.evaluation import COMPARISONS, EXTRA_PERIODS, Rule, Verdict, judge
from honmaru.services.cloudwatch.measuring import alarm_period, measured, rule_of
from honmaru.services.cloudwatch.store import SERVICE, MetricStore

EVERY_S = 5.0
_LOG = logging.getLogger(__name__)
_LATEST_S = 60
"""An alarm is evaluated at least this often, because observations may arrive late."""


class AlarmWatch:
    """The step."""

    def __init__(
        self, guard: Guard, store: MetricStore, clock: Clock, ids: Ids, *, partition: str, region: str
    ) -> None:
        self._guard = guard
        self._store = store
        self._clock = clock
        self._ids = ids
        self._place = (partition, region)
        self._alarms = guard.trusted(SERVICE, frozenset({ALARM, HISTORY}))
        self._next: dict[tuple[str, str, str], tuple[int, float]] = {}
        self._swept = 0.0

    def evaluate(self) -> int:
        """Evaluate the alarms that are due; returns how many changed their state."""
        now = self._clock.now()
        changed = 0
        alarms = self._alarms.list(ALARM)
        known = {(each.account, each.label.canonical, each.name) for each in alarms}
        self._next = {key: due for key, due in self._next.items() if key in known}
        for alarm in alarms:
            key = (alarm.account, alarm.label.canonical, alarm.name)
            version, due = self._next.get(key, (0, 0.0))
            if version == alarm.version and now.timestamp() < due:
                continue
            try:
                changed += self._look(alarm, now)
            except Conflict:
                continue  # it was changed meanwhile; the next time will do
            except Exception as fault:  # whatever one alarm's owner made of it, the others' are looked at
                _LOG.error("an alarm could not be evaluated: %s", type(fault).__name__)
            period = min(_LATEST_S, max(10, _pace(alarm.body["settings"])))
            due = (now.timestamp() // period + 1) * period
            self._next[key] = (alarm.version, due)
        self._sweep(now)
        return changed

    def _look(self, alarm: Record, now: datetime) -> int:
        session = platform_session(alarm.account, *self._place, "monitoring", alarm.label)
        records = self._guard.records(session, SERVICE)
        settings = alarm.body["settings"]
        if is_composite(alarm):
            state, reason, data = judged(records, settings)
            return self._move(records, alarm, state, reason, data, now)
        period, rule = alarm_period(settings), rule_of(settings)
        end = int(now.timestamp()) // period * period
        count = rule.periods + EXTRA_PERIODS
        start = end - count * period
        values = measured(alarm.account, records, self._store, settings, start, end)
        newest = [values.points.get(end - (place + 1) * period) for place in range(count)]
        verdict = judge(rule, newest)
        if verdict.state is None or verdict.state == alarm.state:
            return 0
        reason = _reason(rule, verdict, newest, end, period)
        data = _data(settings, rule, newest, now, start, period)
        return self._move(records, alarm, verdict.state, reason, data, now)

    def _move(self, records: GuardedRecords, alarm: Record, state: str, reason: str, data: str, now: datetime) -> int:
        stored = records.get(ALARM, alarm.name)
        if state == alarm.state or stored is None or stored.version != alarm.version:
            return 0
        records.apply(transition(stored, state, reason, data, now, self._ids.uuid()))
        return 1

    def _sweep(self, now: datetime) -> None:
        """Forget old history, once an hour."""
        if now.timestamp() - self._swept < 3600:
            return
        self._swept = now.timestamp()
        for old in self._alarms.list(HISTORY):
            if now - old.created > HISTORY_KEPT:
                session = platform_session(old.account, *self._place, "monitoring", old.label)
                self._guard.records(session, SERVICE).delete(old)


def _pace(settings: Mapping[str, Any]) -> int:
    """Seconds between two looks at an alarm; a rule is looked at as often as any."""
    return 0 if "AlarmRule" in settings else alarm_period(settings)


def _shown(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%d/%m/%y %H:%M:%S")


def _reason(rule: Rule, verdict: Verdict, newest: Sequence[float | None], end: int, period: int) -> str:
    if not verdict.considered:
        number = f"{rule.periods} datapoint{'s were' if rule.periods > 1 else ' was'}"
        if verdict.state == "INSUFFICIENT_DATA":
            return f"Insufficient Data: {number} unknown."
        treated = "Breaching" if rule.missing == "breaching" else "NonBreaching"
        return f"Threshold Crossed: no datapoints were received and {number} treated as [{treated}]."
    compare, words = COMPARISONS[rule.comparison]
    alarm = verdict.state == "ALARM"
    pairs = [(value, end - (place + 1) * period) for place, value in enumerate(newest) if value is not None][
        : rule.periods
    ]
    told = [(value, at) for value, at in pairs if compare(value, rule.threshold) is alarm]
    listed = ", ".join(f"{value} ({_shown(at)})" for value, at in told[:5])
    direction = "OK -> ALARM" if alarm else "ALARM -> OK"
    least = rule.datapoints if alarm else rule.periods - rule.datapoints + 1
    return (
        f"Threshold Crossed: {len(told)} out of the last {verdict.considered} datapoint"
        f"{'s' if verdict.considered > 1 else ''} [{listed}] "
        f"{'were' if len(told) > 1 else 'was'} {'' if alarm else 'not '}{words} the threshold ({rule.threshold}) "
        f"(minimum {least} datapoint{'s' if least > 1 else ''} for {direction} transition)."
    )


def _data(
    settings: Mapping[str, Any], rule: Rule, newest: Sequence[float | None], now: datetime, start: int, period: int
) -> str:
    form = "%Y-%m-%dT%H:%M:%S.000+0000"
    return orjson.dumps(
        {
            "version": "1.0",
            "queryDate": now.strftime(form),
            "startDate": datetime.fromtimestamp(start, UTC).strftime(form),
            "statistic": settings.get("Statistic") or settings.get("ExtendedStatistic"),
            "period": period,
            "recentDatapoints": [value for value in reversed(newest) if value is not None],
            "threshold": rule.threshold,
        }
    ).decode()
