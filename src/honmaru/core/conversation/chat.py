"""OpenAI's chat completions as Converse's members and back: the body of /v1/chat/completions, and of InvokeModel for
models that speak it.

Source: OpenAI's API reference, Chat completions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from honmaru.core.conversation.claude import encoded, merged
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

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "malformed_tool_use": "tool_calls",
    "malformed_model_output": "stop",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
}
_MOST = 10_000
_INFERENCE = {
    "max_tokens": "maxTokens",
    "max_completion_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
}
_FIELDS = (
    "seed", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "n", "parallel_tool_calls",
    "reasoning_effort",
)  # fmt: skip


# Reading


def _role(where: str, value: Any) -> str:
    role = text(where, value)
    if role == "function":
        raise Unsupported(where, "functions of the old kind; use tools")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise refusal(where, f"{where} must be system, developer, user, assistant or tool", "invalid_value")
    return role


def image(where: str, url: str) -> dict[str, Any]:
    """An image block from a data URL."""
    kind, mark, data = url.partition(";base64,")
    if not mark or not kind.startswith("data:image/"):
        raise Unsupported(where, "images that are not in the request; send a data: URL")
    form = kind.removeprefix("data:image/").replace("jpg", "jpeg")
    if form not in ("png", "jpeg", "gif", "webp"):
        raise refusal(where, f"{where} must be a png, jpeg, gif or webp image", "invalid_value")
    return {"image": {"format": form, "source": {"bytes": encoded(where, data)}}}


def _part(where: str, value: Any) -> dict[str, Any]:
    kind = text(f"{where}.type", mapping(where, value).get("type"))
    if kind == "text":
        return {"text": structure(where, value, {"type": text, "text": text}, ("text",))["text"]}
    if kind == "image_url":
        inner = table({"url": filled, "detail": text}, ("url",))
        read = structure(where, value, {"type": text, "image_url": inner}, ("image_url",))
        return image(f"{where}.image_url.url", read["image_url"]["url"])
    raise Unsupported(where, f"content of type {kind[:64]!r}")


def _content(where: str, value: Any) -> list[dict[str, Any]]:
    return [{"text": value}] if type(value) is str else items(where, value, _part, _MOST)


def _stop(where: str, value: Any) -> list[str]:
    return [filled(where, value)] if type(value) is str else items(where, value, filled, 4)


def arguments(where: str, value: Any) -> dict[str, Any]:
    """The arguments of a call of a tool, which OpenAI writes as JSON in a string."""
    try:
        read = json.loads(text(where, value) or "{}")
    except (ValueError, RecursionError):
        read = None
    if type(read) is not dict:
        raise refusal(where, f"{where} must be a JSON object in a string", "invalid_value")
    return read


_FUNCTION_CALL = table({"name": filled, "arguments": arguments}, ("name", "arguments"))
_TOOL_CALL = table({"id": filled, "type": text, "function": _FUNCTION_CALL, "index": integer(0)}, ("id", "function"))
_MESSAGE = table(
    {
        "role": _role,
        "content": _content,
        "name": neutral(),
        "refusal": neutral(),
        "audio": neutral(),
        "annotations": neutral([]),
        "tool_calls": lambda where, value: items(where, value, _TOOL_CALL, 1000),
        "tool_call_id": filled,
        "reasoning_content": text,
        "function_call": neutral(),
    },
    ("role",),
)


def _messages(where: str, value: Any) -> list[dict[str, Any]]:
    return items(where, value, _MESSAGE, _MOST)


_FUNCTION = table({"name": filled, "description": text, "parameters": mapping, "strict": flag}, ("name",))


def _tool(where: str, value: Any) -> dict[str, Any]:
    kind = text(f"{where}.type", mapping(where, value).get("type"))
    if kind != "function":
        raise Unsupported(where, f"tools of type {kind[:64]!r}")
    return spec(structure(where, value, {"type": text, "function": _FUNCTION}, ("function",))["function"])


def spec(function: Mapping[str, Any]) -> dict[str, Any]:
    """Converse's tool of a function."""
    made: dict[str, Any] = {
        "name": function["name"],
        "inputSchema": {"json": function.get("parameters") or {"type": "object", "properties": {}}},
    }
    for name in ("description", "strict"):
        if function.get(name):
            made[name] = function[name]
    return {"toolSpec": made}


def choice(where: str, value: Any) -> str | dict[str, Any]:
    """ "none", or Converse's toolChoice."""
    if type(value) is str:
        if value not in ("none", "auto", "required"):
            raise refusal(where, f"{where} must be none, auto, required or a function", "invalid_value")
        return {"none": "none", "auto": {"auto": {}}, "required": {"any": {}}}[value]  # type: ignore[return-value]
    kind = mapping(where, value).get("type")
    if kind != "function":
        raise Unsupported(where, f"a choice of type {str(kind)[:64]!r}")
    inner = value.get("function", value)
    return {"tool": {"name": filled(f"{where}.name", mapping(where, inner).get("name"))}}


