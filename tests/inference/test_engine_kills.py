"""Killing an engine in the middle of a stream: the modelled error in the stream, a new engine for the next request, and
nothing left behind. A few times here; 1,000 with HONMARU_LONG=1.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EventStreamError

from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.tiny_models import tiny_llama

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
LONG = os.environ.get("HONMARU_LONG") == "1"

pytestmark = [
    pytest.mark.skipif(os.environ.get("HONMARU_INFERENCE") != "1", reason="takes minutes: run `make test-inference`"),
    pytest.mark.timeout(7200 if LONG else 600),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    made = LiveEnclave(tmp_path_factory.mktemp("data")).up()
    made.user("alice", "SECRET")
    iam, s3, bedrock = (made.client(name, "alice", "SECRET") for name in ("iam", "s3", "bedrock"))
    role = iam.create_role(RoleName="import", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    partition = made.facts["partition"]
    iam.attach_role_policy(RoleName="import", PolicyArn=f"arn:{partition}:iam::aws:policy/AdministratorAccess")
    s3.create_bucket(Bucket="models")
    for path in tiny_llama(tmp_path_factory.mktemp("tiny"), context=4096).iterdir():
        s3.upload_file(str(path), "models", f"m/{path.name}")
    source = {"s3DataSource": {"s3Uri": "s3://models/m/"}}
    job = bedrock.create_model_import_job(jobName="m", importedModelName="m", roleArn=role, modelDataSource=source)
    while (found := bedrock.get_model_import_job(jobIdentifier=job["jobArn"]))["status"] == "InProgress":
        time.sleep(0.2)
    assert found["status"] == "Completed", found
    yield made
    made.down()


def engine_pids(live: LiveEnclave) -> list[int]:
    """Model servers of this enclave, by what they were started with."""
    out = subprocess.run(
        ["pgrep", "-f", "honmaru.workloads.server --model"], capture_output=True, text=True, check=False
    )
    found = []
    for pid in map(int, out.stdout.split()):
        try:
            cgroup = Path(f"/proc/{pid}/status").read_text()
            if "python" in cgroup.split("\n", 1)[0] and _descends(pid, live):
                found.append(pid)
        except OSError:
            continue
    return found


def _descends(pid: int, live: LiveEnclave) -> bool:
    """Whether a process runs in a folder of this enclave: its runner's command line names the data directory."""
    while pid > 1:
        if str(live.data) in Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace"):
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def ask(live: LiveEnclave) -> Any:
    return live.client("bedrock-runtime", "alice", "SECRET").converse_stream(
        modelId="m",
        messages=[{"role": "user", "content": [{"text": "who may read?"}]}],
        inferenceConfig={"maxTokens": 4000, "temperature": 0},
    )["stream"]


def descriptors(live: LiveEnclave) -> int:
    return len(os.listdir(f"/proc/{live.pid}/fd"))


def resident(live: LiveEnclave) -> int:
    return int(Path(f"/proc/{live.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_killed_engine_is_a_modelled_error_and_leaves_nothing(live: LiveEnclave) -> None:
    rounds = 1000 if LONG else 4
    next(iter(ask(live)))
    time.sleep(1)
    before, memory = descriptors(live), resident(live)
    broken: list[str] = []
    late = 0
    while len(broken) < rounds:
        (pid,) = engine_pids(live)
        stream = ask(live)
        events = iter(stream)
        next(events)
        os.kill(pid, signal.SIGKILL)
        seen: list[str] = []
        try:
            for event in events:
                seen += event
        except EventStreamError as fault:
            broken.append(str(fault))
        else:  # this process came too late: the engine had said everything, its reason and its counts too
            assert seen[-2:] == ["messageStop", "metadata"]
            late += 1
            assert late < max(rounds, 10)
        deadline = time.monotonic() + 60
        while True:  # started anew; while it starts, a request waits or is told to come again
            try:
                stream = ask(live)
                next(iter(stream))
                stream.close()
                break
            except (ClientError, EventStreamError):
                assert time.monotonic() < deadline
                time.sleep(0.2)
    time.sleep(2)
    assert all("modelStreamErrorException" in one for one in broken)
    assert len(engine_pids(live)) == 1
    assert len(list((live.data / "models").iterdir())) == 1, "folders of dead servers are deleted"
    assert descriptors(live) <= before + 8
    assert resident(live) < memory * 1.5 + (64 << 20)


def test_cancelled_streams_leave_nothing(live: LiveEnclave) -> None:
    rounds = 10_000 if LONG else 40
    next(iter(ask(live)))
    before, memory = descriptors(live), resident(live)
    for _ in range(rounds):
        stream = ask(live)
        next(iter(stream))
        stream.close()
    time.sleep(2)
    assert descriptors(live) <= before + 8
    assert resident(live) < memory * 1.5 + (64 << 20)
    (pid,) = engine_pids(live)
    answer = live.client("bedrock-runtime", "alice", "SECRET").converse(
        modelId="m",
        messages=[{"role": "user", "content": [{"text": "hi"}]}],
        inferenceConfig={"maxTokens": 4},
    )
    assert answer["usage"]["outputTokens"] > 0 and engine_pids(live) == [pid]


def test_two_labels_have_two_engines(live: LiveEnclave) -> None:
    """The same model, asked at two labels: a process each, and neither is ever asked for the other."""
    live.user("teresa", "SECRET//SI")
    try:
        high = live.client("bedrock-runtime", "teresa", "SECRET//SI")
        high.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "hi"}]}])
    except ClientError as error:  # an enclave with that ceiling may not carry the marking
        pytest.skip(str(error))
    next(iter(ask(live)))
    assert len(engine_pids(live)) == 2
