"""The matrix of SDKs × dialects × {plain, stream, tools, JSON schema, errors, cancellation}, one SDK a run.

Runs in the environment of the clients (.venv-peers/bedrock-clients) as `python sdk_scenarios.py SDK`; the enclave is
in the variables of `honmaru env`, the target in HONMARU_TARGET: {"model", "features", "embedding"}. Prints one line
`CELL {"cell": name, "problem": ""}` for each cell. A feature that the target's profile lacks must be refused by a
clear error that names model and feature: then that is what the cell checks.
"""

# ruff: noqa: PT017 - pytest is not in this environment

import json
import os
import sys
import traceback

TARGET = json.loads(os.environ["HONMARU_TARGET"])
MODEL, FEATURES, EMBEDDING = TARGET["model"], set(TARGET["features"]), TARGET.get("embedding")
PROMPT = "who may read?"
LIMIT = 24
TOOL = {"type": "object", "properties": {"place": {"type": "string", "enum": ["keep", "gate"]}}, "required": ["place"]}
SCHEMA = {
    "type": "object",
    "properties": {"who": {"type": "string", "enum": ["alice", "bob"]}},
    "required": ["who"],
    "additionalProperties": False,
}
STRUCTURED = 120
"""Tokens for answers that a grammar shapes: an untrained model wanders within it."""
CELLS = {}


def cell(sdk):
    def note(function):
        CELLS.setdefault(sdk, []).append(function)
        return function

    return note


def refused(feature, call, *errors):
    """The clear refusal of a feature that the model does not have."""
    try:
        call()
    except errors as error:
        text = str(error)
        assert MODEL.split("/")[-1] in text or "odel" in text, text
        assert "support" in text, text
        return
    raise AssertionError(f"{feature} was not refused")


# boto3


def boto(name="bedrock-runtime"):
    import boto3

    return boto3.client(name, config=__import__("botocore.config").config.Config(retries={"total_max_attempts": 1}))


def ask(**more):
    return {
        "modelId": MODEL,
        "messages": [{"role": "user", "content": [{"text": PROMPT}]}],
        "inferenceConfig": {"maxTokens": LIMIT, "temperature": 0},
        **more,
    }


@cell("boto3")
def converse_plain():
    answer = boto().converse(**ask(system=[{"text": "be brief"}], requestMetadata={"team": "a"}))
    assert answer["output"]["message"]["content"][0]["text"] is not None
    assert answer["usage"]["totalTokens"] == answer["usage"]["inputTokens"] + answer["usage"]["outputTokens"] > 0
    assert answer["stopReason"] in ("max_tokens", "end_turn")


@cell("boto3")
def converse_stream():
    whole = boto().converse(**ask())
    events = list(boto().converse_stream(**ask())["stream"])
    kinds = [next(iter(event)) for event in events]
    assert kinds[0] == "messageStart" and kinds[-3:] == ["contentBlockStop", "messageStop", "metadata"]
    text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
    assert text == whole["output"]["message"]["content"][0]["text"], (text, whole)


def tools_of_converse(choice):
    spec = {"name": "weather", "description": "of a place", "inputSchema": {"json": TOOL}}
    config = {"tools": [{"toolSpec": spec}], "toolChoice": choice}
    return ask(toolConfig=config, inferenceConfig={"maxTokens": STRUCTURED, "temperature": 0.9})


