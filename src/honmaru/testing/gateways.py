"""A gateway over a real keep and identity, driven as an ASGI application without sockets; or served on loopback.

Requests are made and signed by botocore, as real clients make them, and can be changed before they are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import botocore.awsrequest
import botocore.credentials

from honmaru.app.runtime import SystemClock, SystemIds
from honmaru.core.labels import Label
from honmaru.gateway.app import Gateway
from honmaru.gateway.limits import Limits
from honmaru.gateway.links import Forwarder
from honmaru.gateway.server import serve
from honmaru.security.calls import Provider
from honmaru.security.guard import Guard, Peers
from honmaru.security.identity import Identity
from honmaru.security.page_tokens import PageTokens
from honmaru.testing.keep import MemoryLog

REGION = "us-isob-east-1"
PARTITION = "aws-iso-b"
ACCOUNT = "123456789012"
HOST = "127.0.0.1:8443"


@dataclass
class Request:
    """One HTTP request, ready to be sent or changed."""

    method: str
    path: str
    query: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    scheme: str = "https"

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def with_header(self, name: str, value: str | None) -> Request:
        """This request with a header replaced, added, or (None) removed."""
        rest = [(key, old) for key, old in self.headers if key.lower() != name.lower()]
        headers = rest if value is None else [*rest, (name, value)]
        return Request(self.method, self.path, self.query, headers, self.body, self.scheme)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class GatewayUnderTest:
    """A gateway with `providers`, an admin key at UNCLASSIFIED and one at SECRET."""

    def __init__(
        self,
        directory: Path,
        providers: Sequence[Provider] | None = None,
        *,
        limits: Limits | None = None,
        peers: Peers | None = None,
        forwarder: Forwarder | None = None,
    ) -> None:
        from honmaru.security.crypto.keyring import Keyring
        from honmaru.services.s3.cors import CrossOrigin
        from honmaru.stores.blobs_obstore import ObstoreBlobStore
        from honmaru.stores.records_sql import SqlRecordStore

        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.clock = SystemClock()
        self.ids = SystemIds()
        self.ledger = MemoryLog()
        keyring = Keyring(directory / "keys", self.ids.secret)
        self._store = SqlRecordStore(f"sqlite:///{directory / 'records.db'}")
        self.guard = Guard(
            self._store, ObstoreBlobStore(directory / "blobs"), keyring, self.ledger, self.clock, self.ids, peers=peers
        )
        self.identity = Identity(
            self.guard,
            partition=PARTITION,
            region=REGION,
            account=ACCOUNT,
            clock=self.clock,
            ids=self.ids,
            keyring=keyring,
        )
        self.identity.bootstrap()
        self.limits = limits or Limits()
        self.gateway = Gateway(
            providers=providers if providers is not None else self.standard_providers(),
            identity=self.identity,
            guard=self.guard,
            ledger=self.ledger,
            clock=self.clock,
            ids=self.ids,
            region=REGION,
            partition=PARTITION,
            limits=self.limits,
            cache=directory / "cache",
            pages=PageTokens(self.ids.secret(64)),
            cross_origin=CrossOrigin(self.guard),
            forwarder=forwarder,
        )
        self.low = self.identity.access_key("admin", Label.parse("UNCLASSIFIED"))
        self.high = self.identity.access_key("admin", Label.parse("SECRET"))
        self.ledger.entries.clear()

    def standard_providers(self) -> list[Provider]:
        """S3, STS and IAM as the enclave has them."""
        from honmaru.services.iam.provider import Iam
        from honmaru.services.s3.bucket import BucketCommits
        from honmaru.services.s3.provider import S3
        from honmaru.services.sts.provider import Sts

        return [S3(self.ids, BucketCommits()), Sts(self.identity), Iam(self.identity)]

    def close(self) -> None:
        self.gateway.close()
        self._store.close()

    # Requests

    def signed(
        self,
        service: str,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        key: tuple[str, str] | None = None,
        region: str = REGION,
        token: str | None = None,
        at: datetime | None = None,
        scheme: str = "https",
    ) -> Request:
        """A request signed by botocore."""
        url = f"{scheme}://{HOST}{path}" + (f"?{query}" if query else "")
        request = botocore.awsrequest.AWSRequest(method, url, dict(headers), body)
        credentials = botocore.credentials.Credentials(*(key or self.high), token)
        signer_class = botocore.auth.S3SigV4Auth if service == "s3" else botocore.auth.SigV4Auth
        signer = signer_class(credentials, service, region)
        if at is not None:
            _signed_at(signer, request, at)
        else:
            signer.add_auth(request)
        found = [(name, value) for name, value in request.headers.items()]
        if not any(name.lower() == "host" for name, _ in found):
            found.append(("Host", HOST))
        if not any(name.lower() == "content-length" for name, _ in found):
            found.append(("Content-Length", str(len(body))))
        return Request(method, path, query, found, body, scheme)

    def presigned(self, service: str, method: str, path: str, *, query: str = "", expires_s: int = 60) -> Request:
        url = f"https://{HOST}{path}" + (f"?{query}" if query else "")
        request = botocore.awsrequest.AWSRequest(method, url)
        credentials = botocore.credentials.Credentials(*self.high)
        kind = botocore.auth.S3SigV4QueryAuth if service == "s3" else botocore.auth.SigV4QueryAuth
        kind(credentials, service, REGION, expires=expires_s).add_auth(request)
        parts = urlsplit(request.url)
        return Request(method, parts.path, parts.query, [("Host", HOST)])

    def send(self, request: Request) -> Reply:
        """Runs the ASGI application on one request."""
        return asyncio.run(self.send_async(request))

    async def send_async(self, request: Request, *, pieces: int = 1, whole: bool = False) -> Reply:
        """`whole`: the body is here before the request is looked at, as with most requests on a socket."""
        scope: dict[str, Any] = {
            "type": "http",
            "method": request.method,
            "raw_path": request.path.encode("latin-1"),
            "path": request.path,
            "query_string": request.query.encode("latin-1"),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8443),
            "scheme": request.scheme,
            "http_version": "1.1",
        }
        size = max(1, -(-len(request.body) // pieces))
        parts = [request.body[at : at + size] for at in range(0, len(request.body), size)] or [b""]
        if whole:
            scope["honmaru.body"] = lambda: parts.pop(0) if parts else None
        sent: list[dict[str, Any]] = []
        finished = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await finished.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.gateway(scope, receive, send)
        finished.set()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))

    @contextlib.contextmanager
    def served(self, certificate: Path | None = None, key: Path | None = None) -> Iterator[int]:
        """The gateway on a free loopback port; gives the port."""
        ports: list[int] = []
        up = threading.Event()
        stopping = threading.Event()

        def ready(port: int) -> None:
            ports.append(port)
            up.set()

        def run() -> None:
            serve(
                self.gateway,
                host="127.0.0.1",
                port=0,
                certificate=certificate,
                key=key,
                limits=self.limits,
                ready=ready,
                stopping=stopping,
            )

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        if not up.wait(10):
            raise RuntimeError("the gateway did not start")
        try:
            yield ports[0]
        finally:
            stopping.set()
            thread.join(15)


def _signed_at(signer: Any, request: Any, at: datetime) -> None:
    """As `add_auth`, at a stated time."""
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    request.context["timestamp"] = stamp
    signer._modify_request_before_signing(request)
    if "X-Amz-Date" in request.headers:
        del request.headers["X-Amz-Date"]
    request.headers["X-Amz-Date"] = stamp
    canonical = signer.canonical_request(request)
    signer._inject_signature_to_request(request, signer.signature(signer.string_to_sign(request, canonical), request))
