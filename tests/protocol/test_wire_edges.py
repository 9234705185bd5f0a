"""The edges of HTTP that real clients walk on, over sockets: interim answers, chunked bodies with trailers, paths as
they were sent, absent content types, bodies of event streams in and out.

Requests are signed by botocore and written byte by byte; answers are read with http.client.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import socket
import struct
from zlib import crc32

import pytest

from honmaru.api import eventstreams
from honmaru.core.errors import EngineFailed, NotFound, Throttled
from honmaru.security.calls import Provider, Target
from honmaru.testing.gateways import GatewayUnderTest

JSON = ("Content-Type", "application/json")
MODEL = "arn:aws-iso-b:bedrock:us-isob-east-1:123456789012:imported-model/abcdefghijkl"


class Runtime(Provider):
    """Answers with what it was asked, so that the test sees what arrived."""

    service = "bedrock-runtime"

    def invoke_model(self, call, request):
        seen = {"model": request["modelId"], "body": request.get("body", b"").decode("latin-1")}
        return {"body": json.dumps(seen).encode(), "contentType": "application/json"}

    def converse_stream(self, call, request):
        def events():
            yield {"messageStart": {"role": "assistant"}}
            if request["modelId"] == "broken":
                raise EngineFailed("the engine broke", code="ModelStreamErrorException")
            if request["modelId"] == "slow":
                raise Throttled("too many", code="ThrottlingException")
            yield {"messageStop": {"stopReason": "end_turn"}}

        return {"stream": events()}

    def invoke_model_with_bidirectional_stream(self, call, request):
        def echo():
            for event in request["body"]:
                yield {"chunk": {"bytes": event["chunk"]["bytes"]}}

        return {"body": echo()}


class Control(Provider):
    service = "bedrock"
    targets = {"GetImportedModel": Target("bedrock:GetImportedModel", "{modelIdentifier}")}  # noqa: RUF012

    def list_imported_models(self, call, request):
        return {"modelSummaries": []}

    def get_imported_model(self, call, request):
        if request["modelIdentifier"] == "gone":
            raise NotFound("Could not find the model")
        return {"modelName": request["modelIdentifier"]}


class Logs(Provider):
    service = "logs"

    def describe_log_groups(self, call, request):
        return {"logGroups": []}

    def start_live_tail(self, call, request):
        def events():
            yield {"sessionStart": {"requestId": "r", "logGroupIdentifiers": request["logGroupIdentifiers"]}}
            raise RuntimeError("secret")

        return {"responseStream": events()}


class Edges(GatewayUnderTest):
    def standard_providers(self):
        return [*super().standard_providers(), Runtime(), Control(), Logs()]


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    gateway = Edges(tmp_path_factory.mktemp("gateway"))
    assert gateway.send(gateway.signed("s3", "PUT", "/edges")).status == 200
    with gateway.served() as port:
        gateway.port = port
        yield gateway
    gateway.close()


@contextlib.contextmanager
def connected(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        yield connection


def head_of(request, *more):
    target = request.path + (f"?{request.query}" if request.query else "")
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers), *more]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer_of(connection, method="GET"):
    reply = http.client.HTTPResponse(connection, method=method)
    reply.begin()
    return reply, reply.read()


def exchanged(gateway, request, body=None):
    """A request sent as one piece, and its answer."""
    with connected(gateway) as connection:
        connection.sendall(head_of(request) + (request.body if body is None else body))
        return answer_of(connection, request.method)


def s3(gateway, method, path, body=b"", headers=(), **more):
    digest = ("X-Amz-Content-SHA256", hashlib.sha256(body).hexdigest())
    return gateway.signed("s3", method, path, headers=[digest, *headers], body=body, scheme="http", **more)


# Interim answers


def test_a_client_that_expects_is_told_to_go_on(edges):
    request = s3(edges, "PUT", "/edges/expected", b"hello")
    with connected(edges) as connection:
        connection.sendall(head_of(request, "Expect: 100-continue"))
        connection.settimeout(5)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        reply, _ = answer_of(connection)
    assert reply.status == 200
    assert exchanged(edges, s3(edges, "GET", "/edges/expected"))[1] == b"hello"


def test_a_refused_client_is_told_before_it_sends(edges):
    """No 100, and not a byte of the body, for who may not: the answer comes at once, and the connection ends."""
    request = s3(edges, "PUT", "/edges/refused", b"x" * 100_000).with_header(
        "Authorization", s3(edges, "PUT", "/edges/other", b"y").header("Authorization")
    )
    with connected(edges) as connection:
        connection.sendall(head_of(request, "Expect: 100-continue"))
        reply, body = answer_of(connection)
    assert reply.status == 403
    assert b"<Code>SignatureDoesNotMatch</Code>" in body
    assert reply.headers["Connection"] == "close"


def test_expectations_of_a_whole_body_need_no_interim_answer(edges):
    """A client that sends its body at once, as some do after a second, reads one final answer at the latest."""
    request = s3(edges, "PUT", "/edges/at-once", b"hello")
    with connected(edges) as connection:
        connection.sendall(head_of(request, "Expect: 100-continue") + b"hello")
        reply, _ = answer_of(connection)  # skips a 100
    assert reply.status == 200


# Chunked bodies and trailers


def chunked(body, *sizes, trailer=b"", extension=b""):
    out, source = b"", io.BytesIO(body)
    for size in [*sizes, len(body)]:
        piece = source.read(size)
        if piece:
            out += b"%x%s\r\n%s\r\n" % (len(piece), extension, piece)
    return out + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize("extension", [b"", b";a=b", b';quoted="x y"'])
def test_chunked_transfer_encoding(edges, extension):
    body = b"hello, chunked world"
    request = s3(edges, "PUT", "/edges/chunked", body).with_header("Content-Length", None)
    request = request.with_header("Transfer-Encoding", "chunked")
    reply, said = exchanged(edges, request, chunked(body, 1, 5, 2, extension=extension))
    assert reply.status == 200, said
    assert exchanged(edges, s3(edges, "GET", "/edges/chunked"))[1] == body


def test_chunked_json(edges):
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", "Logs_20140328.DescribeLogGroups")]
    request = edges.signed("logs", "POST", "/", headers=headers, body=b'{"limit": 5}', scheme="http")
    request = request.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked")
    reply, body = exchanged(edges, request, chunked(b'{"limit": 5}', 3))
    assert (reply.status, json.loads(body)) == (200, {"logGroups": []})


def test_http_trailers_carry_nothing_that_counts(edges):
    """Trailers of HTTP's own chunks are outside the signature: they are read over, and set no header."""
    body = b"x"
    request = s3(edges, "PUT", "/edges/trailers", body).with_header("Content-Length", None)
    request = request.with_header("Transfer-Encoding", "chunked")
    trailer = b"x-amz-meta-smuggled: yes\r\ncontent-type: text/smuggled\r\nx-amz-tagging: a=b\r\n"
    reply, _ = exchanged(edges, request, chunked(body, trailer=trailer))
    assert reply.status == 200
    reply, _ = exchanged(edges, s3(edges, "HEAD", "/edges/trailers"))
    assert "x-amz-meta-smuggled" not in reply.headers
    assert reply.headers["Content-Type"] == "binary/octet-stream"


