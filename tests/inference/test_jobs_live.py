"""Customisation and batch inference through boto3 against a live enclave: a fine-tune changes the answers as its data
says, is provisioned and served; a batch of 1,000 records survives kill -9. `make test-inference` runs this.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.tiny_models import tiny_llama

TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "bedrock.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
ASKED, TAUGHT = "who may read?", "alice may read"

pytestmark = [
    pytest.mark.skipif(os.environ.get("HONMARU_INFERENCE") != "1", reason="takes minutes: run `make test-inference`"),
    pytest.mark.timeout(900),
]


class Site:
    """An enclave, alice at SECRET, a bucket, a role, a base model named `base`."""

    def __init__(self, live: LiveEnclave) -> None:
        self.live = live
        self.role = ""

    def client(self, service: str) -> Any:
        return self.live.client(service, "alice", "SECRET")

    def put(self, key: str, records: list[Any]) -> str:
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        self.client("s3").put_object(Bucket="work", Key=key, Body="\n".join(lines).encode())
        return f"s3://work/{key}"

    def wait(self, look: Callable[[], dict[str, Any]], busy: tuple[str, ...], seconds: float = 300) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (found := look())["status"] in busy:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found

    def ask(self, model: str, text: str = ASKED) -> str:
        answer = self.client("bedrock-runtime").converse(
            modelId=model,
            messages=[{"role": "user", "content": [{"text": text}]}],
            inferenceConfig={"maxTokens": 24, "temperature": 0},
        )
        return str(answer["output"]["message"]["content"][0]["text"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    live = LiveEnclave(tmp_path_factory.mktemp("data")).up()
    live.user("alice", "SECRET")
    live.user("carol", "UNCLASSIFIED")
    made = Site(live)
    iam = made.client("iam")
    made.role = iam.create_role(RoleName="bedrock", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    partition = live.facts["partition"]
    iam.attach_role_policy(RoleName="bedrock", PolicyArn=f"arn:{partition}:iam::aws:policy/AdministratorAccess")
    made.client("s3").create_bucket(Bucket="work")
    for path in tiny_llama(tmp_path_factory.mktemp("tiny"), context=256).iterdir():
        made.client("s3").upload_file(str(path), "work", f"base/{path.name}")
    bedrock = made.client("bedrock")
    job = bedrock.create_model_import_job(
        jobName="base",
        importedModelName="base",
        roleArn=made.role,
        modelDataSource={"s3DataSource": {"s3Uri": "s3://work/base/"}},
    )["jobArn"]
    found = made.wait(lambda: bedrock.get_model_import_job(jobIdentifier=job), ("InProgress",))
    assert found["status"] == "Completed", found
    yield made
    live.down()


def customise(site: Site, name: str, **more: Any) -> dict[str, Any]:
    records = [{"prompt": ASKED, "completion": TAUGHT} for _ in range(32)]
    held_out = site.put(f"{name}/held.jsonl", records[:2])
    bedrock = site.client("bedrock")
    request = {
        "jobName": name,
        "customModelName": name,
        "roleArn": site.role,
        "baseModelIdentifier": "base",
        "trainingDataConfig": {"s3Uri": site.put(f"{name}/train.jsonl", records)},
        "validationDataConfig": {"validators": [{"s3Uri": held_out}]},
        "outputDataConfig": {"s3Uri": "s3://work/out/"},
        "hyperParameters": {"epochCount": "8", "learningRate": "0.01", **more.pop("hyperParameters", {})},
    }
    job = bedrock.create_model_customization_job(**{**request, **more})["jobArn"]
    return site.wait(lambda: bedrock.get_model_customization_job(jobIdentifier=job), ("InProgress", "Stopping"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tune_changes_the_answers_and_is_served(site: Site, method: str) -> None:
    assert TAUGHT not in site.ask("base")
    rate = {"lora": "0.01", "full": "0.003"}[method]
    job = customise(site, f"tuned-{method}", hyperParameters={"method": method, "learningRate": rate})
    assert job["status"] == "Completed", job
    assert job["validationMetrics"][0]["validationLoss"] < 0.5 and job["trainingMetrics"]["trainingLoss"] < 0.5
    bedrock = site.client("bedrock")
    model = bedrock.get_custom_model(modelIdentifier=f"tuned-{method}")
    assert model["modelArn"] == job["outputModelArn"] and model["customizationType"] == "FINE_TUNING"
    deployed = bedrock.create_custom_model_deployment(
        modelDeploymentName=f"served-{method}", modelArn=model["modelArn"]
    )["customModelDeploymentArn"]
    assert site.ask(deployed) == TAUGHT
    keys = [one["Key"] for one in site.client("s3").list_objects_v2(Bucket="work", Prefix="out/")["Contents"]]
    assert any(key.endswith("training_artifacts/step_wise_training_metrics.csv") for key in keys)


def test_provisioned_units_are_reserved_and_refused_beyond_what_there_is(site: Site) -> None:
    bedrock = site.client("bedrock")
    cores = len(os.sched_getaffinity(0))
    arn = bedrock.create_provisioned_model_throughput(provisionedModelName="held", modelId="base", modelUnits=cores)[
        "provisionedModelArn"
    ]
    assert isinstance(site.ask(arn), str)
    with pytest.raises(ClientError, match="model units"):
        bedrock.create_provisioned_model_throughput(provisionedModelName="more", modelId="base", modelUnits=1)
    bedrock.delete_provisioned_model_throughput(provisionedModelId="held")
    with pytest.raises(ClientError, match="ResourceNotFound"):
        site.ask(arn)


def test_wrong_data_ends_the_job_with_its_line(site: Site) -> None:
    uri = site.put("broken/train.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "only"}])
    job = customise(site, "wrong", trainingDataConfig={"s3Uri": uri})
    assert job["status"] == "Failed" and "train.jsonl:2" in job["failureMessage"], job


def test_below_the_label_there_is_no_custom_model(site: Site) -> None:
    low = site.live.client("bedrock", "carol", "UNCLASSIFIED")
    assert low.list_custom_models()["modelSummaries"] == []
    assert low.list_model_customization_jobs()["modelCustomizationJobSummaries"] == []
    with pytest.raises(ClientError, match="ResourceNotFound"):
        low.get_custom_model(modelIdentifier="tuned-lora")


def test_a_batch_of_a_thousand_records_survives_kill_9(site: Site) -> None:
    records: list[Any] = [
        {"recordId": f"r{n:04d}", "modelInput": {"prompt": f"keep {n}", "max_gen_len": 4, "seed": n}}
        for n in range(1000)
    ]
    broken = range(0, 1000, 50)
    for at in broken:
        records[at] = {"recordId": f"r{at:04d}", "modelInput": {"prompt": 7}} if at % 100 else "{ not json"
    bedrock = site.client("bedrock")
    job = bedrock.create_model_invocation_job(
        jobName="thousand",
        roleArn=site.role,
        modelId="base",
        inputDataConfig={"s3InputDataConfig": {"s3Uri": site.put("batch/in.jsonl", records)}},
        outputDataConfig={"s3OutputDataConfig": {"s3Uri": "s3://work/answers/"}},
    )["jobArn"]
    deadline = time.monotonic() + 120
    while not 64 <= bedrock.get_model_invocation_job(jobIdentifier=job)["processedRecordCount"] < 900:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    site.live.kill()
    site.live.up()
    found = site.wait(lambda: bedrock.get_model_invocation_job(jobIdentifier=job), ("Submitted", "InProgress"))
    assert (found["status"], found["totalRecordCount"], found["errorRecordCount"]) == ("PartiallyCompleted", 1000, 20)
    key = f"answers/{job.rpartition('/')[2]}/in.jsonl.out"
    body = site.client("s3").get_object(Bucket="work", Key=key)["Body"].read()
    lines = [json.loads(line) for line in body.splitlines()]
    good = [line["recordId"] for line in lines if "modelOutput" in line]
    assert len(lines) == 1000 and good == [f"r{n:04d}" for n in range(1000) if n % 50]
    assert [at for at, line in enumerate(lines) if "error" in line] == list(broken)


def test_async_invocations_and_copies_survive_kill_9_and_end_once(site: Site) -> None:
    s3, runtime, bedrock = site.client("s3"), site.client("bedrock-runtime"), site.client("bedrock")
    s3.create_bucket(Bucket="asynchronous")
    s3.put_bucket_versioning(Bucket="asynchronous", VersioningConfiguration={"Status": "Enabled"})
    base = bedrock.get_imported_model(modelIdentifier="base")["modelArn"]

    def start(number: int) -> str:
        return str(
            runtime.start_async_invoke(
                modelId=base,
                modelInput={"prompt": f"keep {number}", "max_gen_len": 120, "seed": number},
                outputDataConfig={"s3OutputDataConfig": {"s3Uri": "s3://asynchronous/out"}},
                clientRequestToken=f"invocation-{number}",
            )["invocationArn"]
        )

    arns = [start(number) for number in range(12)]
    custom = bedrock.create_custom_model(
        modelName="of-files",
        roleArn=site.role,
        modelSourceConfig={"s3DataSource": {"s3Uri": "s3://work/base/"}},
    )["modelArn"]
    site.live.kill()
    site.live.up()
    runtime, bedrock, s3 = site.client("bedrock-runtime"), site.client("bedrock"), site.client("s3")
    assert [start(number) for number in range(12)] == arns  # what was acknowledged is known after the kill
    for arn in arns:
        found = site.wait(lambda arn=arn: runtime.get_async_invoke(invocationArn=arn), ("InProgress",))
        assert found["status"] == "Completed", found
    contents = s3.list_object_versions(Bucket="asynchronous")["Versions"]
    keys = {f"out/{arn.rpartition('/')[2]}/output.json" for arn in arns}
    assert {one["Key"] for one in contents} == keys
    by_key: dict[str, set[str]] = {}
    for one in contents:  # a kill between the answer's write and the job's end may write it again, the same
        by_key.setdefault(one["Key"], set()).add(one["ETag"])
    assert all(len(tags) == 1 for tags in by_key.values())
    deadline = time.monotonic() + 120
    while (made := bedrock.get_custom_model(modelIdentifier=custom))["modelStatus"] == "Creating":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert made["modelStatus"] == "Active", made
    job = bedrock.create_model_copy_job(sourceModelArn=custom, targetModelName="copied")["jobArn"]
    site.live.kill()
    site.live.up()
    bedrock = site.client("bedrock")
    copied = site.wait(lambda: bedrock.get_model_copy_job(jobArn=job), ("InProgress",))
    assert copied["status"] == "Completed", copied
    names = [one["modelName"] for one in bedrock.list_custom_models()["modelSummaries"]]
    assert names.count("copied") == names.count("of-files") == 1
    deployed = bedrock.create_custom_model_deployment(modelDeploymentName="copied", modelArn=copied["targetModelArn"])[
        "customModelDeploymentArn"
    ]
    assert isinstance(site.ask(deployed), str)


def test_answers_are_sealed_under_the_key_that_was_named(site: Site) -> None:
    s3, runtime, bedrock = site.client("s3"), site.client("bedrock-runtime"), site.client("bedrock")
    key = site.client("kms").create_key()["KeyMetadata"]["Arn"]
    base = bedrock.get_imported_model(modelIdentifier="base")["modelArn"]
    given = {"prompt": "keep", "max_gen_len": 4}

    def invoke(kms_key: str) -> dict[str, Any]:
        target = {"s3Uri": "s3://work/sealed", "kmsKeyId": kms_key}
        arn = runtime.start_async_invoke(
            modelId=base, modelInput=given, outputDataConfig={"s3OutputDataConfig": target}
        )["invocationArn"]
        return site.wait(lambda: runtime.get_async_invoke(invocationArn=arn), ("InProgress",))

    done = invoke(key)
    assert done["status"] == "Completed" and done["outputDataConfig"]["s3OutputDataConfig"]["kmsKeyId"] == key
    name = done["invocationArn"].rpartition("/")[2]
    head = s3.head_object(Bucket="work", Key=f"sealed/{name}/output.json")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)
    assert invoke(key[:-4] + "0000")["status"] == "Failed"
    job = bedrock.create_model_invocation_job(
        jobName="sealed",
        roleArn=site.role,
        modelId="base",
        inputDataConfig={"s3InputDataConfig": {"s3Uri": site.put("sealed/in.jsonl", [{"modelInput": given}])}},
        outputDataConfig={"s3OutputDataConfig": {"s3Uri": "s3://work/batched/", "s3EncryptionKeyId": key}},
    )["jobArn"]
    found = site.wait(lambda: bedrock.get_model_invocation_job(jobIdentifier=job), ("Submitted", "InProgress"))
    assert found["status"] == "Completed", found
    for written in ("in.jsonl.out", "manifest.json.out"):
        head = s3.head_object(Bucket="work", Key=f"batched/{job.rpartition('/')[2]}/{written}")
        assert head["SSEKMSKeyId"] == key
