"""Token buckets: how many requests a principal, and an account, may make in a second.

Invariants:
- A holder that stays below its rate is never refused; one that comes back after a pause may make `burst` at once.
- A request that is refused takes no token. The number of buckets is bounded: those that are full say nothing and go.

For the event loop's thread only. Time is an argument (monotonic seconds).
"""

from __future__ import annotations

from collections.abc import Hashable

from honmaru.core.errors import Throttled

_LIMIT = 16_384
"""Buckets kept before full ones are dropped."""


class Rates:
    """Buckets of one size. `per_s` 0 means no limit."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, max(burst, 1.0)
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        """Holder → (tokens, when they were counted)."""

    def take(self, holder: Hashable, now: float) -> None:
        """Takes a token. Raises Throttled."""
        if not self._per_s:
            return
        bucket = self._buckets.get(holder)
        if bucket is None:
            if len(self._buckets) >= _LIMIT:
                self._drop_full(now)
            tokens = self._burst
        else:
            tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._per_s)
        if tokens < 1.0:
            raise Throttled("Rate exceeded")
        self._buckets[holder] = (tokens - 1.0, now)

    def _drop_full(self, now: float) -> None:
        """Forget those that would be full by now; when none is, the oldest half: they start anew with a full one."""
        kept = {
            holder: (tokens, at)
            for holder, (tokens, at) in self._buckets.items()
            if tokens + (now - at) * self._per_s < self._burst
        }
        if len(kept) >= _LIMIT:
            newest = sorted(kept.items(), key=lambda item: item[1][1])[_LIMIT // 2 :]
            kept = dict(newest)
        self._buckets = kept
