"""Places that clients hold for as long as they like: bounded altogether, and for each holder.

Invariants:
- At most `limit` places are taken, at most `each` of them by one holder, so that nobody takes all of them.
- A place is given back however its block ends. For the event loop's thread only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from honmaru.core.errors import Throttled
from honmaru.core.sessions import Session


class Places:
    """See the module."""

    def __init__(self, limit: int, each: int) -> None:
        self._limit, self._each = limit, each
        self._taken: Counter[Hashable] = Counter()

    @contextmanager
    def taken(self, holder: Hashable) -> Iterator[None]:
        """A place, for a `with` block. Raises Throttled."""
        if self._taken.total() >= self._limit or self._taken[holder] >= self._each:
            raise Throttled("Please reduce your request rate.")
        self._taken[holder] += 1
        try:
            yield
        finally:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]


def holder_of(session: Session) -> Hashable:
    """Who a place is counted for: the person behind a session, whatever roles are assumed, at one label."""
    return session.account, session.human or session.principal_arn, session.label
