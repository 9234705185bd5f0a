"""The supervisor: finds jobs that need work, claims each with a lease, and runs its kind's `run` in a thread.

Invariants:
- A job is run by at most one live supervisor: the claim is a compare-and-swap, and a foreign lease is honoured until
  it expires. A lease of an earlier process of the same owner is taken over at once (the data directory's lock proves
  that process dead), so after `kill -9` work goes on without a wait.
- A job that keeps failing for the platform's own reasons is tried a bounded number of times, then failed with a
  reason; a fault of the job itself fails it at once. No job stays claimable for ever and nothing fails silently.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from honmaru.core.errors import Conflict, HonmaruError, IntegrityFault, RequestFault
from honmaru.core.labels import Label
from honmaru.jobs.kinds import LEASE, Claim, JobKind, JobRecords, LeaseLost
from honmaru.ports.runtime import Clock, Ids

if TYPE_CHECKING:
    from honmaru.security.guard import Record

_log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Runs of one job that may end in a platform fault before the job is failed."""

BACKOFF_S = 1.0
"""Wait before the first of these runs is repeated; doubled each time."""

_Key = tuple[str, str, str, str, str]


class Trusting(Protocol):
    """What the supervisor needs of `security.guard.Guard`."""

    def trusted(self, service: str, kinds: Collection[str]) -> JobRecords: ...


class Supervisor:
    """Durable job runner over any number of kinds.

    Args:
        kinds: The kinds of jobs to look after.
        guard: Where trusted records come from; the supervisor is one of the guard's two trusted subjects.
        owner: Name of this enclave. At most one process with this name may run (the caller holds the data lock).
        poll_s: How often records are looked through when nobody calls `wake`.
    """

    def __init__(
        self,
        kinds: Sequence[JobKind],
        guard: Trusting,
        *,
        clock: Clock,
        ids: Ids,
        owner: str,
        poll_s: float = 2.0,
        lease_s: float = 300.0,
    ) -> None:
        self._kinds = [(kind, guard.trusted(kind.service, frozenset({kind.kind}))) for kind in kinds]
        self._clock = clock
        self._owner = owner
        self._boot = ids.uuid()
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._leaving = threading.Event()
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[_Key, tuple[JobKind, Claim, threading.Thread]] = {}
        self._faults: dict[_Key, int] = {}
        self._not_before: dict[_Key, float] = {}
        self._scanner: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look for work; jobs of an earlier process are taken over now."""
        self._scanner = threading.Thread(target=self._scan_for_ever, name="job-supervisor", daemon=True)
        self._scanner.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop looking after jobs; sandboxes go on running and are adopted by the next start."""
        self._leaving.set()
        self.wake()
        if self._scanner is not None:
            self._scanner.join(timeout_s)
        with self._lock:
            threads = [thread for _, _, thread in self._running.values()]
        deadline = self._clock.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - self._clock.monotonic()))

    def wake(self) -> None:
        """Look for work now: a job was created, or its record changed. Cheap, never blocks."""
        with self._lock:
            for _, claim, _ in self._running.values():
                claim.wake()
        self._woken.set()

    def running(self) -> list[tuple[str, str, Label]]:
        """(account, kind, label) of every job that is worked on now."""
        with self._lock:
            records = [claim.record for _, claim, _ in self._running.values()]
        return [(record.account, record.kind, record.label) for record in records]

    def _scan_for_ever(self) -> None:
        renewed = self._clock.monotonic()
        while not self._leaving.is_set():
            try:
                self._scan()
                if self._clock.monotonic() - renewed > self._lease_s / 3:
                    self._renew()
                    renewed = self._clock.monotonic()
            except Exception:  # the scanner must outlive any fault of a store; it says so and looks again
                _log.exception("looking for jobs failed; trying again")
            self._woken.wait(self._poll_s)
            self._woken.clear()

    def _renew(self) -> None:
        with self._lock:
            claims = [claim for _, claim, _ in self._running.values()]
        for claim in claims:
            try:
                claim.renew()
            except LeaseLost:
                claim.wake()

    def _scan(self) -> None:
        for kind, records in self._kinds:
            waiting = [record for state in sorted(kind.claimable) for record in records.list(kind.kind, state=state)]
            for record in sorted(waiting, key=lambda record: record.created):
                with self._lock:
                    busy = sum(1 for running, _, _ in self._running.values() if running is kind)
                    known = _key(record) in self._running
                if self._leaving.is_set() or busy >= kind.slots:
                    break
                if not known and self._clock.monotonic() >= self._not_before.get(_key(record), 0.0):
                    self._claim(kind, records, record)

    def _claim(self, kind: JobKind, records: JobRecords, record: Record) -> None:
        lease = record.body.get(LEASE) or {}
        now = self._clock.now()
        foreign = lease and lease.get("owner") != self._owner
        if foreign and datetime.fromisoformat(str(lease["until"])) > now:
            return
        body = copy.deepcopy(dict(record.body))
        until = now + timedelta(seconds=self._lease_s)
        body[LEASE] = {"owner": self._owner, "boot": self._boot, "until": until.isoformat()}
        try:
            record = records.update(record, body, None)
        except Conflict:
            return
        claim = Claim(
            records,
            record,
            owner=self._owner,
            boot=self._boot,
            clock=self._clock,
            lease_s=self._lease_s,
            leaving=self._leaving,
        )
        thread = threading.Thread(target=self._work, args=(kind, claim), name=f"job-{record.name}", daemon=True)
        with self._lock:
            self._running[_key(record)] = (kind, claim, thread)
        thread.start()

    def _work(self, kind: JobKind, claim: Claim) -> None:
        key = _key(claim.record)
        try:
            kind.run(claim)
            self._faults.pop(key, None)
        except LeaseLost as lost:
            _log.warning("%s", lost.message)
        except (RequestFault, IntegrityFault) as fault:
            self._fail(kind, claim, fault.message)
        except Exception as fault:  # a platform fault: nothing about the job itself is known to be wrong
            _log.exception("%s %s: a run failed", kind.kind, claim.record.name)
            self._faults[key] = self._faults.get(key, 0) + 1
            self._not_before[key] = self._clock.monotonic() + BACKOFF_S * 2.0 ** self._faults[key]
            if self._faults[key] >= ATTEMPTS:
                reason = fault.message if isinstance(fault, HonmaruError) else type(fault).__name__
                self._fail(kind, claim, f"InternalServerError: {reason}. Please try again.")
        finally:
            with self._lock:
                self._running.pop(key, None)
            if not self._leaving.is_set():
                self._woken.set()

    def _fail(self, kind: JobKind, claim: Claim, reason: str) -> None:
        try:
            kind.fail(claim, reason)
        except LeaseLost as lost:
            _log.warning("%s", lost.message)
        except Exception:  # cannot even be recorded: the job stays claimable and is tried again
            _log.exception("%s %s: its failure could not be recorded", kind.kind, claim.record.name)


def _key(record: Record) -> _Key:
    return (record.account, record.service, record.kind, record.name, record.label.canonical)
