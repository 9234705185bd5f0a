"""What other processes of the enclave changed, asked before an answer is decided on.

Invariants:
- No decision is made from what was true more than `LATEST_S` ago: where the store cannot say what changed in time, the
  request is refused.
- The store is asked once in `EVERY_S`, however many requests come.

For the event loop's thread only. Time is monotonic seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from honmaru.core.errors import StoreUnavailable

EVERY_S = 0.2
"""Age of what is known, beyond which the store is asked again."""
LATEST_S = 0.7
"""Age beyond which nothing is decided."""


class News:
    """See the module.

    Args:
        catch_up: Asks the store (`Guard.catch_up`).
        prompt: The store is on this machine: asking takes some microseconds, so no thread is needed.
    """

    def __init__(self, catch_up: Callable[[], None], now: Callable[[], float], *, prompt: bool) -> None:
        self._catch_up, self._now = catch_up, now
        self._asked: float | None = None
        self._thread = None if prompt else ThreadPoolExecutor(1, thread_name_prefix="news")
        self._asking: asyncio.Future[None] | None = None

    def fresh(self) -> Awaitable[None] | None:
        """Something to wait for while what is known is too old. Raises StoreUnavailable, here or there."""
        now = self._now()
        if self._asked is not None and now - self._asked <= EVERY_S:
            return None
        if self._thread is not None:
            return self._wait(self._thread)
        self._catch_up()
        self._asked = now
        return None

    async def _wait(self, thread: ThreadPoolExecutor) -> None:
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask(thread))
        await asyncio.shield(self._asking)
        if self._asked is None or self._now() - self._asked > LATEST_S:
            raise StoreUnavailable("the record store does not say in time what changed; see `honmaru doctor`")

    async def _ask(self, thread: ThreadPoolExecutor) -> None:
        begun = self._now()
        try:
            await asyncio.get_running_loop().run_in_executor(thread, self._catch_up)
            self._asked = begun
        finally:
            self._asking = None

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
