"""Clients that send or take slowly hold up nobody else, and one principal does not take every place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.errors import Throttled, ValidationFault
from honmaru.gateway.limits import Limits
from honmaru.gateway.places import Places
from honmaru.services.iam.simulation import Simulation
from honmaru.testing.gateways import GatewayUnderTest, Reply, Request

LIMITS = Limits(
    workers=2, queued=2, uploads=6, uploads_each=4, streams=4, streams_each=2, idle_s=0.3, upload_bytes_s=50
)
SIZE = 100_000


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayUnderTest]:
    made = GatewayUnderTest(tmp_path, limits=LIMITS)
    assert made.send(made.signed("s3", "PUT", "/bucket", key=made.low)).status == 200
    yield made
    made.close()


class SlowUpload:
    """A PutObject that sends one byte in a while and never ends by itself."""

    def __init__(self, gateway: GatewayUnderTest, name: str, key: tuple[str, str], every_s: float) -> None:
        headers = [("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), ("content-length", str(SIZE))]
        request = gateway.signed("s3", "PUT", f"/bucket/{name}", headers=headers, key=key)
        self.every_s, self.sent, self.status, self.body = every_s, 0, 0, b""
        self.task = asyncio.ensure_future(gateway.gateway(scope_of(request), self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(self.every_s)
        self.sent += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


def scope_of(request: Request) -> dict[str, Any]:
    return {
        "type": "http",
        "method": request.method,
        "raw_path": request.path.encode(),
        "path": request.path,
        "query_string": request.query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in request.headers],
        "client": ("127.0.0.1", 50000),
        "scheme": "https",
    }


def test_slow_uploads_hold_up_no_other_operation(gateway: GatewayUnderTest) -> None:
    async def scene() -> tuple[Reply, list[SlowUpload]]:
        slow = [SlowUpload(gateway, f"slow-{number}", gateway.low, 0.05) for number in range(4)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            reply = await gateway.send_async(gateway.signed("s3", "GET", "/", key=gateway.low))
        assert not any(upload.task.done() for upload in slow)
        await asyncio.gather(*(upload.task for upload in slow))
        return reply, slow

    reply, slow = asyncio.run(scene())
    assert reply.status == 200
    # 20 bytes a second never leave the idle limit, and are fewer than an upload must bring.
    assert {upload.status for upload in slow} == {400}
    assert all(b"RequestTimeout" in upload.body for upload in slow)


def test_one_principal_leaves_places_to_others_and_learns_that_it_must_wait(gateway: GatewayUnderTest) -> None:
    async def scene() -> tuple[SlowUpload, Reply]:
        slow = [SlowUpload(gateway, f"slow-{number}", gateway.low, 0.05) for number in range(5)]
        await asyncio.sleep(0.1)
        refused = next(upload for upload in slow if upload.task.done())
        other = await gateway.send_async(gateway.signed("s3", "PUT", "/bucket/other", body=b"x", key=gateway.high))
        await asyncio.gather(*(upload.task for upload in slow))
        return refused, other

    refused, other = asyncio.run(scene())
    assert refused.status == 503
    assert b"SlowDown" in refused.body
    assert other.status == 200  # the same person at another label has places of its own


def test_places() -> None:
    places = Places(3, 2)
    with places.taken("a"), places.taken("a"):
        with pytest.raises(Throttled), places.taken("a"):
            pass
        with places.taken("b"), pytest.raises(Throttled), places.taken("c"):
            pass
    with places.taken("a"), places.taken("b"), places.taken("c"):
        pass


def test_one_simulation_asks_a_bounded_number_of_questions() -> None:
    """Actions and resources multiply: one small request would keep a thread for hours."""
    request = {"ActionNames": ["s3:GetObject"] * 1000, "ResourceArns": ["*"] * 1000, "PolicyInputList": []}
    with pytest.raises(ValidationFault, match="1000000 combinations"):
        Simulation().simulate_custom_policy(None, request)  # type: ignore[arg-type]
