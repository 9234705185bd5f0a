"""Engines that speak Anthropic's Messages or Bedrock's Converse: what is asked and answered there is what an engine of
OpenAI's dialect is asked and answers. The other side is our own reader of each dialect, which real clients test."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from honmaru.api.eventstreams import encode
from honmaru.app.runtime import SystemClock, SystemIds
from honmaru.core.conversation import anthropic_upstream, bedrock_upstream, claude, converse
from honmaru.core.conversation.model import Choice, Completion, Delta, Generation, ToolCall, ToolPiece
from honmaru.core.conversation.upstream import Malformed
from honmaru.core.errors import ConfigurationFault, EngineFailed, ValidationFault
from honmaru.deployments import Engines, ModelServers
from honmaru.deployments.engines import read_engine
from honmaru.testing.keep import ACCOUNT, session

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA, "description": "looks"}}
PIXEL = base64.b64encode(b"not really a picture").decode()
WISHES = [
    Generation(messages=[{"role": "user", "content": "hi"}], max_tokens=4),
    Generation(
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        stop=("end", "stop"),
    ),
    Generation(
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a": "b"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "seen"},
        ],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "look"}},
        content=frozenset({"tools"}),
    ),
    Generation(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                ],
            }
        ],
        schema=SCHEMA,
        content=frozenset({"images"}),
    ),
]
DELTAS = [
    Delta(reasoning="hm"),
    Delta(text="go"),
    Delta(text="od"),
    Delta(tools=[ToolPiece(0, "t1", "look")]),
    Delta(tools=[ToolPiece(0, arguments='{"a"')]),
    Delta(tools=[ToolPiece(0, arguments=": 1}")]),
]
LAST = Delta(finish="tool_calls", input_tokens=5, output_tokens=7)
WHOLE = Completion([Choice("good", "hm", (ToolCall("t1", "look", '{"a": 1}'),), (), "tool_calls")], 5, 7)
STOPPED = Completion([Choice("good", finish="stop_sequence", stop_sequence="end")], 5, 7)


def listed(wish: Generation) -> Generation:
    return replace(wish, tools=list(wish.tools))


def from_anthropic(body: dict[str, Any]) -> Generation:
    body = {name: value for name, value in body.items() if name not in ("model", "stream")}
    return converse.generation(claude.members(claude.read_message(body, claude.OVER_HTTP)), "m")


def from_bedrock(body: dict[str, Any]) -> Generation:
    for message in body["messages"]:
        for block in message["content"]:
            if "image" in block:
                block["image"]["source"]["bytes"] = base64.b64decode(block["image"]["source"]["bytes"])
    return converse.generation(body, "m")


@pytest.mark.parametrize("wish", WISHES)
def test_what_is_asked_is_what_was_wished(wish: Generation) -> None:
    path, body = anthropic_upstream.request(wish, "m", stream=True)
    assert (path, body["model"], body["stream"]) == ("/messages", "m", True)
    assert from_anthropic(json.loads(json.dumps(body))) == listed(wish)
    path, body = bedrock_upstream.request(wish, "us.m:0", stream=True)
    assert path == "/model/us.m%3A0/converse-stream"
    assert from_bedrock(json.loads(json.dumps(body))) == listed(wish)


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (Generation(prompt="x"), "raw prompts"),
        (Generation(messages=[{"role": "user", "content": "x"}], seed=1), "seeds"),
        (Generation(messages=[{"role": "user", "content": "x"}], temperature=1.5), "temperature"),
    ],
)
def test_what_the_dialects_lack_is_refused_and_never_left_out(wish: Generation, named: str) -> None:
    for dialect in (anthropic_upstream, bedrock_upstream):
        with pytest.raises(ValidationFault, match=rf"{named}"):
            dialect.request(wish, "m", stream=False)
    serial = Generation(messages=[{"role": "user", "content": "x"}], tools=[TOOL], parallel_tool_calls=False)
    with pytest.raises(ValidationFault, match="parallel_tool_calls"):
        bedrock_upstream.request(serial, "m", stream=False)
    assert anthropic_upstream.request(serial, "m", stream=False)[1]["tool_choice"]["disable_parallel_tool_use"] is True


def test_whole_answers_are_read_back() -> None:
    for said in (WHOLE, STOPPED):
        result = converse.result(said, [claude.STOP_SEQUENCE], 1)
        assert bedrock_upstream.completion(result) == said
        assert anthropic_upstream.completion(claude.whole(claude.head("i", "m"), result)) == said


def narrated() -> list[dict[str, Any]]:
    narration = converse.Narration()
    told = [event for delta in DELTAS for event in narration.tell(delta)]
    return [narration.start(), *told, *narration.end(LAST, 1)]


def test_streams_are_read_back_piece_by_piece() -> None:
    events = narrated()
    writer = claude.Events(claude.head("i", "m"))
    for reader, stream in (
        (bedrock_upstream.StreamReader(), events),
        (anthropic_upstream.StreamReader(), [one for event in events for one in writer.write(event)]),
    ):
        read = [delta for delta in map(reader.read, stream) if delta is not None]
        assert [delta for delta in read if delta != Delta()] == DELTAS
        assert reader.end() == LAST
    assert anthropic_upstream.last({"type": "message_stop"})
    assert not anthropic_upstream.last([])


@pytest.mark.parametrize("dialect", [anthropic_upstream, bedrock_upstream])
@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"content": [{"type": "text"}]}, {"output": {"message": {"content": 4}}}, {"type": 3}, {"a": 1}],
)
def test_nonsense_is_malformed_and_nothing_else(dialect: Any, answer: Any) -> None:
    with pytest.raises(Malformed):
        dialect.completion(answer)
    reader = dialect.StreamReader()
    try:
        reader.read(answer)
    except Malformed:
        pass
    with pytest.raises(Malformed):
        reader.end()


class Upstream:
    """A server that speaks both; `broken`: its Bedrock stream ends with an exception."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.broken = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(size))
                path = head.split()[1].decode()
                data = self._answer(path, body)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _answer(self, path: str, body: dict[str, Any]) -> bytes:
        result = converse.result(WHOLE, None, 1)
        if path.endswith("/count_tokens"):
            return b'{"input_tokens": 3}'
        if path.endswith("/count-tokens"):
            assert body["input"]["converse"]["messages"]
            return b'{"inputTokens": 3}'
        if path.endswith("/converse-stream"):
            events = narrated()[: 4 if self.broken else None]
            frames = [self._frame("event", next(iter(event)), next(iter(event.values()))) for event in events]
            if self.broken:
                frames.append(self._frame("exception", "modelStreamErrorException", {"message": "it broke"}))
            return b"".join(frames)
        if path.endswith("/converse"):
            return json.dumps(result).encode()
        if not body.get("stream"):
            return json.dumps(claude.whole(claude.head("i", "m"), result)).encode()
        events = claude.Events(claude.head("i", "m"))
        told = [one for event in narrated() for one in events.write(event)]
        return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in told)

    def _frame(self, kind: str, name: str, members: dict[str, Any]) -> bytes:
        headers = {f":{kind}-type": name, ":content-type": "application/json", ":message-type": kind}
        return encode(headers, json.dumps(members).encode())


