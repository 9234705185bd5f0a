"""Chat completions as Converse and ConverseStream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from honmaru.core.conversation import chat
from honmaru.gateway.dialects import Asked, Translation


def completion(asked: Asked) -> Translation:
    """POST chat/completions. Raises ValidationFault, Unsupported."""
    read = chat.read_completion(asked.body)
    stream = read.get("stream", False)
    members = {"modelId": read["model"], **chat.members(read)}
    head = chat.head(f"chatcmpl-{asked.request_id}", int(asked.at.timestamp()), read["model"], stream=stream)
    if stream:
        usage = read.get("stream_options", {}).get("include_usage", False)
        return Translation("ConverseStream", members, framing=Chunks(head, usage=usage))
    return Translation("Converse", members, lambda result: chat.whole(head, result))


class Chunks:
    """Framing of one completion: ConverseStream's events as chunks, [DONE] at the end."""

    def __init__(self, head: Mapping[str, Any], *, usage: bool) -> None:
        self._chunks = chat.Chunks(head, usage=usage)

    def initial(self, payload: bytes) -> bytes:
        """Nothing stands beside the stream."""
        return payload

    def write(self, event: Mapping[str, Any]) -> bytes:
        written = b"".join(framed(chunk) for chunk in self._chunks.write(event))
        return written + b"data: [DONE]\n\n" if "metadata" in event else written

    def fault(self, code: str, message: str) -> bytes:
        return framed({"error": {"message": message, "type": "server_error", "param": None, "code": code}})


def framed(value: Any) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
