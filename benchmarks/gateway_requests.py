"""Requests of the gateway's benchmarks, signed ahead by botocore as clients sign them, and what they need to exist."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.credentials
from botocore.config import Config

BUCKET = "bench-gateway"
JOB = "bench-gateway"
POOL = 64
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


@dataclass(frozen=True)
class Site:
    """A server under measurement. `ca` is None for plain HTTP; moto ignores the keys."""

    name: str
    endpoint: str
    region: str
    access_key: str
    secret_key: str
    pids: tuple[int, ...] = ()
    ca: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def client(self, service: str) -> Any:
        return boto3.Session(
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key, region_name=self.region
        ).client(service, endpoint_url=self.endpoint, verify=self.ca, config=Config(retries={"total_max_attempts": 2}))

    def signed(self, service: str, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> str:
        """One request as it crosses the wire, in base64."""
        headers = {**headers, "User-Agent": "Boto3/1.44 md/Botocore#1.44 ua/2.1 os/linux lang/python#3.11"}
        if service == "s3":
            headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
        request = botocore.awsrequest.AWSRequest(method, f"{self.endpoint}{path}", headers, body)
        credentials = botocore.credentials.Credentials(self.access_key, self.secret_key)
        signer = botocore.auth.S3SigV4Auth if service == "s3" else botocore.auth.SigV4Auth
        signer(credentials, service, self.region).add_auth(request)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.endpoint.rpartition('/')[2]}", "Connection: keep-alive"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if body or method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        return base64.b64encode("\r\n".join(lines).encode() + b"\r\n\r\n" + body).decode()


def lay_out(site: Site) -> None:
    """The bucket, objects of both sizes and one training job, made with boto3."""
    s3 = site.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": site.region})
    for number in range(POOL):
        s3.put_object(Bucket=BUCKET, Key=f"get/1k/{number}", Body=bytes([number]) * 1024)
    for number in range(8):
        s3.put_object(Bucket=BUCKET, Key=f"get/1m/{number}", Body=bytes([number]) * (1 << 20))
    iam = site.client("iam")
    role = iam.create_role(RoleName="bench-training", AssumeRolePolicyDocument=json.dumps(_TRUST))["Role"]["Arn"]
    sagemaker = site.client("sagemaker")
    sagemaker.create_training_job(
        TrainingJobName=JOB,
        RoleArn=role,
        AlgorithmSpecification={"TrainingImage": "pytorch", "TrainingInputMode": "File"},
        HyperParameters={"epochs": "3", "learning-rate": "0.01"},
        InputDataConfig=[
            {
                "ChannelName": "training",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/get/1k/"}},
            }
        ],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
        Tags=[{"Key": "purpose", "Value": "benchmark"}],
    )
    deadline = time.monotonic() + 60
    while sagemaker.describe_training_job(TrainingJobName=JOB)["TrainingJobStatus"] == "InProgress":
        if time.monotonic() > deadline:
            raise RuntimeError("the training job does not end")
        time.sleep(0.2)


def identity(site: Site, number: int) -> str:
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    return site.signed("sts", "POST", "/", {"Content-Type": _FORM, "X-Bench": str(number)}, body)


def describe(site: Site, number: int) -> str:
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "SageMaker.DescribeTrainingJob"}
    body = json.dumps({"TrainingJobName": JOB}).encode()
    return site.signed("sagemaker", "POST", "/", {**headers, "X-Bench": str(number)}, body)


def put(size: int, name: str) -> Callable[[Site, int], str]:
    def made(site: Site, number: int) -> str:
        headers = {"Content-Type": "application/octet-stream"}
        return site.signed("s3", "PUT", f"/{BUCKET}/put/{name}/{number}", headers, bytes([number]) * size)

    return made


def get(name: str) -> Callable[[Site, int], str]:
    return lambda site, number: site.signed("s3", "GET", f"/{BUCKET}/get/{name}/{number}", {})


_FORM = "application/x-www-form-urlencoded; charset=utf-8"


@dataclass(frozen=True)
class Operation:
    """One row of the table."""

    name: str
    make: Callable[[Site, int], str]
    pool: int = POOL
    connections: int = 16
    simple: bool = False

    def requests(self, site: Site) -> list[str]:
        """Signed now: good for five minutes."""
        return [self.make(site, number) for number in range(self.pool)]


OPERATIONS = (
    Operation("sts GetCallerIdentity", identity, simple=True),
    Operation("sagemaker DescribeTrainingJob", describe, simple=True),
    Operation("s3 PutObject 1 KiB", put(1024, "1k")),
    Operation("s3 GetObject 1 KiB", get("1k")),
    Operation("s3 PutObject 1 MiB", put(1 << 20, "1m"), pool=8, connections=4),
    Operation("s3 GetObject 1 MiB", get("1m"), pool=8, connections=4),
)