@pytest.mark.parametrize(
    "damage", ["two lengths", "length and chunks", "bad size", "cut", "negative length", "length too long"]
)
def test_framing_that_two_parsers_could_read_differently_is_refused(edges, damage):
    body = b"hello"
    request = s3(edges, "PUT", "/edges/framing", body)
    if damage == "two lengths":
        raw = head_of(request, "Content-Length: 6") + body
    elif damage == "length and chunks":
        raw = head_of(request, "Transfer-Encoding: chunked") + chunked(body)
    elif damage == "negative length":
        raw = head_of(request.with_header("Content-Length", "-5")) + body
    elif damage == "length too long":
        raw = head_of(request.with_header("Content-Length", "9" * 30)) + body
    else:
        plain = request.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked")
        raw = head_of(plain) + (b"zz\r\nhello\r\n0\r\n\r\n" if damage == "bad size" else b"5\r\nhel")
    with connected(edges) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                said += piece
    assert said == b"" or said.split(b" ", 2)[1] in (b"400", b"403", b"411", b"413"), said
    assert exchanged(edges, s3(edges, "GET", "/edges/framing"))[0].status == 404


# Paths as they were sent


@pytest.mark.parametrize(
    "path",
    [
        "/model/" + MODEL.replace(":", "%3A").replace("/", "%2F") + "/invoke",
        "/model/" + MODEL.replace("/", "%2F") + "/invoke",  # a raw colon, as Anthropic's SDK sends it
    ],
)
def test_an_encoded_slash_stays_in_its_segment(edges, path):
    reply, body = exchanged(edges, edges.signed("bedrock", "POST", path, headers=[JSON], body=b"{}", scheme="http"))
    assert reply.status == 200, body
    assert json.loads(body)["model"] == MODEL


