"""The HTTP face of the server: a raw ASGI application over an engine and a vocabulary.

Invariants:
- A request ends with its client: when the connection goes, the generation is cancelled.
- Usage counts are what the engine read and wrote: the prompt's tokens, and every token generated, the end token too.
- A malformed request is a 400 with OpenAI's error body; the engine is not touched.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.workloads.server.engine import Engine, Sampling
from honmaru.workloads.server.text import Vocabulary

MAX_BODY_BYTES = 32 << 20
MAX_ACTIVE = 256
DEFAULT_MAX_TOKENS = 512

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One checked request. `clipped` says that the context, not the caller, sets the longest possible answer."""

    ids: Sequence[int]
    sampling: Sampling
    stop: Sequence[str]
    stream: bool
    include_usage: bool
    clipped: bool


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    finish: str | None = None
    stop_reason: str | None = None
    output_tokens: int = 0


class EngineError(Exception):
    """The engine gave up on a request."""


class Application:
    """ASGI application serving one model under `name`."""

    def __init__(self, name: str, vocabulary: Vocabulary, engine: Engine) -> None:
        self._name, self._vocabulary, self._engine = name, vocabulary, engine

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        route = (scope["method"], scope["path"])
        try:
            if route == ("GET", "/health"):
                await _reply(send, 200, {"status": "ok", "engine": self._engine.name, "active": self._engine.active()})
            elif route == ("GET", "/v1/models"):
                card = {"id": self._name, "object": "model", "created": 0, "owned_by": "honmaru"}
                await _reply(
                    send, 200, {"object": "list", "data": [card | {"max_model_len": self._vocabulary.context}]}
                )
            elif route == ("POST", "/tokenize"):
                ids = self._ids(await _body(receive))
                await _reply(
                    send, 200, {"count": len(ids), "max_model_len": self._vocabulary.context, "tokens": list(ids)}
                )
            elif route in (("POST", "/v1/chat/completions"), ("POST", "/v1/completions")):
                await self._complete(await _body(receive), route[1].endswith("chat/completions"), receive, send)
            else:
                await _reply(send, 404, _error(f"no route {route[0]} {route[1]}", "invalid_request_error"))
        except ValidationFault as fault:
            await _reply(send, 400, _error(fault.message, "invalid_request_error"))

    def _ids(self, body: Mapping[str, Any]) -> list[int]:
        if "messages" in body:
            return self._vocabulary.encode_messages(_messages(body["messages"]))
        if not isinstance(body.get("prompt"), str):
            raise ValidationFault("prompt must be a string")
        return self._vocabulary.encode_prompt(body["prompt"])

    def _wanted(self, body: Mapping[str, Any], chat: bool) -> Wanted:
        if chat != ("messages" in body):
            raise ValidationFault("messages belong to /v1/chat/completions and prompt to /v1/completions")
        if body.get("n") not in (None, 1):
            raise ValidationFault("n must be 1")
        for member in ("tools", "functions", "response_format", "logit_bias", "logprobs", "suffix", "best_of"):
            if body.get(member):
                raise ValidationFault(f"{member} is not supported by this model server")
        ids = self._ids(body)
        room = self._vocabulary.context - len(ids)
        if not ids or room < 1:
            raise ValidationFault(
                f"the prompt has {len(ids)} tokens; between 1 and {self._vocabulary.context - 1} are possible, "
                "because prompt and answer share the model's context"
            )
        limit = _number(
            body, "max_completion_tokens", _number(body, "max_tokens", DEFAULT_MAX_TOKENS, 1, 1 << 31), 1, 1 << 31
        )
        stop = body.get("stop") or []
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or len(stop) > 2500 or not all(isinstance(text, str) for text in stop):
            raise ValidationFault("stop must be a string or a list of strings")
        seed = body.get("seed")
        if seed is not None and type(seed) is not int:
            raise ValidationFault("seed must be an integer")
        options = body.get("stream_options") or {}
        sampling = Sampling(
            max_tokens=min(int(limit), room),
            temperature=_number(body, "temperature", self._vocabulary.temperature, 0, 2),
            top_p=max(1e-6, _number(body, "top_p", self._vocabulary.top_p, 0, 1)),
            seed=secrets.randbits(31) if seed is None else seed & 0x7FFFFFFF,
            end_tokens=self._vocabulary.end_tokens,
        )
        include = bool(isinstance(options, dict) and options.get("include_usage"))
        return Wanted(ids, sampling, stop, bool(body.get("stream")), include, int(limit) > room)

    async def _pieces(self, wanted: Wanted) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        # Tokens that arrive while the last piece is being sent go out together, as one event.
        arrived: deque[tuple[Sequence[int], str | None]] = deque()
        woken = asyncio.Event()

        def emit(ids: Sequence[int], finish: str | None) -> None:
            arrived.append((ids, finish))
            loop.call_soon_threadsafe(woken.set)

        text = self._vocabulary.stream(wanted.stop)
        number = self._engine.submit(wanted.ids, wanted.sampling, emit)
        ended = False
        try:
            while True:
                await woken.wait()
                woken.clear()
                ids: list[int] = []
                finish: str | None = None
                while arrived and finish is None:
                    more, finish = arrived.popleft()
                    ids += more
                if finish is not None and finish.startswith("error: "):
                    ended = True
                    raise EngineError(finish.removeprefix("error: "))
                piece = text.push(ids)
                if text.stopped_by is not None:
                    yield Piece(piece, "stop", text.stopped_by, text.tokens)
                    return
                if finish is not None:
                    ended = True
                    if finish == "length" and wanted.clipped:
                        finish = "context_length"
                    yield Piece(piece + text.finish(), finish, None, text.tokens)
                    return
                if piece:
                    yield Piece(piece)
        finally:
            if not ended:
                self._engine.cancel(number)

    async def _complete(self, body: Mapping[str, Any], chat: bool, receive: Receive, send: Send) -> None:
        wanted = self._wanted(body, chat)
        if self._engine.active() >= MAX_ACTIVE:
            await _reply(send, 429, _error("too many requests are running; try again later", "rate_limit_error"))
            return
        work = asyncio.ensure_future(
            self._stream(wanted, chat, send) if wanted.stream else self._answer(wanted, chat, send)
        )
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled() and work.exception() is not None:
            raise work.exception() or AssertionError

    async def _answer(self, wanted: Wanted, chat: bool, send: Send) -> None:
        text, last = "", Piece("")
        try:
            async for last in self._pieces(wanted):
                text += last.text
        except EngineError as fault:
            await _reply(send, 500, _error(str(fault), "server_error"))
            return
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        reply = self._envelope(chat, stream=False)
        reply["choices"] = [{"index": 0, **content, **_ending(last), "logprobs": None}]
        reply["usage"] = _usage(wanted, last)
        await _reply(send, 200, reply)

    async def _stream(self, wanted: Wanted, chat: bool, send: Send) -> None:
        envelope = self._envelope(chat, stream=True)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(value: Mapping[str, Any]) -> None:
            data = b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})

        first = True
        try:
            async for piece in self._pieces(wanted):
                content: dict[str, Any] = {"text": piece.text}
                if chat:
                    content = {"delta": ({"role": "assistant"} if first else {}) | {"content": piece.text}}
                first = False
                await event(envelope | {"choices": [{"index": 0, **content, **_ending(piece)}]})
                if piece.finish is not None and wanted.include_usage:
                    await event(envelope | {"choices": [], "usage": _usage(wanted, piece)})
        except EngineError as fault:
            await event(_error(str(fault), "server_error"))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _envelope(self, chat: bool, *, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
        prefix = "chatcmpl" if chat else "cmpl"
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self._name,
        }


def _ending(piece: Piece) -> dict[str, Any]:
    # `context_full` is ours: the answer filled the model's context before it reached the caller's limit.
    full = piece.finish == "context_length"
    return {
        "finish_reason": "length" if full else piece.finish,
        "stop_reason": piece.stop_reason,
        "context_full": full,
    }


def _usage(wanted: Wanted, last: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": len(wanted.ids),
        "completion_tokens": last.output_tokens,
        "total_tokens": len(wanted.ids) + last.output_tokens,
    }


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValidationFault(f"{name} must be a number from {low} to {high}")
    return value


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValidationFault("messages must be a list of at least one message")
    for message in value:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ("system", "user", "assistant")
            or not isinstance(message.get("content"), str)
        ):
            raise ValidationFault("each message needs a role (system, user or assistant) and a content of text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


async def _body(receive: Receive) -> dict[str, Any]:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ValidationFault("the client went away")
        data += message.get("body", b"")
        if len(data) > MAX_BODY_BYTES:
            raise ValidationFault(f"the body exceeds {MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            break
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValidationFault("the body is not JSON") from None
    if not isinstance(value, dict):
        raise ValidationFault("the body must be a JSON object")
    return value


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: Send, status: int, value: Mapping[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": False})
