"""Anthropic's messages as Converse's members and back: the body of /v1/messages, and of InvokeModel for Claude.

Caching changes only how fast and how dear an answer is, so `cache_control` is taken as the hint that it is.

Source: Anthropic's API reference, Messages; Amazon Bedrock user guide, "Anthropic Claude Messages API".
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

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

_INFERENCE = {
    "max_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop_sequences": "stopSequences",
}
STOP_SEQUENCE = "/stop_sequence"
_MOST = 10_000
_STOP = {
    "guardrail_intervened": "refusal",
    "content_filtered": "refusal",
    "malformed_model_output": "end_turn",
    "malformed_tool_use": "tool_use",
}


def encoded(where: str, value: Any) -> bytes:
    """Base64."""
    try:
        return base64.b64decode(text(where, value), validate=True)
    except (binascii.Error, ValueError):
        raise refusal(where, f"{where} must be base64", "invalid_value") from None


# Reading


def _role(where: str, value: Any) -> str:
    role = text(where, value)
    if role not in ("user", "assistant"):
        raise refusal(where, f"{where} must be user or assistant; the system prompt is the parameter system")
    return role


def _kind(where: str, value: Any) -> str:
    return text(f"{where}.type", mapping(where, value).get("type"))


_SOURCE = table({"type": text, "media_type": text, "data": text, "content": lambda _, value: value}, ("type",))


def _image(where: str, value: Any) -> dict[str, Any]:
    source = structure(where, value, {"type": text, "source": _SOURCE, "cache_control": mapping}, ("source",))["source"]
    if source["type"] != "base64":
        raise Unsupported(f"{where}.source", "images that are not in the request")
    kind = str(source.get("media_type", "")).removeprefix("image/")
    if kind not in ("png", "jpeg", "gif", "webp"):
        raise refusal(f"{where}.source.media_type", "images are image/png, image/jpeg, image/gif or image/webp")
    return {"image": {"format": kind, "source": {"bytes": encoded(f"{where}.source.data", source.get("data"))}}}


def _document(where: str, value: Any) -> dict[str, Any]:
    readers: Mapping[str, Reader] = {
        "type": text,
        "source": _SOURCE,
        "title": text,
        "context": text,
        "cache_control": mapping,
        "citations": neutral({"enabled": False}),
    }
    read = structure(where, value, readers, ("source",))
    source = read["source"]
    if source["type"] != "text":
        raise Unsupported(f"{where}.source", f"documents of type {source['type'][:64]!r}")
    document = {"name": read.get("title", "document"), "format": "txt", "source": {"text": text(where, source["data"])}}
    return {"document": {**document, **({"context": read["context"]} if "context" in read else {})}}


def _tool_use(where: str, value: Any) -> dict[str, Any]:
    readers: Mapping[str, Reader] = {
        "type": text, "id": filled, "name": filled, "input": mapping, "cache_control": mapping, "caller": mapping,
    }  # fmt: skip
    read = structure(where, value, readers, ("id", "name", "input"))
    return {"toolUse": {"toolUseId": read["id"], "name": read["name"], "input": read["input"]}}


def _result_content(where: str, value: Any) -> list[dict[str, Any]]:
    return [{"text": value}] if type(value) is str else items(where, value, _block, _MOST)


def _tool_result(where: str, value: Any) -> dict[str, Any]:
    readers: Mapping[str, Reader] = {
        "type": text, "tool_use_id": filled, "content": _result_content, "is_error": flag, "cache_control": mapping,
    }  # fmt: skip
    read = structure(where, value, readers, ("tool_use_id",))
    status = "error" if read.get("is_error") else "success"
    content = read.get("content") or [{"text": ""}]
    return {"toolResult": {"toolUseId": read["tool_use_id"], "content": content, "status": status}}


def _thinking(where: str, value: Any) -> dict[str, Any]:
    read = structure(where, value, {"type": text, "thinking": filled, "signature": text}, ("thinking",))
    reasoning = {"text": read["thinking"], **({"signature": read["signature"]} if read.get("signature") else {})}
    return {"reasoningContent": {"reasoningText": reasoning}}


_TEXT = {"type": text, "text": text, "cache_control": mapping, "citations": neutral([])}


def _text(where: str, value: Any) -> dict[str, Any]:
    return {"text": structure(where, value, _TEXT, ("text",))["text"]}


_BLOCKS: Mapping[str, Reader] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "tool_use": _tool_use,
    "tool_result": _tool_result,
    "thinking": _thinking,
}


def _block(where: str, value: Any) -> dict[str, Any]:
    kind = _kind(where, value)
    reader = _BLOCKS.get(kind)
    if reader is None:
        raise Unsupported(where, f"content of type {kind[:64]!r}")
    block: dict[str, Any] = reader(where, value)
    return block


def _content(where: str, value: Any) -> list[dict[str, Any]]:
    return [{"text": value}] if type(value) is str else items(where, value, _block, _MOST)


def _system(where: str, value: Any) -> list[dict[str, Any]]:
    return [block for block in _content(where, value) if block.get("text")]


_MESSAGE = table({"role": _role, "content": _content}, ("role", "content"))


def merged(turns: Iterable[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Converse's messages, from (role, blocks) in order; neighbours of one role become one message."""
    out: list[dict[str, Any]] = []
    for role, blocks in turns:
        if not out or out[-1]["role"] != role:
            out.append({"role": role, "content": []})
        out[-1]["content"] += blocks
    return out


