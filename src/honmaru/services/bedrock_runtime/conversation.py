"""From a Converse request to a Generation, and from its end to Converse's members.

Invariant: what the model cannot do is refused by name; nothing in a request is silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.ports.models import Delta, Generation

Request = Mapping[str, Any]

DEFAULT_MAX_TOKENS = 512
_UNSUPPORTED = {
    "toolConfig": "tool use",
    "guardrailConfig": "guardrails",
    "promptVariables": "prompt variables",
    "outputConfig": "structured output",
}
_BLOCKS = {
    "image": "images", "document": "documents", "video": "video", "audio": "audio", "toolUse": "tool use",
    "toolResult": "tool use", "guardContent": "guardrails", "cachePoint": "prompt caching",
    "reasoningContent": "reasoning content", "citationsContent": "citations", "searchResult": "search results",
    "toolAddition": "tool use", "toolRemoval": "tool use",
}  # fmt: skip
_STOP_SEQUENCE_PATH = "/stop_sequence"


def unsupported(model: str, feature: str) -> ValidationFault:
    """The refusal of a feature, naming model and feature."""
    return ValidationFault(f"This model doesn't support {feature}: {model}. Remove it from the request and try again.")


def generation(request: Request, model: str) -> Generation:
    """The Generation that a Converse, ConverseStream or CountTokens request asks for. Raises ValidationFault."""
    for member, feature in _UNSUPPORTED.items():
        if request.get(member):
            raise unsupported(model, feature)
    if (request.get("performanceConfig") or {}).get("latency") == "optimized":
        raise unsupported(model, "latency-optimized inference")
    if (request.get("serviceTier") or {}).get("type", "default") != "default":
        raise unsupported(model, f"service tier {request['serviceTier']['type']!r}")
    extra = dict(request.get("additionalModelRequestFields") or {})
    seed = extra.pop("seed", None)
    if extra:
        raise unsupported(model, f"additionalModelRequestFields {', '.join(sorted(map(str, extra)))[:200]}")
    if seed is not None and (isinstance(seed, bool) or int(seed) != seed):
        raise ValidationFault("additionalModelRequestFields.seed must be an integer")
    inference = request.get("inferenceConfig") or {}
    return Generation(
        messages=_messages(request, model),
        max_tokens=int(inference.get("maxTokens") or DEFAULT_MAX_TOKENS),
        temperature=inference.get("temperature"),
        top_p=inference.get("topP"),
        stop=tuple(inference.get("stopSequences") or ()),
        seed=None if seed is None else int(seed),
    )


def _messages(request: Request, model: str) -> list[dict[str, str]]:
    system = "\n".join(_text(block, model) for block in request.get("system") or ())
    messages = [{"role": "system", "content": system}] if system else []
    expected = "user"
    for message in request.get("messages") or ():
        role = message["role"]
        if role != expected:
            raise ValidationFault(
                f"a message of role {role!r} stands where one of role {expected!r} must: a conversation starts with "
                "the user and alternates between user and assistant"
            )
        messages.append({"role": role, "content": "\n".join(_text(block, model) for block in message["content"])})
        expected = "assistant" if role == "user" else "user"
    if expected != "assistant":
        raise ValidationFault("messages must hold at least one message and end with one of the user")
    return messages


def _text(block: Mapping[str, Any], model: str) -> str:
    for member in block:
        if member != "text":
            raise unsupported(model, _BLOCKS.get(member, f"content of type {member}"))
    text = block.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValidationFault("The text field in a content block is blank. Add text to it and try again.")
    return text


def stop_reason(last: Delta) -> str:
    """Converse's stopReason."""
    if last.finish == "stop_sequence":
        return "stop_sequence"
    if last.finish == "length":
        return "model_context_window_exceeded" if last.details.get("context_full") else "max_tokens"
    return "end_turn"


def usage(last: Delta) -> dict[str, int]:
    return {
        "inputTokens": last.input_tokens,
        "outputTokens": last.output_tokens,
        "totalTokens": last.input_tokens + last.output_tokens,
    }


def additional_fields(paths: Sequence[str] | None, last: Delta) -> dict[str, Any] | None:
    """additionalModelResponseFields for the JSON pointers that were asked for; this model has /stop_sequence."""
    if paths and _STOP_SEQUENCE_PATH in paths:
        return {"stop_sequence": last.stop_sequence}
    return None
