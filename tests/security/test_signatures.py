"""Signatures: whatever of a signed request is changed, it is refused; and the test itself can fail (sabotage).

10^4 mutations under HONMARU_LONG=1, 500 by default.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import string
import zlib
from datetime import UTC, datetime, timedelta

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from honmaru.gateway.aws import signatures
from honmaru.testing.gateways import HOST, REGION, GatewayUnderTest, Request

MUTATIONS = 10_000 if os.environ.get("HONMARU_LONG") == "1" else 500


@pytest.fixture(scope="module")
def under_test(tmp_path_factory):
    gateway = GatewayUnderTest(tmp_path_factory.mktemp("gateway"))
    yield gateway
    gateway.close()


def samples(g: GatewayUnderTest) -> list[Request]:
    """One good request for each protocol and way of signing."""
    digest = ("X-Amz-Content-SHA256", hashlib.sha256(b"hello").hexdigest())
    return [
        g.signed(
            "sts",
            "POST",
            "/",
            headers=[("Content-Type", "application/x-www-form-urlencoded")],
            body=b"Action=GetCallerIdentity&Version=2011-06-15",
        ),
        g.signed(
            "iam",
            "POST",
            "/",
            headers=[("Content-Type", "application/x-www-form-urlencoded")],
            body=b"Action=GetUser&Version=2010-05-08&UserName=admin",
        ),
        g.signed("s3", "GET", "/sample-bucket", query="list-type=2&prefix=a%2Fb", headers=[("X-Amz-Test", "1")]),
        g.signed(
            "s3",
            "PUT",
            "/sample-bucket/dir/a%20key",
            body=b"hello",
            headers=[("Content-Type", "text/plain"), ("x-amz-meta-a", "b"), digest],
        ),
        g.presigned("s3", "GET", "/sample-bucket/dir/a%20key"),
        g.signed(
            "sagemaker",
            "POST",
            "/",
            body=b"{}",
            headers=[("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", "SageMaker.ListTrainingJobs")],
        ),
        g.signed(
            "bedrock",
            "POST",
            "/model/a%3A0/converse",
            body=b'{"messages":[]}',
            headers=[("Content-Type", "application/json")],
        ),
    ]


@pytest.fixture(scope="module")
def good(under_test):
    bucket = under_test.signed("s3", "PUT", "/sample-bucket")
    assert under_test.send(bucket).status in (200, 409)
    requests = samples(under_test)
    for request in requests:
        reply = under_test.send(request)
        assert reply.status in (200, 501), (request, reply)
    return requests


def mutated(request: Request, rng: random.Random, g: GatewayUnderTest) -> tuple[str, Request]:
    """One change of a request that changes what is asked, by whom, when or where."""
    copy = Request(request.method, request.path, request.query, list(request.headers), request.body, request.scheme)
    kind = rng.choice(
        [
            "path",
            "query",
            "body",
            "header",
            "date",
            "region",
            "service",
            "key",
            "signature",
            "method",
            "added",
            "removed",
            "token",
        ]
    )
    signed_by_query = "X-Amz-Signature" in request.query
    if kind == "path":
        at = rng.randrange(len(copy.path) + 1)
        extra = rng.choice(["x", "/", "%41", "..", "//", "%2F"])
        copy.path = (
            copy.path[:at] + extra + copy.path[at:] if rng.random() < 0.7 or len(copy.path) < 3 else copy.path[:-1]
        )
        if not copy.path.startswith("/") or copy.path == request.path:
            copy.path = request.path + "x"
    elif kind == "query":
        copy.query = (copy.query + "&" if copy.query else "") + rng.choice(["a=b", "prefix=zz", "uploads=", "x-id=Y"])
        if rng.random() < 0.3 and "prefix=a" in request.query:
            copy.query = request.query.replace("prefix=a", "prefix=b")
    elif kind == "body":
        if signed_by_query:  # a presigned URL signs no body
            return mutated(request, rng, g)
        flipped = bytearray(copy.body or b"x")
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        copy.body = bytes(flipped)
        copy = copy.with_header("Content-Length", str(len(copy.body)))
    elif kind == "header":
        names = signed_header_names(request)
        name = rng.choice(names)
        value = copy.header(name)
        copy = copy.with_header(name, (value or "") + rng.choice("aZ09-"))
    elif kind == "date":
        moved = datetime.now(UTC) + timedelta(seconds=rng.choice([-1, 1]) * rng.randrange(1, 200_000))
        stamp = moved.strftime("%Y%m%dT%H%M%SZ")
        if signed_by_query:
            copy.query = replaced(copy.query, "X-Amz-Date", stamp)
        else:
            copy = copy.with_header("X-Amz-Date", stamp)
    elif kind in ("region", "service", "key"):
        old = {"region": f"/{REGION}/", "service": "/aws4_request", "key": g.high[0]}[kind]
        new = {
            "region": f"/us-iso{rng.choice('ab')}-west-{rng.randrange(9)}/",
            "service": "x/aws4_request",
            "key": rng.choice([g.low[0], "AKIA" + "A" * 16]),
        }[kind]
        if signed_by_query:
            copy.query = copy.query.replace(old.replace("/", "%2F"), new.replace("/", "%2F"))
        else:
            copy = copy.with_header("Authorization", (copy.header("Authorization") or "").replace(old, new))
    elif kind == "signature":
        text = copy.query if signed_by_query else copy.header("Authorization") or ""
        at = text.index("Signature=") + 10 + rng.randrange(64)
        text = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
        if signed_by_query:
            copy.query = text
        else:
            copy = copy.with_header("Authorization", text)
    elif kind == "method":
        copy.method = rng.choice([m for m in ("GET", "PUT", "POST", "DELETE", "HEAD") if m != copy.method])
    elif kind == "added":
        copy.headers.append((f"x-amz-{rng.choice(string.ascii_lowercase)}dded", "1"))
    elif kind == "removed":
        name = rng.choice(signed_header_names(request))
        copy = copy.with_header(name, None)
    else:
        copy.headers.append(("X-Amz-Security-Token", base64.b64encode(rng.randbytes(20)).decode()))
    return kind, copy


def signed_header_names(request: Request) -> list[str]:
    text = request.header("Authorization") or request.query.replace("%3B", ";").replace("X-Amz-", "")
    start = text.index("SignedHeaders=") + len("SignedHeaders=")
    names = text[start:].split(",")[0].split("&")[0]
    return names.split(";")


def replaced(query: str, name: str, value: str) -> str:
    return "&".join(f"{name}={value}" if part.startswith(f"{name}=") else part for part in query.split("&"))


def run_mutations(g, good, count, seed):
    """(mutations made, mutations accepted)."""
    rng = random.Random(seed)
    accepted = []
    for _ in range(count):
        kind, request = mutated(rng.choice(good), rng, g)
        reply = g.send(request)
        if reply.status < 400 or reply.status == 501:
            accepted.append((kind, request, reply))
    return accepted


def test_no_mutation_is_accepted(under_test, good):
    accepted = run_mutations(under_test, good, MUTATIONS, 1)
    assert not accepted, accepted[0]
    codes = {entry.get("errorCode") for log in under_test.ledger.entries.values() for entry in log}
    assert {"SignatureDoesNotMatch", "InvalidSignatureException"} <= codes  # refused for the reason that we mean


def test_sabotage_is_found(under_test, good, monkeypatch):
    """With the comparison disabled the mutation test must turn red."""
    monkeypatch.setattr(signatures.hmac, "compare_digest", lambda a, b: True)
    assert run_mutations(under_test, good, 60, 2)


def test_clock_skew(under_test):
    def at(seconds):
        return under_test.send(
            under_test.signed(
                "sts",
                "POST",
                "/",
                headers=[("Content-Type", "application/x-www-form-urlencoded")],
                body=b"Action=GetCallerIdentity&Version=2011-06-15",
                at=datetime.now(UTC) + timedelta(seconds=seconds),
            )
        )

    assert at(-290).status == 200
    assert at(290).status == 200
    assert at(-310).status == 403
    assert at(310).status == 403


def test_presigned_lifetime(under_test, good):
    request = under_test.presigned("s3", "GET", "/sample-bucket/dir/a%20key", expires_s=604_800)
    assert under_test.send(request).status == 200
    too_long = under_test.presigned("s3", "GET", "/sample-bucket/dir/a%20key", expires_s=604_801)
    reply = under_test.send(too_long)
    assert reply.status == 400
    assert b"AuthorizationQueryParametersError" in reply.body
    for lifetime in ("0000000019999999999", "9" * 5000, "1e3", "-1", " 60"):
        endless = under_test.presigned("s3", "GET", "/sample-bucket/dir/a%20key", expires_s=lifetime)
        assert b"AuthorizationQueryParametersError" in under_test.send(endless).body, lifetime


def test_sigv2_is_refused_with_an_explanation(under_test):
    reply = under_test.send(Request("GET", "/b/k", "AWSAccessKeyId=AKIAX&Signature=abc&Expires=99", [("Host", HOST)]))
    assert reply.status == 400
    assert b"<Code>InvalidRequest</Code>" in reply.body
    assert b"AWS4-HMAC-SHA256" in reply.body


def test_anthropic_style_request_verifies(under_test):
    """AnthropicBedrock: a raw ':' in the path and many signed headers."""
    headers = [
        ("Content-Type", "application/json"),
        ("x-stainless-lang", "python"),
        ("accept-encoding", "gzip, deflate"),
        ("accept", "application/json"),
        ("connection", "keep-alive"),
        ("anthropic-version", "2026-10-21"),
        ("content-length", "2"),
    ]
    request = under_test.signed("bedrock", "POST", "/model/anthropic.claude-v1:0/invoke", headers=headers, body=b"{}")
    reply = under_test.send(request)
    assert reply.status == 501, reply.body
    assert b"InvokeModel of service bedrock-runtime" in reply.body


def test_bearer_reaches_bedrock_only(under_test):
    from honmaru.core.labels import Label

    token = under_test.identity.bearer_key("admin", Label.parse("SECRET"))
    bearer = ("Authorization", f"Bearer {token}")
    runtime = Request(
        "POST",
        "/model/m/converse",
        "",
        [("Host", HOST), bearer, ("Content-Length", "15"), ("Content-Type", "application/json")],
        b'{"messages":[]}',
    )
    assert under_test.send(runtime).status == 501
    control = Request("GET", "/foundation-models", "", [("Host", HOST), bearer])
    assert under_test.send(control).status == 501
    wrong = Request("GET", "/foundation-models", "", [("Host", HOST), ("Authorization", f"Bearer {token}x")])
    assert under_test.send(wrong).status == 403
    target = Request("POST", "/", "", [("Host", HOST), bearer, ("X-Amz-Target", "SageMaker.ListTrainingJobs")], b"{}")
    assert under_test.send(target).status >= 400


# Streamed payloads


def chunked(g, form, content, *, chunk=70_000, trailer=True, scheme="https", key="/sample-bucket/chunked"):
    """A chunk-signed upload, signed as AWS SDKs sign it (independently of our code)."""
    names = "x-amz-checksum-crc32" if trailer else ""
    headers = [
        ("Content-Encoding", "aws-chunked"),
        ("X-Amz-Decoded-Content-Length", str(len(content))),
        ("X-Amz-Content-SHA256", form),
    ]
    if trailer:
        headers.append(("X-Amz-Trailer", names))
    url = f"{scheme}://{HOST}{key}"
    request = botocore.awsrequest.AWSRequest("PUT", url, dict(headers))
    signer = botocore.auth.S3SigV4Auth(botocore.credentials.Credentials(*g.high), "s3", REGION)
    signer.payload = lambda _request: form
    signer.add_auth(request)
    authorization = request.headers["Authorization"]
    previous = authorization.split("Signature=")[1]
    stamp = request.context["timestamp"] if "timestamp" in request.context else request.headers["X-Amz-Date"]
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    signed = form.startswith("STREAMING-AWS4")
    empty = hashlib.sha256(b"").hexdigest()

    def sign(text):
        request.context["timestamp"] = stamp
        return signer.signature(text, request)

    body = b""
    parts = [content[at : at + chunk] for at in range(0, len(content), chunk)]
    for part in [*parts, b""]:
        line = f"{len(part):x}"
        if signed:
            text = "\n".join(
                ["AWS4-HMAC-SHA256-PAYLOAD", stamp, scope, previous, empty, hashlib.sha256(part).hexdigest()]
            )
            previous = sign(text)
            line += f";chunk-signature={previous}"
        body += line.encode() + b"\r\n" + (part + b"\r\n" if part else b"")
    if trailer:
        value = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
        body += f"x-amz-checksum-crc32:{value}\r\n".encode()
        if signed:
            canonical = f"x-amz-checksum-crc32:{value}\n"
            text = "\n".join(
                ["AWS4-HMAC-SHA256-TRAILER", stamp, scope, previous, hashlib.sha256(canonical.encode()).hexdigest()]
            )
            body += f"x-amz-trailer-signature:{sign(text)}\r\n".encode()
    body += b"\r\n"
    found = [*request.headers.items(), ("Host", HOST), ("Content-Length", str(len(body)))]
    return Request("PUT", key, "", found, body, scheme)


FORMS = [
    ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", True),
    ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", False),
    ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", True),
]


@pytest.mark.parametrize(("form", "trailer"), FORMS)
@pytest.mark.parametrize("size", [0, 1, 70_000, 200_001])
def test_streaming_forms(under_test, good, form, trailer, size):
    content = random.Random(size).randbytes(size)
    reply = under_test.send(chunked(under_test, form, content, trailer=trailer))
    assert reply.status == 200, reply.body
    back = under_test.send(under_test.signed("s3", "GET", "/sample-bucket/chunked"))
    assert back.body == content


@pytest.mark.parametrize(("form", "trailer"), FORMS)
def test_no_mutation_of_a_streamed_body_is_accepted(under_test, good, form, trailer):
    rng = random.Random(form)
    key = "/sample-bucket/never"
    base = chunked(under_test, form, rng.randbytes(1000), chunk=256, trailer=trailer, key=key)
    for _ in range(40):
        body = bytearray(base.body)
        choice = rng.randrange(3)
        if choice == 0:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        elif choice == 1:
            del body[rng.randrange(len(body)) :]
        else:
            body.insert(rng.randrange(len(body)), rng.randrange(256))
        if bytes(body) == base.body:
            continue
        changed = Request(base.method, base.path, "", base.headers, bytes(body), "https")
        changed = changed.with_header("Content-Length", str(len(body)))
        assert under_test.send(changed).status >= 400
    gone = under_test.send(under_test.signed("s3", "GET", key))
    assert gone.status == 404  # nothing half-done


def test_unsigned_payloads_need_tls(under_test, good):
    reply = under_test.send(chunked(under_test, FORMS[0][0], b"x", scheme="http"))
    assert reply.status == 403
    for scheme, status in (("http", 403), ("https", 200)):
        request = botocore.awsrequest.AWSRequest("PUT", f"{scheme}://{HOST}/sample-bucket/u")
        signer = botocore.auth.S3SigV4Auth(botocore.credentials.Credentials(*under_test.high), "s3", REGION)
        signer.payload = lambda _request: "UNSIGNED-PAYLOAD"
        signer.add_auth(request)
        found = [*request.headers.items(), ("Host", HOST), ("Content-Length", "1")]
        sent = Request("PUT", "/sample-bucket/u", "", found, b"x", scheme)
        assert under_test.send(sent).status == status
