"""uvicorn with the gateway's limits on connections: TLS, header bytes and time, URL length, keep-alive.

Invariants:
- A client that sends its headers slowly, or too many of them, is cut off before the application sees anything.
- At most `limits.connections` connections are open.
- `serve` returns only after the running requests have ended, at most `grace_s` after `stopping` was set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from asyncio import TimerHandle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from honmaru.core.errors import ConfigurationFault
from honmaru.gateway.limits import Limits

_LOG = logging.getLogger("honmaru.gateway")
_POLL_S = 0.1


class LimitedProtocol(HttpToolsProtocol):
    """An HTTP/1.1 connection that enforces `limits` before a request exists."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._in_headers = False
        self._header_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.close()
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: an idle connection goes at once, a busy one after its answer.

        A TLS close would wait for the peer's goodbye, which a client with a pooled connection never reads.
        """
        if self._idle():
            self._stop_timer()
            self.transport.abort()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self._header_timer is None and not self._in_headers and self._idle():
            self._start_timer()
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        self._in_headers = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.url_bytes:
            self._cut_off(b"414 URI Too Long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.limits.header_bytes or len(self.headers) >= self.limits.headers:
            self._cut_off(b"431 Request Header Fields Too Large")
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None:
            super().on_message_complete()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._cut_off(b"408 Request Timeout")

    def _cut_off(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the caller's `stopping` event is the only way to stop it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    app: Any,
    *,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    limits: Limits,
    ready: Callable[[int], None],
    stopping: threading.Event,
    grace_s: float = 10.0,
) -> None:
    """Serve `app` on one address until `stopping` is set.

    Args:
        port: 0 takes a free one; `ready` is called with the real one once connections are accepted.
        certificate, key: PEM files; None for plain HTTP, on a loopback address only.
    Raises:
        ConfigurationFault: the address cannot be bound, the certificate cannot be read, or plain HTTP beyond loopback.
    """
    if certificate is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigurationFault([f"plain HTTP is served on a loopback address only, not on {host}: leave out --http"])
    listener = _listen(host, port)
    protocol = type("Protocol", (LimitedProtocol,), {"limits": limits})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=int(grace_s),
        backlog=1024,
    )
    config.load()
    if certificate is not None:
        config.ssl = _tls(certificate, key)
    server = _Server(config)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(server, listener, ready, stopping))
    finally:
        listener.close()


async def _run(
    server: _Server, listener: socket.socket, ready: Callable[[int], None], stopping: threading.Event
) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    announced = False
    while not serving.done():
        if server.started and not announced:
            announced = True
            ready(listener.getsockname()[1])
        if stopping.is_set():
            server.should_exit = True
        await asyncio.wait({serving}, timeout=_POLL_S if announced else 0.01)
    await serving


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationFault(
            [f"{host}:{port} cannot be bound ({error.strerror}): name another port with --port, or stop what holds it"]
        ) from error
    listener.setblocking(False)
    return listener


def _tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationFault(
            [f"the TLS certificate {certificate} cannot be used ({error}): delete it and start again to make a new one"]
        ) from error
    return context
