"""The enclave's first process and its workers: starts them, writes their entries, deletes for all, buries the dead.

Invariants:
- An entry that a worker brought is told durable only after the ledger says so.
- When a worker has ended, however it did, its entries that came are in the ledger, those of changes that it committed
  and did not bring are put there, each once; then another worker takes its place at the same listening socket.
- A blob that a worker lets go is deleted when no process reads it. While this process sweeps, it knows first of every
  blob that a worker's record is about to name.
- A worker ends with this process, at the latest when its channel does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from honmaru.app.workers.channel import Channel, ChannelClosed, Kind
from honmaru.app.workers.lent import ENTRY, NUMBER
from honmaru.core.errors import ConfigurationFault, HonmaruError, LedgerUnavailable, StoreUnavailable
from honmaru.gateway.server import listeners, serve_forwarded
from honmaru.gateway.shared_rates import shared_memory
from honmaru.ports.records import OWNER

if TYPE_CHECKING:
    from honmaru.app.enclave import Enclave
    from honmaru.app.unsealing import Unsealed

_LOG = logging.getLogger("honmaru.workers")
_HELD = 65_536
"""Event ids of a worker's newest changes that are kept, to know after its end which of them the ledger has."""
_BURIED_S = 60.0
"""For how long the outbox of an ended worker is looked at: a database may still carry out its last transaction."""
_READY_S, _STOP_S, _ANSWER_S = 120.0, 14.0, 10.0
_QUICK_S = 10.0
"""A worker that ended sooner than that is started again later and later."""
_POLL_S = 0.1


class _Pending:
    """An entry of a worker, on its way to the disk. Settled by the ledger's writer."""

    __slots__ = ("_event", "_number", "_worker")

    def __init__(self, worker: _Worker, number: int, event: bytes) -> None:
        self._worker, self._number, self._event = worker, number, event

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def cancelled(self) -> bool:
        return False

    def set_result(self, _receipt: Any) -> None:
        if self._event:
            self._worker.held.append(self._event.decode())
        self._worker.settled(self._number, durable=True)

    def set_exception(self, _fault: BaseException) -> None:
        self._worker.settled(self._number, durable=False)


class _Worker:
    """One worker process, as the first process knows it."""

    def __init__(self, fleet: Fleet, number: int, owner: str, listening: socket.socket, rates_memory: int) -> None:
        self.number, self.owner = number, owner
        self._fleet = fleet
        self.held: deque[str] = deque(maxlen=_HELD)
        self.ready = threading.Event()
        self.telling = threading.Event()
        """Set when the worker tells what its records name."""
        self.refused = True
        """Whether it must be told again that the ledger can be written."""
        self.begun = time.monotonic()
        self._outstanding = 0
        self._count = threading.Condition()
        ours, theirs = socket.socketpair()
        with theirs:
            given = (theirs.fileno(), listening.fileno(), rates_memory)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "honmaru.app.workers", *map(str, given)],
                stdin=subprocess.DEVNULL,
                pass_fds=given,
                start_new_session=True,  # the terminal's signals are for the first process alone
            )
        self.channel = Channel(ours, self._handle, lambda: None)

    def say(self, kind: Kind, *parts: bytes) -> None:
        """As `Channel.send`; one that is gone is told nothing."""
        with contextlib.suppress(ChannelClosed):
            self.channel.send(kind, *parts)

    def settled(self, number: int, *, durable: bool) -> None:
        self.refused = self.refused or not durable
        self.say(Kind.DURABLE if durable else Kind.REFUSED, NUMBER.pack(number))
        with self._count:
            self._outstanding -= 1
            self._count.notify_all()

    def written(self, timeout_s: float) -> bool:
        """Whether everything that it brought came to an end within the time."""
        with self._count:
            return self._count.wait_for(lambda: self._outstanding == 0, timeout_s)

    def _handle(self, kind: int, payload: bytes) -> None:
        if kind == Kind.ENTRY:
            self._append(payload)
        elif kind in (Kind.DROP, Kind.FREE):
            self._fleet.blobs.put((self.owner, kind, payload.decode()))
        elif kind == Kind.SPARE:
            self._fleet.guard.vault.spare(orjson.loads(payload[NUMBER.size :]))
            self.say(Kind.SPARED, payload[: NUMBER.size])
        elif kind == Kind.TELLING:
            self.telling.set()
        elif kind == Kind.COUNTED:
            self._fleet.enclave.meter.add(self.owner, orjson.loads(payload))
        elif kind == Kind.READY:
            self.ready.set()

    def _append(self, payload: bytes) -> None:
        number, event_length, label_length = ENTRY.unpack_from(payload)
        label_at = ENTRY.size + event_length
        body_at = label_at + label_length
        pending = _Pending(self, number, payload[ENTRY.size : label_at])
        with self._count:
            self._outstanding += 1
        try:
            label = self._fleet.guard.label(payload[label_at:body_at].decode())
            self._fleet.enclave.ledger.append_encoded(label, payload[body_at:], pending)
        except HonmaruError as fault:
            pending.set_exception(fault)


