"""Filter patterns over JSON messages: `{ ($.level = "error") && ($.latency.ms >= 100 || $.retry IS TRUE) }`.

    selector    $.a   $.a.b   $.a[0]   $.a["b c"]
    compare     = != < <= > >=      with a number, "text", a bare word (`*` stands for any characters), or %regex%
    state       IS NULL   IS TRUE   IS FALSE   NOT EXISTS   EXISTS
    combine     &&   ||   ( )       && binds more tightly

A message that is not a JSON object, or lacks the member, matches no comparison (`!=` neither, as with AWS).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from honmaru.services.logs.patterns import invalid, number, regex, wildcard

_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>&&|\|\||!=|<=|>=|[(){}=<>])
    |(?P<selector>\$(?:\.[A-Za-z0-9_\-@$]+|\[\d+\]|\["(?:[^"\\]|\\.)*"\]|\['[^']*'\])*)
    |"(?P<text>(?:[^"\\]|\\.)*)"|%(?P<regex>(?:[^%\\]|\\.)+)%|(?P<word>[^\s(){}=<>&|"!]+))""",
    re.VERBOSE,
)
_STEP = re.compile(r"""\.([A-Za-z0-9_\-@$]+)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]|\['([^']*)'\]""")
_MISSING = object()
_MAX_DEPTH = 50
_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Test = Callable[[Any], bool]


class Members:
    """See the module."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._selectors: list[str] = []
        self._expect("{")
        self._test = self._either(0)
        self._expect("}")
        if self._at != len(self._tokens):
            raise invalid("Invalid filter pattern: text follows the closing brace")

    def __call__(self, message: str) -> bool:
        document = _parsed(message)
        return document is not _MISSING and self._test(document)

    def values(self, message: str) -> Mapping[str, str]:
        document = _parsed(message)
        found = {}
        for selector in self._selectors:
            value = member(document, selector)
            if value is not None:
                found[selector] = value
        return found

    def _either(self, depth: int) -> Test:
        if depth > _MAX_DEPTH:
            raise invalid("Invalid filter pattern: parentheses are nested too deeply")
        tests = [self._both(depth)]
        while self._take_if("||"):
            tests.append(self._both(depth))
        return tests[0] if len(tests) == 1 else lambda document: any(test(document) for test in tests)

    def _both(self, depth: int) -> Test:
        tests = [self._one(depth)]
        while self._take_if("&&"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda document: all(test(document) for test in tests)

    def _one(self, depth: int) -> Test:
        if self._take_if("("):
            test = self._either(depth + 1)
            self._expect(")")
            return test
        kind, selector = self._take()
        if kind != "selector":
            raise invalid(f"Invalid filter pattern: expected a selector such as $.member, found {selector!r}")
        self._selectors.append(selector)
        steps = _steps(selector)
        kind, sign = self._take()
        if kind == "mark" and sign in ("=", "!=", *_ORDER):
            fits = self._comparison(sign)
        elif kind == "word" and sign.upper() in ("IS", "NOT", "EXISTS"):
            fits = self._state(sign.upper())
        else:
            raise invalid(f"Invalid filter pattern: expected an operator, found {sign!r}")
        return lambda document: fits(_at(document, steps))

    def _comparison(self, sign: str) -> Test:
        kind, text = self._take()
        if kind not in ("text", "word", "regex"):
            raise invalid(f"Invalid filter pattern: expected a value, found {text!r}")
        if sign in _ORDER:
            bound, compare = number(text) if kind == "word" else None, _ORDER[sign]
            if bound is None:
                raise invalid(f"Invalid filter pattern: {sign} compares numbers, not {text!r}")
            return lambda value: _is_number(value) and compare(value, bound)
        if kind == "regex":
            search = regex(text)
            equal: Test = lambda value: isinstance(value, str) and search(value)  # noqa: E731
        elif kind == "word" and (exact := number(text)) is not None:
            equal = lambda value: _is_number(value) and value == exact  # noqa: E731
        else:
            fits = wildcard(text)
            equal = lambda value: isinstance(value, str) and fits(value)  # noqa: E731
        if sign == "=":
            return equal
        return lambda value: value is not _MISSING and not equal(value)

    def _state(self, word: str) -> Test:
        if word == "EXISTS":
            return lambda value: value is not _MISSING
        kind, state = self._take()
        state = state.upper()
        if kind == "word" and word == "NOT" and state == "EXISTS":
            return lambda value: value is _MISSING
        known = {"NULL": None, "TRUE": True, "FALSE": False}
        if kind != "word" or word != "IS" or state not in known:
            raise invalid("Invalid filter pattern: expected IS NULL, IS TRUE, IS FALSE or NOT EXISTS")
        wanted = known[state]
        return lambda value: value is wanted

    def _take(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise invalid("Invalid filter pattern: it ends too soon")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take_if(self, mark: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("mark", mark):
            self._at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take_if(mark):
            raise invalid(f"Invalid filter pattern: expected {mark!r}")


def member(document: Any, selector: str) -> str | None:
    """The value of a selector in a parsed message as text; None where it is absent or no single value."""
    value = _at(document, _steps(selector))
    if value is _MISSING or isinstance(value, dict | list):
        return None
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise invalid(f"Invalid filter pattern at {text[at : at + 40]!r}")
        value = match[match.lastgroup]
        if match.lastgroup == "text":
            value = re.sub(r"\\(.)", r"\1", value)
        tokens.append((match.lastgroup, value))
        at = match.end()
    return tokens


def _steps(selector: str) -> list[str | int]:
    steps: list[str | int] = []
    for name, index, quoted, single in _STEP.findall(selector):
        steps.append(int(index) if index else name or re.sub(r"\\(.)", r"\1", quoted) or single)
    return steps


def _at(document: Any, steps: list[str | int]) -> Any:
    for step in steps:
        in_list = isinstance(step, int) and isinstance(document, list) and step < len(document)
        if not in_list and not (isinstance(step, str) and isinstance(document, dict) and step in document):
            return _MISSING
        document = document[step]
    return document


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(message: str) -> Any:
    if not message.lstrip().startswith(("{", "[")):
        return _MISSING
    try:
        return orjson.loads(message)
    except orjson.JSONDecodeError:
        return _MISSING
