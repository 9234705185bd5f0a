"""All connections of a server by what they do, and who must go when there is no place for one more.

Invariants:
- At most `limit` connections are open. A new one is never turned away for the sake of one that does nothing: the
  longest idle one that never carried an authenticated request goes first, then the longest idle one, then the oldest
  whose running request nobody has vouched for yet. Only when every place is taken by work of authenticated callers is
  the new one closed.
- A connection that says nothing, or sends its headers slowly, is gone after `header_s`; one that idles between two
  requests, after `keep_alive_s`. One sweep looks after all of them: a request costs no timer.

For the event loop's thread only. Not here: bytes (`http`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Held(Protocol):
    """What is asked of a connection."""

    @property
    def vouched(self) -> bool:
        """Whether it ever carried an authenticated request, the running one included."""
        ...

    def evict(self) -> None:
        """Its place is needed."""
        ...

    def too_slow(self) -> None:
        """It sent no headers in time."""
        ...

    def shutdown(self) -> None:
        """The server stops: end after the running answer, or now."""
        ...


class Connections:
    """See the module. A connection is in exactly one of four orders, each by the time at which it came there."""

    def __init__(self, limit: int, header_s: float, keep_alive_s: float, now: Callable[[], float]) -> None:
        self._limit, self._header_s, self._keep_alive_s, self._now = limit, header_s, keep_alive_s, now
        self._fresh: dict[Held, float] = {}
        """Idle or sending headers, and never authenticated."""
        self._heading: dict[Held, float] = {}
        """Sending headers of a further request."""
        self._idle: dict[Held, float] = {}
        """Between two requests of authenticated callers."""
        self._running: dict[Held, float] = {}
        self._deadlines: dict[Held, float] = {}
        """Of those in `_fresh` that still owe their headers."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._heading) + len(self._idle) + len(self._running)

    def open(self, connection: Held) -> bool:
        """Takes a new connection in; False when there is no place for it and none could be made."""
        if len(self) >= self._limit:
            victim = self._victim()
            if victim is None:
                return False
            self.closed(victim)
            victim.evict()
        now = self._now()
        self._fresh[connection] = now
        self._deadlines[connection] = now + self._header_s
        return True

    def heading(self, connection: Held) -> None:
        """The first bytes of a request after the first one have come."""
        since = self._fresh.get(connection)
        if since is not None:
            self._deadlines.setdefault(connection, self._now() + self._header_s)
        elif self._idle.pop(connection, None) is not None:
            self._heading[connection] = self._now() + self._header_s

    def running(self, connection: Held) -> None:
        """Its headers are complete."""
        self._leave(connection)
        self._running[connection] = self._now()

    def idle(self, connection: Held) -> None:
        """Its answer is sent. Nothing happens to one that was closed meanwhile."""
        if self._running.pop(connection, None) is not None:
            if connection.vouched:
                self._idle[connection] = self._now()
            else:
                self._fresh[connection] = self._now()

    def closed(self, connection: Held) -> None:
        """It is gone. Idempotent."""
        self._leave(connection)
        self._running.pop(connection, None)

    def sweep(self) -> None:
        """Ends what waited too long. To be called several times in the shortest of the limits."""
        now = self._now()
        late = _before(self._deadlines, now) + _before(self._heading, now)
        stale = _before(self._idle, now - self._keep_alive_s)
        stale += [c for c in _before(self._fresh, now - self._keep_alive_s) if c not in self._deadlines]
        for connection in late:
            self.closed(connection)
            connection.too_slow()
        for connection in stale:
            self.closed(connection)
            connection.evict()

    def all(self) -> list[Held]:
        return [*self._fresh, *self._heading, *self._idle, *self._running]

    @property
    def busy(self) -> int:
        """Connections with a running request."""
        return len(self._running)

    def _leave(self, connection: Held) -> None:
        if self._fresh.pop(connection, None) is not None:
            self._deadlines.pop(connection, None)
        elif self._idle.pop(connection, None) is None:
            self._heading.pop(connection, None)

    def _victim(self) -> Held | None:
        for order in (self._fresh, self._idle):
            if order:
                return next(iter(order))
        return next((connection for connection in self._running if not connection.vouched), None)


def _before(order: dict[Held, float], time: float) -> list[Held]:
    """Those at the front of an order whose time is not after `time`."""
    found = []
    for connection, at in order.items():
        if at > time:
            break
        found.append(connection)
    return found
