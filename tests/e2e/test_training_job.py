"""Training jobs through the service, the supervisor and real sandboxes, without a gateway."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.testing.keep import session
from honmaru.testing.workshop import BUCKET, MARKING, ROLE, Workshop

CHANNEL = {"ChannelName": "training", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix"}}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("jobs") / "shop")
    made.make_bucket()
    made.put("data/a.csv", b"1,2\n")
    made.put("data/sub/b.csv", b"3,4\n")
    made.supervisor.start()
    yield made
    made.close()


def channel(uri: str, **source: Any) -> dict[str, Any]:
    s3 = {"S3DataType": "S3Prefix", "S3Uri": uri, **source}
    return {"ChannelName": "training", "DataSource": {"S3DataSource": s3}}


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for entry, content in members:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def submit(shop: Workshop, name: str, source: bytes, program: str = "train.py", **members: Any) -> dict[str, Any]:
    shop.put(f"source/{name}.tar.gz", source)
    parameters = {
        "sagemaker_program": f'"{program}"',
        "sagemaker_submit_directory": f'"s3://{BUCKET}/source/{name}.tar.gz"',
        **members.pop("HyperParameters", {}),
    }
    shop.train(name, HyperParameters=parameters, **members)
    return shop.wait(name)


def script(code: str) -> bytes:
    return archive((tarfile.TarInfo("train.py"), code.encode()))


def unpacked(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


ORDINARY = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAINING"])
args = parser.parse_args()
names = sorted(os.path.relpath(os.path.join(d, f), args.train) for d, _, fs in os.walk(args.train) for f in fs)
for epoch in range(args.epochs):
    print(f"epoch={epoch} loss={1 / (epoch + 1)};")
json.dump(names, open(os.path.join(args.model_dir, "names.json"), "w"))
os.symlink("/etc/passwd", os.path.join(args.model_dir, "link"))
os.mkfifo(os.path.join(args.model_dir, "pipe"))
open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "report.txt"), "w").write("report")
open("/opt/ml/checkpoints/last", "w").write("checkpoint")
"""


def test_an_ordinary_script_from_start_to_end(shop: Workshop) -> None:
    job = submit(
        shop,
        "ordinary",
        script(ORDINARY),
        HyperParameters={"epochs": "4"},
        InputDataConfig=[channel(f"s3://{BUCKET}/data")],
        AlgorithmSpecification={"MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*?);"}]},
        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/checkpoints/ordinary"},
    )
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert [each["Status"] for each in job["SecondaryStatusTransitions"]] == [
        *("Starting", "Downloading", "Training", "Uploading", "Completed")
    ]
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/out/ordinary/output/model.tar.gz"
    assert unpacked(shop.object("out/ordinary/output/model.tar.gz")) == {"names.json": b'["a.csv", "sub/b.csv"]'}
    assert unpacked(shop.object("out/ordinary/output/output.tar.gz")) == {"report.txt": b"report"}
    assert shop.object("checkpoints/ordinary/last") == b"checkpoint"
    assert [(each["MetricName"], each["Value"]) for each in job["FinalMetricDataList"]] == [("loss", 0.25)]
    records = shop.metrics.records(session(MARKING))
    metric = shop.metrics.metric(records, "/aws/sagemaker/TrainingJobs", "loss", (("TrainingJobName", "ordinary"),))
    assert metric is not None
    points = shop.metrics.series(records, metric, 0, 1 << 40, fine=False).values()
    assert sum(point.count for point in points) == 4  # each printed value, once
    assert sum(point.total for point in points) == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4)
    low = shop.metrics.records(session("UNCLASSIFIED"))
    assert list(shop.metrics.metrics(low, "", "")) == []
    assert "epoch=3 loss=0.25;" in shop.log("ordinary")
    assert not any((shop.directory / "scratch").iterdir())
    assert not any((shop.directory / "executor").iterdir())


def test_what_the_sandbox_achieved_is_in_the_ledger_before_it_trains(shop: Workshop) -> None:
    shop.train("recorded", "python", "-c", "pass")
    shop.wait("recorded")
    entries = [e for log in shop.ledger.entries.values() for e in log if e.get("eventName") == "RunTrainingJob"]
    ours = [e for e in entries if e["resources"][0]["ARN"].endswith("/recorded")]
    assert len(ours) == 1
    assert ours[0]["honmaru"]["details"]["isolation"]["capabilities"] == "none"
    assert ours[0]["honmaru"]["details"]["environment"]["digest"].startswith("sha384:")


