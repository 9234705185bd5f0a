"""Checks of parsed members against the model: required, length, range, enum, pattern, unions; worded as AWS words them.

Invariants:
- Every violation is reported, up to MAX_REPORTED, in one message.
- Values of sensitive shapes are never repeated in a message.
- A text is tested against a pattern only when its length is within the model's bounds (MAX_PATTERN_TEXT where the model
  has none), so that no pattern sees unbounded text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from honmaru.api.corrections import python_pattern
from honmaru.api.models import ServiceModel

Where = tuple[Any, str] | None
"""Path to the enclosing value: (path of its owner, its name); None at the top."""

Check = Callable[[Any, Where, str, list[str]], None]

MAX_REPORTED = 10
MAX_PATTERN_TEXT = 8192


def check(service: ServiceModel, reference: Mapping[str, Any]) -> Check | None:
    """The check of a shape reference, None when nothing about it is constrained. Compiled once per shape."""
    name = reference["shape"]
    key = ("check", name)
    if key in service.compiled:
        found: Check | None = service.compiled[key]
        return found
    cell: list[Check | None] = []

    def recursive(value: Any, where: Where, member: str, errors: list[str]) -> None:
        if cell[0] is not None:
            cell[0](value, where, member, errors)

    service.compiled[key] = recursive
    built = _build(service, service.shapes[name])
    cell.append(built)
    service.compiled[key] = built
    return built


def message(errors: list[str]) -> str:
    """AWS's sentence for a list of violations."""
    count = len(errors)
    return f"{count} validation error{'s' if count > 1 else ''} detected: {'; '.join(errors[:MAX_REPORTED])}"


def lower_first(name: str) -> str:
    """Member names as AWS's messages spell them."""
    return name[:1].lower() + name[1:]


def _build(service: ServiceModel, shape: Mapping[str, Any]) -> Check | None:
    kind = shape["type"]
    if kind == "structure":
        return None if shape.get("document") or shape.get("eventstream") else _structure(service, shape)
    if kind == "string":
        return _string(shape)
    if kind == "list":
        return _list(service, shape)
    if kind == "map":
        return _map(service, shape)
    if kind in ("integer", "long", "float", "double"):
        return _number(shape)
    if kind == "blob":
        return _length(shape)
    return None


def _report(value: Any, where: Where, name: str, errors: list[str], shape: Mapping[str, Any], constraint: str) -> None:
    parts = [name]
    while where is not None:
        where, outer = where
        parts.append(outer)
    path = ".".join(lower_first(part) for part in reversed(parts))
    if shape.get("sensitive"):
        shown = "Value"
    elif value is None:
        shown = "Value null"
    else:
        text = value.hex() if isinstance(value, bytes) else str(value)
        shown = f"Value '{text if len(text) <= 256 else text[:256] + '…'}'"
    errors.append(f"{shown} at '{path}' failed to satisfy constraint: {constraint}")


def _structure(service: ServiceModel, shape: Mapping[str, Any]) -> Check | None:
    required = tuple(shape.get("required", ()))
    members = {
        name: found for name, reference in shape["members"].items() if (found := check(service, reference)) is not None
    }
    union = bool(shape.get("union"))
    if not required and not members and not union:
        return None

    def run(value: Any, where: Where, name: str, errors: list[str]) -> None:
        inside = (where, name) if name else None
        for member in required:
            if member not in value:
                _report(None, inside, member, errors, {}, "Member must not be null")
        if union and len(value) != 1:
            _report(sorted(value), where, name, errors, shape, "Member must have exactly one of its members set")
        for member, item in value.items():
            inner = members.get(member)
            if inner is not None:
                inner(item, inside, member, errors)

    return run


def _string(shape: Mapping[str, Any]) -> Check | None:
    shortest = shape.get("min", 0)
    longest = shape.get("max")
    pattern_text = shape.get("pattern")
    enum = frozenset(shape["enum"]) if "enum" in shape else None
    if not shortest and longest is None and pattern_text is None and enum is None:
        return None
    enum_text = f"Member must satisfy enum value set: [{', '.join(shape['enum'])}]" if enum is not None else ""
    compiled: list[re.Pattern[str]] = []

    def run(value: Any, where: Where, name: str, errors: list[str]) -> None:
        if enum is not None and value not in enum:
            _report(value, where, name, errors, shape, enum_text)
            return
        length = len(value)
        if length < shortest:
            _report(value, where, name, errors, shape, f"Member must have length greater than or equal to {shortest}")
            return
        if longest is not None and length > longest:
            _report(value, where, name, errors, shape, f"Member must have length less than or equal to {longest}")
            return
        if pattern_text is not None:
            if not compiled:
                compiled.append(python_pattern(pattern_text))
            if (longest is None and length > MAX_PATTERN_TEXT) or compiled[0].fullmatch(value) is None:
                _report(
                    value, where, name, errors, shape, f"Member must satisfy regular expression pattern: {pattern_text}"
                )

    return run


def _length(shape: Mapping[str, Any]) -> Check | None:
    shortest = shape.get("min", 0)
    longest = shape.get("max")
    if not shortest and longest is None:
        return None

    def run(value: Any, where: Where, name: str, errors: list[str]) -> None:
        if not isinstance(value, bytes | list | dict):
            return  # a stream: its length is the service's to judge
        if len(value) < shortest:
            _report(value, where, name, errors, shape, f"Member must have length greater than or equal to {shortest}")
        elif longest is not None and len(value) > longest:
            _report(
                value if isinstance(value, list) else "…",
                where,
                name,
                errors,
                shape,
                f"Member must have length less than or equal to {longest}",
            )

    return run


def _number(shape: Mapping[str, Any]) -> Check | None:
    least = shape.get("min")
    most = shape.get("max")
    if least is None and most is None:
        return None

    def run(value: Any, where: Where, name: str, errors: list[str]) -> None:
        # written so that NaN satisfies neither bound
        if least is not None and not value >= least:
            _report(value, where, name, errors, shape, f"Member must have value greater than or equal to {least}")
        elif most is not None and not value <= most:
            _report(value, where, name, errors, shape, f"Member must have value less than or equal to {most}")

    return run


def _list(service: ServiceModel, shape: Mapping[str, Any]) -> Check | None:
    length = _length(shape)
    inner = check(service, shape["member"])
    if inner is None:
        return length

    def run(value: Any, where: Where, name: str, errors: list[str]) -> None:
        if length is not None:
            length(value, where, name, errors)
        inside = (where, name)
        for position, item in enumerate(value, 1):
            inner(item, inside, f"{position}.member", errors)
            if len(errors) > MAX_REPORTED:
                return

    return run


def _map(service: ServiceModel, shape: Mapping[str, Any]) -> Check | None:
    length = _length(shape)
    of_key = check(service, shape["key"])
    of_value = check(service, shape["value"])
    if of_key is None and of_value is None:
        return length

    def run(value: Any, where: Where, name: str, errors: list[str]) -> None:
        if length is not None:
            length(value, where, name, errors)
        inside = (where, name)
        for key, item in value.items():
            if of_key is not None:
                of_key(key, inside, "key", errors)
            if of_value is not None:
                of_value(item, (inside, key[:64]), "member", errors)
            if len(errors) > MAX_REPORTED:
                return

    return run
