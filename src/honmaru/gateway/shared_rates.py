"""Token buckets that the processes of one enclave share, so that a limit means the same however many workers there are.

The buckets lie in anonymous memory that every process maps. A holder's place is found by a digest of its name; while
its group of places is changed, the group's first byte is locked, and the kernel opens the lock of a process that dies.

Invariants:
- As `rates`: a holder that stays below its rate is never refused, a refused request takes no token.
- In a full group a new holder takes the place that would be full soonest: the holder whose it was starts anew.
- No more is held for a holder than a digest, its tokens and a time.

For one thread of each process. Time is monotonic seconds, which all processes of a machine share.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Hashable
from functools import lru_cache

from honmaru.core.errors import Throttled
from honmaru.core.labels import Label

_PLACE = struct.Struct("=Qdd")
"""Digest of the holder (0: free), tokens, when they were counted."""
_GROUPS, _GROUP = 2048, 8
_GROUP_BYTES = _GROUP * _PLACE.size
TABLE_BYTES = _GROUPS * _GROUP_BYTES


def shared_memory(tables: int) -> int:
    """A descriptor of empty memory for so many tables, to be given to every process."""
    descriptor = os.memfd_create("honmaru-rates")
    os.ftruncate(descriptor, tables * TABLE_BYTES)
    return descriptor


class SharedRates:
    """Buckets of one size in one table of the memory. `per_s` 0 means no limit."""

    def __init__(self, per_s: float, burst: float, memory: int, table: int) -> None:
        self._per_s, self._burst = per_s, max(burst, 1.0)
        self._descriptor = memory
        self._base = table * TABLE_BYTES
        self._map = mmap.mmap(memory, 0)

    def take(self, holder: Hashable, now: float) -> None:
        """Takes a token. Raises Throttled."""
        if not self._per_s:
            return
        digest = _digest(holder)
        start = self._base + digest % _GROUPS * _GROUP_BYTES
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, start)
        try:
            self._take(digest, start, now)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, start)

    def _take(self, digest: int, start: int, now: float) -> None:
        place, tokens, fullest = start, self._burst, -1.0
        for at in range(start, start + _GROUP_BYTES, _PLACE.size):
            owner, held, counted = _PLACE.unpack_from(self._map, at)
            filled = self._burst if not owner else min(self._burst, held + max(0.0, now - counted) * self._per_s)
            if owner == digest:
                place, tokens = at, filled
                break
            if filled > fullest:
                place, fullest = at, filled
        if tokens < 1.0:
            raise Throttled("Rate exceeded")
        _PLACE.pack_into(self._map, place, digest, tokens - 1.0, now)


@lru_cache(4096)
def _digest(holder: Hashable) -> int:
    """The same number for a holder in every process; never 0."""
    parts = holder if isinstance(holder, tuple) else (holder,)
    text = "\0".join(part.canonical if isinstance(part, Label) else repr(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) or 1
