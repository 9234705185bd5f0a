"""An engine declared at one label on a running enclave: `honmaru engine`, `honmaru chat`, boto3 at two labels."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

MODEL = "acme.echo"
ASK = [{"role": "user", "content": [{"text": "who may read?"}]}]
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}


class Echo(BaseHTTPRequestHandler):
    """A model server that says what it was asked, calls the first tool it is shown, and embeds by length."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        if self.path.endswith("/embeddings"):
            data = [{"index": at, "embedding": [float(len(text)), 1.0, 2.0]} for at, text in enumerate(body["input"])]
            self._send("application/json", json.dumps({"data": data, "usage": {"prompt_tokens": 4}}).encode())
            return
        message: dict[str, Any] = {"content": f"you said: {body['messages'][-1]['content']}"}
        finish = "stop"
        if body.get("tools") and body["messages"][-1]["role"] == "user":
            function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"place": "keep"}'}
            message = {"content": None, "tool_calls": [{"index": 0, "id": "call_1", "function": function}]}
            finish = "tool_calls"
        if not body.get("stream"):
            answer = {"choices": [{"message": message, "finish_reason": finish}], "usage": USAGE}
            self._send("application/json", json.dumps(answer).encode())
            return
        chunks = [
            {"choices": [{"delta": {"reasoning_content": "hm", **({} if finish == "stop" else message)}}]},
            {"choices": [{"delta": {} if finish != "stop" else message, "finish_reason": finish}]},
            {"choices": [], "usage": USAGE},
        ]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


