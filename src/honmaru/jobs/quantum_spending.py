"""What quantum tasks have spent, and the limits that hold new ones back.

Spending is not a record: it is summed over the tasks themselves, by label. A session at a label sees, and is held to,
the sum over labels that its own dominates. So a task never writes below itself, and a limit made at a lower label
counts for whoever sees it without telling anybody lower what was spent above.

Invariants:
- Checking a limit and reserving the minimum price are one step: parallel requests cannot pass a limit together.
- After a restart the sums are the same: they are read from the tasks' records.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from honmaru.core.errors import QuotaExceeded
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.jobs.quantum_devices import MINIMUM_S, price_usd


@dataclass(frozen=True, slots=True)
class Limit:
    """A spending limit as it is enforced. Times None mean always; `usd` as the caller wrote it."""

    arn: str
    device: str
    usd: Decimal
    start: datetime | None
    end: datetime | None

    def covers(self, at: datetime) -> bool:
        return (self.start is None or at >= self.start) and (self.end is None or at < self.end)


@dataclass(slots=True)
class _Entry:
    at: datetime
    usd: Decimal
    queued: bool


class Spending:
    """Sums of one enclave. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str, str], dict[str, _Entry]] = {}
        self._labels: dict[str, Label] = {}

    def reserve(
        self, session: Session, device: str, task: str, at: datetime, limits: Iterable[Limit]
    ) -> Decimal | None:
        """Count a new task with the minimum price; returns what is left under the tightest limit, None without one.

        A task that is counted already stays counted as it is: a repeated request does not reset what the task cost.
        Raises QuotaExceeded, naming the limit, and counts nothing.
        """
        price = Decimal(str(price_usd(MINIMUM_S)))
        left: Decimal | None = None
        with self._lock:
            for limit in limits:
                if limit.device != device or not limit.covers(at):
                    continue
                queued, total = self._sums(session.account, session.label, limit)
                rest = limit.usd - queued - total
                if rest < price:
                    raise QuotaExceeded(
                        f"spending limit {limit.arn} of {limit.usd} USD leaves {max(rest, Decimal(0))} USD "
                        f"for {device}, and a task costs at least {price} USD: raise the limit",
                        code="ServiceQuotaExceededException",
                    )
                left = rest if left is None else min(left, rest)
            if task not in self._entries.get((session.account, session.label.canonical, device), {}):
                self._put(session.account, session.label, device, task, _Entry(at, price, True))
        return left

    def forget(self, account: str, label: Label, device: str, task: str) -> None:
        """The task was not made, or ended without having run."""
        with self._lock:
            self._entries.get((account, label.canonical, device), {}).pop(task, None)

    def settle(self, account: str, label: Label, device: str, task: str, at: datetime, usd: float) -> None:
        """The task ended and cost so much."""
        with self._lock:
            self._put(account, label, device, task, _Entry(at, Decimal(str(usd)), False))

    def sums(self, account: str, high: Label, limit: Limit) -> tuple[Decimal, Decimal]:
        """(queued, total) in USD under a limit, over what `high` dominates."""
        with self._lock:
            return self._sums(account, high, limit)

    def _put(self, account: str, label: Label, device: str, task: str, entry: _Entry) -> None:
        self._labels[label.canonical] = label
        self._entries.setdefault((account, label.canonical, device), {})[task] = entry

    def _sums(self, account: str, high: Label, limit: Limit) -> tuple[Decimal, Decimal]:
        queued, total = Decimal(0), Decimal(0)
        for (owner, label, device), entries in self._entries.items():
            if owner != account or device != limit.device or not high.dominates(self._labels[label]):
                continue
            for entry in entries.values():
                if entry.queued:
                    queued += entry.usd
                elif limit.covers(entry.at):
                    total += entry.usd
        return queued, total