def run(folder: Path, scenario: Callable[[Upstream, Any, Engines], Coroutine[Any, Any, None]]) -> None:
    async def work() -> None:
        upstream = Upstream()
        listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
        upstream.port = listener.sockets[0].getsockname()[1]
        (folder / "key").write_text("secret\n")
        place = {"url": f"http://127.0.0.1:{upstream.port}", "label": "U", "authorization_file": str(folder / "key")}
        common = {"replicas": [place], "features": ["tools", "reasoning"], "model": "m"}
        engines = {f"acme.{name}": common | {"dialect": name} for name in ("anthropic", "bedrock")}
        (folder / "engines.json").write_text(json.dumps(engines))
        declared = Engines(folder / "engines.json", account=ACCOUNT, problem=print)
        servers = ModelServers(
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            SystemClock(),
            SystemIds(),
            folder / "models",
            engines=declared,
        )
        try:
            await asyncio.wait_for(scenario(upstream, servers, declared), 30)
        finally:
            servers._closed = True
            if servers._watcher is not None:
                servers._watcher.cancel()
            for deployment in servers._deployments.values():
                servers._drop(deployment)
            listener.close()

    asyncio.run(work())


@pytest.mark.parametrize("name", ["anthropic", "bedrock"])
def test_an_upstream_answers_whole_streamed_and_counted_with_its_secret(tmp_path: Path, name: str) -> None:
    async def scenario(upstream: Upstream, servers: Any, engines: Engines) -> None:
        who = session("UNCLASSIFIED")
        model = engines.find(who, f"acme.{name}")
        assert await servers.complete(who, model, WISHES[0]) == WHOLE
        assert await servers.count_tokens(who, model, WISHES[0]) == 3
        deltas = [delta async for delta in servers.generate(who, model, WISHES[0])]
        assert deltas[-1] == LAST
        assert "".join(delta.text for delta in deltas) == "good"
        wanted = b"x-api-key: secret" if name == "anthropic" else b"authorization: Bearer secret"
        assert all(wanted in head for head in upstream.heads)
        assert upstream.heads[0].split()[1] == (b"/v1/messages" if name == "anthropic" else b"/model/m/converse")

    run(tmp_path, scenario)


def test_a_session_above_the_upstream_never_reaches_it(tmp_path: Path) -> None:
    async def scenario(upstream: Upstream, servers: Any, engines: Engines) -> None:
        high = session("SECRET")
        assert engines.find(high, "acme.anthropic") is None
        assert engines.all(high) == []
        assert upstream.heads == []

    run(tmp_path, scenario)


def test_an_exception_in_the_upstreams_stream_is_the_models_failure(tmp_path: Path) -> None:
    async def scenario(upstream: Upstream, servers: Any, engines: Engines) -> None:
        upstream.broken = True
        who = session("UNCLASSIFIED")
        with pytest.raises(EngineFailed, match="it broke"):
            async for _ in servers.generate(who, engines.find(who, "acme.bedrock"), WISHES[0]):
                pass

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"dialect": "latin"}, "dialect is one of"),
        ({"dialect": "anthropic", "features": ["logprobs"]}, "none that the dialect anthropic can carry"),
        ({"dialect": "bedrock", "features": ["embeddings"]}, "none that the dialect bedrock can carry"),
        ({"quality": 101}, "quality"),
    ],
)
def test_mistakes_of_a_declaration_are_named(more: dict[str, Any], problem: str) -> None:
    entry = {"replicas": [{"url": "http://127.0.0.1:1", "label": "U"}], **more}
    with pytest.raises(ConfigurationFault, match=problem):
        read_engine("acme.x", entry, ACCOUNT)
