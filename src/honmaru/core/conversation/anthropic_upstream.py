"""What a model server that speaks Anthropic's Messages is asked, and how its answers are read.

Invariants:
- What the dialect has no member for is refused naming model and feature, never left out.
- What the server answers is not trusted: a wrong type raises Malformed, and never anything else.

Source: Anthropic's API reference, Messages and streaming.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from honmaru.core.conversation import chat, upstream
from honmaru.core.conversation.model import Choice, Completion, Delta, Generation, ToolCall, ToolPiece, unsupported
from honmaru.core.conversation.upstream import Malformed
from honmaru.core.errors import ValidationFault

MESSAGES, COUNT = "/messages", "/messages/count_tokens"
FEATURES = frozenset({"tools", "json_schema", "top_k", "images", "reasoning"})
"""What an engine of this dialect may be declared to have."""
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking")
_FINISH = {
    "end_turn": "stop",
    "pause_turn": "stop",
    "stop_sequence": "stop_sequence",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def converse_members(generation: Generation, model: str) -> dict[str, Any]:
    """The wish as Converse's members, for dialects that have no more than those. Raises ValidationFault."""
    if generation.messages is None:
        raise unsupported(model, "raw prompts")
    if generation.seed is not None:
        raise unsupported(model, "seeds")
    if (generation.temperature or 0) > 1:
        raise ValidationFault(f"temperature is {generation.temperature}; model {model} takes 0 to 1")
    _, body = upstream.request(generation, model, stream=False)
    return chat.members(chat.read_completion(body))


def request(generation: Generation, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """(path below the API's root, body). Raises ValidationFault."""
    members = converse_members(generation, model)
    tools = members.get("toolConfig") or {}
    wanted: dict[str, Any] = {
        "model": model,
        "max_tokens": generation.max_tokens,
        "messages": [
            {"role": one["role"], "content": [_block(block, model) for block in one["content"]]}
            for one in members["messages"]
        ],
        "system": "\n".join(block["text"] for block in members.get("system") or ()) or None,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "stop_sequences": list(generation.stop) or None,
        "tools": [_tool(one["toolSpec"]) for one in tools.get("tools") or ()] or None,
        "stream": stream or None,
    }
    if tools:
        wanted["tool_choice"] = _choice(tools.get("toolChoice") or {}, generation)
    output: dict[str, Any] = {}
    if generation.schema is not None:
        output["format"] = {"type": "json_schema", "schema": generation.schema}
    if generation.reasoning_effort is not None:
        output["effort"] = "low" if generation.reasoning_effort == "minimal" else generation.reasoning_effort
        wanted["thinking"] = {"type": "adaptive"}
    if output:
        wanted["output_config"] = output
    return MESSAGES, {name: value for name, value in wanted.items() if value is not None}


def count_request(generation: Generation, model: str) -> tuple[str, dict[str, Any]]:
    _, body = request(generation, model, stream=False)
    return COUNT, {name: value for name, value in body.items() if name in _COUNTED}


def count(answer: Any) -> int:
    return int(answer["input_tokens"])


def _block(block: Mapping[str, Any], model: str) -> dict[str, Any]:
    if "image" in block:
        image = block["image"]
        data = base64.b64encode(image["source"]["bytes"]).decode()
        return {
            "type": "image",
            "source": {"type": "base64", "media_type": f"image/{image['format']}", "data": data},
        }
    if "toolUse" in block:
        use = block["toolUse"]
        return {"type": "tool_use", "id": use["toolUseId"], "name": use["name"], "input": use["input"]}
    if "toolResult" in block:
        result = block["toolResult"]
        content = [_block(one, model) for one in result["content"] if one.get("text") != ""]
        return {"type": "tool_result", "tool_use_id": result["toolUseId"], "content": content}
    if "reasoningContent" in block:
        # The signature that this dialect asks for went with the dialect that the caller speaks.
        raise unsupported(model, "reasoning that is sent back")
    return {"type": "text", "text": block["text"]}


def _tool(spec: Mapping[str, Any]) -> dict[str, Any]:
    made = {"name": spec["name"], "input_schema": spec["inputSchema"]["json"]}
    return made | {name: spec[name] for name in ("description", "strict") if spec.get(name)}


def _choice(choice: Mapping[str, Any], generation: Generation) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "auto"}
    if "tool" in choice:
        made = {"type": "tool", "name": choice["tool"]["name"]}
    elif "any" in choice:
        made = {"type": "any"}
    return made if generation.parallel_tool_calls else made | {"disable_parallel_tool_use": True}


