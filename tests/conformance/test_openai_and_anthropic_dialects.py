"""The lines of `honmaru env` for OpenAI's and Anthropic's clients, over plain HTTP, on a live enclave and a real model.

What those clients need of an answer was read from openai 3.54 and anthropic 2.12.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.tiny_models import tiny_llama

NAME = "dialects-lm"
ASK = [{"role": "user", "content": "who may read?"}]
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": ["bedrock.amazonaws.com"]}, "Action": "sts:AssumeRole"}],
}


@pytest.fixture(scope="module")
def model(enclave: LiveEnclave, tmp_path_factory: pytest.TempPathFactory) -> str:
    """ARN of a tiny model, imported by alice at SECRET."""
    iam, s3, bedrock = (enclave.client(name, "alice", "SECRET") for name in ("iam", "s3", "bedrock"))
    role = iam.create_role(RoleName="dialects", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    policy = f"arn:{role.split(':')[1]}:iam::aws:policy/AdministratorAccess"
    iam.attach_role_policy(RoleName="dialects", PolicyArn=policy)
    s3.create_bucket(Bucket="dialects")
    for path in tiny_llama(tmp_path_factory.mktemp("tiny"), context=128).iterdir():
        s3.upload_file(str(path), "dialects", f"model/{path.name}")
    job = bedrock.create_model_import_job(
        jobName="dialects",
        importedModelName=NAME,
        roleArn=role,
        modelDataSource={"s3DataSource": {"s3Uri": "s3://dialects/model/"}},
    )["jobArn"]
    deadline = time.monotonic() + 60
    while (found := bedrock.get_model_import_job(jobIdentifier=job))["status"] == "InProgress":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found["status"] == "Completed", found.get("failureMessage")
    return str(found["importedModelArn"])


class Client:
    """What an SDK does with the variables of `honmaru env`."""

    def __init__(self, enclave: LiveEnclave, user: str, label: str) -> None:
        self.variables = enclave.variables(user, label)
        self.pool = urllib3.PoolManager(ca_certs=self.variables["SSL_CERT_FILE"], timeout=60, retries=False)

    def openai(self, method: str, path: str, body: Any = None) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {self.variables['OPENAI_API_KEY']}"}
        return self.pool.request(method, self.variables["OPENAI_BASE_URL"] + path, headers=headers, json=body)

    def anthropic(self, method: str, path: str, body: Any = None) -> urllib3.BaseHTTPResponse:
        headers = {"x-api-key": self.variables["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01"}
        return self.pool.request(method, self.variables["ANTHROPIC_BASE_URL"] + path, headers=headers, json=body)


@pytest.fixture(scope="module")
def alice(enclave: LiveEnclave, model: str) -> Iterator[Client]:
    client = Client(enclave, "alice", "SECRET")
    yield client
    client.pool.clear()


def good(reply: urllib3.BaseHTTPResponse) -> Any:
    assert reply.status == 200, reply.data
    assert reply.headers["x-honmaru-label"].startswith("SECRET")
    return reply.json()


def chunks(reply: urllib3.BaseHTTPResponse) -> list[Any]:
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
    *pieces, done, empty = reply.data.decode().split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


def events(reply: urllib3.BaseHTTPResponse) -> list[Any]:
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
    out = []
    for piece in reply.data.decode().split("\n\n")[:-1]:
        name, data = piece.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    return out


def test_openai_models(alice: Client, model: str) -> None:
    (listed,) = [one for one in good(alice.openai("GET", "/models"))["data"] if one["id"] == NAME]
    assert listed["object"] == "model" and abs(listed["created"] - time.time()) < 600
    assert good(alice.openai("GET", f"/models/{NAME}")) == listed
    by_arn = good(alice.openai("GET", f"/models/{model.replace('/', '%2F')}"))
    assert by_arn == listed | {"id": model}
    assert alice.openai("GET", "/models/none").status == 404


def test_openai_chat(alice: Client, model: str) -> None:
    asked = {"model": model, "messages": ASK, "max_completion_tokens": 6, "seed": 3, "temperature": 0}
    whole = good(alice.openai("POST", "/chat/completions", asked))
    assert whole["object"] == "chat.completion" and whole["model"] == model
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["role"] == "assistant"
    assert whole["usage"]["completion_tokens"] == 6

    plain = chunks(alice.openai("POST", "/chat/completions", {**asked, "stream": True}))
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in plain)
    assert {chunk["id"] for chunk in plain} == {plain[0]["id"]}
    assert plain[0]["choices"][0]["delta"]["role"] == "assistant"
    told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in plain)
    assert told == choice["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in plain][-2:] == [None, "length"]

    counting = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    *body, last = chunks(alice.openai("POST", "/chat/completions", counting))
    assert all(chunk["usage"] is None for chunk in body)
    assert last["choices"] == [] and last["usage"] == whole["usage"]


def test_openai_under_v1_too(alice: Client) -> None:
    asked = {"model": NAME, "messages": ASK, "max_tokens": 1, "user": "u", "store": False, "metadata": {"a": "b"}}
    url = alice.variables["ANTHROPIC_BASE_URL"] + "/v1/chat/completions"
    headers = {"Authorization": f"Bearer {alice.variables['OPENAI_API_KEY']}"}
    assert good(alice.pool.request("POST", url, headers=headers, json=asked))["usage"]["completion_tokens"] == 1


def test_anthropic_models(alice: Client) -> None:
    page = good(alice.anthropic("GET", "/v1/models?limit=1000"))
    (listed,) = [one for one in page["data"] if one["id"] == NAME]
    assert (listed["type"], listed["display_name"], listed["lifecycle"]) == ("model", NAME, "active")
    assert page["has_more"] is False and page["last_id"] == page["data"][-1]["id"]
    assert good(alice.anthropic("GET", f"/v1/models/{NAME}")) == listed


def test_anthropic_messages(alice: Client) -> None:
    asked = {"model": NAME, "system": "be brief", "messages": ASK, "max_tokens": 6, "temperature": 0}
    whole = good(alice.anthropic("POST", "/v1/messages", asked))
    assert (whole["type"], whole["role"], whole["stop_reason"], whole["stop_sequence"]) == (
        "message", "assistant", "max_tokens", None,
    )  # fmt: skip
    assert whole["usage"]["output_tokens"] == 6
    prompt = {name: asked[name] for name in ("model", "system", "messages")}
    counted = good(alice.anthropic("POST", "/v1/messages/count_tokens", prompt))
    assert counted == {"input_tokens": whole["usage"]["input_tokens"]}

    told = events(alice.anthropic("POST", "/v1/messages", {**asked, "stream": True}))
    kinds = [event["type"] for event in told]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    text = "".join(event["delta"]["text"] for event in told if event["type"] == "content_block_delta")
    assert text == "".join(block["text"] for block in whole["content"])
    assert told[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert told[-2]["usage"] == whole["usage"]


def test_anthropic_stop_sequence(alice: Client) -> None:
    block = {"type": "text", "text": "who may read?", "cache_control": {"type": "ephemeral"}}
    asked = {
        "model": NAME, "messages": [{"role": "user", "content": [block]}], "max_tokens": 60,
        "stop_sequences": ["a", "e", "i", "o", "t"], "metadata": {"user_id": "u"},
    }  # fmt: skip
    reply = good(alice.anthropic("POST", "/v1/messages", asked))
    assert (reply["stop_reason"], reply["stop_sequence"] in asked["stop_sequences"]) == ("stop_sequence", True)


def test_a_model_above_the_label_is_one_that_does_not_exist(enclave: LiveEnclave, model: str) -> None:
    carol = Client(enclave, "carol", "UNCLASSIFIED")
    assert NAME not in carol.openai("GET", "/models").data.decode()
    assert NAME not in carol.anthropic("GET", "/v1/models").data.decode()
    for send, path in ((carol.openai, "/chat/completions"), (carol.anthropic, "/v1/messages")):
        told = set()
        for name in (NAME, "none", model, model[:-6] + "aaaaaa"):
            reply = send("POST", path, {"model": name, "messages": ASK, "max_tokens": 1})
            assert reply.status == 404 and reply.headers["x-honmaru-label"].startswith("UNCLASSIFIED")
            error = reply.json()["error"]
            told.add(json.dumps(error).replace(name, "X"))
        assert len(told) == 1
    carol.pool.clear()


def test_the_ledger_says_which_operation_in_which_dialect(enclave: LiveEnclave, alice: Client, model: str) -> None:
    asked = {"model": NAME, "messages": ASK, "max_tokens": 1}
    sent = {
        "openai": alice.openai("POST", "/chat/completions", asked).headers["x-request-id"],
        "anthropic": alice.anthropic("POST", "/v1/messages", asked).headers["request-id"],
    }
    trail = enclave.client("cloudtrail", "alice", "SECRET")
    found = trail.lookup_events(
        LookupAttributes=[{"AttributeKey": "EventName", "AttributeValue": "Converse"}], MaxResults=50
    )["Events"]
    entries = {entry["requestID"]: entry for entry in (json.loads(event["CloudTrailEvent"]) for event in found)}
    for dialect, request_id in sent.items():
        entry = entries[request_id.removeprefix("req_")]
        assert entry["eventSource"] == "bedrock.amazonaws.com"
        assert entry["userIdentity"]["userName"] == "alice"
        assert entry["resources"][0]["ARN"] == model
        details = entry["honmaru"]["details"]
        assert details["dialect"] == dialect and details["outputTokens"] == 1
