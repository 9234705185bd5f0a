"""Braket's search operations: filters with operators, newest first, page tokens.

Invariants:
- A filter that is not known is refused by name, never ignored.
- A page token names the place of the last item, so nothing is shown twice when others come and go between pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.guard import Record
from honmaru.security.page_tokens import read_place, write_place

_PAGE = 100
Facts = Callable[[Record], Mapping[str, str | datetime | None]]


def search(
    records: Iterable[Record], request: Mapping[str, Any], facts: Facts, names: Iterable[str]
) -> tuple[list[Record], str | None]:
    """One page of the records that pass every filter, and the token of the next.

    Args:
        facts: What filters see of a record; "tags:KEY" is looked up in the record's tags.
        names: The filters that there are.
    """
    filters = list(request.get("filters") or ())
    for each in filters:
        if each["name"] not in names and not each["name"].startswith("tags:"):
            raise ValidationFault(f"filter {each['name']!r} is not known; use {', '.join(sorted(names))} or tags:KEY")
    found = [record for record in records if all(_passes(each, record, facts(record)) for each in filters)]
    ordered = sorted(found, key=_place, reverse=True)
    if request.get("nextToken"):
        last = read_place(request["nextToken"], str, str)
        ordered = [record for record in ordered if _place(record) < last]
    size = int(request.get("maxResults") or _PAGE)
    shown = ordered[:size]
    token = None
    if len(ordered) > size:
        token = write_place(*_place(shown[-1]))
    return shown, token


def _place(record: Record) -> tuple[str, str]:
    return record.created.isoformat(timespec="microseconds"), record.name


def _passes(each: Mapping[str, Any], record: Record, facts: Mapping[str, str | datetime | None]) -> bool:
    name, values, operator = each["name"], list(each["values"]), each.get("operator") or "EQUAL"
    value = record.body["tags"].get(name[5:]) if name.startswith("tags:") else facts[name]
    if value is None:
        return False
    wanted: list[Any] = [_moment(text) for text in values] if isinstance(value, datetime) else values
    if operator == "EQUAL":
        return value in wanted
    if operator == "CONTAINS":
        return isinstance(value, str) and any(text in value for text in wanted)
    if operator == "BETWEEN":
        if len(wanted) != 2:
            raise ValidationFault(f"filter {name!r}: BETWEEN takes two values")
        return bool(wanted[0] <= value <= wanted[1])
    first: Any = wanted[0]
    actual: Any = value
    answers = {"LT": actual < first, "LTE": actual <= first, "GT": actual > first, "GTE": actual >= first}
    return bool(answers[operator])


def _moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValidationFault(f"{text!r} is not an ISO 8601 time") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
