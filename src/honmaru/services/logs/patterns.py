"""CloudWatch Logs filter patterns: terms, JSON members and columns.

    ERROR timeout            both terms                     ?ERROR ?WARN            any of them
    "disk full"              the phrase                     -DEBUG                  not the term
    { $.level = "error" && $.ms > 100 }                     JSON members: see `json_patterns`
    [ip, user, status = 4*, bytes > 1000]                   columns: see `column_patterns`
    (empty)                  every message

Terms are case-sensitive and match anywhere in the message. Regular expressions between % are evaluated in linear
time (`linear_regex`), because users write them and the enclave evaluates them.

Invariants:
- A pattern that is not understood is refused, never taken for one that matches nothing or everything.
- Time is linear in the length of the message for each term, member and column.

Source: CloudWatch Logs user guide, "Filter pattern syntax for metric filters, subscription filters, filter log events,
and Live Tail".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from honmaru.core.errors import ValidationFault
from honmaru.services.logs.linear_regex import Malformed, linear

_TERM = re.compile(
    r'\s*(?P<sign>[?-]?)(?:"(?P<phrase>(?:[^"\\]|\\.)*)"|%(?P<regex>(?:[^%\\]|\\.)+)%|(?P<word>[^\s"%][^\s"]*))'
)


class Pattern(Protocol):
    """A compiled filter pattern."""

    def __call__(self, message: str) -> bool:
        """Whether a message matches."""
        ...

    def values(self, message: str) -> Mapping[str, str]:
        """What the pattern takes out of a message that matches, by selector: `$.member` or `$column`."""
        ...


def compiled(pattern: str) -> Pattern:
    """The predicate of a pattern. Raises ValidationFault (InvalidParameterException) for one that is malformed."""
    from honmaru.services.logs.column_patterns import Columns
    from honmaru.services.logs.json_patterns import Members

    text = pattern.strip()
    if text.startswith("{"):
        return Members(text)
    if text.startswith("["):
        return Columns(text)
    return Terms(text)


class Terms:
    """A pattern of terms, phrases and regular expressions."""

    def __init__(self, text: str) -> None:
        self._wanted: list[Callable[[str], bool]] = []
        self._optional: list[Callable[[str], bool]] = []
        self._excluded: list[Callable[[str], bool]] = []
        kinds = {"": self._wanted, "?": self._optional, "-": self._excluded}
        at = 0
        while at < len(text):
            match = _TERM.match(text, at)
            if match is None:
                raise invalid(f"Invalid filter pattern at {text[at:]!r}")
            kinds[match["sign"]].append(_term(match))
            at = match.end()

    def __call__(self, message: str) -> bool:
        return (
            all(term(message) for term in self._wanted)
            and (not self._optional or bool(self._wanted) or any(term(message) for term in self._optional))
            and not any(term(message) for term in self._excluded)
        )

    def values(self, message: str) -> Mapping[str, str]:  # noqa: ARG002
        return {}


def _term(match: re.Match[str]) -> Callable[[str], bool]:
    if match["regex"] is not None:
        return regex(match["regex"])
    phrase = match["phrase"]
    term = match["word"] if phrase is None else re.sub(r"\\(.)", r"\1", phrase)
    return lambda message: term in message


def regex(text: str) -> Callable[[str], bool]:
    """The predicate of a regular expression that may match anywhere. Raises ValidationFault."""
    try:
        return linear(text).search
    except Malformed as fault:
        raise invalid(f"Invalid filter pattern: %{text}%: {fault}") from None


def wildcard(text: str) -> Callable[[str], bool]:
    """The predicate of a text in which `*` stands for any characters."""
    if "*" not in text:
        return lambda value: value == text
    first, *middle, last = text.split("*")

    def fits(value: str) -> bool:
        if len(value) < len(first) + len(last) or not value.startswith(first) or not value.endswith(last):
            return False
        at, end = len(first), len(value) - len(last)
        for part in middle:
            found = value.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return fits


def number(text: str) -> float | None:
    """The number that a text is, in plain or scientific notation; None when it is none."""
    return float(text) if re.fullmatch(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", text) else None


def invalid(message: str) -> ValidationFault:
    return ValidationFault(message[:500], code="InvalidParameterException")
