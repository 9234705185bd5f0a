"""What a kind of job must say about itself, and the claim through which it works on one record.

A job is a record (a training job, an import job ...). A `JobKind` carries it from its first state to a final one in
`run`, which may run a sandboxed JobSpec through the executor (`jobs.sandboxed`) or do the work in this process. The
supervisor (`jobs.supervisor`) calls `run` for every record in a claimable state, also after a crash: `run` reads the
state and goes on from there, so each of its steps must be safe to repeat.

Invariants:
- Every change of a job's record goes through `Claim.change`: compare-and-swap on a fresh copy, and only while the
  lease in the record is ours. Who lost the lease gets LeaseLost and can change nothing more (fencing).
- A final state is never claimed again, so a job ends exactly once.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from honmaru.core.errors import Conflict, HonmaruError
from honmaru.ports.runtime import Clock

if TYPE_CHECKING:
    from honmaru.security.guard import Record

LEASE = "lease"
"""Member of the record's body that holds the lease: {"owner", "boot", "until"}. Services never show it."""


class LeaseLost(HonmaruError):
    """Another supervisor works on the job now, or its record is gone; whoever gets this stops at once."""


class JobRecords(Protocol):
    """What jobs need of the guard's trusted records: one kind of one service, across labels."""

    def list(self, kind: str, *, state: str | None = None) -> list[Record]: ...

    def reread(self, record: Record) -> Record | None:
        """The record as stored now, at the same label; None when it was deleted."""
        ...

    def update(self, record: Record, body: dict[str, Any], state: str | None = None) -> Record: ...


class JobKind(Protocol):
    """One kind of job. Instances are shared by threads: keep no state per job in them."""

    @property
    def service(self) -> str: ...

    @property
    def kind(self) -> str:
        """The kind of the records."""
        ...

    @property
    def claimable(self) -> frozenset[str]:
        """States in which a record needs work: everything but the final ones."""
        ...

    @property
    def slots(self) -> int:
        """How many jobs of this kind may run at once; the others wait, oldest first."""
        ...

    def run(self, claim: Claim) -> None:
        """Carry the job to a final state, or return early when `claim.leaving` (the enclave stops; the job goes on).

        A RequestFault or IntegrityFault that it raises ends the job through `fail`. After any other exception the
        supervisor runs it again, a bounded number of times, and then calls `fail`.
        """
        ...

    def fail(self, claim: Claim, reason: str) -> None:
        """Set the final failed state with the reason, and leave nothing running."""
        ...


class Claim:
    """A leased record. Thread-safe; made by the supervisor."""

    def __init__(
        self,
        records: JobRecords,
        record: Record,
        *,
        owner: str,
        boot: str,
        clock: Clock,
        lease_s: float,
        leaving: threading.Event,
    ) -> None:
        self._records = records
        self._record = record
        self._owner = owner
        self._boot = boot
        self._clock = clock
        self._lease_s = lease_s
        self._leaving = leaving
        self._woken = threading.Event()
        self._lock = threading.RLock()

    @property
    def record(self) -> Record:
        """The record as last read or written here."""
        return self._record

    @property
    def body(self) -> dict[str, Any]:
        """A copy of the record's body."""
        return copy.deepcopy(dict(self._record.body))

    @property
    def leaving(self) -> bool:
        """The enclave stops: return from `run` soon and leave the sandbox running; the next start adopts it."""
        return self._leaving.is_set()

    def refresh(self) -> Record:
        """Read the record again. Raises LeaseLost when it is gone or leased to another."""
        with self._lock:
            stored = self._records.reread(self._record)
            if stored is None:
                raise LeaseLost(f"{self._record.kind} {self._record.name} was deleted while it was worked on")
            self._record = stored
            lease = stored.body.get(LEASE) or {}
            if (lease.get("owner"), lease.get("boot")) != (self._owner, self._boot):
                raise LeaseLost(f"the lease of {stored.kind} {stored.name} is no longer ours")
            return stored

    def change(self, edit: Callable[[dict[str, Any]], str | None]) -> Record:
        """Apply `edit` to a copy of the stored body and store it; `edit` returns the new state or None (unchanged).

        `edit` is called again on a fresh copy when a concurrent change won, so it must only touch its argument.
        Raises LeaseLost; whatever `edit` raises leaves the record unchanged.
        """
        with self._lock:
            while True:
                stored = self.refresh()
                body = copy.deepcopy(dict(stored.body))
                state = edit(body)
                try:
                    self._record = self._records.update(stored, body, state)
                    return self._record
                except Conflict:
                    continue

    def renew(self) -> None:
        """Extend the lease."""
        until = self._clock.now() + timedelta(seconds=self._lease_s)

        def extend(body: dict[str, Any]) -> None:
            body[LEASE] = {"owner": self._owner, "boot": self._boot, "until": until.isoformat()}

        self.change(extend)

    def release(self) -> None:
        """Give the lease up, so that any supervisor may claim the job at once."""

        def drop(body: dict[str, Any]) -> None:
            body.pop(LEASE, None)

        self.change(drop)

    def wait(self, seconds: float) -> None:
        """Sleep, or less when the record may have changed or the enclave stops."""
        self._woken.wait(seconds)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()