def test_logs_can_be_read_while_the_job_runs(shop: Workshop) -> None:
    shop.train("live", "python", "-c", "import time; print('first', flush=True); time.sleep(30)")
    deadline = time.monotonic() + 20
    while not _has_log(shop, "live"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert shop.describe("live")["SecondaryStatus"] == "Training"
    shop.sagemaker.stop_training_job(shop.call(), {"TrainingJobName": "live"})
    job = shop.wait("live")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    with pytest.raises(ValidationFault, match="is in status Stopped"):
        shop.sagemaker.stop_training_job(shop.call(), {"TrainingJobName": "live"})


def test_max_runtime_ends_in_stopped_and_keeps_what_was_saved(shop: Workshop) -> None:
    code = "import time; open('/opt/ml/model/m', 'w').write('saved'); time.sleep(60)"
    shop.train("long", "python", "-c", code, StoppingCondition={"MaxRuntimeInSeconds": 1})
    job = shop.wait("long")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert unpacked(shop.object("out/long/output/model.tar.gz")) == {"m": b"saved"}


FILL = """
import os, time
for number in range(99):
    with open(f"/opt/ml/model/{number}", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 28)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("crash", "raise ValueError('the data are empty')", "the data are empty"),
        ("told", "import sys; open('/opt/ml/output/failure','w').write('I know why'); sys.exit(7)", "I know why"),
        ("memory", "kept = []\nwhile True: kept.append(b'x' * (64 << 20))", "more memory|MemoryError"),
        ("quota", FILL, "VolumeSizeInGB"),
        ("network", "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=3)", "unreachable"),
        ("bomb", "import os\nwhile True:\n try: os.fork()\n except OSError: pass", "more processes"),
        ("planted", "import os, sys; os.symlink('/etc/passwd', '/opt/ml/output/failure'); sys.exit(1)", "exit code: 1"),
    ],
)
def test_a_job_that_goes_wrong_fails_with_a_reason(shop: Workshop, name: str, code: str, reason: str) -> None:
    shop.train(name, "python", "-c", code)
    job = shop.wait(name)
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: ")
    assert re.search(reason, job["FailureReason"]), job["FailureReason"]
    assert "root:x" not in job["FailureReason"]
    assert f"out/{name}/output/model.tar.gz" not in shop.keys("out/")


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


ATTACKS: dict[str, Callable[[], bytes]] = {
    "traversal": lambda: archive((entry("../../model/evil"), b"x")),
    "absolute": lambda: archive((entry("/opt/ml/model/evil"), b"x")),
    "symlink": lambda: archive((entry("d", type=tarfile.SYMTYPE, linkname="/opt/ml/model"), b"")),
    "hardlink": lambda: archive((entry("h", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
    "device": lambda: archive((entry("n", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b"")),
    "pipe": lambda: archive((entry("p", type=tarfile.FIFOTYPE), b"")),
    "twice": lambda: archive((entry("train.py"), b"a"), (entry("./train.py"), b"b")),
    "garbage": lambda: b"this is no archive",
    "cut": lambda: archive((entry("train.py"), b"x" * 100_000))[:60],
    "bomb": lambda: gzip.compress(entry("zeros", size=1 << 40).tobuf() + bytes(1 << 20)),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_hostile_archive_fails_the_job_with_a_reason(shop: Workshop, attack: str) -> None:
    job = submit(shop, f"archive-{attack}", ATTACKS[attack]())
    assert job["TrainingJobStatus"] == "Failed"
    assert "archive is refused" in job["FailureReason"]


def test_requirements_that_are_not_installed_are_named(shop: Workshop) -> None:
    wanted = (tarfile.TarInfo("requirements.txt"), b"numpy\nno-such-package==1.0\n")
    job = submit(shop, "requirements", archive((tarfile.TarInfo("train.py"), b"pass"), wanted))
    assert "no-such-package==1.0" in job["FailureReason"]
    assert "numpy" not in job["FailureReason"]


GANG = """
import json, os
import torch, torch.distributed as dist
hosts = json.loads(os.environ["SM_HOSTS"])
rank = int(os.environ.get("RANK", hosts.index(os.environ["SM_CURRENT_HOST"])))
dist.init_process_group("gloo", rank=rank, world_size=int(os.environ.get("WORLD_SIZE", len(hosts))))
value = torch.ones(1) * (rank + 1)
dist.all_reduce(value)
print(f"{os.environ['SM_CURRENT_HOST']} rank={rank} sum={value.item()}", flush=True)
dist.barrier()  # nobody leaves while another still reads
dist.destroy_process_group()
"""


@pytest.mark.parametrize("torchrun", [True])
def test_two_instances_reduce_over_gloo(shop: Workshop, torchrun: bool) -> None:
    pytest.importorskip("torch")
    name = "gang-torchrun" if torchrun else "gang-plain"
    job = submit(
        shop,
        name,
        script(GANG),
        HyperParameters={"sagemaker_torch_distributed_enabled": "true"} if torchrun else {},
        ResourceConfig={"InstanceCount": 2},
        InputDataConfig=[channel(f"s3://{BUCKET}/data/", S3DataDistributionType="ShardedByS3Key")],
    )
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    log = shop.log(name)
    assert "algo-1 rank=0 sum=3.0" in log
    assert "algo-2 rank=1 sum=3.0" in log


def test_an_entry_point_of_the_newer_sdk_runs_its_driver(shop: Workshop) -> None:
    """The SDK's ModelTrainer brings a driver in a channel, makes it executable and runs it."""
    shop.put("drivers/sm_train.sh", b"#!/bin/bash\necho driver in $PWD; cat /opt/ml/input/data/training/a.csv\n")
    driver = "/opt/ml/input/data/sm_drivers/sm_train.sh"
    shop.train(
        "driver",
        "/bin/bash",
        AlgorithmSpecification={"ContainerArguments": ["-c", f"chmod +x {driver} && {driver}"]},
        InputDataConfig=[
            {**channel(f"s3://{BUCKET}/drivers/"), "ChannelName": "sm_drivers"},
            channel(f"s3://{BUCKET}/data/"),
        ],
    )
    job = shop.wait("driver")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert shop.log("driver").splitlines() == ["driver in /opt/ml", "1,2"]


def test_input_names_that_would_leave_the_channel_fail_the_job(shop: Workshop) -> None:
    shop.put("traversal/../../../../evil", b"x")
    shop.train("traversal", "true", InputDataConfig=[channel(f"s3://{BUCKET}/traversal/")])
    job = shop.wait("traversal")
    assert job["TrainingJobStatus"] == "Failed"
    assert "cannot be the name of a file" in job["FailureReason"]
    assert not list(shop.directory.rglob("evil"))


def test_a_channel_without_objects_fails_the_job(shop: Workshop) -> None:
    shop.train("empty", "true", InputDataConfig=[channel(f"s3://{BUCKET}/nothing/")])
    assert "no S3 objects found" in shop.wait("empty")["FailureReason"]


def test_the_role_decides_what_the_job_reads(shop: Workshop) -> None:
    shop.identity.denied = {"s3:GetObject"}
    try:
        shop.train("denied", "true", InputDataConfig=[channel(f"s3://{BUCKET}/data")])
        job = shop.wait("denied")
    finally:
        shop.identity.denied = set()
    assert job["TrainingJobStatus"] == "Failed"
    assert "assumed-role/jobs/SageMaker is not authorized to perform: s3:GetObject" in job["FailureReason"]


def test_create_asks_for_the_role(shop: Workshop) -> None:
    shop.identity.asked.clear()
    shop.train("passed", "true")
    assert ("iam:PassRole", ROLE, {"iam:PassedToService": "sagemaker.amazonaws.com"}) in shop.identity.asked
    shop.identity.denied, shop.identity.missing = {"iam:PassRole"}, set()
    with pytest.raises(AccessDenied):
        shop.train("not-passed", "true")
    shop.identity.denied, shop.identity.missing = set(), {ROLE}
    with pytest.raises(ValidationFault, match="Could not assume role"):
        shop.train("no-role", "true")
    shop.identity.missing = set()
    for name in ("not-passed", "no-role"):
        with pytest.raises(NotFound):
            shop.describe(name)
    shop.wait("passed")
    with pytest.raises(Conflict) as taken:
        shop.train("passed", "true")
    assert taken.value.code == "ResourceInUse"


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"VpcConfig": {"Subnets": ["s"], "SecurityGroupIds": ["g"]}}, "VpcConfig"),
        ({"DebugRuleConfigurations": [{"RuleConfigurationName": "r"}]}, "DebugRuleConfigurations"),
        ({"ExperimentConfig": {"ExperimentName": "e"}}, "ExperimentConfig"),
        ({"OutputDataConfig": {"KmsKeyId": "k"}}, "KmsKeyId"),
        ({"ResourceConfig": {"InstanceType": "ml.p4d.24xlarge"}}, "accelerators"),
        ({"ResourceConfig": {"InstanceCount": 99}}, "InstanceCount"),
        ({"AlgorithmSpecification": {"TrainingImage": "tensorflow"}}, "tensorflow"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "Pipe"}}, "Pipe"),
        ({"AlgorithmSpecification": {"MetricDefinitions": [{"Name": "m", "Regex": "("}]}}, "regular expression"),
        ({"InputDataConfig": [channel("s3://b/p", S3DataType="ManifestFile")]}, "ManifestFile"),
        ({"InputDataConfig": [channel("s3://b/p"), channel("s3://b/q")]}, "same name"),
        ({"InputDataConfig": [channel("http://b/p")]}, "not an S3 URI"),
        ({"CheckpointConfig": {"S3Uri": "s3://b/p", "LocalPath": "/etc"}}, "LocalPath"),
        ({"CheckpointConfig": {"S3Uri": "s3://b/p", "LocalPath": "/opt/ml/input/x"}}, "LocalPath"),
        ({"RemoteDebugConfig": {"EnableRemoteDebug": True}}, "EnableRemoteDebug"),
    ],
)
def test_what_would_lose_its_meaning_is_refused_by_name(shop: Workshop, members: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationFault, match=named):
        shop.train("refused", "true", **members)
    with pytest.raises(NotFound):
        shop.describe("refused")


