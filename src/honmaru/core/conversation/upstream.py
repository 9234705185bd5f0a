"""What a model server is asked and how its answers are read: OpenAI's HTTP API as engines speak it.

Invariants:
- A member is sent only when it was asked for, so an engine that does not know it never sees it.
- What an engine answers is not trusted: a wrong type raises Malformed, and never anything else.

Source: OpenAI's API reference; the additions of vLLM (`stop_reason`, `reasoning_content`, `top_k`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from honmaru.core.conversation.model import Choice, Completion, Delta, Generation, ToolCall, ToolPiece, Vectors

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"


class Malformed(Exception):
    """The engine's answer is not what its API says."""


def request(
    generation: Generation, model: str, *, stream: bool, usage: bool = True, schema_as: str = "json_schema"
) -> tuple[str, dict[str, Any]]:
    """(path below the API's root, body).

    Args:
        usage: Ask for counts in a stream; some engines refuse the question.
        schema_as: "json_schema" as OpenAI writes it, or "json_object" with the schema beside it, as llama.cpp does.
    """
    wanted: dict[str, Any] = {
        "model": model,
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "seed": generation.seed,
        "stop": list(generation.stop) or None,
        "frequency_penalty": generation.frequency_penalty or None,
        "presence_penalty": generation.presence_penalty or None,
        "logit_bias": dict(generation.logit_bias) or None,
        "n": generation.n if generation.n > 1 else None,
        "reasoning_effort": generation.reasoning_effort,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    if stream:
        body["stream"] = True
        if usage:
            body["stream_options"] = {"include_usage": True}
    if generation.messages is None:
        if generation.logprobs is not None:
            body["logprobs"] = generation.logprobs
        return COMPLETIONS, {**body, "prompt": generation.prompt or ""}
    if generation.logprobs is not None:
        body["logprobs"] = True
        if generation.logprobs:
            body["top_logprobs"] = generation.logprobs
    if generation.tools:
        body["tools"] = list(generation.tools)
        if generation.tool_choice == "required" and len(generation.tools) == 1:
            # The same wish, in the form that every engine knows.
            function = {"name": generation.tools[0]["function"]["name"]}
            body["tool_choice"] = {"type": "function", "function": function}
        elif generation.tool_choice != "auto":
            body["tool_choice"] = generation.tool_choice
        if not generation.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if generation.schema is not None:
        if schema_as == "json_object":
            body["response_format"] = {"type": "json_object", "schema": generation.schema}
        else:
            schema = {"name": "answer", "schema": generation.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return CHAT, {**body, "messages": list(generation.messages)}


class StreamReader:
    """Chunks of one streamed answer as Deltas; the last one comes from `end`, after the last chunk."""

    def __init__(self) -> None:
        self._finish: Mapping[str, Any] | None = None
        self._usage: Mapping[str, Any] | None = None
        self._called = False
        self._pieces = 0

    def read(self, chunk: Any) -> Delta | None:
        """What a chunk says; None when it says nothing yet. Raises Malformed."""
        try:
            if chunk.get("usage"):
                self._usage = chunk["usage"]
            choices = chunk["choices"]
            if not choices:
                return None
            choice = choices[0]
            delta = choice.get("delta")
            if delta is None:
                text, reasoning, calls = choice.get("text") or "", "", None
            else:
                text = delta.get("content") or ""
                reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
                calls = delta.get("tool_calls")
            if choice.get("finish_reason") is not None:
                self._finish = choice
            logprobs = _logprobs(choice.get("logprobs"))
            if not (text or reasoning or calls or logprobs):
                return None
            self._pieces += 1
            if calls:
                self._called = True
                return Delta(text, reasoning, [_piece(call, at) for at, call in enumerate(calls)], logprobs)
            return Delta(text, reasoning, (), logprobs) if type(text) is str and type(reasoning) is str else _wrong()
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
            raise Malformed(f"{type(fault).__name__} in a chunk") from None

    def end(self) -> Delta:
        """The last piece. Raises Malformed when the engine never said that it had finished.

        An engine that counts no tokens in streams is counted by its pieces, a token each as such engines send them.
        """
        if self._finish is None:
            raise Malformed("the answer ended without a finish reason")
        finish, sequence = _finish(self._finish, called=self._called)
        prompt, written, cached = _counts(self._usage) if self._usage else (0, self._pieces, 0)
        full = bool(self._finish.get("context_full"))
        return Delta(
            finish=finish, stop_sequence=sequence, context_full=full, input_tokens=prompt, output_tokens=written,
            cached_tokens=cached,
        )  # fmt: skip


def joined(deltas: Iterable[Delta | None]) -> Iterator[Delta]:
    """The pieces, neighbours of plain text as one: what arrived together is passed on together."""
    text: list[str] = []
    for delta in deltas:
        if delta is None:
            continue
        if delta.reasoning or delta.tools or delta.logprobs:
            if text:
                yield Delta(text="".join(text))
                text = []
            yield delta
        else:
            text.append(delta.text)
    if text:
        yield Delta(text="".join(text))


def completion(answer: Any) -> Completion:
    """A whole answer. Raises Malformed."""
    try:
        prompt, written, cached = _counts(answer["usage"])
        choices = [_choice(choice) for choice in answer["choices"]]
        if not choices:
            raise ValueError("no choices")
        return Completion(choices, prompt, written, cached)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as fault:
        raise Malformed(f"{type(fault).__name__} in the answer") from None


def embeddings_request(texts: Sequence[str], model: str, dimensions: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def vectors(answer: Any, count: int) -> Vectors:
    """Embeddings in the order of the texts. Raises Malformed."""
    try:
        found = sorted(answer["data"], key=lambda entry: int(entry["index"]))
        made = [[float(value) for value in entry["embedding"]] for entry in found]
        tokens = int((answer.get("usage") or {}).get("prompt_tokens", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise Malformed(f"{type(fault).__name__} in the embeddings") from None
    if len(made) != count or len({len(vector) for vector in made}) > 1:
        raise Malformed(f"{len(made)} embeddings of {count} texts")
    return Vectors(made, tokens)


def _wrong() -> Delta:
    raise Malformed("content that is not text")


def _piece(call: Mapping[str, Any], at: int) -> ToolPiece:
    function = call.get("function") or {}
    return ToolPiece(
        int(call.get("index", at)), str(call.get("id") or ""), str(function.get("name") or ""),
        str(function.get("arguments") or ""),
    )  # fmt: skip


def _choice(choice: Mapping[str, Any]) -> Choice:
    message = choice.get("message")
    tools: Sequence[ToolCall] = ()
    reasoning = ""
    if message is None:
        text = choice["text"]
    else:
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        tools = [
            ToolCall(str(call["id"]), str(call["function"]["name"]), str(call["function"].get("arguments") or ""))
            for call in message.get("tool_calls") or ()
        ]
    if type(text) is not str or type(reasoning) is not str:
        raise TypeError("content that is not text")
    finish, sequence = _finish(choice, called=bool(tools))
    return Choice(
        text, reasoning, tools, _logprobs(choice.get("logprobs")), finish, sequence, bool(choice.get("context_full"))
    )


def _finish(choice: Mapping[str, Any], *, called: bool) -> tuple[str, str | None]:
    reason = choice.get("finish_reason") or "stop"
    sequence = choice.get("stop_reason")
    if isinstance(sequence, str) and reason == "stop" and not called:
        return "stop_sequence", sequence
    if reason in ("tool_calls", "function_call") or (called and reason == "stop"):
        return "tool_calls", None
    return (reason if reason in ("length", "content_filter") else "stop"), None


def _counts(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    details = usage.get("prompt_tokens_details") or {}
    return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0), int(details.get("cached_tokens") or 0)


def _logprobs(given: Any) -> Sequence[Mapping[str, Any]]:
    """OpenAI's entries, from either form that engines write."""
    if not given:
        return ()
    if given.get("content") is not None:
        return [_entry(entry, entry.get("top_logprobs") or ()) for entry in given["content"]]
    if given.get("tokens") is None:
        return ()
    tops = given.get("top_logprobs") or [{}] * len(given["tokens"])
    return [
        _entry(
            {"token": token, "logprob": chance},
            [{"token": other, "logprob": value} for other, value in (top or {}).items()],
        )
        for token, chance, top in zip(given["tokens"], given["token_logprobs"], tops, strict=False)
    ]


def _entry(entry: Mapping[str, Any], tops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "token": str(entry["token"]),
        "logprob": float(entry["logprob"]),
        "bytes": list(str(entry["token"]).encode()),
        "top_logprobs": [
            {
                "token": str(one["token"]),
                "logprob": float(one["logprob"]),
                "bytes": list(str(one["token"]).encode()),
            }
            for one in tops
        ],
    }
