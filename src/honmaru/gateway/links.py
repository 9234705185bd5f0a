"""Requests on their way from a worker process to the enclave's first process, over a UNIX socket.

A worker has parsed a request's head and knows that it must not carry it out itself. It sends the head as received, and
the body as it is asked for; the first process does everything with it that it would do with a request of its own, and
sends the answer back. One link carries one request at a time.

    frame: length (4 bytes) | kind (1) | payload            payload with a head: its length (4) | JSON | bytes

Invariants:
- Only processes that the first one started are listened to: the socket is 0600, and the kernel says who connects.
  Client address and scheme, on which policies decide, come from nobody else.
- A body is sent piece by piece, each when the first process asks for it: what a slow reader does not take stays with
  the client. A link whose other end is gone ends the request on this one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import orjson

from honmaru.core.errors import HonmaruError, StoreUnavailable
from honmaru.gateway.exchange import Exchange, Receive, Scope, Send
from honmaru.gateway.http import Application

_HEAD = struct.Struct(">IB")
_LENGTH = struct.Struct(">I")
_REQUEST, _BODY, _LEFT, _WANT, _WHOLE, _START, _PIECE, _END = range(1, 9)
_FRAME_BYTES = 1 << 30
_IDLE_LINKS = 64
_BUFFER = 1 << 20
_POLL_S = 0.1

Headers = list[tuple[bytes, bytes]]


class LinkBroken(HonmaruError):
    """The other end went away, or said what it may not."""


class Link:
    """One connection between the two, in frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> tuple[int, bytes]:
        """The next frame's kind and payload. Raises LinkBroken."""
        try:
            length, kind = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if length > _FRAME_BYTES:
                raise LinkBroken("a frame is too long")
            return kind, await self._reader.readexactly(length) if length else b""
        except (OSError, asyncio.IncompleteReadError) as fault:
            raise LinkBroken("the other process is gone") from fault

    async def write(self, kind: int, *parts: bytes) -> None:
        """Sends a frame. Raises LinkBroken."""
        head = _HEAD.pack(sum(map(len, parts)), kind)
        try:
            self._writer.write(b"".join((head, *parts)))
            await self._writer.drain()
        except OSError as fault:
            raise LinkBroken("the other process is gone") from fault

    def send(self, kind: int, *parts: bytes) -> None:
        """As `write`, without waiting until the other end takes it."""
        self._writer.write(b"".join((_HEAD.pack(sum(map(len, parts)), kind), *parts)))

    def close(self) -> None:
        self._writer.close()