def _messages(where: str, value: Any) -> list[dict[str, Any]]:
    return merged((one["role"], one["content"]) for one in items(where, value, _MESSAGE, _MOST))


def _tool(where: str, value: Any) -> dict[str, Any]:
    kind = mapping(where, value).get("type")
    if kind not in (None, "custom"):
        raise Unsupported(where, f"tools of type {str(kind)[:64]!r}")
    readers: Mapping[str, Reader] = {
        "type": text, "name": filled, "description": text, "input_schema": mapping, "strict": flag,
        "cache_control": mapping, "input_examples": neutral([]), "defer_loading": neutral(False),
        "allowed_callers": neutral(["direct"]), "eager_input_streaming": flag,
    }  # fmt: skip
    read = structure(where, value, readers, ("name", "input_schema"))
    spec = {"name": read["name"], "inputSchema": {"json": read["input_schema"]}}
    for own, name in (("description", "description"), ("strict", "strict")):
        if read.get(own):
            spec[name] = read[own]
    return {"toolSpec": spec}


def _choice(where: str, value: Any) -> dict[str, Any]:
    readers: Mapping[str, Reader] = {"type": text, "name": filled, "disable_parallel_tool_use": flag}
    read = structure(where, value, readers, ("type",))
    if read["type"] not in ("auto", "any", "tool", "none"):
        raise refusal(f"{where}.type", f"{where}.type must be auto, any, tool or none", "invalid_value")
    if read["type"] == "tool" and "name" not in read:
        raise refusal(f"{where}.name", f"{where}.name is required for a choice of type tool")
    return read


def _thinks(where: str, value: Any) -> str | None:
    readers: Mapping[str, Reader] = {"type": text, "budget_tokens": integer(1024), "display": text}
    read = structure(where, value, readers, ("type",))
    if read["type"] == "disabled":
        return None
    if read["type"] not in ("enabled", "adaptive"):
        raise refusal(f"{where}.type", f"{where}.type must be enabled, adaptive or disabled", "invalid_value")
    budget = read.get("budget_tokens", 4096)
    return "low" if budget < 4096 else "medium" if budget < 16384 else "high"


def _format(where: str, value: Any) -> dict[str, Any]:
    read = structure(where, value, {"type": text, "schema": mapping}, ("type", "schema"))
    if read["type"] != "json_schema":
        raise Unsupported(where, f"formats of type {read['type'][:64]!r}")
    structured = {"jsonSchema": {"schema": json.dumps(read["schema"])}}
    return {"type": "json_schema", "structure": structured}


_OUTPUT = table({"format": _format, "effort": text, "task_budget": neutral()})
_PROMPT: Mapping[str, Reader] = {
    "messages": _messages,
    "system": _system,
    "cache_control": mapping,
    "output_config": _OUTPUT,
    "output_format": _format,
    "thinking": _thinks,
    "tool_choice": _choice,
    "tools": lambda where, value: items(where, value, _tool, 1000),
    # accepted as far as they ask for nothing
    "context_management": neutral({}),
    "mcp_servers": neutral([]),
    "speed": neutral("standard"),
}
_REQUEST: Mapping[str, Reader] = {
    **_PROMPT,
    "max_tokens": integer(1),
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(1),
    "stop_sequences": lambda where, value: items(where, value, filled, 2500),
    "metadata": mapping,
    "service_tier": text,
    "container": neutral(),
    "diagnostics": neutral(),
    "inference_geo": neutral(),
}
OVER_HTTP: Mapping[str, Reader] = {"model": filled, "stream": flag}
"""Members of the body of /v1/messages that InvokeModel says elsewhere."""
IN_BEDROCK: Mapping[str, Reader] = {
    "anthropic_version": filled,
    "anthropic_beta": lambda where, value: items(where, value, filled, 100),
}
"""Members of InvokeModel's body that /v1/messages says in headers."""


