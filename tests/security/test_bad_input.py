"""Bad input on all four protocols: a modelled error of the protocol, an entry in the ledger, nothing half-done."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from xml.etree import ElementTree

import pytest

from honmaru.core.errors import IntegrityFault, LedgerUnavailable
from honmaru.gateway.limits import Limits
from honmaru.security.calls import Provider, Target
from honmaru.testing.gateways import ACCOUNT, HOST, GatewayUnderTest, Request

JSON = ("Content-Type", "application/x-amz-json-1.1")
FORM = ("Content-Type", "application/x-www-form-urlencoded")
SECRET = "plutonium"
ARN = "arn:aws-iso-b:bedrock:us-isob-east-1:123456789012:imported-model/abcdefghijkl"


class Groups(Provider):
    """CloudWatch Logs with two operations, enough to see what reaches a service."""

    service = "logs"

    def __init__(self):
        self.made = []

    def create_log_group(self, call, request):
        self.made.append(dict(request))

    def put_query_definition(self, call, request):
        return {"queryDefinitionId": request["clientToken"]}

    def describe_log_groups(self, call, request):
        if request.get("logGroupNamePrefix") == "integrity":
            raise IntegrityFault(f"blob holds {SECRET}")
        if request.get("logGroupNamePrefix") == "crash":
            raise KeyError(SECRET)
        return {"logGroups": []}


class Models(Provider):
    service = "bedrock"
    targets = {  # noqa: RUF012
        "GetImportedModel": Target("bedrock:GetImportedModel", "{modelIdentifier}"),
    }

    def get_imported_model(self, call, request):
        return {"modelName": "m"}


class WithLogs(GatewayUnderTest):
    """S3, STS and IAM as they are, and the two services above."""

    def standard_providers(self):
        self.groups = Groups()
        return [*super().standard_providers(), self.groups, Models()]


@pytest.fixture(scope="module")
def g(tmp_path_factory):
    limits = Limits(body_bytes=200_000, upload_bytes=300_000, body_s=0.3, idle_s=0.3)
    gateway = WithLogs(tmp_path_factory.mktemp("gateway"), limits=limits)
    assert gateway.send(gateway.signed("s3", "PUT", "/bad-input")).status == 200
    yield gateway
    gateway.close()


def error_of(request, reply):
    """(code, message) of a modelled error, read as the protocol's clients read it."""
    kind = reply.headers.get("content-type", "")
    assert "x-amzn-requestid" in reply.headers or "x-amz-request-id" in reply.headers
    if "json" in kind:
        body = json.loads(reply.body)
        code = body.get("__type") or reply.headers["x-amzn-errortype"]
        return code, body.get("message", body.get("Message"))
    root = ElementTree.fromstring(reply.body)
    found = {node.tag.rpartition("}")[2]: node.text for node in root.iter()}
    return found["Code"], found["Message"]


def refused(g, request, status, code, *words):
    """Sends a bad request; the error is modelled and stands in the ledger under its request id."""
    reply = g.send(request)
    assert reply.status == status, (reply.status, reply.body)
    found, message = error_of(request, reply)
    assert found == code, (found, message)
    for word in words:
        assert word in message, message
    request_id = reply.headers.get("x-amzn-requestid") or reply.headers.get("x-amz-request-id")
    entries = [entry for log in g.ledger.entries.values() for entry in log if entry.get("requestID") == request_id]
    assert [entry["errorCode"] for entry in entries] == [code]
    return message


def logs(g, operation, body, **more):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return g.signed(
        "logs", "POST", "/", headers=[JSON, ("X-Amz-Target", f"Logs_20140328.{operation}")], body=raw, **more
    )


def iam(g, body, **more):
    return g.signed("iam", "POST", "/", headers=[FORM], body=body, **more)


def bedrock(g, method, path, body=b"", **more):
    return g.signed(
        "bedrock", method, path, headers=[("Content-Type", "application/json")] if body else [], body=body, **more
    )


