"""The operations of Bedrock's data plane that honmaru carries.

Invariants:
- The answer is produced at the session's label; usage counts are those of the engine.
- What the chosen model cannot do is refused before its server is touched, naming model and feature.
- A streamed answer fails as an HTTP error while nothing was generated, and as a modelled exception in the stream after.
- When the client goes away the gateway closes the stream, and that cancels the generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from honmaru.core.conversation import converse, invocation, native
from honmaru.core.conversation.invocation import require_chat
from honmaru.core.conversation.model import unsupported
from honmaru.core.errors import EngineFailed, ValidationFault
from honmaru.deployments.paging import page
from honmaru.jobs.async_invocation import KIND as ASYNC_KIND
from honmaru.ports.models import Completion, Delta, FoundationModels, Generation, ModelArtifact, ModelServers, Vectors
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.calls import Call, Provider, Target
from honmaru.services.bedrock_runtime import async_invoke
from honmaru.services.bedrock_runtime.invocation_log import InvocationLog
from honmaru.services.bedrock_runtime.model import modelled, rendered, resolve, routed

Request = Mapping[str, Any]
_MOST_METADATA = 16


class BedrockRuntime(Provider):
    """Converse and InvokeModel over `servers`; `foundation` are the models of declared engines."""

    service = "bedrock-runtime"
    targets = {  # noqa: RUF012 - declared as a ClassVar by Provider
        "Converse": Target("bedrock:InvokeModel", "{modelId}"),
        "ConverseStream": Target("bedrock:InvokeModelWithResponseStream", "{modelId}"),
        "InvokeModel": Target("bedrock:InvokeModel", "{modelId}"),
        "InvokeModelWithResponseStream": Target("bedrock:InvokeModelWithResponseStream", "{modelId}"),
        "CountTokens": Target("bedrock:CountTokens", "{modelId}"),
        "InvokeModelWithBidirectionalStream": Target("bedrock:InvokeModelWithBidirectionalStream", "{modelId}"),
        "StartAsyncInvoke": Target("bedrock:InvokeModel", "{modelId}"),
        "GetAsyncInvoke": Target("bedrock:GetAsyncInvoke", "{invocationArn}"),
        "ListAsyncInvokes": Target("bedrock:ListAsyncInvokes"),
    }

    def __init__(
        self,
        servers: ModelServers,
        clock: Clock,
        foundation: FoundationModels,
        ids: Ids,
        wake: Callable[[], None],
        log: InvocationLog | None = None,
    ) -> None:
        self._servers, self._clock, self._foundation, self._log = servers, clock, foundation, log
        self._ids, self._wake = ids, wake

    async def converse(self, call: Call, request: Request) -> dict[str, Any]:
        asked, request = request["modelId"], await rendered(call, request)
        model, trace = await self._chosen(
            call, "InvokeModel", request["modelId"], asked, self._converses(call, request)
        )
        wanted = self._wanted(call, model, request)
        completion, latency_ms = await self._whole(call, model, wanted)
        answer = converse.result(completion, request.get("additionalModelResponseFieldPaths"), latency_ms)
        await self._log_it(call, model, request, answer)
        return {**answer, **trace, **_echo(request)}

    async def converse_stream(self, call: Call, request: Request) -> dict[str, Any]:
        asked, request = request["modelId"], await rendered(call, request)
        model, trace = await self._chosen(
            call, "InvokeModelWithResponseStream", request["modelId"], asked, self._converses(call, request)
        )
        wanted = self._wanted(call, model, request)
        narration = converse.Narration(request.get("additionalModelResponseFieldPaths"))
        started = self._clock.monotonic()
        first, rest = await self._begin(call, model, wanted)
        kept: list[Any] | None = None if await self._logging(call) is None else []

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            async with contextlib.aclosing(rest):
                yield narration.start()
                delta = first
                while delta.finish is None:
                    for event in narration.tell(delta):
                        if kept is not None:
                            kept.append(event)
                        yield event
                    delta = await self._next(rest, model)
                self._note(call, delta)
                ending = narration.end(delta, self._since(started))
                if kept is not None:
                    await self._log_it(call, model, request, kept + ending)
                for event in ending:
                    if "metadata" in event:
                        event["metadata"].update({**trace, **_echo(request)})
                    yield event

        return {"stream": Stream(events(), rest)}

    async def invoke_model(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._native_model(call, "InvokeModel", request)
        asked = _native(call, request, model)
        texts = invocation.embedding(asked, model.name, model.features)
        if texts is not None:
            vectors = await self._embed(call, model, texts)
            body = invocation.embedded(asked, vectors, model.name, call.request_id)
        else:
            wanted = _wanted(asked, model)
            completion, latency_ms = await self._whole(call, model, wanted)
            body = invocation.answer(asked, completion, model.name, call.request_id, latency_ms)
        await self._log_it(call, model, {"body": request.get("body")}, body)
        return {"body": native.written(body), "contentType": "application/json", **_native_echo(request)}

    async def invoke_model_with_response_stream(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._native_model(call, "InvokeModelWithResponseStream", request)
        asked = _native(call, request, model)
        if asked.embedding is not None:
            raise unsupported(model.name, "streams of embeddings")
        wanted = _wanted(asked, model)
        started = self._clock.monotonic()
        first, rest = await self._begin(call, model, wanted)
        first_ms = self._since(started)
        chunks = _Chunks(asked, model, call)
        kept: list[Any] | None = None if await self._logging(call) is None else []

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            async with contextlib.aclosing(rest):
                for chunk in chunks.start():
                    yield {"chunk": {"bytes": native.written(chunk)}}
                delta = first
                while delta.finish is None:
                    for chunk in chunks.tell(delta):
                        if kept is not None:
                            kept.append(chunk)
                        yield {"chunk": {"bytes": native.written(chunk)}}
                    delta = await self._next(rest, model)
                self._note(call, delta)
                latency_ms = self._since(started)
                *others, last = chunks.end(delta, latency_ms)
                if kept is not None:
                    await self._log_it(call, model, {"body": request.get("body")}, [*kept, *others, last])
                for chunk in others:
                    yield {"chunk": {"bytes": native.written(chunk)}}
                yield {"chunk": {"bytes": native.written({**last, **native.metrics(delta, latency_ms, first_ms)})}}

        return {"body": Stream(events(), rest), "contentType": "application/json", **_native_echo(request)}

    async def count_tokens(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._model(call, "CountTokens", request["modelId"])
        given = request["input"]
        if given.get("converse") is not None:
            require_chat(model.name, instruct=model.instruct)
            wanted = converse.generation(given["converse"], model.name)
            wanted.check(model.name, model.features)
        elif given.get("invokeModel") is not None:
            asked = native.read(given["invokeModel"]["body"], model.name, model.families)
            wanted = _wanted(asked, model)
        else:
            raise ValidationFault("input must hold converse or invokeModel")
        with modelled(model):
            return {"inputTokens": await self._servers.count_tokens(call.session, model, wanted)}

    async def invoke_model_with_bidirectional_stream(self, call: Call, request: Request) -> dict[str, Any]:
        """Always refused: no model here speaks while it listens. Raises NotFound, ValidationFault."""
        model = await self._model(call, "InvokeModelWithBidirectionalStream", request["modelId"])
        raise unsupported(model.name, "bidirectional streaming (use InvokeModelWithResponseStream)")

    # Async invocations

    async def start_async_invoke(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._model(call, "InvokeModel", request["modelId"])
        started = await asyncio.to_thread(async_invoke.start, call, request, model, self._ids)
        self._wake()
        return started

    def get_async_invoke(self, call: Call, request: Request) -> dict[str, Any]:
        return async_invoke.describe(call, async_invoke.find(call, request["invocationArn"]))

    def list_async_invokes(self, call: Call, request: Request) -> dict[str, Any]:
        wanted = {
            **request,
            "creationTimeAfter": request.get("submitTimeAfter"),
            "creationTimeBefore": request.get("submitTimeBefore"),
        }
        found, token = page(async_invoke.records(call).iterate(ASYNC_KIND), wanted, "id")
        summaries = [async_invoke.describe(call, record) for record in found]
        return {"asyncInvokeSummaries": summaries, "nextToken": token}

    async def _chosen(
        self, call: Call, operation: str, identifier: str, asked: str, check: Callable[[ModelArtifact], object]
    ) -> tuple[ModelArtifact, dict[str, Any]]:
        """The model to ask, and the member that says so when a prompt router chose it."""
        model = await routed(call, self._foundation, operation, identifier, asked, check)
        if model is not None:
            return model, {"trace": {"promptRouter": {"invokedModelId": model.arn}}}
        return await resolve(call, self._foundation, operation, identifier, asked), {}

    def _converses(self, call: Call, request: Request) -> Callable[[ModelArtifact], object]:
        return lambda model: self._wanted(call, model, request)

    async def _native_model(self, call: Call, operation: str, request: Request) -> ModelArtifact:
        def check(model: ModelArtifact) -> None:
            asked = _native(call, request, model)
            if invocation.embedding(asked, model.name, model.features) is None:
                _wanted(asked, model)

        identifier = request["modelId"]
        return (await self._chosen(call, operation, identifier, identifier, check))[0]

    async def _model(self, call: Call, operation: str, identifier: str) -> ModelArtifact:
        return await resolve(call, self._foundation, operation, identifier)

    async def _logging(self, call: Call) -> Mapping[str, Any] | None:
        return None if self._log is None else await self._log.wanted(call.session)

    async def _log_it(self, call: Call, model: ModelArtifact, request: Request, answer: Any) -> None:
        """Note an invocation for the account's log, if it wants one."""
        config = await self._logging(call)
        if self._log is None or config is None:
            return
        asked: Any = {name: value for name, value in request.items() if name != "modelId"}
        if "body" in asked:
            try:
                asked = json.loads(asked["body"] or b"{}")
            except RecursionError:
                asked = {"tooDeep": True}
        self._log.note(config, call, model.arn, asked, answer, call.details)

    def _wanted(self, call: Call, model: ModelArtifact, request: Request) -> Generation:
        require_chat(model.name, instruct=model.instruct)
        wanted = converse.generation(request, model.name)
        wanted.check(model.name, model.features)
        _record(call, (request.get("serviceTier") or {}).get("type"), request.get("requestMetadata"))
        return wanted

    async def _whole(self, call: Call, model: ModelArtifact, wanted: Generation) -> tuple[Completion, int]:
        started = self._clock.monotonic()
        with modelled(model):
            completion = await self._servers.complete(call.session, model, wanted)
        latency_ms = self._since(started)
        self._note(call, completion)
        headers = call.response_headers
        headers["x-amzn-bedrock-input-token-count"] = str(completion.input_tokens)
        headers["x-amzn-bedrock-output-token-count"] = str(completion.output_tokens)
        headers["x-amzn-bedrock-invocation-latency"] = str(latency_ms)
        return completion, latency_ms

    async def _embed(self, call: Call, model: ModelArtifact, asked: native.Embedding) -> Vectors:
        started = self._clock.monotonic()
        with modelled(model):
            found = await self._servers.embed(call.session, model, asked.texts, None)
        call.details |= {"inputTokens": found.input_tokens, "texts": len(asked.texts)}
        call.response_headers["x-amzn-bedrock-input-token-count"] = str(found.input_tokens)
        call.beside["tokens"] = found.input_tokens
        call.response_headers["x-amzn-bedrock-invocation-latency"] = str(self._since(started))
        return found

    async def _begin(
        self, call: Call, model: ModelArtifact, wanted: Generation
    ) -> tuple[Delta, AsyncGenerator[Delta, None]]:
        """Wait for the first piece, so that a model that cannot answer is an HTTP error and not a broken stream."""
        deltas = self._servers.generate(call.session, model, wanted)
        try:
            with modelled(model):
                return await anext(deltas), deltas
        except BaseException:
            await deltas.aclose()
            raise

    async def _next(self, deltas: AsyncGenerator[Delta, None], model: ModelArtifact) -> Delta:
        try:
            return await anext(deltas)
        except (EngineFailed, StopAsyncIteration) as fault:
            raise EngineFailed(
                f"model {model.name} failed while it answered: {fault}", code="ModelStreamErrorException"
            ) from None

    def _note(self, call: Call, last: Delta | Completion) -> None:
        call.details |= {"inputTokens": last.input_tokens, "outputTokens": last.output_tokens}
        if last.cached_tokens:
            call.details["cacheReadInputTokens"] = last.cached_tokens

    def _since(self, started: float) -> int:
        return int((self._clock.monotonic() - started) * 1000)


