"""SageMaker's list operations: filters, sorting and page tokens over the records that a session sees.

Invariants:
- A page token names the place of the last item by its sort key, so nothing is shown twice or passed over when other
  items come and go between pages.
- A token that this module did not make is a ValidationFault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.guard import Record
from honmaru.security.page_tokens import read_place, write_place

DEFAULT_PAGE = 10
Request = Mapping[str, Any]
Key = Callable[[Record], str]


def moment(at: datetime) -> str:
    """A sortable text of a time."""
    return at.isoformat(timespec="microseconds")


def modified(record: Record) -> datetime:
    """When the resource last changed as its users see it (not when its lease was renewed)."""
    return datetime.fromisoformat(record.body["modified"])


def page(
    records: Iterable[Record], request: Request, *, keys: Mapping[str, Key], default_sort: str = "CreationTime"
) -> tuple[list[Record], str | None]:
    """One page of the records that pass the request's time and name filters, and the token of the next.

    Args:
        keys: SortBy value → sort key; "CreationTime" and "Name" are there always.
    """
    wanted = [record for record in records if _passes(record, request)]
    sort_by = request.get("SortBy") or default_sort
    known: dict[str, Key] = {"CreationTime": lambda record: moment(record.created), "Name": lambda record: record.name}
    known |= keys
    if sort_by not in known:
        raise ValidationFault(f"SortBy {sort_by!r} is not supported here; use one of {', '.join(sorted(known))}")
    key = known[sort_by]
    descending = request.get("SortOrder") == "Descending"
    ordered = sorted(((key(record), record.name, record) for record in wanted), key=lambda item: item[:2])
    if descending:
        ordered.reverse()
    if request.get("NextToken"):
        last = _place(str(request["NextToken"]), sort_by)
        ordered = [item for item in ordered if (item[:2] < last if descending else item[:2] > last)]
    size = int(request.get("MaxResults") or DEFAULT_PAGE)
    shown = ordered[:size]
    token = write_place(sort_by, shown[-1][0], shown[-1][1]) if len(ordered) > size else None
    return [record for _, _, record in shown], token


def _passes(record: Record, request: Request) -> bool:
    contains = request.get("NameContains")
    bounds = (
        ("CreationTimeAfter", "CreationTimeBefore", record.created),
        ("LastModifiedTimeAfter", "LastModifiedTimeBefore", modified(record)),
    )
    for after, before, at in bounds:
        if (request.get(after) and at <= request[after]) or (request.get(before) and at >= request[before]):
            return False
    return not contains or contains.lower() in record.name.lower()


def _place(token: str, sort_by: str) -> tuple[str, str]:
    made_for, key, name = read_place(token, str, str, str)
    if made_for != sort_by:
        raise ValidationFault("NextToken was given for a request with another SortBy")
    return key, name
