"""What runs behind a socket may replace it: a link there must not lead the enclave to another process's socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from honmaru.deployments.client import ServerGone, call
from honmaru.jobs.quantum_workers import SOCKET, QuantumWorkers, WorkerGone, _Pool

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket that answers, as another label's model server would."""
    folder = tmp_path / "other"
    folder.mkdir()
    monkeypatch.chdir(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("s")
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                if connection.recv(65536):
                    connection.sendall(ANSWER)

    threading.Thread(target=serve, daemon=True).start()
    yield folder / "s"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def asked(folder: Path) -> object:
    async def ask() -> object:
        async with await call(folder, "s", "GET", "/health", head_s=2) as reply:
            return await reply.json()

    return asyncio.run(ask())


def test_a_link_in_place_of_a_model_servers_socket(other: Path, tmp_path: Path) -> None:
    assert asked(other.parent) == {}  # the socket itself is reached
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "s").symlink_to(other)
    with pytest.raises(ServerGone):
        asked(hostile)


def test_a_link_in_place_of_a_quantum_workers_socket(other: Path, tmp_path: Path) -> None:
    workers = QuantumWorkers(None, None, None, None, tmp_path / "w", cores=1, idle=1, memory_bytes=1)  # type: ignore[arg-type]
    pool = _Pool("quantum-x", tmp_path / "pool")
    (pool.folder / "socket").mkdir(parents=True)
    (pool.folder / "socket" / SOCKET).symlink_to(other)
    with pytest.raises(WorkerGone):
        workers._connect(pool)
    (pool.folder / "socket" / SOCKET).unlink()
    (pool.folder / "socket" / SOCKET).hardlink_to(other)
    workers._connect(pool).close()