class Stream(AsyncIterator[dict[str, Any]]):
    """Events over a generation. Closing it cancels the generation, also when no event was taken yet."""

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], deltas: AsyncGenerator[Delta, None]) -> None:
        self._events, self._deltas = events, deltas

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        await self._deltas.aclose()


class _Chunks:
    """The chunks of a native stream, from the pieces of the answer."""

    def __init__(self, asked: native.Asked, model: ModelArtifact, call: Call) -> None:
        self._family = asked.family
        self._narration = converse.Narration((asked.members or {}).get("additionalModelResponseFieldPaths"))
        if isinstance(asked.family, native.ChatFamily):
            self._write = asked.family.stream(model.name, call.request_id, int(call.now.timestamp()))

    def _written(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [chunk for event in events for chunk in self._write(event)]

    def start(self) -> list[dict[str, Any]]:
        if isinstance(self._family, native.ChatFamily):
            return self._written([self._narration.start()])
        return []

    def tell(self, delta: Delta) -> list[dict[str, Any]]:
        if isinstance(self._family, native.ChatFamily):
            return self._written(self._narration.tell(delta))
        assert isinstance(self._family, native.PromptFamily)  # noqa: S101 - streams of embeddings are refused
        return [self._family.piece(delta)] if delta.text else []

    def end(self, delta: Delta, latency_ms: int) -> list[dict[str, Any]]:
        if isinstance(self._family, native.ChatFamily):
            return self._written(self._narration.end(delta, latency_ms))
        assert isinstance(self._family, native.PromptFamily)  # noqa: S101 - streams of embeddings are refused
        return [self._family.last(delta)]


def _record(call: Call, tier: str | None, metadata: Mapping[str, str] | None) -> None:
    """What the caller said about the request, for the ledger."""
    if tier and tier != "default":
        call.details["serviceTier"] = tier
    if metadata:
        call.details["requestMetadata"] = dict(metadata)


def _echo(request: Request) -> dict[str, Any]:
    """The service tier that served the request, when one was asked for: there is one, whatever was asked for."""
    return {"serviceTier": {"type": "default"}} if request.get("serviceTier") else {}


def _native_echo(request: Request) -> dict[str, Any]:
    """As `_echo`, for the header that InvokeModel answers with."""
    return {"serviceTier": "default"} if request.get("serviceTier") else {}


_METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]*")


