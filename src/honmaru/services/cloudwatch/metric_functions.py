"""Operators and functions of metric math, over numbers, a series, or several series. Pure.

Source: Amazon CloudWatch user guide, "Using metric math": functions supported.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from honmaru.services.cloudwatch.faults import malformed
from honmaru.services.cloudwatch.series import Values

MAX_FILLED = 100_800
"""Datapoints that FILL makes, at most."""

Many = list[tuple[str, Values]]
Result = float | Values | Many

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def _divided(a: float, b: float) -> float:
    return a / b if b else math.nan


def _raised(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except (OverflowError, ValueError):
        return math.nan


ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divided,
    "^": _raised,
}


def many(result: Result) -> Many:
    """A result as several series. Raises ValidationFault for a number."""
    if isinstance(result, float):
        raise malformed("a number stands where a series is needed")
    return result if isinstance(result, list) else [("", result)]


def combined(left: Result, right: Result, apply: Callable[[float, float], float]) -> Result:
    """An operator on two values, period by period."""
    if isinstance(left, list) and isinstance(right, list):
        raise malformed("an operator takes several series on one side only")
    if isinstance(left, list):
        return [(name, _one(combined(values, right, apply))) for name, values in left]
    if isinstance(right, list):
        return [(name, _one(combined(left, values, apply))) for name, values in right]
    if isinstance(left, float) and isinstance(right, float):
        return apply(left, right)
    if isinstance(left, float):
        return mapped(right, lambda value: apply(left, value))
    if isinstance(right, float):
        return mapped(left, lambda value: apply(value, right))
    points = {
        second: apply(value, right.points[second]) for second, value in left.points.items() if second in right.points
    }
    return Values(points, max(left.period, right.period))


def mapped(result: Result, apply: Callable[[float], float]) -> Result:
    """A function of every number of a value."""
    if isinstance(result, float):
        return apply(result)
    return each_series(
        result, lambda values: Values({at: apply(value) for at, value in values.points.items()}, values.period)
    )


def each_series(result: Result, apply: Callable[[Values], Values]) -> Result:
    """A function of every series of a value. Raises ValidationFault for a number."""
    if isinstance(result, float):
        raise malformed("a number stands where a series is needed")
    if isinstance(result, list):
        return [(name, apply(values)) for name, values in result]
    return apply(result)


def _one(result: Result) -> Values:
    if not isinstance(result, Values):
        raise malformed("a series is needed here")
    return result


def filled(values: Values, start: int, end: int, with_value: Result | str) -> Values:
    """A series with a value in every period from `start` to before `end`, where `with_value` gives one."""
    period = values.period
    start = start // period * period
    if (end - start) // period > MAX_FILLED:
        raise malformed(f"FILL makes at most {MAX_FILLED} datapoints")
    known = values.ordered()
    points: dict[int, float] = {}
    place = 0
    for second in range(start, end, period):
        if second in values.points:
            points[second] = values.points[second]
        elif isinstance(with_value, float):
            points[second] = with_value
        elif isinstance(with_value, Values):
            if second in with_value.points:
                points[second] = with_value.points[second]
        else:
            while place < len(known) and known[place][0] < second:
                place += 1
            before = known[place - 1] if place else None
            after = known[place] if place < len(known) else None
            if with_value == "REPEAT" and before is not None:
                points[second] = before[1]
            elif with_value == "LINEAR" and before is not None and after is not None:
                share = (second - before[0]) / (after[0] - before[0])
                points[second] = before[1] + (after[1] - before[1]) * share
    return Values(points, period)


def _if(arguments: Sequence[Result]) -> Result:
    condition, yes = arguments[0], arguments[1]
    no: Result | None = arguments[2] if len(arguments) == 3 else None
    if isinstance(condition, float):
        if no is None and not condition:
            return Values({}, yes.period if isinstance(yes, Values) else 60)
        return yes if condition or no is None else no
    chosen = _one(condition)
    points: dict[int, float] = {}
    for second, truth in chosen.points.items():
        side = yes if truth else no
        if isinstance(side, float):
            points[second] = side
        elif isinstance(side, Values) and second in side.points:
            points[second] = side.points[second]
    return Values(points, chosen.period)


def _bounded(apply: Callable[[Sequence[float]], float]) -> Callable[[Sequence[float]], float]:
    """No number where the numbers are too large: `math.fsum` and powers raise what sums of floats do not."""

    def bounded(values: Sequence[float]) -> float:
        try:
            return apply(values)
        except (ValueError, OverflowError):
            return math.nan

    return bounded


def _gathered(apply: Callable[[Sequence[float]], float]) -> Callable[[Sequence[Result]], Result]:
    """Of one series a number; of several, the series of what each period gives."""
    apply = _bounded(apply)

    def function(arguments: Sequence[Result]) -> Result:
        if len(arguments) > 1:
            if all(isinstance(argument, float) for argument in arguments):
                return apply([argument for argument in arguments if isinstance(argument, float)])
            source: Result = [pair for argument in arguments for pair in many(argument)]
        else:
            source = arguments[0]
        if isinstance(source, float):
            return source
        if isinstance(source, Values):
            return apply(list(source.points.values())) if source.points else math.nan
        periods: dict[int, list[float]] = {}
        for _, values in source:
            for second, value in values.points.items():
                periods.setdefault(second, []).append(value)
        period = max((values.period for _, values in source), default=60)
        return Values({second: apply(found) for second, found in periods.items()}, period)

    return function


def _steps(apply: Callable[[tuple[int, float], tuple[int, float]], float]) -> Callable[[Sequence[Result]], Result]:
    def differences(values: Values) -> Values:
        known = values.ordered()
        pairs = pairwise(known)
        return Values({after[0]: apply(before, after) for before, after in pairs}, values.period)

    return lambda arguments: each_series(arguments[0], differences)


def _running(arguments: Sequence[Result]) -> Result:
    def running(values: Values) -> Values:
        total, points = 0.0, {}
        for second, value in values.ordered():
            total += value
            points[second] = total
        return Values(points, values.period)

    return each_series(arguments[0], running)


def _edge(place: int) -> Callable[[Sequence[Result]], Result]:
    def edge(arguments: Sequence[Result]) -> Result:
        source = arguments[0]
        if isinstance(source, list):
            if not source:
                raise malformed("there is no series")
            return source[place][1]
        known = _one(source).ordered()
        return known[place][1] if known else math.nan

    return edge


def _period(arguments: Sequence[Result]) -> Result:
    return float(_one(arguments[0]).period)


def _times(of: Callable[[datetime], float]) -> Callable[[Sequence[Result]], Result]:
    def times(values: Values) -> Values:
        return Values({at: of(datetime.fromtimestamp(at, UTC)) for at in values.points}, values.period)

    return lambda arguments: each_series(arguments[0], times)


def _safe(apply: Callable[[float], float]) -> Callable[[Sequence[Result]], Result]:
    def one(value: float) -> float:
        try:
            return float(apply(value))
        except (ValueError, OverflowError):
            return math.nan

    return lambda arguments: mapped(arguments[0], one)


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


FUNCTIONS: Mapping[str, tuple[int, int, Callable[[Sequence[Result]], Result]]] = {
    # name: (least arguments, most arguments, what it gives)
    "ABS": (1, 1, _safe(abs)),
    "CEIL": (1, 1, _safe(math.ceil)),
    "FLOOR": (1, 1, _safe(math.floor)),
    "LOG": (1, 1, _safe(math.log)),
    "LOG10": (1, 1, _safe(math.log10)),
    "SUM": (1, 500, _gathered(math.fsum)),
    "AVG": (1, 500, _gathered(lambda values: math.fsum(values) / len(values))),
    "MIN": (1, 500, _gathered(min)),
    "MAX": (1, 500, _gathered(max)),
    "STDDEV": (1, 500, _gathered(_deviation)),
    "DATAPOINT_COUNT": (1, 1, _gathered(lambda values: float(len(values)))),
    "METRIC_COUNT": (1, 1, lambda arguments: float(len(many(arguments[0])))),
    "IF": (2, 3, _if),
    "RATE": (1, 1, _steps(lambda before, after: (after[1] - before[1]) / (after[0] - before[0]))),
    "DIFF": (1, 1, _steps(lambda before, after: after[1] - before[1])),
    "DIFF_TIME": (1, 1, _steps(lambda before, after: float(after[0] - before[0]))),
    "RUNNING_SUM": (1, 1, _running),
    "FIRST": (1, 1, _edge(0)),
    "LAST": (1, 1, _edge(-1)),
    "PERIOD": (1, 1, _period),
    "REMOVE_EMPTY": (1, 1, lambda arguments: [pair for pair in many(arguments[0]) if pair[1].points]),
    "MINUTE": (1, 1, _times(lambda at: float(at.minute))),
    "HOUR": (1, 1, _times(lambda at: float(at.hour))),
    "DAY": (1, 1, _times(lambda at: float(at.isoweekday()))),
    "DATE": (1, 1, _times(lambda at: float(at.day))),
    "MONTH": (1, 1, _times(lambda at: float(at.month))),
    "YEAR": (1, 1, _times(lambda at: float(at.year))),
    "EPOCH": (1, 1, _times(lambda at: at.timestamp())),
}
