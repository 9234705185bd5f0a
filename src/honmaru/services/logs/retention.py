"""Expiry of log events: a background step.

Invariants:
- For each group it acts as the platform's session at that group's own label, so it sees and deletes nothing else.
- It reads across labels only which groups have a retention (a trusted handle on the kind `log-group`).
- An event is never deleted before its group's retention is over; whole chunks go, so some stay a while longer.
"""

from __future__ import annotations

import logging

from honmaru.core.errors import Conflict
from honmaru.core.sessions import platform_session
from honmaru.ports.runtime import Clock
from honmaru.security.guard import Guard
from honmaru.services.logs.store import GROUP, SERVICE, LogStore

EVERY_S = 900.0
_DAY_MS = 86_400_000
_LOG = logging.getLogger(__name__)


class Retention:
    """The step. `partition` and `region` name the platform's session in the ledger."""

    def __init__(self, guard: Guard, store: LogStore, clock: Clock, *, partition: str, region: str) -> None:
        self._guard = guard
        self._store = store
        self._clock = clock
        self._place = (partition, region)
        self._groups = guard.trusted(SERVICE, frozenset({GROUP}))

    def expire(self) -> int:
        """Delete what is over; returns the number of chunks."""
        now_ms = int(self._clock.now().timestamp() * 1000)
        expired = 0
        for group in self._groups.list(GROUP):
            days = group.body.get("retention")
            if not days:
                continue
            session = platform_session(group.account, *self._place, SERVICE, group.label)
            records = self._guard.records(session, SERVICE)
            for stream in self._store.streams(records, group.name):
                if stream.label != group.label:
                    continue
                try:
                    expired += self._store.expire(records, stream, now_ms - int(days) * _DAY_MS)
                except Conflict:
                    continue  # it is being written to; the next time will do
                except Exception as fault:  # one stream holds no other up; values may be above this log
                    _LOG.error("a log stream could not be expired: %s", type(fault).__name__)
        return expired
