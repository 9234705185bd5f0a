"""One conversation in every dialect: what is asked means the same, what is answered says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.conversation import chat, claude, converse, native, responses, upstream
from honmaru.core.conversation.model import Choice, Completion, Delta, Generation, ToolCall, ToolPiece
from honmaru.core.errors import ValidationFault
from honmaru.core.members import Unsupported

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
TURNS = ("how is it?", "call_1", "rain")


def from_converse() -> dict[str, Any]:
    use = {"toolUse": {"toolUseId": "call_1", "name": "weather", "input": {"place": "keep"}}}
    result = {"toolResult": {"toolUseId": "call_1", "content": [{"text": "rain"}]}}
    return {
        "system": [{"text": "be brief"}],
        "messages": [
            {"role": "user", "content": [{"text": "how is it?"}]},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result, {"text": "and now?"}]},
        ],
        "inferenceConfig": {"maxTokens": 9, "temperature": 0.5, "topP": 0.9, "stopSequences": ["end"]},
        "toolConfig": {"tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": SCHEMA}}}]},
    }


def from_claude() -> dict[str, Any]:
    body = {
        "model": "m", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop_sequences": ["end"],
        "system": "be brief",
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "messages": [
            {"role": "user", "content": "how is it?"},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"place": "keep"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"},
                {"type": "text", "text": "and now?"}]},
        ],
    }  # fmt: skip
    return claude.members(claude.read_message(body, claude.OVER_HTTP))


def from_chat() -> dict[str, Any]:
    function = {"name": "weather", "arguments": '{"place": "keep"}'}
    body = {
        "model": "m", "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": "end",
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
        "messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "how is it?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"}, {"role": "user", "content": "and now?"},
        ],
    }  # fmt: skip
    return chat.members(chat.read_completion(body))


def from_responses() -> dict[str, Any]:
    body = {
        "model": "m", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9, "instructions": "be brief",
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "how is it?"}]},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"place": "keep"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {"role": "user", "content": "and now?"},
        ],
    }  # fmt: skip
    members = responses.members(responses.read_response(body))
    members["inferenceConfig"]["stopSequences"] = ["end"]  # responses have none
    return members


def from_nova() -> dict[str, Any]:
    members = from_converse()
    return native.read(json.dumps({"schemaVersion": "messages-v1", **members}).encode(), "m").members or {}


READERS = [from_converse, from_claude, from_chat, from_responses, from_nova]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_every_dialect_asks_an_engine_the_same(reader: Any) -> None:
    wanted = converse.generation(reader(), "m")
    path, body = upstream.request(wanted, "engine", stream=True)
    assert path == "/chat/completions"
    function = {"name": "weather", "arguments": '{"place": "keep"}'}
    assert body == {
        "model": "engine", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ["end"], "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}],
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "how is it?"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "user", "content": "and now?"},
        ],
    }  # fmt: skip
    with pytest.raises(ValidationFault, match="tool use: m"):
        wanted.check("m", [])


DELTAS = [
    Delta(reasoning="let me"),
    Delta(text="so: "),
    Delta(text="ö"),
    Delta(tools=[ToolPiece(0, "call_1", "weather", '{"pla')]),
    Delta(tools=[ToolPiece(0, arguments='ce": 1}')]),
    Delta(tools=[ToolPiece(1, "call_2", "clock", "")]),
]
LAST = Delta(finish="tool_calls", input_tokens=3, output_tokens=4, cached_tokens=2)
COMPLETION = Completion(
    [Choice("so: ö", "let me", [ToolCall("call_1", "weather", '{"place": 1}'), ToolCall("call_2", "clock", "")],
            finish="tool_calls")], 3, 4, 2,
)  # fmt: skip


def events() -> list[dict[str, Any]]:
    narration = converse.Narration()
    told = [narration.start()]
    for delta in DELTAS:
        told += narration.tell(delta)
    return told + narration.end(LAST, 7)


def test_blocks_are_opened_and_closed_in_order() -> None:
    told = events()
    opened = [e["contentBlockStart"]["contentBlockIndex"] for e in told if "contentBlockStart" in e]
    closed = [e["contentBlockStop"]["contentBlockIndex"] for e in told if "contentBlockStop" in e]
    assert (opened, closed) == ([2, 3], [0, 1, 2, 3])
    assert [next(iter(e)) for e in told[-2:]] == ["messageStop", "metadata"]


def test_claude_says_the_same_whole_and_streamed() -> None:
    head = claude.head("msg_1", "m")
    whole = claude.whole(head, converse.result(COMPLETION, None, 7))
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    writer = claude.Events(head)
    said = [one for event in events() for one in writer.write(event)]
    kinds = [one["type"] for one in said]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    fragments = "".join(one["delta"].get("partial_json", "") for one in said if one["type"] == "content_block_delta")
    assert json.loads(fragments) == whole["content"][2]["input"]
    assert (
        said[-2]["usage"] == whole["usage"] and said[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    )


def test_chat_says_the_same_whole_and_streamed() -> None:
    whole = chat.whole(chat.head("c", 1, "m", stream=False), converse.result(COMPLETION, None, 7))
    message = whole["choices"][0]["message"]
    writer = chat.Chunks(chat.head("c", 1, "m", stream=True), usage=True)
    chunks = [one for event in events() for one in writer.write(event)]
    deltas = [one["choices"][0]["delta"] for one in chunks if one["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"] == "so: ö"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    calls: dict[int, str] = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
        calls[call["index"]] = calls.get(call["index"], "") + call["function"].get("arguments", "")
    assert json.loads(calls[0]) == json.loads(message["tool_calls"][0]["function"]["arguments"])
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_responses_say_the_same_whole_and_streamed() -> None:
    asked = responses.read_response({"model": "m", "input": "x"})
    head = responses.head("resp_1", 1, asked, {})
    whole = responses.whole(head, converse.result(COMPLETION, None, 7))
    writer = responses.Events(head)
    said = [one for event in events() for one in writer.write(event)]
    assert [one["sequence_number"] for one in said] == list(range(len(said)))
    final = said[-1]["response"]
    assert said[-1]["type"] == "response.completed" and final["usage"] == whole["usage"]
    assert [item["type"] for item in final["output"]] == [item["type"] for item in whole["output"]]
    assert final["output"][1]["content"] == whole["output"][1]["content"]
    assert json.loads(final["output"][2]["arguments"]) == json.loads(whole["output"][2]["arguments"])


@pytest.mark.parametrize(
    ("body", "family"),
    [
        ({"anthropic_version": "x", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}, "claude"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "nova"),
        ({"messages": [{"role": "user", "content": "a"}]}, "openai"),
        ({"prompt": "a", "max_gen_len": 3}, "llama"),
        ({"prompt": "a", "max_tokens": 3}, "mistral"),
        ({"inputText": "a", "textGenerationConfig": {}}, "titan"),
        ({"inputText": "a", "normalize": True}, "titan-embed"),
        ({"texts": ["a"], "input_type": "search_query"}, "cohere"),
    ],
)
def test_a_body_tells_its_family(body: Any, family: str) -> None:
    asked = native.read(json.dumps(body).encode(), "m")
    assert asked.family.name == family
    assert sum(one is not None for one in (asked.members, asked.generation, asked.embedding)) == 1
    with pytest.raises(ValidationFault):
        native.read(json.dumps({**body, "surprise": 1}).encode(), "m")


def test_a_model_bound_to_a_family_reads_no_other() -> None:
    with pytest.raises(ValidationFault):
        native.read(b'{"prompt": "a", "max_gen_len": 3}', "m", ["claude"])
    assert native.read(b'{"inputText": "a"}', "m", embeds=True).embedding is not None


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": [{"toolResult": {"toolUseId": "x", "content": [{"text": "y"}]}}]}]},
        {"messages": [{"role": "user", "content": [{"document": {"name": "d", "format": "pdf", "source": {}}}]}]},
        {"toolConfig": {"tools": [], "toolChoice": {"tool": {"name": "none"}}}},
        {"outputConfig": {"textFormat": {"structure": {"jsonSchema": {"schema": "["}}}}},
        {"additionalModelRequestFields": {"n": 0}},
        {"additionalModelRequestFields": {"seed": True}},
        {"additionalModelRequestFields": {"logit_bias": {"x": 1}}},
        {"additionalModelRequestFields": {"frequency_penalty": 3}},
        {"promptVariables": {"a": {"text": "b"}}},
    ],
)
def test_what_cannot_be_done_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationFault):
        converse.generation({**from_converse(), **change}, "m")


def test_text_documents_are_read_and_tools_results_say_when_they_failed() -> None:
    document = {"name": "note", "format": "md", "source": {"bytes": "naïve".encode()}}
    use = {"toolUse": {"toolUseId": "a", "name": "f", "input": {}}}
    failed = {"toolResult": {"toolUseId": "a", "content": [{"json": {"a": 1}}], "status": "error"}}
    turns = [
        {"role": "user", "content": [{"document": document}, {"text": "sum it up"}]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [failed]},
    ]
    wanted = converse.generation({"messages": turns}, "m")
    assert wanted.messages is not None
    assert "naïve" in wanted.messages[0]["content"] and wanted.messages[-1]["content"] == 'Error: {"a": 1}'


def test_asking_for_nothing_needs_no_feature() -> None:
    Generation(messages=[{"role": "user", "content": "a"}]).check("m", [])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "delta", "content", "usage", "message", "tool_calls", "finish_reason", "index",
                         "function", "logprobs", "text", "prompt_tokens", "id", "name", "data", "embedding"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(ANYTHING)
def test_whatever_an_engine_answers_is_an_answer_or_malformed(answer: Any) -> None:
    for read in (upstream.completion, upstream.StreamReader().read, lambda value: upstream.vectors(value, 1)):
        try:
            read(answer)
        except upstream.Malformed:
            pass


@given(
    st.dictionaries(st.sampled_from(["model", "messages", "input", "max_tokens", "tools", "prompt", "texts"]), ANYTHING)
)
def test_whatever_a_caller_sends_is_read_or_refused(body: Any) -> None:
    readers = (
        lambda: chat.members(chat.read_completion(body)),
        lambda: claude.members(claude.read_message(body, claude.OVER_HTTP)),
        lambda: responses.members(responses.read_response(body)),
        lambda: native.read(json.dumps(body).encode(), "m"),
    )
    for read in readers:
        try:
            read()
        except (ValidationFault, Unsupported):
            pass