def completion(answer: Any) -> Completion:
    """A whole answer. Raises Malformed."""
    try:
        text, reasoning, calls = "", "", []
        for block in answer["content"]:
            if block["type"] == "text":
                text += block["text"]
            elif block["type"] == "thinking":
                reasoning += block["thinking"]
            elif block["type"] == "tool_use":
                arguments = json.dumps(block["input"], ensure_ascii=False)
                calls.append(ToolCall(str(block["id"]), str(block["name"]), arguments))
        finish, sequence, full = _ending(answer)
        prompt, written, cached = _counts(answer["usage"])
        choice = Choice(text, reasoning, tuple(calls), (), finish, sequence, full)
        return Completion([choice], prompt, written, cached)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
        raise Malformed(f"{type(fault).__name__} in the answer") from None


def last(event: Any) -> bool:
    """Whether an event is the last of its stream."""
    return isinstance(event, dict) and event.get("type") == "message_stop"


class StreamReader:
    """Events of one streamed answer as Deltas; the last one comes from `end`."""

    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}
        self._ending: Mapping[str, Any] | None = None
        self._tools: list[int] = []

    def read(self, event: Any) -> Delta | None:
        """What an event says; None when it says nothing yet. Raises Malformed."""
        try:
            kind = event["type"]
            if kind == "message_start":
                self._usage |= event["message"]["usage"]
            elif kind == "message_delta":
                self._ending = event["delta"]
                self._usage |= {name: value for name, value in event["usage"].items() if value is not None}
            elif kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
                self._tools.append(event["index"])
                block = event["content_block"]
                return Delta(tools=[ToolPiece(len(self._tools) - 1, str(block["id"]), str(block["name"]))])
            elif kind == "content_block_delta":
                return self._delta(event["index"], event["delta"])
            return None
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
            raise Malformed(f"{type(fault).__name__} in an event") from None

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Delta | None:
        if delta["type"] == "text_delta":
            return Delta(text=_text(delta["text"]))
        if delta["type"] == "thinking_delta":
            return Delta(reasoning=_text(delta["thinking"]))
        if delta["type"] == "input_json_delta":
            return Delta(tools=[ToolPiece(self._tools.index(index), arguments=_text(delta["partial_json"]))])
        return None

    def end(self) -> Delta:
        """The last piece. Raises Malformed when the server never said that it had finished."""
        if self._ending is None:
            raise Malformed("the answer ended without a stop reason")
        try:
            finish, sequence, full = _ending(self._ending)
            prompt, written, cached = _counts(self._usage)
        except (AttributeError, KeyError, TypeError, ValueError) as fault:
            raise Malformed(f"{type(fault).__name__} at the end") from None
        return Delta(
            finish=finish, stop_sequence=sequence, context_full=full, input_tokens=prompt, output_tokens=written,
            cached_tokens=cached,
        )  # fmt: skip


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("content that is not text")
    return value


def _ending(said: Mapping[str, Any]) -> tuple[str, str | None, bool]:
    reason = said["stop_reason"]
    return _FINISH[reason], said.get("stop_sequence"), reason == "model_context_window_exceeded"


def _counts(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    cached = int(usage.get("cache_read_input_tokens") or 0)
    made = int(usage.get("cache_creation_input_tokens") or 0)
    return int(usage["input_tokens"]) + cached + made, int(usage["output_tokens"]), cached
