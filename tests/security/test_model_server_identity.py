"""Model servers have identities of their own: the enclave believes the right one only, and they answer it only."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from honmaru.app.runtime import SystemClock
from honmaru.deployments.client import Pool, ServerGone, UnixPlace
from honmaru.jobs.job_broker import Endpoint, JobBrokers
from honmaru.jobs.server_identities import ModelServerIdentities
from honmaru.ports.server_identities import ServerIdentityGone
from honmaru.security.crypto.workload_identity import WorkloadAuthority
from honmaru.testing.keep import session
from honmaru.workloads import bridge
from honmaru.workloads.serving_identity import ServingIdentity


class Site:
    """An authority, its brokers, and the identities of three servers: a and b at SECRET, c below."""

    def __init__(self, directory: Path) -> None:
        clock = SystemClock()
        authority = WorkloadAuthority("us-isob-east-1", clock.now())
        self.brokers = JobBrokers(
            directory / "brokers", lambda: Endpoint("127.0.0.1", 1, None), lambda *_: {}, authority, clock
        )
        self.identities = ModelServerIdentities(self.brokers, authority, clock)
        self.folders = {
            name: self.identities.open(name, session(marking))
            for name, marking in (("server-a", "SECRET"), ("server-b", "SECRET"), ("server-c", "UNCLASSIFIED"))
        }
        self.sockets = directory

    def pool(self, server: str, socket_name: str) -> Pool:
        return Pool(UnixPlace(self.sockets, socket_name, self.identities, server))

    @asynccontextmanager
    async def serving(self, server: str, socket_name: str) -> AsyncIterator[ServingIdentity]:
        """The bridge on a socket, with a server's identity, before something that speaks HTTP on loopback."""

        async def inner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not await reader.read(1 << 16):
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()
            writer.close()

        identity = ServingIdentity(self.folders[server])
        behind = await asyncio.start_server(inner, "127.0.0.1", 0)
        port = behind.sockets[0].getsockname()[1]
        front = await asyncio.start_unix_server(
            lambda r, w: bridge._answer(r, w, port, identity), str(self.sockets / socket_name), ssl=identity.context
        )
        try:
            yield identity
        finally:
            front.close()
            behind.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for name in made.folders:
        made.identities.close(name)


async def asked(pool: Pool) -> str:
    async with await pool.call("GET", "/health", head_s=5) as reply:
        return f"{reply.status} {(await reply.text()).decode()}"


def test_both_sides_are_named(site: Site) -> None:
    async def run() -> None:
        async with site.serving("server-a", "a"):
            assert await asked(site.pool("server-a", "a")) == "200 ok"
            # What serves here is server-a: for server-b, and for a server at another label, it is somebody else.
            for other in ("server-b", "server-c"):
                with pytest.raises(ServerGone):
                    await asked(site.pool(other, "a"))

    asyncio.run(run())


def test_a_server_answers_nobody_but_the_enclave(site: Site) -> None:
    async def run() -> None:
        async with site.serving("server-a", "a"):
            request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"

            def bare() -> bytes:
                with socket.socket(socket.AF_UNIX) as plain:
                    plain.settimeout(5)
                    plain.connect(str(site.sockets / "a"))
                    plain.sendall(request)
                    try:
                        return plain.recv(100)
                    except OSError:
                        return b""

            def named(context: ssl.SSLContext) -> bytes:
                with socket.socket(socket.AF_UNIX) as plain:
                    plain.settimeout(5)
                    plain.connect(str(site.sockets / "a"))
                    try:
                        with context.wrap_socket(plain, server_hostname=None) as secure:
                            secure.sendall(request)
                            return secure.recv(100)
                    except OSError:
                        return b""

            assert b"200" not in await asyncio.to_thread(bare)
            assert await asyncio.to_thread(named, site.identities.context("server-b")) != b""  # the enclave itself
            assert await asyncio.to_thread(named, site.identities.context("server-c")) == b""  # it, at another label
            for context in (_as_workload(site, "server-b"), _nobody()):
                assert await asyncio.to_thread(named, context) == b""

    asyncio.run(run())


def _nobody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _as_workload(site: Site, server: str) -> ssl.SSLContext:
    """A client with the identity of another model server, which reached this one's socket."""
    context, document = _nobody(), ServingIdentity(site.folders[server])._fetch()
    pem = site.sockets / "other.pem"
    pem.write_text(document["certificate"] + document["key"])
    context.load_cert_chain(pem)
    return context


def test_an_identity_is_renewed_and_lasts_minutes(site: Site) -> None:
    async def run() -> None:
        async with site.serving("server-a", "a") as identity:

            def shown() -> x509.Certificate:
                with socket.socket(socket.AF_UNIX) as plain:
                    plain.connect(str(site.sockets / "a"))
                    with site.identities.context("server-a").wrap_socket(plain) as secure:
                        der: Any = secure.getpeercert(binary_form=True)
                        return x509.load_der_x509_certificate(der)

            first = await asyncio.to_thread(shown)
            assert first.not_valid_after_utc - first.not_valid_before_utc < timedelta(minutes=20)
            identity._show(identity._fetch())
            second = await asyncio.to_thread(shown)
            assert second.serial_number != first.serial_number
            assert await asked(site.pool("server-a", "a")) == "200 ok"

    asyncio.run(run())


def test_a_server_that_was_stopped_has_no_identity_left(site: Site) -> None:
    folder = site.folders["server-a"]
    assert sorted(each.name for each in folder.iterdir()) == ["svid"]  # it leads nowhere else
    site.identities.close("server-a")
    with pytest.raises(ServerIdentityGone):
        site.identities.context("server-a")
    assert site.identities.name("server-a") == "" and not folder.exists()
    with pytest.raises(OSError):
        ServingIdentity(folder)
