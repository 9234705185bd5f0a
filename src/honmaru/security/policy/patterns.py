"""Wildcard patterns with policy variables, compiled to matchers that cannot blow up.

Invariants:
- `*` matches any text and `?` exactly one character; what a variable brings is literal text, never a wildcard.
- A variable that the request does not have makes the pattern unresolvable, and an unresolvable pattern matches nothing.
- Matching takes time linear in the text for each literal piece; no backtracking (no regular-expression bombs).

Source: IAM user guide, "IAM JSON policy elements: variables and tags", "... Resource".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Matcher = Callable[[str], bool]

_STAR, _ANY = 0, 1
_TOKEN = re.compile(r"\*|\?|\$\{([^{}]*)\}")
_VARIABLE = re.compile(r"\s*([A-Za-z0-9_.:/=+@-]+?)\s*(?:,\s*'([^']*)'\s*)?")
_LITERALS = {"*": "*", "?": "?", "$": "$"}


@dataclass(frozen=True, slots=True)
class Variable:
    """`${key}` or `${key, 'default'}`; the key is in lower case."""

    key: str
    default: str | None


Part = str | int | Variable


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern in parts. `matcher` is there from the start when no variable is in it."""

    parts: tuple[Part, ...]
    matcher: Matcher | None

    def resolve(self, context: Mapping[str, Any]) -> Matcher | None:
        """The matcher under a request's context; None when a variable is missing."""
        if self.matcher is not None:
            return self.matcher
        parts = substitute(self.parts, context)
        return None if parts is None else _matcher(parts)


def compile_pattern(text: str, *, variables: bool) -> Pattern:
    """A glob, with variables when the policy's version has them. Raises ValueError for a malformed variable."""
    parts = split(text, variables=variables)
    simple = all(not isinstance(part, Variable) for part in parts)
    return Pattern(parts, _matcher(parts) if simple else None)


def glob(text: str) -> Matcher:
    """The matcher of a pattern that has wildcards only."""
    return _matcher(tuple(part for part in split(text, variables=False) if not isinstance(part, Variable)))


def split(text: str, *, variables: bool, wildcards: bool = True) -> tuple[Part, ...]:
    """Text → literal, wildcard and variable parts; neighbouring literals are joined."""
    parts: list[Part] = []

    def literal(value: str) -> None:
        if value and parts and isinstance(parts[-1], str):
            parts[-1] += value
        elif value:
            parts.append(value)

    position = 0
    for match in _TOKEN.finditer(text):
        literal(text[position : match.start()])
        position = match.end()
        mark = match.group()
        if mark in "*?":
            if wildcards:
                parts.append(_STAR if mark == "*" else _ANY)
            else:
                literal(mark)
        elif not variables:
            literal(mark)
        elif match.group(1) in _LITERALS:
            literal(_LITERALS[match.group(1)])
        else:
            variable = _VARIABLE.fullmatch(match.group(1))
            if variable is None:
                raise ValueError(f"{mark!r} is not a policy variable")
            parts.append(Variable(variable.group(1).lower(), variable.group(2)))
    literal(text[position:])
    return tuple(parts)


def substitute(parts: tuple[Part, ...], context: Mapping[str, Any]) -> tuple[str | int, ...] | None:
    """Parts with every variable replaced by literal text; None when one is missing or has several values."""
    result: list[str | int] = []
    for part in parts:
        if isinstance(part, Variable):
            value = context.get(part.key, part.default)
            if not isinstance(value, str):
                return None
            result.append(value)
        else:
            result.append(part)
    return tuple(result)


@lru_cache(maxsize=16384)
def _matcher(parts: tuple[str | int, ...]) -> Matcher:
    if parts == (_STAR,):
        return lambda _: True
    if not any(isinstance(part, int) for part in parts):
        exact = "".join(str(part) for part in parts)
        return lambda text: text == exact
    pieces: list[list[str | int]] = [[]]
    for part in parts:
        if part == _STAR:
            pieces.append([])
        else:
            pieces[-1].append(part)
    # One regular expression for each piece between stars: a fixed number of characters, so no backtracking.
    found = [re.compile("".join("." if p == _ANY else re.escape(str(p)) for p in piece), re.DOTALL) for piece in pieces]
    widths = [sum(1 if p == _ANY else len(str(p)) for p in piece) for piece in pieces]
    first, last = found[0], found[-1]
    if len(pieces) == 1:
        return lambda text: first.fullmatch(text) is not None
    middle = [piece for piece, width in zip(found[1:-1], widths[1:-1], strict=True) if width]
    head, tail = widths[0], widths[-1]

    def match(text: str) -> bool:
        end = len(text) - tail
        if end < head or first.match(text) is None or last.match(text, end) is None:
            return False
        position = head
        for piece in middle:
            hit = piece.search(text, position, end)
            if hit is None:
                return False
            position = hit.end()
        return True

    return match


@dataclass(frozen=True, slots=True)
class ArnPattern:
    """An ARN pattern as its six components, matched one by one. `everything` is the pattern "*" alone."""

    components: tuple[Pattern, ...]
    prefix: str
    """Literal text that every matching ARN starts with: most patterns are refuted by it alone."""
    head: str = ""
    """Literal text that the last component of every matching ARN starts with."""
    everything: bool = False

    def matches(self, arn: str, context: Mapping[str, Any]) -> bool | None:
        """Whether an ARN matches; None when that depends on a variable that the request does not have."""
        if self.everything:
            return True
        if not arn.startswith(self.prefix):
            return False
        given = arn.split(":", 5)
        if len(given) != 6:
            return False
        answer: bool | None = True
        for part, component in zip(self.components, given, strict=True):
            matcher = part.resolve(context)
            if matcher is None:
                answer = None
            elif not matcher(component):
                return False
        return answer


def compile_arn(text: str, *, variables: bool) -> ArnPattern:
    """Compile an ARN pattern. Raises ValueError when it is neither "*" nor has six components."""
    if text == "*":
        return ArnPattern((), "", everything=True)
    # A colon inside ${...} separates nothing.
    components = re.split(r":(?![^{}]*\})", text, maxsplit=5) if variables else text.split(":", 5)
    if len(components) != 6 or components[0] != "arn":
        raise ValueError(f"{text!r} is not an ARN")
    patterns = tuple(compile_pattern(component, variables=variables) for component in components)
    return ArnPattern(patterns, _literal_prefix(patterns), _literal_prefix(patterns[5:]))


def _literal_prefix(patterns: tuple[Pattern, ...]) -> str:
    prefix = ""
    for pattern in patterns:
        for part in pattern.parts:
            if not isinstance(part, str):
                return prefix
            prefix += part
        prefix += ":"
    return prefix.removesuffix(":")
