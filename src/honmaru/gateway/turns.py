"""Turns: how many requests are worked on at once, and whose is next.

Invariants:
- At most `limit` turns are taken. One holder may have all but `each` of them while nobody else was seen for a second,
  and `each` of them otherwise: whoever comes while one holder floods finds a turn free, and little else is being done
  meanwhile.
- Requests that nobody vouches for (holder None) never have more than `each` together.
- Holders that wait are served in rotation, their own requests in order.
- At most `queued` requests wait, at most half of them of one holder; beyond it they are refused as throttled.
- A turn is given back however its block ends.

For the event loop's thread only. Holders are verified identities: nobody waits in another's place (`places.holder_of`);
requests that nobody vouches for share one holder.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable

from honmaru.core.errors import Throttled

_RECENT_S = 1.0


class Turns:
    """See the module."""

    def __init__(self, limit: int, each: int, queued: int, now: Callable[[], float]) -> None:
        self._limit, self._each, self._queued, self._now = limit, min(each, limit), queued, now
        self._alone = max(self._each, limit - self._each)
        self._seen: dict[Hashable, float] = {}
        """Holders of the last second, the one seen longest ago first."""
        self._taken = 0
        self._waiting_count = 0
        self._held: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """Holders in rotation: who was served goes to the end."""

    def try_take(self, holder: Hashable) -> bool:
        """Takes a turn if one is free for the holder now."""
        now = self._now()
        seen = self._seen
        seen.pop(holder, None)
        seen[holder] = now
        while (first := next(iter(seen))) is not holder and seen[first] < now - _RECENT_S:
            del seen[first]
        held = self._held.get(holder, 0)
        # Others that wait while a turn is free have all that they may have.
        if self._taken >= self._limit or held >= self._share(holder) or holder in self._waiting:
            return False
        self._taken += 1
        self._held[holder] = held + 1
        return True

    async def take(self, holder: Hashable, *, bounded: bool = True) -> None:
        """Takes a turn, waiting for it. Raises Throttled when too many wait, unless the caller bounds them itself."""
        if self.try_take(holder):
            return
        waiting = self._waiting.get(holder)
        own = len(waiting) if waiting else 0
        if bounded and (self._waiting_count >= self._queued or own >= max(1, self._queued // 2)):
            raise Throttled("Please reduce your request rate.")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(future)
        self._waiting_count += 1
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(holder)
            else:
                self._forget(holder, future)
            raise

    def give_back(self, holder: Hashable) -> None:
        """Returns a turn and hands it on."""
        self._taken -= 1
        held = self._held[holder] - 1
        if held:
            self._held[holder] = held
        else:
            del self._held[holder]
        while self._waiting and self._taken < self._limit and self._hand_on():
            pass

    def _share(self, holder: Hashable) -> int:
        return self._each if len(self._seen) > 1 or holder is None else self._alone

    def _hand_on(self) -> bool:
        for holder, waiting in self._waiting.items():
            held = self._held.get(holder, 0)
            if held >= self._share(holder):
                continue
            future = waiting.popleft()
            self._waiting_count -= 1
            del self._waiting[holder]
            if waiting:
                self._waiting[holder] = waiting
            if not future.done():
                self._taken += 1
                self._held[holder] = held + 1
                future.set_result(None)
            return True
        return False

    def _forget(self, holder: Hashable, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(holder)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            self._waiting_count -= 1
            if not waiting:
                del self._waiting[holder]