@cell("boto3")
def converse_tools():
    from botocore.exceptions import ClientError

    if "tools" not in FEATURES:
        return refused("tools", lambda: boto().converse(**tools_of_converse({"any": {}})), ClientError)
    for attempt in range(8):
        request = tools_of_converse({"tool": {"name": "weather"}})
        answer = boto().converse(**request, additionalModelRequestFields={"seed": attempt})
        if answer["stopReason"] == "tool_use":
            break
    (block,) = [one for one in answer["output"]["message"]["content"] if "toolUse" in one]
    assert block["toolUse"]["name"] == "weather" and block["toolUse"]["input"]["place"] in ("keep", "gate")
    result = {"toolResult": {"toolUseId": block["toolUse"]["toolUseId"], "content": [{"text": "rain"}]}}
    turns = [*request["messages"], {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    assert boto().converse(**{**ask(), "messages": turns, "toolConfig": {"tools": request["toolConfig"]["tools"]}})
    return None


@cell("boto3")
def converse_stream_tools():
    if "tools" not in FEATURES:
        return
    for attempt in range(8):
        request = tools_of_converse({"any": {}})
        events = list(boto().converse_stream(**request, additionalModelRequestFields={"seed": attempt})["stream"])
        if [event for event in events if event.get("messageStop", {}).get("stopReason") == "tool_use"]:
            break
    (start,) = [event["contentBlockStart"]["start"]["toolUse"] for event in events if "contentBlockStart" in event]
    pieces = [e["contentBlockDelta"]["delta"].get("toolUse", {}) for e in events if "contentBlockDelta" in e]
    assert start["name"] == "weather"
    assert json.loads("".join(piece.get("input", "") for piece in pieces))["place"] in ("keep", "gate")


@cell("boto3")
def converse_schema():
    from botocore.exceptions import ClientError

    def structured(seed):
        form = {"type": "json_schema", "structure": {"jsonSchema": {"schema": json.dumps(SCHEMA), "name": "who"}}}
        return boto().converse(
            **ask(outputConfig={"textFormat": form}, inferenceConfig={"maxTokens": STRUCTURED, "temperature": 0.9}),
            additionalModelRequestFields={"seed": seed},
        )

    if "json_schema" not in FEATURES:
        return refused("json_schema", lambda: structured(0), ClientError)
    for attempt in range(8):
        answer = structured(attempt)
        if answer["stopReason"] == "end_turn":
            break
    assert json.loads(answer["output"]["message"]["content"][0]["text"])["who"] in ("alice", "bob")
    return None


@cell("boto3")
def converse_errors():
    from botocore.exceptions import ClientError

    for change, code in (
        ({"modelId": "no.such-model"}, "ResourceNotFoundException"),
        ({"messages": []}, "ValidationException"),
        ({"additionalModelRequestFields": {"mirostat": 2}}, "ValidationException"),
        ({"guardrailConfig": {"guardrailIdentifier": "abc", "guardrailVersion": "1"}}, "ValidationException"),
        ({"inferenceConfig": {"temperature": 7.0}}, None),
    ):
        try:
            boto().converse(**{**ask(), **change})
        except ClientError as error:
            assert code is None or error.response["Error"]["Code"] == code, error
        else:
            raise AssertionError(change)


@cell("boto3")
def converse_cancellation():
    for _ in range(3):
        stream = boto().converse_stream(**ask(inferenceConfig={"maxTokens": 200, "temperature": 0.9}))["stream"]
        next(iter(stream))
        stream.close()
    converse_plain()


BODIES = {
    "claude": {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": LIMIT,
        "messages": [{"role": "user", "content": PROMPT}],
    },
    "nova": {
        "schemaVersion": "messages-v1",
        "messages": [{"role": "user", "content": [{"text": PROMPT}]}],
        "inferenceConfig": {"maxTokens": LIMIT},
    },
    "openai": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": LIMIT},
    "llama": {"prompt": PROMPT, "max_gen_len": LIMIT, "temperature": 0.5},
    "titan": {"inputText": PROMPT, "textGenerationConfig": {"maxTokenCount": LIMIT}},
    "mistral": {"prompt": PROMPT, "max_tokens": LIMIT, "stop": ["@@@"]},
}


def said(family, body):
    return {
        "claude": lambda: body["content"][0]["text"] if body["content"] else "",
        "nova": lambda: body["output"]["message"]["content"][0]["text"],
        "openai": lambda: body["choices"][0]["message"]["content"],
        "llama": lambda: body["generation"],
        "titan": lambda: body["results"][0]["outputText"],
        "mistral": lambda: body["outputs"][0]["text"],
    }[family]()


def native(family):
    def plain():
        reply = boto().invoke_model(modelId=MODEL, body=json.dumps(BODIES[family]))
        assert isinstance(said(family, json.loads(reply["body"].read())), str)
        assert int(reply["ResponseMetadata"]["HTTPHeaders"]["x-amzn-bedrock-output-token-count"]) > 0

    def stream():
        reply = boto().invoke_model_with_response_stream(modelId=MODEL, body=json.dumps(BODIES[family]))
        chunks = [json.loads(event["chunk"]["bytes"]) for event in reply["body"]]
        assert chunks[-1]["amazon-bedrock-invocationMetrics"]["outputTokenCount"] > 0, chunks[-1]
        assert len(chunks) > 1

    plain.__name__, stream.__name__ = f"invoke_{family}", f"invoke_{family}_stream"
    cell("boto3")(plain)
    cell("boto3")(stream)


for _family in BODIES:
    native(_family)


@cell("boto3")
def invoke_errors():
    from botocore.exceptions import ClientError

    for body in (b"{", b"[]", b'{"nothing": 1}', json.dumps(BODIES["claude"] | {"max_tokens": "x"}).encode()):
        try:
            boto().invoke_model(modelId=MODEL, body=body)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ValidationException", error
        else:
            raise AssertionError(body)


@cell("boto3")
def invoke_embeddings():
    if EMBEDDING is None:
        return
    for body in ({"inputText": PROMPT, "dimensions": 16}, {"texts": [PROMPT, "x"], "input_type": "search_query"}):
        answer = json.loads(boto().invoke_model(modelId=EMBEDDING, body=json.dumps(body))["body"].read())
        vectors = answer["embeddings"] if "texts" in body else [answer["embedding"]]
        assert all(abs(sum(value * value for value in vector) - 1) < 1e-3 for vector in vectors)
    assert len(answer["embeddings"]) == 2


@cell("boto3")
def count_tokens():
    counted = boto().count_tokens(modelId=MODEL, input={"converse": {"messages": ask()["messages"]}})["inputTokens"]
    assert counted == boto().converse(**ask())["usage"]["inputTokens"]


# anthropic


def anthropic_clients():
    import anthropic

    region = os.environ["AWS_REGION"]
    made = {
        "messages": anthropic.Anthropic(max_retries=0),
        "bedrock": anthropic.AnthropicBedrock(
            aws_region=region, base_url=os.environ["AWS_ENDPOINT_URL"], max_retries=0,
            aws_access_key=os.environ["AWS_ACCESS_KEY_ID"], aws_secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        ),
    }  # fmt: skip
    if hasattr(anthropic, "AnthropicBedrockMantle"):
        made["mantle"] = anthropic.AnthropicBedrockMantle(
            aws_region=region, max_retries=0, aws_access_key=os.environ["AWS_ACCESS_KEY_ID"],
            aws_secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
    return made


def message(**more):
    # the newest client has no argument for the temperature, which these models take
    extra = {"temperature": more.pop("temperature", 0), **more.pop("extra_body", {})}
    asked = {"model": MODEL, "max_tokens": LIMIT, "messages": [{"role": "user", "content": PROMPT}]}
    return {**asked, **more, "extra_body": extra}


@cell("anthropic")
def messages_plain():
    texts = set()
    for client in anthropic_clients().values():
        answer = client.messages.create(**message(system="be brief"))
        assert answer.usage.input_tokens > 0 and answer.stop_reason in ("max_tokens", "end_turn")
        texts.add(answer.content[0].text)
    assert len(texts) == 1, texts


@cell("anthropic")
def messages_stream():
    for client in anthropic_clients().values():
        whole = client.messages.create(**message())
        with client.messages.stream(**message()) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[0].text == whole.content[0].text
        assert final.usage.input_tokens == whole.usage.input_tokens and final.usage.output_tokens > 0
        # An engine that counts nothing in streams is counted by its pieces, of which some hold several tokens.
        exact = "stream_usage" in FEATURES
        assert not exact or final.usage.output_tokens == whole.usage.output_tokens


def anthropic_tool(choice, **more):
    tool = {"name": "weather", "description": "of a place", "input_schema": TOOL}
    return message(**{"tools": [tool], "tool_choice": choice, "max_tokens": STRUCTURED, "temperature": 0.9, **more})


@cell("anthropic")
def messages_tools():
    import anthropic

    for client in anthropic_clients().values():
        request = anthropic_tool({"type": "tool", "name": "weather"})
        if "tools" not in FEATURES:
            refused("tools", lambda c=client, r=request: c.messages.create(**r), anthropic.APIStatusError)
            continue
        for _ in range(8):
            answer = client.messages.create(**request)
            with client.messages.stream(**request) as stream:
                streamed = stream.get_final_message()
            if answer.stop_reason == streamed.stop_reason == "tool_use":
                break
        for one in (answer, streamed):
            (use,) = [block for block in one.content if block.type == "tool_use"]
            assert use.name == "weather" and use.input["place"] in ("keep", "gate")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
        turns = [
            *request["messages"],
            {"role": "assistant", "content": [use.model_dump(include={"type", "id", "name", "input"})]},
            {"role": "user", "content": [result]},
        ]
        assert client.messages.create(**message(messages=turns, tools=request["tools"])).usage.output_tokens > 0


@cell("anthropic")
def messages_schema():
    import anthropic

    client = anthropic_clients()["messages"]
    form = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    request = message(max_tokens=STRUCTURED, temperature=0.9, extra_body=form)
    if "json_schema" not in FEATURES:
        return refused("json_schema", lambda: client.messages.create(**request), anthropic.APIStatusError)
    for _ in range(8):
        answer = client.messages.create(**request)
        if answer.stop_reason == "end_turn":
            break
    assert json.loads(answer.content[0].text)["who"] in ("alice", "bob")
    return None


@cell("anthropic")
def messages_errors():
    import anthropic

    for name, client in anthropic_clients().items():
        for change, kind in (
            ({"model": "no.such-model"}, anthropic.NotFoundError),
            ({"extra_body": {"mystery": 1}}, anthropic.BadRequestError),
            ({"messages": []}, anthropic.BadRequestError),
        ):
            try:
                client.messages.create(**message(**change))
            except kind:
                continue
            raise AssertionError((name, change))
    try:
        anthropic.Anthropic(api_key="wrong", max_retries=0).messages.create(**message())
    except anthropic.AuthenticationError:
        return
    raise AssertionError("a wrong key")


@cell("anthropic")
def messages_cancellation():
    for client in anthropic_clients().values():
        with client.messages.stream(**message(max_tokens=200, temperature=0.9)) as stream:
            next(iter(stream))
        assert client.messages.create(**message()).usage.output_tokens > 0


@cell("anthropic")
def messages_count_and_models():
    clients = anthropic_clients()
    for name in ("messages", "mantle"):
        if name in clients:
            counted = clients[name].messages.count_tokens(model=MODEL, messages=message()["messages"])
            assert counted.input_tokens == clients["messages"].messages.create(**message()).usage.input_tokens
    assert MODEL in [model.id for model in clients["messages"].models.list()]
    assert clients["messages"].models.retrieve(MODEL).id == MODEL


# openai


def openai_client(**more):
    import openai

    return openai.OpenAI(max_retries=0, **more)


def chat(**more):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_completion_tokens": LIMIT,
        "temperature": 0,
        **more,
    }


@cell("openai")
def chat_plain():
    answer = openai_client().chat.completions.create(**chat(user="u", metadata={"a": "b"}))
    assert answer.choices[0].finish_reason in ("length", "stop") and answer.usage.prompt_tokens > 0


@cell("openai")
def chat_stream():
    whole = openai_client().chat.completions.create(**chat())
    chunks = list(openai_client().chat.completions.create(**chat(stream=True, stream_options={"include_usage": True})))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens >= chunks[-1].usage.completion_tokens > 0


def openai_tool():
    return [{"type": "function", "function": {"name": "weather", "description": "of a place", "parameters": TOOL}}]


@cell("openai")
def chat_tools():
    import openai

    forced = {"type": "function", "function": {"name": "weather"}}
    request = chat(tools=openai_tool(), tool_choice=forced, max_completion_tokens=STRUCTURED, temperature=0.9)
    client = openai_client()
    if "tools" not in FEATURES:
        return refused("tools", lambda: client.chat.completions.create(**request), openai.APIStatusError)
    for attempt in range(8):
        answer = client.chat.completions.create(**request, seed=attempt)
        if answer.choices[0].finish_reason == "tool_calls":
            break
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["place"] in ("keep", "gate")
    for attempt in range(8):
        chunks = list(client.chat.completions.create(**request, seed=attempt, stream=True))
        calls = [one for c in chunks if c.choices for one in c.choices[0].delta.tool_calls or ()]
        if calls and chunks[-1].choices[0].finish_reason == "tool_calls":
            break
    assert json.loads("".join(one.function.arguments or "" for one in calls))["place"] in ("keep", "gate")
    turns = [
        *request["messages"],
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    assert client.chat.completions.create(**chat(messages=turns, tools=openai_tool())).usage.completion_tokens > 0
    return None


@cell("openai")
def chat_schema():
    import openai

    form = {"type": "json_schema", "json_schema": {"name": "who", "schema": SCHEMA, "strict": True}}
    request = chat(response_format=form, max_completion_tokens=STRUCTURED, temperature=0.9)
    client = openai_client()
    if "json_schema" not in FEATURES:
        return refused("json_schema", lambda: client.chat.completions.create(**request), openai.APIStatusError)
    for attempt in range(8):
        answer = client.chat.completions.create(**request, seed=attempt)
        if answer.choices[0].finish_reason == "stop":
            break
    assert json.loads(answer.choices[0].message.content)["who"] in ("alice", "bob")
    return None


@cell("openai")
def chat_logprobs_and_n():
    import openai

    client = openai_client()
    for feature, more in (("logprobs", {"logprobs": True}), ("n", {"n": 2, "temperature": 0.9})):
        request = chat(**more)
        if feature not in FEATURES:
            refused(feature, lambda r=request: client.chat.completions.create(**r), openai.APIStatusError)
        elif feature == "n":
            assert len(client.chat.completions.create(**request).choices) == 2
        else:
            answer = client.chat.completions.create(**request)
            assert answer.choices[0].logprobs.content[0].logprob <= 0


@cell("openai")
def chat_errors():
    import openai

    for change, kind in (
        ({"model": "no.such-model"}, openai.NotFoundError),
        ({"extra_body": {"mystery": 1}}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"store": True}, openai.BadRequestError),
    ):
        try:
            openai_client().chat.completions.create(**chat(**change))
        except kind:
            continue
        raise AssertionError(change)
    try:
        openai_client(api_key="wrong").chat.completions.create(**chat())
    except openai.AuthenticationError:
        return
    raise AssertionError("a wrong key")


@cell("openai")
def chat_cancellation():
    for _ in range(3):
        stream = openai_client().chat.completions.create(
            **chat(stream=True, max_completion_tokens=200, temperature=0.9)
        )
        next(iter(stream))
        stream.close()
    chat_plain()


def response(**more):
    return {"model": MODEL, "input": PROMPT, "max_output_tokens": LIMIT, "temperature": 0, **more}


@cell("openai")
def responses_plain_and_stream():
    client = openai_client()
    whole = client.responses.create(**response(instructions="be brief"))
    assert whole.status in ("completed", "incomplete") and whole.usage.total_tokens > 0
    with client.responses.stream(**response(instructions="be brief")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response() if "response.completed" in kinds else None
    assert kinds[:2] == ["response.created", "response.in_progress"], kinds
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert final is None or final.output_text == whole.output_text


@cell("openai")
def responses_tools_and_schema():
    import openai

    client = openai_client()
    tool = {"type": "function", "name": "weather", "parameters": TOOL, "strict": False}
    forced = response(tools=[tool], tool_choice="required", max_output_tokens=STRUCTURED, temperature=0.9)
    form = {"format": {"type": "json_schema", "name": "who", "schema": SCHEMA, "strict": True}}
    shaped = response(text=form, max_output_tokens=STRUCTURED, temperature=0.9)
    if "tools" not in FEATURES:
        refused("tools", lambda: client.responses.create(**forced), openai.APIStatusError)
    else:
        for _ in range(8):
            answer = client.responses.create(**forced)
            if answer.output[0].type == "function_call":
                break
        call = answer.output[0]
        assert call.name == "weather" and json.loads(call.arguments)["place"] in ("keep", "gate")
        turns = [
            {"role": "user", "content": PROMPT},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        ]
        assert client.responses.create(**response(input=turns, tools=[tool])).usage.output_tokens > 0
    if "json_schema" not in FEATURES:
        refused("json_schema", lambda: client.responses.create(**shaped), openai.APIStatusError)
    else:
        for _ in range(8):
            answer = client.responses.create(**shaped)
            if answer.status == "completed":
                break
        assert json.loads(answer.output_text)["who"] in ("alice", "bob")


@cell("openai")
def models_and_embeddings():
    client = openai_client()
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    if EMBEDDING is not None:
        answer = client.embeddings.create(model=EMBEDDING, input=[PROMPT, "the keep"])
        assert len(answer.data) == 2 and answer.usage.prompt_tokens > 0
        plain = client.embeddings.create(model=EMBEDDING, input=PROMPT, encoding_format="float", dimensions=8)
        assert len(plain.data[0].embedding) == 8


# Frameworks


def langchain(**more):
    from langchain_aws import ChatBedrockConverse

    return ChatBedrockConverse(model=MODEL, provider="meta", client=boto(), max_tokens=LIMIT, temperature=0, **more)


@cell("langchain")
def langchain_plain_and_stream():
    answer = langchain().invoke(PROMPT)
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text if isinstance(chunk.text, str) else chunk.text() for chunk in langchain().stream(PROMPT))


@cell("langchain")
def langchain_tools():
    from botocore.exceptions import ClientError
    from langchain_core.tools import tool

    @tool
    def weather(place: str) -> str:
        """The weather of a place."""
        return place

    model = langchain(supports_tool_choice_values=("auto", "any", "tool"))
    bound = model.bind_tools([weather], tool_choice="any")
    if "tools" not in FEATURES:
        return refused("tools", lambda: bound.invoke(PROMPT), ClientError)
    bound.invoke(PROMPT)
    return None


@cell("langchain")
def langchain_errors():
    from langchain_aws import ChatBedrockConverse

    try:
        ChatBedrockConverse(model="no.such-model", provider="meta", client=boto()).invoke(PROMPT)
    except Exception as error:
        assert "no.such-model" in str(error), error
        return
    raise AssertionError("an unknown model")


@cell("langchain")
def langchain_embeddings():
    if EMBEDDING is None:
        return
    from langchain_aws import BedrockEmbeddings

    embeddings = BedrockEmbeddings(model_id=EMBEDDING, client=boto(), provider="amazon")
    assert len(embeddings.embed_documents([PROMPT, "x"])) == 2


@cell("strands")
def strands_agent():
    import boto3
    from strands import Agent
    from strands.models import BedrockModel

    model = BedrockModel(
        model_id=MODEL, max_tokens=LIMIT, temperature=0.1, boto_session=boto3.Session(),
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
    )  # fmt: skip
    try:
        result = Agent(model=model, callback_handler=None)(PROMPT)
    except Exception as error:
        assert "MaxTokens" in type(error).__name__, error
    else:
        assert result.stop_reason in ("end_turn", "max_tokens")


@cell("llamaindex")
def llamaindex_complete_and_stream():
    from llama_index.llms.bedrock_converse import BedrockConverse

    class Named(BedrockConverse):
        @property
        def metadata(self):
            from llama_index.core.base.llms.types import LLMMetadata

            return LLMMetadata(context_window=512, num_output=LIMIT, is_chat_model=True, model_name=MODEL)

    llm = Named(model=MODEL, max_tokens=LIMIT, client=boto(), region_name=os.environ["AWS_REGION"])
    assert llm.complete(PROMPT).text is not None
    assert list(llm.stream_complete(PROMPT))


def main():
    for function in CELLS[sys.argv[1]]:
        problem = ""
        try:
            function()
        except Exception:
            problem = traceback.format_exc(limit=-4)[-1500:]
        print("CELL", json.dumps({"cell": function.__name__, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
