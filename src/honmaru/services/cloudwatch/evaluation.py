"""What the datapoints of an alarm say about its state. Pure.

Of the newest periods in the evaluation range the last N with data are looked at (N: EvaluationPeriods); M of them
(DatapointsToAlarm) over the threshold make ALARM. Where fewer than N have data, what is missing counts as told:

    breaching      as over the threshold                 notBreaching   as within it
    missing        not at all: M is then at most the number there is; without any, INSUFFICIENT_DATA
    ignore         as missing, but a state that only the lack of data brings is not taken: the alarm stays as it is

Invariant: the tables of the user guide hold (tests repeat them).
Source: Amazon CloudWatch user guide, "Configuring how CloudWatch alarms treat missing data".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OK, ALARM, INSUFFICIENT = "OK", "ALARM", "INSUFFICIENT_DATA"
EXTRA_PERIODS = 2
"""Periods that the evaluation range has beyond N."""

COMPARISONS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanOrEqualToThreshold": (operator.ge, "greater than or equal to"),
    "GreaterThanThreshold": (operator.gt, "greater than"),
    "LessThanThreshold": (operator.lt, "less than"),
    "LessThanOrEqualToThreshold": (operator.le, "less than or equal to"),
}
TREATMENTS = ("breaching", "notBreaching", "ignore", "missing")


@dataclass(frozen=True, slots=True)
class Rule:
    """When an alarm is in ALARM."""

    periods: int
    datapoints: int
    threshold: float
    comparison: str
    missing: str = "missing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`state` None: as it is. `breaching` and `considered` are numbers of datapoints."""

    state: str | None
    breaching: int
    considered: int


def judge(rule: Rule, newest: Sequence[float | None]) -> Verdict:
    """The state that datapoints give, newest first, None where a period has no data."""
    compare, _ = COMPARISONS[rule.comparison]
    known = [value for value in newest if value is not None][: rule.periods]
    over = sum(1 for value in known if compare(value, rule.threshold))
    lacking = rule.periods - len(known)
    if lacking == 0 or rule.missing in ("breaching", "notBreaching"):
        counted = over + (lacking if rule.missing == "breaching" else 0)
        return Verdict(ALARM if counted >= rule.datapoints else OK, over, len(known))
    if not known:
        return Verdict(None if rule.missing == "ignore" else INSUFFICIENT, 0, 0)
    if over >= rule.datapoints:
        return Verdict(ALARM, over, len(known))
    if over >= min(rule.datapoints, len(known)):
        return Verdict(None if rule.missing == "ignore" else ALARM, over, len(known))
    return Verdict(OK, over, len(known))
