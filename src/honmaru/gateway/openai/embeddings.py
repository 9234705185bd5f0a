"""Embeddings as InvokeModel with Cohere's body, which takes several texts at once."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

import orjson

from honmaru.core.members import Reader, Unsupported, filled, integer, items, refusal, structure, text
from honmaru.gateway.dialects import Asked, Translation


def _input(where: str, value: Any) -> list[str]:
    if type(value) is str:
        return [filled(where, value)]
    if type(value) is list and value and type(value[0]) in (int, list):
        raise Unsupported(where, "tokens in the place of texts")
    return items(where, value, filled, 2048)


_REQUEST: Mapping[str, Reader] = {
    "model": filled,
    "input": _input,
    "encoding_format": text,
    "dimensions": integer(1, 1 << 16),
    "user": text,
}


def embeddings(asked: Asked) -> Translation:
    """POST embeddings. Raises ValidationFault, Unsupported."""
    read = structure("", asked.body, _REQUEST, ("model", "input"))
    form = read.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise refusal("encoding_format", "encoding_format must be float or base64", "invalid_value")
    if not read["input"]:
        raise refusal("input", "input must hold at least one text", "invalid_value")
    body: dict[str, Any] = {"texts": read["input"], "input_type": "search_document"}
    if "dimensions" in read:
        body["output_dimension"] = read["dimensions"]
    members = {"modelId": read["model"], "body": orjson.dumps(body)}

    def answer(result: Mapping[str, Any]) -> dict[str, Any]:
        vectors = orjson.loads(result["body"])["embeddings"]
        data = [
            {"object": "embedding", "index": at, "embedding": vector if form == "float" else _packed(vector)}
            for at, vector in enumerate(vectors)
        ]
        tokens = int(result["tokens"])
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": read["model"], "usage": usage}

    return Translation("InvokeModel", members, answer)


def _packed(vector: list[float]) -> str:
    """Little-endian floats of 4 bytes, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
