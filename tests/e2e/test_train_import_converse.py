"""The main job through boto3 on a live enclave: train on labelled text, approve, import, ask, be refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": ["sagemaker.amazonaws.com", "bedrock.amazonaws.com"]},
            "Action": "sts:AssumeRole",
        }
    ],
}
TEXT = "\n\n\n".join(
    f"Entry {number}. The keeper of gate {number % 9} keeps key {number * 7 % 31}; the ledger of the keep records it."
    for number in range(300)
)
SMALL = {
    "max_steps": "30", "vocab_size": "300", "hidden_size": "32", "layers": "1", "heads": "2", "key_value_heads": "1",
    "context": "64", "learning_rate": "0.01", "warmup_steps": "5", "log_every_seconds": "0.2",
}  # fmt: skip


def wait(describe: Callable[[], dict[str, Any]], member: str, *, until: tuple[str, ...]) -> dict[str, Any]:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        found = describe()
        if found[member] in until:
            return found
        time.sleep(0.3)
    raise TimeoutError(str(found))


@pytest.mark.timeout(300)
def test_from_labelled_text_to_a_governed_answering_model(enclave: LiveEnclave) -> None:
    alice = {name: enclave.client(name, "alice", "SECRET") for name in ("iam", "s3", "sagemaker", "bedrock")}
    runtime = enclave.client("bedrock-runtime", "alice", "SECRET", read_timeout=120)
    role = alice["iam"].create_role(RoleName="builder", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    alice["iam"].attach_role_policy(
        RoleName="builder", PolicyArn=f"arn:{role.split(':')[1]}:iam::aws:policy/AdministratorAccess"
    )
    alice["s3"].create_bucket(Bucket="lm-text")
    alice["s3"].put_object(Bucket="lm-text", Key="corpus/text.txt", Body=TEXT.encode())
    alice["sagemaker"].create_training_job(
        TrainingJobName="keeper-lm",
        AlgorithmSpecification={
            "TrainingImage": "honmaru-lm",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "bits", "Regex": r"validation:bits_per_byte=([0-9.]+)"}],
        },
        RoleArn=role,
        HyperParameters=SMALL,
        InputDataConfig=[
            {
                "ChannelName": "training",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": "s3://lm-text/corpus/",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        OutputDataConfig={"S3OutputPath": "s3://lm-text/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 2},
        StoppingCondition={"MaxRuntimeInSeconds": 120},
    )
    job = wait(
        lambda: alice["sagemaker"].describe_training_job(TrainingJobName="keeper-lm"),
        "TrainingJobStatus",
        until=("Completed", "Failed", "Stopped"),
    )
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert 0 < job["FinalMetricDataList"][0]["Value"] < 8
    artifact = job["ModelArtifacts"]["S3ModelArtifacts"]

    alice["sagemaker"].create_model_package_group(ModelPackageGroupName="keepers")
    package = alice["sagemaker"].create_model_package(
        ModelPackageGroupName="keepers",
        InferenceSpecification={
            "Containers": [{"Image": "honmaru-lm", "ModelDataUrl": artifact}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
    )["ModelPackageArn"]
    request = {
        "jobName": "import-keeper",
        "importedModelName": "keeper-lm",
        "roleArn": role,
        "modelDataSource": {"s3DataSource": {"s3Uri": artifact}},
    }
    with pytest.raises(ClientError, match="PendingManualApproval"):
        alice["bedrock"].create_model_import_job(**request)
    approval = {"ModelPackageArn": package, "ModelApprovalStatus": "Approved", "ApprovalDescription": "read and agreed"}
    with pytest.raises(ClientError):
        alice["sagemaker"].update_model_package(**approval)
    enclave.client("sagemaker", "bob", "SECRET").update_model_package(**approval)

    arn = alice["bedrock"].create_model_import_job(**request)["jobArn"]
    imported = wait(
        lambda: alice["bedrock"].get_model_import_job(jobIdentifier=arn), "status", until=("Completed", "Failed")
    )
    assert imported["status"] == "Completed", imported.get("failureMessage")
    model = imported["importedModelArn"]
    assert model in [m["modelArn"] for m in alice["bedrock"].list_imported_models()["modelSummaries"]]

    question = {
        "modelId": model,
        "messages": [{"role": "user", "content": [{"text": "Entry 7."}]}],
        "inferenceConfig": {"maxTokens": 12},
        "additionalModelRequestFields": {"seed": 3},
    }
    whole = runtime.converse(**question)
    assert whole["ResponseMetadata"]["HTTPHeaders"]["x-honmaru-label"].startswith("SECRET")
    events = list(runtime.converse_stream(**question)["stream"])
    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)
    assert text == whole["output"]["message"]["content"][0]["text"]
    assert events[-1]["metadata"]["usage"] == whole["usage"]
    counted = runtime.count_tokens(modelId=model, input={"converse": {"messages": question["messages"]}})
    assert counted["inputTokens"] == whole["usage"]["inputTokens"]
    body = json.dumps({"prompt": "Entry", "max_gen_len": 5})
    native = runtime.invoke_model(modelId=model, body=body)
    assert json.loads(native["body"].read())["generation_token_count"] <= 5
    chunks = list(runtime.invoke_model_with_response_stream(modelId=model, body=body)["body"])
    assert "amazon-bedrock-invocationMetrics" in json.loads(chunks[-1]["chunk"]["bytes"])
    with pytest.raises(ClientError, match="images") as refused:
        image = {"image": {"format": "png", "source": {"bytes": b"x"}}}
        runtime.converse(**{**question, "messages": [{"role": "user", "content": [image]}]})
    assert refused.value.response["Error"]["Code"] == "ValidationException"

    low = enclave.client("bedrock-runtime", "carol", "UNCLASSIFIED")
    refusals = set()
    for identifier in (model, model[:-6] + "aaaaaa"):
        with pytest.raises(ClientError) as caught:
            low.converse(modelId=identifier, messages=question["messages"])
        refusals.add(str(caught.value).replace(identifier, "X"))
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
    assert len(refusals) == 1
    assert enclave.client("bedrock", "carol", "UNCLASSIFIED").list_imported_models()["modelSummaries"] == []

    alice["bedrock"].delete_imported_model(modelIdentifier=model)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        runtime.converse(**question)
