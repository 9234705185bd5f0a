"""Quantum tasks through a live enclave with plain boto3: results, refusals, labels, limits, cancellation, kill -9."""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from honmaru.testing.enclaves import LiveEnclave

SV1, DM1 = (f"arn:aws:braket:::device/quantum-simulator/amazon/{name}" for name in ("sv1", "dm1"))
BELL = "OPENQASM 3.0;\nbit[2] b;\nqubit[2] q;\nh q[0];\ncnot q[0], q[1];\nb = measure q;\n"
FINAL = ("COMPLETED", "FAILED", "CANCELLED")
INSTALLED = (Path(sys.prefix).with_name(".venv-quantum") / "braket-devices.json").exists()

pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="the quantum environment is not installed: run `make install-quantum`"),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    enclave = LiveEnclave(Path(tmp_path_factory.mktemp("quantum"))).up()
    enclave.user("alice", "SECRET")
    enclave.client("s3", "admin").create_bucket(
        Bucket="amazon-braket-tests", CreateBucketConfiguration={"LocationConstraint": enclave.region}
    )
    yield enclave
    enclave.down()


def create(client: Any, source: str = BELL, shots: int = 100, device: str = SV1, **more: Any) -> str:
    header = {"name": "braket.ir.openqasm.program", "version": "1"}
    arn: str = client.create_quantum_task(
        **{
            "action": json.dumps({"braketSchemaHeader": header, "source": source, "inputs": {}}),
            "clientToken": str(uuid.uuid4()),
            "deviceArn": device,
            "shots": shots,
            "outputS3Bucket": "amazon-braket-tests",
            "outputS3KeyPrefix": "tasks",
            **more,
        }
    )["quantumTaskArn"]
    return arn


def ended(client: Any, arn: str, seconds: float = 60) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        task: dict[str, Any] = client.get_quantum_task(quantumTaskArn=arn, additionalAttributeNames=["QueueInfo"])
        if task["status"] in FINAL:
            return task
        time.sleep(0.02)
    raise AssertionError(f"{arn} did not end within {seconds} s")


def results(live: LiveEnclave, task: dict[str, Any], user: str = "admin", label: str = "") -> dict[str, Any]:
    stored = live.client("s3", user, label).get_object(
        Bucket=task["outputS3Bucket"], Key=f"{task['outputS3Directory']}/results.json"
    )
    document: dict[str, Any] = json.loads(stored["Body"].read())
    return document


def long_circuit(qubits: int = 22, layers: int = 100) -> str:
    gates = "".join(f"rx(0.{layer + 1}) q[{qubit}];\n" for layer in range(layers) for qubit in range(qubits))
    return f"OPENQASM 3.0;\nbit[{qubits}] b;\nqubit[{qubits}] q;\n{gates}b = measure q;\n"


def code_of(fault: pytest.ExceptionInfo[ClientError]) -> str:
    return str(fault.value.response["Error"]["Code"])


def test_a_bell_pair_is_measured_and_its_result_is_in_s3(live: LiveEnclave) -> None:
    client = live.client("braket")
    task = ended(client, create(client, tags={"project": "p"}))
    assert task["status"] == "COMPLETED" and task["tags"] == {"project": "p"} and task["shots"] == 100
    assert task["queueInfo"]["position"] == "None"
    document = results(live, task)
    assert set(Counter("".join(map(str, each)) for each in document["measurements"])) == {"00", "11"}
    assert len(document["taskMetadata"]["createdAt"]) <= 24


def test_an_exact_result_has_full_precision(live: LiveEnclave) -> None:
    client = live.client("braket")
    pragma = "#pragma braket result"
    source = f"OPENQASM 3.0;\nqubit q;\nrx(1.1) q;\n{pragma} expectation z(q)\n{pragma} state_vector\n"
    types = results(live, ended(client, create(client, source, 0)))["resultTypes"]
    assert abs(types[0]["value"] - 0.4535961214255773) < 1e-15
    assert len(types[1]["value"]) == 2 and len(types[1]["value"][0]) == 2


