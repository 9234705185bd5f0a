"""Unmodified boto3 and AWS CLI over https against a live enclave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave


def aws(enclave: LiveEnclave, user: str, label: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(enclave.data), **enclave.variables(user, label)}
    program = Path(sys.executable).parent / "aws"
    command = [program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_who_am_i(enclave: LiveEnclave) -> None:
    answer = enclave.client("sts", "alice", "SECRET").get_caller_identity()
    assert answer["Account"] == enclave.account
    assert answer["Arn"] == f"arn:aws-iso-b:iam::{enclave.account}:user/alice"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-honmaru-label"] == "SECRET//NOFORN"


def test_s3_round_trip_through_the_aws_cli(enclave: LiveEnclave, tmp_path: Path) -> None:
    source, back = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(os.urandom(9 << 20))  # over the CLI's multipart threshold of 8 MiB
    made = aws(enclave, "alice", "SECRET", "s3", "mb", "s3://cli-bucket")
    assert made.returncode == 0, made.stderr
    up = aws(enclave, "alice", "SECRET", "s3", "cp", str(source), "s3://cli-bucket/dir/a.bin")
    assert up.returncode == 0, up.stderr
    down = aws(enclave, "alice", "SECRET", "s3", "cp", "s3://cli-bucket/dir/a.bin", str(back))
    assert down.returncode == 0, down.stderr
    assert back.read_bytes() == source.read_bytes()
    listed = aws(enclave, "alice", "SECRET", "s3", "ls", "s3://cli-bucket/dir/")
    assert "a.bin" in listed.stdout
    small = tmp_path / "small.txt"
    small.write_text("hello")
    assert aws(enclave, "alice", "SECRET", "s3", "cp", str(small), "s3://cli-bucket/small.txt").returncode == 0
    assert aws(enclave, "alice", "SECRET", "s3", "rm", "s3://cli-bucket", "--recursive").returncode == 0
    assert aws(enclave, "alice", "SECRET", "s3", "rb", "s3://cli-bucket").returncode == 0


def test_list_training_jobs_through_the_aws_cli(enclave: LiveEnclave) -> None:
    done = aws(enclave, "alice", "SECRET", "sagemaker", "list-training-jobs")
    assert done.returncode == 0, done.stderr
    assert "TrainingJobSummaries" in json.loads(done.stdout)


def test_converse_with_a_missing_model_through_the_aws_cli(enclave: LiveEnclave) -> None:
    messages = json.dumps([{"role": "user", "content": [{"text": "hi"}]}])
    done = aws(
        enclave, "alice", "SECRET", "bedrock-runtime", "converse", "--model-id", "no-such", "--messages", messages
    )
    assert done.returncode != 0
    assert "ResourceNotFoundException" in done.stderr or "ValidationException" in done.stderr


def test_a_presigned_url_works_and_a_changed_one_does_not(enclave: LiveEnclave) -> None:
    import urllib3

    s3 = enclave.client("s3", "alice", "SECRET", signature_version="s3v4")
    s3.create_bucket(Bucket="presigned", CreateBucketConfiguration={"LocationConstraint": enclave.region})
    s3.put_object(Bucket="presigned", Key="a b+ü.txt", Body=b"content")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "presigned", "Key": "a b+ü.txt"}, ExpiresIn=60)
    http = urllib3.PoolManager(ca_certs=enclave.facts["ca"])
    assert http.request("GET", url).data == b"content"
    changed = http.request("GET", url.replace("Expires=60", "Expires=61"))
    assert changed.status == 403
    assert b"SignatureDoesNotMatch" in changed.data


def test_an_uncleared_user_finds_nothing(enclave: LiveEnclave) -> None:
    high = enclave.client("s3", "alice", "SECRET")
    high.create_bucket(Bucket="above", CreateBucketConfiguration={"LocationConstraint": enclave.region})
    high.put_object(Bucket="above", Key="k", Body=b"x")
    low = enclave.client("s3", "carol")
    with pytest.raises(ClientError) as absent:
        low.list_objects_v2(Bucket="above")
    assert absent.value.response["Error"]["Code"] == "NoSuchBucket"
    with pytest.raises(ClientError) as never:
        low.list_objects_v2(Bucket="never-existed")
    assert absent.value.response["Error"]["Message"] == never.value.response["Error"]["Message"]
    assert "above" not in [b["Name"] for b in low.list_buckets()["Buckets"]]


def test_an_uncleared_user_cannot_sign_in_high(enclave: LiveEnclave) -> None:
    with pytest.raises(Exception, match="clear"):
        enclave.client("s3", "carol", "SECRET")


def test_a_label_tag_that_is_not_the_sessions_is_refused(enclave: LiveEnclave) -> None:
    sagemaker = enclave.client("sagemaker", "alice", "SECRET")
    with pytest.raises(ClientError) as refused:
        sagemaker.create_model_package_group(
            ModelPackageGroupName="tagged", Tags=[{"Key": "honmaru:label", "Value": "UNCLASSIFIED"}]
        )
    assert "SECRET" in refused.value.response["Error"]["Message"]
    sagemaker.create_model_package_group(
        ModelPackageGroupName="tagged", Tags=[{"Key": "honmaru:label", "Value": "SECRET"}]
    )


def test_unwritten_operations_say_so(enclave: LiveEnclave) -> None:
    with pytest.raises(ClientError) as refused:
        enclave.client("sagemaker", "alice", "SECRET").list_clusters()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


def test_lookup_events_shows_the_call_at_its_label_only(enclave: LiveEnclave) -> None:
    request = enclave.client("sts", "alice", "SECRET").get_caller_identity()["ResponseMetadata"]["RequestId"]

    def seen_by(user: str, label: str) -> set[str]:
        attributes = [{"AttributeKey": "EventName", "AttributeValue": "GetCallerIdentity"}]
        events = enclave.client("cloudtrail", user, label).lookup_events(LookupAttributes=attributes)["Events"]
        return {json.loads(event["CloudTrailEvent"])["requestID"] for event in events}

    assert request in seen_by("bob", "SECRET")
    assert request not in seen_by("carol", "")


def test_assume_role_signs_in_at_a_label(enclave: LiveEnclave) -> None:
    import boto3

    iam = enclave.client("iam")
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws-iso-b:iam::{enclave.account}:root"},
                "Action": ["sts:AssumeRole", "sts:TagSession"],
            }
        ],
    }
    role = iam.create_role(RoleName="signin", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    iam.attach_role_policy(RoleName="signin", PolicyArn="arn:aws-iso-b:iam::aws:policy/AmazonS3FullAccess")
    tags = [{"Key": "honmaru:label", "Value": "SECRET"}]
    with pytest.raises(ClientError):
        enclave.client("sts", "carol").assume_role(RoleArn=role, RoleSessionName="signin", Tags=tags)
    given = enclave.client("sts", "alice").assume_role(RoleArn=role, RoleSessionName="signin", Tags=tags)["Credentials"]
    session = boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], enclave.region)
    s3 = session.client("s3", endpoint_url=enclave.endpoint, verify=enclave.facts["ca"])
    assert s3.list_buckets()["ResponseMetadata"]["HTTPHeaders"]["x-honmaru-label"] == "SECRET//NOFORN"


def test_data_survive_a_kill(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path / "data", "us-gov-west-1").up()
    try:
        s3 = live.client("s3", "admin")
        s3.create_bucket(Bucket="kept", CreateBucketConfiguration={"LocationConstraint": live.region})
        s3.put_object(Bucket="kept", Key="k", Body=b"v")
        live.kill()
        live.up()
        assert live.client("s3", "admin").get_object(Bucket="kept", Key="k")["Body"].read() == b"v"
    finally:
        live.down()
