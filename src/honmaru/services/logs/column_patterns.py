"""Filter patterns over columns that are separated by spaces: `[ip, user, ..., status = 4*, bytes > 1000]`.

A message is cut at spaces; what stands in [ ] or " " is one column. A pattern matches a message with exactly as many
columns as it names, `...` standing for any number of them. A condition is written in the column: `w = ERROR`,
`status >= 400 && status < 500`, `w = A* || w = B*`. Columns are named, and their values are what the pattern takes out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

from honmaru.services.logs.patterns import invalid, number, regex, wildcard

_COLUMN = re.compile(r'\[([^\]]*)\]|"((?:[^"\\]|\\.)*)"|(\S+)')
_CONDITION = re.compile(
    r"\s*(?P<name>[A-Za-z0-9_$.\-]*)\s*(?P<sign>!=|<=|>=|=|<|>)\s*"
    r'(?:"(?P<text>(?:[^"\\]|\\.)*)"|%(?P<regex>(?:[^%\\]|\\.)+)%|(?P<word>[^\s&|"]+))\s*'
)
_NAME = re.compile(r"\s*([A-Za-z0-9_$.\-]*)\s*")
_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Test = Callable[[str], bool]


class Columns:
    """See the module."""

    def __init__(self, text: str) -> None:
        if not text.endswith("]"):
            raise invalid("Invalid filter pattern: expected ']' at its end")
        before: list[tuple[str, Test | None]] = []
        after: list[tuple[str, Test | None]] = []
        self._gap = False
        for part in _parts(text[1:-1]):
            if part.strip() == "...":
                if self._gap:
                    raise invalid("Invalid filter pattern: ... may stand once")
                self._gap = True
            else:
                (after if self._gap else before).append(_column(part))
        self._before, self._after = before, after

    def __call__(self, message: str) -> bool:
        return self._fit(message) is not None

    def values(self, message: str) -> Mapping[str, str]:
        return self._fit(message) or {}

    def _fit(self, message: str) -> dict[str, str] | None:
        columns = [a or b or c for a, b, c in _COLUMN.findall(message)]
        count = len(self._before) + len(self._after)
        if len(columns) < count or (len(columns) > count and not self._gap):
            return None
        rest = len(columns) - len(self._after)
        pairs = [*zip(self._before, columns, strict=False), *zip(self._after, columns[rest:], strict=True)]
        found = {}
        for position, ((name, test), value) in enumerate(pairs, start=1):
            if test is not None and not test(value):
                return None
            found[f"${name or position}"] = value
        return found


def _parts(text: str) -> list[str]:
    """The columns of a pattern: cut at commas that stand outside of quotes."""
    parts, quoted, at = [""], "", 0
    while at < len(text):
        character = text[at]
        if character == "\\" and quoted:
            parts[-1] += text[at : at + 2]
            at += 2
            continue
        if character in '"%' and quoted in ("", character):
            quoted = "" if quoted else character
        if character == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += character
        at += 1
    return parts


def _column(part: str) -> tuple[str, Test | None]:
    plain = _NAME.fullmatch(part)
    if plain is not None:
        return plain[1].removeprefix("$"), None
    name = ""
    any_of: list[list[Test]] = [[]]
    at = 0
    while True:
        match = _CONDITION.match(part, at)
        if match is None:
            raise invalid(f"Invalid filter pattern: column {part.strip()!r} has no condition such as name = value")
        name = name or match["name"].removeprefix("$")
        any_of[-1].append(_test(match))
        at = match.end()
        if at == len(part):
            break
        combined = part[at : at + 2]
        if combined not in ("&&", "||"):
            raise invalid(f"Invalid filter pattern at {part[at:]!r}")
        if combined == "||":
            any_of.append([])
        at += 2
    return name, lambda value: any(all(test(value) for test in group) for group in any_of)


def _test(match: re.Match[str]) -> Test:
    sign, word = match["sign"], match["word"]
    if sign in _ORDER:
        bound, compare = number(word) if word is not None else None, _ORDER[sign]
        if bound is None:
            raise invalid(f"Invalid filter pattern: {sign} compares numbers")

        def ordered(value: str) -> bool:
            given = number(value)
            return given is not None and compare(given, bound)

        return ordered
    if match["regex"] is not None:
        equal = regex(match["regex"])
    elif word is not None and (exact := number(word)) is not None:
        equal = lambda value: value == word or number(value) == exact  # noqa: E731
    else:
        equal = wildcard(word if word is not None else re.sub(r"\\(.)", r"\1", match["text"]))
    return equal if sign == "=" else lambda value: not equal(value)