def test_noise_is_simulated_on_dm1_and_named_on_sv1(live: LiveEnclave) -> None:
    client = live.client("braket")
    source = "OPENQASM 3.0;\nqubit q;\nx q;\n#pragma braket noise bit_flip(0.25) q\n#pragma braket result probability\n"
    found = results(live, ended(client, create(client, source, 0, DM1)))["resultTypes"][0]["value"]
    assert found == pytest.approx([0.25, 0.75], abs=1e-12)
    with pytest.raises(ClientError, match="DM1"):
        create(client, source, 0, SV1)


@pytest.mark.parametrize(
    ("source", "shots", "words"),
    [
        ("OPENQASM 3.0;\nqubit[2] q;\nthis is not a gate;", 10, "line 3"),
        ("OPENQASM 3.0;\nqubit[27] q;\nh q;", 10, "26 qubits"),
        (BELL, 100_001, "0 to 100000"),
        ("OPENQASM 3.0;\nqubit q;\nfor int i in [0:300] { for int j in [0:300] { h q; } }", 10, "limit"),
        ("/etc/passwd.qasm", 10, "not the name of a file"),
    ],
)
def test_what_cannot_be_run_is_a_modelled_refusal(live: LiveEnclave, source: str, shots: int, words: str) -> None:
    client = live.client("braket")
    with pytest.raises(ClientError, match=words) as fault:
        create(client, source, shots)
    assert code_of(fault) == "ValidationException"
    assert ended(client, create(client))["status"] == "COMPLETED"


def test_the_same_token_is_the_same_task(live: LiveEnclave) -> None:
    client, token = live.client("braket"), str(uuid.uuid4())
    assert create(client, clientToken=token) == create(client, clientToken=token)
    with pytest.raises(ClientError, match="clientToken"):
        create(client, shots=7, clientToken=token)


def test_a_running_task_is_stopped_by_cancel(live: LiveEnclave) -> None:
    client = live.client("braket")
    arn = create(client, long_circuit())
    while client.get_quantum_task(quantumTaskArn=arn)["status"] == "QUEUED":
        time.sleep(0.02)
    began = time.monotonic()
    answer = client.cancel_quantum_task(quantumTaskArn=arn, clientToken=str(uuid.uuid4()))
    assert answer["cancellationStatus"] in ("CANCELLING", "CANCELLED")
    assert ended(client, arn)["status"] == "CANCELLED"
    assert time.monotonic() - began < 5
    with pytest.raises(ClientError) as fault:
        results(live, ended(client, arn))
    assert code_of(fault) == "NoSuchKey"
    done = create(client)
    ended(client, done)
    with pytest.raises(ClientError) as fault:
        client.cancel_quantum_task(quantumTaskArn=done, clientToken=str(uuid.uuid4()))
    assert code_of(fault) == "ConflictException"


def test_what_is_above_a_session_does_not_exist_for_it(live: LiveEnclave) -> None:
    high, low = live.client("braket", "alice", "SECRET"), live.client("braket", "alice", "UNCLASSIFIED")
    arn = create(high)
    task = ended(high, arn)
    assert results(live, task, "alice", "SECRET")["measurements"]
    for ask in (
        lambda: low.get_quantum_task(quantumTaskArn=arn),
        lambda: low.cancel_quantum_task(quantumTaskArn=arn, clientToken=str(uuid.uuid4())),
        lambda: low.list_tags_for_resource(resourceArn=arn),
    ):
        with pytest.raises(ClientError) as fault:
            ask()
        assert code_of(fault) == "ResourceNotFoundException"
    with pytest.raises(ClientError) as fault:
        results(live, task, "alice", "UNCLASSIFIED")
    assert code_of(fault) == "NoSuchKey"
    everything = {"filters": [], "maxResults": 100}
    assert arn not in [each["quantumTaskArn"] for each in low.search_quantum_tasks(**everything)["quantumTasks"]]
    below = create(low)
    ended(low, below)
    assert high.get_quantum_task(quantumTaskArn=below)["status"] == "COMPLETED"
    with pytest.raises(ClientError) as fault:  # no write-down
        high.tag_resource(resourceArn=below, tags={"a": "b"})
    assert code_of(fault) == "AccessDeniedException"


