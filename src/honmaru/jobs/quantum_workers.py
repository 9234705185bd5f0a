"""Warm simulators: one sandbox per account and label, with a connection (a process of its own) per task that runs.

Invariants:
- A sandbox serves one account at one label; no process ever sees programs of two labels.
- Closing a connection ends the process behind it at once: that is how a task is cancelled or stopped at its limit.
- Nothing of a sandbox of an earlier enclave serves again: `recover` ends them.
- What a worker answers is not trusted: frames and bodies have limits, and whatever is wrong is a `WorkerGone`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from honmaru.core.errors import ExecutorLost, HonmaruError
from honmaru.core.labels import Label
from honmaru.jobs.quantum_devices import ENVIRONMENT
from honmaru.ports.executors import Environment, Executor, JobSpec, Phase
from honmaru.ports.runtime import Clock, Ids

SOCKET = "s"
SOCKETS_INSIDE = "/run/quantum"
_FRAME = struct.Struct(">I")
_MAX_HEAD = 1 << 20
_MAX_BODY = 1 << 30
_CHUNK = 1 << 20
_START_S = 120.0
_PROCESSES = 4096


class WorkerGone(Exception):
    """The worker ended, was closed, or broke the protocol."""


class WorkerRefused(Exception):
    """The worker says that the task cannot be run. `kind` is "refused" or "memory"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Environments(Protocol):
    """What the workers need of the registry of environments."""

    def named(self, name: str) -> Environment: ...


