"""Chat completions as Converse and ConverseStream."""

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

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
_INFERENCE = {
    "max_tokens": "maxTokens",
    "max_completion_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
}


def _role(where: str, value: Any) -> str:
    role = text(where, value)
    if role in ("tool", "function"):
        raise Unsupported(where, "tool use")
    if role not in ("system", "developer", "user", "assistant"):
        raise refusal(where, f"{where} must be system, developer, user or assistant", "invalid_value")
    return role


def _part(where: str, value: Any) -> str:
    kind = text(f"{where}.type", mapping(where, value).get("type"))
    if kind != "text":
        raise Unsupported(where, f"content of type {kind[:64]!r}")
    return str(structure(where, value, {"type": text, "text": text}, ("text",))["text"])


def _content(where: str, value: Any) -> list[str]:
    return [value] if type(value) is str else items(where, value, _part, 10_000)


def _stop(where: str, value: Any) -> list[str]:
    return [filled(where, value)] if type(value) is str else items(where, value, filled, 4)


_MESSAGE = table(
    {
        "role": _role,
        "content": _content,
        "name": neutral(),
        "refusal": neutral(),
        "audio": neutral(),
        "annotations": neutral([]),
        "tool_calls": neutral([]),
        "tool_call_id": neutral(),
        "function_call": neutral(),
    },
    ("role", "content"),
)


def _messages(where: str, value: Any) -> list[dict[str, Any]]:
    return items(where, value, _MESSAGE, 10_000)


_REQUEST: Mapping[str, Reader] = {
    "model": filled,
    "messages": _messages,
    "max_tokens": integer(1),
    "max_completion_tokens": integer(1),
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "stop": _stop,
    "seed": integer(0),
    "stream": flag,
    "stream_options": table({"include_usage": flag, "include_obfuscation": flag}),
    # change neither the answer nor what is kept of it
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "metadata": mapping,
    "parallel_tool_calls": flag,
    # accepted as far as they ask for nothing
    "audio": neutral(),
    "frequency_penalty": neutral(0, 0.0),
    "function_call": neutral("none", "auto"),
    "functions": neutral([]),
    "logit_bias": neutral({}),
    "logprobs": neutral(False),
    "modalities": neutral(["text"]),
    "moderation": neutral(),
    "n": neutral(1),
    "prediction": neutral(),
    "presence_penalty": neutral(0, 0.0),
    "prompt_cache_options": neutral(),
    "prompt_cache_retention": neutral("in_memory"),
    "reasoning_effort": neutral("none"),
    "response_format": neutral({"type": "text"}),
    "service_tier": neutral("auto", "default"),
    "store": neutral(False),
    "tool_choice": neutral("none", "auto"),
    "tools": neutral([]),
    "top_logprobs": neutral(0),
    "verbosity": neutral("medium"),
    "web_search_options": neutral(),
}


def completion(asked: Asked) -> Translation:
    """POST chat/completions. Raises ValidationFault, Unsupported."""
    read = structure("", asked.body, _REQUEST, ("model", "messages"))
    if "max_tokens" in read and "max_completion_tokens" in read:
        raise refusal("max_tokens", "max_tokens and max_completion_tokens are the same: send one", "invalid_value")
    stream = read.get("stream", False)
    if "stream_options" in read and not stream:
        raise refusal("stream_options", "stream_options is only allowed when stream is true", "invalid_value")
    system, turns = _split(read["messages"])
    members: dict[str, Any] = {"modelId": read["model"], "messages": conversation(turns)}
    if system:
        members["system"] = [{"text": one} for one in system]
    if config := inference(read, _INFERENCE):
        members["inferenceConfig"] = config
    if "seed" in read:
        members["additionalModelRequestFields"] = {"seed": read["seed"]}
    head = {
        "id": f"chatcmpl-{asked.request_id}",
        "object": "chat.completion.chunk" if stream else "chat.completion",
        "created": int(asked.at.timestamp()),
        "model": read["model"],
    }
    if stream:
        wants_usage = read.get("stream_options", {}).get("include_usage", False)
        return Translation("ConverseStream", members, framing=Chunks(head, usage=wants_usage))
    return Translation("Converse", members, lambda result: _whole(head, result))


def _split(messages: list[dict[str, Any]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(texts of the system, turns). Only leading messages can be the system's: the model sees one, at the start."""
    system: list[str] = []
    turns: list[tuple[str, list[str]]] = []
    for at, message in enumerate(messages):
        role, texts = message["role"], message["content"]
        if role in ("user", "assistant"):
            turns.append((role, texts))
        elif turns:
            raise Unsupported(f"messages[{at}].role", f"{role} messages after the start of the conversation")
        else:
            system += [one for one in texts if one]
    return system, turns


def _whole(head: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answered_text(result),
        "refusal": None,
        "annotations": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[result["stopReason"]]}
    return {**head, "choices": [choice], "usage": _usage(result["usage"])}


def _usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["inputTokens"],
        "completion_tokens": usage["outputTokens"],
        "total_tokens": usage["totalTokens"],
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


class Chunks:
    """Framing of one completion: ConverseStream's events as chunks, [DONE] at the end."""

    def __init__(self, head: Mapping[str, Any], *, usage: bool) -> None:
        self._head = head
        self._usage = usage
        self._writers: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = {
            "messageStart": lambda _: self._chunk({"role": "assistant", "content": "", "refusal": None}),
            "contentBlockDelta": lambda members: self._chunk({"content": members["delta"]["text"]}),
            "contentBlockStop": lambda _: b"",
            "messageStop": lambda members: self._chunk({}, _FINISH[members["stopReason"]]),
            "metadata": self._end,
        }

    def initial(self, payload: bytes) -> bytes:
        """Nothing stands beside the stream."""
        return payload

    def write(self, event: Mapping[str, Any]) -> bytes:
        ((name, members),) = event.items()
        return self._writers[name](members)

    def fault(self, code: str, message: str) -> bytes:
        return _data({"error": {"message": message, "type": "server_error", "param": None, "code": code}})

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**self._head, "choices": [choice], **({"usage": None} if self._usage else {})})

    def _end(self, members: Mapping[str, Any]) -> bytes:
        last = _data({**self._head, "choices": [], "usage": _usage(members["usage"])}) if self._usage else b""
        return last + b"data: [DONE]\n\n"


def _data(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
