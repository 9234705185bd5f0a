"""The native bodies of models on InvokeModel: Nova, Claude, Llama, Titan, Mistral, OpenAI's, and Cohere's embeddings.

A body's members say which family it speaks; a model that is bound to one family refuses the others.

Invariants:
- A body is a Generation, Converse's members, or texts to embed; the same family writes the answer.
- The last chunk of a stream carries `amazon-bedrock-invocationMetrics`.

Source: Amazon Bedrock user guide, "Inference request parameters and response fields for foundation models".
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from honmaru.core.conversation import chat, claude, converse
from honmaru.core.conversation.model import Completion, Delta, Generation, Vectors
from honmaru.core.errors import ValidationFault
from honmaru.core.members import (
    Reader,
    Unsupported,
    filled,
    flag,
    integer,
    items,
    mapping,
    neutral,
    number,
    refusal,
    structure,
    table,
    text,
)

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Embedding:
    """Texts to embed. `dimensions` None means the model's own; `normalize` asks for vectors of length 1."""

    texts: Sequence[str]
    dimensions: int | None = None
    normalize: bool = True
    kinds: Sequence[str] = ("float",)


@dataclass(frozen=True, slots=True)
class Asked:
    """A read body: exactly one of `members` (of Converse), `generation` and `embedding` is set."""

    family: Family
    members: dict[str, Any] | None = None
    generation: Generation | None = None
    embedding: Embedding | None = None


class Family:
    """One native body. A chat family writes Converse's result and events, a prompt family Completions and Deltas."""

    name = ""

    def speaks(self, body: Body) -> bool:
        """Whether a body is of this family, by its members."""
        raise NotImplementedError

    def read(self, body: Body) -> Asked:
        """Raises ValidationFault, Unsupported."""
        raise NotImplementedError


class ChatFamily(Family):
    def whole(self, result: Mapping[str, Any], model: str, request_id: str) -> Any:
        """A Converse result as a body."""
        raise NotImplementedError

    def stream(self, model: str, request_id: str, at: int) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
        """A writer of ConverseStream's events as chunks."""
        raise NotImplementedError


class PromptFamily(Family):
    def whole(self, completion: Completion) -> Any:
        raise NotImplementedError

    def piece(self, delta: Delta) -> Any:
        raise NotImplementedError

    def last(self, delta: Delta) -> Any:
        """The chunk of the last piece, what it still says included."""
        raise NotImplementedError


class EmbeddingFamily(Family):
    def answer(self, asked: Embedding, vectors: Vectors, request_id: str) -> Any:
        raise NotImplementedError


# Claude, Nova, OpenAI: conversations


class Claude(ChatFamily):
    name = "claude"

    def speaks(self, body: Body) -> bool:
        return "anthropic_version" in body

    def read(self, body: Body) -> Asked:
        return Asked(self, claude.members(claude.read_message(body, claude.IN_BEDROCK, ("anthropic_version",))))

    def whole(self, result: Mapping[str, Any], model: str, request_id: str) -> Any:
        return claude.whole(claude.head(f"msg_bdrk_{request_id}", model), result)

    def stream(self, model: str, request_id: str, at: int) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:  # noqa: ARG002
        return claude.Events(claude.head(f"msg_bdrk_{request_id}", model)).write


class OpenAi(ChatFamily):
    name = "openai"

    def speaks(self, body: Body) -> bool:
        return "messages" in body

    def read(self, body: Body) -> Asked:
        return Asked(self, chat.members(chat.read_completion(body, ("messages",))))

    def whole(self, result: Mapping[str, Any], model: str, request_id: str) -> Any:
        return chat.whole(chat.head(f"chatcmpl-{request_id}", 0, model, stream=False), result)

    def stream(self, model: str, request_id: str, at: int) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
        return chat.Chunks(chat.head(f"chatcmpl-{request_id}", at, model, stream=True), usage=True).write


class Mistral(PromptFamily):
    name = "mistral"

    def speaks(self, body: Body) -> bool:
        return "prompt" in body and bool({"max_tokens", "stop", "top_k"}.intersection(body))

    def read(self, body: Body) -> Asked:
        readers: Mapping[str, Reader] = {
            "prompt": filled, "max_tokens": integer(1), "stop": lambda where, value: items(where, value, filled, 10),
            "temperature": number(0, 1), "top_p": number(0, 1), "top_k": integer(1), "seed": integer(0),
        }  # fmt: skip
        read = _structure(body, readers, ("prompt",))
        return Asked(
            self,
            generation=Generation(
                prompt=read["prompt"], max_tokens=read.get("max_tokens", 512), stop=tuple(read.get("stop", ())),
                temperature=read.get("temperature", 0.5), top_p=read.get("top_p", 0.9), top_k=read.get("top_k"),
                seed=read.get("seed"),
            ),
        )  # fmt: skip

    def whole(self, completion: Completion) -> Any:
        first = completion.choices[0]
        return {"outputs": [{"text": first.text, "stop_reason": _short(first.finish)}]}

    def piece(self, delta: Delta) -> Any:
        return {"outputs": [{"text": delta.text, "stop_reason": None}]}

    def last(self, delta: Delta) -> Any:
        return {"outputs": [{"text": delta.text, "stop_reason": _short(delta.finish)}]}


