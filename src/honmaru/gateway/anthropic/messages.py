"""Messages as Converse and ConverseStream, and their token counts as CountTokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from honmaru.gateway.dialects import Asked, Translation, answered_text, conversation, inference, refusal
from honmaru.gateway.members import (
    Reader,
    Unsupported,
    filled,
    flag,
    integer,
    items,
    mapping,
    neutral,
    number,
    structure,
    table,
    text,
)

_INFERENCE = {
    "max_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop_sequences": "stopSequences",
}
_STOP_SEQUENCE = "/stop_sequence"


def _role(where: str, value: Any) -> str:
    role = text(where, value)
    if role not in ("user", "assistant"):
        raise refusal(where, f"{where} must be user or assistant; the system prompt is the parameter system")
    return role


# Caching changes only how fast and how dear an answer is, so asking for it is harmless.
_BLOCK = {"type": text, "text": text, "cache_control": mapping, "citations": neutral([])}


def _block(where: str, value: Any) -> str:
    kind = text(f"{where}.type", mapping(where, value).get("type"))
    if kind != "text":
        raise Unsupported(where, f"content of type {kind[:64]!r}")
    return str(structure(where, value, _BLOCK, ("text",))["text"])


def _content(where: str, value: Any) -> list[str]:
    return [value] if type(value) is str else items(where, value, _block, 10_000)


_MESSAGE = table({"role": _role, "content": _content}, ("role", "content"))


def _messages(where: str, value: Any) -> list[dict[str, Any]]:
    return items(where, value, _MESSAGE, 10_000)


def _stop_sequences(where: str, value: Any) -> list[str]:
    return items(where, value, filled, 2500)


_PROMPT: Mapping[str, Reader] = {
    "model": filled,
    "messages": _messages,
    "system": _content,
    # changes neither the answer nor what is kept of it
    "cache_control": mapping,
    # accepted as far as they ask for nothing
    "context_management": neutral({}),
    "mcp_servers": neutral([]),
    "output_config": neutral({}),
    "output_format": neutral(),
    "speed": neutral("standard"),
    "thinking": neutral({"type": "disabled"}),
    "tool_choice": neutral({"type": "none"}, {"type": "auto"}),
    "tools": neutral([]),
}
_REQUEST: Mapping[str, Reader] = {
    **_PROMPT,
    "max_tokens": integer(1),
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "stop_sequences": _stop_sequences,
    "stream": flag,
    "metadata": mapping,
    "container": neutral(),
    "diagnostics": neutral(),
    "inference_geo": neutral(),
    "service_tier": neutral("auto", "standard_only"),
    "top_k": neutral(),
}


def message(asked: Asked) -> Translation:
    """POST messages. Raises ValidationFault, Unsupported."""
    read = structure("", asked.body, _REQUEST, ("model", "max_tokens", "messages"))
    members = {
        "modelId": read["model"],
        **_prompt(read),
        "inferenceConfig": inference(read, _INFERENCE),
        "additionalModelResponseFieldPaths": [_STOP_SEQUENCE],
    }
    head = {"id": f"msg_{asked.request_id}", "type": "message", "role": "assistant", "model": read["model"]}
    if read.get("stream", False):
        return Translation("ConverseStream", members, framing=Events(head))
    return Translation("Converse", members, lambda result: _whole(head, result))


def count(asked: Asked) -> Translation:
    """POST messages/count_tokens. Raises ValidationFault, Unsupported."""
    read = structure("", asked.body, _PROMPT, ("model", "messages"))
    members = {"modelId": read["model"], "input": {"converse": _prompt(read)}}
    return Translation("CountTokens", members, lambda result: {"input_tokens": result["inputTokens"]})


def _prompt(read: Mapping[str, Any]) -> dict[str, Any]:
    turns = conversation((one["role"], one["content"]) for one in read["messages"])
    system = [{"text": one} for one in read.get("system", ()) if one]
    return {"messages": turns, **({"system": system} if system else {})}


def _whole(head: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    said = answered_text(result)
    content = [{"type": "text", "text": said, "citations": None}] if said else []
    return {**head, "content": content, **_stop(result), "usage": _usage(result["usage"])}


def _stop(result: Mapping[str, Any]) -> dict[str, Any]:
    fields = result.get("additionalModelResponseFields") or {}
    return {"stop_reason": result["stopReason"], "stop_sequence": fields.get("stop_sequence")}


def _usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["inputTokens"],
        "output_tokens": usage["outputTokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


class Events:
    """Framing of one message: ConverseStream's events as server-sent events.

    The true usage is known at the end only: message_start says 0, message_delta says it all, as clients sum up.
    """

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = head
        self._delta: dict[str, Any] = {}
        self._writers: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = {
            "messageStart": self._start,
            "contentBlockDelta": lambda members: _event(
                "content_block_delta", index=0, delta={"type": "text_delta", "text": members["delta"]["text"]}
            ),
            "contentBlockStop": lambda _: _event("content_block_stop", index=0),
            "messageStop": self._stop,
            "metadata": lambda members: (
                _event("message_delta", delta=self._delta, usage=_usage(members["usage"])) + _event("message_stop")
            ),
        }

    def initial(self, payload: bytes) -> bytes:
        """Nothing stands beside the stream."""
        return payload

    def write(self, event: Mapping[str, Any]) -> bytes:
        ((name, members),) = event.items()
        return self._writers[name](members)

    def fault(self, code: str, message: str) -> bytes:
        return _event("error", error={"type": "api_error", "message": f"{code}: {message}"})

    def _start(self, _members: Mapping[str, Any]) -> bytes:
        usage = _usage({"inputTokens": 0, "outputTokens": 0})
        opening = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        block = {"type": "text", "text": ""}
        return _event("message_start", message=opening) + _event("content_block_start", index=0, content_block=block)

    def _stop(self, members: Mapping[str, Any]) -> bytes:
        self._delta = _stop(members)
        return b""


def _event(kind: str, **members: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **members}) + b"\n\n"