def schema_format(schema: Any, name: str | None, description: str | None = None) -> dict[str, Any]:
    """Converse's textFormat of a JSON schema."""
    structured = {"schema": json.dumps(schema)}
    if name:
        structured["name"] = name
    if description:
        structured["description"] = description
    return {"type": "json_schema", "structure": {"jsonSchema": structured}}


_SCHEMA = table({"name": filled, "description": text, "schema": mapping, "strict": flag}, ("schema",))


def _format(where: str, value: Any) -> dict[str, Any] | None:
    read = structure(where, value, {"type": text, "json_schema": _SCHEMA}, ("type",))
    if read["type"] == "text":
        return None
    if read["type"] == "json_object":
        return schema_format({"type": "object"}, None)
    if read["type"] != "json_schema":
        raise Unsupported(where, f"formats of type {read['type'][:64]!r}")
    wanted = read.get("json_schema")
    if wanted is None:
        raise refusal(f"{where}.json_schema", f"{where}.json_schema is required", "missing_required_parameter")
    return schema_format(wanted["schema"], wanted.get("name"), wanted.get("description"))


TIERS = ("auto", "default", "flex", "priority", "scale")


def tier(where: str, value: Any) -> str:
    if value not in TIERS:
        raise refusal(where, f"{where} must be one of {', '.join(TIERS)}", "invalid_value")
    return str(value)


_REQUEST: Mapping[str, Reader] = {
    "model": filled,
    "messages": _messages,
    "max_tokens": integer(1),
    "max_completion_tokens": integer(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(1),
    "stop": _stop,
    "seed": integer(-(2**63), 2**63 - 1),
    "stream": flag,
    "stream_options": table({"include_usage": flag, "include_obfuscation": flag}),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "logit_bias": mapping,
    "logprobs": flag,
    "top_logprobs": integer(0, 20),
    "n": integer(1, 16),
    "parallel_tool_calls": flag,
    "reasoning_effort": text,
    "response_format": _format,
    "tool_choice": choice,
    "tools": lambda where, value: items(where, value, _tool, 1000),
    "service_tier": tier,
    # change neither the answer nor what is kept of it
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "metadata": mapping,
    # accepted as far as they ask for nothing
    "audio": neutral(),
    "function_call": neutral("none", "auto"),
    "functions": neutral([]),
    "modalities": neutral(["text"]),
    "moderation": neutral(),
    "prediction": neutral(),
    "prompt_cache_options": neutral(),
    "prompt_cache_retention": neutral("in_memory"),
    "store": neutral(False),
    "verbosity": neutral("medium"),
    "web_search_options": neutral(),
}


def read_completion(body: Any, required: tuple[str, ...] = ("model", "messages")) -> dict[str, Any]:
    """The checked body. Raises ValidationFault, Unsupported."""
    read = structure("", body, _REQUEST, required)
    if "max_tokens" in read and "max_completion_tokens" in read:
        raise refusal("max_tokens", "max_tokens and max_completion_tokens are the same: send one", "invalid_value")
    if "stream_options" in read and not read.get("stream", False):
        raise refusal("stream_options", "stream_options is only allowed when stream is true", "invalid_value")
    if read.get("top_logprobs") and not read.get("logprobs"):
        raise refusal("top_logprobs", "top_logprobs is only allowed when logprobs is true", "invalid_value")
    if read.get("n", 1) > 1 and read.get("stream"):
        raise Unsupported("n", "several answers in one stream")
    return read


def members(read: Mapping[str, Any]) -> dict[str, Any]:
    """Converse's members of a checked body, but for the model."""
    system, turns = _split(read["messages"])
    out: dict[str, Any] = {"messages": merged(turns)}
    if system:
        out["system"] = system
    config = {aws: read[own] for own, aws in _INFERENCE.items() if own in read}
    extra = {name: read[name] for name in _FIELDS if name in read}
    if config.get("temperature", 0) > 1:
        extra["temperature"] = config.pop("temperature")  # Converse's own ends at 1, OpenAI's at 2
    if config:
        out["inferenceConfig"] = config
    selected = read.get("tool_choice", {"auto": {}})
    if read.get("tools") and selected != "none":
        out["toolConfig"] = {"tools": read["tools"], "toolChoice": selected}
    if read.get("response_format"):
        out["outputConfig"] = {"textFormat": read["response_format"]}
    if extra.get("n") == 1:
        del extra["n"]
    if "toolConfig" not in out:
        extra.pop("parallel_tool_calls", None)
    if extra.get("reasoning_effort") == "none":
        del extra["reasoning_effort"]
    paths = []
    if read.get("logprobs"):
        extra["logprobs"] = read.get("top_logprobs", 0)
        paths.append("/logprobs")
    if extra.get("n"):
        paths.append("/choices")
    if extra:
        out["additionalModelRequestFields"] = extra
    if paths:
        out["additionalModelResponseFieldPaths"] = paths
    if read.get("service_tier") in ("flex", "priority"):
        out["serviceTier"] = {"type": read["service_tier"]}
    return out


def _split(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[str, list[dict[str, Any]]]]]:
    """(blocks of the system, turns). Only leading messages can be the system's: the model sees one, at the start."""
    system: list[dict[str, Any]] = []
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for at, message in enumerate(messages):
        role, blocks = message["role"], message.get("content", [])
        if role == "tool":
            if "tool_call_id" not in message:
                raise refusal(f"messages[{at}].tool_call_id", f"messages[{at}].tool_call_id is required")
            result = {"toolUseId": message["tool_call_id"], "content": blocks or [{"text": ""}]}
            turns.append(("user", [{"toolResult": result}]))
        elif role == "assistant":
            turns.append((role, _assistant(message, [block for block in blocks if block.get("text") != ""])))
        elif role == "user":
            if "content" not in message:
                raise refusal(f"messages[{at}].content", f"messages[{at}].content is required")
            turns.append((role, blocks))
        elif turns:
            raise Unsupported(f"messages[{at}].role", f"{role} messages after the start of the conversation")
        else:
            system += [block for block in blocks if block.get("text")]
    return system, turns


