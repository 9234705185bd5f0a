"""A training script that calls boto3 inside its sandbox: as its execution role, at its label, through its broker."""

from __future__ import annotations

import io
import json
import tarfile
import time
from typing import Any

import pytest

from honmaru.testing.enclaves import LiveEnclave

SCRIPT = """
import json, os, socket, ssl
from pathlib import Path
import boto3
from botocore.exceptions import ClientError

def code(run):
    try:
        run()
    except ClientError as refusal:
        return refusal.response["Error"]["Code"]
    return "allowed"

said = {}
sts, s3, iam = boto3.client("sts"), boto3.client("s3"), boto3.client("iam")
me = sts.get_caller_identity()
said["arn"] = me["Arn"]
said["label"] = me["ResponseMetadata"]["HTTPHeaders"]["x-honmaru-label"]
said["read"] = s3.get_object(Bucket="job-data", Key="in/open")["Body"].read().decode()
s3.put_object(Bucket="job-data", Key="out/made", Body=b"inside")
said["listed"] = sorted(o["Key"] for o in s3.list_objects_v2(Bucket="job-data")["Contents"])
said["above"] = code(lambda: s3.get_object(Bucket="job-data", Key="in/above"))
said["elsewhere"] = code(lambda: s3.put_object(Bucket="job-data", Key="forbidden/x", Body=b"x"))
said["iam"] = code(lambda: iam.list_users())
role = me["Arn"].replace(":sts:", ":iam:").replace("assumed-role", "role").rpartition("/")[0]
said["raise"] = code(lambda: sts.assume_role(RoleArn=role, RoleSessionName="higher",
                                             Tags=[{"Key": "honmaru:label", "Value": "SECRET"}]))
sockets = sorted(each.name for each in Path("/run/broker").iterdir())
said["sockets"] = sockets
try:
    with socket.socket(socket.AF_UNIX) as bare:
        bare.connect("/run/broker/credentials")
        bare.settimeout(5)
        bare.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        said["without an identity"] = bare.recv(100).decode("latin-1")[:20]
except OSError as fault:
    said["without an identity"] = ""
with socket.socket(socket.AF_UNIX) as outside:
    outside.connect("/run/broker/svid")
    document = b""
    while chunk := outside.recv(65536):
        document += chunk
svid = json.loads(document)
said["spiffe"] = svid["spiffe_id"]
said["certificate"] = svid["certificate"]
json.dump(said, open(os.path.join(os.environ["SM_MODEL_DIR"], "said.json"), "w"))
"""
ISOLATED = """
import os, json
from pathlib import Path
said = {"credentials": os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", ""), "broker": Path("/run/broker").exists()}
json.dump(said, open(os.path.join(os.environ["SM_MODEL_DIR"], "said.json"), "w"))
"""


class Site:
    """A role that may do little, a bucket with objects at two labels, and jobs."""

    def __init__(self, enclave: LiveEnclave) -> None:
        self.enclave = enclave
        partition = enclave.facts["partition"]
        iam = enclave.client("iam")
        trust = {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {
                "StringEquals": {"aws:SourceAccount": enclave.account},
                "ArnLike": {"aws:SourceArn": f"arn:*:sagemaker:*:{enclave.account}:training-job/*"},
            },
        }
        own = [
            {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "arn:*:s3:::job-data*"},
            {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:*:s3:::job-data/out/*"},
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"},
        ]
        self.role = f"arn:{partition}:iam::{enclave.account}:role/modest"
        iam.create_role(
            RoleName="modest", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": trust})
        )
        document = json.dumps({"Version": "2012-10-17", "Statement": own})
        iam.put_role_policy(RoleName="modest", PolicyName="own", PolicyDocument=document)
        self.s3 = enclave.client("s3")
        self.s3.create_bucket(Bucket="job-data", CreateBucketConfiguration={"LocationConstraint": enclave.region})
        self.s3.put_object(Bucket="job-data", Key="in/open", Body=b"open")
        enclave.client("s3", label="SECRET").put_object(Bucket="job-data", Key="in/above", Body=b"above")
        self.sagemaker = enclave.client("sagemaker")

    def run(self, name: str, script: str, **more: Any) -> dict[str, Any]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            entry = tarfile.TarInfo("train.py")
            entry.size = len(script.encode())
            archive.addfile(entry, io.BytesIO(script.encode()))
        self.s3.put_object(Bucket="job-data", Key=f"source/{name}.tar.gz", Body=buffer.getvalue())
        source = f"s3://job-data/source/{name}.tar.gz"
        self.sagemaker.create_training_job(
            TrainingJobName=name,
            RoleArn=self.role,
            AlgorithmSpecification={"TrainingImage": "pytorch", "TrainingInputMode": "File"},
            HyperParameters={
                "sagemaker_program": json.dumps("train.py"),
                "sagemaker_submit_directory": json.dumps(source),
            },
            OutputDataConfig={"S3OutputPath": "s3://job-data/out"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            StoppingCondition={"MaxRuntimeInSeconds": 300},
            **more,
        )
        deadline = time.monotonic() + 90
        while True:
            job = self.sagemaker.describe_training_job(TrainingJobName=name)
            if job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"):
                break
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
        bucket, _, key = job["ModelArtifacts"]["S3ModelArtifacts"].removeprefix("s3://").partition("/")
        body = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            member = next(m for m in archive if m.name.endswith("said.json"))
            said: dict[str, Any] = json.load(archive.extractfile(member))  # type: ignore[arg-type]
        return said


@pytest.fixture(scope="module")
def site(enclave: LiveEnclave) -> Site:
    return Site(enclave)


def test_unmodified_boto3_inside_a_job_is_its_role_at_its_label_and_nothing_more(site: Site) -> None:
    from cryptography import x509

    said = site.run("caller", SCRIPT)
    assert said["arn"].endswith(":assumed-role/modest/SageMaker")
    assert said["label"] == "UNCLASSIFIED"
    assert said["read"] == "open"
    assert "in/above" not in said["listed"] and "out/made" in said["listed"]
    assert said["above"] == "NoSuchKey"
    assert said["elsewhere"] == said["iam"] == said["raise"] == "AccessDenied"
    assert said["sockets"] == ["aws", "credentials", "svid"]
    assert "AccessKeyId" not in said["without an identity"]
    assert said["spiffe"].endswith(f"/account/{site.enclave.account}/sagemaker/training-job/caller")
    certificate = x509.load_pem_x509_certificate(said["certificate"].encode())
    minutes = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() / 60
    assert minutes <= 15
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [said["spiffe"]]
    assert site.s3.get_object(Bucket="job-data", Key="out/made")["Body"].read() == b"inside"


def test_a_job_with_network_isolation_has_no_way_out_and_no_keys(site: Site) -> None:
    said = site.run("isolated", ISOLATED, EnableNetworkIsolation=True)
    assert said == {"credentials": "", "broker": False}
