"""Responses as Converse and ConverseStream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from honmaru.core.conversation import responses
from honmaru.gateway.dialects import Asked, Translation


def response(asked: Asked) -> Translation:
    """POST responses. Raises ValidationFault, Unsupported."""
    read = responses.read_response(asked.body)
    members = {"modelId": read["model"], **responses.members(read)}
    head = responses.head(f"resp_{asked.request_id}", int(asked.at.timestamp()), read, asked.body)
    if read.get("stream", False):
        return Translation("ConverseStream", members, framing=Events(head))
    return Translation("Converse", members, lambda result: responses.whole(head, result))


class Events:
    """Framing of one response: ConverseStream's events as server-sent events."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._events = responses.Events(head)

    def initial(self, payload: bytes) -> bytes:
        """Nothing stands beside the stream."""
        return payload

    def write(self, event: Mapping[str, Any]) -> bytes:
        return b"".join(map(_framed, self._events.write(event)))

    def fault(self, code: str, message: str) -> bytes:
        return _framed({"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0})


def _framed(event: Mapping[str, Any]) -> bytes:
    name: str = event["type"]
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
