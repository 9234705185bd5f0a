"""Converse's members as a Generation, and an engine's answer as Converse's result and events.

Text documents are given to the model as text, under their name; nothing else that a model cannot read is converted.

Source: Amazon Bedrock API reference, Converse and ConverseStream.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.conversation.model import Choice, Completion, Delta, Generation, ToolCall, ToolPiece, unsupported
from honmaru.core.errors import ValidationFault

Members = Mapping[str, Any]

DEFAULT_MAX_TOKENS = 512
MAX_LOGPROBS = 20
MAX_CHOICES = 16

_UNSUPPORTED = {"guardrailConfig": "guardrails", "promptVariables": "prompt variables of a model that is no prompt"}
_BLOCKS = {
    "video": "video",
    "audio": "audio",
    "guardContent": "guardrails",
    "citationsContent": "citations",
    "searchResult": "search results",
    "toolAddition": "tools that change within a conversation",
    "toolRemoval": "tools that change within a conversation",
}
_TEXT_DOCUMENTS = frozenset({"txt", "md", "html", "csv"})
_STOP_REASONS = {
    "stop": "end_turn",
    "stop_sequence": "stop_sequence",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}


def _whole_number(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not low <= value <= high:
        raise ValidationFault(f"additionalModelRequestFields.{name} must be an integer from {low} to {high}")
    return int(value)


def _penalty(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -2 <= value <= 2:
        raise ValidationFault(f"additionalModelRequestFields.{name} must be a number from -2 to 2")
    return float(value)


def _is_bias(token: Any, bias: Any) -> bool:
    named = isinstance(token, str) and token.isascii() and token.isdigit()
    return named and type(bias) in (int, float) and -100 <= bias <= 100


def _bias(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_bias(*pair) for pair in value.items()):
        raise ValidationFault(f"additionalModelRequestFields.{name} must map token ids to numbers from -100 to 100")
    return {token: float(bias) for token, bias in value.items()}


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise ValidationFault(f"additionalModelRequestFields.{name} must be true or false")
    return value


def _effort(name: str, value: Any) -> str:
    if value not in ("minimal", "low", "medium", "high"):
        raise ValidationFault(f"additionalModelRequestFields.{name} must be minimal, low, medium or high")
    return str(value)


def _temperature(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise ValidationFault(f"additionalModelRequestFields.{name} must be a number from 0 to 2")
    return float(value)


FIELDS: Mapping[str, Any] = {
    "temperature": _temperature,
    "seed": lambda name, value: _whole_number(name, value, -(2**63), 2**63 - 1),
    "top_k": lambda name, value: _whole_number(name, value, 1, 1 << 20),
    "frequency_penalty": _penalty,
    "presence_penalty": _penalty,
    "logit_bias": _bias,
    "logprobs": lambda name, value: _whole_number(name, value, 0, MAX_LOGPROBS),
    "n": lambda name, value: _whole_number(name, value, 1, MAX_CHOICES),
    "parallel_tool_calls": _flag,
    "reasoning_effort": _effort,
}
"""What `additionalModelRequestFields` may hold: wishes of other dialects, under OpenAI's names."""


# Converse's members → Generation


def generation(members: Members, model: str) -> Generation:
    """What a Converse, ConverseStream or CountTokens request asks of `model`.

    Raises ValidationFault, for what no model here can do naming it. What only some can do is for `Generation.check`.
    """
    for member, feature in _UNSUPPORTED.items():
        if members.get(member):
            raise unsupported(model, feature)
    if (members.get("performanceConfig") or {}).get("latency") == "optimized":
        raise unsupported(model, "latency-optimized inference")
    fields = _fields(members.get("additionalModelRequestFields") or {}, model)
    output = members.get("outputConfig") or {}
    if output.get("effort"):
        fields.setdefault("reasoning_effort", output["effort"])
    inference = members.get("inferenceConfig") or {}
    conversation = _Conversation(model)
    tools, choice = _tools(members.get("toolConfig") or {}, conversation, model)
    return Generation(
        messages=conversation.messages(members),
        max_tokens=int(inference.get("maxTokens") or DEFAULT_MAX_TOKENS),
        temperature=fields.pop("temperature", inference.get("temperature")),
        top_p=inference.get("topP"),
        stop=tuple(inference.get("stopSequences") or ()),
        tools=tools,
        tool_choice=choice,
        schema=_schema(output.get("textFormat")),
        content=frozenset(conversation.needs),
        **fields,
    )


