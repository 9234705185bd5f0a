"""Metric math: expressions over the other queries of a request.

    m1 / m2 * 100     IF(m1 > 100, m1, 0)     FILL(m1, 0)     SUM(METRICS("req"))     RATE(m1)     RUNNING_SUM(m1)

A value is a number, a series, or several series. Operators work period by period, on the periods that both sides have;
a comparison gives 1 or 0.

Invariants:
- A function or form that is not carried (SEARCH, ANOMALY_DETECTION_BAND, ...) is refused by name.
- Expressions that need each other are refused, not followed for ever; depth and length are bounded.
- A result that is not a finite number is no datapoint.

Source: Amazon CloudWatch user guide, "Using metric math".
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

from honmaru.core.errors import ValidationFault
from honmaru.services.cloudwatch.faults import malformed
from honmaru.services.cloudwatch.series import Values

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d{1,3})?|\.\d+)|(?P<name>[A-Za-z_]\w*)|(?P<text>"[^"]*"|'[^']*')
    |(?P<mark>&&|\|\||==|!=|<=|>=|[-+*/^()<>,!\[\]]))""",
    re.VERBOSE,
)
_MAX_DEPTH = 50
_MAX_FILLED = 100_800

Many = list[tuple[str, Values]]
Result = float | Values | Many


@dataclass
class Environment:
    """What an expression may name: read series, other expressions, and the periods that queries state."""

    series: Mapping[str, Values]
    expressions: Mapping[str, str]
    periods: Mapping[str, int | None]
    start: int
    end: int
    done: dict[str, Result] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)

    def value(self, name: str) -> Result:
        """The value of a query's id. Raises ValidationFault."""
        if name in self.series:
            return self.series[name]
        if name in self.done:
            return self.done[name]
        text = self.expressions.get(name)
        if text is None:
            raise malformed(f"{name!r} is the id of no query of this request")
        if name in self.open:
            raise malformed(f"The expression {name!r} needs its own result")
        if len(self.open) > _MAX_DEPTH:
            raise malformed("Expressions are nested too deeply")
        self.open.add(name)
        try:
            self.done[name] = _Parser(text, self).whole()
        except ValidationFault as fault:
            if fault.message.startswith("Error in expression"):
                raise
            raise malformed(f"Error in expression '{name}': {fault.message}") from None
        finally:
            self.open.discard(name)
        return self.done[name]


def evaluate(name: str, environment: Environment) -> Many:
    """The series of an expression, one or several. A bare number is refused, as AWS does. Raises ValidationFault."""
    result = environment.value(name)
    if isinstance(result, float):
        raise malformed(f"Error in expression '{name}': the result must be a time series, not a number")
    found = result if isinstance(result, list) else [(name, result)]
    period = environment.periods.get(name)
    return [(label, _finite(_again(values, period) if period else values)) for label, values in found]