def s3(g, method, path, body=b"", **more):
    headers = [("X-Amz-Content-SHA256", hashlib.sha256(body).hexdigest())]
    return g.signed("s3", method, path, headers=headers, body=body, **more)


def unsigned(request):
    return request.with_header("Authorization", None)


def test_unsigned(g):
    refused(g, unsigned(logs(g, "DescribeLogGroups", {})), 400, "MissingAuthenticationTokenException")
    refused(g, unsigned(iam(g, b"Action=ListUsers&Version=2010-05-08")), 403, "MissingAuthenticationToken")
    host = bedrock(g, "GET", "/imported-models").with_header("Host", "bedrock.us-isob-east-1.example")
    refused(g, unsigned(host), 403, "MissingAuthenticationTokenException")
    refused(g, unsigned(s3(g, "GET", "/bad-input")), 403, "AccessDenied")


def test_malformed_authorization(g):
    for text in (
        "AWS4-HMAC-SHA256",
        "Basic YTpi",
        "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=x",
    ):
        request = logs(g, "DescribeLogGroups", {}).with_header("Authorization", text)
        refused(g, request, 400, "IncompleteSignatureException")
        request = s3(g, "GET", "/bad-input").with_header("Authorization", text)
        refused(g, request, 400, "AuthorizationHeaderMalformed")


def test_malformed_bodies(g):
    for body in (b"{", b'{"a":', b"[1]", b"nul", b'{"logGroupName": "\xff\xfe"}', b"\xff", b'"text"', b"{}{}"):
        refused(g, logs(g, "DescribeLogGroups", body), 400, "SerializationException")
        refused(g, bedrock(g, "POST", "/model-import-jobs", body), 400, "SerializationException")
    for body in (
        b"Action=CreateUser&Version=2010-05-08&UserName=%ff",
        b"Action=CreateUser&UserName=a&UserName=b",
        b"Action=CreateUser&UserName.x=1&UserName=b",
        b"Action=CreateUser&UserName=b&Tags.member.2.Key=k",
    ):
        refused(g, iam(g, body), 400, "MalformedInput")
    for body in (b"<a>", b"<Tagging><TagSet></Tagging>", b"\x00", b"not xml", b"<Other/>", b"<Tagging>\xff</Tagging>"):
        refused(g, s3(g, "PUT", "/bad-input", body, query="tagging="), 400, "MalformedXML")


def test_xml_entities_are_refused(g):
    bomb = (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
        b"<Tagging><TagSet><Tag><Key>&b;</Key><Value>v</Value></Tag></TagSet></Tagging>"
    )
    outside = b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><Tagging><TagSet/></Tagging>'
    processing = b'<?xml-stylesheet href="x"?><Tagging><TagSet/></Tagging>'
    for body in (bomb, outside, processing):
        refused(g, s3(g, "PUT", "/bad-input", body, query="tagging="), 400, "MalformedXML")


def test_nesting_is_bounded(g):
    deep = b'{"logGroupNamePrefix":' * 900 + b"1" + b"}" * 900
    refused(g, logs(g, "DescribeLogGroups", deep), 400, "SerializationException")
    xml = b"<Tagging>" * 500 + b"</Tagging>" * 500
    refused(g, s3(g, "PUT", "/bad-input", xml, query="tagging="), 400, "MalformedXML")
    refused(g, iam(g, b"Action=ListUsers&" + b"a." * 500 + b"b=1"), 400, "MalformedInput")


def test_wrong_types(g):
    for body in (
        {"limit": "5"},
        {"limit": 1.5},
        {"limit": True},
        {"limit": 2**40},
        {"logGroupNamePrefix": 3},
        {"logGroupNamePrefix": ["a"]},
        {"limit": {}},
    ):
        refused(g, logs(g, "DescribeLogGroups", body), 400, "SerializationException")
    refused(g, iam(g, b"Action=ListUsers&Version=2010-05-08&MaxItems=many"), 400, "MalformedInput")
    refused(g, s3(g, "GET", "/bad-input", query="list-type=2&max-keys=many"), 400, "InvalidArgument")
    refused(g, bedrock(g, "GET", "/imported-models", query="maxResults=x"), 400, "SerializationException")


