"""The whole gateway under arbitrary requests, signed and not: one modelled answer each, never an internal error, never
anything done. What the parsers survive one by one (test_fuzz_parsers), their joints must survive too.

HONMARU_LONG=1 runs a hundred times as many examples.
"""

from __future__ import annotations

import json
import logging
import os
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from honmaru.api import cbor
from honmaru.gateway.limits import Limits
from honmaru.security.calls import Provider
from honmaru.testing.gateways import GatewayUnderTest, Reply, Request

LONG = bool(os.environ.get("HONMARU_LONG"))
EXAMPLES = 8_000 if LONG else 60
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[*HealthCheck], derandomize=not LONG)


class Everything(Provider):
    """No operation of it is written: what gets through the door answers 501."""

    def __init__(self, service):
        self.service = service


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    limits = Limits(body_bytes=100_000, body_s=1.0, idle_s=1.0)
    services = ("bedrock", "bedrock-runtime", "cloudwatch", "iam", "kms", "logs", "s3", "sagemaker", "sts")
    gateway = GatewayUnderTest(
        tmp_path_factory.mktemp("gateway"), [Everything(service) for service in services], limits=limits
    )
    logging.getLogger("honmaru.gateway").setLevel(logging.CRITICAL)
    yield gateway
    logging.getLogger("honmaru.gateway").setLevel(logging.NOTSET)
    gateway.close()


LATIN = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30)
SEGMENTS = """model m invoke converse-stream bucket .. %2F %ff % a%3Ab service GraniteServiceVersion20100801
operation ListMetrics imported-models"""
PAIRS = """Action=ListUsers Version=2010-05-08 list-type=2 uploads tagging= partNumber=x uploadId=u max-keys=-1
max-keys=9999999999 X-Amz-Signature=0 X-Amz-Algorithm=AWS4-HMAC-SHA256 x-id=GetObject
AWSAccessKeyId=a Signature=b %ff=1 = versionId=null continuation-token= delete policy"""
NAMES = """Content-Type X-Amz-Target smithy-protocol x-amzn-query-mode Content-Encoding Range Expect
x-amz-content-sha256 x-amz-decoded-content-length x-amz-trailer x-amz-copy-source If-Match
x-amz-tagging x-amz-checksum-crc32 Content-MD5 x-amz-acl x-amz-security-token Origin"""
VALUES = """application/json application/x-amz-json-1.1 application/x-www-form-urlencoded gzip text/xml
rpc-v2-cbor true Logs_20140328.DescribeLogGroups SageMaker.CreateTrainingJob Logs.x
TrentService.Decrypt UNSIGNED-PAYLOAD -1 a/b bytes=-0 GraniteServiceVersion20100801.PutMetricData
STREAMING-UNSIGNED-PAYLOAD-TRAILER STREAMING-AWS4-HMAC-SHA256-PAYLOAD multipart/form-data;boundary=x
aws-chunked *"""
SEGMENT = st.one_of(
    st.sampled_from(["", *SEGMENTS.split()]),
    LATIN.map(lambda text: text.replace("?", "").replace("#", "").replace(" ", "%20")),
)
PATHS = st.lists(SEGMENT, max_size=6).map(lambda parts: "/" + "/".join(parts))
PAIR = st.one_of(st.sampled_from(PAIRS.split()), LATIN.map(lambda text: text.replace("#", "").replace(" ", "+")))
QUERIES = st.lists(PAIR, max_size=4).map("&".join)
NAME = st.one_of(st.sampled_from(NAMES.split()), st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True))
HEADERS = st.lists(st.tuples(NAME, st.one_of(st.sampled_from(VALUES.split()), LATIN)), max_size=5)
BODIES = st.one_of(
    st.sampled_from(
        [
            *(b"", b"{}", b"[]", b"null", b'{"limit":1}', b"\xa0", b"\xbf\xff", b"<a/>", b'{"messages":[]}'),
            *(b"Action=ListUsers&Version=2010-05-08", b"Action=GetCallerIdentity", b"Action=", b"Version=x&Action=x"),
            *(b"--x\r\n\r\n--x--", b"\x1f\x8b", b'{"a":' * 200, b"<Tagging><TagSet/></Tagging>"),
        ]
    ),
    st.binary(max_size=60),
)
METHODS = st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "BREW"])
SCOPES = st.sampled_from(["s3", "iam", "sts", "logs", "sagemaker", "bedrock", "monitoring", "kms", "teleport"])


