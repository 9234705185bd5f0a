"""HTTP/1.1 as the gateway needs it: one connection, its requests in order, answers in one piece where they are whole.

A request reaches the application as in ASGI (scope, receive, send), with shortcuts in the scope: "honmaru.body", a
function that gives the body if all of it is here; "honmaru.answer", a function of (status, headers, body) that sends a
whole answer at once; "honmaru.exchange", where the application leaves its exchange so that the connection can see
whether its caller was authenticated.

Invariants:
- Headers over their limits, and requests that are not HTTP, are refused before the application sees anything.
- At most `_BUFFER` bytes of a body wait for the application; beyond them the connection is not read.
- No header of an answer carries a line break, whatever a service put into it.
- An answer that goes out before its request was read to the end closes the connection.
Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import httptools

from honmaru.gateway.connections import Connections
from honmaru.gateway.limits import Limits

_LOG = logging.getLogger("honmaru.gateway")
_BUFFER = 256 << 10
_PIPELINED = 16
"""Requests that may wait behind a running one before the connection is not read."""
_LINGER_S = 1.0
"""How long what a refused client still sends is read and dropped, so that it can read the refusal."""

Headers = list[tuple[bytes, bytes]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus}


class Server:
    """What all connections of one listening address share."""

    def __init__(self, application: Application, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        self.connections = Connections(limits.connections, limits.header_s, limits.keep_alive_s, loop.time)
        self.stopping = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._date: tuple[int, bytes] = (0, b"")

    def date(self) -> bytes:
        """The Date header of this second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, b"date: " + formatdate(now, usegmt=True).encode("ascii") + b"\r\n")
        return self._date[1]


