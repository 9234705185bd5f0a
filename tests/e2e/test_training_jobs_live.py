"""Training jobs through boto3 on a live enclave: script mode, a gang, faults, and kill -9."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from honmaru.testing.enclaves import LiveEnclave

TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
)
SCRIPT = """
import argparse, json, os
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--learning-rate", type=float, default=0.1)
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAINING"])
args = parser.parse_args()
rows = [list(map(float, line.split(","))) for line in open(os.path.join(args.train, "data.csv"))]
x, y = torch.tensor(rows)[:, :1], torch.tensor(rows)[:, 1:]
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)
for epoch in range(args.epochs):
    loss = torch.nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    print(f"epoch={epoch} loss={loss.item():.6f}", flush=True)
torch.save(model.state_dict(), os.path.join(args.model_dir, "model.pt"))
facts = {"hosts": os.environ["SM_HOSTS"], "gpus": os.environ["SM_NUM_GPUS"]}
json.dump(facts, open(os.path.join(args.model_dir, "facts.json"), "w"))
"""
GANG = """
import json, os
import torch, torch.distributed as dist

hosts = json.loads(os.environ["SM_HOSTS"])
rank = int(os.environ.get("RANK", hosts.index(os.environ["SM_CURRENT_HOST"])))
world = int(os.environ.get("WORLD_SIZE", len(hosts)))
os.environ.setdefault("MASTER_ADDR", hosts[0]); os.environ.setdefault("MASTER_PORT", "29500")
dist.init_process_group("gloo", rank=rank, world_size=world)
value = torch.tensor([float(rank + 1)])
dist.all_reduce(value)
print(f"rank={rank} world={world} sum={value.item()}", flush=True)
if rank == 0:
    open(os.path.join(os.environ["SM_MODEL_DIR"], "sum.txt"), "w").write(str(value.item()))
dist.destroy_process_group()
"""


class Site:
    """One enclave's role, bucket and clients for training as alice at SECRET."""

    def __init__(self, enclave: LiveEnclave) -> None:
        self.enclave = enclave
        self.sagemaker = enclave.client("sagemaker", "alice", "SECRET")
        self.s3 = enclave.client("s3", "alice", "SECRET")
        iam = enclave.client("iam")
        try:
            iam.create_role(RoleName="training", AssumeRolePolicyDocument=TRUST)
        except iam.exceptions.EntityAlreadyExistsException:
            pass
        iam.attach_role_policy(
            RoleName="training", PolicyArn=f"arn:{enclave.facts['partition']}:iam::aws:policy/AmazonS3FullAccess"
        )
        self.role = f"arn:{enclave.facts['partition']}:iam::{enclave.account}:role/training"
        if "training" not in [b["Name"] for b in self.s3.list_buckets()["Buckets"]]:
            self.s3.create_bucket(Bucket="training", CreateBucketConfiguration={"LocationConstraint": enclave.region})
        lines = "\n".join(f"{i / 10},{2 * i / 10 + 1}" for i in range(20))
        self.s3.put_object(Bucket="training", Key="data/data.csv", Body=lines.encode())

    def source(self, name: str, script: str) -> str:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            entry = tarfile.TarInfo("train.py")
            entry.size = len(script.encode())
            archive.addfile(entry, io.BytesIO(script.encode()))
        self.s3.put_object(Bucket="training", Key=f"source/{name}.tar.gz", Body=buffer.getvalue())
        return f"s3://training/source/{name}.tar.gz"

    def train(self, name: str, source: str, hyperparameters: Mapping[str, str] | None = None, **more: Any) -> None:
        parameters = {
            "sagemaker_program": json.dumps("train.py"),
            "sagemaker_submit_directory": json.dumps(source),
            **(hyperparameters or {}),
        }
        request: dict[str, Any] = {
            "TrainingJobName": name,
            "RoleArn": self.role,
            "AlgorithmSpecification": {
                "TrainingImage": "pytorch",
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=([0-9.]+)"}],
            },
            "HyperParameters": parameters,
            "InputDataConfig": [
                {
                    "ChannelName": "training",
                    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://training/data/"}},
                }
            ],
            "OutputDataConfig": {"S3OutputPath": "s3://training/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        }
        self.sagemaker.create_training_job(**{**request, **more})

    def wait(self, name: str, limit_s: float = 120) -> Any:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            job = self.sagemaker.describe_training_job(TrainingJobName=name)
            if job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"):
                return job
            time.sleep(0.2)
        raise AssertionError(f"{name} is still {job['TrainingJobStatus']} ({job['SecondaryStatus']})")

    def model_files(self, job: Any) -> dict[str, bytes]:
        bucket, _, key = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://").partition("/")
        body = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            files = [member for member in archive if member.isfile()]
            return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def site(enclave: LiveEnclave) -> Site:
    return Site(enclave)


def test_an_ordinary_script_mode_script_runs_unmodified(site: Site, enclave: LiveEnclave) -> None:
    kms = enclave.client("kms")
    key = kms.create_key()["KeyMetadata"]["Arn"]
    kms.create_grant(KeyId=key, GranteePrincipal=site.role, Operations=["GenerateDataKey"])
    output = {"S3OutputPath": "s3://training/out", "KmsKeyId": key}
    parameters = {"epochs": "30", "learning-rate": "0.1"}
    site.train("script-mode", site.source("plain", SCRIPT), parameters, OutputDataConfig=output)
    job = site.wait("script-mode")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    bucket, _, name = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://").partition("/")
    assert site.s3.head_object(Bucket=bucket, Key=name)["SSEKMSKeyId"] == key
    files = site.model_files(job)
    assert "model.pt" in files
    assert json.loads(json.loads(files["facts.json"])["hosts"]) == ["algo-1"]
    metrics = {m["MetricName"]: m["Value"] for m in job["FinalMetricDataList"]}
    assert 0 <= metrics["loss"] < 1
    assert [t["Status"] for t in job["SecondaryStatusTransitions"]][-1] == "Completed"
    logs = site.enclave.client("logs", "alice", "SECRET")
    group = "/aws/sagemaker/TrainingJobs"
    stream = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="script-mode/")["logStreams"][0]
    events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True)[
        "events"
    ]
    assert any("epoch=29" in event["message"] for event in events)
    assert logs.filter_log_events(logGroupName=group, filterPattern='"epoch=29"')["events"]