def read_message(body: Any, more: Mapping[str, Reader], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The checked body of a message. Raises ValidationFault, Unsupported."""
    return structure("", body, {**_REQUEST, **more}, (*required, "max_tokens", "messages"))


def read_prompt(body: Any) -> dict[str, Any]:
    """The checked body of count_tokens. Raises ValidationFault, Unsupported."""
    return structure("", body, {**_PROMPT, **OVER_HTTP}, ("model", "messages"))


def members(read: Mapping[str, Any]) -> dict[str, Any]:
    """Converse's members of a checked body, but for the model."""
    out: dict[str, Any] = {**prompt(read), "additionalModelResponseFieldPaths": [STOP_SEQUENCE]}
    if config := {aws: read[own] for own, aws in _INFERENCE.items() if own in read}:
        out["inferenceConfig"] = config
    output = read.get("output_config") or {}
    form = output.get("format") or read.get("output_format")
    if form:
        out["outputConfig"] = {"textFormat": form}
    extra = {"top_k": read["top_k"]} if "top_k" in read else {}
    effort = output.get("effort") or read.get("thinking")
    if effort:
        extra["reasoning_effort"] = effort
    if (read.get("tool_choice") or {}).get("disable_parallel_tool_use") and "toolConfig" in out:
        extra["parallel_tool_calls"] = False
    if extra:
        out["additionalModelRequestFields"] = extra
    return out


def prompt(read: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the members that counts as input: messages, system, tools."""
    out: dict[str, Any] = {"messages": read["messages"]}
    if read.get("system"):
        out["system"] = read["system"]
    choice = read.get("tool_choice") or {"type": "auto"}
    # "none" means that the model shall not call any: it is told of none.
    if read.get("tools") and choice["type"] != "none":
        out["toolConfig"] = {"tools": read["tools"]}
        if choice["type"] == "any":
            out["toolConfig"]["toolChoice"] = {"any": {}}
        elif choice["type"] == "tool":
            out["toolConfig"]["toolChoice"] = {"tool": {"name": choice["name"]}}
    return out


# Writing


def head(identifier: str, model: str) -> dict[str, Any]:
    return {"id": identifier, "type": "message", "role": "assistant", "model": model}


def whole(head: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A Converse result as a message."""
    blocks = [_written(block) for block in result["output"]["message"]["content"]]
    content = [block for block in blocks if block.get("text") != ""]
    return {**head, "content": content, **_stop(result), "usage": _usage(result["usage"])}


def _written(block: Mapping[str, Any]) -> dict[str, Any]:
    if "toolUse" in block:
        use = block["toolUse"]
        return {"type": "tool_use", "id": use["toolUseId"], "name": use["name"], "input": use["input"]}
    if "reasoningContent" in block:
        return {"type": "thinking", "thinking": block["reasoningContent"]["reasoningText"]["text"], "signature": ""}
    return {"type": "text", "text": block["text"], "citations": None}


def _stop(result: Mapping[str, Any]) -> dict[str, Any]:
    fields = result.get("additionalModelResponseFields") or {}
    reason = result["stopReason"]
    return {"stop_reason": _STOP.get(reason, reason), "stop_sequence": fields.get("stop_sequence")}


def _usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["inputTokens"],
        "output_tokens": usage["outputTokens"],
        "cache_creation_input_tokens": usage.get("cacheWriteInputTokens", 0),
        "cache_read_input_tokens": usage.get("cacheReadInputTokens", 0),
    }


class Events:
    """ConverseStream's events as a message's, each an object with a `type`.

    The true usage is known at the end only: message_start says 0, message_delta says it all, as clients sum up.
    """

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = head
        self._open = -1
        self._ending: dict[str, Any] = {}

    def write(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of the dialect that say the same; there may be none."""
        ((name, members),) = event.items()
        if name == "contentBlockDelta":
            return self._delta(members)
        if name == "contentBlockStart":
            use = members["start"]["toolUse"]
            block = {"type": "tool_use", "id": use["toolUseId"], "name": use["name"], "input": {}}
            return [self._start(members["contentBlockIndex"], block)]
        if name == "contentBlockStop":
            return [{"type": "content_block_stop", "index": members["contentBlockIndex"]}]
        if name == "messageStart":
            usage = _usage({"inputTokens": 0, "outputTokens": 0})
            opening = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
            return [{"type": "message_start", "message": opening}]
        if name == "messageStop":
            self._ending = _stop(members)
            return []
        return [
            {"type": "message_delta", "delta": self._ending, "usage": _usage(members["usage"])},
            {"type": "message_stop"},
        ]

    def _start(self, index: int, block: dict[str, Any]) -> dict[str, Any]:
        self._open = index
        return {"type": "content_block_start", "index": index, "content_block": block}

    def _delta(self, members: Mapping[str, Any]) -> list[dict[str, Any]]:
        index, delta = members["contentBlockIndex"], members["delta"]
        if "text" in delta:
            block, own = {"type": "text", "text": ""}, {"type": "text_delta", "text": delta["text"]}
        elif "toolUse" in delta:
            block, own = {}, {"type": "input_json_delta", "partial_json": delta["toolUse"]["input"]}
        else:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            own = {"type": "thinking_delta", "thinking": delta["reasoningContent"]["text"]}
        out = [] if self._open == index else [self._start(index, block)]
        out.append({"type": "content_block_delta", "index": index, "delta": own})
        return out
