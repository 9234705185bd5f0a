"""One enclave as the upstream of another: its Anthropic Messages and its Bedrock Converse, each plugged in as an engine
by a declaration alone, answer as it answers itself. The upstream is U; what is above never reaches it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.tiny_models import tiny_llama

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
USER = [{"role": "user", "content": [{"text": "who may read?"}]}]
INFERENCE = {"maxTokens": 24, "temperature": 0}
TOOLS = {
    "tools": [{"toolSpec": {"name": "look", "inputSchema": {"json": {"type": "object", "properties": {}}}}}],
    "toolChoice": {"tool": {"name": "look"}},
}

pytestmark = [
    pytest.mark.skipif(os.environ.get("HONMARU_INFERENCE") != "1", reason="takes minutes: run `make test-inference`"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    made = LiveEnclave(tmp_path_factory.mktemp("upstream"), http=True).up()
    iam, s3, bedrock = (made.client(name) for name in ("iam", "s3", "bedrock"))
    role = iam.create_role(RoleName="import", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    partition = made.facts["partition"]
    iam.attach_role_policy(RoleName="import", PolicyArn=f"arn:{partition}:iam::aws:policy/AdministratorAccess")
    s3.create_bucket(Bucket="models")
    for path in tiny_llama(tmp_path_factory.mktemp("tiny"), context=256).iterdir():
        s3.upload_file(str(path), "models", f"m/{path.name}")
    source = {"s3DataSource": {"s3Uri": "s3://models/m/"}}
    job = bedrock.create_model_import_job(jobName="m", importedModelName="m", roleArn=role, modelDataSource=source)
    while (found := bedrock.get_model_import_job(jobIdentifier=job["jobArn"]))["status"] == "InProgress":
        time.sleep(0.2)
    assert found["status"] == "Completed", found
    yield made
    made.down()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, upstream: LiveEnclave) -> Iterator[LiveEnclave]:
    data = tmp_path_factory.mktemp("data")
    data.chmod(0o700)
    variables = upstream.variables()
    engines = {}
    for dialect in ("anthropic", "bedrock"):
        secret = tmp_path_factory.mktemp("secret") / dialect
        secret.write_text(variables["ANTHROPIC_API_KEY"])
        place = {"url": upstream.endpoint, "label": "UNCLASSIFIED", "authorization_file": str(secret)}
        features = ["tools", "json_schema", "top_k"]
        engines[f"up.{dialect}"] = {"dialect": dialect, "model": "m", "features": features, "replicas": [place]}
    (data / "engines.json").write_text(json.dumps(engines))
    made = LiveEnclave(data).up()
    made.user("alice", "SECRET")
    yield made
    made.down()


def told(stream: Any) -> tuple[str, str, dict[str, int]]:
    text, reason, usage = "", "", {}
    for event in stream:
        text += event.get("contentBlockDelta", {}).get("delta", {}).get("text", "")
        reason = event.get("messageStop", {}).get("stopReason", reason)
        usage = event.get("metadata", {}).get("usage", usage)
    return text, reason, usage


@pytest.mark.parametrize("dialect", ["anthropic", "bedrock"])
def test_an_upstream_answers_as_it_answers_itself(upstream: LiveEnclave, live: LiveEnclave, dialect: str) -> None:
    own, through = upstream.client("bedrock-runtime"), live.client("bedrock-runtime")
    for more in ({}, {"system": [{"text": "be brief"}]}, {"toolConfig": TOOLS}):
        asked = {"messages": USER, "inferenceConfig": INFERENCE, **more}
        expected = own.converse(modelId="m", **asked)
        answer = through.converse(modelId=f"up.{dialect}", **asked)
        assert [block for block in answer["output"]["message"]["content"] if "text" in block] == [
            block for block in expected["output"]["message"]["content"] if "text" in block
        ]
        assert answer["stopReason"] == expected["stopReason"]
        assert answer["usage"] == expected["usage"]
        uses = [
            [block["toolUse"]["name"] for block in one["output"]["message"]["content"] if "toolUse" in block]
            for one in (answer, expected)
        ]
        assert uses[0] == uses[1]
    asked = {"messages": USER, "inferenceConfig": INFERENCE}
    expected = own.converse(modelId="m", **asked)
    said = expected["output"]["message"]["content"][0]["text"]
    streamed = told(through.converse_stream(modelId=f"up.{dialect}", **asked)["stream"])
    assert streamed == (said, expected["stopReason"], expected["usage"])
    count = {"converse": {"messages": USER}}
    counted = [
        client.count_tokens(modelId=model, input=count)["inputTokens"]
        for client, model in ((own, "m"), (through, f"up.{dialect}"))
    ]
    assert counted[0] == counted[1] == expected["usage"]["inputTokens"]
    with pytest.raises(ClientError, match=r"log probabilities.*up\." + dialect):
        through.converse(modelId=f"up.{dialect}", **asked, additionalModelRequestFields={"logprobs": 1})


def test_above_its_label_there_is_no_upstream(live: LiveEnclave) -> None:
    high = live.client("bedrock-runtime", "alice", "SECRET")
    with pytest.raises(ClientError, match="ResourceNotFound"):
        high.converse(modelId="up.anthropic", messages=USER)
    assert live.client("bedrock", "alice", "SECRET").list_foundation_models()["modelSummaries"] == []
