"""Hybrid jobs through a live enclave: labels of what they make, and kill -9 while their code runs."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

SV1 = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"
INSTALLED = (Path(sys.prefix).with_name(".venv-quantum") / "braket-devices.json").exists()
BUCKET = "amazon-braket-jobs"
ROLE = "AmazonBraketJobsExecutionRole"
FINAL = ("COMPLETED", "FAILED", "CANCELLED")

pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="the quantum environment is not installed: run `make install-quantum`"),
    pytest.mark.skipif(os.environ.get("HONMARU_QUANTUM") != "1", reason="takes long: run `make test-quantum`"),
]

_CODE = """
import os, time, urllib.request
from braket.aws import AwsDevice
from braket.circuits import Circuit
from braket.jobs import save_job_result

def main():
    seconds, least = (float(each) for each in open("run").read().split())
    done, faults, began = 0, 0, time.time()
    while time.time() < began + seconds or done < least and time.time() < began + 75:
        try:
            AwsDevice(os.environ["AMZN_BRAKET_DEVICE_ARN"]).run(Circuit().h(0), shots=10).result()
            done += 1
        except Exception as fault:
            print("again after", type(fault).__name__, str(fault)[:300], flush=True)
            faults += 1
        time.sleep(0.2)
    save_job_result({"done": done, "faults": faults})
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    enclave = LiveEnclave(Path(tmp_path_factory.mktemp("jobs"))).up()
    enclave.user("alice", "SECRET")
    place = {"LocationConstraint": enclave.region}
    enclave.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
    trust = {"Effect": "Allow", "Principal": {"Service": "braket.amazonaws.com"}, "Action": "sts:AssumeRole"}
    allow = {"Effect": "Allow", "Action": ["s3:*", "braket:*"], "Resource": "*"}
    documents = [json.dumps({"Version": "2012-10-17", "Statement": [each]}) for each in (trust, allow)]
    iam = enclave.client("iam")
    iam.create_role(RoleName=ROLE, Path="/service-role/", AssumeRolePolicyDocument=documents[0])
    iam.put_role_policy(RoleName=ROLE, PolicyName="jobs", PolicyDocument=documents[1])
    yield enclave
    enclave.down()


def start(live: LiveEnclave, seconds: float, least: int, user: str = "admin", label: str = "") -> str:
    """A job whose code submits tasks for so many seconds, and until so many are done (a busy machine is slow)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in (("algorithm.py", _CODE), ("run", f"{seconds} {least}")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    name = f"job-{uuid.uuid4().hex[:12]}"
    live.client("s3", user, label).put_object(Bucket=BUCKET, Key=f"{name}/source.tar.gz", Body=archive.getvalue())
    script = {"entryPoint": "algorithm:main", "s3Uri": f"s3://{BUCKET}/{name}/source.tar.gz", "compressionType": "GZIP"}
    arn: str = live.client("braket", user, label).create_job(
        clientToken=str(uuid.uuid4()),
        jobName=name,
        roleArn=f"arn:aws-iso-b:iam::{live.account}:role/service-role/{ROLE}",
        algorithmSpecification={"scriptModeConfig": script},
        outputDataConfig={"s3Path": f"s3://{BUCKET}/{name}/data"},
        instanceConfig={"instanceType": "ml.m5.large", "volumeSizeInGb": 1},
        deviceConfig={"device": SV1},
    )["jobArn"]
    return arn


def reaches(live: LiveEnclave, arn: str, states: tuple[str, ...], user: str = "admin", label: str = "") -> Any:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        job = live.client("braket", user, label).get_job(jobArn=arn)
        if job["status"] in states:
            return job
        time.sleep(0.3)
    raise AssertionError(f"{arn} is {job['status']}, not {states}")


def result(live: LiveEnclave, job: Any, user: str = "admin", label: str = "") -> dict[str, Any]:
    key = job["outputDataConfig"]["s3Path"].removeprefix(f"s3://{BUCKET}/") + "/output/model.tar.gz"
    stored = live.client("s3", user, label).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(stored)) as tar:
        member = tar.extractfile("results.json")
        assert member is not None
        found: dict[str, Any] = json.loads(member.read())["dataDictionary"]
        return found


def test_what_a_job_makes_carries_its_label(live: LiveEnclave) -> None:
    arn = start(live, 1.5, 1, "alice", "SECRET")
    job = reaches(live, arn, FINAL, "alice", "SECRET")
    assert job["status"] == "COMPLETED", job.get("failureReason")
    assert result(live, job, "alice", "SECRET")["done"] >= 1
    mine = {"filters": [{"name": "jobArn", "operator": "EQUAL", "values": [arn]}]}
    tasks = live.client("braket", "alice", "SECRET").search_quantum_tasks(**mine)["quantumTasks"]
    assert tasks and {task["status"] for task in tasks} == {"COMPLETED"}
    low = live.client("braket", "alice", "UNCLASSIFIED")
    assert low.search_quantum_tasks(**mine)["quantumTasks"] == []
    assert arn not in [each["jobArn"] for each in low.search_jobs(filters=[])["jobs"]]
    for ask in (lambda: low.get_job(jobArn=arn), lambda: result(live, job, "alice", "UNCLASSIFIED")):
        with pytest.raises(ClientError) as fault:
            ask()
        assert fault.value.response["Error"]["Code"] in ("ResourceNotFoundException", "NoSuchKey")


def test_a_running_job_survives_kill_9_and_finds_its_way_out_again(live: LiveEnclave) -> None:
    arn = start(live, 18, 8)
    reaches(live, arn, ("RUNNING",))
    time.sleep(4)
    live.kill()
    live.up()
    restarted = datetime.now(UTC).isoformat()
    job = reaches(live, arn, FINAL)
    assert job["status"] == "COMPLETED", job.get("failureReason")
    assert result(live, job)["done"] >= 8
    later = [
        {"name": "jobArn", "operator": "EQUAL", "values": [arn]},
        {"name": "createdAt", "operator": "GT", "values": [restarted]},
    ]
    assert live.client("braket").search_quantum_tasks(filters=later)["quantumTasks"], "no task after the restart"
    events = [event["eventType"] for event in job["events"]]
    assert events.count("RUNNING") == 1 and events.count("COMPLETED") == 1, events
