"""HTTP/1.1 to model servers: over a UNIX socket in a server's folder, or over TCP to one that an operator named.

The server is not trusted to be well-behaved.

Invariants:
- Nothing read from the server grows without a limit: heads, bodies and events have one each, and reading pauses while
  the reader is behind.
- A connection is used again only after an answer was read to its end. Closing a reply before that closes the
  connection, which cancels the work behind it.
- A connection to a socket leads to the socket in the server's folder and through no link to another process's.
- Whatever is wrong with the server or its answer is a `ServerGone` or `ServerRefused`, never another exception.

Source: RFC 9112 (message syntax, chunked coding); WHATWG server-sent events.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import httptools
import orjson

from honmaru.api.eventstreams import Decoder, Frame
from honmaru.api.misreads import Misread
from honmaru.ports.server_identities import ServerIdentities
from honmaru.security.crypto.workload_identity import shown_id

_HANDSHAKE_S = 10.0
MAX_HEAD_BYTES = 1 << 16
MAX_BODY_BYTES = 64 << 20
MAX_EVENT_BYTES = 1 << 20
_BEHIND_BYTES = 1 << 20
_IDLE_CONNECTIONS = 64


class ServerGone(Exception):
    """The server cannot be reached, broke off, or does not speak HTTP."""


class ServerRefused(Exception):
    """The server answered with an error. `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class UnixPlace:
    """A socket in a folder that a sandboxed server writes to. With `identities` both sides of it are named: the server
    must show the SPIFFE ID of `server_id`."""

    folder: Path
    socket: str
    identities: ServerIdentities | None = None
    server_id: str = ""

    host = "model"

    async def connect(self) -> _Connection:
        # The server may put anything in the place of its socket. A handle of the place itself leads through no link;
        # it also allows for folders as deep as they like, where a socket's path holds at most 107 bytes.
        descriptor = os.open(self.folder / self.socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise FileNotFoundError("the model server left something else in the place of its socket")
            loop = asyncio.get_running_loop()
            path = f"/proc/self/fd/{descriptor}"
            if self.identities is None:
                _, connection = await loop.create_unix_connection(_Connection, path)
                return connection
            context = self.identities.context(self.server_id)
            transport, connection = await loop.create_unix_connection(
                _Connection, path, ssl=context, server_hostname="", ssl_handshake_timeout=_HANDSHAKE_S
            )
            if shown_id(transport.get_extra_info("peercert")) != self.identities.name(self.server_id):
                connection.abort()
                raise ssl.SSLError("the model server is somebody else")
            return connection
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """A host and port that an operator named; `tls` is None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.host, self.port, ssl=self.tls)
        return connection


Place = UnixPlace | TcpPlace


class _Connection(asyncio.Protocol):
    """One connection; carries one answer at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.broken: str = ""
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.head_done = False
        self.done = False
        self.keep = False
        self._head_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done and self.head_done and not self.headers.keys() & {"content-length", "transfer-encoding"}:
            self.done = True  # a body that ends with its connection
        self._break(type(exc).__name__ if exc is not None else "closed")
        self.transport = None

    def data_received(self, data: bytes) -> None:
        if not self.head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as fault:
            self._break(type(fault).__name__)
            self.abort()
            return
        if not self.head_done and self._head_bytes > MAX_HEAD_BYTES:
            self._break("a head without an end")
            self.abort()
            return
        if self._held > _BEHIND_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) < 100:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self.head_done = True
            self.keep = self._parser.should_keep_alive()
        else:
            self.headers.clear()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        if self.head_done:
            self.done = True

    # For the reader

    def _break(self, why: str) -> None:
        if not self.done and not self.broken:
            self.broken = why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def send(self, data: bytes) -> None:
        self._begin()
        if self.transport is None or self.transport.is_closing():
            raise ServerGone("the model server closed the connection")
        self.transport.write(data)

    async def _wait(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(until, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def head(self, until: float) -> bool:
        """Waits for the head; False when the time is over. Raises ServerGone."""
        loop = asyncio.get_running_loop()
        while not self.head_done:
            if self.broken:
                raise ServerGone(f"the model server does not answer ({self.broken})")
            if loop.time() >= until:
                return False
            await self._wait(until)
        return True

    async def body(self, quiet_s: float) -> bytes:
        """What has arrived of the body, at least a byte; b"" at its end. Raises ServerGone."""
        loop = asyncio.get_running_loop()
        until = loop.time() + quiet_s
        while not self._chunks:
            if self.done:
                return b""
            if self.broken:
                raise ServerGone(f"the model server broke off its answer ({self.broken})")
            if loop.time() >= until:
                raise ServerGone(f"the model server said nothing for {quiet_s:.0f} s")
            await self._wait(until)
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return data

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and not self.broken

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Reply:
    """An answer whose head has been read. Use as an async context manager."""

    def __init__(self, connection: _Connection, pool: Pool | None) -> None:
        self._connection, self._pool = connection, pool
        self.status = connection.status

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back when the answer was read to its end, and else closes it. Idempotent."""
        connection, self._connection = self._connection, _CLOSED
        if connection is _CLOSED:
            return
        if self._pool is not None and connection.done and connection.keep and connection.usable:
            self._pool.give_back(connection)
        else:
            connection.abort()

    def once(self) -> None:
        """The connection is not to be used again."""
        self._pool = None

    async def text(self, quiet_s: float = 30.0) -> bytes:
        """The whole body as it is."""
        whole = bytearray()
        while more := await self._connection.body(quiet_s):
            whole += more
            if len(whole) > MAX_BODY_BYTES:
                raise ServerGone(f"the model server's answer exceeds {MAX_BODY_BYTES} bytes")
        return bytes(whole)

    async def json(self, quiet_s: float = 300.0) -> Any:
        """The whole body as JSON. Raises ServerRefused for a status of 400 or more."""
        data = await self.text(quiet_s)
        try:
            value = orjson.loads(data)
        except ValueError:
            if self.status >= 400:
                raise ServerRefused(self.status, f"the model server answered {self.status}") from None
            raise ServerGone("the model server's answer is not JSON") from None
        if self.status >= 400:
            raise ServerRefused(self.status, error_message(value))
        return value

    async def events(self, quiet_s: float, last: Callable[[Any], bool] | None = None) -> AsyncIterator[list[Any]]:
        """The JSON of the server-sent events until [DONE], or until one is the `last`; those together that arrived
        together.

        Raises ServerGone when the stream breaks off or says nothing for `quiet_s` seconds.
        """
        if self.status >= 400:
            await self.json(quiet_s)
        pending = b""
        while True:
            chunk = await self._connection.body(quiet_s)
            if not chunk:
                raise ServerGone("the model server broke off its answer")
            pending += chunk
            if b"\r" in pending:
                pending = pending.replace(b"\r\n", b"\n")
            *events, pending = pending.split(b"\n\n")
            if len(pending) > MAX_EVENT_BYTES:
                raise ServerGone("the model server sent an event without an end")
            values: list[Any] = []
            done = False
            for event in events:
                data = event[6:] if event[:6] == b"data: " and b"\n" not in event else _data(event)
                if data is None:
                    continue
                if data == b"[DONE]":
                    done = True
                    break
                try:
                    values.append(orjson.loads(data))
                except ValueError:
                    raise ServerGone("the model server sent an event that is not JSON") from None
                if last is not None and last(values[-1]):
                    done = True
                    break
            if done:
                await self._finish()
            if values:
                yield values
            if done:
                return

    async def frames(self, quiet_s: float) -> AsyncIterator[list[Any]]:
        """The events of an AWS event stream, {name: members}, those together that arrived together.

        Raises ServerGone when the stream breaks off, says nothing for `quiet_s` seconds, or says that it failed.
        """
        if self.status >= 400:
            await self.json(quiet_s)
        decoder = Decoder()
        try:
            while chunk := await self._connection.body(quiet_s):
                if events := [_event(frame) for frame in decoder.feed(chunk)]:
                    yield events
            decoder.close()
        except (Misread, ValueError):
            raise ServerGone("the model server sent an event that is none") from None

    async def _finish(self) -> None:
        """Takes the end of the body, when it is there already, so that the connection can be used again."""
        if not self._connection.done:
            try:
                await self._connection.body(0.05)
            except ServerGone:
                return


def _data(event: bytes) -> bytes | None:
    """The data of an event with other fields or comments; None when it has none."""
    lines = [line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _event(frame: Frame) -> dict[str, Any]:
    """Raises ServerGone for an exception, ValueError for what is no event."""
    payload = orjson.loads(frame.payload)
    if frame.headers.get(":message-type") != "event":
        raise ServerGone(f"the model server broke off its answer: {error_message(payload)}")
    return {str(frame.headers[":event-type"]): payload} if ":event-type" in frame.headers else {}


_CLOSED = _Connection()


class Pool:
    """Connections to one server. All methods belong to one event loop.

    Args:
        headers: Further lines of every request's head, for example an authorization that the server wants.
    """

    def __init__(self, place: Place, headers: Mapping[str, str] | None = None) -> None:
        self.place = place
        self._more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._idle: list[_Connection] = []

    async def call(self, method: str, path: str, body: Any = None, *, head_s: float) -> Reply:
        """Send one request and read the head of the answer, waiting at most `head_s` seconds. Raises ServerGone.

        A connection from the pool that the server closed before it said anything is replaced by a new one: a server
        may close what is idle at any time.
        """
        data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        request = (
            f"{method} {path} HTTP/1.1\r\nhost: {self.place.host}\r\n{self._more}"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        ).encode() + data
        until = asyncio.get_running_loop().time() + head_s
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                continue
            try:
                return await self._on(connection, request, until, head_s)
            except _Stale:
                continue
        try:
            async with asyncio.timeout_at(until):
                connection = await self.place.connect()
        except TimeoutError:
            raise ServerGone(f"the model server did not answer within {head_s:.0f} s") from None
        except (OSError, ssl.SSLError) as fault:
            raise ServerGone(f"the model server does not answer ({type(fault).__name__})") from None
        try:
            return await self._on(connection, request, until, head_s)
        except _Stale as stale:
            raise ServerGone(str(stale)) from None

    async def _on(self, connection: _Connection, request: bytes, until: float, head_s: float) -> Reply:
        try:
            connection.send(request)
            if not await connection.head(until):
                raise ServerGone(f"the model server did not answer within {head_s:.0f} s")
        except ServerGone as gone:
            unseen = connection._head_bytes == 0 and connection.broken == "closed"
            connection.abort()
            if unseen:
                raise _Stale(str(gone)) from None
            raise
        except BaseException:
            # Cancelled: the connection must go, so that the server stops working for nobody.
            connection.abort()
            raise
        return Reply(connection, self)

    def give_back(self, connection: _Connection) -> None:
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()


class _Stale(ServerGone):
    """The server closed a connection before it said anything on it."""


async def call(folder: Path, socket: str, method: str, path: str, body: Any = None, *, head_s: float) -> Reply:
    """One request to `folder/socket` on a connection of its own. Raises ServerGone."""
    reply = await Pool(UnixPlace(folder, socket)).call(method, path, body, head_s=head_s)
    reply.once()
    return reply


def error_message(value: Any) -> str:
    """The message of an OpenAI error body, or what stands in for it."""
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) and isinstance(value, dict):
        message = value.get("message") or value.get("detail")
    return message[:1000] if isinstance(message, str) else "the model server gave no reason"