def _short(finish: str | None) -> str:
    return "length" if finish == "length" else "stop"


class Nova(ChatFamily):
    """Converse's members, with binaries in base64 and other places for a few settings."""

    name = "nova"

    def speaks(self, body: Body) -> bool:
        if "schemaVersion" in body or "inferenceConfig" in body or "toolConfig" in body:
            return True
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        content = last.get("content") if isinstance(last, dict) else None
        return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "type" not in content[0]

    def read(self, body: Body) -> Asked:
        config = table({
            "maxTokens": integer(1), "max_new_tokens": integer(1), "temperature": number(0, 1), "topP": number(0, 1),
            "top_p": number(0, 1), "topK": integer(1), "top_k": integer(1),
            "stopSequences": lambda where, value: items(where, value, filled, 2500),
            "reasoningConfig": neutral({"type": "disabled"}),
        })  # fmt: skip
        readers: Mapping[str, Reader] = {
            "schemaVersion": text,
            "system": lambda where, value: items(where, value, table({"text": text}, ("text",)), 1000),
            "messages": lambda where, value: items(where, value, _nova_message, 10_000),
            "inferenceConfig": config,
            "toolConfig": mapping,
        }
        read = _structure(body, readers, ("messages",))
        wanted = read.get("inferenceConfig", {})
        inference = {
            "maxTokens": wanted.get("maxTokens", wanted.get("max_new_tokens")),
            "temperature": wanted.get("temperature"),
            "topP": wanted.get("topP", wanted.get("top_p")),
            "stopSequences": wanted.get("stopSequences"),
        }
        members: dict[str, Any] = {name: read[name] for name in ("system", "messages", "toolConfig") if name in read}
        members["inferenceConfig"] = {name: value for name, value in inference.items() if value is not None}
        top_k = wanted.get("topK", wanted.get("top_k"))
        if top_k is not None:
            members["additionalModelRequestFields"] = {"top_k": top_k}
        return Asked(self, members)

    def whole(self, result: Mapping[str, Any], model: str, request_id: str) -> Any:  # noqa: ARG002
        return {
            "output": result["output"],
            "stopReason": result["stopReason"],
            "usage": _nova_usage(result["usage"]),
        }

    def stream(self, model: str, request_id: str, at: int) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:  # noqa: ARG002
        def write(event: Mapping[str, Any]) -> list[dict[str, Any]]:
            if "metadata" in event:
                return [{"metadata": {"usage": _nova_usage(event["metadata"]["usage"]), "metrics": {}, "trace": {}}}]
            return [dict(event)]

        return write


def _nova_usage(usage: Mapping[str, int]) -> dict[str, int]:
    return {
        "inputTokens": usage["inputTokens"],
        "outputTokens": usage["outputTokens"],
        "totalTokens": usage["totalTokens"],
        "cacheReadInputTokenCount": usage.get("cacheReadInputTokens", 0),
        "cacheWriteInputTokenCount": 0,
    }


def _nova_message(where: str, value: Any) -> dict[str, Any]:
    readers: Mapping[str, Reader] = {"role": text, "content": lambda at, given: items(at, given, _nova_block, 10_000)}
    read = structure(where, value, readers, ("role", "content"))
    if read["role"] not in ("user", "assistant"):
        raise refusal(f"{where}.role", f"{where}.role must be user or assistant")
    return read


def _nova_block(where: str, value: Any) -> dict[str, Any]:
    block = mapping(where, value)
    for kind in ("image", "document", "video", "audio"):
        source = (block.get(kind) or {}).get("source") if isinstance(block.get(kind), dict) else None
        if isinstance(source, dict) and isinstance(source.get("bytes"), str):
            content = claude.encoded(f"{where}.{kind}.source.bytes", source["bytes"])
            return {kind: {**block[kind], "source": {"bytes": content}}}
    return block


# Llama, Titan: prompts


