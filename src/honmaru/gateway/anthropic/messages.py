"""Messages as Converse and ConverseStream, and their token counts as CountTokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from honmaru.core.conversation import claude
from honmaru.gateway.dialects import Asked, Translation


def message(asked: Asked) -> Translation:
    """POST messages. Raises ValidationFault, Unsupported."""
    read = claude.read_message(asked.body, claude.OVER_HTTP, ("model",))
    members = {"modelId": read["model"], **claude.members(read)}
    head = claude.head(f"msg_{asked.request_id}", read["model"])
    if read.get("stream", False):
        return Translation("ConverseStream", members, framing=Events(head))
    return Translation("Converse", members, lambda result: claude.whole(head, result))


def count(asked: Asked) -> Translation:
    """POST messages/count_tokens. Raises ValidationFault, Unsupported."""
    read = claude.read_prompt(asked.body)
    members = {"modelId": read["model"], "input": {"converse": claude.prompt(read)}}
    return Translation("CountTokens", members, lambda result: {"input_tokens": result["inputTokens"]})


class Events:
    """Framing of one message: ConverseStream's events as server-sent events."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._events = claude.Events(head)

    def initial(self, payload: bytes) -> bytes:
        """Nothing stands beside the stream."""
        return payload

    def write(self, event: Mapping[str, Any]) -> bytes:
        return b"".join(map(_framed, self._events.write(event)))

    def fault(self, code: str, message: str) -> bytes:
        kind = "overloaded_error" if code == "ThrottlingException" else "api_error"
        return _framed({"type": "error", "error": {"type": kind, "message": f"{code}: {message}"}})


def _framed(event: Mapping[str, Any]) -> bytes:
    name: str = event["type"]
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