def modelled(request, reply):
    """Raises unless the answer is one that a client of some protocol can read."""
    assert 200 <= reply.status < 600
    assert reply.status != 500, (request, reply)
    for name, value in reply.headers.items():
        assert "\n" not in name + value
        assert "\r" not in name + value
    if not reply.body or reply.status < 300:
        return
    kind = reply.headers["content-type"]
    if "cbor" in kind:
        said = cbor.decode(reply.body)
        assert said["__type"]
    elif "json" in kind:
        said = json.loads(reply.body)
        assert said.get("__type") or reply.headers.get("x-amzn-errortype") or said.get("error") or said.get("type"), (
            reply
        )
    elif "xml" in kind:
        ElementTree.fromstring(reply.body)
    else:
        assert "text/plain" in kind, reply
    assert b"Traceback" not in reply.body
    assert b"honmaru/" not in reply.body


def entries(gateway):
    return sum(map(len, gateway.ledger.entries.values()))


def sent(gateway, request):
    """Sends one request; refusals stand in the ledger, and no record changes."""
    before = entries(gateway)
    reply = gateway.send(request)
    modelled(request, reply)
    if request.path != "/healthz":
        assert entries(gateway) > before, (request, reply)
    return reply


@fuzzed
@given(METHODS, PATHS, QUERIES, HEADERS, BODIES)
def test_unsigned_requests(gateway, method, path, query, headers, body):
    stated = [*headers, ("Host", "127.0.0.1:8443"), ("Content-Length", str(len(body)))]
    reply = sent(gateway, Request(method, path, query, stated, body))
    assert reply.status != 200 or method == "OPTIONS" or path == "/healthz"


@fuzzed
@given(SCOPES, METHODS, PATHS, QUERIES, HEADERS, BODIES)
def test_signed_requests(gateway, scope, method, path, query, headers, body):
    try:
        request = gateway.signed(scope, method, path, query=query, headers=headers, body=body)
    except (ValueError, UnicodeError, AttributeError, TypeError):
        return  # botocore cannot sign it
    reply = sent(gateway, request)
    assert reply.status >= 300 or method == "OPTIONS", (request, reply)


@fuzzed
@given(st.data())
def test_signed_requests_that_were_changed_on_the_way(gateway, data):
    """Nothing but a refusal of the signature comes of a change to what was signed."""
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", "Logs_20140328.DescribeLogGroups")]
    request = gateway.signed("logs", "POST", "/", headers=headers, body=b"{}")
    change = data.draw(st.sampled_from(["body", "target", "host", "date", "path", "query", "more"]))
    if change == "body":
        body = data.draw(st.binary(min_size=1, max_size=20).filter(lambda raw: raw != b"{}"))
        request = Request("POST", "/", "", request.headers, body).with_header("Content-Length", str(len(body)))
    elif change == "path":
        request = Request("POST", data.draw(PATHS.filter(lambda path: path != "/")), "", request.headers, b"{}")
    elif change == "query":
        request = Request("POST", "/", data.draw(QUERIES.filter(bool)), request.headers, b"{}")
    elif change == "more":
        request = request.with_header("x-amz-" + data.draw(st.from_regex(r"[a-z]{1,8}", fullmatch=True)), "x")
    else:
        name = {"target": "X-Amz-Target", "host": "Host", "date": "X-Amz-Date"}[change]
        value = data.draw(LATIN.filter(lambda text: text.strip() != request.header(name)))
        request = request.with_header(name, value)
    reply = sent(gateway, request)
    assert reply.status in (400, 403, 404), reply
    assert reply.status != 501


def test_sabotage_what_no_client_can_read_is_seen():
    request = Request("GET", "/")
    xml, json_ = {"content-type": "application/xml"}, {"content-type": "application/json"}
    for reply in (
        Reply(500, xml, b"<Error/>"),
        Reply(400, json_, b"{}"),
        Reply(400, {"content-type": "text/html"}, b"<h1>x</h1>"),
        Reply(400, {**xml, "x": "a\r\nb"}, b"<Error/>"),
        Reply(400, xml, b"<Error>Traceback</Error>"),
    ):
        with pytest.raises(AssertionError):
            modelled(request, reply)
    with pytest.raises(ElementTree.ParseError):
        modelled(request, Reply(400, xml, b"<Error>&#x1f;</Error>"))
