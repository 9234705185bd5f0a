"""The processes that can answer for one model at one label and account, and the choice among them.

Invariants:
- The replica with the fewest unanswered requests is asked; one over its limit is not asked, and when all are, the
  request is Throttled.
- A replica that failed three times in a row is not asked again before a pause that doubles with each failure
  (1 s to 60 s); then one request tries it.
- A request is tried again, on another replica or a restarted one, only while nothing of its answer was passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from honmaru.core.errors import NotReady, Throttled
from honmaru.deployments.client import Pool
from honmaru.deployments.engines import Remote
from honmaru.deployments.server import Server

LONGEST_PAUSE_S = 60.0
FAILURES = 3


@dataclass(slots=True, eq=False)
class Replica:
    """One process: ours (`server`, once it is started) or the operator's (`remote`)."""

    limit: int
    remote: Remote | None = None
    server: Server | None = None
    pool: Pool | None = None
    root: str = "/v1"
    starting: asyncio.Task[None] | None = None
    busy: int = 0
    used_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0
    reason: str = ""

    def failed(self, reason: str, now: float, *, at_once: bool) -> None:
        """Remembers a failure. `at_once`: pause already after the first (a start that failed)."""
        self.failures += 1
        self.reason = reason
        if at_once or self.failures >= FAILURES:
            over = self.failures - (1 if at_once else FAILURES)
            self.not_before = now + min(LONGEST_PAUSE_S, 2.0**over)

    def well(self) -> None:
        self.failures, self.not_before = 0, 0.0

    def open(self, now: float) -> bool:
        """Whether the circuit is open: the replica is left alone for now."""
        return now < self.not_before


def choose(replicas: Sequence[Replica], tried: Collection[Replica], name: str, now: float) -> Replica:
    """The one to ask. Raises NotReady or Throttled."""
    left = [replica for replica in replicas if replica not in tried] or list(replicas)
    there = [replica for replica in left if not replica.open(now)]
    if not there:
        soonest = min(left, key=lambda replica: replica.not_before)
        raise NotReady(f"model {name} failed and is tried again in {soonest.not_before - now:.0f} s: {soonest.reason}")
    best = min(there, key=lambda replica: (replica.busy, replica.pool is None))
    if best.busy >= best.limit:
        busy = sum(replica.busy for replica in there)
        raise Throttled(f"{busy} requests to model {name} are being answered, which is the limit; try again later")
    return best
