"""The way out of a job's sandbox: a directory of UNIX sockets, and nothing else.

`svid` hands the workload its identity (SPIFFE X.509-SVID, minutes long, its label inside). The others want it back, as
TLS with both sides named: `aws` carries bytes to this enclave's own endpoint, where they are a client's like any other:
signed, authorised, labelled, recorded; `credentials` hands out short-lived credentials of the job's role at the job's
label.

Invariants:
- A broker leads to this enclave only; who is connected to it is nobody until a request is signed.
- A broker serves the one workload whose directory it lies in: another's identity, or none, gets nothing from it.
- Credentials are made when they are asked for, live an hour at most, and are never written to a disk.
- Number of connections and of bytes under way are bounded.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.sessions import Session
from honmaru.ports.runtime import Clock
from honmaru.security.crypto.workload_identity import WorkloadAuthority, peer_id, server_context, spiffe_id

SVID, RELAY, CREDENTIALS = "svid", "aws", "credentials"
BROKER_INSIDE = "/run/broker"
BROKER = "broker"
"""What the enclave's own side is called in its SPIFFE ID."""
CREDENTIALS_S = 3600
_CONNECTIONS = 64
_CHUNK = 1 << 16
_IDLE_S = 900.0

Issue = Callable[[Session, int], Mapping[str, str]]
"""(session, seconds) → {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"}."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where this enclave answers. `ca` is the file of its private CA; None for plain http."""

    host: str
    port: int
    ca: Path | None


class JobBrokers:
    """The brokers of an enclave's jobs. Thread-safe.

    Args:
        directory: Where sockets live; 0700.
        endpoint: Asked for each connection: the port is known only when the enclave answers.
        authority: Makes identities of workloads, and the broker's own.
    """

    def __init__(
        self,
        directory: Path,
        endpoint: Callable[[], Endpoint],
        issue: Issue,
        authority: WorkloadAuthority,
        clock: Clock,
    ) -> None:
        self._directory, self._endpoint, self._issue = directory, endpoint, issue
        self._authority, self._clock = authority, clock
        self._open: dict[str, list[socket.socket]] = {}
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)

    def folder(self, job_id: str) -> Path:
        """The directory to mount into the sandbox."""
        return self._directory / job_id

    def open(
        self,
        job_id: str,
        session: Session,
        workload: str,
        doors: Sequence[str] = (SVID, RELAY, CREDENTIALS),
    ) -> Path:
        """Listen for a job, which may run already (the enclave was restarted). Idempotent; returns the folder.

        `workload` names it in its SPIFFE ID, as `sagemaker/training-job/NAME`. `doors` are the sockets that it has.
        """
        folder = self.folder(job_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            if job_id in self._open:
                return folder
            sockets = [_listen(folder, name) for name in doors]
            self._open[job_id] = sockets
        behind: dict[str, Callable[[socket.socket], None]] = {
            SVID: lambda c: self._identify(c, session, workload),
            RELAY: lambda c: self._known(c, session, workload, self._relay),
            CREDENTIALS: lambda c: self._known(c, session, workload, lambda s: self._hand_out(s, session)),
        }
        for listener, name in zip(sockets, doors, strict=True):
            serve = behind[name]
            threading.Thread(target=self._accept, args=(listener, serve), name=f"broker-{job_id}", daemon=True).start()
        return folder

    def close(self, job_id: str) -> None:
        """Stop listening and remove the sockets. Connections end with the sandbox."""
        with self._lock:
            sockets = self._open.pop(job_id, [])
        for listener in sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._served, args=(connection, serve), name="broker", daemon=True).start()

    def _served(self, connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        try:
            with connection:
                connection.settimeout(_IDLE_S)
                serve(connection)
        except (OSError, ssl.SSLError):
            pass  # either side went away
        finally:
            self._slots.release()

    def _identify(self, connection: socket.socket, session: Session, workload: str) -> None:
        """Hand a workload its identity: whoever reaches this socket is in the sandbox that it was made for."""
        svid = self._authority.issue(session.account, session.label, workload, self._clock.now())
        broker = spiffe_id(self._authority.trust_domain, session.label, session.account, BROKER)
        document = {
            "spiffe_id": svid.spiffe_id,
            "certificate": svid.certificate.decode(),
            "key": svid.key.decode(),
            "bundle": svid.bundle.decode(),
            "expires": svid.expires.timestamp(),
            "broker": broker,
        }
        connection.sendall(json.dumps(document).encode())

    def _known(
        self, connection: socket.socket, session: Session, workload: str, serve: Callable[[socket.socket], None]
    ) -> None:
        """Serve a connection whose other side proves to be the workload."""
        own = self._authority.issue(session.account, session.label, BROKER, self._clock.now())
        with server_context(own).wrap_socket(connection, server_side=True) as secure:
            expected = spiffe_id(self._authority.trust_domain, session.label, session.account, workload)
            if peer_id(secure) == expected:
                serve(secure)

    def _hand_out(self, connection: socket.socket, session: Session) -> None:
        connection.sendall(json.dumps(dict(self._issue(session, CREDENTIALS_S))).encode())

    def _relay(self, inside: socket.socket) -> None:
        endpoint = self._endpoint()
        with socket.create_connection((endpoint.host, endpoint.port), timeout=_IDLE_S) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outside = plain
            if endpoint.ca is not None:
                context = ssl.create_default_context(cafile=str(endpoint.ca))
                outside = context.wrap_socket(plain, server_hostname=endpoint.host)
            with outside:
                _carry(inside, outside)


def _carry(inside: socket.socket, outside: socket.socket) -> None:
    """Copy both ways until either side ends or nothing comes for long.

    One thread does both: a TLS connection must not be read and written by two threads at once. Reading it never waits,
    because what came may be a record without data (a session ticket).
    """
    while True:
        ready: list[socket.socket] = [s for s in (inside, outside) if isinstance(s, ssl.SSLSocket) and s.pending()]
        ready = ready or select.select([inside, outside], [], [], _IDLE_S)[0]
        if not ready:
            return
        for source, sink in ((inside, outside), (outside, inside)):
            if source not in ready:
                continue
            source.settimeout(0)
            try:
                data = source.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            finally:
                source.settimeout(_IDLE_S)
            if not data:
                return
            sink.sendall(data)


def _listen(folder: Path, name: str) -> socket.socket:
    (folder / name).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # A socket path holds at most 107 bytes; through /proc the folder may lie as deep as it likes.
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{handle}/{name}")
    finally:
        os.close(handle)
    (folder / name).chmod(0o600)
    listener.listen(_CONNECTIONS)
    return listener
