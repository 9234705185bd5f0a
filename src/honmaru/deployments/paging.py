"""Filtering, ordering and page tokens of Bedrock's lists.

Invariant: a page token holds a position (time and id of the last item shown), so items that come or go between pages
neither repeat nor hide others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from honmaru.security.guard import Record
from honmaru.security.page_tokens import read_place, write_place

_DEFAULT_PAGE = 100


def page(records: Iterable[Record], request: Mapping[str, Any], name: str) -> tuple[list[Record], str | None]:
    """One page of the records that pass the request's filters, and the token of the next.

    `name` is the member of the body that nameContains looks at. Raises ValidationFault for a token that is not ours.
    """
    descending = request.get("sortOrder", "Descending") == "Descending"
    found = sorted((record for record in records if _passes(record, request, name)), key=_position, reverse=descending)
    after = read_place(request["nextToken"], str, str) if request.get("nextToken") else None
    if after is not None:
        found = [item for item in found if (_position(item) < after if descending else _position(item) > after)]
    size = int(request.get("maxResults") or _DEFAULT_PAGE)
    shown = found[:size]
    return shown, write_place(*_position(shown[-1])) if len(found) > size else None


def _passes(record: Record, request: Mapping[str, Any], name: str) -> bool:
    after, before = request.get("creationTimeAfter"), request.get("creationTimeBefore")
    return (
        str(request.get("nameContains", "")).lower() in str(record.body[name]).lower()
        and request.get("statusEquals") in (None, record.state)
        and (after is None or record.created > after)
        and (before is None or record.created < before)
    )


def _position(record: Record) -> tuple[str, str]:
    return record.created.isoformat(), record.name
