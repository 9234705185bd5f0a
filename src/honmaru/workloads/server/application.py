"""The HTTP face of the server: a raw ASGI application over an engine and a vocabulary.

Invariants:
- A request ends with its client: when the connection goes, the generation is cancelled.
- Usage counts are what the engine read and wrote: the prompt's tokens, and every token generated, the end token too.
- A malformed request is a 400 with OpenAI's error body; the engine is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.workloads.server import tools
from honmaru.workloads.server.embedder import Embedder
from honmaru.workloads.server.engine import Chance, Engine, Sampling
from honmaru.workloads.server.text import Vocabulary

MAX_BODY_BYTES = 32 << 20
MAX_CHOICES = 16
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
    wish: tools.Wish
    n: int


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    finish: str | None = None
    stop_reason: str | None = None
    output_tokens: int = 0
    calls: Sequence[Mapping[str, Any]] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()


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
            return self._vocabulary.encode_messages(_messages(body["messages"]), body.get("tools") or ())
        if not isinstance(body.get("prompt"), str):
            raise ValidationFault("prompt must be a string")
        return self._vocabulary.encode_prompt(body["prompt"])

    def _wanted(self, body: Mapping[str, Any], chat: bool) -> Wanted:
        if chat != ("messages" in body):
            raise ValidationFault("messages belong to /v1/chat/completions and prompt to /v1/completions")
        features = self._engine.features
        for member in ("functions", "suffix", "best_of"):
            if body.get(member):
                raise ValidationFault(f"{member} is not supported by this model server")
        wish = tools.read(body)
        if wish.grammar is not None and "grammar" not in features:
            raise ValidationFault("tools and response_format need an engine that can constrain its answers")
        n = int(_number(body, "n", 1, 1, MAX_CHOICES))
        if n > 1 and body.get("stream"):
            raise ValidationFault("n must be 1 in a stream")
        logprobs = _logprobs(body, chat)
        if (logprobs is not None and "logprobs" not in features) or (logprobs and "top_logprobs" not in features):
            raise ValidationFault("log probabilities like these are not supported by this model's engine")
        if body.get("logit_bias") and "logit_bias" not in features:
            raise ValidationFault("logit_bias is not supported by this model's engine")
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
            top_k=int(_number(body, "top_k", 0, 0, 1 << 20)),
            frequency_penalty=_number(body, "frequency_penalty", 0, -2, 2),
            presence_penalty=_number(body, "presence_penalty", 0, -2, 2),
            logit_bias=_bias(body.get("logit_bias") or {}),
            logprobs=logprobs,
            grammar=wish.grammar,
        )
        include = bool(isinstance(options, dict) and options.get("include_usage"))
        return Wanted(ids, sampling, stop, bool(body.get("stream")), include, int(limit) > room, wish, n)

    async def _pieces(self, wanted: Wanted, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        # Tokens that arrive while the last piece is being sent go out together, as one event.
        arrived: deque[tuple[Sequence[int], str | None, Sequence[Chance]]] = deque()
        woken = asyncio.Event()

        # Who waits for the whole answer is woken once: for each token of each request that cost a third of the speed.
        whole = not wanted.stream and not wanted.stop

        def emit(ids: Sequence[int], finish: str | None, chances: Sequence[Chance] = ()) -> None:
            arrived.append((ids, finish, chances))
            if finish is not None or not whole:
                loop.call_soon_threadsafe(woken.set)

        text = self._vocabulary.stream(wanted.stop)
        reader = tools.CallReader(wanted.wish)
        number = self._engine.submit(wanted.ids, sampling, emit)
        ended = False
        try:
            while True:
                await woken.wait()
                woken.clear()
                ids: list[int] = []
                chances: list[Mapping[str, Any]] = []
                finish: str | None = None
                while arrived and finish is None:
                    more, finish, known = arrived.popleft()
                    ids += more
                    chances += [self._logprob(*pair) for pair in zip(more, known, strict=False)]
                if finish is not None and finish.startswith("error: "):
                    ended = True
                    raise EngineError(finish.removeprefix("error: "))
                piece = text.push(ids)
                stopped = text.stopped_by
                ended = finish is not None
                if stopped is not None or ended:
                    said, calls = reader.push(piece if stopped is not None else piece + text.finish(), last=True)
                    if finish == "length" and wanted.clipped and stopped is None:
                        finish = "context_length"
                    if stopped is not None:
                        finish = "stop"
                    if reader.calls and finish == "stop":
                        finish, stopped = "tool_calls", None
                    yield Piece(said, finish, stopped, text.tokens, calls, chances)
                    return
                said, calls = reader.push(piece, last=False)
                if said or calls or chances:
                    yield Piece(said, calls=calls, logprobs=chances)
        finally:
            if not ended:
                self._engine.cancel(number)

    def _logprob(self, token: int, chance: Chance) -> Mapping[str, Any]:
        return {
            **self._vocabulary.token(token),
            "logprob": chance[0],
            "top_logprobs": [{**self._vocabulary.token(other), "logprob": value} for other, value in chance[1]],
        }

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
        seeds = range(wanted.sampling.seed, wanted.sampling.seed + wanted.n)
        try:
            work = [self._whole(wanted, replace(wanted.sampling, seed=seed & 0x7FFFFFFF)) for seed in seeds]
            answers = await asyncio.gather(*work)
        except EngineError as fault:
            await _reply(send, 500, _error(str(fault), "server_error"))
            return
        reply = self._envelope(chat, stream=False)
        reply["choices"] = [_choice(index, answer, chat, wanted) for index, answer in enumerate(answers)]
        reply["usage"] = _usage(wanted, sum(answer.output_tokens for answer in answers))
        await _reply(send, 200, reply)

    async def _whole(self, wanted: Wanted, sampling: Sampling) -> Piece:
        text, last = "", Piece("")
        calls: list[Mapping[str, Any]] = []
        logprobs: list[Mapping[str, Any]] = []
        async with contextlib.aclosing(self._pieces(wanted, sampling)) as pieces:
            async for last in pieces:
                text += last.text
                calls += last.calls
                logprobs += last.logprobs
        return replace(last, text=text, calls=calls, logprobs=logprobs)

    async def _stream(self, wanted: Wanted, chat: bool, send: Send) -> None:
        envelope = self._envelope(chat, stream=True)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(value: Mapping[str, Any]) -> None:
            data = b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})

        first, called = True, 0
        try:
            async for piece in self._pieces(wanted, wanted.sampling):
                content: dict[str, Any] = {"text": piece.text}
                if chat:
                    delta: dict[str, Any] = {"role": "assistant"} if first else {}
                    delta["content"] = piece.text
                    if piece.calls:
                        delta["tool_calls"] = [{"index": called + at, **call} for at, call in enumerate(piece.calls)]
                        called += len(piece.calls)
                    content = {"delta": delta}
                first = False
                chances = _written(piece.logprobs, chat) if wanted.sampling.logprobs is not None else None
                await event(envelope | {"choices": [{"index": 0, **content, **_ending(piece), "logprobs": chances}]})
                if piece.finish is not None and wanted.include_usage:
                    await event(envelope | {"choices": [], "usage": _usage(wanted, piece.output_tokens)})
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


class EmbeddingApplication:
    """ASGI application serving one embedding model under `name`."""

    def __init__(self, name: str, embedder: Embedder) -> None:
        self._name, self._embedder = name, embedder

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        route = (scope["method"], scope["path"])
        if route == ("GET", "/health"):
            await _reply(send, 200, {"status": "ok", "engine": "embedding", "active": 0})
        elif route == ("POST", "/v1/embeddings"):
            try:
                texts = (await _body(receive)).get("input")
                texts = [texts] if isinstance(texts, str) else texts
                if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                    raise ValidationFault("input must be a text or a list of texts")
                vectors, tokens = await asyncio.to_thread(self._embedder.embed, texts)
            except ValidationFault as fault:
                await _reply(send, 400, _error(fault.message, "invalid_request_error"))
                return
            data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            await _reply(send, 200, {"object": "list", "data": data, "model": self._name, "usage": usage})
        else:
            await _reply(send, 404, _error(f"no route {route[0]} {route[1]}", "invalid_request_error"))


def _ending(piece: Piece) -> dict[str, Any]:
    # `context_full` is ours: the answer filled the model's context before it reached the caller's limit.
    full = piece.finish == "context_length"
    return {
        "finish_reason": "length" if full else piece.finish,
        "stop_reason": piece.stop_reason,
        "context_full": full,
    }


def _choice(index: int, answer: Piece, chat: bool, wanted: Wanted) -> dict[str, Any]:
    content: dict[str, Any] = {"text": answer.text}
    if chat:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
        if answer.calls:
            message["tool_calls"] = list(answer.calls)
        content = {"message": message}
    chances = _written(answer.logprobs, chat) if wanted.sampling.logprobs is not None else None
    return {"index": index, **content, **_ending(answer), "logprobs": chances}


def _written(entries: Sequence[Mapping[str, Any]], chat: bool) -> dict[str, Any]:
    """Log probabilities as chat completions write them, or as plain completions do."""
    if chat:
        return {"content": list(entries)}
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
    }


def _logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    """How many alternatives are wanted beside each token; None when no log probabilities are."""
    if not chat:
        return int(_number(body, "logprobs", 0, 0, 20)) if body.get("logprobs") is not None else None
    if not body.get("logprobs"):
        return None
    return int(_number(body, "top_logprobs", 0, 0, 20))


def _bias(value: Any) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in value.items() if int(token) >= 0}
    except (AttributeError, TypeError, ValueError):
        raise ValidationFault("logit_bias must map token ids to numbers") from None


def _usage(wanted: Wanted, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": len(wanted.ids),
        "completion_tokens": output_tokens,
        "total_tokens": len(wanted.ids) + output_tokens,
    }


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValidationFault(f"{name} must be a number from {low} to {high}")
    return value


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValidationFault("messages must be a list of at least one message")
    return [_message(message) for message in value]


def _message(message: Any) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    calls = message.get("tool_calls") if role == "assistant" else None
    content = message.get("content") if isinstance(message, dict) else None
    if role not in ("system", "user", "assistant", "tool") or not (
        isinstance(content, str) or (content is None and calls)
    ):
        raise ValidationFault("each message needs a role (system, user, assistant or tool) and a content of text")
    out: dict[str, Any] = {"role": role, "content": content or ""}
    if calls:
        try:
            out["tool_calls"] = [
                {
                    "id": str(call["id"]),
                    "type": "function",
                    "function": {
                        "name": str(call["function"]["name"]),
                        "arguments": json.loads(call["function"]["arguments"]),
                    },
                }
                for call in calls
            ]
        except (TypeError, KeyError, ValueError):
            raise ValidationFault("tool_calls must be functions with arguments in JSON") from None
    return out


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
