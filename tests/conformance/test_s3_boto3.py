"""S3 through unmodified boto3 over https, every operation that is written."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.testing.enclaves import LiveEnclave

MIB = 1 << 20


@pytest.fixture(scope="module")
def s3(enclave: LiveEnclave) -> Any:
    return enclave.client("s3", "alice", "SECRET")


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    return name


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_buckets(s3: Any, bucket: str) -> None:
    assert s3.head_bucket(Bucket=bucket)["BucketRegion"] == "us-isob-east-1"
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] == "us-isob-east-1"
    assert bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]
    with pytest.raises(ClientError) as error:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    assert code_of(error) == ("BucketAlreadyOwnedByYou", 409)
    s3.put_object(Bucket=bucket, Key="k")
    with pytest.raises(ClientError) as error:
        s3.delete_bucket(Bucket=bucket)
    assert code_of(error) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    with pytest.raises(ClientError) as error:
        s3.head_bucket(Bucket=bucket)
    assert code_of(error) == ("404", 404)


def test_settings(s3: Any, bucket: str) -> None:
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]["BlockPublicAcls"] is True
    assert s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    for operation in ("get_bucket_policy", "get_bucket_cors", "get_bucket_website", "get_bucket_replication"):
        with pytest.raises(ClientError) as error:
            getattr(s3, operation)(Bucket=bucket)
        assert code_of(error)[1] == 404
    with pytest.raises(ClientError) as error:
        s3.get_object_torrent(Bucket=bucket, Key="k")
    assert code_of(error)[1] == 501


@pytest.mark.parametrize("size", [0, 5, 3 * MIB])
@pytest.mark.parametrize("algorithm", [None, "CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_objects_with_every_checksum(s3: Any, bucket: str, size: int, algorithm: str | None) -> None:
    content = os.urandom(size)
    request = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    put = s3.put_object(Bucket=bucket, Key="a b+c/é", Body=io.BytesIO(content), Metadata={"k": "v"}, **request)
    assert put["ETag"] == f'"{hashlib.md5(content).hexdigest()}"' and put["ServerSideEncryption"] == "AES256"
    got = s3.get_object(Bucket=bucket, Key="a b+c/é", ChecksumMode="ENABLED")
    assert got["Body"].read() == content and got["Metadata"] == {"k": "v"}
    assert got[f"Checksum{algorithm or 'CRC32'}"] == put[f"Checksum{algorithm or 'CRC32'}"]
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["a b+c/é"]


def test_ranges_and_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")["ETag"]
    got = s3.get_object(Bucket=bucket, Key="k", Range="bytes=2-4")
    assert (got["Body"].read(), got["ContentRange"]) == (b"234", "bytes 2-4/10")
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    for request, wanted in (
        ({"Range": "bytes=99-"}, ("InvalidRange", 416)),
        ({"IfNoneMatch": etag}, ("304", 304)),
        ({"IfMatch": '"x"'}, ("PreconditionFailed", 412)),
        ({"PartNumber": 7}, ("InvalidPartNumber", 416)),
    ):
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket=bucket, Key="k", **request)
        assert code_of(error) == wanted
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k", Body=b"", IfNoneMatch="*")
    assert code_of(error) == ("PreconditionFailed", 412)
    got = s3.get_object(Bucket=bucket, Key="k", ResponseContentType="a/b", ResponseCacheControl="no-store")
    assert (got["ContentType"], got["CacheControl"]) == ("a/b", "no-store")
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="none")
    assert code_of(error) == ("NoSuchKey", 404) and error.value.response["Error"]["Key"] == "none"
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket=bucket, Key="none")
    assert code_of(error) == ("404", 404)


def test_a_wrong_checksum_is_refused_and_nothing_is_stored(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", ChecksumCRC32="AAAAAA==")
    assert code_of(error) == ("BadDigest", 400)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_copy_delete_and_tags(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/é", Body=b"x", ContentType="text/plain", Tagging="t=1")
    copied = s3.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": bucket, "Key": "a/é"})
    assert copied["CopyObjectResult"]["ETag"] == f'"{hashlib.md5(b"x").hexdigest()}"'
    assert s3.head_object(Bucket=bucket, Key="b")["ContentType"] == "text/plain"
    assert s3.get_object_tagging(Bucket=bucket, Key="b")["TagSet"] == [{"Key": "t", "Value": "1"}]
    s3.put_object_tagging(Bucket=bucket, Key="b", Tagging={"TagSet": [{"Key": "u", "Value": "2"}]})
    assert s3.get_object_tagging(Bucket=bucket, Key="b")["TagSet"] == [{"Key": "u", "Value": "2"}]
    s3.delete_object_tagging(Bucket=bucket, Key="b")
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "u", "Value": "2"}]})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == [{"Key": "u", "Value": "2"}]
    s3.delete_bucket_tagging(Bucket=bucket)
    with pytest.raises(ClientError) as error:
        s3.get_bucket_tagging(Bucket=bucket)
    assert code_of(error) == ("NoSuchTagSet", 404)
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a/é"}, {"Key": "b"}, {"Key": "none"}]})
    assert sorted(one["Key"] for one in answer["Deleted"]) == ["a/é", "b", "none"]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_paginators(s3: Any, bucket: str) -> None:
    keys = [f"{group}/{number:02}" for group in "ab" for number in range(12)] + ["c"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key)
    for name in ("list_objects_v2", "list_objects"):
        pages = s3.get_paginator(name).paginate(Bucket=bucket, PaginationConfig={"PageSize": 7})
        assert [one["Key"] for page in pages for one in page.get("Contents", ())] == keys
        pages = s3.get_paginator(name).paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1})
        assert [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())] == ["a/", "b/"]


def test_a_managed_transfer_in_parts(s3: Any, bucket: str) -> None:
    from boto3.s3.transfer import TransferConfig

    content = os.urandom(18 * MIB + 3)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(content), bucket, "big", Config=config, ExtraArgs={"ContentType": "a/b"})
    head = s3.head_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-4"') and head["ContentType"] == "a/b" and head["ContentLength"] == len(content)
    back = io.BytesIO()
    s3.download_fileobj(bucket, "big", back, Config=config)
    assert back.getvalue() == content
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copy", Config=config)
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == content
    attributes = s3.get_object_attributes(Bucket=bucket, Key="copy", ObjectAttributes=["ObjectParts", "ObjectSize"])
    assert attributes["ObjectSize"] == len(content) and attributes["ObjectParts"]["TotalPartsCount"] == 4


def test_multipart_by_hand(s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="SHA256")["UploadId"]
    place = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    part = s3.upload_part(**place, PartNumber=1, Body=b"x" * 10, ChecksumAlgorithm="SHA256")
    assert [one["Key"] for one in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["k"]
    assert [one["Size"] for one in s3.list_parts(**place)["Parts"]] == [10]
    with pytest.raises(ClientError) as error:
        s3.complete_multipart_upload(**place, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": '"x"'}]})
    assert code_of(error) == ("InvalidPart", 400)
    parts = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}]
    assert s3.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})["ETag"].endswith('-1"')
    with pytest.raises(ClientError) as error:
        s3.abort_multipart_upload(**place | {"UploadId": "none"})
    assert code_of(error) == ("NoSuchUpload", 404)


def test_labels(enclave: LiveEnclave, s3: Any, bucket: str) -> None:
    low = enclave.client("s3", "carol", "UNCLASSIFIED")
    s3.put_object(Bucket=bucket, Key="k", Body=b"high")
    with pytest.raises(ClientError) as error:
        low.get_object(Bucket=bucket, Key="k")
    assert code_of(error) == ("NoSuchBucket", 404)
    assert bucket not in [one["Name"] for one in low.list_buckets()["Buckets"]]
    low.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    low.put_object(Bucket=bucket, Key="low", Body=b"low")
    assert [one["Key"] for one in low.list_objects_v2(Bucket=bucket)["Contents"]] == ["low"]
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k", "low"]
    answer = s3.get_object(Bucket=bucket, Key="low")
    assert answer["Body"].read() == b"low"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-honmaru-label"].startswith("SECRET")
    with pytest.raises(ClientError) as error:
        s3.delete_object(Bucket=bucket, Key="low")
    assert code_of(error) == ("AccessDenied", 403)