def honmaru(live: LiveEnclave, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "honmaru", *arguments, "--data", str(live.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def live(enclave: LiveEnclave) -> Iterator[LiveEnclave]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    features = [word for name in ("tools", "embeddings", "reasoning") for word in ("--feature", name)]
    done = honmaru(enclave, "engine", "add", MODEL, "--url", url, "--label", "SECRET", *features)
    assert done.returncode == 0, done.stderr
    yield enclave
    honmaru(enclave, "engine", "remove", MODEL)
    server.shutdown()


def test_the_declared_model_is_there_for_its_label_only(live: LiveEnclave) -> None:
    high, low = (live.client("bedrock", *who) for who in (("alice", "SECRET"), ("carol", "UNCLASSIFIED")))
    assert MODEL in [one["modelId"] for one in high.list_foundation_models()["modelSummaries"]]
    assert high.get_foundation_model(modelIdentifier=MODEL)["modelDetails"]["modelId"] == MODEL
    assert MODEL not in [one["modelId"] for one in low.list_foundation_models()["modelSummaries"]]

    def refusal(client: Any, model: str) -> str:
        with pytest.raises(ClientError) as caught:
            client.converse(modelId=model, messages=ASK)
        return str(caught.value).replace(model, "X")

    runtime = live.client("bedrock-runtime", "carol", "UNCLASSIFIED")
    assert refusal(runtime, MODEL) == refusal(runtime, "acme.none"), "what is above does not exist"
    with pytest.raises(ClientError, match="ResourceNotFound"):
        low.get_foundation_model(modelIdentifier=MODEL)


def test_converse_tools_reasoning_and_cached_tokens(live: LiveEnclave) -> None:
    runtime = live.client("bedrock-runtime", "alice", "SECRET")
    answer = runtime.converse(modelId=MODEL, messages=ASK)
    assert answer["output"]["message"]["content"] == [{"text": "you said: who may read?"}]
    assert answer["usage"] == {"inputTokens": 5, "outputTokens": 2, "totalTokens": 7, "cacheReadInputTokens": 3}
    spec = {"name": "weather", "inputSchema": {"json": {"type": "object"}}}
    config = {"tools": [{"toolSpec": spec}], "toolChoice": {"any": {}}}
    called = runtime.converse(modelId=MODEL, messages=ASK, toolConfig=config)
    (block,) = called["output"]["message"]["content"]
    assert called["stopReason"] == "tool_use" and block["toolUse"]["input"] == {"place": "keep"}
    result = {"toolUseId": "call_1", "content": [{"json": {"sky": "clear"}}], "status": "success"}
    turns = [*ASK, called["output"]["message"], {"role": "user", "content": [{"toolResult": result}]}]
    told = runtime.converse(modelId=MODEL, messages=turns, toolConfig={"tools": config["tools"]})
    assert told["output"]["message"]["content"][0]["text"] == 'you said: {"sky": "clear"}'
    events = list(runtime.converse_stream(modelId=MODEL, messages=ASK)["stream"])
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    assert deltas[0]["reasoningContent"]["text"] == "hm" and deltas[1]["text"].startswith("you said")
    with pytest.raises(ClientError, match=rf"structured output.*{MODEL}"):
        form = {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{}"}}}
        runtime.converse(modelId=MODEL, messages=ASK, outputConfig={"textFormat": form})


def test_embeddings_in_two_bodies(live: LiveEnclave) -> None:
    runtime = live.client("bedrock-runtime", "alice", "SECRET")
    body = json.dumps({"texts": ["a", "bb"], "input_type": "search_query"})
    found = json.loads(runtime.invoke_model(modelId=MODEL, body=body)["body"].read())
    assert len(found["embeddings"]) == 2 and abs(sum(x * x for x in found["embeddings"][0]) - 1) < 1e-9
    one = json.dumps({"inputText": "a", "dimensions": 2, "embeddingTypes": ["float", "binary"]})
    found = json.loads(runtime.invoke_model(modelId=MODEL, body=one)["body"].read())
    assert len(found["embedding"]) == 2 and found["inputTextTokenCount"] == 4


def test_chat_in_the_terminal(live: LiveEnclave) -> None:
    done = honmaru(live, "chat", MODEL, "--user", "alice", "--label", "SECRET", "--once", "hello")
    assert done.returncode == 0 and done.stdout.strip() == "you said: hello", done.stderr
    assert "SECRET" in done.stderr and "ledger entry" in done.stderr and "/s" in done.stderr
    refused = honmaru(live, "chat", MODEL, "--user", "carol", "--once", "hello")
    assert refused.returncode == 1 and "Could not resolve the model" in refused.stderr


def test_declarations_with_mistakes_are_refused(live: LiveEnclave) -> None:
    done = honmaru(live, "engine", "add", "nodot", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1 and "provider.model" in done.stderr
    assert MODEL in honmaru(live, "engine", "list").stdout


def test_a_managed_prompt_is_rendered_versioned_and_labelled(live: LiveEnclave) -> None:
    agent = live.client("bedrock-agent", "alice", "SECRET")
    text = {"text": "say {{word}} twice", "inputVariables": [{"name": "word"}]}
    variant = {"name": "v", "templateType": "TEXT", "templateConfiguration": {"text": text}, "modelId": MODEL}
    variant["inferenceConfiguration"] = {"text": {"maxTokens": 7, "temperature": 0.5}}
    made = agent.create_prompt(name="twice", variants=[variant], defaultVariant="v")
    first = agent.create_prompt_version(promptIdentifier=made["id"])
    assert first["version"] == "1" and first["arn"] == f"{made['arn']}:1"
    text["text"] = "never mind {{word}}"
    agent.update_prompt(promptIdentifier=made["id"], name="once", variants=[variant])
    runtime = live.client("bedrock-runtime", "alice", "SECRET")

    def said(arn: str, **more: Any) -> str:
        answer = runtime.converse(modelId=arn, promptVariables={"word": {"text": "keep"}}, **more)
        return str(answer["output"]["message"]["content"][0]["text"])

    assert said(first["arn"]) == "you said: say keep twice" and Echo.asked[-1]["max_tokens"] == 7
    assert said(made["arn"]) == "you said: never mind keep"
    for more in ({"inferenceConfig": {"maxTokens": 3}}, {"promptVariables": {}}):
        with pytest.raises(ClientError, match="ValidationException"):
            runtime.converse(**{"modelId": made["arn"], "promptVariables": {"word": {"text": "x"}}, **more})
    assert [one["name"] for one in agent.list_prompts()["promptSummaries"]] == ["once"]
    versions = agent.list_prompts(promptIdentifier=made["id"])["promptSummaries"]
    assert sorted(one["version"] for one in versions) == ["1", "DRAFT"]
    low = live.client("bedrock-agent", "carol", "UNCLASSIFIED")
    assert low.list_prompts()["promptSummaries"] == []
    with pytest.raises(ClientError, match="ResourceNotFound"):
        low.get_prompt(promptIdentifier=made["id"])
    agent.delete_prompt(promptIdentifier=made["id"])
    with pytest.raises(ClientError, match="ResourceNotFound"):
        said(first["arn"])


def test_invocations_are_logged_at_their_own_label(live: LiveEnclave) -> None:
    iam, s3, logs, bedrock, runtime = (
        live.client(name, "alice", "SECRET") for name in ("iam", "s3", "logs", "bedrock", "bedrock-runtime")
    )
    trust = {"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="invocations", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    s3.create_bucket(Bucket="invocations")
    cloud = {"logGroupName": "/invocations", "roleArn": role}
    config = {"cloudWatchConfig": cloud, "s3Config": {"bucketName": "invocations", "keyPrefix": "all"}}
    bedrock.put_model_invocation_logging_configuration(loggingConfig=config)
    try:
        kept = bedrock.get_model_invocation_logging_configuration()["loggingConfig"]
        assert kept["cloudWatchConfig"] == cloud and kept["s3Config"]["keyPrefix"] == "all"
        low = live.client("bedrock", "carol", "UNCLASSIFIED")
        assert "loggingConfig" not in low.get_model_invocation_logging_configuration()
        time.sleep(2.1)  # configurations are looked up every two seconds
        asked = {"modelId": MODEL, "messages": ASK, "requestMetadata": {"team": "red"}}
        request_id = runtime.converse(**asked)["ResponseMetadata"]["RequestId"]
        list(runtime.converse_stream(**asked)["stream"])
        deadline = time.monotonic() + 20
        while True:
            try:
                events = logs.filter_log_events(logGroupName="/invocations")["events"]
            except ClientError:
                events = []
            if len(events) == 2:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        entries = {entry["requestId"]: entry for entry in (json.loads(event["message"]) for event in events)}
        entry = entries[request_id]
        assert entry["output"]["outputBodyJson"]["output"]["message"]["content"] == [
            {"text": "you said: who may read?"}
        ]
        assert entry["input"]["inputTokenCount"] == 5 and entry["requestMetadata"] == {"team": "red"}
        found = s3.list_objects_v2(Bucket="invocations", Prefix="all/AWSLogs/")["Contents"]
        assert len(found) == 2 and all(one["Key"].endswith(".json.gz") for one in found)
        groups = live.client("logs", "carol", "UNCLASSIFIED").describe_log_groups(logGroupNamePrefix="/invocations")
        assert groups["logGroups"] == []
    finally:
        bedrock.delete_model_invocation_logging_configuration()
