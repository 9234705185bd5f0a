"""Expressions of a query: comparisons, arithmetic, functions. Parsed straight from the text into closures.

    or   and   not   = != < <= > >=   like   =~   in [a, b]   + - * / % ^   -x   f(a, b)   (…)

Two values are compared as numbers when both are numbers or texts that state one, else as texts. A comparison with a
field that a row does not have is false; `!=`, `not like` and `not in` are true then.
Regular expressions run in linear time (`linear_regex`); nothing in an expression can run for ever.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.services.logs.insights.rows import Moment, Row, Value, number, shown
from honmaru.services.logs.linear_regex import Expression as Regex
from honmaru.services.logs.linear_regex import Malformed, linear

Expression = Callable[[Row], Value]
_MAX_DEPTH = 50
_SPACE = re.compile(r"(?:\s|#[^\n]*)*")
_WORD = re.compile(r"[@A-Za-z_][\w.@]*|`[^`]+`")
_NUMBER = re.compile(r"\d+\.?\d*(?:[eE][+-]?\d{1,3})?|\.\d+")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'')
_REGEX = re.compile(r"/((?:[^/\\]|\\.)+)/")
_DURATION = re.compile(r"(\d+)\s*(ms|milliseconds?|s|seconds?|m|minutes?|h|hours?|d|days?|w|weeks?)\b")
_SCALE = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class Reader:
    """A place in the text of a query."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._depth = 0

    # Tokens

    def skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def ended(self) -> bool:
        self.skip()
        return self.at >= len(self.text)

    def take(self, *marks: str) -> str:
        """The first of `marks` that stands here, or ""."""
        self.skip()
        for mark in marks:
            if self.text.startswith(mark, self.at):
                self.at += len(mark)
                return mark
        return ""

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise malformed(f"expected {mark!r} at {self.rest()!r}")

    def word(self, *wanted: str) -> str:
        """A keyword (any case) if one of `wanted` stands here, or ""."""
        self.skip()
        found = _WORD.match(self.text, self.at)
        if found and found[0].lower() in wanted:
            self.at = found.end()
            return found[0].lower()
        return ""

    def name(self) -> str:
        """A field's name. Raises ValidationFault."""
        self.skip()
        found = _WORD.match(self.text, self.at)
        if found is None:
            raise malformed(f"expected a field at {self.rest()!r}")
        self.at = found.end()
        return found[0].strip("`")

    def string(self) -> str | None:
        self.skip()
        found = _STRING.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return re.sub(r"\\(.)", r"\1", found[1] if found[1] is not None else found[2])

    def regex(self) -> Regex | None:
        self.skip()
        found = _REGEX.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        try:
            return linear(found[1])
        except Malformed as fault:
            raise malformed(f"the regular expression /{found[1]}/ is not supported: {fault}") from None

    def integer(self) -> int:
        self.skip()
        found = re.compile(r"\d{1,9}").match(self.text, self.at)
        if found is None:
            raise malformed(f"expected a number at {self.rest()!r}")
        self.at = found.end()
        return int(found[0])

    def duration_ms(self) -> int:
        self.skip()
        found = _DURATION.match(self.text, self.at)
        if found is None or int(found[1]) == 0:
            raise malformed(f"expected a period such as 5m at {self.rest()!r}")
        self.at = found.end()
        unit = "ms" if found[2].startswith(("ms", "mil")) else found[2][0]
        return int(found[1]) * _SCALE[unit]

    def rest(self) -> str:
        return self.text[self.at : self.at + 60]

    # Expressions

    def expression(self) -> Expression:
        """Raises ValidationFault (MalformedQueryException)."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise malformed("the expression is nested too deeply")
        try:
            tests = [self._both()]
            while self.word("or"):
                tests.append(self._both())
        finally:
            self._depth -= 1
        return tests[0] if len(tests) == 1 else lambda row: any(truth(test(row)) for test in tests)

    def _both(self) -> Expression:
        tests = [self._negated()]
        while self.word("and"):
            tests.append(self._negated())
        return tests[0] if len(tests) == 1 else lambda row: all(truth(test(row)) for test in tests)

    def _negated(self) -> Expression:
        count = 0
        while self.word("not"):
            count += 1
        inner = self._comparison()
        return inner if count % 2 == 0 else lambda row: not truth(inner(row))

    def _comparison(self) -> Expression:
        left = self._sum()
        negative = False
        before = self.at
        if self.word("not"):
            negative = True
        word = self.word("like", "in")
        if negative and not word:
            self.at = before
            return left
        if word == "like" or (not word and self.take("=~")):
            return self._like(left, negative)
        if word == "in":
            return self._among(left, negative)
        sign = self.take("!=", "<=", ">=", "=", "<", ">")
        return _compared(left, self._sum(), sign) if sign else left

    def _like(self, left: Expression, negative: bool) -> Expression:
        expression = self.regex()
        wanted = None if expression is not None else self.string()
        if expression is None and wanted is None:
            raise malformed(f"expected a text or /regular expression/ at {self.rest()!r}")

        def test(row: Row) -> Value:
            value = left(row)
            if value is None:
                return negative
            text = shown(value)
            found = expression.search(text) if expression is not None else (wanted or "") in text
            return found is not negative

        return test

    def _among(self, left: Expression, negative: bool) -> Expression:
        self.expect("[")
        choices = [self.expression()]
        while self.take(","):
            choices.append(self.expression())
        self.expect("]")
        tests = [_compared(left, choice, "=") for choice in choices]
        return lambda row: any(test(row) for test in tests) is not negative

    def _sum(self) -> Expression:
        left = self._product()
        while sign := self.take("+", "-"):
            left = _arithmetic(left, self._product(), sign)
        return left

    def _product(self) -> Expression:
        left = self._unary()
        while sign := self.take("*", "/", "%", "^"):
            left = _arithmetic(left, self._unary(), sign)
        return left

    def _unary(self) -> Expression:
        if self.take("-"):
            inner = self._primary()
            return lambda row: None if (given := number(inner(row))) is None else -given
        return self._primary()

    def _primary(self) -> Expression:
        if self.take("("):
            inner = self.expression()
            self.expect(")")
            return inner
        text = self.string()
        if text is not None:
            return lambda _row: text
        found = _NUMBER.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
            constant = float(found[0])
            return lambda _row: constant
        start = self.at
        name = self.name()
        if self.text[start] != "`" and self.take("("):
            return self._call(name.lower())
        return lambda row: row.get(name)

    def _call(self, name: str) -> Expression:
        if name in ("bin", "datefloor", "dateceil"):
            source: Expression = lambda row: row.get("@timestamp")  # noqa: E731
            if name != "bin":
                source = self.expression()
                self.expect(",")
            period = self.duration_ms()
            self.expect(")")
            up = period - 1 if name == "dateceil" else 0

            def binned(row: Row) -> Value:
                at = source(row)
                return Moment((int(at) + up) // period * period) if isinstance(at, float | int) else None

            return binned
        function = FUNCTIONS.get(name)
        if function is None:
            raise malformed(f"function {name} is not supported")
        arguments: list[Expression] = []
        if not self.take(")"):
            arguments.append(self.expression())
            while self.take(","):
                arguments.append(self.expression())
            self.expect(")")
        least, most, apply = function
        if not least <= len(arguments) <= most:
            raise malformed(f"function {name} takes {least} to {most} arguments, not {len(arguments)}")
        return lambda row: apply([argument(row) for argument in arguments])


def truth(value: Value) -> bool:
    """Whether a filter keeps a row for which its expression has this value."""
    return value is True or (value is not False and value is not None and value != 0 and value != "")


def ordering(value: Value) -> tuple[int, float, str]:
    """A sort key: numbers by size, then texts; what is missing comes first."""
    if value is None:
        return 0, 0.0, ""
    stated = number(value)
    return (1, stated, "") if stated is not None else (2, 0.0, shown(value))


def malformed(message: str) -> ValidationFault:
    return ValidationFault(message, code="MalformedQueryException")


def _compared(left: Expression, right: Expression, sign: str) -> Expression:
    compare = _COMPARE[sign]

    def test(row: Row) -> Value:
        a, b = left(row), right(row)
        if a is None or b is None:
            return sign == "!=" and a is not b
        x, y = number(a), number(b)
        if x is not None and y is not None:
            return compare(x, y)
        return compare(shown(a), shown(b))

    return test


def _arithmetic(left: Expression, right: Expression, sign: str) -> Expression:
    def result(row: Row) -> Value:
        a, b = number(left(row)), number(right(row))
        if a is None or b is None:
            return None
        try:
            return _ARITHMETIC[sign](a, b)
        except (ArithmeticError, ValueError):
            return None

    return result


def _power(a: float, b: float) -> float:
    result = math.pow(a, b)
    if not math.isfinite(result):
        raise OverflowError
    return result


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": math.fmod,
    "^": _power,
}


def _numeric(apply: Callable[..., float]) -> Callable[[Sequence[Value]], Value]:
    def function(values: Sequence[Value]) -> Value:
        numbers = [number(value) for value in values]
        if any(each is None for each in numbers):
            return None
        try:
            return float(apply(*numbers))
        except (ArithmeticError, ValueError):
            return None

    return function


def _text(apply: Callable[..., Value]) -> Callable[[Sequence[Value]], Value]:
    return lambda values: None if any(each is None for each in values) else apply(*(shown(each) for each in values))


def _substr(text: str, start: str, length: str = "100000") -> Value:
    begin = int(number(start) or 0)
    return text[max(0, begin) : max(0, begin) + max(0, int(number(length) or 0))]


FUNCTIONS: Mapping[str, tuple[int, int, Callable[[Sequence[Value]], Value]]] = {
    # name: (least arguments, most arguments, what it gives)
    "abs": (1, 1, _numeric(abs)),
    "ceil": (1, 1, _numeric(math.ceil)),
    "floor": (1, 1, _numeric(math.floor)),
    "sqrt": (1, 1, _numeric(math.sqrt)),
    "log": (1, 1, _numeric(math.log)),
    "greatest": (1, 20, _numeric(max)),
    "least": (1, 20, _numeric(min)),
    "strlen": (1, 1, _text(lambda text: float(len(text)))),
    "toupper": (1, 1, _text(str.upper)),
    "tolower": (1, 1, _text(str.lower)),
    "trim": (1, 2, _text(lambda text, marks=None: text.strip(marks))),
    "ltrim": (1, 2, _text(lambda text, marks=None: text.lstrip(marks))),
    "rtrim": (1, 2, _text(lambda text, marks=None: text.rstrip(marks))),
    "concat": (1, 20, lambda values: "".join(shown(each) for each in values if each is not None)),
    "substr": (2, 3, _text(_substr)),
    "replace": (3, 3, _text(lambda text, old, new: text.replace(old, new) if len(new) <= 1000 else text)),
    "strcontains": (2, 2, _text(lambda text, part: float(part in text))),
    "isempty": (1, 1, lambda values: values[0] is None or values[0] == ""),
    "isblank": (1, 1, lambda values: values[0] is None or not shown(values[0]).strip()),
    "ispresent": (1, 1, lambda values: values[0] is not None),
    "coalesce": (1, 20, lambda values: next((each for each in values if each is not None), None)),
    "frommillis": (1, 1, lambda values: None if (at := number(values[0])) is None else Moment(at)),
    "tomillis": (1, 1, lambda values: None if (at := number(values[0])) is None else float(at)),
}
