"""The worker inside the sandbox: one process that has loaded and warmed the simulator, and a fork of it per connection.

    python -m honmaru.workloads.quantum --socket PATH

A connection carries one request after another: a frame is four bytes of length (big endian) and JSON. The answer is a
frame {"ok": true, "size": n} and n bytes, or {"ok": false, "kind", "message"}. Closing a connection ends its process,
also in the middle of a simulation: that is how a task is cancelled.

Invariants:
- The parent never runs a program; a child serves one connection and dies with it.
- Without a connection for a minute the server ends: the enclave, which keeps one to each warm child, is gone.
- A child's memory is limited; what does not fit is answered as "memory", and the other children do not notice.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FRAME = struct.Struct(">I")
_MAX_FRAME = 64 << 20
_BASE_BYTES = 1 << 30
"""What the warmed interpreter itself has as data; a task's memory comes on top."""
_ALONE_S = 60.0
CACHE = Path("/tmp/numba-cache")  # noqa: S108  inside the sandbox, a tmpfs of its own


def use_compiled_code(prefix: Path) -> None:
    """Let numba find what `warm` compiled: it insists on a directory that it may write to, so it gets a copy."""
    compiled = prefix / "numba-cache"
    if compiled.is_dir() and not CACHE.exists():
        shutil.copytree(compiled, CACHE)
    CACHE.mkdir(exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = str(CACHE)


def serve(path: str) -> None:
    """Listen until nobody has been connected for a minute."""
    use_compiled_code(Path(sys.prefix))
    from honmaru.workloads.quantum import simulator, warm

    warm.exercise()
    gc.freeze()  # children share these pages: a collection in one would write into, and so copy, all of them
    simulator.TREES.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, tuple[int, socket.socket]] = {}
    watch = select.poll()
    watch.register(listener, select.POLLIN)
    alone_since = time.monotonic()
    while children or time.monotonic() - alone_since < _ALONE_S:
        if children:
            alone_since = time.monotonic()
        for descriptor, events in watch.poll(200):
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                child = os.fork()
                if child == 0:
                    listener.close()
                    for _, other in children.values():
                        other.close()
                    _serve_connection(connection, simulator)
                children[connection.fileno()] = (child, connection)
                watch.register(connection, select.POLLRDHUP)
            elif events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
                os.kill(children[descriptor][0], signal.SIGKILL)
        _reap(children, watch)


def _reap(children: dict[int, tuple[int, socket.socket]], watch: Any) -> None:
    for descriptor, (child, connection) in list(children.items()):
        if os.waitpid(child, os.WNOHANG)[0]:
            watch.unregister(descriptor)
            connection.close()
            del children[descriptor]


def _serve_connection(connection: socket.socket, simulator: Any) -> None:
    """The child: never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 0
    try:
        while (request := _receive(connection)) is not None:
            _answer(connection, simulator, request)
    except OSError:
        status = 1
    except BaseException as fault:
        sys.stderr.write(f"a worker died: {type(fault).__name__}: {fault}\n")
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _answer(connection: socket.socket, simulator: Any, request: Mapping[str, Any]) -> None:
    try:
        _limit_memory(int(request.get("memory_bytes") or 0))
        _use_threads(int(request.get("threads") or 1))
        if request["op"] == "check":
            with _limited_cpu(float(request["cpu_s"]), simulator.Refused):
                simulator.check(request)
            _send(connection, {"ok": True, "size": 0})
            return
        body = b"".join(simulator.run(request))
        _send(connection, {"ok": True, "size": len(body)})
        connection.sendall(body)
    except simulator.Refused as refused:
        _send(connection, {"ok": False, "kind": "refused", "message": str(refused)})
    except MemoryError:
        _send(connection, {"ok": False, "kind": "memory", "message": "the task needs more memory than it may have"})


@contextmanager
def _limited_cpu(seconds: float, refused: type[Exception]) -> Iterator[None]:
    """Raises `refused` once the block has used so many seconds of processor time: a busy machine refuses no program
    that an idle one takes."""

    def late(*_: Any) -> None:
        raise refused(f"the program takes more than {seconds:.0f} s to interpret")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)  # again: the interpreter may have caught the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # drops one that is still on its way: by default it would kill
        signal.signal(signal.SIGPROF, before)


def _limit_memory(task_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _BASE_BYTES + task_bytes if task_bytes else hard
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _use_threads(count: int) -> None:
    import numba

    # Not numba.config.NUMBA_NUM_THREADS: the simulator sets that to -1.
    numba.set_num_threads(max(1, min(count, len(os.sched_getaffinity(0)))))


def _receive(connection: socket.socket) -> Any:
    head = _exactly(connection, _FRAME.size)
    if head is None:
        return None
    (size,) = _FRAME.unpack(head)
    if size > _MAX_FRAME:
        raise OSError("a frame that is too large")
    body = _exactly(connection, size)
    return None if body is None else json.loads(body)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(1 << 20, size - len(data)))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _send(connection: socket.socket, answer: Mapping[str, Any]) -> None:
    data = json.dumps(answer).encode()
    connection.sendall(_FRAME.pack(len(data)) + data)