def _fields(extra: Members, model: str) -> dict[str, Any]:
    unknown = sorted(str(name) for name in extra if name not in FIELDS)
    if unknown:
        raise unsupported(model, f"additionalModelRequestFields {', '.join(unknown)[:200]}")
    return {name: FIELDS[name](name, value) for name, value in extra.items() if value is not None}


def _schema(wanted: Members | None) -> dict[str, Any] | None:
    if not wanted:
        return None
    text = ((wanted.get("structure") or {}).get("jsonSchema") or {}).get("schema")
    if not isinstance(text, str):
        raise ValidationFault("outputConfig.textFormat.structure.jsonSchema.schema is required")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise ValidationFault("outputConfig.textFormat.structure.jsonSchema.schema is not JSON") from None
    if not isinstance(schema, dict):
        raise ValidationFault("outputConfig.textFormat.structure.jsonSchema.schema must be a JSON object")
    return schema


def _tools(config: Members, conversation: _Conversation, model: str) -> tuple[list[dict[str, Any]], Any]:
    tools: list[dict[str, Any]] = []
    for tool in config.get("tools") or ():
        if tool.get("cachePoint"):
            conversation.needs.add("prompt_cache")
            continue
        spec = tool.get("toolSpec")
        if spec is None:
            raise unsupported(model, "tools of the system")
        schema = (spec.get("inputSchema") or {}).get("json")
        if not isinstance(schema, dict):
            raise ValidationFault(f"tool {spec['name']!r} needs an inputSchema.json that is an object")
        function: dict[str, Any] = {"name": spec["name"], "parameters": schema}
        if spec.get("description"):
            function["description"] = spec["description"]
        if spec.get("strict") is not None:
            function["strict"] = spec["strict"]
        tools.append({"type": "function", "function": function})
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) != len(names):
        raise ValidationFault("toolConfig.tools holds two tools of the same name")
    choice = config.get("toolChoice") or {}
    if choice.get("tool"):
        name = choice["tool"]["name"]
        if name not in names:
            raise ValidationFault(
                f"toolConfig.toolChoice names the tool {name!r}, which toolConfig.tools does not have"
            )
        return tools, {"type": "function", "function": {"name": name}}
    return tools, "required" if choice.get("any") is not None else "auto"


