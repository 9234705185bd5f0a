"""Unmodified SDKs × dialects × {plain, stream, tools, JSON schema, errors, cancellation} against a live enclave: over
the embedded engine, and over a third-party server that is plugged in by configuration alone.

The clients live in .venv-peers/bedrock-clients and llama-cpp-python's server in .venv-peers/llama-cpp; `make
test-inference` installs both. Without HONMARU_INFERENCE=1 these tests are skipped, because they take minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.tiny_models import tiny_bert, tiny_llama
from honmaru.workloads.convert import convert

PEERS = Path(sys.prefix).with_name(".venv-peers")
PYTHON = PEERS / "bedrock-clients" / "bin" / "python"
LLAMA_CPP = PEERS / "llama-cpp"
SDKS = ("boto3", "anthropic", "openai", "langchain", "strands", "llamaindex")
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
EMBEDDED = ["tools", "json_schema", "logprobs", "n", "penalties", "top_k", "completions", "stream_usage"]
DECLARED = {
    "model": "tiny",
    "name": "Tiny",
    "provider": "Example",
    "features": ["completions", "json_schema", "tools", "top_k", "penalties"],
    "context_length": 1024,
    "environment": "llama-cpp",
    "command": [
        "python", "-m", "llama_cpp.server", "--model", "/opt/ml/model/model.gguf", "--n_ctx", "1024",
        "--port", "8000", "--model_alias", "tiny", "--n_threads", "2", "--verbose", "false",
    ],
    "port": 8000,
    "max_label": "SECRET",
    "stream_usage": False,
    "schema_as": "json_object",
    "memory_gib": 4,
}  # fmt: skip

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="the SDKs are not installed: run `make test-inference`"),
    pytest.mark.skipif(os.environ.get("HONMARU_INFERENCE") != "1", reason="takes minutes: run `make test-inference`"),
    pytest.mark.timeout(900),
]


def imported(live: LiveEnclave, name: str, folder: Path) -> str:
    """ARN of a model imported from a folder."""
    s3, bedrock = live.client("s3", "alice", "SECRET"), live.client("bedrock", "alice", "SECRET")
    for path in folder.iterdir():
        s3.upload_file(str(path), "models", f"{name}/{path.name}")
    role = live.client("iam", "alice", "SECRET").get_role(RoleName="import")["Role"]["Arn"]
    source = {"s3DataSource": {"s3Uri": f"s3://models/{name}/"}}
    job = bedrock.create_model_import_job(jobName=name, importedModelName=name, roleArn=role, modelDataSource=source)[
        "jobArn"
    ]
    while (found := bedrock.get_model_import_job(jobIdentifier=job))["status"] == "InProgress":
        time.sleep(0.2)
    assert found["status"] == "Completed", found.get("failureMessage")
    return str(found["importedModelArn"])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    data = tmp_path_factory.mktemp("data")
    files = tmp_path_factory.mktemp("gguf")
    source = tiny_llama(tmp_path_factory.mktemp("tiny") / "m", context=1024)
    convert(source, files / "model.gguf")
    data.chmod(0o700)
    if (LLAMA_CPP / ".installed").exists():
        environments = {"llama-cpp": {"prefix": str(LLAMA_CPP), "digest": "", "entry_module": "llama_cpp.server"}}
        (data / "environments.json").write_text(json.dumps(environments))
        python = [str(LLAMA_CPP / "bin" / "python"), *DECLARED["command"][1:]]
        declared = {"example.tiny": {**DECLARED, "command": python, "files": str(files)}}
        (data / "engines.json").write_text(json.dumps(declared))
    made = LiveEnclave(data).up()
    made.user("alice", "SECRET")
    iam = made.client("iam", "alice", "SECRET")
    iam.create_role(RoleName="import", AssumeRolePolicyDocument=json.dumps(TRUST))
    partition = made.facts["partition"]
    policy = f"arn:{partition}:iam::aws:policy/AdministratorAccess"
    iam.attach_role_policy(RoleName="import", PolicyArn=policy)
    made.client("s3", "alice", "SECRET").create_bucket(Bucket="models")
    imported(made, "matrix", source)
    imported(made, "encoder", tiny_bert(tmp_path_factory.mktemp("bert")))
    shutil.rmtree(source)
    yield made
    made.down()


def run(live: LiveEnclave, sdk: str, target: dict[str, Any]) -> None:
    variables = {**os.environ, **live.variables("alice", "SECRET"), "HONMARU_TARGET": json.dumps(target)}
    command = [str(PYTHON), str(Path(__file__).with_name("sdk_scenarios.py")), sdk]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=800, check=False)
    cells = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("CELL ")]
    assert cells and done.returncode == 0, done.stderr[-3000:]
    bad = [f"{one['cell']}:\n{one['problem']}" for one in cells if one["problem"]]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("sdk", SDKS)
def test_embedded_engine(live: LiveEnclave, sdk: str) -> None:
    run(live, sdk, {"model": "matrix", "features": EMBEDDED, "embedding": "encoder"})


@pytest.mark.skipif(
    not (LLAMA_CPP / ".installed").exists(), reason="llama-cpp-python is not installed: run `make test-inference`"
)
@pytest.mark.parametrize("sdk", SDKS)
def test_third_party_server_by_configuration_alone(live: LiveEnclave, sdk: str) -> None:
    run(live, sdk, {"model": "example.tiny", "features": DECLARED["features"]})


@pytest.mark.skipif(
    not (LLAMA_CPP / ".installed").exists(), reason="llama-cpp-python is not installed: run `make test-inference`"
)
def test_a_declared_model_above_whose_label_a_session_stands_does_not_exist(live: LiveEnclave) -> None:
    """The declaration reaches up to SECRET here; the listing says so to those who may."""
    listed = live.client("bedrock", "alice", "SECRET").list_foundation_models()["modelSummaries"]
    assert [one["modelId"] for one in listed] == ["example.tiny"]
    assert [one["modelId"] for one in live.client("bedrock", "alice", "SECRET").list_foundation_models(
        byProvider="example")["modelSummaries"]] == ["example.tiny"]  # fmt: skip
