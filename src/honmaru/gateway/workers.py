"""Threads that run operations, and the way back of their results to the event loop.

Invariants:
- Results that land while the loop is busy wake it once, not once each.
- A future that was cancelled meanwhile is left alone; the work behind it runs to its end.
- `Landed` settles a future of the loop from any thread: a ledger entry that is durable, a work that is done.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Landing:
    """Where other threads leave what the futures of one event loop wait for."""

    __slots__ = ("_landed", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._landed: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False

    def land(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """From any thread."""
        self._landed.append((future, result, error))
        if not self._woken:  # set back before the deque is read: what was appended before is seen there
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._settle)
            except RuntimeError:
                return  # the loop is closed, and so is whoever waited

    def _settle(self) -> None:
        self._woken = False
        landed = self._landed
        while landed:
            future, result, error = landed.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


class Landed:
    """A future of the loop in the clothes of `concurrent.futures.Future`, for whoever settles it from a thread."""

    __slots__ = ("_landing", "future")

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        self.future: asyncio.Future[Any] = landing.loop.create_future()

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def cancelled(self) -> bool:
        return False

    def set_result(self, result: Any) -> None:
        self._landing.land(self.future, result, None)

    def set_exception(self, error: BaseException) -> None:
        self._landing.land(self.future, None, error)


_Job = tuple[Callable[[], Any], asyncio.Future[Any], Landing]


class Workers:
    """A fixed number of threads, each begun when it is first needed."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._lock = threading.Lock()
        self._landing: Landing | None = None

    def landing(self) -> Landing:
        """The landing of the running loop."""
        loop = asyncio.get_running_loop()
        if self._landing is None or self._landing.loop is not loop:
            self._landing = Landing(loop)
        return self._landing

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises, run in a thread."""
        landing = self.landing()
        future: asyncio.Future[Any] = landing.loop.create_future()
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif len(self._threads) < self._count:
                self._begin()
        self._jobs.put((work, future, landing))
        return await future

    def close(self) -> None:
        """Waits for what runs and what waits, then ends the threads."""
        with self._lock:
            threads, self._threads = self._threads, []
            self._count = 0
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join()

    def _begin(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, future, landing = job
            try:
                landing.land(future, work(), None)
            except BaseException as error:  # whoever waits is told, whatever it was
                landing.land(future, None, error)
            del job, work, future
            with self._lock:
                self._idle += 1