class _Conversation:
    """Reads messages and remembers what they need of the model."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._calls: set[str] = set()
        self.needs: set[str] = set()

    def messages(self, members: Members) -> list[dict[str, Any]]:
        system = "\n".join(self._system(block) for block in members.get("system") or () if not self._cached(block))
        out: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        expected = "user"
        for message in members.get("messages") or ():
            role = message["role"]
            if role != expected:
                raise ValidationFault(
                    f"a message of role {role!r} stands where one of role {expected!r} must: a conversation starts "
                    "with the user and alternates between user and assistant"
                )
            if role == "user":
                out += self._user(message["content"])
                expected = "assistant"
            else:
                out.append(self._assistant(message["content"]))
                expected = "user"
        if expected != "assistant":
            raise ValidationFault("messages must hold at least one message and end with one of the user")
        return out

    def _cached(self, block: Members) -> bool:
        if block.get("cachePoint") is None:
            return False
        self.needs.add("prompt_cache")
        return True

    def _system(self, block: Members) -> str:
        return self._text(block)

    def _user(self, blocks: Sequence[Members]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = []
        for block in blocks:
            if self._cached(block):
                continue
            if block.get("toolResult") is not None:
                results.append(self._result(block["toolResult"]))
            elif block.get("image") is not None:
                parts.append(self._image(block["image"]))
            else:
                parts.append({"type": "text", "text": self._text(block)})
        if not parts:
            if not results:
                raise ValidationFault("a message of the user is empty: add content to it and try again")
            return results
        if all(part["type"] == "text" for part in parts):
            return [*results, {"role": "user", "content": "\n".join(part["text"] for part in parts)}]
        return [*results, {"role": "user", "content": parts}]

    def _assistant(self, blocks: Sequence[Members]) -> dict[str, Any]:
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for block in blocks:
            if self._cached(block):
                continue
            if block.get("toolUse") is not None:
                self.needs.add("tools")
                use = block["toolUse"]
                self._calls.add(use["toolUseId"])
                function = {"name": use["name"], "arguments": json.dumps(use["input"], ensure_ascii=False)}
                calls.append({"id": use["toolUseId"], "type": "function", "function": function})
            elif block.get("reasoningContent") is not None:
                self.needs.add("reasoning")
                text = (block["reasoningContent"].get("reasoningText") or {}).get("text")
                if not text:
                    raise unsupported(self._model, "redacted reasoning")
                message["reasoning_content"] = message.get("reasoning_content", "") + text
            else:
                texts.append(self._text(block))
        if texts:
            message["content"] = "\n".join(texts)
        if calls:
            message["tool_calls"] = calls
        if not texts and not calls:
            raise ValidationFault("a message of the assistant is empty: add content to it and try again")
        return message

    def _result(self, result: Members) -> dict[str, Any]:
        self.needs.add("tools")
        if result["toolUseId"] not in self._calls:
            raise ValidationFault(
                f"toolResult {result['toolUseId']!r} answers no toolUse of the message before it: send both"
            )
        texts: list[str] = []
        for block in result["content"]:
            if block.get("json") is not None:
                texts.append(json.dumps(block["json"], ensure_ascii=False))
            elif block.get("text") is not None:
                texts.append(block["text"])
            elif block.get("document") is not None:
                texts.append(self._document(block["document"]))
            else:
                raise unsupported(self._model, f"tool results of type {next(iter(block), 'nothing')}")
        text = "\n".join(texts)
        if result.get("status") == "error":
            text = f"Error: {text}"
        return {"role": "tool", "tool_call_id": result["toolUseId"], "content": text}

    def _image(self, image: Members) -> dict[str, Any]:
        self.needs.add("images")
        content = (image.get("source") or {}).get("bytes")
        if content is None:
            raise unsupported(self._model, "images in S3")
        url = f"data:image/{image['format']};base64,{base64.b64encode(content).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    def _document(self, document: Members) -> str:
        kind = document.get("format") or "txt"
        source = document.get("source") or {}
        if (document.get("citations") or {}).get("enabled"):
            raise unsupported(self._model, "citations")
        if kind not in _TEXT_DOCUMENTS:
            raise unsupported(self._model, f"documents of format {kind}")
        if source.get("text") is not None:
            text = source["text"]
        elif source.get("bytes") is not None:
            try:
                text = bytes(source["bytes"]).decode()
            except UnicodeDecodeError:
                raise ValidationFault(f"document {document['name']!r} of format {kind} is not UTF-8 text") from None
        else:
            raise unsupported(self._model, "documents in S3")
        about = f"{document['context']}\n" if document.get("context") else ""
        return f"{about}Document {document['name']!r}:\n{text}"

    def _text(self, block: Members) -> str:
        for member, value in block.items():
            if value is None or member == "text":
                continue
            if member == "document":
                return self._document(value)
            raise unsupported(self._model, _BLOCKS.get(member, f"content of type {member} here"))
        text = block.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValidationFault("The text field in a content block is blank. Add text to it and try again.")
        return text


# An engine's answer → Converse's result and events


def stop_reason(last: Delta | Choice) -> str:
    """Converse's stopReason."""
    if last.finish == "length":
        return "model_context_window_exceeded" if last.context_full else "max_tokens"
    return _STOP_REASONS[last.finish or "stop"]


def usage(last: Delta | Completion) -> dict[str, int]:
    """Converse's usage."""
    counts = {
        "inputTokens": last.input_tokens,
        "outputTokens": last.output_tokens,
        "totalTokens": last.input_tokens + last.output_tokens,
    }
    return {**counts, "cacheReadInputTokens": last.cached_tokens} if last.cached_tokens else counts


def additional_fields(
    paths: Sequence[str] | None, *, stop_sequence: str | None, logprobs: Sequence[Any], others: Sequence[Choice] = ()
) -> dict[str, Any] | None:
    """additionalModelResponseFields for the JSON pointers that were asked for and that there are."""
    if not paths:
        return None
    there: dict[str, Any] = {}
    if "/stop_sequence" in paths:
        there["stop_sequence"] = stop_sequence
    if "/logprobs" in paths:
        there["logprobs"] = list(logprobs)
    if "/choices" in paths:
        there["choices"] = [
            {"message": message(choice), "stopReason": stop_reason(choice), "logprobs": list(choice.logprobs)}
            for choice in others
        ]
    return there or None