def test_a_spending_limit_is_enforced(live: LiveEnclave) -> None:
    client = live.client("braket")
    made = client.create_spending_limit(clientToken="s", deviceArn=DM1, spendingLimit="0.00")["spendingLimitArn"]
    try:
        with pytest.raises(ClientError, match="spending limit") as fault:
            create(client, device=DM1)
        assert code_of(fault) == "ServiceQuotaExceededException"
        client.update_spending_limit(spendingLimitArn=made, clientToken="u", spendingLimit="5.00")
        assert ended(client, create(client, device=DM1))["status"] == "COMPLETED"
        shown = client.search_spending_limits(filters=[{"name": "deviceArn", "operator": "EQUAL", "values": [DM1]}])
        assert float(shown["spendingLimits"][0]["totalSpend"]) > 0
    finally:
        client.delete_spending_limit(spendingLimitArn=made)
    assert client.search_spending_limits()["spendingLimits"] == []


def test_a_policy_names_the_device(live: LiveEnclave) -> None:
    iam = live.client("iam")
    iam.create_user(UserName="dm1-only")
    allow = {"Effect": "Allow", "Action": ["braket:*", "s3:*"], "Resource": "*"}
    deny = {"Effect": "Deny", "Action": "braket:CreateQuantumTask", "Resource": "arn:*:braket:*:*:device/*/sv1"}
    document = {"Version": "2012-10-17", "Statement": [allow, deny]}
    iam.put_user_policy(UserName="dm1-only", PolicyName="p", PolicyDocument=json.dumps(document))
    client = live.client("braket", "dm1-only")
    with pytest.raises(ClientError) as fault:
        create(client)
    assert code_of(fault) == "AccessDeniedException"
    assert ended(client, create(client, device=DM1))["status"] == "COMPLETED"


def test_tasks_survive_kill_9_and_end_once(live: LiveEnclave) -> None:
    client = live.client("braket")
    arns = [create(client, long_circuit(16, 80), 10), *(create(client) for _ in range(3))]
    live.kill()
    live.up()
    client = live.client("braket")
    tasks = [ended(client, arn, 120) for arn in arns]
    assert [task["status"] for task in tasks] == ["COMPLETED"] * 4
    for task in tasks:
        assert results(live, task)["taskMetadata"]["id"] == task["quantumTaskArn"].rpartition("/")[2]


def test_a_flood_of_bombs_holds_up_nobody_else(live: LiveEnclave) -> None:
    live.user("mallory", "UNCLASSIFIED")
    bomb = "OPENQASM 3.0;\nqubit q;\nint n = 0;\nfor int i in [0:3000] { for int j in [0:3000] { n = n + 1; } }\nh q;"
    stop = threading.Event()

    def attack() -> None:
        client = live.client("braket", "mallory", "UNCLASSIFIED", read_timeout=5)
        while not stop.is_set():
            try:
                create(client, bomb)
            except (ClientError, ReadTimeoutError):
                continue

    live.client("braket", "mallory", "UNCLASSIFIED")
    client, tasks = live.client("s3"), live.client("braket")
    threads = [threading.Thread(target=attack, daemon=True) for _ in range(24)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    for _ in range(5):
        client.head_bucket(Bucket="amazon-braket-tests")
    assert ended(tasks, create(tasks))["status"] == "COMPLETED"
    waited = time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join(30)
    live.kill()  # no need to wait for what is left of the bombs
    assert waited < 10
