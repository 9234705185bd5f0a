"""OpenAI's responses as Converse's members and back: the body of /v1/responses.

Nothing is stored: a conversation is sent whole, `store` and `previous_response_id` are refused.

Source: OpenAI's API reference, Responses; the order of events that openai's client reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.conversation import chat
from honmaru.core.conversation.claude import merged
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

_MOST = 10_000


def _part(where: str, value: Any) -> dict[str, Any]:
    kind = text(f"{where}.type", mapping(where, value).get("type"))
    if kind in ("input_text", "output_text"):
        readers: Mapping[str, Reader] = {
            "type": text, "text": text, "annotations": neutral([]), "logprobs": neutral([]),
        }  # fmt: skip
        return {"text": structure(where, value, readers, ("text",))["text"]}
    if kind == "input_image":
        read = structure(where, value, {"type": text, "image_url": filled, "detail": text}, ("image_url",))
        return chat.image(f"{where}.image_url", read["image_url"])
    raise Unsupported(where, f"content of type {kind[:64]!r}")


def _content(where: str, value: Any) -> list[dict[str, Any]]:
    return [{"text": value}] if type(value) is str else items(where, value, _part, _MOST)


def _role(where: str, value: Any) -> str:
    if value not in ("system", "developer", "user", "assistant"):
        raise refusal(where, f"{where} must be system, developer, user or assistant", "invalid_value")
    return str(value)


_IDLE: Mapping[str, Reader] = {"type": text, "id": text, "status": text, "phase": text}
_MESSAGE: Mapping[str, Reader] = {**_IDLE, "role": _role, "content": _content}
_CALL: Mapping[str, Reader] = {**_IDLE, "call_id": filled, "name": filled, "arguments": chat.arguments}
_OUTPUT: Mapping[str, Reader] = {**_IDLE, "call_id": filled, "output": _content}


def _item(where: str, value: Any) -> tuple[str, list[dict[str, Any]]]:
    """(role, blocks) of one item of the input."""
    kind = mapping(where, value).get("type", "message")
    if kind == "message":
        read = structure(where, value, _MESSAGE, ("role", "content"))
        return read["role"], read["content"]
    if kind == "function_call":
        read = structure(where, value, _CALL, ("call_id", "name", "arguments"))
        use = {"toolUseId": read["call_id"], "name": read["name"], "input": read["arguments"]}
        return "assistant", [{"toolUse": use}]
    if kind == "function_call_output":
        read = structure(where, value, _OUTPUT, ("call_id", "output"))
        return "user", [{"toolResult": {"toolUseId": read["call_id"], "content": read["output"]}}]
    raise Unsupported(where, f"items of type {str(kind)[:64]!r}")


def _input(where: str, value: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    return [("user", [{"text": value}])] if type(value) is str else items(where, value, _item, _MOST)


def _tool(where: str, value: Any) -> dict[str, Any]:
    kind = text(f"{where}.type", mapping(where, value).get("type"))
    if kind != "function":
        raise Unsupported(where, f"tools of type {kind[:64]!r}")
    readers: Mapping[str, Reader] = {
        "type": text, "name": filled, "description": text, "parameters": mapping, "strict": flag,
    }  # fmt: skip
    return chat.spec(structure(where, value, readers, ("name",)))


def _format(where: str, value: Any) -> dict[str, Any] | None:
    readers: Mapping[str, Reader] = {
        "type": text, "name": filled, "description": text, "schema": mapping, "strict": flag,
    }  # fmt: skip
    read = structure(where, value, readers, ("type",))
    if read["type"] == "text":
        return None
    if read["type"] == "json_object":
        return chat.schema_format({"type": "object"}, None)
    if read["type"] != "json_schema" or "schema" not in read:
        raise refusal(where, f"{where} must be text, json_object, or json_schema with a schema", "invalid_value")
    return chat.schema_format(read["schema"], read.get("name"), read.get("description"))


_REQUEST: Mapping[str, Reader] = {
    "model": filled,
    "input": _input,
    "instructions": text,
    "max_output_tokens": integer(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stream": flag,
    "tools": lambda where, value: items(where, value, _tool, 1000),
    "tool_choice": chat.choice,
    "parallel_tool_calls": flag,
    "text": table({"format": _format, "verbosity": neutral("medium")}),
    "reasoning": table({"effort": text, "summary": neutral("auto"), "generate_summary": neutral()}),
    "service_tier": chat.tier,
    # change neither the answer nor what is kept of it
    "metadata": mapping,
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "stream_options": mapping,
    # accepted as far as they ask for nothing
    "background": neutral(False),
    "conversation": neutral(),
    "include": neutral([]),
    "max_tool_calls": neutral(),
    "moderation": neutral(),
    "previous_response_id": neutral(),
    "prompt": neutral(),
    "prompt_cache_retention": neutral("in_memory"),
    "store": neutral(False),
    "top_logprobs": neutral(0),
    "truncation": neutral("disabled"),
    "context_management": neutral([]),
}


def read_response(body: Any) -> dict[str, Any]:
    """The checked body. Raises ValidationFault, Unsupported."""
    return structure("", body, _REQUEST, ("model", "input"))


def members(read: Mapping[str, Any]) -> dict[str, Any]:
    """Converse's members of a checked body, but for the model."""
    system = [{"text": read["instructions"]}] if read.get("instructions") else []
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for at, (role, blocks) in enumerate(read["input"]):
        if role in ("user", "assistant"):
            turns.append((role, blocks))
        elif turns:
            raise Unsupported(f"input[{at}].role", f"{role} messages after the start of the conversation")
        else:
            system += [block for block in blocks if block.get("text")]
    out: dict[str, Any] = {"messages": merged(turns)}
    if system:
        out["system"] = system
    names = {"max_output_tokens": "maxTokens", "temperature": "temperature", "top_p": "topP"}
    config = {aws: read[own] for own, aws in names.items() if own in read}
    extra: dict[str, Any] = {}
    if config.get("temperature", 0) > 1:
        extra["temperature"] = config.pop("temperature")
    if config:
        out["inferenceConfig"] = config
    selected = read.get("tool_choice", {"auto": {}})
    if read.get("tools") and selected != "none":
        out["toolConfig"] = {"tools": read["tools"], "toolChoice": selected}
        if "parallel_tool_calls" in read:
            extra["parallel_tool_calls"] = read["parallel_tool_calls"]
    if form := read.get("text", {}).get("format"):
        out["outputConfig"] = {"textFormat": form}
    if (effort := read.get("reasoning", {}).get("effort")) not in (None, "none"):
        extra["reasoning_effort"] = effort
    if extra:
        out["additionalModelRequestFields"] = extra
    if read.get("service_tier") in ("flex", "priority"):
        out["serviceTier"] = {"type": read["service_tier"]}
    return out


