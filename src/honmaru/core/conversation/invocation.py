"""One invocation of a model with a native body, before and after its engine: pure functions.

Invariant: what the model cannot do is refused here, before any engine is touched, naming model and feature.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from honmaru.core.conversation import converse, native
from honmaru.core.conversation.model import Completion, Generation, Vectors, unsupported
from honmaru.core.errors import ValidationFault


def require_chat(model: str, *, instruct: bool) -> None:
    """Raises ValidationFault for a model that holds no conversations."""
    if not instruct:
        raise ValidationFault(
            f"This model doesn't support conversations, it has no chat template: {model}. Use InvokeModel."
        )


def from_members(members: Mapping[str, Any], model: str, features: Collection[str], *, instruct: bool) -> Generation:
    """What members of Converse ask that no service model has checked. Raises ValidationFault."""
    require_chat(model, instruct=instruct)
    try:
        wanted = converse.generation(members, model)
    except (KeyError, TypeError, AttributeError, IndexError) as wrong:
        raise ValidationFault(f"Malformed input request: {type(wrong).__name__} at {wrong}") from None
    wanted.check(model, features)
    return wanted


def wanted(asked: native.Asked, model: str, features: Collection[str], *, instruct: bool) -> Generation:
    """What a native body asks of an engine. Raises ValidationFault."""
    if asked.generation is not None:
        asked.generation.check(model, features)
        return asked.generation
    if asked.members is None:
        raise unsupported(model, "this operation on texts to embed")
    return from_members(asked.members, model, features, instruct=instruct)


def embedding(asked: native.Asked, model: str, features: Collection[str]) -> native.Embedding | None:
    """The texts that a native body asks to embed; None for another body. Raises ValidationFault."""
    if asked.embedding is not None and "embeddings" not in features:
        raise unsupported(model, "embeddings")
    return asked.embedding


def only_embeds(features: Collection[str]) -> bool:
    return "embeddings" in features and "completions" not in features


def answer(asked: native.Asked, completion: Completion, model: str, request_id: str, latency_ms: int) -> Any:
    """The native body of a whole answer."""
    family = asked.family
    if isinstance(family, native.ChatFamily):
        paths = (asked.members or {}).get("additionalModelResponseFieldPaths")
        return family.whole(converse.result(completion, paths, latency_ms), model, request_id)
    assert isinstance(family, native.PromptFamily)  # noqa: S101 - families of embeddings have no completions
    return family.whole(completion)


def embedded(asked: native.Asked, vectors: Vectors, model: str, request_id: str) -> Any:
    """The native body of embeddings, shaped as they were asked for. Raises ValidationFault for too many dimensions."""
    texts = asked.embedding
    assert texts is not None and isinstance(asked.family, native.EmbeddingFamily)  # noqa: S101 - the caller has looked
    size = len(vectors.vectors[0])
    if texts.dimensions is not None and texts.dimensions > size:
        raise ValidationFault(f"{texts.dimensions} dimensions were asked for; model {model} has {size}")
    shaped = Vectors([_shaped(vector, texts) for vector in vectors.vectors], vectors.input_tokens)
    return asked.family.answer(texts, shaped, request_id)


def _shaped(vector: Sequence[float], asked: native.Embedding) -> list[float]:
    """A vector as it was asked for: its first dimensions, of length 1."""
    values = list(vector[: asked.dimensions]) if asked.dimensions is not None else list(vector)
    if not asked.normalize:
        return values
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]
