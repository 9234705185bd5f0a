"""Bucket policies through unmodified boto3: who may do what to a bucket, beside and against identity policies."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

ARN = "arn:aws-iso-b:s3:::"


@pytest.fixture(scope="module")
def owner(enclave: LiveEnclave) -> Any:
    return enclave.client("s3", "alice", "SECRET")


@pytest.fixture(scope="module")
def guest(enclave: LiveEnclave) -> Any:
    """Somebody whom no identity policy allows anything."""
    enclave.user("guest", "SECRET", policies=())
    return enclave.client("s3", "guest", "SECRET")


@pytest.fixture
def bucket(owner: Any) -> str:
    name = f"policy-{uuid.uuid4().hex[:12]}"
    owner.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    for key in ("open/1", "closed/1"):
        owner.put_object(Bucket=name, Key=key, Body=b"x")
    return name


def put(s3: Any, bucket: str, *statements: dict[str, Any]) -> None:
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": list(statements)}))


def denied(attempt: Callable[[], object]) -> None:
    with pytest.raises(ClientError) as error:
        attempt()
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def user(enclave: LiveEnclave, name: str) -> dict[str, str]:
    return {"AWS": f"arn:aws-iso-b:iam::{enclave.account}:user/{name}"}


def test_a_policy_allows_whom_no_identity_policy_allows(
    enclave: LiveEnclave, owner: Any, guest: Any, bucket: str
) -> None:
    denied(lambda: guest.get_object(Bucket=bucket, Key="open/1"))
    who = user(enclave, "guest")
    put(
        owner,
        bucket,
        {"Effect": "Allow", "Principal": who, "Action": "s3:GetObject", "Resource": f"{ARN}{bucket}/open/*"},
        {
            "Effect": "Allow",
            "Principal": who,
            "Action": "s3:ListBucket",
            "Resource": f"{ARN}{bucket}",
            "Condition": {"StringLike": {"s3:prefix": "open/*"}},
        },
    )
    assert guest.get_object(Bucket=bucket, Key="open/1")["Body"].read() == b"x"
    assert guest.list_objects_v2(Bucket=bucket, Prefix="open/")["KeyCount"] == 1
    denied(lambda: guest.get_object(Bucket=bucket, Key="closed/1"))
    denied(lambda: guest.list_objects_v2(Bucket=bucket))
    denied(lambda: guest.list_objects_v2(Bucket=bucket, Prefix="closed/"))
    denied(lambda: guest.put_object(Bucket=bucket, Key="open/2"))
    owner.delete_bucket_policy(Bucket=bucket)
    denied(lambda: guest.get_object(Bucket=bucket, Key="open/1"))


def test_a_policy_denies_whom_identity_policies_allow(enclave: LiveEnclave, owner: Any, bucket: str) -> None:
    bob = enclave.client("s3", "bob", "SECRET")
    assert bob.get_object(Bucket=bucket, Key="closed/1")["Body"].read() == b"x"
    put(
        owner,
        bucket,
        {
            "Effect": "Deny",
            "Principal": user(enclave, "bob"),
            "Action": ["s3:GetObject", "s3:DeleteObject"],
            "Resource": f"{ARN}{bucket}/closed/*",
        },
    )
    denied(lambda: bob.get_object(Bucket=bucket, Key="closed/1"))
    denied(lambda: bob.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "closed/1"}))
    denied(lambda: bob.delete_object(Bucket=bucket, Key="closed/1"))
    batch = bob.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "closed/1"}, {"Key": "open/1"}]})
    assert [one["Code"] for one in batch["Errors"]] == ["AccessDenied"] and len(batch["Deleted"]) == 1
    assert owner.get_object(Bucket=bucket, Key="closed/1")["Body"].read() == b"x"


def test_a_policy_asks_for_tls(enclave: LiveEnclave, owner: Any, guest: Any, bucket: str) -> None:
    """Over https a statement about insecure transport denies nobody, and one about secure transport everybody."""
    everything = {"Principal": "*", "Action": "s3:GetObject", "Resource": f"{ARN}{bucket}/*"}
    put(owner, bucket, {"Effect": "Deny", **everything, "Condition": {"Bool": {"aws:SecureTransport": "false"}}})
    assert owner.get_object(Bucket=bucket, Key="open/1")["Body"].read() == b"x"
    put(owner, bucket, {"Effect": "Deny", **everything, "Condition": {"Bool": {"aws:SecureTransport": "true"}}})
    denied(lambda: owner.get_object(Bucket=bucket, Key="open/1"))


def test_public_policies_are_blocked_until_the_block_is_off(owner: Any, guest: Any, bucket: str) -> None:
    public = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{ARN}{bucket}/*"}
    denied(lambda: put(owner, bucket, public))
    owner.delete_public_access_block(Bucket=bucket)
    put(owner, bucket, public)
    assert owner.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is True
    assert guest.get_object(Bucket=bucket, Key="open/1")["Body"].read() == b"x"
    url = f"{guest.meta.endpoint_url}/{bucket}/open/1"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url, context=_context(guest))
    assert error.value.code == 403, "everybody means everybody with credentials"


def test_no_policy_widens_a_label(enclave: LiveEnclave, owner: Any, bucket: str) -> None:
    carol = enclave.client("s3", "carol", "UNCLASSIFIED")
    who = user(enclave, "carol")
    allow = {"Effect": "Allow", "Principal": who, "Action": "s3:*", "Resource": [f"{ARN}{bucket}", f"{ARN}{bucket}/*"]}
    put(owner, bucket, allow)
    for attempt in (
        lambda: carol.get_object(Bucket=bucket, Key="open/1"),
        lambda: carol.get_bucket_policy(Bucket=bucket),
        lambda: carol.list_objects_v2(Bucket=bucket),
    ):
        with pytest.raises(ClientError) as error:
            attempt()
        assert error.value.response["Error"]["Code"] == "NoSuchBucket"


def test_a_lower_policy_binds_a_session_above(enclave: LiveEnclave, owner: Any) -> None:
    """What a session sees of a lower bucket is the lower owner's to allow; nothing of it tells who asked above."""
    carol = enclave.client("s3", "carol", "UNCLASSIFIED")
    name = f"policy-{uuid.uuid4().hex[:12]}"
    carol.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    carol.put_object(Bucket=name, Key="k", Body=b"low")
    assert owner.get_object(Bucket=name, Key="k")["Body"].read() == b"low"
    deny = {
        "Effect": "Deny",
        "Principal": user(enclave, "alice"),
        "Action": "s3:GetObject",
        "Resource": f"{ARN}{name}/*",
    }
    put(carol, name, deny)
    denied(lambda: owner.get_object(Bucket=name, Key="k"))
    assert json.loads(owner.get_bucket_policy(Bucket=name)["Policy"])["Statement"] == [deny]


def _context(client: Any) -> Any:
    import ssl

    return ssl.create_default_context(cafile=client._endpoint.http_session._verify)