class Fleet:
    """The workers of an enclave. `security.guard.Peers` for the first process's guard.

    Args:
        unsealed: What opened the root key, for the workers.
    """

    def __init__(self, enclave: Enclave, unsealed: Unsealed | None) -> None:
        self.enclave = enclave
        self._unsealed = unsealed
        self.rates_memory = shared_memory(tables=2)
        self._listening: Sequence[socket.socket] = ()
        self._workers: dict[int, _Worker] = {}
        self._restarts: dict[int, int] = {}
        self._ended: dict[str, tuple[frozenset[str], float]] = {}
        self._lock = threading.Lock()
        self._burying = threading.Lock()
        self._stopping = threading.Event()
        self._sweeping = True  # until the first sweep has ended
        self._threads: list[threading.Thread] = []
        self.blobs: queue.SimpleQueue[tuple[str, int, str] | None] = queue.SimpleQueue()
        self._readers: dict[str, set[str]] = {}
        """Path of a blob that is to be deleted → processes that may still read it."""
        self.stopped = threading.Event()
        """Set when no worker runs any more."""

    @property
    def guard(self) -> Any:
        return self.enclave.guard

    # Life

    def serve(self, ready: Callable[[int], None]) -> None:
        """Serve until the enclave's `stopping` is set: the workers hold the port, and what they may not carry out comes
        to this process over a socket of its own. `ready` is called with the port once all of them answer.

        Raises ConfigurationFault."""
        enclave, settings = self.enclave, self.enclave.settings
        listening = listeners(settings.host, settings.port, settings.workers)
        enclave.port = listening[0].getsockname()[1]
        failed: list[Exception] = []

        def lead() -> None:
            try:
                self.start(listening)
                ready(enclave.port)
                enclave.stopping.wait()
            except Exception as fault:
                failed.append(fault)
                enclave.stopping.set()
            finally:
                self.stop()

        leading = threading.Thread(target=lead, name="fleet", daemon=True)
        serve_forwarded(
            enclave.gateway,
            path=settings.data / "run" / "forward.sock",
            started=self.pids,
            ready=leading.start,
            stopping=self.stopped,
        )
        for listener in listening:
            listener.close()
        if failed:
            raise failed[0]

    def start(self, listening: Sequence[socket.socket]) -> None:
        """Starts a worker for each listening socket (`gateway.server.listeners`); returns when all of them answer.

        Raises ConfigurationFault."""
        self._listening = listening
        self._run(self._reap, "blobs")
        self._run(self._tell_writable, "ledger state")
        with self._lock:
            workers = [self._spawn(number) for number in range(1, len(listening) + 1)]
        deadline = time.monotonic() + _READY_S
        for worker in workers:
            while not worker.ready.wait(0.05):
                code = worker.process.poll()
                if code is not None or time.monotonic() > deadline:
                    how = "took too long" if code is None else f"ended with {code}"
                    raise ConfigurationFault([f"worker {worker.number} did not start: it {how}; see the lines above"])
        for worker in workers:
            self._run(lambda number=worker.number: self._watch(number), f"worker {worker.number}")

    def stop(self) -> None:
        """Has the workers end what they answer; kills those that do not end. Idempotent."""
        self._stopping.set()
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for worker in workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._bury(worker)
        self.blobs.put(None)
        for thread in self._threads:
            thread.join(_ANSWER_S)
        self.stopped.set()

    def pids(self) -> frozenset[int]:
        """Process ids of the workers: whom the socket for forwarded requests listens to."""
        return frozenset(worker.process.pid for worker in list(self._workers.values()))

    def describe(self) -> list[dict[str, Any]]:
        """For `honmaru status`."""
        return [
            {
                "number": number,
                "pid": worker.process.pid,
                "answers": worker.ready.is_set() and worker.process.poll() is None,
                "restarts": self._restarts.get(number, 0),
            }
            for number, worker in sorted(self._workers.items())
        ]

    def _run(self, work: Any, name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _spawn(self, number: int) -> _Worker:
        """Starts a worker. Under the lock, so that it is told of a sweep either at its birth or by the sweep."""
        enclave = self.enclave
        owner = enclave.ids.secret(OWNER // 2).hex()
        self.guard.lend_outbox(owner)
        worker = self._workers[number] = _Worker(self, number, owner, self._listening[number - 1], self.rates_memory)
        if self._sweeping:
            worker.telling.set()
        hello = {
            "settings": {**dataclasses.asdict(enclave.settings), "data": str(enclave.settings.data)},
            "port": enclave.port,
            "owner": owner,
            "sweeping": self._sweeping,
            "root": None if self._unsealed is None else [self._unsealed.key.hex(), self._unsealed.kind],
        }
        worker.channel.start()
        worker.say(Kind.HELLO, orjson.dumps(hello))
        return worker

    def _watch(self, number: int) -> None:
        """Buries a worker that ended, and starts the next one at its socket."""
        pause = 0.1
        buried: _Worker | None = None
        while not self._stopping.is_set():
            worker = self._workers[number]
            code = worker.process.wait()
            if self._stopping.is_set():
                return
            if worker is not buried:
                _LOG.error("worker %d (pid %d) ended with %d; another one is started", number, worker.process.pid, code)
                self._bury(worker)
                pause = min(10.0, pause * 2) if time.monotonic() - worker.begun < _QUICK_S else 0.1
                buried = worker
            else:
                pause = 10.0
            if self._stopping.wait(pause):
                return
            with self._lock:
                if self._stopping.is_set():
                    return
                try:
                    self._spawn(number)
                except OSError as fault:  # no memory, no processes: tried again after a pause
                    _LOG.error("worker %d could not be started: %s", number, fault.strerror)
                    continue
                self._restarts[number] = self._restarts.get(number, 0) + 1

    def _bury(self, worker: _Worker) -> None:
        """Settles what a worker left. Its process has ended."""
        whole = worker.channel.drained(_ANSWER_S) and worker.written(_ANSWER_S)
        if not whole:
            _LOG.error("entries of worker %d wait for the ledger", worker.number)
        worker.channel.close()
        self.blobs.put((worker.owner, Kind.READY, ""))
        self.enclave.blobs.forget(worker.owner)
        self.enclave.meter.keep(worker.owner)
        self._ended[worker.owner] = (frozenset(worker.held), time.monotonic() + _BURIED_S)
        self.take_over()

    def take_over(self) -> None:
        """Puts into the ledger what ended workers committed and did not bring. A background step."""
        with self._burying:  # two that read one outbox at a time would both append it
            for owner, (held, until) in list(self._ended.items()):
                try:
                    self.guard.take_over(owner, held)
                except (LedgerUnavailable, StoreUnavailable):
                    continue  # tried again with the next step, or by the next start
                if time.monotonic() > until:
                    self._ended.pop(owner, None)

    # The ledger

    def _tell_writable(self) -> None:
        told = True
        while not self._stopping.wait(_POLL_S):
            writable = self.enclave.ledger.writable
            for worker in list(self._workers.values()):
                if writable != told or worker.refused:
                    worker.refused = False
                    worker.say(Kind.WRITABLE, b"\1" if writable else b"\0")
            told = writable

    # Blobs: `security.guard.Peers`

    def drop(self, path: str) -> None:
        self.blobs.put(("", Kind.DROP, path))

    def spare(self, _blob_ids: Sequence[str]) -> None:
        """What this process names, its own vault knows."""
        raise RuntimeError("only workers tell what they name")

    def sweeping(self, on: bool) -> None:
        with self._lock:
            self._sweeping = on
            workers = list(self._workers.values())
        for worker in workers:
            if on and worker.telling.is_set():
                continue  # since its birth
            worker.telling.clear()
            worker.say(Kind.SWEEP, b"\1" if on else b"\0")
        for worker in workers if on else ():
            deadline = time.monotonic() + _ANSWER_S
            while not worker.telling.wait(0.05) and worker.process.poll() is None:
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"worker {worker.number} does not answer: nothing is swept")

    def _reap(self) -> None:
        """Deletes what nobody reads: the one thread that decides it."""
        while (task := self.blobs.get()) is not None:
            owner, kind, path = task
            try:
                if kind == Kind.DROP:
                    self._begin_to_delete(path)
                elif kind == Kind.FREE:
                    self._freed(owner, path)
                else:  # the process has ended
                    for each in [path for path, readers in self._readers.items() if owner in readers]:
                        self._freed(owner, each)
            except HonmaruError as fault:
                _LOG.error("a blob was not deleted: %s; the next sweep tries again", type(fault).__name__)

    def _begin_to_delete(self, path: str) -> None:
        if path in self._readers:
            return
        with self._lock:
            workers = [worker for worker in self._workers.values() if worker.process.poll() is None]
        self._readers[path] = {"", *(worker.owner for worker in workers)}
        self.guard.vault.await_readers(path, lambda: self.blobs.put(("", Kind.FREE, path)))
        for worker in workers:
            worker.say(Kind.DOOM, path.encode())

    def _freed(self, owner: str, path: str) -> None:
        readers = self._readers.get(path)
        if readers is None:
            return
        readers.discard(owner)
        if readers:
            return
        del self._readers[path]
        self.guard.vault.delete_now(path)
        for worker in list(self._workers.values()):
            worker.say(Kind.GONE, path.encode())
