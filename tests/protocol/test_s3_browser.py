"""S3 for browsers: preflights of CORS, CORS headers on answers, and forms with a signed policy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from honmaru.testing.gateways import HOST, REGION, GatewayUnderTest, Reply, Request
from honmaru.testing.keep import quick_directory

RULE = b"""<CORSConfiguration><CORSRule><AllowedOrigin>https://*.example.org</AllowedOrigin>
<AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod><AllowedHeader>x-amz-*</AllowedHeader>
<ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>600</MaxAgeSeconds></CORSRule></CORSConfiguration>"""
PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayUnderTest]:
    with quick_directory() as directory:
        made = GatewayUnderTest(Path(directory) / "keep")
        for key, bucket in ((made.low, "low"), (made.high, "high")):
            for query, method, body in (("", "PUT", b""), ("cors", "PUT", RULE)):
                reply = made.send(made.signed("s3", method, f"/{bucket}", query=query, body=body, key=key))
                assert reply.status == 200, reply.body
            assert made.send(made.signed("s3", "PUT", f"/{bucket}/k", body=b"content", key=key)).status == 200
        yield made
        made.close()


def preflight(gateway: GatewayUnderTest, path: str, query: str = "", **headers: str) -> Reply:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return gateway.send(Request("OPTIONS", path, query, [("Host", HOST), *named]))


def test_a_preflight_of_the_lowest_label_is_answered_by_the_rule_that_matches(gateway: GatewayUnderTest) -> None:
    reply = preflight(
        gateway,
        "/low/k",
        origin=PAGE,
        access_control_request_method="PUT",
        access_control_request_headers="X-Amz-Meta-A, x-amz-date",
    )
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert reply.headers["access-control-allow-methods"] == "GET, PUT"
    assert reply.headers["access-control-allow-headers"] == "x-amz-meta-a, x-amz-date"
    assert reply.headers["access-control-expose-headers"] == "ETag"
    assert reply.headers["access-control-max-age"] == "600"
    assert reply.headers["access-control-allow-credentials"] == "true"
    assert "Origin" in reply.headers["vary"]
    assert gateway.ledger.entries["U"][-1]["eventName"] == "Preflight"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/low/k", {"origin": "https://evil.test", "access_control_request_method": "GET"}),
        ("/low/k", {"origin": PAGE, "access_control_request_method": "DELETE"}),
        (
            "/low/k",
            {"origin": PAGE, "access_control_request_method": "GET", "access_control_request_headers": "x-other"},
        ),
        ("/none/k", {"origin": PAGE, "access_control_request_method": "GET"}),
        ("/high/k", {"origin": PAGE, "access_control_request_method": "GET"}),
    ],
)
def test_what_is_not_allowed_and_what_is_not_visible_answer_alike(
    gateway: GatewayUnderTest, path: str, headers: Mapping[str, str]
) -> None:
    reply = preflight(gateway, path, **headers)
    assert reply.status == 403 and b"<Code>AccessForbidden</Code>" in reply.body
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_a_preflight_must_say_what_it_asks(gateway: GatewayUnderTest) -> None:
    reply = preflight(gateway, "/low/k", access_control_request_method="GET")
    assert (reply.status, b"Origin request header needed" in reply.body) == (400, True)
    reply = preflight(gateway, "/low/k", origin=PAGE)
    assert (reply.status, b"Access-Control-Request-Method: null" in reply.body) == (400, True)


def test_a_presigned_preflight_sees_what_its_signer_sees(gateway: GatewayUnderTest) -> None:
    signed = gateway.presigned("s3", "GET", "/high/k")
    reply = preflight(gateway, signed.path, signed.query, origin=PAGE, access_control_request_method="GET")
    assert reply.status == 200
    reply = preflight(gateway, signed.path, signed.query, origin=PAGE, access_control_request_method="PUT")
    assert reply.status == 403, "the signature is for GET"


def test_answers_carry_the_headers_of_the_rule(gateway: GatewayUnderTest) -> None:
    request = gateway.signed("s3", "GET", "/high/k", headers=[("Origin", PAGE)])
    reply = gateway.send(request)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, PAGE)
    reply = gateway.send(gateway.signed("s3", "GET", "/high/none", headers=[("Origin", PAGE)]))
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (404, PAGE)
    reply = gateway.send(gateway.signed("s3", "GET", "/high/k", headers=[("Origin", "https://evil.test")]))
    assert "access-control-allow-origin" not in reply.headers
    assert "access-control-allow-origin" not in gateway.send(gateway.signed("s3", "GET", "/high/k")).headers


# Forms

FUTURE = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
ANY_KEY = ["starts-with", "$key", ""]


def form(
    gateway: GatewayUnderTest,
    fields: Mapping[str, str],
    conditions: list[Any],
    *,
    content: bytes = b"content",
    filename: str | None = "note.txt",
    bucket: str = "high",
    policy: Mapping[str, Any] | None = None,
    change: Mapping[str, str | None] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Request:
    """A form signed by botocore over `policy`, or over these conditions; `change` sets or removes fields after that."""
    request = botocore.awsrequest.AWSRequest("POST", f"https://{HOST}/{bucket}")
    request.context["s3-presign-post-fields"] = dict(fields)
    request.context["s3-presign-post-policy"] = dict(policy or {"expiration": FUTURE, "conditions": list(conditions)})
    credentials = botocore.credentials.Credentials(*gateway.high)
    botocore.auth.S3SigV4PostAuth(credentials, "s3", REGION).add_auth(request)
    every = {**request.context["s3-presign-post-fields"], **(change or {})}
    stated = "" if filename is None else f'; filename="{filename}"'
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in every.items()
        if value is not None
    ]
    parts.append(
        f'--XX\r\nContent-Disposition: form-data; name="file"{stated}\r\nContent-Type: text/plain\r\n\r\n'.encode()
    )
    parts.append(content + b"\r\n--XX--\r\n")
    body = b"".join(parts)
    given = {"Host": HOST, "Content-Type": "multipart/form-data; boundary=XX", "Content-Length": str(len(body))}
    return Request("POST", f"/{bucket}", "", list({**given, **(headers or {})}.items()), body)


def stored(gateway: GatewayUnderTest, key: str) -> Reply:
    return gateway.send(gateway.signed("s3", "GET", f"/high/{quote(key)}"))


@pytest.mark.parametrize("pieces", [1, 3, 97])
def test_a_form_is_stored_whole_however_it_is_cut(gateway: GatewayUnderTest, pieces: int) -> None:
    content = b"\r\n--X" * 50_000 + b"\r\n--XY"
    request = form(
        gateway,
        {"key": "up/${filename}", "Content-Type": "text/x", "x-amz-meta-A": "1", "success_action_status": "201"},
        [
            {"bucket": "high"},
            ["starts-with", "$key", "up/"],
            ["eq", "$content-type", "text/x"],
            {"x-amz-meta-a": "1"},
            {"success_action_status": "201"},
            ["content-length-range", len(content), str(len(content))],
        ],
        content=content,
        filename="C:\\\\dir\\\\é.txt",
    )
    reply = asyncio.run(gateway.send_async(request, pieces=pieces))
    assert reply.status == 201, reply.body
    assert b"<Key>up/\xc3\xa9.txt</Key>" in reply.body and b"<Bucket>high</Bucket>" in reply.body
    assert reply.headers["location"] == f"https://{HOST}/high/up%2F%C3%A9.txt"
    found = stored(gateway, "up/é.txt")
    assert found.body == content
    assert (found.headers["content-type"], found.headers["x-amz-meta-a"]) == ("text/x", "1")
    assert found.headers["etag"] == reply.headers["etag"]
    assert gateway.ledger.entries["S;rel=USA"][-2]["eventName"] == "PostObject"


def test_what_a_form_asks_to_be_answered_with(gateway: GatewayUnderTest) -> None:
    base = [{"bucket": "high"}, ANY_KEY, ["starts-with", "$success_action_redirect", ""]]
    reply = gateway.send(form(gateway, {"key": "a", "success_action_redirect": "https://x.org/?q=1"}, base))
    assert reply.status == 303 and reply.body == b""
    assert reply.headers["location"].startswith("https://x.org/?q=1&bucket=high&key=a&etag=%22")
    reply = gateway.send(form(gateway, {"key": "a", "success_action_redirect": "/relative"}, base))
    assert reply.status == 204
    reply = gateway.send(form(gateway, {"key": "a"}, [ANY_KEY]))
    assert (reply.status, reply.body) == (204, b"")
    reply = gateway.send(form(gateway, {"key": "lit-${filename}"}, [ANY_KEY], filename=None))
    assert reply.status == 204 and stored(gateway, "lit-${filename}").status == 200
    tags = "<Tagging><TagSet><Tag><Key>k</Key><Value>v w</Value></Tag></TagSet></Tagging>"
    reply = gateway.send(form(gateway, {"key": "tagged", "tagging": tags}, [ANY_KEY, {"tagging": tags}]))
    assert reply.status == 204 and stored(gateway, "tagged").headers["x-amz-tagging-count"] == "1"


@pytest.mark.parametrize(
    ("change", "conditions", "wanted"),
    [
        # conditions
        ({}, [["eq", "$key", "other"]], (403, "AccessDenied", 'Policy Condition failed: ["eq", "$key", "other"]')),
        ({}, [["starts-with", "$key", "user/"]], (403, "AccessDenied", "Policy Condition failed")),
        ({}, [["eq", "key", "k"]], (403, "AccessDenied", 'Policy Condition failed: ["eq", "key", "k"]')),
        ({}, [ANY_KEY, ["starts-with", "$acl", ""]], (403, "AccessDenied", "Policy Condition failed")),
        ({}, [ANY_KEY, {"bucket": "low"}], (403, "AccessDenied", "Policy Condition failed")),
        ({"x-amz-meta-b": "1"}, [ANY_KEY], (403, "AccessDenied", "Extra input fields: x-amz-meta-b")),
        ({"x-ignore-b": "1"}, [ANY_KEY, ["content-length-range", 8, 9]], (400, "EntityTooSmall", "smaller than")),
        ({}, [ANY_KEY, ["content-length-range", 0, 6]], (400, "EntityTooLarge", "exceeds the maximum")),
        ({}, [ANY_KEY, ["content-length-range", "a", 6]], (403, "AccessDenied", "Policy Condition failed")),
        # policies
        ({}, [{"key": "k", "acl": "private"}], (400, "InvalidPolicyDocument", "exactly one property")),
        ({}, [{"key": 7}], (400, "InvalidPolicyDocument", "value must be a string")),
        ({}, [{}], (400, "InvalidPolicyDocument", "exactly one property")),
        ({}, [["matches", "$key", "k"]], (400, "InvalidPolicyDocument", "unknown operation")),
        ({}, [["content-length-range", 0]], (400, "InvalidPolicyDocument", "exactly two arguments")),
        # the form itself
        ({"policy": "e30="}, [ANY_KEY], (403, "SignatureDoesNotMatch", "does not match")),
        ({"x-amz-signature": None}, [ANY_KEY], (400, "InvalidArgument", "field named 'X-Amz-Signature'.  If it")),
        ({"x-amz-algorithm": None}, [ANY_KEY], (400, "InvalidArgument", "field named 'X-Amz-Algorithm'")),
        ({"key": None}, [ANY_KEY], (400, "InvalidArgument", "field named 'key'")),
        ({"AWSAccessKeyId": "AK"}, [ANY_KEY], (400, "InvalidRequest", "Please use AWS4-HMAC-SHA256")),
        (
            {"x-amz-storage-class": "X"},
            [ANY_KEY, {"x-amz-storage-class": "X"}],
            (400, "InvalidArgument", "storageClass"),
        ),
        ({"tagging": "not-xml"}, [ANY_KEY, {"tagging": "not-xml"}], (400, "MalformedXML", "")),
        ({"filler": "x" * 21_000}, [ANY_KEY], (400, "MaxPostPreDataLengthExceededError", "too large")),
    ],
)
def test_forms_that_are_refused_store_nothing(
    gateway: GatewayUnderTest, change: Mapping[str, str | None], conditions: list[Any], wanted: tuple[int, str, str]
) -> None:
    reply = gateway.send(form(gateway, {"key": "k-refused"}, conditions, change=change))
    status, code, words = wanted
    assert reply.status == status and f"<Code>{code}</Code>" in reply.body.decode(), reply.body
    assert words in unescape(reply.body.decode())
    assert stored(gateway, "k-refused").status == 404


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ({"expiration": "2020-01-01T00:00:00Z", "conditions": [ANY_KEY]}, (403, "Policy expired.")),
        ({"conditions": [ANY_KEY]}, (400, "Policy missing expiration.")),
        ({"expiration": "soon", "conditions": [ANY_KEY]}, (400, "Invalid 'expiration' value")),
        ({"Expiration": FUTURE, "conditions": [ANY_KEY]}, (400, "Policy missing expiration.")),
        ({"expiration": FUTURE, "conditions": [ANY_KEY], "x": 1}, (400, "Unexpected: 'x'")),
    ],
)
def test_policies_that_are_refused(
    gateway: GatewayUnderTest, policy: Mapping[str, Any], wanted: tuple[int, str]
) -> None:
    reply = gateway.send(form(gateway, {"key": "k-refused"}, [], policy=policy))
    assert reply.status == wanted[0] and wanted[1] in unescape(reply.body.decode()), reply.body
    assert stored(gateway, "k-refused").status == 404


def test_forms_without_a_signer_an_end_or_a_file(gateway: GatewayUnderTest) -> None:
    names = ("policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
    reply = gateway.send(form(gateway, {"key": "k-refused"}, [ANY_KEY], change=dict.fromkeys(names)))
    assert (reply.status, b"<Code>AccessDenied</Code>" in reply.body) == (403, True)
    whole = form(gateway, {"key": "k-refused"}, [ANY_KEY])
    for body, code in (
        (whole.body.removesuffix(b"\r\n--XX--\r\n"), b"MalformedPOSTRequest"),
        (
            whole.body.partition(b'--XX\r\nContent-Disposition: form-data; name="file"')[0] + b"--XX--\r\n",
            b"InvalidArgument",
        ),
        (b"no form at all", b"InvalidArgument"),
        (b"", b"InvalidArgument"),
    ):
        reply = gateway.send(replace(whole, body=body).with_header("Content-Length", str(len(body))))
        assert reply.status == 400 and code in reply.body, (body[-40:], reply.body)
    reply = gateway.send(replace(whole, path="/high/key"))
    assert reply.status == 405
    assert stored(gateway, "k-refused").status == 404


def test_a_form_is_stored_at_its_signers_label_and_no_higher_bucket_is_admitted(gateway: GatewayUnderTest) -> None:
    assert gateway.send(form(gateway, {"key": "raised"}, [ANY_KEY], bucket="low")).status == 204
    assert gateway.send(gateway.signed("s3", "GET", "/low/raised", key=gateway.low)).status == 404
    assert gateway.send(gateway.signed("s3", "GET", "/low/raised")).status == 200


def test_signature_version_2_is_refused_in_the_words_of_aws(gateway: GatewayUnderTest) -> None:
    query = "AWSAccessKeyId=AKIDEXAMPLE&Expires=1999999999&Signature=abc%3D"
    reply = gateway.send(Request("GET", "/high/k", query, [("Host", HOST)]))
    assert reply.status == 400 and b"<Code>InvalidRequest</Code>" in reply.body
    words = b"The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
    assert words in reply.body
