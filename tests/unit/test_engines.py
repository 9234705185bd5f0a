"""Declared engines: who may reach them, how replicas share the work, what a failure means for the next request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from honmaru.app.runtime import SystemClock, SystemIds
from honmaru.core.errors import ConfigurationFault, EngineFailed, NotReady, Throttled, ValidationFault
from honmaru.deployments import Engines, ModelServers
from honmaru.deployments.engines import read_engine
from honmaru.ports.models import Generation
from honmaru.testing.keep import ACCOUNT, session

ASK = Generation(messages=[{"role": "user", "content": "hi"}], max_tokens=4)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
WHOLE = {"choices": [{"message": {"content": "good"}, "finish_reason": "stop"}], "usage": USAGE}


class Fake:
    """A model server that does what `script` says: "good", "slow", "broken" (500), "wrong" (400), "busy" (429),
    "garbage", "cut" (a stream that breaks off), "gone" (hangs up)."""

    def __init__(self) -> None:
        self.script = "good"
        self.asked = 0
        self.models: list[str] = []
        self.active = 0
        self.hung_up = 0
        self.port = 0
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(size) or b"{}")
                if b"/v1/models" in head:
                    writer.write(_reply(503 if self.script == "broken" else 200, {"data": []}))
                    continue
                self.asked += 1
                self.models.append(body["model"])
                self.active += 1
                try:
                    await self._answer(reader, writer, body)
                finally:
                    self.active -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Any) -> None:
        if self.script == "gone":
            writer.close()
            raise ConnectionError
        if self.script in ("broken", "wrong", "busy"):
            status = {"broken": 500, "wrong": 400, "busy": 429}[self.script]
            writer.write(_reply(status, {"error": {"message": f"it is {self.script}\nTraceback: secret.py"}}))
        elif self.script == "garbage":
            writer.write(_reply(200, {"choices": "none"}))
        elif body.get("stream"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            _event(writer, {"choices": [{"delta": {"content": "go"}}]})
            if self.script == "cut":
                writer.close()
                raise ConnectionError
            if self.script == "slow":
                await self._until_left(reader)
            _event(writer, {"choices": [{"delta": {"content": "od"}, "finish_reason": "stop"}]})
            _event(writer, {"choices": [], "usage": USAGE})
            _chunk(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
        else:
            if self.script == "slow":
                await self._until_left(reader)
            writer.write(_reply(200, WHOLE))

    async def _until_left(self, reader: asyncio.StreamReader) -> None:
        await reader.read(1)
        self.hung_up += 1
        raise ConnectionError


def _reply(status: int, value: Any) -> bytes:
    data = json.dumps(value).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(data)) + data


def _event(writer: asyncio.StreamWriter, value: Any) -> None:
    _chunk(writer, b"data: " + json.dumps(value).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n" % len(data) + data + b"\r\n")


class Site:
    """Fakes, declared as replicas of one model at SECRET."""

    def __init__(self, folder: Path, fakes: list[Fake]) -> None:
        self.fakes = fakes
        self.file = folder / "engines.json"
        self.declare()
        self.problems: list[str] = []
        self.engines = Engines(self.file, account=ACCOUNT, problem=self.problems.append)
        self.clock = SystemClock()
        self.servers = ModelServers(
            None,
            None,
            None,
            self.clock,
            SystemIds(),
            folder / "models",
            engines=self.engines,
            idle_s=60,  # type: ignore[arg-type]
        )

    def declare(self, **more: Any) -> None:
        replicas = [{"url": f"http://127.0.0.1:{fake.port}", "label": "SECRET"} for fake in self.fakes]
        entry = {"replicas": replicas, "features": ["tools"], "requests": 2, **more}
        self.file.write_text(json.dumps({"acme.big": entry}))

    @property
    def model(self) -> Any:
        return self.engines.find(session("SECRET"), "acme.big")

    async def whole(self, who: Any = None) -> str:
        completion = await self.servers.complete(who or session("SECRET"), self.model, ASK)
        return completion.choices[0].text

    async def streamed(self) -> str:
        text = ""
        async for delta in self.servers.generate(session("SECRET"), self.model, ASK):
            text += delta.text
        return text


@asynccontextmanager
async def site(folder: Path, count: int = 1) -> AsyncIterator[Site]:
    fakes = [Fake() for _ in range(count)]
    listeners = []
    for fake in fakes:
        listener = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
        fake.port = listener.sockets[0].getsockname()[1]
        listeners.append(listener)
    made = Site(folder, fakes)
    yield made
    made.servers._closed = True
    if made.servers._watcher is not None:
        made.servers._watcher.cancel()
    for deployment in made.servers._deployments.values():
        made.servers._drop(deployment)
    for listener in listeners:
        listener.close()


def run(folder: Path, scenario: Callable[[Site], Coroutine[Any, Any, None]], count: int = 1) -> None:
    async def work() -> None:
        async with site(folder, count) as made:
            await scenario(made)

    asyncio.run(asyncio.wait_for(work(), 30))


def test_whole_and_streamed_answers_reuse_their_connections(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for _ in range(5):
            assert await site.whole() == await site.streamed() == "good"
        assert site.fakes[0].connections == 1

    run(tmp_path, scenario)


def test_a_url_serves_exactly_its_label_and_account(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for marking in ("UNCLASSIFIED", "TOP SECRET"):
            assert site.engines.find(session(marking), "acme.big") is None
            assert list(site.engines.all(session(marking))) == []
        other = replace(session("SECRET"), account="999999999999")
        assert site.engines.find(other, "acme.big") is None
        assert [model.name for model in site.engines.all(session("SECRET"))] == ["acme.big"]
        assert site.engines.find(session("SECRET"), "acme.none") is None
        arn = site.model.arn
        assert site.engines.find(session("SECRET"), arn).arn == arn  # type: ignore[union-attr]
        assert site.engines.find(session("SECRET"), arn.replace("us-", "eu-")) is None

    run(tmp_path, scenario)


def test_two_labels_and_two_accounts_share_no_replica(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        low, high = site.fakes
        other = "999999999999"
        replicas = [
            {"url": f"http://127.0.0.1:{low.port}", "label": "SECRET"},
            {"url": f"http://127.0.0.1:{high.port}", "label": "SECRET", "account": other},
        ]
        site.declare(replicas=replicas)
        for _ in range(3):
            await site.whole()
        assert (low.asked, high.asked) == (3, 0)
        stranger = replace(session("SECRET"), account=other)
        model = site.engines.find(stranger, "acme.big")
        low.script = "slow"
        busy = [asyncio.create_task(site.whole()) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Throttled):
            await site.whole()
        # The first account's queue is full; the second one's does not know of it.
        assert (await site.servers.complete(stranger, model, ASK)).choices[0].text == "good"
        for task in busy:
            task.cancel()

    run(tmp_path, scenario, 2)


def test_adapters_are_served_by_the_processes_of_their_base_model(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.declare(adapters={"acme.big-legal": "legal", "acme.big-medical": "medical"}, requests=1)
        who = session("SECRET")
        models = [site.engines.find(who, name) for name in ("acme.big", "acme.big-legal", "acme.big-medical")]
        for model in models:
            await site.servers.complete(who, model, ASK)
        assert site.fakes[0].models == ["acme.big", "legal", "medical"]
        assert site.fakes[0].connections == 1
        assert [one.name for one in site.engines.all(who)] == ["acme.big", "acme.big-legal", "acme.big-medical"]
        assert len(site.servers._deployments) == 1
        assert site.engines.find(session("UNCLASSIFIED"), "acme.big-legal") is None
        site.fakes[0].script = "slow"
        waiting = asyncio.create_task(site.servers.complete(who, models[1], ASK))
        while not site.fakes[0].active:
            await asyncio.sleep(0.01)
        with pytest.raises(Throttled):  # one limit for base and adapters
            await site.servers.complete(who, models[2], ASK)
        waiting.cancel()

    run(tmp_path, scenario)


def test_the_replica_with_the_fewest_requests_is_asked(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.declare(requests=10)
        for fake in site.fakes:
            fake.script = "slow"
        tasks = [asyncio.create_task(site.whole()) for _ in range(6)]
        await asyncio.sleep(0.1)
        assert [fake.active for fake in site.fakes] == [2, 2, 2]
        for task in tasks:
            task.cancel()

    run(tmp_path, scenario, 3)


@pytest.mark.parametrize("script", ["broken", "gone"])
def test_a_request_goes_to_another_replica_and_the_broken_one_is_left_alone(tmp_path: Path, script: str) -> None:
    async def scenario(site: Site) -> None:
        bad, good = site.fakes
        bad.script = script
        for _ in range(12):
            assert await site.whole() == "good"
        assert bad.asked <= 4 and good.asked == 12, "after three failures the circuit is open"
        bad.script = "good"
        await asyncio.sleep(1.3)
        for _ in range(4):
            await site.whole()
        assert bad.asked > 3, "after the pause, or a good health check, it is asked again"

    run(tmp_path, scenario, 2)


def test_when_every_replica_fails_the_caller_is_told_and_then_refused(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.fakes[0].script = "broken"
        for _ in range(3):
            with pytest.raises(EngineFailed, match="it is broken") as caught:
                await site.whole()
            assert "secret.py" not in caught.value.message, "an engine's trace is nothing for its callers"
        with pytest.raises(NotReady, match="tried again"):
            await site.whole()

    run(tmp_path, scenario)


def test_what_the_engine_says_of_the_request_reaches_the_caller(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for script, kind in (("wrong", ValidationFault), ("busy", Throttled), ("garbage", EngineFailed)):
            site.fakes[0].script = script
            with pytest.raises(kind):
                await site.whole()
        site.fakes[0].script = "good"
        assert await site.whole() == "good", "none of these opened the circuit"

    run(tmp_path, scenario)


def test_a_stream_that_breaks_off_is_not_repeated(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.fakes[0].script = "cut"
        with pytest.raises(EngineFailed, match="broke off"):
            await site.streamed()
        assert site.fakes[0].asked == 1

    run(tmp_path, scenario)


def test_cancelled_requests_hang_up_and_leak_nothing(tmp_path: Path) -> None:
    count = 10_000 if os.environ.get("HONMARU_LONG") == "1" else 60

    async def scenario(site: Site) -> None:
        fake = site.fakes[0]
        fake.script = "slow"
        before = len(os.listdir("/proc/self/fd"))
        for number in range(count):
            if number % 2:
                stream = site.servers.generate(session("SECRET"), site.model, ASK)
                await anext(stream)
                await stream.aclose()
            else:
                task = asyncio.create_task(site.whole())
                await asyncio.sleep(0.002)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert fake.active == 0 and fake.hung_up >= count // 2
        (replica,) = next(iter(site.servers._deployments.values())).replicas
        assert replica.busy == 0
        assert len(os.listdir("/proc/self/fd")) <= before + 2

    run(tmp_path, scenario)


def test_a_changed_file_counts_at_once_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        assert await site.whole() == "good"
        site.file.write_text("{")
        assert site.model is not None and "cannot be used" in site.problems[0]
        site.file.write_text("{}")
        assert site.engines.find(session("SECRET"), "acme.big") is None

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"command": ["x"]},
        {"command": ["x"], "environment": "e", "features": ["flying"]},
        {"command": ["x"], "environment": "e", "families": ["klingon"]},
        {"command": ["x"], "environment": "e", "max_label": "VERY SECRET"},
        {"command": ["x"], "environment": "e", "colour": "red"},
        {"command": ["x"], "environment": "e", "port": "8000"},
        {"command": ["x"], "environment": "e", "files": "relative"},
        {"replicas": [{"url": "http://127.0.0.1:1"}]},
        {"replicas": [{"url": "ftp://x", "label": "SECRET"}]},
        {"replicas": [{"url": "http://127.0.0.1:1/v1", "label": "SECRET"}]},
        {"replicas": [{"url": "http://127.0.0.1:1", "label": "SECRET"}], "command": ["x"], "environment": "e"},
    ],
)
def test_mistakes_of_a_declaration_are_named(entry: Any) -> None:
    with pytest.raises(ConfigurationFault):
        read_engine("acme.big", entry, ACCOUNT)


def test_an_id_is_provider_and_model() -> None:
    with pytest.raises(ConfigurationFault, match=r"provider\.model"):
        read_engine("nodot", {"replicas": [{"url": "http://127.0.0.1:1", "label": "SECRET"}]}, ACCOUNT)
