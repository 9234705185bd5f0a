"""Where the bucket and the key of a request stand: path style, virtual-host style, and keys of every odd byte."""

from __future__ import annotations

import base64
import hashlib
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.testing.gateways import REGION, GatewayUnderTest
from honmaru.testing.keep import quick_directory

ODD_KEYS = [
    "a b+c%2Fd&e=f?g#h",
    "a//b/",
    "/leading",
    "trailing/",
    "///",
    ".",
    "..",
    "./a",
    "../a",
    "a/../b",
    "a/./b",
    "%",
    "%2e%2e/a",
    "+",
    " ",
    "a ",
    "\u00e9",
    "e\u0301",
    "日本語/\U0001f3ef",
    "a\tb",
    "a\nb",
    "\x01\x02",
    "a\\b",
    "a:b;c,d@e!$'()*[]{}|^~`\"<>",
    "x-id",
    "acl",
    "k" * 1024,
    "é" * 512,
]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[GatewayUnderTest, int]]:
    with quick_directory() as directory:
        made = GatewayUnderTest(Path(directory) / "keep")
        with made.served() as port:
            yield made, port
        made.close()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is this machine, as a hosts file or split DNS would make them."""
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **named: Any) -> Any:
        return real("127.0.0.1" if isinstance(host, str) and not host[:1].isdigit() else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def client(served: tuple[GatewayUnderTest, int], host: str, style: str) -> Any:
    gateway, port = served
    key, secret = gateway.high
    return boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name=REGION,
        config=Config(s3={"addressing_style": style, "payload_signing_enabled": True}),
    )


HOSTS = ["localhost", "s3.localhost", f"s3.{REGION}.sc2s.sgov.gov", "s3.honmaru.test"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("bucket", ["plain", "with.dots", "my.s3.bucket"])
def test_virtual_host_style_and_path_style_name_the_same(
    served: tuple[GatewayUnderTest, int], host: str, bucket: str
) -> None:
    virtual, path = client(served, host, "virtual"), client(served, "127.0.0.1", "path")
    seen: list[str] = []
    virtual.meta.events.register("before-send.s3", lambda request, **_: seen.append(request.url))
    place = {"LocationConstraint": REGION}
    if bucket not in [one["Name"] for one in path.list_buckets()["Buckets"]]:
        virtual.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    virtual.put_object(Bucket=bucket, Key="a/b c", Body=b"x", ContentType="text/x")
    assert seen[-1].startswith(f"http://{bucket}.{host}:"), seen
    assert path.get_object(Bucket=bucket, Key="a/b c")["Body"].read() == b"x"
    assert [one["Key"] for one in virtual.list_objects_v2(Bucket=bucket)["Contents"]] == ["a/b c"]
    assert virtual.head_bucket(Bucket=bucket)["BucketRegion"] == REGION
    assert bucket in [one["Name"] for one in virtual.list_buckets()["Buckets"]]
    upload = virtual.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    virtual.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload)
    copied = virtual.copy_object(Bucket=bucket, Key="c", CopySource={"Bucket": bucket, "Key": "a/b c"})
    assert copied["CopyObjectResult"]["ETag"]
    virtual.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a/b c"}, {"Key": "c"}]})
    assert virtual.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.parametrize("style", ["path", "virtual"])
@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_odd_keys_are_themselves(served: tuple[GatewayUnderTest, int], style: str, key: str) -> None:
    s3 = client(served, "localhost", style)
    if "odd-keys" not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket="odd-keys", CreateBucketConfiguration={"LocationConstraint": REGION})
    content = key.encode()
    s3.put_object(Bucket="odd-keys", Key=key, Body=content)
    assert s3.get_object(Bucket="odd-keys", Key=key)["Body"].read() == content
    assert [one["Key"] for one in s3.list_objects_v2(Bucket="odd-keys")["Contents"]] == [key]
    s3.copy_object(Bucket="odd-keys", Key="copied", CopySource={"Bucket": "odd-keys", "Key": key})
    assert s3.get_object(Bucket="odd-keys", Key="copied")["Body"].read() == content
    if "\x01" in key:  # has no place in an XML document, in S3 as here
        for one in (key, "copied"):
            s3.delete_object(Bucket="odd-keys", Key=one)
    else:
        done = s3.delete_objects(Bucket="odd-keys", Delete={"Objects": [{"Key": key}, {"Key": "copied"}]})
        assert {one["Key"] for one in done["Deleted"]} == {key, "copied"}
    assert s3.list_objects_v2(Bucket="odd-keys")["KeyCount"] == 0


@pytest.mark.parametrize("header", ["Content-MD5", "x-amz-checksum-crc32", "x-amz-checksum-sha256"])
def test_a_document_that_is_not_what_was_stated_changes_nothing(
    served: tuple[GatewayUnderTest, int], header: str
) -> None:
    gateway, _ = served
    gateway.send(gateway.signed("s3", "PUT", "/documents"))
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    right = {
        "Content-MD5": hashlib.md5(body, usedforsecurity=False).digest(),
        "x-amz-checksum-crc32": zlib.crc32(body).to_bytes(4, "big"),
        "x-amz-checksum-sha256": hashlib.sha256(body).digest(),
    }[header]
    wrong = bytes([right[0] ^ 1]) + right[1:]
    for digest, status in ((wrong, 400), (right, 200)):
        stated = [(header, base64.b64encode(digest).decode())]
        reply = gateway.send(gateway.signed("s3", "PUT", "/documents", query="versioning=", headers=stated, body=body))
        assert reply.status == status and (status == 200 or b"<Code>BadDigest</Code>" in reply.body), reply.body


def test_forms_of_unicode_are_two_keys(served: tuple[GatewayUnderTest, int]) -> None:
    s3 = client(served, "localhost", "path")
    s3.create_bucket(Bucket="unicode", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="unicode", Key="\u00e9", Body=b"composed")
    s3.put_object(Bucket="unicode", Key="e\u0301", Body=b"decomposed")
    assert s3.get_object(Bucket="unicode", Key="\u00e9")["Body"].read() == b"composed"
    assert [one["Key"] for one in s3.list_objects_v2(Bucket="unicode")["Contents"]] == ["e\u0301", "\u00e9"]


@settings(max_examples=25)
@given(key=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40))
def test_any_key_round_trips(served: tuple[GatewayUnderTest, int], key: str) -> None:
    gateway, _ = served
    from urllib.parse import quote

    path = f"/any-keys/{quote(key, safe='~-._')}"
    gateway.send(gateway.signed("s3", "PUT", "/any-keys"))
    assert gateway.send(gateway.signed("s3", "PUT", path, body=b"x")).status == 200
    assert gateway.send(gateway.signed("s3", "GET", path)).body == b"x"
    assert gateway.send(gateway.signed("s3", "DELETE", path)).status == 204