class Worker:
    """One connection. Use from one thread; `close` from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.usable = True

    def close(self) -> None:
        """End the process behind the connection, whatever it does."""
        self.usable = False
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._connection.close()

    def send(self, request: Mapping[str, Any]) -> None:
        """Raises WorkerGone."""
        data = json.dumps(request).encode()
        try:
            self._connection.settimeout(30)
            self._connection.sendall(_FRAME.pack(len(data)) + data)
        except OSError as fault:
            self.usable = False
            raise WorkerGone(f"the worker took no request ({type(fault).__name__})") from None

    def ready(self, seconds: float) -> bool:
        """Whether an answer, or the end, came within the time."""
        try:
            watch = select.poll()
            watch.register(self._connection, select.POLLIN)
            return bool(watch.poll(seconds * 1000))
        except (OSError, ValueError):
            return True

    def answer(self) -> Iterator[bytes]:
        """The body of the answer to the last request. Raises WorkerRefused or WorkerGone, before or amid the bytes."""
        (length,) = _FRAME.unpack(self._exactly(_FRAME.size))
        if length > _MAX_HEAD:
            self._broken("a head that is too large")
        try:
            head = json.loads(self._exactly(length))
            size = int(head.get("size") or 0)
        except (ValueError, AttributeError, TypeError, RecursionError):
            self._broken("a head that is not JSON")
        if not head.get("ok"):
            raise WorkerRefused(str(head.get("kind")), str(head.get("message"))[:1000])
        if not 0 <= size <= _MAX_BODY:
            self._broken("a body that is too large")
        return self._body(size)

    def _body(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self._exactly(min(size, _CHUNK))
            size -= len(chunk)
            yield chunk

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        try:
            self._connection.settimeout(None)
            while len(data) < size:
                chunk = self._connection.recv(size - len(data))
                if not chunk:
                    self._broken("no more answer")
                data += chunk
        except OSError as fault:
            self._broken(type(fault).__name__)
        return bytes(data)

    def _broken(self, what: str) -> None:
        self.usable = False
        raise WorkerGone(f"the worker gave {what}")


@dataclass(slots=True)
class _Pool:
    """The sandbox of one account and label."""

    job_id: str
    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    started: bool = False
    idle: list[Worker] = field(default_factory=list)
    busy: int = 0
    used_at: float = 0.0


class QuantumWorkers:
    """The warm workers of an enclave. Thread-safe.

    Args:
        directory: Where the sandboxes' folders live; 0700.
        idle: Workers of one sandbox that are kept for the next tasks: as many as work at the same time, for a worker's
            start costs more than a small circuit.
        memory_bytes: What one sandbox may take altogether.
        idle_s: A sandbox without a task for so long is ended.
    """

    def __init__(
        self,
        executor: Executor,
        environments: Environments,
        clock: Clock,
        ids: Ids,
        directory: Path,
        *,
        cores: int,
        idle: int,
        memory_bytes: int,
        idle_s: float = 900.0,
    ) -> None:
        self._executor, self._environments, self._clock, self._ids = executor, environments, clock, ids
        self._directory, self._cores, self._idle = directory, cores, idle
        self._memory, self._idle_s = memory_bytes, idle_s
        self._pools: dict[tuple[str, str], _Pool] = {}
        self._lock = threading.Lock()
        self._closed = False

    def recover(self) -> int:
        """End the sandboxes of an earlier enclave process; returns how many. Call before the first task."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folders = [path for path in self._directory.iterdir() if path.is_dir()]
        for folder in folders:
            self._discard(folder)
        return len(folders)

    def take(self, account: str, label: Label) -> Worker:
        """A worker for one account and label, started when there is none. Raises ExecutorLost."""
        key = (account, label.canonical)
        for _ in range(2):
            with self._lock:
                if self._closed:
                    raise ExecutorLost("the enclave is stopping")
                pool = self._pools.get(key)
                if pool is None:
                    name = f"quantum-{self._ids.uuid()}"
                    pool = self._pools[key] = _Pool(name, self._directory / name)
                pool.busy += 1
            try:
                return self._connected(pool, label)
            except WorkerGone:
                self._drop(key, pool)
            except BaseException:
                self._drop(key, pool)
                raise
        raise ExecutorLost("the quantum worker ended twice while it was started")

    def give(self, account: str, label: Label, worker: Worker) -> None:
        """Hand a worker back; one that is no longer usable is closed."""
        with self._lock:
            pool = self._pools.get((account, label.canonical))
            if pool is not None:
                pool.busy -= 1
                pool.used_at = self._clock.monotonic()
            keep = pool is not None and worker.usable and len(pool.idle) < self._idle
            if pool is not None and keep:
                pool.idle.append(worker)
        if not keep:
            worker.close()

    def retire_idle(self) -> None:
        """End sandboxes that were idle for long. Called now and then."""
        now = self._clock.monotonic()
        with self._lock:
            old = [key for key, pool in self._pools.items() if not pool.busy and now - pool.used_at > self._idle_s]
            pools = [self._pools.pop(key) for key in old]
        for pool in pools:
            self._end(pool)

    def close(self) -> None:
        """End every sandbox."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            self._end(pool)

    def _drop(self, key: tuple[str, str], pool: _Pool) -> None:
        with self._lock:
            if self._pools.get(key) is pool:
                del self._pools[key]
        self._end(pool)

    def _end(self, pool: _Pool) -> None:
        for worker in pool.idle:
            worker.close()
        self._discard(pool.folder)

    def _discard(self, folder: Path) -> None:
        self._executor.forget(folder.name)
        shutil.rmtree(folder, ignore_errors=True)

    def _connected(self, pool: _Pool, label: Label) -> Worker:
        with self._lock:
            while pool.idle:
                worker = pool.idle.pop()
                if worker.usable and not worker.ready(0):  # readable while nothing was asked: it ended
                    return worker
                worker.close()
        with pool.lock:
            if not pool.started:
                self._start(pool, label)
                pool.started = True
        return self._connect(pool)

    def _start(self, pool: _Pool, label: Label) -> None:
        root, sockets = pool.folder / "scratch", pool.folder / "socket"
        for path in (pool.folder, sockets, root):
            path.mkdir(mode=0o700, parents=True)
        for name in ("input/config", "input/data", "model", "output", "checkpoints"):
            (root / "algo-1" / "ml" / name).mkdir(parents=True)
        environment = self._environments.named(ENVIRONMENT)
        python = f"{environment.prefix}/bin/python"
        spec = JobSpec(
            job_id=pool.job_id,
            root=root,
            environment=environment,
            argv=(python, "-m", "honmaru.workloads.quantum", "--socket", f"{SOCKETS_INSIDE}/{SOCKET}"),
            variables={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": str(self._cores)},
            label=label.banner,
            cpu=float(self._cores),
            memory_bytes=self._memory,
            disk_bytes=1 << 30,
            processes=_PROCESSES,
            time_limit_s=10 * 365 * 86400.0,
            sockets={str(sockets): SOCKETS_INSIDE},
        )
        self._executor.start(spec)
        deadline = self._clock.monotonic() + _START_S
        pause = threading.Event()
        while True:
            try:
                self._connect(pool).close()
                return
            except WorkerGone:
                ended = self._ending(pool)
                if ended:
                    raise ExecutorLost(f"the quantum worker ended while it started: {ended}") from None
                if self._clock.monotonic() > deadline:
                    raise ExecutorLost(f"the quantum worker was not ready within {_START_S:.0f} s") from None
                pause.wait(0.05)

    def _ending(self, pool: _Pool) -> str:
        try:
            status = self._executor.status(pool.job_id)
        except HonmaruError as fault:
            return fault.message
        if status.phase is Phase.RUNNING:
            return ""
        tail = self._executor.output(pool.job_id, 1, 0)[-600:].decode("utf-8", "replace").strip()
        return f"{status.reason or status.phase.value} {list(status.exit_codes)}: {tail}"

    def _connect(self, pool: _Pool) -> Worker:
        # The sandbox may put anything in the place of its socket. A handle of the place itself leads through no link;
        # it also allows for folders as deep as they like, where a socket's path holds at most 107 bytes.
        connection = socket.socket(socket.AF_UNIX)
        try:
            place = os.open(pool.folder / "socket" / SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if not stat.S_ISSOCK(os.fstat(place).st_mode):
                    raise FileNotFoundError("something else lies in the place of the socket")
                connection.connect(f"/proc/self/fd/{place}")
            finally:
                os.close(place)
        except OSError as fault:
            connection.close()
            raise WorkerGone(f"the worker does not answer ({type(fault).__name__})") from None
        return Worker(connection)
