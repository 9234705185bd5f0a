"""Tools and structured answers: what the model is told, what the engine may write, what its text then means.

A model whose template knows tools is shown them there; any other is told in words. Calls are written as
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the form that most open models are trained on.

Invariants:
- With a forced choice or a schema the engine can write nothing else: a grammar constrains each token.
- With a free choice, once the model begins a call, its name and arguments are constrained by the tools' schemas.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from honmaru.core.errors import ValidationFault

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the engine may write: JSON of `schema`, or, with `tags`, free text with calls of these (begin, schema,
    end) in it."""

    schema: str | None = None
    tags: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """Tools as a request names them. `forced` says that the answer is a call and nothing else."""

    tools: Sequence[Mapping[str, Any]] = ()
    forced: bool = False
    several: bool = True
    grammar: Grammar | None = None


def read(body: Mapping[str, Any]) -> Wish:
    """The wish of a request's tools, tool_choice and response_format. Raises ValidationFault."""
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise ValidationFault("tools must be a list of functions with a name and parameters")
    schema = _schema(body.get("response_format"))
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none":
        return Wish(grammar=Grammar(schema=json.dumps(schema)) if schema is not None else None)
    if schema is not None:
        raise ValidationFault("response_format and tools exclude each other on this model server")
    functions = [tool["function"] for tool in tools]
    if choice == "auto":
        tags = [
            (f'{BEGIN}{{"name": {json.dumps(one["name"])}, "arguments": ', json.dumps(_parameters(one)), f"}}{END}")
            for one in functions
        ]
        return Wish(tools, several=body.get("parallel_tool_calls", True), grammar=Grammar(tags=tags))
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        functions = [one for one in functions if one["name"] == name]
    elif choice != "required":
        raise ValidationFault("tool_choice must be none, auto, required or a function")
    if not functions:
        raise ValidationFault("tool_choice names a function that tools does not have")
    shapes = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": _parameters(one)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in functions
    ]
    forced = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    return Wish(tools, forced=True, grammar=Grammar(schema=json.dumps(forced)))


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("parameters", {}), dict)
    )


def _parameters(function: Mapping[str, Any]) -> Any:
    return function.get("parameters") or {"type": "object", "properties": {}}


def _schema(form: Any) -> Any:
    if form is None or (isinstance(form, dict) and form.get("type") == "text"):
        return None
    if isinstance(form, dict) and form.get("type") == "json_object":
        return {"type": "object"}
    inner = form.get("json_schema") if isinstance(form, dict) and form.get("type") == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise ValidationFault("response_format must be text, json_object, or json_schema with a schema")
    return schema


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model is told whose template knows no tools."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\nTo call one, answer with "
        f'{BEGIN}{{"name": its name, "arguments": its arguments}}{END}'
    )


def told(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a template that knows system, user and assistant only: calls and results become text."""
    out: list[dict[str, Any]] = [{"role": "system", "content": instructions(tools)}] if tools else []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            role, content = "user", f"<tool_response>{content}</tool_response>"
        for call in message.get("tool_calls") or ():
            written = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            content += f"{BEGIN}{json.dumps(written, ensure_ascii=False)}{END}"
        if (role == "system" and out and out[-1]["role"] == "system") or (out and out[-1]["role"] == role == "user"):
            out[-1]["content"] += f"\n{content}"
        else:
            out.append({"role": role, "content": content})
    return out


def call(text: str) -> dict[str, Any] | None:
    """A call as OpenAI writes it, from the JSON between the marks; None when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = json.dumps(value.get("arguments", value.get("parameters", {})), ensure_ascii=False)
    function = {"name": value["name"], "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class CallReader:
    """Parts an answer, as it arrives, into text and calls."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._pending = ""
        self.calls = 0

    def push(self, text: str, *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """(text that is certain to be text, calls that are complete)."""
        if not self._wish.tools:
            return text, []
        self._pending += text
        if self._wish.forced:
            made = call(self._pending) if last else None
            said = self._pending if last and made is None else ""
            return said, self._counted([made] if made is not None else [])
        said = ""
        calls: list[dict[str, Any]] = []
        while True:
            before, mark, rest = self._pending.partition(BEGIN)
            if not mark:
                keep = 0 if last else _overlap(self._pending)
                said += self._pending[: len(self._pending) - keep]
                self._pending = self._pending[len(self._pending) - keep :]
                return said, self._counted(calls)
            inner, mark, after = rest.partition(END)
            if not mark and not last:
                said, self._pending = said + before, BEGIN + rest
                return said, self._counted(calls)
            made = call(inner)
            said += before if made is not None else before + BEGIN + inner + mark
            if made is not None and (self._wish.several or not self.calls + len(calls)):
                calls.append(made)
            self._pending = after

    def _counted(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.calls += len(calls)
        return calls


def _overlap(text: str) -> int:
    """Length of the longest end of `text` that begins the mark."""
    return next((size for size in range(min(len(BEGIN) - 1, len(text)), 0, -1) if text.endswith(BEGIN[:size])), 0)
