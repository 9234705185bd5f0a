"""S3 as pages and named endpoints reach it, live over https: boto3's presigned forms, preflights, virtual hosts."""

from __future__ import annotations

import socket
import ssl
import urllib.error
import urllib.request
import uuid
from typing import Any

import boto3
import pytest
from botocore.config import Config

from honmaru.testing.enclaves import LiveEnclave

PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def s3(enclave: LiveEnclave) -> Any:
    return enclave.client("s3", "alice", "SECRET", signature_version="s3v4")


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    name = f"browser-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    rule = {"AllowedMethods": ["GET", "PUT", "POST"], "AllowedOrigins": [PAGE], "AllowedHeaders": ["*"]}
    s3.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": [rule]})
    return name


def send(enclave: LiveEnclave, url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, named, method=method)
    return urllib.request.urlopen(request, context=ssl.create_default_context(cafile=enclave.facts["ca"]))


def form(fields: dict[str, str], content: bytes) -> bytes:
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    parts.append('--XX\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n')
    return "".join(parts).encode() + content + b"\r\n--XX--\r\n"


def test_a_presigned_form_uploads_a_large_file(enclave: LiveEnclave, s3: Any, bucket: str) -> None:
    made = s3.generate_presigned_post(
        bucket, "in/${filename}", {"acl": "private"}, [{"acl": "private"}, ["content-length-range", 1, 20 << 20]]
    )
    content = b"\r\n--X" * (1 << 20)
    body = form(made["fields"], content)
    kind = "multipart/form-data; boundary=XX"
    answer = send(enclave, made["url"], "POST", body, content_type=kind, origin=PAGE)
    assert answer.status == 204 and answer.headers["access-control-allow-origin"] == PAGE
    assert s3.get_object(Bucket=bucket, Key="in/a.bin")["Body"].read() == content
    with pytest.raises(urllib.error.HTTPError) as refusal:
        send(enclave, made["url"], "POST", form(made["fields"], b"x" * (21 << 20)), content_type=kind)
    assert refusal.value.code == 400 and b"EntityTooLarge" in refusal.value.read()
    assert s3.get_object(Bucket=bucket, Key="in/a.bin")["Body"].read() == content, "what was there stays"


def test_a_page_uses_a_presigned_url_after_its_preflight(enclave: LiveEnclave, s3: Any, bucket: str) -> None:
    url = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "page"})
    asked = {"access_control_request_method": "PUT", "origin": PAGE}
    allowed = send(enclave, url, "OPTIONS", **asked)
    assert allowed.headers["access-control-allow-methods"] == "GET, PUT, POST"
    put = send(enclave, url, "PUT", b"from a page", origin=PAGE)
    assert put.status == 200 and put.headers["access-control-allow-origin"] == PAGE
    assert s3.get_object(Bucket=bucket, Key="page")["Body"].read() == b"from a page"
    for refused in (
        lambda: send(enclave, url.partition("?")[0], "OPTIONS", **asked),
        lambda: send(enclave, url, "OPTIONS", **{**asked, "origin": "https://evil.test"}),
    ):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            refused()
        assert refusal.value.code == 403 and b"AccessForbidden" in refusal.value.read()


def test_signature_version_2_is_refused(enclave: LiveEnclave, bucket: str) -> None:
    old = enclave.client("s3", "alice", "SECRET", signature_version="s3")
    url = old.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "page"})
    assert "AWSAccessKeyId=" in url
    with pytest.raises(urllib.error.HTTPError) as refusal:
        send(enclave, url)
    said = refusal.value.read()
    assert refusal.value.code == 400 and b"Please use AWS4-HMAC-SHA256" in said


def test_virtual_host_style_over_https(enclave: LiveEnclave, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **named: real("127.0.0.1" if str(host).endswith("localhost") else host, *rest, **named),
    )
    keys = enclave.credentials("alice", "SECRET")
    named = boto3.client(
        "s3",
        endpoint_url=f"https://s3.localhost:{enclave.port}",
        verify=enclave.facts["ca"],
        region_name=enclave.region,
        aws_access_key_id=keys["access_key_id"],
        aws_secret_access_key=keys["secret_access_key"],
        config=Config(s3={"addressing_style": "virtual"}),
    )
    seen: list[str] = []
    named.meta.events.register("before-send.s3", lambda request, **_: seen.append(request.url))
    named.put_object(Bucket=bucket, Key="named/é", Body=b"x" * 100_000)
    assert named.get_object(Bucket=bucket, Key="named/é")["Body"].read() == b"x" * 100_000
    assert seen[0].startswith(f"https://{bucket}.s3.localhost:{enclave.port}/named/")
    assert "named/é" in [one["Key"] for one in named.list_objects_v2(Bucket=bucket)["Contents"]]
