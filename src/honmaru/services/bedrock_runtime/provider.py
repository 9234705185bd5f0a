"""The operations of Bedrock's data plane that honmaru carries.

Invariants:
- A model that the session may not see is answered as one that does not exist, word for word.
- The answer is produced at the session's label; usage counts are those of the engine.
- A streamed answer fails as an HTTP error while nothing was generated, and as a modelled exception in the stream after.
- When the client goes away the gateway closes the stream, and that cancels the generation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

from honmaru.core.errors import EngineFailed, NotFound, NotReady, ValidationFault
from honmaru.deployments.catalog import artifact, find_model
from honmaru.ports.models import MODEL_SERVICE, Delta, Generation, ModelArtifact, ModelServers
from honmaru.ports.runtime import Clock
from honmaru.security.calls import Call, Provider, Target
from honmaru.services.bedrock_runtime import conversation, llama

Request = Mapping[str, Any]


class BedrockRuntime(Provider):
    """Converse and InvokeModel over `servers`."""

    service = "bedrock-runtime"
    targets = {  # noqa: RUF012 - declared as a ClassVar by Provider
        "Converse": Target("bedrock:InvokeModel", "{modelId}"),
        "ConverseStream": Target("bedrock:InvokeModelWithResponseStream", "{modelId}"),
        "InvokeModel": Target("bedrock:InvokeModel", "{modelId}"),
        "InvokeModelWithResponseStream": Target("bedrock:InvokeModelWithResponseStream", "{modelId}"),
        "CountTokens": Target("bedrock:CountTokens", "{modelId}"),
    }

    def __init__(self, servers: ModelServers, clock: Clock) -> None:
        self._servers, self._clock = servers, clock

    async def converse(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._chat_model(call, "InvokeModel", request["modelId"])
        wanted = conversation.generation(request, model.name)
        text, last, latency_ms = await self._whole(call, model, wanted)
        paths = request.get("additionalModelResponseFieldPaths")
        return {
            "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
            "stopReason": conversation.stop_reason(last),
            "usage": conversation.usage(last),
            "metrics": {"latencyMs": latency_ms},
            "additionalModelResponseFields": conversation.additional_fields(paths, last),
        }

    async def converse_stream(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._chat_model(call, "InvokeModelWithResponseStream", request["modelId"])
        wanted = conversation.generation(request, model.name)
        started = self._clock.monotonic()
        first, rest = await self._begin(call, model, wanted)

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            async with contextlib.aclosing(rest):
                yield {"messageStart": {"role": "assistant"}}
                delta = first
                while delta.finish is None:
                    yield {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": delta.text}}}
                    delta = await self._next(rest, model)
                yield {"contentBlockStop": {"contentBlockIndex": 0}}
                self._note(call, delta)
                stop: dict[str, Any] = {"stopReason": conversation.stop_reason(delta)}
                fields = conversation.additional_fields(request.get("additionalModelResponseFieldPaths"), delta)
                if fields is not None:
                    stop["additionalModelResponseFields"] = fields
                yield {"messageStop": stop}
                metrics = {"latencyMs": self._since(started)}
                yield {"metadata": {"usage": conversation.usage(delta), "metrics": metrics}}

        return {"stream": _Stream(events(), rest)}

    async def invoke_model(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._model(call, "InvokeModel", request["modelId"])
        wanted = _native(request, model)
        text, last, _ = await self._whole(call, model, wanted)
        return {"body": llama.answer(text, last), "contentType": "application/json"}

    async def invoke_model_with_response_stream(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._model(call, "InvokeModelWithResponseStream", request["modelId"])
        wanted = _native(request, model)
        started = self._clock.monotonic()
        first, rest = await self._begin(call, model, wanted)
        first_ms = self._since(started)

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            async with contextlib.aclosing(rest):
                delta = first
                while delta.finish is None:
                    yield {"chunk": {"bytes": llama.piece(delta.text)}}
                    delta = await self._next(rest, model)
                self._note(call, delta)
                yield {"chunk": {"bytes": llama.last_piece(delta, self._since(started), first_ms)}}

        return {"body": _Stream(events(), rest), "contentType": "application/json"}

    async def count_tokens(self, call: Call, request: Request) -> dict[str, Any]:
        model = await self._model(call, "CountTokens", request["modelId"])
        given = request["input"]
        if given.get("converse") is not None:
            _require_chat(model)
            wanted = conversation.generation(given["converse"], model.name)
        elif given.get("invokeModel") is not None:
            wanted = llama.generation(given["invokeModel"]["body"], model.name)
        else:
            raise ValidationFault("input must hold converse or invokeModel")
        with _modelled(model):
            return {"inputTokens": await self._servers.count_tokens(call.session, model, wanted)}

    async def _model(self, call: Call, operation: str, identifier: str) -> ModelArtifact:
        return await asyncio.to_thread(_resolve, call, operation, identifier)

    async def _chat_model(self, call: Call, operation: str, identifier: str) -> ModelArtifact:
        model = await self._model(call, operation, identifier)
        _require_chat(model)
        return model

    async def _whole(self, call: Call, model: ModelArtifact, wanted: Generation) -> tuple[str, Delta, int]:
        started = self._clock.monotonic()
        text = ""
        with _modelled(model):
            async with contextlib.aclosing(self._servers.generate(call.session, model, wanted)) as deltas:
                async for delta in deltas:
                    text += delta.text
                    if delta.finish is not None:
                        latency_ms = self._since(started)
                        self._note(call, delta)
                        call.response_headers["x-amzn-bedrock-input-token-count"] = str(delta.input_tokens)
                        call.response_headers["x-amzn-bedrock-output-token-count"] = str(delta.output_tokens)
                        call.response_headers["x-amzn-bedrock-invocation-latency"] = str(latency_ms)
                        return text, delta, latency_ms
            raise EngineFailed("the model ended its answer without saying why")

    async def _begin(
        self, call: Call, model: ModelArtifact, wanted: Generation
    ) -> tuple[Delta, AsyncGenerator[Delta, None]]:
        """Wait for the first piece, so that a model that cannot answer is an HTTP error and not a broken stream."""
        deltas = self._servers.generate(call.session, model, wanted)
        try:
            with _modelled(model):
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

    def _note(self, call: Call, last: Delta) -> None:
        call.details |= {"inputTokens": last.input_tokens, "outputTokens": last.output_tokens}

    def _since(self, started: float) -> int:
        return int((self._clock.monotonic() - started) * 1000)


class _Stream(AsyncIterator[dict[str, Any]]):
    """Events over a generation. Closing it cancels the generation, also when no event was taken yet."""

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], deltas: AsyncGenerator[Delta, None]) -> None:
        self._events, self._deltas = events, deltas

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        await self._deltas.aclose()


def _resolve(call: Call, operation: str, identifier: str) -> ModelArtifact:
    record = find_model(call.records_of(MODEL_SERVICE), identifier)
    if record is None:
        raise NotFound(
            f"Could not resolve the model from the model identifier {identifier!r}; "
            "list the models that you can use with ListImportedModels",
            code="ResourceNotFoundException",
        )
    model = artifact(call.session, record)
    if identifier != model.arn:
        # The door asked about what the caller wrote; policies speak of ARNs.
        call.authorize(f"bedrock:{operation}", model.arn)
    call.resources.append((model.arn, "AWS::Bedrock::ImportedModel"))
    return model


def _require_chat(model: ModelArtifact) -> None:
    if not model.instruct:
        raise ValidationFault(
            f"This model doesn't support conversations, it has no chat template: {model.name}. Use InvokeModel."
        )


def _native(request: Request, model: ModelArtifact) -> Generation:
    if request.get("guardrailIdentifier"):
        raise conversation.unsupported(model.name, "guardrails")
    if request.get("performanceConfigLatency") == "optimized":
        raise conversation.unsupported(model.name, "latency-optimized inference")
    if request.get("serviceTier") not in (None, "default"):
        raise conversation.unsupported(model.name, f"service tier {request['serviceTier']!r}")
    for member in ("contentType", "accept"):
        kind = str(request.get(member) or "application/json").split(";")[0].strip().lower()
        if kind not in ("application/json", "*/*", "application/*"):
            raise ValidationFault(f"{member} {kind!r} is not supported; expected application/json")
    return llama.generation(request.get("body") or b"", model.name)


@contextlib.contextmanager
def _modelled(model: ModelArtifact) -> Iterator[None]:
    """Give the faults of a model server the codes that Bedrock has for them."""
    try:
        yield
    except NotReady as fault:
        raise NotReady(fault.message, code="ModelNotReadyException") from fault
    except EngineFailed as fault:
        raise EngineFailed(
            fault.message,
            code="ModelErrorException",
            members={"originalStatusCode": 500, "resourceName": model.name},
        ) from fault