@pytest.mark.parametrize("torchrun", [False, True], ids=["plain", "torchrun"])
def test_a_two_instance_gloo_job(site: Site, torchrun: bool) -> None:
    name = f"gang-{'torchrun' if torchrun else 'plain'}"
    extra = {"sagemaker_distribution": json.dumps({"torch_distributed": {"enabled": True}})} if torchrun else {}
    site.train(
        name,
        site.source(name, GANG),
        extra,
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1},
    )
    job = site.wait(name)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert site.model_files(job)["sum.txt"] == b"3.0"


def test_a_crash_is_a_failed_job_with_its_reason(site: Site) -> None:
    site.train("crash", site.source("crash", "raise ValueError('the data are strange')"))
    job = site.wait("crash")
    assert job["TrainingJobStatus"] == "Failed"
    assert "the data are strange" in job["FailureReason"]


def test_stop_and_maximum_runtime(site: Site) -> None:
    source = site.source("sleep", "import time\nwhile True: time.sleep(0.2)")
    site.train("stopped", source)
    site.train("too-long", source, StoppingCondition={"MaxRuntimeInSeconds": 3})
    while site.sagemaker.describe_training_job(TrainingJobName="stopped")["SecondaryStatus"] != "Training":
        time.sleep(0.2)
    site.sagemaker.stop_training_job(TrainingJobName="stopped")
    assert site.wait("stopped")["TrainingJobStatus"] == "Stopped"
    late = site.wait("too-long")
    assert (late["TrainingJobStatus"], late["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_a_job_survives_kill_nine_and_ends_once(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path / "data").up()
    try:
        live.user("alice", "SECRET")
        site = Site(live)
        script = (
            "import os, time\n"
            "for i in range(12):\n    print(f'tick={i}', flush=True); time.sleep(0.5)\n"
            "open(os.path.join(os.environ['SM_MODEL_DIR'], 'done.txt'), 'w').write('done')\n"
        )
        site.train("survivor", site.source("survivor", script))
        while site.sagemaker.describe_training_job(TrainingJobName="survivor")["SecondaryStatus"] != "Training":
            time.sleep(0.1)
        time.sleep(1.5)
        live.kill()
        live.up()
        job = site.wait("survivor")
        assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
        assert [t["Status"] for t in job["SecondaryStatusTransitions"]].count("Completed") == 1
        assert site.model_files(job) == {"done.txt": b"done"}
    finally:
        live.down()