class Llama(PromptFamily):
    """`seed` is accepted too, which Bedrock's body does not have, so that answers can be repeated."""

    name = "llama"

    def speaks(self, body: Body) -> bool:
        return "prompt" in body

    def read(self, body: Body) -> Asked:
        readers: Mapping[str, Reader] = {
            "prompt": filled, "temperature": number(0, 1), "top_p": number(0, 1), "max_gen_len": integer(1, 1 << 20),
            "seed": integer(0), "images": _no_images,
        }  # fmt: skip
        read = _structure(body, readers, ("prompt",))
        return Asked(
            self,
            generation=Generation(
                prompt=read["prompt"], max_tokens=read.get("max_gen_len", 512), seed=read.get("seed"),
                temperature=read.get("temperature", 0.5), top_p=read.get("top_p", 0.9),
            ),
        )  # fmt: skip

    def whole(self, completion: Completion) -> Any:
        first = completion.choices[0]
        return {
            "generation": first.text,
            "prompt_token_count": completion.input_tokens,
            "generation_token_count": completion.output_tokens,
            "stop_reason": _short(first.finish),
        }

    def piece(self, delta: Delta) -> Any:
        return {
            "generation": delta.text, "prompt_token_count": None, "generation_token_count": None, "stop_reason": None,
        }  # fmt: skip

    def last(self, delta: Delta) -> Any:
        return {
            "generation": delta.text,
            "prompt_token_count": delta.input_tokens,
            "generation_token_count": delta.output_tokens,
            "stop_reason": _short(delta.finish),
        }


def _no_images(where: str, value: Any) -> None:
    if value:
        raise Unsupported(where, "images")


_TITAN = {"length": "LENGTH", "stop_sequence": "STOP_CRITERIA_MET", "content_filter": "CONTENT_FILTERED"}


class TitanText(PromptFamily):
    name = "titan"

    def speaks(self, body: Body) -> bool:
        return "inputText" in body and not {"dimensions", "normalize", "embeddingTypes"}.intersection(body)

    def read(self, body: Body) -> Asked:
        config = table({
            "maxTokenCount": integer(1), "temperature": number(0, 1), "topP": number(0, 1),
            "stopSequences": lambda where, value: items(where, value, filled, 2500),
        })  # fmt: skip
        read = _structure(body, {"inputText": filled, "textGenerationConfig": config}, ("inputText",))
        wanted = read.get("textGenerationConfig", {})
        return Asked(
            self,
            generation=Generation(
                prompt=read["inputText"], max_tokens=wanted.get("maxTokenCount", 512),
                temperature=wanted.get("temperature", 0.7), top_p=wanted.get("topP", 0.9),
                stop=tuple(wanted.get("stopSequences", ())),
            ),
        )  # fmt: skip

    def whole(self, completion: Completion) -> Any:
        first = completion.choices[0]
        result = {
            "tokenCount": completion.output_tokens,
            "outputText": first.text,
            "completionReason": _TITAN.get(first.finish, "FINISH"),
        }
        return {"inputTextTokenCount": completion.input_tokens, "results": [result]}

    def piece(self, delta: Delta) -> Any:
        return {
            "outputText": delta.text, "index": 0, "totalOutputTextTokenCount": None, "completionReason": None,
            "inputTextTokenCount": None,
        }  # fmt: skip

    def last(self, delta: Delta) -> Any:
        return {
            "outputText": delta.text,
            "index": 0,
            "totalOutputTextTokenCount": delta.output_tokens,
            "completionReason": _TITAN.get(delta.finish or "", "FINISH"),
            "inputTextTokenCount": delta.input_tokens,
        }


# Embeddings


class TitanEmbedding(EmbeddingFamily):
    """Titan text embeddings v2; v1's body is a part of it."""

    name = "titan-embed"

    def speaks(self, body: Body) -> bool:
        return "inputText" in body and "textGenerationConfig" not in body

    def read(self, body: Body) -> Asked:
        readers: Mapping[str, Reader] = {
            "inputText": filled, "dimensions": integer(1, 1 << 16), "normalize": flag,
            "embeddingTypes": lambda where, value: items(where, value, _kind("float", "binary"), 2),
        }  # fmt: skip
        read = _structure(body, readers, ("inputText",))
        return Asked(
            self,
            embedding=Embedding(
                [read["inputText"]], read.get("dimensions"), read.get("normalize", True),
                read.get("embeddingTypes") or ["float"],
            ),
        )  # fmt: skip

    def answer(self, asked: Embedding, vectors: Vectors, request_id: str) -> Any:  # noqa: ARG002
        (vector,) = vectors.vectors
        by_type = {kind: _as(kind, vector) for kind in asked.kinds}
        out: dict[str, Any] = {"embeddingsByType": by_type, "inputTextTokenCount": vectors.input_tokens}
        return {"embedding": by_type["float"], **out} if "float" in by_type else out