def message(choice: Choice) -> dict[str, Any]:
    """The assistant's message of one answer."""
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append({"reasoningContent": {"reasoningText": {"text": choice.reasoning}}})
    if choice.text or not choice.tools:
        content.append({"text": choice.text})
    content += [_tool_use(call) for call in choice.tools]
    return {"role": "assistant", "content": content}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"toolUse": {"toolUseId": call.id, "name": call.name, "input": parsed_arguments(call.arguments)}}


def parsed_arguments(text: str) -> Any:
    """The arguments of a call of a tool; what is no JSON object is kept as text under "malformed"."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {"malformed": text}
    return value if isinstance(value, dict) else {"malformed": text}


def result(completion: Completion, paths: Sequence[str] | None, latency_ms: int) -> dict[str, Any]:
    """Converse's result; answers beside the first are in additionalModelResponseFields.choices, if asked for."""
    first = completion.choices[0]
    answer: dict[str, Any] = {
        "output": {"message": message(first)},
        "stopReason": stop_reason(first),
        "usage": usage(completion),
        "metrics": {"latencyMs": latency_ms},
    }
    fields = additional_fields(
        paths, stop_sequence=first.stop_sequence, logprobs=first.logprobs, others=completion.choices[1:]
    )
    return answer if fields is None else {**answer, "additionalModelResponseFields": fields}


class Narration:
    """Deltas as the events of ConverseStream. Blocks have rising numbers; only those of tools are announced.

    Log probabilities, which Converse's events have no member for, stand beside the delta as `logprobs`.
    """

    def __init__(self, paths: Sequence[str] | None = None) -> None:
        self._paths = paths or ()
        self._logprobs: list[Any] = []
        self._open: Any = None
        self._index = -1

    def start(self) -> dict[str, Any]:
        return {"messageStart": {"role": "assistant"}}

    def tell(self, delta: Delta) -> list[dict[str, Any]]:
        """The events of one piece."""
        events: list[dict[str, Any]] = []
        if delta.reasoning:
            self._turn("reasoning", events)
            events.append(self._delta({"reasoningContent": {"text": delta.reasoning}}))
        if delta.text:
            self._turn("text", events)
            events.append(self._delta({"text": delta.text}, delta.logprobs))
        elif delta.logprobs:
            self._logprobs += delta.logprobs
        for piece in delta.tools:
            self._tool(piece, events)
        return events

    def end(self, last: Delta, latency_ms: int) -> list[dict[str, Any]]:
        """The events that follow the last piece, what it still says included."""
        events = self.tell(last)
        if self._open is None:
            self._turn("text", events)
            events.append(self._delta({"text": ""}))
        events.append({"contentBlockStop": {"contentBlockIndex": self._index}})
        stop: dict[str, Any] = {"stopReason": stop_reason(last)}
        fields = additional_fields(self._paths, stop_sequence=last.stop_sequence, logprobs=self._logprobs)
        if fields is not None:
            stop["additionalModelResponseFields"] = fields
        events.append({"messageStop": stop})
        events.append({"metadata": {"usage": usage(last), "metrics": {"latencyMs": latency_ms}}})
        return events

    def _turn(self, block: Any, events: list[dict[str, Any]]) -> None:
        """Makes `block` the open one."""
        if self._open == block:
            return
        if self._open is not None:
            events.append({"contentBlockStop": {"contentBlockIndex": self._index}})
        self._open = block
        self._index += 1

    def _delta(self, delta: dict[str, Any], logprobs: Sequence[Any] = ()) -> dict[str, Any]:
        members: dict[str, Any] = {"contentBlockIndex": self._index, "delta": delta}
        if logprobs:
            members["logprobs"] = logprobs
            if "/logprobs" in self._paths:
                self._logprobs += logprobs
        return {"contentBlockDelta": members}

    def _tool(self, piece: ToolPiece, events: list[dict[str, Any]]) -> None:
        if self._open != ("tool", piece.index):
            self._turn(("tool", piece.index), events)
            start = {"toolUse": {"toolUseId": piece.id, "name": piece.name}}
            events.append({"contentBlockStart": {"start": start, "contentBlockIndex": self._index}})
        if piece.arguments:
            events.append(self._delta({"toolUse": {"input": piece.arguments}}))