def test_missing_members(g):
    before = len(g.groups.made)
    message = refused(g, logs(g, "CreateLogGroup", {}), 400, "InvalidParameterException")
    expected = "Value null at 'logGroupName' failed to satisfy constraint: Member must not be null"
    assert message == f"1 validation error detected: {expected}"
    assert len(g.groups.made) == before
    refused(g, iam(g, b"Action=CreateUser&Version=2010-05-08"), 400, "ValidationError", "'userName'")
    refused(g, bedrock(g, "POST", "/model-import-jobs", b"{}"), 400, "ValidationException", "4 validation errors")


def test_unknown_members(g):
    before = len(g.groups.made)
    body = {"logGroupName": "g", "encryptIt": True}
    refused(g, logs(g, "CreateLogGroup", body), 400, "SerializationException", "encryptIt")
    assert len(g.groups.made) == before
    refused(g, iam(g, b"Action=ListUsers&Version=2010-05-08&Extra=1"), 400, "MalformedInput", "Extra")
    xml = b"<Tagging><TagSet/><Extra/></Tagging>"
    refused(g, s3(g, "PUT", "/bad-input", xml, query="tagging="), 400, "MalformedXML", "Extra")
    refused(g, s3(g, "PUT", "/bad-input/key", b"x", query="newSubresource="), 400, "InvalidArgument", "newSubresource")
    assert g.send(s3(g, "GET", "/bad-input/key")).status == 404


def test_constraints(g):
    message = refused(
        g,
        logs(g, "CreateLogGroup", {"logGroupName": "bad name!", "logGroupClass": "NONE"}),
        400,
        "InvalidParameterException",
    )
    assert "2 validation errors detected" in message
    assert "Value 'bad name!' at 'logGroupName' failed to satisfy constraint: Member must satisfy regular" in message
    assert "Member must satisfy enum value set: [STANDARD, INFREQUENT_ACCESS, DELIVERY" in message
    refused(
        g,
        logs(g, "DescribeLogGroups", {"limit": 0}),
        400,
        "InvalidParameterException",
        "Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1",
    )
    refused(
        g,
        logs(g, "CreateLogGroup", {"logGroupName": "a" * 513}),
        400,
        "InvalidParameterException",
        "Member must have length less than or equal to 512",
    )


def test_unknown_operations(g):
    refused(g, logs(g, "MakeCoffee", {}), 400, "UnknownOperationException")
    refused(g, iam(g, b"Action=MakeCoffee&Version=2010-05-08"), 400, "InvalidAction")
    refused(g, iam(g, b"Version=2010-05-08"), 400, "MissingAction")
    refused(g, iam(g, b"Action=ListUsers&Version=1999-01-01"), 400, "InvalidAction")
    refused(g, bedrock(g, "GET", "/coffee"), 400, "UnknownOperationException")
    refused(g, s3(g, "PATCH", "/bad-input/key"), 405, "MethodNotAllowed")


def test_unwritten_operations_are_501(g):
    words = "is not implemented in this version of honmaru"
    refused(g, logs(g, "DescribeQueries", {}), 501, "NotImplemented", "DescribeQueries of service logs", words)
    refused(g, iam(g, b"Action=ListSSHPublicKeys&Version=2010-05-08"), 501, "NotImplemented", words)
    refused(g, bedrock(g, "GET", "/guardrails"), 501, "NotImplemented", "ListGuardrails of service bedrock", words)
    refused(g, s3(g, "GET", "/bad-input/key", query="torrent="), 501, "NotImplemented", words)


def test_unknown_service(g):
    request = g.signed("teleport", "POST", "/", headers=[JSON, ("X-Amz-Target", "Teleport.Go")], body=b"{}")
    refused(g, request, 400, "UnknownServiceException", "'teleport' is not carried")
    request = g.signed("teleport", "GET", "/x")
    refused(g, request, 404, "UnknownServiceException")


