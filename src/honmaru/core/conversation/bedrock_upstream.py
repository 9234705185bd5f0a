"""What another Bedrock is asked (Converse, ConverseStream, CountTokens), and how its answers are read.

Invariants:
- What Converse has no member for is refused naming model and feature, never left out.
- What the server answers is not trusted: a wrong type raises Malformed, and never anything else.

Source: Amazon Bedrock API reference, Converse, ConverseStream, CountTokens.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from honmaru.core.conversation.anthropic_upstream import converse_members
from honmaru.core.conversation.model import Choice, Completion, Delta, Generation, ToolCall, ToolPiece, unsupported
from honmaru.core.conversation.upstream import Malformed

FEATURES = frozenset({"tools", "json_schema", "top_k", "images", "reasoning"})
"""What an engine of this dialect may be declared to have."""
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop_sequence",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "malformed_model_output": "stop",
    "malformed_tool_use": "tool_calls",
}
_COUNTED = ("messages", "system", "toolConfig")


def request(generation: Generation, model: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """(path below the API's root, body). Raises ValidationFault."""
    members = converse_members(generation, model)
    members.pop("additionalModelResponseFieldPaths", None)
    extra = members.get("additionalModelRequestFields") or {}
    effort = extra.pop("reasoning_effort", None)
    if "parallel_tool_calls" in extra:
        raise unsupported(model, "tool calls one at a time (parallel_tool_calls)")
    if effort is not None:
        members.setdefault("outputConfig", {})["effort"] = effort
    if not extra:
        members.pop("additionalModelRequestFields", None)
    members["additionalModelResponseFieldPaths"] = ["/stop_sequence"]
    body: dict[str, Any] = _wire(members)
    return f"/model/{quote(model, safe='')}/{'converse-stream' if stream else 'converse'}", body


def count_request(generation: Generation, model: str) -> tuple[str, dict[str, Any]]:
    _, body = request(generation, model, stream=False)
    asked = {name: value for name, value in body.items() if name in _COUNTED}
    return f"/model/{quote(model, safe='')}/count-tokens", {"input": {"converse": asked}}


def count(answer: Any) -> int:
    return int(answer["inputTokens"])


def _wire(value: Any) -> Any:
    """Members as rest-json writes them: bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {name: _wire(one) for name, one in value.items()}
    return [_wire(one) for one in value] if isinstance(value, list | tuple) else value


def completion(answer: Any) -> Completion:
    """A whole answer. Raises Malformed."""
    try:
        text, reasoning, calls = "", "", []
        for block in answer["output"]["message"]["content"]:
            if "text" in block:
                text += block["text"]
            elif "reasoningContent" in block:
                reasoning += (block["reasoningContent"].get("reasoningText") or {}).get("text", "")
            elif "toolUse" in block:
                use = block["toolUse"]
                arguments = json.dumps(use["input"], ensure_ascii=False)
                calls.append(ToolCall(str(use["toolUseId"]), str(use["name"]), arguments))
        finish, sequence, full = _ending(answer)
        prompt, written, cached = _counts(answer["usage"])
        return Completion([Choice(text, reasoning, tuple(calls), (), finish, sequence, full)], prompt, written, cached)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
        raise Malformed(f"{type(fault).__name__} in the answer") from None


class StreamReader:
    """Events of one streamed answer ({name: members}) as Deltas; the last one comes from `end`."""

    def __init__(self) -> None:
        self._usage: Mapping[str, Any] | None = None
        self._stop: Mapping[str, Any] | None = None
        self._tools: list[int] = []

    def read(self, event: Any) -> Delta | None:
        """What an event says; None when it says nothing yet. Raises Malformed."""
        try:
            ((name, members),) = event.items()
            if name == "metadata":
                self._usage = members["usage"]
            elif name == "messageStop":
                self._stop = members
            elif name == "contentBlockStart" and "toolUse" in members["start"]:
                self._tools.append(members["contentBlockIndex"])
                use = members["start"]["toolUse"]
                return Delta(tools=[ToolPiece(len(self._tools) - 1, str(use["toolUseId"]), str(use["name"]))])
            elif name == "contentBlockDelta":
                return self._delta(members["contentBlockIndex"], members["delta"])
            return None
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
            raise Malformed(f"{type(fault).__name__} in an event") from None

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Delta | None:
        if "text" in delta:
            return Delta(text=_text(delta["text"]))
        if "reasoningContent" in delta:
            return Delta(reasoning=_text(delta["reasoningContent"].get("text", "")))
        if "toolUse" in delta:
            return Delta(tools=[ToolPiece(self._tools.index(index), arguments=_text(delta["toolUse"]["input"]))])
        return None

    def end(self) -> Delta:
        """The last piece. Raises Malformed when the server never said that it had finished."""
        if self._stop is None or self._usage is None:
            raise Malformed("the answer ended without a stop reason or without usage")
        try:
            finish, sequence, full = _ending(self._stop)
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
    reason = said["stopReason"]
    fields = said.get("additionalModelResponseFields") or {}
    sequence = fields.get("stop_sequence")
    return _FINISH[reason], sequence if isinstance(sequence, str) else None, reason.endswith("window_exceeded")


def _counts(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    cached = int(usage.get("cacheReadInputTokens") or 0)
    made = int(usage.get("cacheWriteInputTokens") or 0)
    return int(usage["inputTokens"]) + cached + made, int(usage["outputTokens"]), cached
