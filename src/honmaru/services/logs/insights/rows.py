"""A log event as a row of fields, and the values that fields have.

Fields are `@timestamp`, `@ingestionTime`, `@message`, `@logStream`, `@log`, `@ptr`, whatever a query makes, and the
members of a message that is a JSON object, under their dotted path (`a.b`, `a.0`). The message is parsed only when a
field is asked for that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

MAX_FIELDS = 1000
"""Fields that are found in one message, at most, as with AWS."""

Value = str | float | bool | None

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


class Moment(float):
    """A time in milliseconds since 1970, shown as Insights shows times."""

    def __str__(self) -> str:
        at = datetime.fromtimestamp(int(self) / 1000, UTC)
        return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{int(self) % 1000:03d}"


class Row:
    """See the module."""

    __slots__ = ("_discovered", "fields")

    def __init__(self, fields: dict[str, Value]) -> None:
        self.fields = fields
        self._discovered: Mapping[str, Value] | None = None

    def get(self, name: str) -> Value:
        if name in self.fields:
            return self.fields[name]
        return self.discovered.get(name)

    @property
    def discovered(self) -> Mapping[str, Value]:
        """The fields of a JSON message."""
        if self._discovered is None:
            self._discovered = _discover(self.fields.get("@message"))
        return self._discovered


def shown(value: Value) -> str:
    """A value as results show it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and not isinstance(value, Moment):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def number(value: Value) -> float | None:
    """The number that a value is, or that its text states."""
    if isinstance(value, float | int):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return None


def _discover(message: Value) -> Mapping[str, Value]:
    if not isinstance(message, str) or not message.lstrip().startswith("{"):
        return {}
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError:
        return {}
    found: dict[str, Value] = {}
    for name, value in _leaves(document, ""):
        if len(found) == MAX_FIELDS:
            break
        found.setdefault(name, value)
    return found


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Value]]:
    stack = [(path, value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{path}.{key}" if path else key, inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            stack += [(f"{path}.{place}", inner) for place, inner in reversed(list(enumerate(value)))]
        elif value is not None:
            yield path, value if isinstance(value, str | bool) else float(value)