class Forwarder:
    """The worker's end: hands requests to the first process. For the event loop's thread only."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._idle: deque[Link] = deque()

    async def forward(self, exchange: Exchange, body: bytes | None = None) -> None:
        """Has a request answered by the first process. `body` is all of it where it was received already.

        Raises StoreUnavailable when that process is gone.
        """
        try:
            await self._forward(exchange, body)
        except LinkBroken as broken:
            raise StoreUnavailable(f"the request was not answered: {broken.message}") from broken

    async def _forward(self, exchange: Exchange, body: bytes | None) -> None:
        scope, send = exchange.scope, exchange.send
        if body is None and (ready := scope.get("honmaru.body")) is not None:
            body = ready()
        head = {
            "method": scope["method"],
            "path": scope["raw_path"].decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            "client": scope.get("client"),
            "scheme": scope["scheme"],
            "whole": body is not None,
        }
        link = self._idle.pop() if self._idle else await self._open()
        feeding: asyncio.Task[None] | None = None
        clean = False
        try:
            await link.write(_REQUEST, *_headed(head), body or b"")
            while True:
                kind, payload = await link.read()
                if kind == _WANT:
                    feeding = asyncio.ensure_future(self._feed(link, exchange.receive))
                elif kind == _WHOLE:
                    exchange.started = True
                    await self._answer(scope, send, payload)
                    break
                elif kind == _START:
                    exchange.started = True
                    status, headers, _ = _answered(scope, payload)
                    await send({"type": "http.response.start", "status": status, "headers": headers})
                elif kind in (_PIECE, _END):
                    await send({"type": "http.response.body", "body": payload, "more_body": kind == _PIECE})
                    if kind == _END:
                        break
                else:
                    raise LinkBroken("an unknown frame")
            clean = True
        finally:
            if feeding is not None:
                feeding.cancel()
            if clean and len(self._idle) < _IDLE_LINKS:
                self._idle.append(link)
            else:
                link.close()

    async def _open(self) -> Link:
        try:
            return Link(*await asyncio.open_unix_connection(self._path, limit=_BUFFER))
        except OSError as fault:
            raise LinkBroken("the enclave's first process does not answer") from fault

    @staticmethod
    async def _feed(link: Link, receive: Receive) -> None:
        message = await receive()
        if message["type"] == "http.request":
            link.send(_BODY, b"\1" if message.get("more_body") else b"\0", message.get("body", b""))
        else:
            link.send(_LEFT)

    @staticmethod
    async def _answer(scope: Scope, send: Send, payload: bytes) -> None:
        status, headers, body = _answered(scope, payload)
        at_once = scope.get("honmaru.answer")
        if at_once is not None:
            at_once(status, headers, body)
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Vouched:
    """What a connection asks of an exchange: whether its caller was authenticated."""

    __slots__ = ("session",)

    def __init__(self, session: object) -> None:
        self.session = session


class _Answering:
    """The first process's end of one link."""

    def __init__(self, link: Link, application: Application) -> None:
        self._link, self._application = link, application
        self._frames: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._wanted = False
        self._gone = False

    async def run(self) -> None:
        """Answers one request after the other until the link ends."""
        reading = asyncio.ensure_future(self._read())
        try:
            while not self._gone:
                kind, payload = await self._frames.get()
                if kind == _REQUEST:  # what else comes was meant for a request that has been answered
                    await self._one(payload)
        except LinkBroken:
            return
        finally:
            reading.cancel()
            self._link.close()

    async def _read(self) -> None:
        try:
            while True:
                self._frames.put_nowait(await self._link.read())
        except LinkBroken:
            self._gone = True
            self._frames.put_nowait((_LEFT, b""))

    async def _one(self, payload: bytes) -> None:
        head, body = _parted(payload)
        client = head["client"]
        scope: dict[str, Any] = {
            "type": "http",
            "method": head["method"],
            "raw_path": head["path"].encode("latin-1"),
            "query_string": head["query"].encode("latin-1"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head["headers"]],
            "client": None if client is None else (client[0], client[1]),
            "scheme": head["scheme"],
        }
        self._wanted = False
        whole: list[bytes] = [body] if head["whole"] else []
        told = bool(head["whole"])
        started = ended = False

        def here() -> bytes | None:
            return whole.pop() if whole else None

        async def receive() -> dict[str, Any]:
            if told:
                if whole:
                    return {"type": "http.request", "body": whole.pop(), "more_body": False}
            if not self._wanted:
                self._wanted = True
                await self._link.write(_WANT)
            kind, piece = await self._frames.get()
            self._wanted = False
            if kind != _BODY:
                self._frames.put_nowait((_LEFT, b""))  # it stays so
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece[1:], "more_body": piece[:1] == b"\1"}

        def vouched() -> bool:
            exchange = scope.get("honmaru.exchange")
            return exchange is not None and exchange.session is not None

        def answer(status: int, headers: Headers, body: bytes) -> None:
            nonlocal ended
            ended = True
            self._link.send(_WHOLE, *_headed(_answer_head(status, headers, vouched())), body)

        async def send(message: Any) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = True
                head = _answer_head(message["status"], message["headers"], vouched())
                await self._link.write(_START, *_headed(head))
                return
            more = message.get("more_body", False)
            ended = not more
            await self._link.write(_PIECE if more else _END, message.get("body", b""))

        scope["honmaru.body"] = here
        scope["honmaru.answer"] = answer
        try:
            await self._application(scope, receive, send)
        except LinkBroken:
            raise
        except Exception as fault:
            if started and not ended:
                raise LinkBroken("an answer was not finished") from fault
        finally:
            scope.clear()
        if not ended:
            if started:
                raise LinkBroken("an answer was not finished")
            answer(500, [(b"content-length", b"0"), (b"connection", b"close")], b"")


async def serve_links(
    application: Application,
    path: Path,
    started: Callable[[], Collection[int]],
    ready: Callable[[], None],
    stopping: threading.Event,
    grace_s: float = 10.0,
) -> None:
    """Answer what workers forward to the socket at `path`, until `stopping` is set.

    Args:
        started: Process ids of the workers; others are not listened to.
        ready: Called once connections are accepted.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.setblocking(False)
    running: set[asyncio.Task[None]] = set()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        if not _is_one_of(connection, started()):
            writer.close()
            return
        task = asyncio.current_task()
        if task is not None:
            running.add(task)
            task.add_done_callback(running.discard)
        await _Answering(Link(reader, writer), application).run()

    server = await asyncio.start_unix_server(accepted, sock=listener, limit=_BUFFER, backlog=1024)
    try:
        ready()
        while not stopping.is_set():
            await asyncio.sleep(_POLL_S)
    finally:
        server.close()
        path.unlink(missing_ok=True)
        # Workers have ended what they answered before they went; a link without one ends by itself.
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel()


def _is_one_of(connection: Any, started: Collection[int]) -> bool:
    """Whether the peer is a process of our own user that we started."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", packed)
    return uid == os.getuid() and pid in started


def _headed(head: Any) -> tuple[bytes, bytes]:
    encoded = orjson.dumps(head)
    return _LENGTH.pack(len(encoded)), encoded


def _parted(payload: bytes) -> tuple[Any, bytes]:
    (length,) = _LENGTH.unpack_from(payload)
    return orjson.loads(payload[4 : 4 + length]), payload[4 + length :]


def _answer_head(status: int, headers: Headers, vouched: bool) -> list[Any]:
    return [status, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers], vouched]


def _answered(scope: Scope, payload: bytes) -> tuple[int, Headers, bytes]:
    (status, headers, vouched), body = _parted(payload)
    if vouched:
        scope["honmaru.exchange"] = _Vouched(True)
    return status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers], body