def _assistant(message: Mapping[str, Any], blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    reasoning = message.get("reasoning_content")
    before = [{"reasoningContent": {"reasoningText": {"text": reasoning}}}] if reasoning else []
    return [
        *before,
        *blocks,
        *(
            {
                "toolUse": {
                    "toolUseId": call["id"],
                    "name": call["function"]["name"],
                    "input": call["function"]["arguments"],
                }
            }
            for call in message.get("tool_calls", ())
        ),
    ]


# Writing


def head(identifier: str, created: int, model: str, *, stream: bool) -> dict[str, Any]:
    kind = "chat.completion.chunk" if stream else "chat.completion"
    return {"id": identifier, "object": kind, "created": created, "model": model}


def whole(head: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A Converse result as a completion."""
    fields = result.get("additionalModelResponseFields") or {}
    logprobs = fields.get("logprobs")
    first = {"message": result["output"]["message"], "stopReason": result["stopReason"], "logprobs": logprobs}
    choices = [_choice(at, one, "logprobs" in fields) for at, one in enumerate([first, *fields.get("choices", ())])]
    return {**head, "choices": choices, "usage": usage(result["usage"]), "service_tier": "default"}


def _choice(index: int, one: Mapping[str, Any], logprobs: bool) -> dict[str, Any]:
    blocks = one["message"]["content"]
    said = "".join(block["text"] for block in blocks if "text" in block)
    thought = "".join(
        block["reasoningContent"]["reasoningText"]["text"] for block in blocks if "reasoningContent" in block
    )
    calls = [_call(block["toolUse"]) for block in blocks if "toolUse" in block]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": said if said or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if calls:
        message["tool_calls"] = calls
    if thought:
        message["reasoning_content"] = thought
    chances = {"content": one["logprobs"], "refusal": None} if logprobs else None
    return {"index": index, "message": message, "logprobs": chances, "finish_reason": FINISH[one["stopReason"]]}


def _call(use: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": use["name"], "arguments": json.dumps(use["input"], ensure_ascii=False)}
    return {"id": use["toolUseId"], "type": "function", "function": function}


def usage(counts: Mapping[str, int]) -> dict[str, Any]:
    """OpenAI's usage of Converse's."""
    return {
        "prompt_tokens": counts["inputTokens"],
        "completion_tokens": counts["outputTokens"],
        "total_tokens": counts["totalTokens"],
        "prompt_tokens_details": {"cached_tokens": counts.get("cacheReadInputTokens", 0)},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


class Chunks:
    """ConverseStream's events as chunks of one completion."""

    def __init__(self, head: Mapping[str, Any], *, usage: bool) -> None:
        self._head = head
        self._usage = usage
        self._tools: dict[int, int] = {}

    def write(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chunks that say the same; there may be none."""
        ((name, members),) = event.items()
        if name == "contentBlockDelta":
            return [self._delta(members)]
        if name == "contentBlockStart":
            number = self._tools[members["contentBlockIndex"]] = len(self._tools)
            use = members["start"]["toolUse"]
            function = {"name": use["name"], "arguments": ""}
            call = {"index": number, "id": use["toolUseId"], "type": "function", "function": function}
            return [self._chunk({"tool_calls": [call]})]
        if name == "messageStart":
            return [self._chunk({"role": "assistant", "content": "", "refusal": None})]
        if name == "messageStop":
            return [self._chunk({}, FINISH[members["stopReason"]])]
        if name == "metadata" and self._usage:
            return [{**self._head, "choices": [], "usage": usage(members["usage"])}]
        return []

    def _delta(self, members: Mapping[str, Any]) -> dict[str, Any]:
        delta = members["delta"]
        if "text" in delta:
            chances = members.get("logprobs")
            return self._chunk(
                {"content": delta["text"]}, None, {"content": chances, "refusal": None} if chances else None
            )
        if "toolUse" in delta:
            number = self._tools[members["contentBlockIndex"]]
            return self._chunk(
                {"tool_calls": [{"index": number, "function": {"arguments": delta["toolUse"]["input"]}}]}
            )
        return self._chunk({"reasoning_content": delta["reasoningContent"]["text"]})

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "choices": [choice], **({"usage": None} if self._usage else {})}