class Request:
    """One request and its answer. `receive` and `send` are ASGI's."""

    __slots__ = (
        "answered",
        "chunked",
        "complete",
        "connection",
        "expects",
        "gone",
        "head",
        "keep_alive",
        "pieces",
        "remaining",
        "scope",
        "size",
        "started",
        "told",
        "waiter",
    )

    def __init__(
        self, connection: Connection, scope: MutableMapping[str, Any], keep_alive: bool, expects: bool
    ) -> None:
        self.connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects = expects
        self.head = scope["method"] == "HEAD"
        self.pieces: list[bytes] = []
        self.size = 0
        self.complete = False
        """Whether all of the request has come."""
        self.told = False
        """Whether the application was given the end of the body."""
        self.gone = False
        self.waiter: asyncio.Future[None] | None = None
        self.started = False
        self.answered = False
        self.chunked = False
        self.remaining: int | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """The next piece of the body; after its end, waits until the client is gone or the answer is out."""
        if self.expects and not self.started:
            self.expects = False
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.pieces or (self.complete and not self.told) or self.gone or self.answered):
            self.connection.resume()
            self.waiter = self.connection.server.loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        if self.gone or self.answered:
            return {"type": "http.disconnect"}
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.size = 0
        self.told = self.complete
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    def whole(self) -> bytes | None:
        """The body, when all of it has come and nothing of it was received yet; else None."""
        if not self.complete or self.told or self.gone:
            return None
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.size = 0
        self.told = True
        self.expects = False
        return body

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole answer. `headers` state its length, but for answers that have none."""
        if self.gone or self.answered:
            return
        head = self._head(status, headers)
        self.started = True
        self.connection.write(head + body if len(body) < 65_536 else head)
        if len(body) >= 65_536:
            self.connection.write(body)
        self._end()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if self.connection.paused is not None and not self.gone:
            await asyncio.shield(self.connection.paused)
        if self.gone:
            return
        if message["type"] == "http.response.start":
            if self.started:
                raise RuntimeError("an answer was started twice")
            self._start(message["status"], message["headers"])
            return
        if not self.started or self.answered:
            raise RuntimeError("a piece of an answer came outside of it")
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.head:
            body, self.remaining = b"", 0
        if self.chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.connection.write(piece if more else piece + b"0\r\n\r\n")
        else:
            if self.remaining is not None:
                self.remaining -= len(body)
                if self.remaining < 0 or (self.remaining and not more):
                    raise RuntimeError("an answer was not as long as it stated")
            if body:
                self.connection.write(body)
        if not more:
            self._end()

    def _start(self, status: int, headers: Headers) -> None:
        lengths = [value for name, value in headers if name == b"content-length"]
        if lengths:
            self.remaining = int(lengths[0])
        elif status in (204, 304) or self.head:
            self.remaining = 0
        elif self.connection.http_11:
            self.chunked = True
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        else:
            self.keep_alive = False  # the end of the connection is the end of the answer
        self.started = True
        self.connection.write(self._head(status, headers))

    def _head(self, status: int, headers: Headers) -> bytes:
        parts = [_STATUS_LINES[status], self.connection.server.date()]
        closing = False
        for name, value in headers:
            parts.append(b"%b: %b\r\n" % (name, value))
            if name == b"connection" and b"close" in value.lower():
                closing = True
        if closing or not self.complete:
            self.keep_alive = False
        if not self.keep_alive and not closing:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        lines = len(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise RuntimeError("a header of an answer holds a line break")
        return head

    def _end(self) -> None:
        self.answered = True
        self.wake()
        self.connection.ended(self)


class Connection(asyncio.Protocol):
    """One client. Parses, queues what is pipelined, and runs the application for one request after the other."""

    __slots__ = (
        "client",
        "current",
        "expects",
        "header_bytes",
        "headers",
        "http_11",
        "lingering",
        "parser",
        "paused",
        "queue",
        "reading",
        "refused",
        "secure",
        "server",
        "transport",
        "url",
        "vouched_before",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.parser: Any = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.client: tuple[str, int] | None = None
        self.secure = False
        self.http_11 = True
        self.current: Request | None = None
        self.queue: deque[Request] | None = None
        self.url = b""
        self.headers: Headers = []
        self.header_bytes = 0
        self.expects = False
        self.reading = True
        self.paused: asyncio.Future[None] | None = None
        self.refused = False
        """Nothing more of what comes is looked at."""
        self.lingering = 0
        self.vouched_before = False

    # What the registry asks

    @property
    def vouched(self) -> bool:
        if self.vouched_before or self.current is None:
            return self.vouched_before
        exchange = self.current.scope.get("honmaru.exchange")
        return exchange is not None and exchange.session is not None

    def evict(self) -> None:
        if self.transport is not None:
            self.refused = True
            self.transport.abort()

    def too_slow(self) -> None:
        self._cut_off(408)

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.client = (str(peer[0]), int(peer[1])) if peer else None
        self.secure = transport.get_extra_info("sslcontext") is not None
        if self.server.stopping or not self.server.connections.open(self):
            self.refused = True
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.server.connections.closed(self)
        self.transport = None
        self.parser = None
        self.resume_writing()
        for request in (self.current, *(self.queue or ())):
            if request is not None:
                request.gone = True
                request.wake()
        self.queue = None

    def data_received(self, data: bytes) -> None:
        if self.refused:
            self.lingering += len(data)
            if self.lingering > _BUFFER:
                self._close()
            return
        if self.current is None:
            self.server.connections.heading(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refused = True  # no protocol but this one; what follows is not HTTP
        except httptools.HttpParserError:
            if not self.refused:
                self._cut_off(400)

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        if self.paused is None:
            self.paused = self.server.loop.create_future()

    def resume_writing(self) -> None:
        paused, self.paused = self.paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    # From the parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.header_bytes = 0
        self.expects = False

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.server.limits.url_bytes:
            self._cut_off(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self.server.limits
        self.header_bytes += len(name) + len(value)
        if self.header_bytes > limits.header_bytes or len(self.headers) >= limits.headers:
            self._cut_off(431)
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expects = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.refused:
            return
        path, _, query = self.url.partition(b"?")
        if path[:1] != b"/" or b"#" in self.url:
            parsed = httptools.parse_url(self.url)  # the absolute form, or a fragment
            path, query = parsed.path or b"/", parsed.query or b""
        if not self.url.isascii():
            self._cut_off(400)
            return
        parser = self.parser
        self.http_11 = parser.get_http_version() == "1.1"
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "method": parser.get_method().decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": self.headers,
            "client": self.client,
            "scheme": "https" if self.secure else "http",
        }
        self.headers = []  # trailers are parsed like headers: they are counted, and never become any
        keep_alive = self.http_11 and parser.should_keep_alive() and not parser.should_upgrade()
        request = Request(self, scope, keep_alive, self.expects)
        scope["honmaru.answer"] = request.answer
        scope["honmaru.body"] = request.whole
        if self.current is None:
            self._run(request)
        else:
            self.queue = self.queue or deque()
            self.queue.append(request)
            if len(self.queue) >= _PIPELINED:
                self._pause()

    def on_body(self, body: bytes) -> None:
        request = self._newest()
        if request is None or request.answered:
            return
        request.pieces.append(body)
        request.size += len(body)
        if request.size > _BUFFER:
            self._pause()
        request.wake()

    def on_message_complete(self) -> None:
        request = self._newest()
        if request is not None:
            request.complete = True
            request.wake()

    # Running

    def _newest(self) -> Request | None:
        """The request whose body is being parsed."""
        if self.refused:
            return None
        return self.queue[-1] if self.queue else self.current

    def _run(self, request: Request) -> None:
        self.current = request
        server = self.server
        server.connections.running(self)
        task = server.loop.create_task(self._application(request))
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)

    async def _application(self, request: Request) -> None:
        if self.paused is not None and not await self._drained():
            return
        try:
            await self.server.application(request.scope, request.receive, request.send)
        except Exception as fault:
            if not request.gone:
                _LOG.error("an answer was not finished: %s", type(fault).__name__)
        finally:
            request.scope.clear()  # it leads back here: bodies must not wait for the collector of cycles
        if request.answered or request.gone:
            return
        if request.started:
            if self.transport is not None:
                self.transport.abort()  # the client must not take what it has for the whole
        else:
            request.keep_alive = False
            request.answer(500, [(b"content-length", b"0")], b"")

    async def _drained(self) -> bool:
        """Whether the client has taken its last answer: until then nothing more is done for it."""
        if self.paused is not None:
            await asyncio.wait({self.paused}, timeout=self.server.limits.idle_s)
        if self.paused is not None and self.transport is not None:
            self.transport.abort()
        return self.transport is not None and not self.transport.is_closing()

    def ended(self, request: Request) -> None:
        """The answer of `request` is out."""
        if not self.vouched_before:
            self.vouched_before = self.vouched
        self.current = None
        if self.transport is None or self.transport.is_closing():
            return
        if not request.keep_alive:
            self.refused = True
            self.server.connections.idle(self)
            if request.complete or request.expects:
                self.transport.close()
            else:
                self.server.loop.call_later(_LINGER_S, self._close)
                self.resume()
            return
        self.resume()
        if self.queue:
            self._run(self.queue.popleft())
        elif self.server.stopping:
            self.server.connections.closed(self)
            self.transport.abort()
        else:
            self.server.connections.idle(self)

    def shutdown(self) -> None:
        """The server stops: an idle connection goes at once, a busy one after its answer.

        A TLS close would wait for the peer's goodbye, which a client with a pooled connection never reads.
        """
        if self.current is None:
            self.evict()
        else:
            self.current.keep_alive = False

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def _pause(self) -> None:
        if self.reading and self.transport is not None:
            self.reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self.reading and self.transport is not None and not self.transport.is_closing():
            self.reading = True
            self.transport.resume_reading()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _cut_off(self, status: int) -> None:
        """A refusal that needs no application, and the end of the connection."""
        if self.refused or self.transport is None or self.transport.is_closing():
            return
        self.refused = True
        request = self.current
        if request is not None and request.complete:
            request.keep_alive = False  # what is wrong came behind it: it is answered first, and nothing after it
            self.queue = None
            return
        if request is None or not request.started:
            line = _STATUS_LINES[status]
            self.transport.write(line + self.server.date() + b"content-length: 0\r\nconnection: close\r\n\r\n")
        if request is not None:
            request.gone = True
            request.wake()
        self.transport.close()
