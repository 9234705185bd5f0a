"""S3 operations, called as the gateway calls them: provider methods with a Call and parsed members."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import awscrt.checksums
import pytest
from botocore import xform_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from honmaru.core.errors import AccessDenied, HonmaruError, IntegrityFault, NotImplementedYet, ValidationFault
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.services.s3.access import S3Buckets
from honmaru.services.s3.bucket import BucketCommits, check_name
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, Upload, quick_directory, session

U, S, TS = (session(marking) for marking in ("UNCLASSIFIED", "SECRET", "TOP SECRET"))
MIB = 1 << 20


@dataclass
class Client:
    """Calls operations of S3 by their AWS names as one session."""

    keep: Keep
    s3: S3
    who: Session
    asked: list[tuple[str, str]] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    last: Call | None = None

    def __call__(self, operation: str, /, headers: Mapping[str, str] | None = None, **request: Any) -> Any:
        self.last = self.keep.call(self.who, operation, headers=headers, authorizer=self._authorize)
        return getattr(self.s3, xform_name(operation))(self.last, request)

    def _authorize(self, _: Session, action: str, resource: str, context: Mapping[str, Any]) -> None:
        self.asked.append((action, resource))
        if action in self.denied:
            raise AccessDenied("Access Denied")

    def put(self, key: str, content: bytes = b"", **request: Any) -> Any:
        return self("PutObject", Bucket="bucket", Key=key, Body=Upload(content), **request)

    def get(self, key: str, **request: Any) -> bytes:
        return b"".join(self("GetObject", Bucket="bucket", Key=key, **request)["Body"])


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    made = Keep(tmp_path)
    yield made
    made.close()


@pytest.fixture
def clients(keep: Keep) -> Callable[[Session], Client]:
    s3 = S3(keep.ids, BucketCommits())
    return lambda who: Client(keep, s3, who)


@pytest.fixture
def client(clients: Callable[[Session], Client]) -> Client:
    made = clients(S)
    made("CreateBucket", Bucket="bucket")
    return made


def refused(code: str, attempt: Callable[[], object]) -> HonmaruError:
    with pytest.raises(HonmaruError) as fault:
        attempt()
    assert fault.value.code == code, fault.value
    return fault.value


def blobs_on_disk(keep: Keep) -> int:
    return len(list(keep.blob_store.paths("")))


# Buckets


@pytest.mark.parametrize(
    "name", ["ab", "A-b", "a..b", "a.-b", "192.168.1.1", "-ab", "ab-", "a_b", "xn--a", "a" * 64, "x-s3alias"]
)
def test_bucket_names_that_s3_forbids(name: str) -> None:
    assert refused("InvalidBucketName", lambda: check_name(name)).members == {"BucketName": name}


@pytest.mark.parametrize("name", ["abc", "a.b-c.1", "1ab", "a" * 63, "honmaru-us-iso-east-1-123456789012"])
def test_bucket_names_that_s3_allows(name: str) -> None:
    check_name(name)


def test_the_life_of_a_bucket(client: Client) -> None:
    assert client("HeadBucket", Bucket="bucket")["BucketRegion"] == "us-iso-east-1"
    assert client("GetBucketLocation", Bucket="bucket") == {"LocationConstraint": "us-iso-east-1"}
    fault = refused("BucketAlreadyOwnedByYou", lambda: client("CreateBucket", Bucket="bucket"))
    assert fault.members == {"BucketName": "bucket"}
    client.put("k")
    assert refused("BucketNotEmpty", lambda: client("DeleteBucket", Bucket="bucket")).members["BucketName"] == "bucket"
    client("DeleteObject", Bucket="bucket", Key="k")
    client("DeleteBucket", Bucket="bucket")
    for operation in ("HeadBucket", "DeleteBucket", "GetBucketLocation", "ListObjectsV2", "GetBucketEncryption"):
        fault = refused("NoSuchBucket", lambda operation=operation: client(operation, Bucket="bucket"))
        assert fault.members == {"BucketName": "bucket"}
    refused("NoSuchBucket", lambda: client.put("k"))


def test_a_bucket_elsewhere_or_with_acls_is_refused(client: Client) -> None:
    def make(**request: Any) -> Callable[[], object]:
        return lambda: client("CreateBucket", Bucket="other", **request)

    place = {"LocationConstraint": "eu-west-1"}
    refused("IllegalLocationConstraintException", make(CreateBucketConfiguration=place))
    refused("AccessControlListNotSupported", make(ACL="public-read"))
    refused("AccessControlListNotSupported", make(GrantRead="id=x"))
    refused("NotImplemented", make(BucketNamespace="account-regional"))
    make(CreateBucketConfiguration={"LocationConstraint": "us-iso-east-1"}, ACL="private")()


def test_list_buckets_in_pages(client: Client) -> None:
    for name in ("b-1", "b-2", "b-3"):
        client("CreateBucket", Bucket=name)
    page = client("ListBuckets", Prefix="b-", MaxBuckets=2)
    assert [bucket["Name"] for bucket in page["Buckets"]] == ["b-1", "b-2"]
    page = client("ListBuckets", Prefix="b-", MaxBuckets=2, ContinuationToken=page["ContinuationToken"])
    assert [bucket["Name"] for bucket in page["Buckets"]] == ["b-3"] and page["ContinuationToken"] is None


def test_settings_that_are_true_of_every_bucket(client: Client) -> None:
    rules = client("GetBucketEncryption", Bucket="bucket")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert client("GetBucketVersioning", Bucket="bucket")["Status"] is None
    assert all(client("GetPublicAccessBlock", Bucket="bucket")["PublicAccessBlockConfiguration"].values())
    refused("NoSuchBucketPolicy", lambda: client("GetBucketPolicy", Bucket="bucket"))
    assert not hasattr(S3, "select_object_content"), "what is not written must answer 501"


def test_an_expected_owner_that_is_not_the_owner(client: Client) -> None:
    with pytest.raises(AccessDenied):
        client("HeadBucket", Bucket="bucket", ExpectedBucketOwner="999999999999")


# Objects


@pytest.mark.parametrize("size", [0, 1, MIB, 2 * MIB + 7])
def test_put_get_head(client: Client, size: int) -> None:
    content = os.urandom(size)
    put = client.put("a/b c", content, ContentType="text/plain", Metadata={"k": "v"}, CacheControl="no-cache")
    assert put["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
    head = client("HeadObject", Bucket="bucket", Key="a/b c")
    got = client("GetObject", Bucket="bucket", Key="a/b c")
    assert b"".join(got.pop("Body")) == content and got == head
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (size, "text/plain", {"k": "v"})
    assert (head["CacheControl"], head["ServerSideEncryption"], head["AcceptRanges"]) == ("no-cache", "AES256", "bytes")
    assert "ContentRange" not in head


def test_a_missing_key(client: Client) -> None:
    fault = refused("NoSuchKey", lambda: client.get("none"))
    assert fault.members["Key"] == "none"
    assert client.asked == [("s3:ListBucket", "arn:aws-iso:s3:::bucket")]
    client.denied.add("s3:ListBucket")
    with pytest.raises(AccessDenied):
        client.get("none")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2-4", 2, 5),
        ("bytes=7-", 7, 10),
        ("bytes=-3", 7, 10),
        ("bytes=5-99", 5, 10),
        ("bytes=-99", 0, 10),
    ],
)
def test_ranges(client: Client, header: str, start: int, end: int) -> None:
    client.put("k", b"0123456789")
    got = client("GetObject", Bucket="bucket", Key="k", Range=header, ChecksumMode="ENABLED")
    assert b"".join(got["Body"]) == b"0123456789"[start:end]
    assert got["ContentRange"] == f"bytes {start}-{end - 1}/10" and got["ContentLength"] == end - start
    assert client.last is not None and client.last.status == 206
    assert "ChecksumType" not in got, "a checksum of the whole must not stand beside a part of it"


@pytest.mark.parametrize("header", ["bytes=4-2", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=-", "bytes=²-3"])
def test_ranges_that_s3_does_not_heed(client: Client, header: str) -> None:
    client.put("k", b"0123456789")
    assert client.get("k", Range=header) == b"0123456789"


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_of_which_no_byte_exists(client: Client, header: str) -> None:
    client.put("k", b"0123456789")
    fault = refused("InvalidRange", lambda: client.get("k", Range=header))
    assert fault.members == {"RangeRequested": header, "ActualObjectSize": "10"}


def test_read_conditions(client: Client, keep: Keep) -> None:
    etag = client.put("k", b"x")["ETag"]
    now = keep.clock.now()
    before, after = now - timedelta(hours=1), now + timedelta(hours=1)
    for allowed in (
        {"IfMatch": etag},
        {"IfMatch": "*"},
        {"IfNoneMatch": '"other"'},
        {"IfModifiedSince": before},
        {"IfUnmodifiedSince": now},
        {"IfMatch": etag, "IfUnmodifiedSince": before},
        {"IfNoneMatch": '"other"', "IfModifiedSince": after},
    ):
        assert client.get("k", **allowed) == b"x"
    for stale in ({"IfNoneMatch": etag}, {"IfNoneMatch": "*"}, {"IfModifiedSince": now}, {"IfModifiedSince": after}):
        refused("NotModified", lambda stale=stale: client("HeadObject", Bucket="bucket", Key="k", **stale))
        assert client.last is not None and client.last.response_headers["ETag"] == etag
    for failed in ({"IfMatch": '"other"'}, {"IfUnmodifiedSince": before}):
        refused("PreconditionFailed", lambda failed=failed: client.get("k", **failed))


def test_response_overrides(client: Client) -> None:
    client.put("k", b"x", ContentType="text/plain")
    got = client(
        "GetObject", Bucket="bucket", Key="k", ResponseContentType="a/b", ResponseContentDisposition="attachment"
    )
    assert (got["ContentType"], got["ContentDisposition"]) == ("a/b", "attachment")


def test_a_storage_class_is_kept_and_shown(client: Client) -> None:
    client.put("k", b"x", StorageClass="STANDARD_IA")
    client.put("s", b"x")
    assert client("HeadObject", Bucket="bucket", Key="k")["StorageClass"] == "STANDARD_IA"
    assert "StorageClass" not in client("GetObject", Bucket="bucket", Key="s")
    shown = client("ListObjectsV2", Bucket="bucket")["Contents"]
    assert [one["StorageClass"] for one in shown] == ["STANDARD_IA", "STANDARD"]
    copy = {"Bucket": "bucket", "Key": "k", "CopySource": "bucket/k"}
    client("CopyObject", **copy, StorageClass="GLACIER_IR")
    assert client("HeadObject", Bucket="bucket", Key="k")["StorageClass"] == "GLACIER_IR"
    client("CopyObject", **{**copy, "Key": "c"})
    assert "StorageClass" not in client("HeadObject", Bucket="bucket", Key="c")
    upload = begin(client, "m", StorageClass="ONEZONE_IA")
    (part,) = parts(client, upload, b"x", key="m")
    assert client("ListParts", Bucket="bucket", Key="m", UploadId=upload)["StorageClass"] == "ONEZONE_IA"
    finish(client, upload, [part], Key="m")
    attributes = client("GetObjectAttributes", Bucket="bucket", Key="m", ObjectAttributes=["StorageClass"])
    assert attributes["StorageClass"] == "ONEZONE_IA"


def test_conditional_writes(client: Client) -> None:
    client.put("k", b"1", IfNoneMatch="*")
    refused("PreconditionFailed", lambda: client.put("k", b"2", IfNoneMatch="*"))
    refused("NotImplemented", lambda: client.put("k", b"2", IfNoneMatch='"etag"'))
    refused("NoSuchKey", lambda: client.put("none", b"2", IfMatch='"etag"'))
    refused("PreconditionFailed", lambda: client.put("k", b"2", IfMatch='"other"'))
    assert client.get("k") == b"1"
    client.put("k", b"2", IfMatch=f'"{hashlib.md5(b"1").hexdigest()}"')
    assert client.get("k") == b"2"


def test_concurrent_conditional_writers_one_wins(
    client: Client, clients: Callable[[Session], Client], keep: Keep
) -> None:
    outcomes: list[str] = []

    def write(number: int) -> None:
        try:
            clients(S).put("k", str(number).encode(), IfNoneMatch="*")
            outcomes.append("won")
        except HonmaruError as fault:
            outcomes.append(str(fault.code))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["PreconditionFailed"] * 5 + ["won"]
    assert blobs_on_disk(keep) == 1


def test_an_overwrite_and_a_delete_leave_no_blob_behind(client: Client, keep: Keep) -> None:
    for content in (b"1", b"2", b"3"):
        client.put("k", content)
    assert blobs_on_disk(keep) == 1 and client.get("k") == b"3"
    client("DeleteObject", Bucket="bucket", Key="k")
    client("DeleteObject", Bucket="bucket", Key="k")
    assert blobs_on_disk(keep) == 0


def test_a_reader_keeps_what_it_began_to_read(client: Client) -> None:
    client.put("k", b"a" * (3 * MIB))
    body = client("GetObject", Bucket="bucket", Key="k")["Body"]
    first = next(body)
    client.put("k", b"b" * 10)
    assert first + b"".join(body) == b"a" * (3 * MIB) and client.get("k") == b"b" * 10


def test_a_broken_upload_leaves_nothing_behind(client: Client, keep: Keep) -> None:
    class Broken(Upload):
        def read(self, size: int = MIB) -> bytes:
            if self._at:
                raise ValidationFault("the client went away", code="RequestTimeout")
            return super().read(10)

    refused("RequestTimeout", lambda: client("PutObject", Bucket="bucket", Key="k", Body=Broken(b"x" * 100)))
    refused("IncompleteBody", lambda: client("PutObject", Bucket="bucket", Key="k", Body=Upload(b"x", length=5)))
    assert blobs_on_disk(keep) == 0
    refused("NoSuchKey", lambda: client.get("k"))


def test_too_large_an_upload_is_refused_before_it_is_read(client: Client) -> None:
    body = Upload(b"", length=(5 << 30) + 1)
    refused("EntityTooLarge", lambda: client("PutObject", Bucket="bucket", Key="k", Body=body))


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"SSECustomerAlgorithm": "AES256"}, "NotImplemented"),
        ({"ServerSideEncryption": "aws:kms"}, "NotImplemented"),
        ({"ACL": "public-read"}, "AccessControlListNotSupported"),
        ({"StorageClass": "GLACIER"}, "InvalidStorageClass"),
        ({"ObjectLockMode": "COMPLIANCE"}, "InvalidArgument"),
        ({"ObjectLockLegalHoldStatus": "ON", "ContentMD5": "x"}, "InvalidRequest"),
        ({"Metadata": {"a": "x" * 2048}}, "MetadataTooLarge"),
        ({"Tagging": "a=1&a=2"}, "InvalidTag"),
        ({"Tagging": "&".join(f"k{i}=v" for i in range(11))}, "BadRequest"),
        ({"Tagging": "honmaru:label=TOP SECRET"}, "InvalidTag"),
    ],
)
def test_what_is_not_done_is_refused_and_leaves_nothing(client: Client, keep: Keep, request_: Any, code: str) -> None:
    refused(code, lambda: client.put("k", b"x", **request_))
    assert blobs_on_disk(keep) == 0


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("k" * 1025, "KeyTooLongError"),
        ("é" * 513, "KeyTooLongError"),
        ("a\0b", "InvalidArgument"),
        ("\ud800", "InvalidArgument"),
    ],
)
def test_keys_that_cannot_be(client: Client, key: str, code: str) -> None:
    refused(code, lambda: client.put(key))
    refused(code, lambda: client.get(key))


# Checksums


def b64(number: int, width: int) -> str:
    return base64.b64encode(number.to_bytes(width, "big")).decode()


CONTENT = b"123456789" * 1000
SUMS = {
    "CRC32": b64(zlib.crc32(CONTENT), 4),
    "CRC32C": b64(awscrt.checksums.crc32c(CONTENT), 4),
    "CRC64NVME": b64(awscrt.checksums.crc64nvme(CONTENT), 8),
    "SHA1": base64.b64encode(hashlib.sha1(CONTENT).digest()).decode(),
    "SHA256": base64.b64encode(hashlib.sha256(CONTENT).digest()).decode(),
    "SHA512": base64.b64encode(hashlib.sha512(CONTENT).digest()).decode(),
    "MD5": base64.b64encode(hashlib.md5(CONTENT).digest()).decode(),
    "XXHASH64": base64.b64encode(awscrt.checksums.XXHash.compute_xxhash64(CONTENT)).decode(),
}


def test_published_check_values_of_the_crcs() -> None:
    """CRC catalogue: check("123456789")."""
    assert awscrt.checksums.crc32c(b"123456789") == 0xE3069283
    assert awscrt.checksums.crc64nvme(b"123456789") == 0xAE8B14860A799888


@pytest.mark.parametrize("algorithm", SUMS)
def test_a_checksum_in_a_header_is_verified_stored_and_returned(client: Client, keep: Keep, algorithm: str) -> None:
    name = f"Checksum{algorithm}"
    put = client.put("k", CONTENT, **{name: SUMS[algorithm]})
    assert put[name] == SUMS[algorithm] and put["ChecksumType"] == "FULL_OBJECT"
    head = client("HeadObject", Bucket="bucket", Key="k", ChecksumMode="ENABLED")
    assert head[name] == SUMS[algorithm]
    assert name not in client("HeadObject", Bucket="bucket", Key="k")
    refused("BadDigest", lambda: client.put("k", CONTENT + b".", **{name: SUMS[algorithm]}))
    refused("InvalidRequest", lambda: client.put("k", CONTENT, **{name: "AAAA!"}))
    assert client.get("k") == CONTENT and blobs_on_disk(keep) == 1


@pytest.mark.parametrize("algorithm", SUMS)
def test_a_checksum_in_a_trailer_is_verified_and_stored(client: Client, keep: Keep, algorithm: str) -> None:
    trailer = f"x-amz-checksum-{algorithm.lower()}"

    def put(content: bytes) -> Any:
        body = Upload(content, sent_trailers={trailer: SUMS[algorithm]})
        return client("PutObject", headers={"x-amz-trailer": trailer}, Bucket="bucket", Key="k", Body=body)

    assert put(CONTENT)[f"Checksum{algorithm}"] == SUMS[algorithm]
    refused("BadDigest", lambda: put(CONTENT + b"."))
    assert blobs_on_disk(keep) == 1


def test_without_a_checksum_crc64nvme_is_stored(client: Client) -> None:
    client.put("k", CONTENT)
    assert (
        client("HeadObject", Bucket="bucket", Key="k", ChecksumMode="ENABLED")["ChecksumCRC64NVME"] == SUMS["CRC64NVME"]
    )


def test_content_md5(client: Client) -> None:
    client.put("k", CONTENT, ContentMD5=SUMS["MD5"])
    refused("BadDigest", lambda: client.put("k", b"x", ContentMD5=SUMS["MD5"]))
    refused("InvalidDigest", lambda: client.put("k", b"x", ContentMD5="short"))
    two = {"ChecksumCRC32": SUMS["CRC32"], "ChecksumSHA1": SUMS["SHA1"]}
    refused("InvalidRequest", lambda: client.put("k", CONTENT, **two))


# Copies


def test_copy_keeps_or_replaces_metadata_and_tags(client: Client) -> None:
    client.put(
        "a b",
        b"x",
        ContentType="text/plain",
        Metadata={"k": "v"},
        Tagging="t=1",
        ChecksumSHA256=base64.b64encode(hashlib.sha256(b"x").digest()).decode(),
    )
    copied = client("CopyObject", Bucket="bucket", Key="c", CopySource="bucket/a%20b")
    assert copied["CopyObjectResult"]["ETag"] == f'"{hashlib.md5(b"x").hexdigest()}"'
    assert "ChecksumSHA256" in copied["CopyObjectResult"]
    head = client("HeadObject", Bucket="bucket", Key="c")
    assert (head["ContentType"], head["Metadata"], head["TagCount"]) == ("text/plain", {"k": "v"}, 1)
    replace = {"MetadataDirective": "REPLACE", "TaggingDirective": "REPLACE", "ContentType": "a/b"}
    client("CopyObject", Bucket="bucket", Key="d", CopySource="/bucket/a%20b", Metadata={"n": "w"}, **replace)
    head = client("HeadObject", Bucket="bucket", Key="d")
    assert (head["ContentType"], head["Metadata"], head.get("TagCount")) == ("a/b", {"n": "w"}, None)
    refused("InvalidRequest", lambda: client("CopyObject", Bucket="bucket", Key="c", CopySource="bucket/c"))
    client("CopyObject", Bucket="bucket", Key="c", CopySource="bucket/c", **replace)
    assert client.get("c") == b"x"


def test_copy_asks_iam_about_its_source_and_heeds_conditions(client: Client) -> None:
    etag = client.put("a", b"x")["ETag"]
    client.asked.clear()
    client("CopyObject", Bucket="bucket", Key="b", CopySource="bucket/a", CopySourceIfMatch=etag)
    assert ("s3:GetObject", "arn:aws-iso:s3:::bucket/a") in client.asked
    for condition in ({"CopySourceIfMatch": '"other"'}, {"CopySourceIfNoneMatch": etag}):
        refused(
            "PreconditionFailed",
            lambda c=condition: client("CopyObject", Bucket="bucket", Key="b", CopySource="bucket/a", **c),
        )
    refused("NoSuchKey", lambda: client("CopyObject", Bucket="bucket", Key="b", CopySource="bucket/none"))
    refused("NoSuchBucket", lambda: client("CopyObject", Bucket="bucket", Key="b", CopySource="none/a"))
    refused("InvalidArgument", lambda: client("CopyObject", Bucket="bucket", Key="b", CopySource="bucket"))
    client.denied.add("s3:GetObject")
    with pytest.raises(AccessDenied):
        client("CopyObject", Bucket="bucket", Key="b", CopySource="bucket/a")


# Deletes


def test_delete_objects_answers_key_by_key(client: Client) -> None:
    for key in ("a", "b", "c"):
        client.put(key)
    client.denied.add("s3:DeleteObject")
    answer = client("DeleteObjects", Bucket="bucket", Delete={"Objects": [{"Key": "a"}]})
    assert answer["Errors"][0]["Code"] == "AccessDenied" and answer["Deleted"] == []
    client.denied.clear()
    answer = client(
        "DeleteObjects",
        Bucket="bucket",
        Delete={"Objects": [{"Key": "a"}, {"Key": "none"}, {"Key": "b", "ETag": '"x"'}]},
    )
    assert [one["Key"] for one in answer["Deleted"]] == ["a", "none"]
    assert [(one["Key"], one["Code"]) for one in answer["Errors"]] == [("b", "PreconditionFailed")]
    assert client("DeleteObjects", Bucket="bucket", Delete={"Objects": [{"Key": "b"}], "Quiet": True}) == {
        "Deleted": None,
        "Errors": None,
    }
    refused("MalformedXML", lambda: client("DeleteObjects", Bucket="bucket", Delete={"Objects": []}))
    assert [o["Key"] for o in client("ListObjectsV2", Bucket="bucket")["Contents"]] == ["c"]


# Lists


def keys_of(answer: Mapping[str, Any]) -> list[str]:
    return [shown["Key"] for shown in answer["Contents"] or ()]


def groups_of(answer: Mapping[str, Any]) -> list[str]:
    return [shown["Prefix"] for shown in answer["CommonPrefixes"] or ()]


def test_lists_with_prefix_and_delimiter(client: Client) -> None:
    for key in ("a", "a/1", "a/2", "a/b/3", "b/1", "c", "a-b"):
        client.put(key)
    answer = client("ListObjectsV2", Bucket="bucket", Delimiter="/")
    assert (keys_of(answer), groups_of(answer), answer["KeyCount"]) == (["a", "a-b", "c"], ["a/", "b/"], 5)
    answer = client("ListObjectsV2", Bucket="bucket", Delimiter="/", Prefix="a/")
    assert (keys_of(answer), groups_of(answer)) == (["a/1", "a/2"], ["a/b/"])
    assert keys_of(client("ListObjectsV2", Bucket="bucket", StartAfter="a/2")) == ["a/b/3", "b/1", "c"]
    assert keys_of(client("ListObjectsV2", Bucket="bucket", MaxKeys=0)) == []
    answer = client("ListObjects", Bucket="bucket", Delimiter="/", MaxKeys=3)
    assert answer["IsTruncated"] and answer["NextMarker"] == "a/"
    answer = client("ListObjects", Bucket="bucket", Delimiter="/", Marker="a/")
    assert (keys_of(answer), groups_of(answer)) == (["c"], ["b/"])
    assert "Owner" in client("ListObjects", Bucket="bucket")["Contents"][0]
    assert "Owner" not in client("ListObjectsV2", Bucket="bucket")["Contents"][0]


def test_encoding_type_url(client: Client) -> None:
    client.put("a b+c/é\n")
    answer = client("ListObjectsV2", Bucket="bucket", EncodingType="url", Prefix="a b")
    assert keys_of(answer) == ["a%20b%2Bc/%C3%A9%0A"] and answer["Prefix"] == "a%20b"


def test_a_forged_page_token_is_refused(client: Client) -> None:
    for token in ("x", "AAAA", "MTr_", base64.b64encode(b"2:a").decode()):
        refused(
            "InvalidArgument", lambda token=token: client("ListObjectsV2", Bucket="bucket", ContinuationToken=token)
        )
    refused("InvalidArgument", lambda: client("ListObjectsV2", Bucket="bucket", MaxKeys=-1))


_keys = st.text("ab/-é", min_size=1, max_size=5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.sets(_keys, max_size=14),
    prefix=st.one_of(st.just(""), _keys),
    delimiter=st.sampled_from(["", "/", "a/", "-"]),
    page=st.integers(1, 5),
)
def test_paged_lists_agree_with_the_definition(
    client: Client, keys: set[str], prefix: str, delimiter: str, page: int
) -> None:
    present = {shown["Key"] for shown in client("ListObjectsV2", Bucket="bucket")["Contents"] or ()}
    for key in present - keys:
        client("DeleteObject", Bucket="bucket", Key=key)
    for key in keys - present:
        client.put(key)
    wanted: list[str] = []
    for key in sorted(key for key in keys if key.startswith(prefix)):
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = key if cut < 0 else key[: cut + len(delimiter)]
        if entry not in wanted:
            wanted.append(entry)
    for operation, follow in (("ListObjectsV2", "ContinuationToken"), ("ListObjects", "Marker")):
        found: list[str] = []
        request: dict[str, Any] = {"Prefix": prefix, "Delimiter": delimiter, "MaxKeys": page}
        while True:
            answer = client(operation, Bucket="bucket", **request)
            entries = sorted(keys_of(answer) + groups_of(answer))
            assert len(entries) <= page and bool(answer["IsTruncated"]) == (len(found) + len(entries) < len(wanted))
            found += entries
            if not answer["IsTruncated"]:
                break
            following = answer.get("NextContinuationToken") or answer.get("NextMarker") or keys_of(answer)[-1]
            request[follow] = following
        assert found == wanted


# Multipart uploads


def parts(client: Client, upload: str, *contents: bytes, key: str = "k", **request: Any) -> list[dict[str, Any]]:
    listed = []
    for number, content in enumerate(contents, 1):
        part = client(
            "UploadPart", Bucket="bucket", Key=key, UploadId=upload, PartNumber=number, Body=Upload(content), **request
        )
        listed.append({"PartNumber": number, "ETag": part["ETag"]})
    return listed


def begin(client: Client, key: str = "k", **request: Any) -> str:
    return str(client("CreateMultipartUpload", Bucket="bucket", Key=key, **request)["UploadId"])


def finish(client: Client, upload: str, listed: list[dict[str, Any]], **request: Any) -> Any:
    place = {"Bucket": "bucket", "Key": "k", "UploadId": upload, "MultipartUpload": {"Parts": listed}}
    return client("CompleteMultipartUpload", **{**place, **request})


BIG = [b"a" * (5 * MIB), b"b" * (5 * MIB), b"c" * 3]


def test_a_multipart_upload_from_start_to_end(client: Client, keep: Keep) -> None:
    upload = begin(client, ContentType="text/plain", Metadata={"k": "v"}, Tagging="t=1")
    listed = parts(client, upload, *BIG)
    parts(client, upload, b"again")  # part 1 is replaced ...
    listed[0] = parts(client, upload, BIG[0])[0]  # ... and replaced again
    assert blobs_on_disk(keep) == 3
    shown = client("ListParts", Bucket="bucket", Key="k", UploadId=upload, MaxParts=2)
    assert [part["Size"] for part in shown["Parts"]] == [5 * MIB, 5 * MIB] and shown["IsTruncated"]
    rest = client(
        "ListParts", Bucket="bucket", Key="k", UploadId=upload, PartNumberMarker=shown["NextPartNumberMarker"]
    )
    assert [part["PartNumber"] for part in rest["Parts"]] == [3] and not rest["IsTruncated"]
    refused("NoSuchKey", lambda: client.get("k"))
    done = finish(client, upload, listed)
    etag = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in BIG)).hexdigest()
    assert done["ETag"] == f'"{etag}-3"'
    whole = b"".join(BIG)
    assert client.get("k") == whole
    assert client.get("k", Range=f"bytes={5 * MIB - 2}-{10 * MIB}") == whole[5 * MIB - 2 : 10 * MIB + 1]
    head = client("HeadObject", Bucket="bucket", Key="k", ChecksumMode="ENABLED")
    assert (head["ContentLength"], head["ContentType"], head["TagCount"]) == (len(whole), "text/plain", 1)
    assert (
        head["ChecksumCRC64NVME"] == b64(awscrt.checksums.crc64nvme(whole), 8) and head["ChecksumType"] == "FULL_OBJECT"
    )
    one = client("GetObject", Bucket="bucket", Key="k", PartNumber=3)
    assert b"".join(one["Body"]) == b"ccc" and one["PartsCount"] == 3
    attributes = client(
        "GetObjectAttributes", Bucket="bucket", Key="k", ObjectAttributes=["ObjectParts", "ETag", "ObjectSize"]
    )
    assert attributes["ObjectParts"]["TotalPartsCount"] == 3 and attributes["ObjectSize"] == len(whole)
    assert finish(client, upload, listed)["ETag"] == done["ETag"], "a retried complete answers the same"
    refused("NoSuchUpload", lambda: parts(client, upload, b"late"))
    assert client("ListMultipartUploads", Bucket="bucket")["Uploads"] is None
    client("DeleteObject", Bucket="bucket", Key="k")
    assert blobs_on_disk(keep) == 0 and list(keep.guard.records(S, "s3").iterate("layout")) == []


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("CRC32", None), ("CRC32", "FULL_OBJECT"), ("CRC32C", "FULL_OBJECT"), ("SHA256", None), ("CRC64NVME", None)],
)
def test_multipart_checksums(client: Client, algorithm: str, kind: str | None) -> None:
    request = {"ChecksumAlgorithm": algorithm} | ({"ChecksumType": kind} if kind else {})
    upload = begin(client, **request)
    listed = parts(client, upload, *BIG)
    name = f"Checksum{algorithm}"
    refused("BadDigest", lambda: finish(client, upload, listed, **{name: base64.b64encode(b"wrong").decode()}))
    done = finish(client, upload, listed)
    whole = b"".join(BIG)
    full = {
        "CRC32": b64(zlib.crc32(whole), 4),
        "CRC32C": b64(awscrt.checksums.crc32c(whole), 4),
        "CRC64NVME": b64(awscrt.checksums.crc64nvme(whole), 8),
    }
    if algorithm == "SHA256":
        digests = b"".join(hashlib.sha256(part).digest() for part in BIG)
        assert done[name] == base64.b64encode(hashlib.sha256(digests).digest()).decode() + "-3"
    elif kind is None and algorithm == "CRC32":
        digests = b"".join(zlib.crc32(part).to_bytes(4, "big") for part in BIG)
        assert done[name] == b64(zlib.crc32(digests), 4) + "-3" and done["ChecksumType"] == "COMPOSITE"
    else:
        assert done[name] == full[algorithm] and done["ChecksumType"] == "FULL_OBJECT"


def test_a_part_is_read_back_with_its_own_checksum(client: Client) -> None:
    upload = begin(client, ChecksumAlgorithm="SHA256")
    listed = parts(client, upload, b"a" * (5 * MIB), b"tail")
    finish(client, upload, listed)
    got = client("GetObject", Bucket="bucket", Key="k", PartNumber=2, ChecksumMode="ENABLED")
    assert b"".join(got["Body"]) == b"tail" and got["ContentRange"] == f"bytes {5 * MIB}-{5 * MIB + 3}/{5 * MIB + 4}"
    assert got["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(b"tail").digest()).decode()
    client.put("empty")
    got = client("GetObject", Bucket="bucket", Key="empty", PartNumber=1)
    assert "ContentRange" not in got and client.last is not None and client.last.status is None
    refused("InvalidPartNumber", lambda: client("HeadObject", Bucket="bucket", Key="k", PartNumber=3))


def test_a_parts_own_checksum_is_verified_and_answered_beside_the_uploads(client: Client) -> None:
    upload = begin(client)
    stated = base64.b64encode(zlib.crc32(b"x").to_bytes(4, "big")).decode()
    place = {"Bucket": "bucket", "Key": "k", "UploadId": upload, "PartNumber": 1}
    part = client("UploadPart", **place, Body=Upload(b"x"), ChecksumCRC32=stated)
    assert part["ChecksumCRC32"] == stated and part["ChecksumCRC64NVME"]
    refused("BadDigest", lambda: client("UploadPart", **place, Body=Upload(b"y"), ChecksumCRC32=stated))


def test_checksum_types_that_s3_does_not_have(client: Client) -> None:
    for algorithm, kind in (("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE"), ("ROT13", None)):
        refused("InvalidRequest", lambda a=algorithm, k=kind: begin(client, ChecksumAlgorithm=a, ChecksumType=k))
    upload = begin(client, ChecksumAlgorithm="CRC32")
    refused("InvalidRequest", lambda: parts(client, upload, CONTENT, ChecksumSHA1=SUMS["SHA1"]))
    refused("BadDigest", lambda: parts(client, upload, b"x", ChecksumCRC32=SUMS["CRC32"]))


def test_what_complete_refuses(client: Client) -> None:
    upload = begin(client)
    listed = parts(client, upload, b"small", b"last")
    fault = refused("EntityTooSmall", lambda: finish(client, upload, listed))
    assert fault.members["PartNumber"] == "1" and fault.members["MinSizeAllowed"] == str(5 * MIB)
    refused("InvalidPartOrder", lambda: finish(client, upload, listed[::-1]))
    refused("InvalidPart", lambda: finish(client, upload, [*listed, {"PartNumber": 9, "ETag": '"x"'}]))
    refused("InvalidPart", lambda: finish(client, upload, [{"PartNumber": 1, "ETag": '"x"'}]))
    refused("MalformedXML", lambda: finish(client, upload, []))
    refused("InvalidRequest", lambda: finish(client, upload, listed[1:], MpuObjectSize=99))
    refused("NoSuchUpload", lambda: finish(client, "none", listed))
    refused(
        "InvalidArgument",
        lambda: client("UploadPart", Bucket="bucket", Key="k", UploadId=upload, PartNumber=10001, Body=b""),
    )
    finish(client, upload, listed[1:], MpuObjectSize=4)
    assert client.get("k") == b"last"


def test_abort_and_bucket_deletion_leave_nothing(client: Client, keep: Keep) -> None:
    upload = begin(client)
    parts(client, upload, b"1", b"2")
    client("AbortMultipartUpload", Bucket="bucket", Key="k", UploadId=upload)
    assert blobs_on_disk(keep) == 0
    refused("NoSuchUpload", lambda: client("AbortMultipartUpload", Bucket="bucket", Key="k", UploadId=upload))
    parts(client, begin(client), b"1")
    client("DeleteBucket", Bucket="bucket")
    assert blobs_on_disk(keep) == 0 and list(keep.store.scan()) == []


def test_upload_part_copy(client: Client) -> None:
    client.put("source", bytes(range(256)))
    upload = begin(client)

    def copy(**request: Any) -> Any:
        return client(
            "UploadPartCopy",
            Bucket="bucket",
            Key="k",
            UploadId=upload,
            PartNumber=1,
            CopySource="bucket/source",
            **request,
        )

    refused("InvalidArgument", lambda: copy(CopySourceRange="bytes=5-"))
    refused("InvalidRange", lambda: copy(CopySourceRange="bytes=500-600"))
    part = copy(CopySourceRange="bytes=10-19")["CopyPartResult"]
    finish(client, upload, [{"PartNumber": 1, "ETag": part["ETag"]}])
    assert client.get("k") == bytes(range(10, 20))


def test_list_uploads_in_pages(client: Client, keep: Keep) -> None:
    for key in ("a/1", "a/2", "b", "b", "c"):
        keep.clock.seconds += 1
        begin(client, key)
    found: list[str] = []
    request: dict[str, Any] = {"MaxUploads": 2}
    while True:
        answer = client("ListMultipartUploads", Bucket="bucket", **request)
        found += [upload["Key"] for upload in answer["Uploads"]]
        if not answer["IsTruncated"]:
            break
        request |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}
    assert found == ["a/1", "a/2", "b", "b", "c"]
    answer = client("ListMultipartUploads", Bucket="bucket", Delimiter="/")
    assert groups_of(answer) == ["a/"] and len(answer["Uploads"]) == 3


# Tags


def test_tags_of_objects_and_buckets(client: Client) -> None:
    client.put("k", b"x", Tagging="a=1&b=")
    assert client("GetObjectTagging", Bucket="bucket", Key="k")["TagSet"] == [
        {"Key": "a", "Value": "1"},
        {"Key": "b", "Value": ""},
    ]
    client("PutObjectTagging", Bucket="bucket", Key="k", Tagging={"TagSet": [{"Key": "c", "Value": "2"}]})
    assert client("GetObjectTagging", Bucket="bucket", Key="k")["TagSet"] == [{"Key": "c", "Value": "2"}]
    client("DeleteObjectTagging", Bucket="bucket", Key="k")
    assert client("GetObjectTagging", Bucket="bucket", Key="k")["TagSet"] == [] and client.get("k") == b"x"
    refused("NoSuchTagSet", lambda: client("GetBucketTagging", Bucket="bucket"))
    client("PutBucketTagging", Bucket="bucket", Tagging={"TagSet": [{"Key": "c", "Value": "2"}]})
    assert client("GetBucketTagging", Bucket="bucket")["TagSet"] == [{"Key": "c", "Value": "2"}]
    client("DeleteBucketTagging", Bucket="bucket")
    refused("NoSuchTagSet", lambda: client("GetBucketTagging", Bucket="bucket"))
    refused("NoSuchKey", lambda: client("GetObjectTagging", Bucket="bucket", Key="none"))
    refused(
        "InvalidTag",
        lambda: client(
            "PutObjectTagging", Bucket="bucket", Key="k", Tagging={"TagSet": [{"Key": "aws:x", "Value": ""}]}
        ),
    )


# Labels


def test_writing_high_makes_the_bucket_there_first(clients: Callable[[Session], Client]) -> None:
    low, high = clients(U), clients(S)
    low("CreateBucket", Bucket="bucket")
    low.put("k", b"low")
    assert high.get("k") == b"low"
    high.put("k", b"high")
    assert (low.get("k"), high.get("k"), clients(TS).get("k")) == (b"low", b"high", b"high")
    low("DeleteObject", Bucket="bucket", Key="k")
    low("DeleteBucket", Bucket="bucket")
    refused("NoSuchBucket", lambda: low.get("k"))
    assert high.get("k") == b"high" and high("ListBuckets")["Buckets"][0]["Name"] == "bucket"


def test_a_high_session_reads_down_but_does_not_write_down(clients: Callable[[Session], Client]) -> None:
    low, high = clients(U), clients(S)
    low("CreateBucket", Bucket="bucket")
    low.put("k", b"low", Tagging="t=1")
    refused("BucketAlreadyOwnedByYou", lambda: high("CreateBucket", Bucket="bucket"))
    for attempt in (
        lambda: high("DeleteObject", Bucket="bucket", Key="k"),
        lambda: high("PutObjectTagging", Bucket="bucket", Key="k", Tagging={"TagSet": []}),
        lambda: high("PutBucketTagging", Bucket="bucket", Tagging={"TagSet": []}),
    ):
        with pytest.raises(AccessDenied, match="UNCLASSIFIED"):
            attempt()
    answer = high("DeleteObjects", Bucket="bucket", Delete={"Objects": [{"Key": "k"}]})
    assert answer["Errors"][0]["Code"] == "AccessDenied"
    high("CopyObject", Bucket="bucket", Key="copy", CopySource="bucket/k")
    assert keys_of(low("ListObjectsV2", Bucket="bucket")) == ["k"]
    assert keys_of(high("ListObjectsV2", Bucket="bucket")) == ["copy", "k"]


def test_an_upload_exists_only_at_its_own_label(clients: Callable[[Session], Client]) -> None:
    low, high = clients(U), clients(S)
    low("CreateBucket", Bucket="bucket")
    upload = begin(low)
    refused("NoSuchUpload", lambda: parts(high, upload, b"x"))
    assert high("ListMultipartUploads", Bucket="bucket")["Uploads"] is None


# Damage


def test_a_flipped_byte_in_a_stored_object_is_found_and_never_served(client: Client, keep: Keep) -> None:
    content = os.urandom(2 * MIB)
    client.put("k", content)
    (path,) = (keep.directory / "blobs" / name for name in keep.blob_store.paths(""))
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    served = b""
    with pytest.raises(IntegrityFault):
        for chunk in client("GetObject", Bucket="bucket", Key="k")["Body"]:
            served += chunk
    assert served == content[:MIB]
    path.unlink()
    with pytest.raises(IntegrityFault):
        client.get("k")


# The platform's own access


class _Iam:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.denied: set[str] = set()

    def require(self, _: Session, action: str, resource: str, context: Mapping[str, Any]) -> None:
        self.asked.append((action, resource))
        if action in self.denied:
            raise AccessDenied("no")


def test_the_platform_passes_the_same_two_gates_and_is_recorded(
    clients: Callable[[Session], Client], keep: Keep
) -> None:
    clients(U)("CreateBucket", Bucket="bucket")
    clients(U).put("in/data", b"low")
    iam = _Iam()
    buckets = S3Buckets(keep.guard, iam, keep.ledger, keep.clock, keep.ids, BucketCommits())
    stored = buckets.write(S, "bucket", "out/model", iter([b"a" * MIB, b"b"]))
    assert (stored.key, stored.size) == ("out/model", MIB + 1)
    assert [one.key for one in buckets.list(S, "bucket", "")] == ["in/data", "out/model"]
    assert [one.key for one in buckets.list(U, "bucket", "")] == ["in/data"]
    assert b"".join(buckets.read(S, "bucket", "in/data")) == b"low"
    refused("NoSuchKey", lambda: buckets.read(U, "bucket", "out/model"))
    refused("NoSuchBucket", lambda: buckets.list(S, "none", ""))
    iam.denied.add("s3:GetObject")
    with pytest.raises(AccessDenied):
        buckets.read(S, "bucket", "in/data")
    assert ("s3:PutObject", "arn:aws-iso:s3:::bucket/out/model") in iam.asked
    calls = [entry for entry in keep.ledger.entries[S.label.canonical] if entry["eventType"] == "AwsApiCall"]
    assert [(call["eventName"], call.get("errorCode")) for call in calls] == [
        ("PutObject", None),
        ("ListObjectsV2", None),
        ("GetObject", None),
        ("ListObjectsV2", "NoSuchBucket"),
        ("GetObject", "AccessDenied"),
    ]


def test_what_a_policy_lets_another_account_do_is_done_in_the_buckets_account(
    clients: Callable[[Session], Client], keep: Keep
) -> None:
    clients(S)("CreateBucket", Bucket="bucket")
    clients(S).put("in", b"1")
    other = session("SECRET", account="999999999999")

    class Owned(_Iam):
        def require(self, *question: Any) -> str:  # type: ignore[override]
            super().require(*question)
            return S.account

    commits = BucketCommits()
    buckets = S3Buckets(keep.guard, Owned(), keep.ledger, keep.clock, keep.ids, commits)
    assert [one.key for one in buckets.list(other, "bucket", "")] == ["in"]
    assert b"".join(buckets.read(other, "bucket", "in")) == b"1"
    buckets.write(other, "bucket", "out", [b"2"])
    assert clients(S).get("out") == b"2"
    call = keep.call(other, "DeleteObjects", authorizer=lambda *_: S.account)
    answer = S3(keep.ids, commits).delete_objects(call, {"Bucket": "bucket", "Delete": {"Objects": [{"Key": "out"}]}})
    assert answer["Deleted"][0]["Key"] == "out" and keys_of(clients(S)("ListObjectsV2", Bucket="bucket")) == ["in"]


def test_every_operation_states_what_it_asks_of_iam() -> None:
    import botocore.loaders

    model = botocore.loaders.Loader().load_service_model("s3", "service-2")
    written = {name for name in model["operations"] if hasattr(S3, xform_name(name))}
    assert written == set(S3.targets) | S3.unauthorized
    assert len(written) >= 34


def test_every_call_names_its_bucket_and_object_for_the_ledger(client: Client) -> None:
    def named(operation: str, **request: Any) -> list[tuple[str, str]]:
        client(operation, Bucket="bucket", **request)
        assert client.last is not None
        return client.last.resources

    bucket, key = ("arn:aws-iso:s3:::bucket", "AWS::S3::Bucket"), ("arn:aws-iso:s3:::bucket/k", "AWS::S3::Object")
    assert named("PutObject", Key="k", Body=b"x") == [key] and client.last is not None
    assert client.last.details == {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    assert named("ListObjectsV2") == [bucket]
    assert named("CopyObject", Key="c", CopySource="bucket/k")[1:] == [key]
    assert named("DeleteObjects", Delete={"Objects": [{"Key": "k"}]}) == [bucket, key]


def test_unwritten_members_are_refused_not_ignored(client: Client) -> None:
    with pytest.raises(NotImplementedYet):
        client("DeleteObject", Bucket="bucket", Key="k", MFA="x")
    refused("InvalidArgument", lambda: client.get("k", VersionId="abc"))