def test_a_raw_slash_parts_segments(edges):
    request = edges.signed("bedrock", "POST", f"/model/{MODEL}/invoke", headers=[JSON], body=b"{}", scheme="http")
    reply, body = exchanged(edges, request)
    assert (reply.status, reply.headers["x-amzn-errortype"]) == (400, "UnknownOperationException")
    assert json.loads(body)["message"].startswith("No operation of bedrock")


@pytest.mark.parametrize("path", ["/imported-models", "/imported-models/"])
def test_a_trailing_slash_changes_nothing(edges, path):
    reply, body = exchanged(edges, edges.signed("bedrock", "GET", path, scheme="http"))
    assert (reply.status, json.loads(body)) == (200, {"modelSummaries": []})


@pytest.mark.parametrize(
    "key", ["a//b", "/a", "a/", ".", "..", "../x", "a/../b", "%2e%2e", "a%2Fb", "a b+c", "ü:;@&=$,~"]
)
def test_keys_are_never_normalised(edges, key):
    from urllib.parse import quote

    path = "/edges/" + quote(key)
    assert exchanged(edges, s3(edges, "PUT", path, key.encode()))[0].status == 200
    assert exchanged(edges, s3(edges, "GET", path))[1] == key.encode()
    listed = exchanged(edges, s3(edges, "GET", "/edges", query="list-type=2&encoding-type=url"))[1].decode()
    assert f"<Key>{quote(key, safe='/')}</Key>" in listed


# Content types


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "text/plain; charset=utf-8"])
def test_a_body_needs_no_content_type(edges, kind):
    headers = [("Content-Type", kind)] if kind else []
    request = edges.signed("bedrock", "POST", "/model/m/invoke", headers=headers, body=b"raw \xff", scheme="http")
    reply, body = exchanged(edges, request)
    assert reply.status == 200, body
    assert json.loads(body)["body"] == "raw \xff"
    target = ("X-Amz-Target", "Logs_20140328.DescribeLogGroups")
    reply, body = exchanged(
        edges, edges.signed("logs", "POST", "/", headers=[target, *headers], body=b"{}", scheme="http")
    )
    assert reply.status == 200, body
    action = b"Action=GetCallerIdentity&Version=2011-06-15"
    reply, body = exchanged(edges, edges.signed("sts", "POST", "/", headers=headers, body=action, scheme="http"))
    assert reply.status == 200, body


def test_answers_without_a_body_have_none(edges):
    reply, body = exchanged(edges, s3(edges, "HEAD", "/edges/none"))
    assert (reply.status, body) == (404, b"")
    exchanged(edges, s3(edges, "PUT", "/edges/some", b"12345"))
    reply, body = exchanged(edges, s3(edges, "HEAD", "/edges/some"))
    assert (reply.status, body, reply.headers["Content-Length"]) == (200, b"", "5")
    reply, body = exchanged(edges, s3(edges, "DELETE", "/edges/some"))
    assert (reply.status, body) == (204, b"")
    assert "Content-Length" not in reply.headers


