"""The server's life: listens, speaks TLS, sweeps what idles, and ends what runs before it stops.

Invariants:
- `serve` returns only after the running requests have ended, at most `grace_s` after `stopping` was set.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import uvloop

from honmaru.core.errors import ConfigurationFault
from honmaru.gateway.http import Application, Connection, Server
from honmaru.gateway.limits import Limits
from honmaru.gateway.links import serve_links

_POLL_S = 0.1
_BACKLOG = 1024


def serve(
    app: Application,
    *,
    host: str,
    port: int,
    certificate: Path | None,
    key: Path | None,
    limits: Limits,
    ready: Callable[[int], None],
    stopping: threading.Event,
    grace_s: float = 10.0,
    listener: socket.socket | None = None,
) -> None:
    """Serve `app` on one address until `stopping` is set.

    Args:
        listener: What `listeners` made for this process; without one, the address is bound here.
        port: 0 takes a free one; `ready` is called with the real one once connections are accepted.
        certificate, key: PEM files; None for plain HTTP, on a loopback address only.
    Raises:
        ConfigurationFault: the address cannot be bound, the certificate cannot be read, or plain HTTP beyond loopback.
    """
    if certificate is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigurationFault([f"plain HTTP is served on a loopback address only, not on {host}: leave out --http"])
    listener = listener or _listen(host, port)
    context = None if certificate is None else _tls(certificate, key)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(app, listener, context, limits, ready, stopping, grace_s))
    finally:
        listener.close()


def serve_forwarded(
    app: Application,
    *,
    path: Path,
    started: Callable[[], Collection[int]],
    ready: Callable[[], None],
    stopping: threading.Event,
) -> None:
    """Serve what worker processes forward, until `stopping` is set. See `links.serve_links`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_links(app, path, started, ready, stopping))


def listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets of one address for several processes: the kernel spreads new connections over them. Whoever keeps one
    open keeps what waits in it, also while nobody accepts. Raises ConfigurationFault."""
    # Sockets that share an address would share it with another enclave's too: so it must be free for one that does not.
    probe = _listen(host, port)
    port = probe.getsockname()[1]
    probe.close()
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(_listen(host, port, shared=True))
    except ConfigurationFault:
        for listener in made:
            listener.close()
        raise
    return made


async def _run(
    app: Application,
    listener: socket.socket,
    context: ssl.SSLContext | None,
    limits: Limits,
    ready: Callable[[int], None],
    stopping: threading.Event,
    grace_s: float,
) -> None:
    loop = asyncio.get_running_loop()
    shared = Server(app, limits, loop)
    accepting = await loop.create_server(
        lambda: Connection(shared),
        sock=listener,
        ssl=context,
        backlog=_BACKLOG,
        # A handshake is not yet a connection for anybody but these limits.
        ssl_handshake_timeout=None if context is None else limits.header_s,
        ssl_shutdown_timeout=None if context is None else 2.0,
    )
    ready(listener.getsockname()[1])
    pause = max(0.02, min(_POLL_S, limits.header_s / 4, limits.keep_alive_s / 4))
    while not stopping.is_set():
        await asyncio.sleep(pause)
        shared.connections.sweep()
    shared.stopping = True
    accepting.close()
    for connection in shared.connections.all():
        connection.shutdown()
    if shared.tasks:
        await asyncio.wait(shared.tasks, timeout=grace_s)
    for connection in shared.connections.all():
        connection.evict()
    for task in shared.tasks:
        task.cancel()
    if shared.tasks:
        await asyncio.wait(shared.tasks, timeout=1.0)


def _listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EACCES:
            allow = f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
            redirect = f"nft add rule ip nat output oif lo tcp dport {port} redirect to :8443"
            problem = f"port {port} is for privileged processes: run `{allow}`, or use --port 8443 and `{redirect}`"
            raise ConfigurationFault([problem]) from error
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
