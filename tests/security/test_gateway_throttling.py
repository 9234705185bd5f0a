"""Rates of a principal and of an account: AWS's throttling errors in each protocol, which botocore retries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from honmaru.core.labels import Label
from honmaru.gateway.limits import Limits
from honmaru.testing.gateways import REGION, GatewayUnderTest, Reply

LIMITS = Limits(principal_requests_s=0.5, burst_s=8.0, account_requests_s=1000.0, unverified_bytes=400_000)
FORM = ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
IDENTITY = b"Action=GetCallerIdentity&Version=2011-06-15"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayUnderTest]:
    made = GatewayUnderTest(tmp_path, limits=LIMITS)
    yield made
    made.close()


def client(service: str, port: int, key: tuple[str, str], attempts: int) -> object:
    return boto3.Session(aws_access_key_id=key[0], aws_secret_access_key=key[1], region_name=REGION).client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        config=Config(retries={"mode": "standard", "total_max_attempts": attempts}),
    )


@pytest.mark.parametrize(
    ("service", "operation", "code", "status"),
    [("sts", "get_caller_identity", "Throttling", 400), ("s3", "list_buckets", "SlowDown", 503)],
)
def test_a_throttled_client_learns_it_in_its_protocol_and_botocore_retries(
    gateway: GatewayUnderTest, service: str, operation: str, code: str, status: int
) -> None:
    with gateway.served() as port:
        hasty = client(service, port, gateway.low, 1)
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            for _ in range(100):
                getattr(hasty, operation)()
        assert refused.value.response["Error"]["Code"] == code
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        patient = client(service, port, gateway.low, 6)
        answer = getattr(patient, operation)()
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert answer["ResponseMetadata"]["RetryAttempts"] >= 1


def test_json_services_say_throttling_exception(gateway: GatewayUnderTest) -> None:
    """There is no json service here; the error itself is what the wire makes of a refusal before its operation."""
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", "SageMaker.ListTrainingJobs")]
    replies = [gateway.send(gateway.signed("sagemaker", "POST", "/", headers=headers, body=b"{}")) for _ in range(6)]
    assert replies[0].status == 501
    assert replies[-1].status == 400
    assert b'"__type":"ThrottlingException"' in replies[-1].body


def test_who_is_throttled_throttles_nobody_else_and_no_other_label(gateway: GatewayUnderTest) -> None:
    def ask(key: tuple[str, str]) -> int:
        return gateway.send(gateway.signed("sts", "POST", "/", headers=[FORM], body=IDENTITY, key=key)).status

    gateway.identity.create_user("bob", "SECRET", ["AdministratorAccess"])
    bob = gateway.identity.access_key("bob", Label.parse("SECRET"))
    assert [ask(gateway.low) for _ in range(6)][-1] == 400
    assert ask(gateway.high) == 200  # the same person at another label: rates tell no label about another
    assert ask(bob) == 200


def test_refusals_for_the_rate_are_in_the_ledger(gateway: GatewayUnderTest) -> None:
    for _ in range(6):
        gateway.send(gateway.signed("sts", "POST", "/", headers=[FORM], body=IDENTITY, key=gateway.low))
    entries = gateway.ledger.entries[Label.parse("UNCLASSIFIED").canonical]
    assert len(entries) == 6
    assert [entry.get("errorCode") for entry in entries[-2:]] == ["Throttling", "Throttling"]


def test_bodies_of_strangers_who_know_a_key_id_have_a_budget(gateway: GatewayUnderTest) -> None:
    """Four bodies that are not verified yet, each within the limit of one body, together beyond half of the budget."""
    low, high = gateway.low, gateway.high
    body = b"Action=GetCallerIdentity&Version=2011-06-15&x=" + b"y" * 90_000

    async def scene() -> tuple[list[Reply], Reply]:
        waiting = asyncio.Event()
        held: list[asyncio.Task[Reply]] = []

        async def slow(key: tuple[str, str]) -> Reply:
            request = gateway.signed("sts", "POST", "/", headers=[FORM], body=body, key=key)
            return await send_slowly(gateway, request, waiting)

        held = [asyncio.ensure_future(slow((low[0], "x" * 40))) for _ in range(4)]
        await asyncio.sleep(0.05)
        other = await gateway.send_async(gateway.signed("sts", "POST", "/", headers=[FORM], body=body, key=high))
        waiting.set()
        return await asyncio.gather(*held), other

    replies, other = asyncio.run(scene())
    assert sorted(reply.status for reply in replies)[:2] == [400, 400]  # throttled
    assert {b"Throttling" in reply.body for reply in replies if reply.status == 400} == {True}
    assert [reply.status for reply in replies].count(403) == 2  # these were read to the end: a wrong signature
    assert other.status == 400 and b"Throttling" not in other.body  # another key's body is read: an unknown parameter


async def send_slowly(gateway: GatewayUnderTest, request: object, waiting: asyncio.Event) -> Reply:
    """All of the body but its end, then the end once `waiting` is set."""
    pieces = [request.body[:-1], request.body[-1:]]  # type: ignore[attr-defined]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        if len(pieces) == 1:
            await waiting.wait()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(n.lower().encode(), v.encode()) for n, v in request.headers],  # type: ignore[attr-defined]
        "client": ("127.0.0.1", 1),
        "scheme": "https",
    }
    await gateway.gateway(scope, receive, send)
    return Reply(sent[0]["status"], {}, b"".join(message.get("body", b"") for message in sent[1:]))


def test_an_account_has_a_rate_too(tmp_path: Path) -> None:
    gateway = GatewayUnderTest(tmp_path, limits=replace(LIMITS, principal_requests_s=0.0, account_requests_s=0.5))
    try:
        gateway.identity.create_user("bob", "SECRET", ["AdministratorAccess"])
        keys = [gateway.high, gateway.identity.access_key("bob", Label.parse("SECRET"))]
        statuses = [
            gateway.send(gateway.signed("sts", "POST", "/", headers=[FORM], body=IDENTITY, key=keys[n % 2])).status
            for n in range(8)
        ]
    finally:
        gateway.close()
    assert statuses[:4] == [200] * 4
    assert statuses[-1] == 400
