"""The native body of Llama models on InvokeModel: {prompt, temperature, top_p, max_gen_len} and its answers.

`seed` is accepted too, which Bedrock's body does not have, so that answers can be repeated.
Source: Amazon Bedrock user guide, "Meta Llama models" (inference parameters).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.core.model_files import strict_json
from honmaru.ports.models import Delta, Generation
from honmaru.services.bedrock_runtime.conversation import unsupported

_MEMBERS = frozenset({"prompt", "temperature", "top_p", "max_gen_len", "seed"})


def generation(body: bytes, model: str) -> Generation:
    """Parse the body. Raises ValidationFault naming what is wrong."""
    value = strict_json(body, "body")
    if not isinstance(value, dict):
        raise ValidationFault("the body must be a JSON object")
    if value.get("images"):
        raise unsupported(model, "images")
    unknown = sorted(set(value) - _MEMBERS - {"images"})
    if unknown:
        raise ValidationFault(f"Malformed input request: extraneous key {unknown[0][:80]!r} is not permitted")
    if not isinstance(value.get("prompt"), str) or not value["prompt"]:
        raise ValidationFault("Malformed input request: required key 'prompt' must be a text that is not empty")
    seed = value.get("seed")
    if seed is not None and type(seed) is not int:
        raise ValidationFault("Malformed input request: 'seed' must be an integer")
    return Generation(
        prompt=value["prompt"],
        max_tokens=int(_number(value, "max_gen_len", 512, 1, 1 << 20)),
        temperature=_number(value, "temperature", 0.5, 0, 1),
        top_p=_number(value, "top_p", 0.9, 0, 1),
        seed=seed,
    )


def _number(value: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    number = value.get(name, default)
    if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
        raise ValidationFault(f"Malformed input request: {name!r} must be a number from {low} to {high}")
    return number


def answer(text: str, last: Delta) -> bytes:
    """The whole answer."""
    return _encode(
        {
            "generation": text,
            "prompt_token_count": last.input_tokens,
            "generation_token_count": last.output_tokens,
            "stop_reason": stop_reason(last),
        }
    )


def piece(text: str) -> bytes:
    """A part of a streamed answer; the counts come with the last one."""
    return _encode(
        {"generation": text, "prompt_token_count": None, "generation_token_count": None, "stop_reason": None}
    )


def last_piece(last: Delta, latency_ms: int, first_ms: int) -> bytes:
    return _encode(
        {
            "generation": "",
            "prompt_token_count": last.input_tokens,
            "generation_token_count": last.output_tokens,
            "stop_reason": stop_reason(last),
            "amazon-bedrock-invocationMetrics": {
                "inputTokenCount": last.input_tokens,
                "outputTokenCount": last.output_tokens,
                "invocationLatency": latency_ms,
                "firstByteLatency": first_ms,
            },
        }
    )


def stop_reason(last: Delta) -> str:
    return "length" if last.finish == "length" else "stop"


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