def test_wrong_region(g):
    refused(g, logs(g, "DescribeLogGroups", {}, region="us-east-1"), 400, "InvalidSignatureException", "us-isob-east-1")
    refused(g, iam(g, b"Action=ListUsers&Version=2010-05-08", region="us-east-1"), 403, "SignatureDoesNotMatch")
    refused(g, bedrock(g, "GET", "/imported-models", region="us-iso-east-1"), 403, "InvalidSignatureException")
    refused(g, s3(g, "GET", "/bad-input", region="eu-west-1"), 400, "AuthorizationHeaderMalformed", "us-isob-east-1")


def test_wrong_account_and_partition(g):
    def get(arn):
        return bedrock(g, "GET", "/imported-models/" + arn.replace(":", "%3A").replace("/", "%2F"))

    assert g.send(get(ARN)).status == 200
    refused(g, get(ARN.replace("aws-iso-b", "aws-us-gov")), 400, "ValidationException", "partition 'aws-us-gov'")
    refused(g, get(ARN.replace("us-isob-east-1", "us-isob-west-1")), 400, "ValidationException", "region")
    refused(g, get(ARN.replace(ACCOUNT, "999999999999")), 403, "AccessDeniedException")
    headers = [("x-amz-expected-bucket-owner", "999999999999")]
    refused(g, g.signed("s3", "GET", "/bad-input", headers=headers), 403, "AccessDenied")


def test_unknown_key(g):
    wrong = ("AKIA" + "B" * 16, "x" * 40)
    refused(g, logs(g, "DescribeLogGroups", {}, key=wrong), 400, "UnrecognizedClientException")
    refused(g, iam(g, b"Action=ListUsers&Version=2010-05-08", key=wrong), 403, "InvalidClientTokenId")
    refused(g, s3(g, "GET", "/bad-input", key=wrong), 403, "InvalidAccessKeyId")


def test_oversize(g):
    large = b'{"a":"' + b"x" * 200_000 + b'"}'
    refused(g, logs(g, "CreateLogGroup", large), 413, "RequestEntityTooLargeException")
    refused(g, iam(g, b"Action=ListUsers&x=" + b"y" * 200_000), 413, "RequestEntityTooLarge")
    refused(g, s3(g, "PUT", "/bad-input/large", b"z" * 300_001), 400, "EntityTooLarge")
    lying = logs(g, "CreateLogGroup", large).with_header("Content-Length", None)
    lying = lying.with_header("Transfer-Encoding", "chunked")
    refused(g, lying, 413, "RequestEntityTooLargeException")
    assert g.send(s3(g, "GET", "/bad-input/large")).status == 404


def test_truncated_and_slow_bodies(g):
    request = s3(g, "PUT", "/bad-input/cut", b"hello").with_header("Content-Length", "9")
    refused(g, request, 400, "IncompleteBody")

    async def stalled(request):
        sent = []
        scope = {
            "type": "http",
            "method": request.method,
            "raw_path": request.path.encode(),
            "query_string": b"",
            "headers": [(n.lower().encode(), v.encode()) for n, v in request.headers],
            "scheme": "https",
            "client": ("127.0.0.1", 1),
        }

        async def receive():
            await asyncio.sleep(30)

        async def send(message):
            sent.append(message)

        await g.gateway(scope, receive, send)
        return sent

    for request, status in (
        (logs(g, "CreateLogGroup", {"logGroupName": "g"}), 400),
        (s3(g, "PUT", "/bad-input/slow", b"x"), 400),
    ):
        sent = asyncio.run(stalled(request))
        assert sent[0]["status"] == status
        assert (b"connection", b"close") in sent[0]["headers"]
        assert b"RequestTimeout" in sent[1]["body"]
    assert g.send(s3(g, "GET", "/bad-input/slow")).status == 404