# Writing


def head(identifier: str, created: int, asked: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """What a response says of its request. `asked` is the checked body, `body` what was sent."""
    form = body.get("text") or {}
    return {
        "id": identifier,
        "object": "response",
        "created_at": created,
        "background": False,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": asked.get("metadata", {}),
        "model": asked["model"],
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": asked.get("reasoning", {}).get("effort"), "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": asked.get("temperature"),
        "text": {"format": form.get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": asked.get("top_p"),
        "truncation": "disabled",
    }


def _ended(head: Mapping[str, Any], output: Sequence[Any], reason: str, usage: Mapping[str, int]) -> dict[str, Any]:
    cut = chat.FINISH[reason]
    why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(cut)
    counts = {
        "input_tokens": usage["inputTokens"],
        "input_tokens_details": {"cached_tokens": usage.get("cacheReadInputTokens", 0)},
        "output_tokens": usage["outputTokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["totalTokens"],
    }
    return {
        **head,
        "status": "incomplete" if why else "completed",
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "output": list(output),
        "usage": counts,
    }


def whole(head: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A Converse result as a response."""
    output: list[dict[str, Any]] = []
    for at, block in enumerate(result["output"]["message"]["content"]):
        identifier = f"{head['id']}_{at}"
        if "toolUse" in block:
            use = block["toolUse"]
            arguments = json.dumps(use["input"], ensure_ascii=False)
            output.append(_call(identifier, use["toolUseId"], use["name"], arguments, "completed"))
        elif "reasoningContent" in block:
            output.append(_reasoning(identifier, block["reasoningContent"]["reasoningText"]["text"]))
        else:
            output.append(_message(identifier, "completed", [_text(block["text"])]))
    return _ended(head, output, result["stopReason"], result["usage"])


def _text(said: str) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _message(identifier: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "id": f"msg_{identifier}", "role": "assistant", "status": status, "content": content}


def _call(identifier: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {
        "type": "function_call", "id": f"fc_{identifier}", "call_id": call_id, "name": name, "arguments": arguments,
        "status": status,
    }  # fmt: skip


def _reasoning(identifier: str, thought: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": thought}] if thought else []
    return {"type": "reasoning", "id": f"rs_{identifier}", "summary": [], "content": content}


class Events:
    """ConverseStream's events as those of a response, each an object with a `type` and a rising sequence number."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = head
        self._number = -1
        self._output: list[dict[str, Any]] = []
        self._said = ""
        self._kind = ""
        self._index = -1
        self._stop = ""

    def write(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of the dialect that say the same."""
        ((name, members),) = event.items()
        out: list[dict[str, Any]] = []
        if name == "contentBlockDelta":
            self._delta(out, members)
        elif name == "contentBlockStart":
            use = members["start"]["toolUse"]
            self._begin(out, members, "function_call")
            item = _call(self._item_id(), use["toolUseId"], use["name"], "", "in_progress")
            self._add(out, item)
        elif name == "contentBlockStop":
            self._close(out)
        elif name == "messageStart":
            begun = {**self._head, "status": "in_progress", "error": None, "incomplete_details": None, "output": []}
            for kind in ("response.created", "response.in_progress"):
                self._say(out, kind, response={**begun, "usage": None})
        elif name == "messageStop":
            self._stop = members["stopReason"]
        else:
            ended = _ended(self._head, self._output, self._stop, members["usage"])
            self._say(out, f"response.{ended['status']}", response=ended)
        return out

    def _item_id(self) -> str:
        return f"{self._head['id']}_{self._index}"

    def _say(self, out: list[dict[str, Any]], kind: str, **members: Any) -> None:
        self._number += 1
        out.append({"type": kind, "sequence_number": self._number, **members})

    def _begin(self, _out: list[dict[str, Any]], members: Mapping[str, Any], kind: str) -> None:
        self._index, self._kind, self._said = members["contentBlockIndex"], kind, ""

    def _add(self, out: list[dict[str, Any]], item: dict[str, Any]) -> None:
        self._output.append(item)
        self._say(out, "response.output_item.added", output_index=self._index, item=dict(item))

    def _delta(self, out: list[dict[str, Any]], members: Mapping[str, Any]) -> None:
        delta = members["delta"]
        if members["contentBlockIndex"] != self._index:
            self._begin(out, members, "message" if "text" in delta else "reasoning")
            if self._kind == "message":
                self._add(out, _message(self._item_id(), "in_progress", []))
                self._say(
                    out, "response.content_part.added", item_id=self._output[-1]["id"], output_index=self._index,
                    content_index=0, part=_text(""),
                )  # fmt: skip
            else:
                self._add(out, _reasoning(self._item_id(), ""))
        place: dict[str, Any] = {"item_id": self._output[-1]["id"], "output_index": self._index}
        if self._kind == "message":
            self._said += delta["text"]
            self._say(out, "response.output_text.delta", **place, content_index=0, delta=delta["text"], logprobs=[])
        elif self._kind == "function_call":
            self._said += delta["toolUse"]["input"]
            self._say(out, "response.function_call_arguments.delta", **place, delta=delta["toolUse"]["input"])
        else:
            thought = delta["reasoningContent"]["text"]
            self._said += thought
            self._say(out, "response.reasoning_text.delta", **place, content_index=0, delta=thought)

    def _close(self, out: list[dict[str, Any]]) -> None:
        item = self._output[-1]
        place: dict[str, Any] = {"item_id": item["id"], "output_index": self._index}
        if self._kind == "message":
            part = _text(self._said)
            self._say(out, "response.output_text.done", **place, content_index=0, text=self._said, logprobs=[])
            self._say(out, "response.content_part.done", **place, content_index=0, part=part)
            item |= {"status": "completed", "content": [part]}
        elif self._kind == "function_call":
            item |= {"status": "completed", "arguments": self._said}
            self._say(out, "response.function_call_arguments.done", **place, name=item["name"], arguments=self._said)
        else:
            item["content"] = [{"type": "reasoning_text", "text": self._said}]
            self._say(out, "response.reasoning_text.done", **place, content_index=0, text=self._said)
        self._say(out, "response.output_item.done", output_index=self._index, item=dict(item))
