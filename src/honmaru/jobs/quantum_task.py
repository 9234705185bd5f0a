"""Quantum tasks: durable, queued, run on warm workers, cancelled for real.

A task is a record. Its creation is durable before it is answered; `QuantumTasks` runs it on a worker at its label,
stores results.json as the session that created it, and sets the final status by compare-and-swap. After `kill -9` every
task that had not ended is run again; its results are written under the same key, so it ends once.

Invariants:
- A task acts as its creator, at the creator's label: what the creator may no longer do when the task ends, fails it.
- COMPLETED is stored only when results.json is durable in S3.
- A cancelled task's process is killed; whatever it still said is dropped.
- Tasks of hybrid jobs go before others; within both, first come, first served. What a session is told about a queue
  counts only tasks that its label dominates.

This is not a `JobKind`: a supervisor's claim costs two durable writes and a thread start, which is more than a small
circuit costs. The data directory's lock proves that no other process runs these tasks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from honmaru.core.errors import Conflict, IntegrityFault, RequestFault, Throttled
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.jobs.kept_sessions import session_of
from honmaru.jobs.kinds import JobRecords
from honmaru.jobs.quantum_devices import PRICE_PER_MINUTE_USD, Device, Devices, estimated_qubits, price_usd
from honmaru.jobs.quantum_spending import Spending
from honmaru.jobs.quantum_states import CLAIMABLE, FINAL, after
from honmaru.jobs.quantum_workers import QuantumWorkers, Worker, WorkerGone, WorkerRefused
from honmaru.ports.buckets import Buckets
from honmaru.ports.runtime import Clock

if TYPE_CHECKING:
    from honmaru.security.guard import Record

_log = logging.getLogger(__name__)

SERVICE, KIND = "braket", "quantum-task"
RESULTS = "results.json"
ATTEMPTS = 3
_SHOWN_AFTER_S = 0.25
"""A task that runs longer is stored as RUNNING."""
_LARGE_QUBITS = 15
_CHECK_CPU_S, _CHECK_S = 15.0, 45.0
"""Processor time that interpreting a program may take, and how long its caller waits for it at most."""
_CHECK_BYTES = 1 << 30


class Trusting(Protocol):
    """What tasks need of `security.guard.Guard`: they are looked after across labels, as jobs are."""

    def trusted(self, service: str, kinds: Collection[str]) -> JobRecords: ...


@dataclass(eq=False, slots=True)
class _Task:
    """A task that has not ended, in memory."""

    record: Record
    device: Device
    threads: int
    memory_bytes: int
    priority: bool
    worker: Worker | None = None
    running: bool = False
    cancelled: bool = False
    attempts: int = 0
    waiters: list[Callable[[], object]] = field(default_factory=list)


_Key = tuple[str, str, str]


class QuantumTasks:
    """The queue and its threads. Thread-safe; `start` once, `stop` once."""

    def __init__(
        self,
        guard: Trusting,
        buckets: Buckets,
        workers: QuantumWorkers,
        devices: Devices,
        spending: Spending,
        clock: Clock,
        *,
        cores: int,
    ) -> None:
        self._records = guard.trusted(SERVICE, frozenset({KIND}))
        self._buckets, self._workers, self._devices, self._spending = buckets, workers, devices, spending
        self._clock, self._cores = clock, cores
        self._changed = threading.Condition()
        self._waiting: list[_Task] = []
        self._known: dict[_Key, _Task] = {}
        self._memory = 0
        self._leaving = False
        self._threads: list[threading.Thread] = []

    # Life

    def start(self) -> None:
        """Take up what an earlier process left, and begin to run tasks."""
        if self._devices.prefix is None:
            return
        self._workers.recover()
        for state in sorted(FINAL):
            for record in self._records.list(KIND, state=state):
                self._settle(record)
        for state in sorted(CLAIMABLE):
            for record in self._records.list(KIND, state=state):
                self._spending.reserve(session_of(record), record.body["device"], record.name, record.created, ())
                self.submit(record)
        for number in range(running_tasks(self._cores)):
            thread = threading.Thread(target=self._run_for_ever, name=f"quantum-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop; tasks that have not ended are run by the next start."""
        with self._changed:
            self._leaving = True
            running = [task for task in self._known.values() if task.worker is not None]
            self._changed.notify_all()
        for task in running:
            if task.worker is not None:
                task.worker.close()
        for thread in self._threads:
            thread.join(5)
        self._workers.close()

    # What the service calls

    def check(self, session: Session, device: Device, action: str, shots: int) -> None:
        """Interpret a program in a worker at the session's label.

        Raises WorkerRefused when it is wrong or takes more than 15 s of processor time to interpret, Throttled when the
        machine was too busy to do so within 45 s. A worker that ended is left to the run, which makes the same check.
        """
        request = self._request("check", device, action, shots, _CHECK_BYTES)
        request["cpu_s"] = _CHECK_CPU_S
        worker = self._workers.take(session.account, session.label)
        try:
            worker.send(request)
            if not worker.ready(_CHECK_S):
                worker.close()
                raise Throttled(f"the program was not interpreted within {_CHECK_S:.0f} s; try again later")
            for _ in worker.answer():
                pass
        except WorkerGone:
            return
        finally:
            self._workers.give(session.account, session.label, worker)

    def submit(self, record: Record) -> None:
        """Queue a task that was just made (or left over)."""
        device = next(each for each in self._devices.all if each.name == record.body["device"])
        qubits = estimated_qubits(device, json.loads(record.body["action"]))
        task = _Task(
            record,
            device,
            self._cores if qubits > _LARGE_QUBITS else 1,
            min(device.memory_bytes(qubits), self._devices.memory_bytes),
            bool(record.body.get("job_arn")),
            cancelled=record.state == "CANCELLING",
        )
        with self._changed:
            self._known[_key(record)] = task
            self._waiting.append(task)
            self._waiting.sort(key=lambda each: not each.priority)
            self._changed.notify()

    def cancel(self, record: Record) -> None:
        """The record says CANCELLING: take the task out of the queue, or kill what runs."""
        with self._changed:
            task = self._known.get(_key(record))
            if task is None:
                return
            task.cancelled = True
            queued = task in self._waiting
            if queued:
                self._waiting.remove(task)
            worker = task.worker
        if worker is not None:
            worker.close()
        if queued:
            self._end(task, "cancelled", {})

    def status(self, record: Record) -> str:
        """The status as it is now: a task that runs may still be stored as QUEUED."""
        task = self._known.get(_key(record))
        return "RUNNING" if task is not None and task.running and record.state == "QUEUED" else record.state

    async def ended(self, record: Record, seconds: float) -> None:
        """Wait until a task has ended, at most so long; then it must be read again."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            task = self._known.get(_key(record))
            if task is None:
                return
            task.waiters.append(lambda: loop.call_soon_threadsafe(event.set))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    def position(self, record: Record, high: Label) -> int | None:
        """Place in the queue as seen from `high`, from 1; None when the task does not wait."""
        with self._changed:
            ahead = 0
            for task in self._waiting:
                if _key(task.record) == _key(record):
                    return ahead + 1
                if task.device.name == record.body["device"] and high.dominates(task.record.label):
                    ahead += 1
        return None

    def queue_sizes(self, device: Device, account: str, high: Label) -> tuple[int, int]:
        """(normal, priority) tasks that wait for a device, as seen from `high`."""
        with self._changed:
            seen = [
                task.priority
                for task in self._waiting
                if task.device is device and task.record.account == account and high.dominates(task.record.label)
            ]
        return len(seen) - sum(seen), sum(seen)

    # The threads

    def _run_for_ever(self) -> None:
        while True:
            with self._changed:
                while not self._leaving and not self._fits():
                    if not self._changed.wait(30):
                        break
                if self._leaving:
                    return
                if not self._fits():
                    task = None
                else:
                    task = self._waiting.pop(0)
                    task.running = True
                    self._memory += task.memory_bytes
            if task is None:
                self._workers.retire_idle()
                continue
            try:
                self._run(task)
            except Exception:  # the thread must outlive any fault of one task; it says so and takes the next
                _log.exception("quantum task %s", task.record.name)
                self._retry(task, "InternalServiceException: the task could not be run. Please try again.")
            finally:
                with self._changed:
                    self._memory -= task.memory_bytes
                    self._changed.notify_all()

    def _fits(self) -> bool:
        """Whether the first task may start: alone always, beside others while memory is left."""
        if not self._waiting:
            return False
        return self._memory == 0 or self._memory + self._waiting[0].memory_bytes <= self._devices.memory_bytes

    def _run(self, task: _Task) -> None:
        record = task.record
        if self._is_cancelled(task):
            self._end(task, "cancelled", {})
            return
        session = session_of(record)
        worker = self._workers.take(record.account, record.label)
        with self._changed:
            task.worker = worker
        cancelled = self._is_cancelled(task)
        began = self._clock.monotonic()
        try:
            if cancelled:
                worker.close()
                self._end(task, "cancelled", {})
                return
            body = self._request(
                "run", task.device, record.body["action"], record.body["shots"], task.device.limits.memory_bytes
            )
            body["task"] = {
                "id": record.name, "deviceArn": record.body["device_arn"], "createdAt": stamp(record.created),
            }  # fmt: skip
            worker.send({**body, "threads": task.threads})
            if not self._answered(task, worker, began):
                return
            self._buckets.write(
                session, record.body["bucket"], f"{record.body['directory']}/{RESULTS}", worker.answer()
            )
            self._end(task, "complete", {"seconds": self._clock.monotonic() - began})
        except WorkerRefused as refused:
            self._end(task, "fail", {"failure": refused.message, "seconds": self._clock.monotonic() - began})
        except WorkerGone as gone:
            if self._is_cancelled(task):
                self._end(task, "cancelled", {"seconds": self._clock.monotonic() - began})
            else:
                self._retry(task, f"the simulator ended unexpectedly: {gone}; it may have needed too much memory")
        except (RequestFault, IntegrityFault) as fault:
            self._end(task, "fail", {"failure": f"the results could not be stored: {fault.message}"})
        finally:
            with self._changed:
                task.worker = None
            self._workers.give(record.account, record.label, worker)

    def _is_cancelled(self, task: _Task) -> bool:
        with self._changed:
            return task.cancelled

    def _answered(self, task: _Task, worker: Worker, began: float) -> bool:
        """Wait for the worker; False when the task was ended at its time limit."""
        limit = task.device.limits.seconds
        left = task.record.body.get("left_usd")
        if left is not None:
            limit = min(limit, max(3.0, float(Decimal(left)) / PRICE_PER_MINUTE_USD * 60))
        if not worker.ready(_SHOWN_AFTER_S):
            self._change(task, "run", {"attempt": task.attempts + 1, "started": self._clock.now().isoformat()})
            while not worker.ready(1.0):
                if self._clock.monotonic() - began > limit:
                    worker.close()
                    self._end(
                        task,
                        "fail",
                        {"failure": f"the task ran longer than {limit:.0f} s and was ended", "seconds": limit},
                    )
                    return False
        return True

    def _retry(self, task: _Task, reason: str) -> None:
        if self._leaving:
            return  # the next start runs it
        task.attempts += 1
        task.running = False
        if task.attempts >= ATTEMPTS:
            self._end(task, "fail", {"failure": reason})
            return
        with self._changed:
            if not self._leaving:
                self._waiting.append(task)
                self._changed.notify()

    def _end(self, task: _Task, event: str, facts: Mapping[str, Any]) -> None:
        seconds = facts.get("seconds")
        more: dict[str, Any] = {**facts, "ended": self._clock.now().isoformat()}
        if seconds is not None:
            more["usd"] = price_usd(float(seconds))
        self._change(task, event, more)
        self._settle(task.record)
        with self._changed:
            self._known.pop(_key(task.record), None)
            waiters = list(task.waiters)
        for wake in waiters:
            with suppress(RuntimeError):  # the loop that waited is closed
                wake()

    def _change(self, task: _Task, event: str, facts: Mapping[str, Any]) -> None:
        """Store an event and facts; a task that ended meanwhile, or is gone, stays as it is."""
        while True:
            try:
                state = after(task.record.state, event)
                task.record = self._records.update(task.record, {**task.record.body, **facts}, state)
                return
            except Conflict:
                stored = self._records.reread(task.record)
                if stored is None or stored.state in FINAL:
                    return
                task.record = stored

    def _settle(self, record: Record) -> None:
        body = record.body
        if body.get("usd") is None:
            self._spending.forget(record.account, record.label, body["device"], record.name)
            return
        ended = datetime.fromisoformat(body["ended"])
        self._spending.settle(record.account, record.label, body["device"], record.name, ended, float(body["usd"]))

    def _request(self, operation: str, device: Device, action: str, shots: int, memory_bytes: int) -> dict[str, Any]:
        return {
            "op": operation,
            "device": device.name,
            "action": action,
            "shots": shots,
            "limits": device.limits.for_worker(),
            "memory_bytes": memory_bytes,
        }


def running_tasks(cores: int) -> int:
    """Tasks at the same time: while some compute, others read their program or write their result."""
    return cores + 2


def _key(record: Record) -> _Key:
    return record.account, record.label.canonical, record.name


def stamp(at: datetime) -> str:
    """A time in at most 24 characters, which is what Braket's result schema takes."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