class Cohere(EmbeddingFamily):
    name = "cohere"

    def speaks(self, body: Body) -> bool:
        return "texts" in body

    def read(self, body: Body) -> Asked:
        readers: Mapping[str, Reader] = {
            "texts": lambda where, value: items(where, value, text, 2048),
            "input_type": text,
            "truncate": neutral("NONE", "END"),
            "embedding_types": lambda where, value: items(where, value, _kind("float", "binary", "int8"), 3),
            "output_dimension": integer(1, 1 << 16),
            "images": _no_images,
        }
        read = _structure(body, readers, ("texts", "input_type"))
        if not read["texts"]:
            raise refusal("texts", "texts must hold at least one text")
        return Asked(
            self,
            embedding=Embedding(read["texts"], read.get("output_dimension"), True, read.get("embedding_types") or ()),
        )

    def answer(self, asked: Embedding, vectors: Vectors, request_id: str) -> Any:
        if asked.kinds:
            made: Any = {kind: [_as(kind, vector) for vector in vectors.vectors] for kind in asked.kinds}
        else:
            made = [list(vector) for vector in vectors.vectors]
        kind = "embeddings_by_type" if asked.kinds else "embeddings_floats"
        return {"id": request_id, "embeddings": made, "texts": list(asked.texts), "response_type": kind}


def _kind(*known: str) -> Reader:
    def read(where: str, value: Any) -> str:
        if value not in known:
            raise refusal(where, f"{where} must be one of {', '.join(known)}")
        return str(value)

    return read


def _as(kind: str, vector: Sequence[float]) -> list[Any]:
    """A vector in one of the embedding types: signs as bits, eight to a number; or scaled to a byte."""
    if kind == "float":
        return list(vector)
    if kind == "int8":
        return [max(-128, min(127, round(value * 127))) for value in vector]
    bits = [1 if value >= 0 else 0 for value in vector]
    padded = bits + [0] * (-len(bits) % 8)
    return [int("".join(map(str, padded[at : at + 8])), 2) - 128 for at in range(0, len(padded), 8)]


FAMILIES: tuple[Family, ...] = (Claude(), Nova(), OpenAi(), TitanText(), TitanEmbedding(), Cohere(), Mistral(), Llama())
"""In the order in which a body is tried; the first that claims it reads it."""


def _structure(body: Body, readers: Mapping[str, Reader], required: Sequence[str]) -> dict[str, Any]:
    return structure("", body, readers, required)


def read(body: bytes, model: str, families: Sequence[str] = (), *, embeds: bool = False) -> Asked:
    """Read a native body for a model that is bound to `families` (by name; none: to no one).

    `embeds` says that the model embeds: then `inputText` alone is Titan's embedding body, not its text one.
    Raises ValidationFault naming what is wrong, and the model where it cannot do what is asked.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ValidationFault("Malformed input request: the body is not JSON") from None
    if not isinstance(value, dict):
        raise ValidationFault("Malformed input request: the body must be a JSON object")
    for family in FAMILIES:
        if families and family.name not in families:
            continue
        if family.name == "titan" and embeds and "textGenerationConfig" not in value:
            continue
        if (families and len(families) == 1) or family.speaks(value):
            try:
                return family.read(value)
            except Unsupported as unsupported:
                raise unsupported.fault(model) from None
            except ValidationFault as fault:
                raise ValidationFault(f"Malformed input request: {fault.message}", members=fault.members) from None
    raise ValidationFault(
        f"Malformed input request: the body has no member that tells its family; model {model} reads "
        f"{', '.join(families) or 'the bodies of Claude, Nova, Llama, Titan, Mistral, OpenAI and Cohere'}"
    )


def written(value: Any) -> bytes:
    """A body or chunk as JSON. Raises RecursionError where a caller's own JSON is nested too deeply."""
    try:
        return orjson.dumps(value, default=_binary)
    except TypeError:  # what callers send may hold large integers and lone surrogates, which orjson does not write
        return json.dumps(value, default=_binary).encode()


def _binary(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(type(value).__name__)


def metrics(last: Delta, latency_ms: int, first_ms: int) -> dict[str, Any]:
    """What the last chunk of a stream carries."""
    counts = {
        "inputTokenCount": last.input_tokens,
        "outputTokenCount": last.output_tokens,
        "invocationLatency": latency_ms,
        "firstByteLatency": first_ms,
    }
    if last.cached_tokens:
        counts["cacheReadInputTokenCount"] = last.cached_tokens
    return {"amazon-bedrock-invocationMetrics": counts}


__all__ = [
    "Asked",
    "ChatFamily",
    "Embedding",
    "EmbeddingFamily",
    "Family",
    "PromptFamily",
    "converse",
    "metrics",
    "read",
    "written",
]