def _again(values: Values, period: int) -> Values:
    """Values in longer periods: the last of each."""
    if period <= values.period:
        return values
    return Values({second // period * period: value for second, value in values.ordered()}, period)


def _finite(values: Values) -> Values:
    return Values({second: value for second, value in values.points.items() if math.isfinite(value)}, values.period)


class _Parser:
    """Recursive descent that evaluates as it reads."""

    def __init__(self, text: str, environment: Environment) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise malformed(f"unexpected {text[at : at + 20]!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0
        self._depth = 0
        self._environment = environment

    def whole(self) -> Result:
        result = self._either()
        if self._at < len(self._tokens):
            raise malformed(f"unexpected {self._tokens[self._at][1]!r}")
        return result

    def _either(self) -> Result:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise malformed("it is nested too deeply")
        left = self._both()
        while self._take("||") or self._word("OR"):
            left = combined(left, self._both(), lambda a, b: float(bool(a) or bool(b)))
        self._depth -= 1
        return left

    def _both(self) -> Result:
        left = self._compared()
        while self._take("&&") or self._word("AND"):
            left = combined(left, self._compared(), lambda a, b: float(bool(a) and bool(b)))
        return left

    def _compared(self) -> Result:
        left = self._sum()
        while sign := self._take("==", "!=", "<=", ">=", "<", ">"):
            compare = _COMPARE[sign]
            left = combined(left, self._sum(), lambda a, b, compare=compare: float(compare(a, b)))  # type: ignore[misc]
        return left

    def _sum(self) -> Result:
        left = self._product()
        while sign := self._take("+", "-"):
            left = combined(left, self._product(), _ARITHMETIC[sign])
        return left

    def _product(self) -> Result:
        left = self._power()
        while sign := self._take("*", "/"):
            left = combined(left, self._power(), _ARITHMETIC[sign])
        return left

    def _power(self) -> Result:
        left = self._unary()
        if self._take("^"):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise malformed("it is nested too deeply")
            left = combined(left, self._power(), _ARITHMETIC["^"])
            self._depth -= 1
        return left

    def _unary(self) -> Result:
        sign = self._take("-", "!", "+")
        if sign:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise malformed("it is nested too deeply")
            inner = self._unary()
            self._depth -= 1
            if sign == "+":
                return inner
            return mapped(inner, operator.neg if sign == "-" else lambda value: float(not value))
        return self._primary()

    def _primary(self) -> Result:
        if self._take("("):
            inner = self._either()
            self._expect(")")
            return inner
        if self._take("["):
            members = self._arguments("]")
            return [(name, values) for member in members for name, values in many(member)]
        kind, text = self._next()
        if kind == "number":
            return float(text)
        if kind == "text":
            raise malformed(f"the text {text} may stand only inside METRICS()")
        if kind != "name":
            raise malformed(f"unexpected {text!r}")
        if self._take("("):
            return self._call(text.upper())
        return self._environment.value(text)

    def _call(self, name: str) -> Result:
        if name == "METRICS":
            return self._metrics()
        if name == "FILL":
            return self._fill()
        if name in FUNCTIONS:
            least, most, apply = FUNCTIONS[name]
            arguments = self._arguments(")")
            if not least <= len(arguments) <= most:
                raise malformed(f"{name} takes {least} to {most} arguments, not {len(arguments)}")
            return apply(arguments)
        raise malformed(f"the function {name} is not carried by this enclave; use {', '.join(sorted(FUNCTIONS))}")

    def _metrics(self) -> Many:
        part = ""
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "text":
            part = self._next()[1][1:-1]
        self._expect(")")
        return [(name, values) for name, values in self._environment.series.items() if part in name]

    def _fill(self) -> Result:
        source = self._either()
        self._expect(",")
        word = self._tokens[self._at][1].upper() if self._at < len(self._tokens) else ""
        if word in ("REPEAT", "LINEAR"):
            self._at += 1
            self._expect(")")
            return _each(source, lambda values: _filled(values, self._environment, word))
        with_value = self._either()
        self._expect(")")
        if isinstance(with_value, list):
            raise malformed("FILL takes a number, a series, REPEAT or LINEAR")
        return _each(source, lambda values: _filled(values, self._environment, with_value))

    def _arguments(self, end: str) -> list[Result]:
        if self._take(end):
            return []
        arguments = [self._either()]
        while self._take(","):
            arguments.append(self._either())
        self._expect(end)
        return arguments

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise malformed("it ends too soon")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, *marks: str) -> str:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "mark" and text in marks:
                self._at += 1
                return text
        return ""

    def _word(self, word: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("name", word):
            self._at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise malformed(f"expected {mark!r}")


_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
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


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
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
    if isinstance(result, float):
        return apply(result)
    return _each(
        result, lambda values: Values({at: apply(value) for at, value in values.points.items()}, values.period)
    )


def _each(result: Result, apply: Callable[[Values], Values]) -> Result:
    if isinstance(result, float):
        raise malformed("a number stands where a series is needed")
    if isinstance(result, list):
        return [(name, apply(values)) for name, values in result]
    return apply(result)


def _one(result: Result) -> Values:
    if not isinstance(result, Values):
        raise malformed("a series is needed here")
    return result


def _filled(values: Values, environment: Environment, with_value: Result | str) -> Values:
    period = values.period
    start = environment.start // period * period
    if (environment.end - start) // period > _MAX_FILLED:
        raise malformed(f"FILL makes at most {_MAX_FILLED} datapoints")
    known = values.ordered()
    points: dict[int, float] = {}
    place = 0
    for second in range(start, environment.end, period):
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


def _gathered(apply: Callable[[Sequence[float]], float]) -> Callable[[Sequence[Result]], Result]:
    """Of one series a number; of several, the series of what each period gives."""

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

    return lambda arguments: _each(arguments[0], differences)


def _running(arguments: Sequence[Result]) -> Result:
    def running(values: Values) -> Values:
        total, points = 0.0, {}
        for second, value in values.ordered():
            total += value
            points[second] = total
        return Values(points, values.period)

    return _each(arguments[0], running)


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

    return lambda arguments: _each(arguments[0], times)


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