def test_a_regular_expression_that_never_ends_does_not_stop_the_job(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("honmaru.jobs.metrics._TIME_LIMIT_S", 1)
    slow = [{"Name": "slow", "Regex": "(a+)+$"}]
    shop.train("slow-regex", "echo", "a" * 64 + "!", AlgorithmSpecification={"MetricDefinitions": slow})
    job = shop.wait("slow-regex")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert "FinalMetricDataList" not in job


def test_lists_filter_sort_and_page(shop: Workshop) -> None:
    for number in range(5):
        shop.train(f"page-{number}", "true")
    names: list[str] = []
    request: dict[str, Any] = {"NameContains": "PAGE-", "MaxResults": 2, "SortBy": "Name", "SortOrder": "Descending"}
    while True:
        answer = shop.sagemaker.list_training_jobs(shop.call(), request)
        names += [each["TrainingJobName"] for each in answer["TrainingJobSummaries"]]
        if not answer["NextToken"]:
            break
        request = {**request, "NextToken": answer["NextToken"]}
    assert names == [f"page-{number}" for number in (4, 3, 2, 1, 0)]
    failed = shop.sagemaker.list_training_jobs(shop.call(), {"StatusEquals": "Failed", "NameContains": "page-"})
    assert failed["TrainingJobSummaries"] == []
    low = shop.sagemaker.list_training_jobs(shop.call(marking="UNCLASSIFIED"), {})
    assert low["TrainingJobSummaries"] == []
    with pytest.raises(NotFound):
        shop.sagemaker.describe_training_job(shop.call(marking="UNCLASSIFIED"), {"TrainingJobName": "page-1"})
    with pytest.raises(ValidationFault, match="page token"):
        shop.sagemaker.list_training_jobs(shop.call(), {"NextToken": "nonsense"})


def test_tags(shop: Workshop) -> None:
    shop.train("tagged", "true", Tags=[{"Key": "team", "Value": "a"}])
    arn = shop.wait("tagged")["TrainingJobArn"]
    call = shop.call()
    shop.sagemaker.add_tags(call, {"ResourceArn": arn, "Tags": [{"Key": "stage", "Value": "b"}]})
    shop.sagemaker.delete_tags(call, {"ResourceArn": arn, "TagKeys": ["team"]})
    assert shop.sagemaker.list_tags(call, {"ResourceArn": arn}) == {"Tags": [{"Key": "stage", "Value": "b"}]}
    with pytest.raises(ValidationFault, match="labels never change"):
        shop.sagemaker.add_tags(call, {"ResourceArn": arn, "Tags": [{"Key": "honmaru:label", "Value": "UNCLASSIFIED"}]})
    with pytest.raises(NotFound):
        shop.sagemaker.list_tags(shop.call(marking="UNCLASSIFIED"), {"ResourceArn": arn})


def _has_log(shop: Workshop, name: str) -> bool:
    try:
        return "first" in shop.log(name)
    except NotFound:
        return False
