"""Metric math: expressions over the other queries of a request.

    m1 / m2 * 100     IF(m1 > 100, m1, 0)     FILL(m1, 0)     SUM(METRICS("req"))     RATE(m1)     RUNNING_SUM(m1)

A value is a number, a series, or several series. Operators work period by period, on the periods that both sides have;
a comparison gives 1 or 0.

Invariants:
- A function or form that is not carried (ANOMALY_DETECTION_BAND, INSIGHT_RULE_METRIC, ...) is refused by name.
- Expressions that need each other are refused, not followed for ever; depth and length are bounded.
- A result that is not a finite number is no datapoint.

Source: Amazon CloudWatch user guide, "Using metric math".
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from honmaru.core.errors import ValidationFault
from honmaru.services.cloudwatch.faults import malformed
from honmaru.services.cloudwatch.metric_functions import (
    ARITHMETIC,
    COMPARE,
    FUNCTIONS,
    Many,
    Result,
    combined,
    each_series,
    filled,
    many,
    mapped,
)
from honmaru.services.cloudwatch.series import Values

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d{1,3})?|\.\d+)|(?P<name>[A-Za-z_]\w*)|(?P<text>"[^"]*"|'[^']*')
    |(?P<mark>&&|\|\||==|!=|<=|>=|[-+*/^()<>,!\[\]]))""",
    re.VERBOSE,
)
_MAX_DEPTH = 50


@dataclass
class Environment:
    """What an expression may name: read series, other expressions, and the periods that queries state."""

    series: Mapping[str, Values]
    expressions: Mapping[str, str]
    periods: Mapping[str, int | None]
    start: int
    end: int
    search: Callable[[str, str, int], Many] | None = None
    """(expression, statistic, period) → the series of every metric that fits."""
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
            compare = COMPARE[sign]
            left = combined(left, self._sum(), lambda a, b, compare=compare: float(compare(a, b)))  # type: ignore[misc]
        return left

    def _sum(self) -> Result:
        left = self._product()
        while sign := self._take("+", "-"):
            left = combined(left, self._product(), ARITHMETIC[sign])
        return left

    def _product(self) -> Result:
        left = self._power()
        while sign := self._take("*", "/"):
            left = combined(left, self._power(), ARITHMETIC[sign])
        return left

    def _power(self) -> Result:
        left = self._unary()
        if self._take("^"):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise malformed("it is nested too deeply")
            left = combined(left, self._power(), ARITHMETIC["^"])
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
        if name == "SEARCH" and self._environment.search is not None:
            return self._search(self._environment.search)
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

    def _search(self, search: Callable[[str, str, int], Many]) -> Many:
        texts = []
        for _ in range(2):
            kind, text = self._next()
            if kind != "text":
                raise malformed("SEARCH takes 'an expression', 'a statistic' and a period")
            texts.append(text[1:-1])
            self._take(",")
        period = 300
        if not self._take(")"):
            kind, text = self._next()
            if kind != "number" or not text.isdecimal():
                raise malformed("SEARCH: the period is a number of seconds")
            period = int(text)
            self._expect(")")
        return search(texts[0], texts[1], period)

    def _fill(self) -> Result:
        source = self._either()
        start, end = self._environment.start, self._environment.end
        self._expect(",")
        word = self._tokens[self._at][1].upper() if self._at < len(self._tokens) else ""
        if word in ("REPEAT", "LINEAR"):
            self._at += 1
            self._expect(")")
            return each_series(source, lambda values: filled(values, start, end, word))
        with_value = self._either()
        self._expect(")")
        if isinstance(with_value, list):
            raise malformed("FILL takes a number, a series, REPEAT or LINEAR")
        return each_series(source, lambda values: filled(values, start, end, with_value))

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