def test_bad_utf8_in_path_and_query(g):
    request = s3(g, "GET", "/bad-input/%ff%fe")
    assert g.send(request).status == 405  # no such resource can be named
    request = s3(g, "GET", "/bad-input", query="prefix=%ff")
    assert g.send(request).status == 400


def test_duplicate_headers(g):
    request = logs(g, "DescribeLogGroups", {})
    request.headers.append(("X-Amz-Target", "Logs_20140328.CreateLogGroup"))
    assert g.send(request).status == 400


def test_label_tags(g):
    before = len(g.groups.made)
    good = {"logGroupName": "g", "tags": {"honmaru:label": "SECRET"}}
    wrong = {"logGroupName": "g", "tags": {"honmaru:label": "UNCLASSIFIED"}}
    bad = {"logGroupName": "g", "tags": {"honmaru:label": "VERY SECRET"}}
    stated = json.loads(json.dumps(good))
    stated["tags"]["honmaru:label"] = g.identity.credential(g.high[0], None).session.label.banner
    assert g.send(logs(g, "CreateLogGroup", stated)).status == 200
    refused(g, logs(g, "CreateLogGroup", wrong), 400, "InvalidParameterException", "states 'UNCLASSIFIED'")
    assert g.send(logs(g, "CreateLogGroup", bad)).status == 400
    assert len(g.groups.made) == before + 1
    headers = [
        ("x-amz-tagging", "honmaru%3Alabel=UNCLASSIFIED"),
        ("X-Amz-Content-SHA256", hashlib.sha256(b"x").hexdigest()),
    ]
    refused(g, g.signed("s3", "PUT", "/bad-input/tagged", headers=headers, body=b"x"), 400, "InvalidArgument")


def test_unexpected_exceptions_tell_nothing(g, caplog):
    with caplog.at_level(logging.ERROR, logger="honmaru.gateway"):
        for prefix in ("crash", "integrity"):
            message = refused(
                g, logs(g, "DescribeLogGroups", {"logGroupNamePrefix": prefix}), 500, "InternalServerException"
            )
            assert SECRET not in message
    assert SECRET not in caplog.text
    assert "KeyError" in caplog.text
    assert "request " in caplog.text


def test_no_audit_no_answer(g):
    before = len(g.groups.made)
    g.ledger.writable = False
    try:
        reply = g.send(logs(g, "CreateLogGroup", {"logGroupName": "unaudited"}))
        assert reply.status == 503
        assert error_of(None, reply)[0] == "ServiceUnavailableException"
        reply = g.send(s3(g, "GET", "/bad-input"))
        assert reply.status == 503
        assert error_of(None, reply)[0] == "ServiceUnavailable"
    finally:
        g.ledger.writable = True
    assert len(g.groups.made) == before


def test_an_answer_without_its_entry_does_not_leave(g, monkeypatch):
    """The ledger breaks between admission and record: the result is withheld."""
    append = g.ledger.append

    def broken(label, entry):
        if entry.get("eventName") == "DescribeLogGroups":
            raise LedgerUnavailable("disk full")
        return append(label, entry)

    monkeypatch.setattr(g.ledger, "append", broken)
    reply = g.send(logs(g, "DescribeLogGroups", {}))
    assert reply.status == 503
    assert b"logGroups" not in reply.body


def test_idempotency_token_is_filled_in(g):
    reply = g.send(logs(g, "PutQueryDefinition", {"name": "n", "queryString": "q"}))
    assert reply.status == 200, reply.body
    assert len(json.loads(reply.body)["queryDefinitionId"]) == 36


def test_health(g):
    reply = g.send(Request("GET", "/healthz", "", [("Host", HOST)]))
    assert (reply.status, reply.body) == (200, b"ok\n")
    assert set(reply.headers) == {"content-type", "content-length"}


def test_head_errors_have_no_body(g):
    reply = g.send(s3(g, "HEAD", "/bad-input/none"))
    assert (reply.status, reply.body) == (404, b"")