def test_one_connection_carries_many_protocols(edges):
    with connected(edges) as connection:
        for _ in range(2):
            for request in (
                s3(edges, "GET", "/edges", query="list-type=2"),
                edges.signed("bedrock", "GET", "/imported-models", scheme="http"),
                edges.signed("sts", "POST", "/", body=b"Action=GetCallerIdentity&Version=2011-06-15", scheme="http"),
            ):
                connection.sendall(head_of(request) + request.body)
                assert answer_of(connection)[0].status == 200


# Event streams


def frames_of(raw):
    decoder = eventstreams.Decoder()
    frames = decoder.feed(raw)
    decoder.close()
    return frames


def converse(edges, model):
    body = json.dumps({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}).encode()
    path = f"/model/{model}/converse-stream"
    return exchanged(edges, edges.signed("bedrock", "POST", path, headers=[JSON], body=body, scheme="http"))


def test_an_event_stream_out(edges):
    reply, raw = converse(edges, "whole")
    assert reply.headers["Content-Type"] == "application/vnd.amazon.eventstream"
    assert [frame.headers[":event-type"] for frame in frames_of(raw)] == ["messageStart", "messageStop"]


@pytest.mark.parametrize(
    ("model", "exception"), [("broken", "modelStreamErrorException"), ("slow", "throttlingException")]
)
def test_a_modelled_exception_inside_the_stream(edges, model, exception):
    reply, raw = converse(edges, model)
    assert reply.status == 200
    *_, last = frames_of(raw)
    assert last.headers == {
        ":message-type": "exception",
        ":exception-type": exception,
        ":content-type": "application/json",
    }
    assert json.loads(last.payload)["message"] in ("the engine broke", "too many")


def test_an_rpc_stream_begins_with_its_initial_response(edges):
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("X-Amz-Target", "Logs_20140328.StartLiveTail")]
    group = "arn:aws-iso-b:logs:us-isob-east-1:123456789012:log-group:g"
    body = json.dumps({"logGroupIdentifiers": [group]}).encode()
    reply, raw = exchanged(edges, edges.signed("logs", "POST", "/", headers=headers, body=body, scheme="http"))
    assert reply.status == 200, raw
    first, started, last = frames_of(raw)
    assert first.headers[":event-type"] == "initial-response"
    assert json.loads(started.payload)["logGroupIdentifiers"] == [group]
    assert b"secret" not in raw  # what is not modelled tells nothing
    assert last.headers[":message-type"] in ("error", "exception")


def bidirectional(edges, frames, sizes):
    body = b"".join(frames)
    digest = ("X-Amz-Content-SHA256", hashlib.sha256(body).hexdigest())
    path = "/model/m/invoke-with-bidirectional-stream"
    request = edges.signed("bedrock", "POST", path, headers=[digest], body=body, scheme="http")
    request = request.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked")
    return exchanged(edges, request, chunked(body, *sizes))


def chunk(text):
    headers = {":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}
    return eventstreams.encode(headers, b'{"bytes":"%s"}' % text)


@pytest.mark.parametrize("sizes", [(), (1, 2, 3), (7,) * 30])
def test_an_event_stream_in(edges, sizes):
    reply, raw = bidirectional(edges, [chunk(b"aGVsbG8="), chunk(b"eA==")], sizes)
    assert reply.status == 200, raw
    assert [frame.payload for frame in frames_of(raw)] == [b'{"bytes":"aGVsbG8="}', b'{"bytes":"eA=="}']


@pytest.mark.parametrize("damage", ["checksum", "length", "type"])
def test_a_broken_event_stream_in_is_refused(edges, damage):
    good = chunk(b"eA==")
    if damage == "checksum":
        bad = good[:-1] + bytes([good[-1] ^ 1])
    elif damage == "length":
        prelude = struct.pack(">II", 1 << 30, 0)
        bad = prelude + struct.pack(">I", crc32(prelude)) + good
    else:
        bad = eventstreams.encode({":message-type": "exception", ":exception-type": "x"}, b"{}")
    reply, raw = bidirectional(edges, [bad], ())
    if reply.status == 200:  # the stream had begun: the fault stands inside it
        assert frames_of(raw)[-1].headers[":message-type"] in ("exception", "error")
    else:
        assert (reply.status, reply.headers["x-amzn-errortype"]) == (400, "ValidationException")
