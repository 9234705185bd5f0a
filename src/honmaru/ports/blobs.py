"""The blob store: sealed bytes by opaque path. It never sees plain text, labels or names; the guard seals and checks.

Invariants, which the contract suite checks on every implementation:
- `write` is atomic: after a crash the path holds all of the bytes or does not exist. What it returned from is durable.
- `read` of a missing path raises FileNotFoundError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class BlobStore(Protocol):
    def write(self, path: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a new path; returns the number of bytes. Memory use is bounded by a few chunks."""
        ...

    def read(self, path: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start` (fewer at the end)."""
        ...

    def size(self, path: str) -> int: ...

    def delete(self, path: str) -> None:
        """Deleting a missing path is no error."""
        ...

    def paths(self, prefix: str) -> Iterator[str]: ...