def _metadata(text: str | None) -> dict[str, str] | None:
    """Request metadata as InvokeModel's header states it: a JSON object with Converse's limits."""
    if not text:
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    pairs = given.items() if isinstance(given, dict) else ()
    if not 1 <= len(pairs) <= _MOST_METADATA or not all(
        isinstance(value, str) and 0 < len(name) <= 256 >= len(value) and _METADATA.fullmatch(name + value)
        for name, value in pairs
    ):
        raise ValidationFault(
            f"requestMetadata must be a JSON object of 1 to {_MOST_METADATA} texts, names and values of at most 256 "
            "letters, digits, spaces and : _ @ $ # = / + , - ."
        )
    return dict(pairs)


def _native(call: Call, request: Request, model: ModelArtifact) -> native.Asked:
    if request.get("guardrailIdentifier"):
        raise unsupported(model.name, "guardrails")
    if request.get("performanceConfigLatency") == "optimized":
        raise unsupported(model.name, "latency-optimized inference")
    for member in ("contentType", "accept"):
        kind = str(request.get(member) or "application/json").split(";")[0].strip().lower()
        if kind not in ("application/json", "*/*", "application/*"):
            raise ValidationFault(f"{member} {kind!r} is not supported; expected application/json")
    _record(call, request.get("serviceTier"), _metadata(request.get("requestMetadata")))
    embeds = invocation.only_embeds(model.features)
    return native.read(request.get("body") or b"", model.name, model.families, embeds=embeds)


def _wanted(asked: native.Asked, model: ModelArtifact) -> Generation:
    return invocation.wanted(asked, model.name, model.features, instruct=model.instruct)
