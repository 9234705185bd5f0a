"""SSE-KMS through unmodified boto3: what is sealed under a key of KMS opens while the key lets it, and for whom."""

from __future__ import annotations

import base64
import json
import os
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

KMS = {"ServerSideEncryption": "aws:kms"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def s3(enclave: LiveEnclave) -> Any:
    return enclave.client("s3", "alice", "SECRET")


@pytest.fixture(scope="module")
def kms(enclave: LiveEnclave) -> Any:
    return enclave.client("kms", "alice", "SECRET")


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    name = f"sealed-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    return name


def refused(code: str, call: Any, **members: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(**members)
    assert error.value.response["Error"]["Code"] == code, error.value


def body(s3: Any, bucket: str, key: str) -> bytes:
    return bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())


def test_objects_copies_and_uploads(s3: Any, kms: Any, bucket: str) -> None:
    key = kms.create_key()["KeyMetadata"]
    context = base64.b64encode(json.dumps({"team": "red"}).encode()).decode()
    content = os.urandom(3 * MIB)
    put = s3.put_object(
        Bucket=bucket, Key="one", Body=content, SSEKMSKeyId=key["KeyId"], SSEKMSEncryptionContext=context, **KMS
    )
    assert (put["ServerSideEncryption"], put["SSEKMSKeyId"]) == ("aws:kms", key["Arn"])
    head = s3.head_object(Bucket=bucket, Key="one")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key["Arn"])
    assert body(s3, bucket, "one") == content
    assert s3.get_object(Bucket=bucket, Key="one", Range="bytes=5-9")["Body"].read() == content[5:10]
    s3.copy_object(Bucket=bucket, Key="plain", CopySource=f"{bucket}/one")
    assert s3.head_object(Bucket=bucket, Key="plain")["ServerSideEncryption"] == "AES256"
    s3.copy_object(Bucket=bucket, Key="plain", CopySource=f"{bucket}/plain", **KMS)
    assert s3.head_object(Bucket=bucket, Key="plain")["SSEKMSKeyId"] != key["Arn"]  # the platform's own key of S3
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts", SSEKMSKeyId=key["Arn"], **KMS)
    assert upload["SSEKMSKeyId"] == key["Arn"]
    parts = []
    for number, piece in enumerate((os.urandom(5 * MIB), b"end"), 1):
        members = {"Bucket": bucket, "Key": "parts", "UploadId": upload["UploadId"], "PartNumber": number}
        parts.append({"PartNumber": number, "ETag": s3.upload_part(Body=piece, **members)["ETag"]})
    members = {"Bucket": bucket, "Key": "parts", "UploadId": upload["UploadId"]}
    done = s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **members)
    assert done["SSEKMSKeyId"] == key["Arn"] and body(s3, bucket, "parts").endswith(b"end")
    kms.disable_key(KeyId=key["KeyId"])
    for name in ("one", "parts"):
        refused("KMS.DisabledException", s3.get_object, Bucket=bucket, Key=name)
    refused("KMS.DisabledException", s3.copy_object, Bucket=bucket, Key="again", CopySource=f"{bucket}/one")
    refused("KMS.DisabledException", s3.put_object, Bucket=bucket, Key="x", SSEKMSKeyId=key["KeyId"], **KMS)
    s3.head_object(Bucket=bucket, Key="one")
    kms.schedule_key_deletion(KeyId=key["KeyId"], PendingWindowInDays=7)
    refused("KMS.KMSInvalidStateException", s3.get_object, Bucket=bucket, Key="one")
    kms.cancel_key_deletion(KeyId=key["KeyId"])
    kms.enable_key(KeyId=key["KeyId"])
    kms.rotate_key_on_demand(KeyId=key["KeyId"])
    assert body(s3, bucket, "one") == content


def test_defaults_and_bucket_keys(s3: Any, kms: Any) -> None:
    bucket = f"default-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    key = kms.create_key()["KeyMetadata"]["Arn"]
    applied = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    rules = [{"ApplyServerSideEncryptionByDefault": applied, "BucketKeyEnabled": True}]
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": rules})
    for name in ("a", "b"):
        put = s3.put_object(Bucket=bucket, Key=name, Body=name.encode())
        assert (put["SSEKMSKeyId"], put["BucketKeyEnabled"]) == (key, True)
    assert s3.put_object(Bucket=bucket, Key="c", ServerSideEncryption="AES256")["ServerSideEncryption"] == "AES256"
    assert [body(s3, bucket, name) for name in "ab"] == [b"a", b"b"]
    kms.disable_key(KeyId=key)
    refused("KMS.DisabledException", s3.get_object, Bucket=bucket, Key="b")
    refused("KMS.DisabledException", s3.put_object, Bucket=bucket, Key="d")


def test_wrong_requests(s3: Any, bucket: str) -> None:
    put = {"Bucket": bucket, "Key": "x"}
    refused("InvalidArgument", s3.put_object, SSEKMSKeyId=str(uuid.uuid4()), **put)
    refused("KMS.NotFoundException", s3.put_object, SSEKMSKeyId=str(uuid.uuid4()), **put, **KMS)
    refused("NotImplemented", s3.put_object, ServerSideEncryption="aws:kms:dsse", **put)
    refused("InvalidArgument", s3.put_object, SSEKMSEncryptionContext="no", **put, **KMS)


def test_reading_needs_the_key_too(enclave: LiveEnclave, s3: Any, kms: Any, bucket: str) -> None:
    enclave.user("reader", "SECRET", ["AmazonS3FullAccess"])
    reader = enclave.client("s3", "reader", "SECRET")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    s3.put_object(Bucket=bucket, Key="locked", Body=b"x", SSEKMSKeyId=key, **KMS)
    s3.put_object(Bucket=bucket, Key="open", Body=b"x", **KMS)
    assert body(reader, bucket, "open") == b"x"  # the platform's own key lets the account in, by way of S3
    refused("AccessDenied", reader.get_object, Bucket=bucket, Key="locked")
    grant = kms.create_grant(
        KeyId=key,
        GranteePrincipal=f"arn:aws-iso-b:iam::{enclave.account}:user/reader",
        Operations=["Decrypt"],
        Constraints={"EncryptionContextSubset": {"aws:s3:arn": f"arn:aws-iso-b:s3:::{bucket}/locked"}},
    )
    assert body(reader, bucket, "locked") == b"x"
    kms.revoke_grant(KeyId=key, GrantId=grant["GrantId"])
    refused("AccessDenied", reader.get_object, Bucket=bucket, Key="locked")


def test_labels(enclave: LiveEnclave, s3: Any, kms: Any) -> None:
    low_s3, low_kms = (enclave.client(service, "alice", "UNCLASSIFIED") for service in ("s3", "kms"))
    bucket = f"labels-{uuid.uuid4().hex[:12]}"
    low_s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    key = low_kms.create_key()["KeyMetadata"]["KeyId"]
    low_s3.put_object(Bucket=bucket, Key="low", Body=b"low", SSEKMSKeyId=key, **KMS)
    s3.put_object(Bucket=bucket, Key="high", Body=b"high", SSEKMSKeyId=key, **KMS)
    assert [body(s3, bucket, name) for name in ("low", "high")] == [b"low", b"high"]
    refused("NoSuchKey", low_s3.get_object, Bucket=bucket, Key="high")
    secret = kms.create_key()["KeyMetadata"]["KeyId"]
    refused("KMS.NotFoundException", low_s3.put_object, Bucket=bucket, Key="x", SSEKMSKeyId=secret, **KMS)
