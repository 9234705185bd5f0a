"""The condition keys of one request, gathered only when some statement asks for one.

Invariant: what the session and the resource say wins over what a provider or caller stated under the same key.

Source: IAM user guide, "AWS global condition context keys".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class RequestContext(Mapping[str, Any]):
    """Keys in lower case → values, made by `gather` at the first question."""

    __slots__ = ("_full", "_gather")

    def __init__(self, gather: Callable[[], dict[str, Any]]) -> None:
        self._gather = gather
        self._full: dict[str, Any] | None = None

    @property
    def full(self) -> dict[str, Any]:
        """Every key."""
        if self._full is None:
            self._full = self._gather()
        return self._full

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        return self.full.get(key, default)

    def __getitem__(self, key: str) -> Any:
        return self.full[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.full)

    def __len__(self) -> int:
        return len(self.full)
