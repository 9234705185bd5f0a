"""Policies of S3's browser forms: read strictly, then asked of the form that brought them.

Invariants:
- Every field of a form is covered by a condition, but those that carry the policy itself; a condition on a field that
  the form does not have fails. What the signer did not foresee is refused.
- Conditions are asked of the values that are stored: a key after its `${filename}` was replaced.

Source: S3 API, "Creating a POST policy" (V4). Answers of S3 to bad policies: recordings in LocalStack's test suite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from honmaru.core.errors import AccessDenied, ValidationFault

_UNCOVERED = frozenset({"policy", "x-amz-signature", "file", "bucket"})


@dataclass(frozen=True, slots=True)
class SizeRange:
    """How many bytes the file may have, both ends included."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class PostPolicy:
    expires: datetime
    conditions: tuple[Any, ...]

    def check(self, fields: Mapping[str, str], bucket: str, now: datetime) -> SizeRange | None:
        """What the policy says of a form whose fields (by lower-case name) are these; the range of sizes it allows.

        Raises AccessDenied in S3's words.
        """
        if self.expires <= now:
            raise AccessDenied("Invalid according to Policy: Policy expired.")
        given = {**fields, "bucket": bucket}
        covered: set[str] = set()
        size: SizeRange | None = None
        for condition in self.conditions:
            operator, name, value = _row(condition)
            if operator == "content-length-range":
                size = _size(condition)
                continue
            field = name[1:].lower()
            if not name.startswith("$") or not _holds(operator, given.get(field), value, field):
                raise _failed([operator, name, value])
            covered.add(field)
        for field in fields:
            if field not in covered and field not in _UNCOVERED and not field.startswith("x-ignore-"):
                raise AccessDenied(f"Invalid according to Policy: Extra input fields: {field[:128]}")
        return size


def read_policy(text: bytes) -> PostPolicy:
    """A policy document. Raises ValidationFault (InvalidPolicyDocument) in S3's words."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _invalid("Invalid JSON.") from None
    if not isinstance(value, dict):
        raise _invalid("Invalid JSON.")
    if "expiration" not in value:
        raise _invalid("Policy missing expiration.")
    expires = _time(value["expiration"])
    conditions = value.get("conditions")
    if conditions is None:
        raise _invalid("Policy missing conditions.")
    unexpected = [name for name in value if name not in ("expiration", "conditions")]
    if unexpected:
        raise _invalid(f"Unexpected: '{unexpected[0][:128]}'")
    if not isinstance(conditions, list):
        raise _invalid("Conditions must be a list.")
    for condition in conditions:
        _check_form(condition)
    return PostPolicy(expires, tuple(conditions))


def _time(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _invalid(f"Invalid 'expiration' value: '{str(value)[:64]}'") from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _check_form(condition: Any) -> None:
    if isinstance(condition, dict):
        if len(condition) != 1:
            raise _invalid("Invalid Simple-Condition: Simple-Conditions must have exactly one property specified.")
        if not isinstance(next(iter(condition.values())), str):
            raise _invalid("Invalid Simple-Condition: value must be a string.")
        return
    if not isinstance(condition, list) or not condition or not isinstance(condition[0], str):
        raise _invalid("Invalid condition: a condition must be an object or a list.")
    if condition[0].lower() not in ("eq", "starts-with", "content-length-range"):
        raise _invalid(f"Invalid condition: unknown operation '{condition[0][:64]}'.")
    if len(condition) != 3:
        raise _invalid(f"Invalid condition: '{condition[0].lower()}' takes exactly two arguments.")
    if condition[0].lower() != "content-length-range" and not all(isinstance(one, str) for one in condition):
        raise _invalid(f"Invalid condition: '{condition[0].lower()}' takes strings.")


def _row(condition: Any) -> tuple[str, str, str]:
    if isinstance(condition, dict):
        ((name, value),) = condition.items()
        return "eq", f"${name}", value
    return condition[0].lower(), str(condition[1]), str(condition[2])


def _size(condition: Sequence[Any]) -> SizeRange:
    """Whole numbers, as JSON numbers or as text. Raises AccessDenied."""
    numbers = []
    for bound in condition[1:]:
        text = str(bound)
        if isinstance(bound, bool) or not text.isascii() or not text.isdigit() or len(text) > 18:
            raise _failed(list(condition))
        numbers.append(int(text))
    return SizeRange(numbers[0], numbers[1])


def _holds(operator: str, given: str | None, wanted: str, field: str) -> bool:
    if given is None:
        return False
    if operator == "eq":
        return given == wanted
    if field == "content-type":  # a list of types must start alike, each of them
        return all(one.strip().startswith(wanted) for one in given.split(","))
    return given.startswith(wanted)


def _failed(condition: Sequence[Any]) -> AccessDenied:
    shown = json.dumps(list(condition), ensure_ascii=False)
    return AccessDenied(f"Invalid according to Policy: Policy Condition failed: {shown[:512]}")


def _invalid(what: str) -> ValidationFault:
    return ValidationFault(f"Invalid Policy: {what}", code="InvalidPolicyDocument")
