"""The parts of worker processes: the channel, the lent ledger, news of other processes, what is handed over."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from honmaru.app.workers.channel import Channel, ChannelClosed, Kind
from honmaru.app.workers.lent import ENTRY, NUMBER, LentBlobs, LentLedger
from honmaru.core.errors import ConfigurationFault, LedgerUnavailable, StoreUnavailable
from honmaru.core.labels import BOTTOM
from honmaru.gateway.links import Forwarder
from honmaru.gateway.news import News
from honmaru.gateway.server import listeners
from honmaru.testing.gateways import GatewayUnderTest
from honmaru.testing.keep import quick_directory

# The channel


class End:
    """One end of a channel, and what came over it."""

    def __init__(self, connection: socket.socket) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.ended = threading.Event()
        self.channel = Channel(connection, lambda kind, payload: self.frames.append((kind, payload)), self.ended.set)
        self.channel.start()

    def came(self, count: int) -> list[tuple[int, bytes]]:
        until = time.monotonic() + 10
        while len(self.frames) < count and time.monotonic() < until:
            time.sleep(0.005)
        return self.frames


@pytest.fixture
def pair() -> Iterator[tuple[End, End]]:
    one, other = (End(connection) for connection in socket.socketpair())
    yield one, other
    for end in (one, other):
        threading.Thread(target=end.channel.close, daemon=True).start()


def test_frames_arrive_whole_in_order_and_before_the_end(pair: tuple[End, End]) -> None:
    one, other = pair
    sent = [(int(Kind.ENTRY), bytes([number % 256]) * (number * 997 % 100_000)) for number in range(200)]
    for _, payload in sent:
        one.channel.send(Kind.ENTRY, payload[:10], payload[10:])
    threading.Thread(target=one.channel.close, daemon=True).start()
    assert other.ended.wait(10)
    assert other.frames == sent
    with pytest.raises(ChannelClosed):
        other.channel.send(Kind.DURABLE)


def test_a_peer_that_takes_nothing_loses_its_channel() -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    with pytest.raises(ChannelClosed, match="takes nothing"):
        for _ in range(200):
            end.channel.send(Kind.ENTRY, bytes(1 << 20))
    assert end.ended.wait(10)
    theirs.close()


def test_a_frame_beyond_its_bound_ends_the_channel() -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    theirs.sendall(b"\xff\xff\xff\xff\x01")
    theirs.shutdown(socket.SHUT_WR)
    assert end.ended.wait(10) and end.frames == []
    theirs.close()


# The lent ledger


def entry(number: int) -> dict[str, Any]:
    return {"eventID": f"event-{number}"}


def test_an_entry_is_durable_when_the_first_process_says_so(pair: tuple[End, End]) -> None:
    worker, first = pair
    ledger = LentLedger(worker.channel)
    change, call = ledger.append(BOTTOM, entry(1)), Future[Any]()
    ledger.append_to(BOTTOM, entry(2), call)
    kinds = [(kind, ENTRY.unpack_from(payload)[:2]) for kind, payload in first.came(2)]
    assert kinds == [(Kind.ENTRY, (1, len("event-1"))), (Kind.ENTRY, (2, 0))], "only a change brings its event id"
    assert not change.done()
    ledger.settle(1, durable=True)
    assert change.result() is None and not call.done()
    ledger.settle(2, durable=False)
    with pytest.raises(LedgerUnavailable):
        call.result()
    assert not ledger.writable
    with pytest.raises(LedgerUnavailable):
        ledger.append(BOTTOM, entry(3))
    ledger.tell(True)
    assert ledger.writable


def test_without_the_first_process_every_entry_fails_and_none_is_taken(pair: tuple[End, End]) -> None:
    worker, first = pair
    ledger = LentLedger(worker.channel)
    waiting = ledger.append(BOTTOM, entry(1))
    first.came(1)
    ledger.fail()
    with pytest.raises(LedgerUnavailable):
        waiting.result(5)
    with pytest.raises(LedgerUnavailable):
        ledger.append(BOTTOM, entry(2))
    ledger.tell(True)
    assert not ledger.writable, "nobody can say so any more"


def test_what_is_named_waits_for_the_process_that_sweeps(pair: tuple[End, End]) -> None:
    worker, first = pair
    blobs = LentBlobs(worker.channel)
    done = threading.Event()

    def name() -> None:
        blobs.spare(["blob-1"])
        done.set()

    threading.Thread(target=name, daemon=True).start()
    ((kind, payload),) = first.came(1)
    assert kind == Kind.SPARE and not done.wait(0.05)
    blobs.spared(NUMBER.unpack(payload[: NUMBER.size])[0])
    assert done.wait(5)
    first.channel._connection.shutdown(socket.SHUT_RDWR)
    worker.ended.wait(5)
    with pytest.raises(StoreUnavailable):
        blobs.spare(["blob-2"])


# News


def test_the_store_is_asked_when_what_is_known_is_too_old() -> None:
    times, asked = [0.0], []
    news = News(lambda: asked.append(times[0]), lambda: times[0], prompt=True)
    for times[0] in (0.0, 0.1, 0.19, 0.3, 0.31, 5.0):
        assert news.fresh() is None
    assert asked == [0.0, 0.3, 5.0]


def test_nothing_is_decided_while_the_store_does_not_say_what_changed() -> None:
    def broken() -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        News(broken, time.monotonic, prompt=True).fresh()

    async def ask(news: News) -> None:
        waiting = news.fresh()
        assert waiting is not None
        await waiting

    with pytest.raises(StoreUnavailable, match="away"):
        asyncio.run(ask(News(broken, time.monotonic, prompt=False)))
    with pytest.raises(StoreUnavailable, match="in time"):
        asyncio.run(ask(News(lambda: time.sleep(0.8), time.monotonic, prompt=False)))
    asyncio.run(ask(News(lambda: time.sleep(0.01), time.monotonic, prompt=False)))


# What is handed over


class Elsewhere(Forwarder):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"))
        self.given: list[tuple[str, bytes | None]] = []

    async def forward(self, exchange: Any, body: bytes | None = None) -> None:
        self.given.append((exchange.method, body))
        await exchange.send({"type": "http.response.start", "status": 299, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b""})


FORM = [("Content-Type", "application/x-www-form-urlencoded")]
WHO = b"Action=GetCallerIdentity&Version=2011-06-15"


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[GatewayUnderTest, Elsewhere]]:
    with quick_directory() as directory:
        elsewhere = Elsewhere()
        made = GatewayUnderTest(directory / "keep", forwarder=elsewhere)
        yield made, elsewhere
        made.close()


@pytest.mark.parametrize(
    ("service", "method", "path", "body", "here"),
    [
        ("s3", "GET", "/", b"", True),
        ("s3", "PUT", "/bucket", b"", False),
        ("s3", "GET", "/bucket/key", b"", True),
        ("s3", "GET", "/bucket?policy=", b"", False),
        ("sts", "POST", "/", WHO, True),
        ("sts", "POST", "/", WHO + b"&x=y", False),
        ("sts", "POST", "/", WHO + b"&Action=AssumeRole", False),
        ("sts", "POST", "/", b"Action=GetSessionToken&Version=2011-06-15", False),
        ("sts", "POST", "/", b"", False),
        ("iam", "POST", "/", b"Action=ListUsers&Version=2010-05-08", False),
    ],
)
def test_a_worker_answers_what_any_process_may_and_hands_the_rest_over(
    worker: tuple[GatewayUnderTest, Elsewhere], service: str, method: str, path: str, body: bytes, here: bool
) -> None:
    gateway, elsewhere = worker
    elsewhere.given.clear()
    counted = sum(gateway.gateway.meter.counts().values())
    path, _, query = path.partition("?")
    request = gateway.signed(service, method, path, query=query, headers=FORM if body else (), body=body)
    reply = asyncio.run(gateway.send_async(request, whole=True))
    assert (reply.status != 299) is here and (elsewhere.given == []) is here
    assert (sum(gateway.gateway.meter.counts().values()) == counted + 1) is here, "who answers, counts"
    if not here:
        assert elsewhere.given == [(method, body if service in ("sts", "iam") else None)]


def test_what_a_worker_may_not_carry_out_it_does_not_carry_out(
    worker: tuple[GatewayUnderTest, Elsewhere], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sabotage: the hand-over is left out."""
    gateway, _ = worker
    wire = gateway.gateway.wires[-1]
    life = tuple(each for each in gateway.gateway._lives[wire] if "hand_over" not in getattr(each, "__name__", ""))
    monkeypatch.setitem(gateway.gateway._lives, wire, life)
    body = b"Action=CreateUser&Version=2010-05-08&UserName=mallory"
    assert gateway.send(gateway.signed("iam", "POST", "/", headers=FORM, body=body)).status == 500
    assert "mallory" not in [user["name"] for user in gateway.identity.users()]


# The port


def test_listeners_share_a_port_among_themselves_only() -> None:
    made = listeners("127.0.0.1", 0, 3)
    try:
        port = made[0].getsockname()[1]
        assert {each.getsockname()[1] for each in made} == {port}
        for each in made:
            each.listen()
        with pytest.raises(ConfigurationFault, match="cannot be bound"):
            listeners("127.0.0.1", port, 2)
    finally:
        for each in made:
            each.close()
