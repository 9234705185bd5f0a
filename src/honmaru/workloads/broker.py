"""The sandbox's side of the broker: where unmodified SDKs look for credentials and for their endpoint, on loopback.

There is no network inside. DIRECTORY holds three UNIX sockets. `svid` hands this workload its short-lived identity;
with it every other connection is TLS with both sides named (SPIFFE): `aws` leads to the enclave's own endpoint, and
`credentials` hands out keys of the job's role.

Invariants:
- What the sockets offer on loopback is for this sandbox alone: it has a loopback of its own.
- The broker is believed only under the SPIFFE ID that came with this workload's own identity.

Source: SPIFFE X.509-SVID; boto3 developer guide, "Container credential provider".
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_CHUNK = 1 << 16
_CONNECTIONS = 64
_RENEW_S = 60.0
Serve = Callable[[socket.socket], None]


class Identity:
    """This workload's SVID, renewed when it is about to end. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._until = 0.0
        self._broker = ""

    def connect(self, name: str) -> ssl.SSLSocket:
        """A connection to one of the broker's sockets, both sides verified. Raises OSError, ssl.SSLError."""
        for last in (False, True):
            context, broker = self._current()
            plain = socket.socket(socket.AF_UNIX)
            try:
                plain.connect(str(self._folder / name))
                secure = context.wrap_socket(plain)
                shown: Any = secure.getpeercert() or {}
                if [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"] != [broker]:
                    raise ssl.SSLError("the broker is somebody else")
                return secure
            except ssl.SSLError:
                plain.close()
                self._until = 0.0  # the enclave was restarted and has another authority
                if last:
                    raise
            except OSError:
                plain.close()
                raise
        raise AssertionError("unreachable")

    def _current(self) -> tuple[ssl.SSLContext, str]:
        with self._lock:
            if self._context is None or time.time() > self._until - _RENEW_S:
                with socket.socket(socket.AF_UNIX) as outside:
                    outside.connect(str(self._folder / "svid"))
                    document = b""
                    while chunk := outside.recv(_CHUNK):
                        document += chunk
                svid = json.loads(document)
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.check_hostname = False  # a SPIFFE ID is compared instead
                context.load_verify_locations(cadata=svid["bundle"])
                with tempfile.NamedTemporaryFile() as pem:
                    pem.write((svid["certificate"] + svid["key"]).encode())
                    pem.flush()
                    context.load_cert_chain(pem.name)
                self._context, self._until, self._broker = context, float(svid["expires"]), svid["broker"]
            return self._context, self._broker


def listen(serve: Serve) -> int:
    """Serve connections to a free port on loopback, each in a thread; returns the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=_CONNECTIONS)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_served, args=(serve, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def _served(serve: Serve, connection: socket.socket) -> None:
    with connection, suppress(OSError, ssl.SSLError):
        serve(connection)


def relay(identity: Identity) -> Serve:
    """Carry bytes between a connection and the enclave's endpoint."""

    def serve(connection: socket.socket) -> None:
        with identity.connect("aws") as outside:
            carry(connection, outside)

    return serve


def credentials(identity: Identity) -> Serve:
    """Answer any HTTP request with keys of the job's role."""

    def serve(connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _CHUNK:
            chunk = connection.recv(_CHUNK)
            if not chunk:
                return
            head += chunk
        document = b""
        with suppress(OSError, ssl.SSLError), identity.connect("credentials") as outside:
            while chunk := outside.recv(_CHUNK):
                document += chunk
        status = b"200 OK" if document else b"503 Service Unavailable"
        connection.sendall(
            b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
            + str(len(document)).encode() + b"\r\n\r\n" + document
        )  # fmt: skip

    return serve


def carry(inside: socket.socket, outside: ssl.SSLSocket) -> None:
    """Copy both ways until either side ends. One thread does both: TLS may not be used by two at once."""
    while True:
        ready = [outside] if outside.pending() else select.select([inside, outside], [], [])[0]
        for source, sink in ((inside, outside), (outside, inside)):
            if source not in ready:
                continue
            source.settimeout(0)
            try:
                data = source.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            finally:
                source.settimeout(None)
            if not data:
                return
            sink.sendall(data)


def variables(folder: Path) -> dict[str, str]:
    """Open the two ways on loopback; what SDKs read to find them."""
    identity = Identity(folder)
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listen(relay(identity))}",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{listen(credentials(identity))}/",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def environment(folder: Path) -> dict[str, str]:
    """The environment of a program that may reach the broker."""
    return {**os.environ, **variables(folder)}
