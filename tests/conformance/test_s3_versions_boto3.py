"""Versions, conditions, object lock and damage through unmodified boto3 over https, at two labels."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError

from honmaru.testing.enclaves import LiveEnclave

MIB = 1 << 20
REGION = {"CreateBucketConfiguration": {"LocationConstraint": "us-isob-east-1"}}


@pytest.fixture(scope="module")
def s3(enclave: LiveEnclave) -> Any:
    return enclave.client("s3", "alice", "SECRET")


@pytest.fixture(scope="module")
def low(enclave: LiveEnclave) -> Any:
    return enclave.client("s3", "alice", "UNCLASSIFIED")


def made(s3: Any, status: str | None = "Enabled", **request: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, **REGION, **request)
    if status:
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
    return name


def refused(attempt: Callable[[], object]) -> tuple[str, int, dict[str, Any]]:
    with pytest.raises(ClientError) as error:
        attempt()
    response: dict[str, Any] = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"], response


def test_versions_and_markers(s3: Any) -> None:
    bucket = made(s3)
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    place = {"Bucket": bucket, "Key": "a b/é"}
    first = s3.put_object(**place, Body=b"1")["VersionId"]
    second = s3.put_object(**place, Body=b"2")["VersionId"]
    assert s3.get_object(**place, VersionId=first)["Body"].read() == b"1"
    assert s3.get_object(**place)["VersionId"] == second
    marker = s3.delete_object(**place)
    assert marker["DeleteMarker"] is True and marker["VersionId"]
    code, status, response = refused(lambda: s3.get_object(**place))
    assert (code, status) == ("NoSuchKey", 404)
    assert response["ResponseMetadata"]["HTTPHeaders"]["x-amz-delete-marker"] == "true"
    code, status, response = refused(lambda: s3.get_object(**place, VersionId=marker["VersionId"]))
    assert (code, status) == ("MethodNotAllowed", 405)
    assert response["ResponseMetadata"]["HTTPHeaders"]["allow"] == "DELETE"
    assert refused(lambda: s3.head_object(**place, VersionId=marker["VersionId"]))[1] == 405
    assert refused(lambda: s3.get_object(**place, VersionId="0" * 32))[0] == "NoSuchVersion"
    pages = list(s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1}))
    assert len(pages) == 3
    versions = [one for page in pages for one in page.get("Versions", [])]
    assert [(one["VersionId"], one["IsLatest"], one["Key"]) for one in versions] == [
        (second, False, "a b/é"),
        (first, False, "a b/é"),
    ]
    assert pages[0]["DeleteMarkers"][0]["IsLatest"] is True
    s3.delete_object(**place, VersionId=marker["VersionId"])
    copied = s3.copy_object(Bucket=bucket, Key="c", CopySource={**place, "VersionId": first})
    assert copied["CopySourceVersionId"] == first and s3.get_object(Bucket=bucket, Key="c")["Body"].read() == b"1"
    s3.put_object_tagging(**place, VersionId=first, Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})
    assert s3.get_object_tagging(**place, VersionId=first)["TagSet"] and not s3.get_object_tagging(**place)["TagSet"]
    objects = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in versions]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [*objects, {"Key": "c"}]})
    assert [one.get("VersionId") for one in answer["Deleted"]] == [second, first, None]
    assert answer["Deleted"][2]["DeleteMarker"] is True


def test_one_of_many_conditional_writers_wins(enclave: LiveEnclave, s3: Any) -> None:
    bucket = made(s3, None)
    outcomes: list[str] = []
    refusals: list[str] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        client = enclave.client("s3", "alice", "SECRET")
        start.wait()
        try:
            client.put_object(Bucket=bucket, Key="k", Body=f"{number}".encode(), IfNoneMatch="*")
            outcomes.append(str(number))
        except ClientError as fault:
            refusals.append(fault.response["Error"]["Code"])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [s3.get_object(Bucket=bucket, Key="k")["Body"].read().decode()] == outcomes
    assert refusals == ["PreconditionFailed"] * 5
    tag = s3.head_object(Bucket=bucket, Key="k")["ETag"]
    assert refused(lambda: s3.put_object(Bucket=bucket, Key="k", IfMatch='"x"'))[:2] == ("PreconditionFailed", 412)
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k", IfMatch='"x"'))[:2] == ("PreconditionFailed", 412)
    s3.put_object(Bucket=bucket, Key="k", Body=b"z", IfMatch=tag)
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="none", IfMatch=tag))[:2] == ("NoSuchKey", 404)


def test_object_lock(s3: Any) -> None:
    bucket = made(s3, None, ObjectLockEnabledForBucket=True)
    place = {"Bucket": bucket, "Key": "k"}
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    s3.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    assert s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]["Rule"] == rule
    version = s3.put_object(**place, Body=b"1")["VersionId"]
    code, status, response = refused(lambda: s3.delete_object(**place, VersionId=version))
    assert (code, status) == ("AccessDenied", 403)
    assert response["Error"]["Message"] == "Access Denied because object protected by object lock."
    s3.put_object_legal_hold(**place, LegalHold={"Status": "ON"})
    assert s3.get_object_legal_hold(**place)["LegalHold"]["Status"] == "ON"
    bypass = {"BypassGovernanceRetention": True, "VersionId": version}
    assert refused(lambda: s3.delete_object(**place, **bypass))[0] == "AccessDenied"
    s3.put_object_legal_hold(**place, LegalHold={"Status": "OFF"})
    s3.delete_object(**place, **bypass)
    version = s3.put_object(**place, ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until)["VersionId"]
    kept = s3.get_object_retention(**place)["Retention"]
    assert kept == {"Mode": "COMPLIANCE", "RetainUntilDate": until}
    assert s3.head_object(**place)["ObjectLockMode"] == "COMPLIANCE"
    shorter = {"Mode": "COMPLIANCE", "RetainUntilDate": until - timedelta(hours=1)}
    assert refused(lambda: s3.put_object_retention(**place, Retention=shorter))[0] == "AccessDenied"
    assert refused(lambda: s3.delete_object(**place, VersionId=version, BypassGovernanceRetention=True))[1] == 403
    suspend = {"VersioningConfiguration": {"Status": "Suspended"}}
    assert refused(lambda: s3.put_bucket_versioning(Bucket=bucket, **suspend))[:2] == ("InvalidBucketState", 409)


def test_labels(s3: Any, low: Any) -> None:
    bucket = made(low)
    place = {"Bucket": bucket, "Key": "k"}
    first = low.put_object(**place, Body=b"low")["VersionId"]
    before = low.list_object_versions(Bucket=bucket)["Versions"]
    second = s3.put_object(**place, Body=b"high")["VersionId"]
    marker = s3.delete_object(**place)["VersionId"]
    assert low.list_object_versions(Bucket=bucket)["Versions"] == before
    assert "DeleteMarkers" not in low.list_object_versions(Bucket=bucket)
    assert low.get_object(**place)["Body"].read() == b"low"
    for version in (second, marker):
        assert refused(lambda version=version: low.get_object(**place, VersionId=version))[0] == "NoSuchVersion"
    assert refused(lambda: s3.get_object(**place))[0] == "NoSuchKey"
    assert s3.get_object(**place, VersionId=first)["Body"].read() == b"low"
    shown = s3.list_object_versions(Bucket=bucket)
    assert {one["VersionId"] for one in shown["Versions"]} == {first, second}
    assert [one["IsLatest"] for one in shown["Versions"]] == [False, False] and shown["DeleteMarkers"][0]["IsLatest"]
    assert refused(lambda: s3.delete_object(**place, VersionId=first))[:2] == ("AccessDenied", 403)


def test_a_flipped_byte_is_found_and_never_served(enclave: LiveEnclave, s3: Any) -> None:
    """Whole object, a range over the damage, a copy and a part copy; a range beside the damage is still whole."""
    bucket = made(s3, None)
    blobs = enclave.data / "blobs"
    before = set(blobs.rglob("*"))
    content = os.urandom(3 * MIB)
    place = {"Bucket": bucket, "Key": "k"}
    s3.put_object(**place, Body=content)
    (path,) = (one for one in set(blobs.rglob("*")) - before if one.is_file() and one.stat().st_size > 3 * MIB)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1  # in the second MiB
    path.write_bytes(raw)
    broken = (ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError)
    served = b""
    with pytest.raises(broken):
        for chunk in s3.get_object(**place)["Body"].iter_chunks(65536):
            served += chunk
    assert content.startswith(served) and len(served) <= MIB
    with pytest.raises(broken):
        s3.get_object(**place, Range=f"bytes={MIB + 10}-{MIB + 20}")["Body"].read()
    assert s3.get_object(**place, Range="bytes=5-10")["Body"].read() == content[5:11]
    assert s3.get_object(**place, Range="bytes=-10")["Body"].read() == content[-10:]
    code, status, response = refused(lambda: s3.copy_object(Bucket=bucket, Key="copy", CopySource=place))
    assert status == 500, (code, response)
    assert refused(lambda: s3.head_object(Bucket=bucket, Key="copy"))[1] == 404
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    part = {"Bucket": bucket, "Key": "m", "UploadId": upload, "PartNumber": 1, "CopySource": place}
    assert refused(lambda: s3.upload_part_copy(**part))[1] == 500
    good = s3.upload_part_copy(**part, CopySourceRange=f"bytes=0-{MIB - 1}")["CopyPartResult"]["ETag"]
    assert good == f'"{hashlib.md5(content[:MIB]).hexdigest()}"'
    path.unlink()
    assert refused(lambda: s3.get_object(**place))[1] == 500
