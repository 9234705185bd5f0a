"""Event streams: our encoder against botocore's decoder, streams through the gateway, errors inside streams."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import ClassVar

import boto3
import botocore.eventstream
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from hypothesis import given
from hypothesis import strategies as st

from honmaru.api import eventstreams
from honmaru.api.misreads import Misread
from honmaru.core.errors import EngineFailed, NotReady, Throttled
from honmaru.security.calls import Provider
from honmaru.testing.gateways import REGION, GatewayUnderTest

HEADER_VALUES = st.one_of(
    st.booleans(),
    st.text(max_size=40),
    st.binary(max_size=40),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
NAMES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, HEADER_VALUES, max_size=5), st.binary(max_size=200))
def test_frames_are_botocores(headers, payload):
    frame = eventstreams.encode(headers, payload)
    buffer = botocore.eventstream.EventStreamBuffer()
    buffer.add_data(frame)
    (message,) = list(buffer)
    assert message.payload == payload
    expected = {k: round(v.timestamp() * 1000) if isinstance(v, datetime) else v for k, v in headers.items()}
    assert message.headers == expected
    (ours,) = eventstreams.Decoder().feed(frame)
    assert (dict(ours.headers), ours.payload) == (headers, payload)


@given(st.binary(max_size=60), st.data())
def test_a_damaged_frame_is_never_taken(payload, data):
    frame = bytearray(eventstreams.encode({":message-type": "event", ":event-type": "chunk"}, payload))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    decoder = eventstreams.Decoder()
    with pytest.raises(Misread):
        assert decoder.feed(bytes(frame)) == []
        decoder.close()


class Scripted(Provider):
    """A bedrock-runtime whose answers the test scripts."""

    service = "bedrock-runtime"
    closed: ClassVar[list[str]] = []

    async def converse_stream(self, call, request):
        script = request["modelId"]
        if script == "fails-before":
            raise NotReady("the model is starting")

        async def events():
            try:
                yield {"messageStart": {"role": "assistant"}}
                for word in ("Hello", " ", "wörld"):
                    yield {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": word}}}
                if script == "fails-modelled":
                    raise EngineFailed("the engine broke", code="ModelStreamErrorException")
                if script == "fails-other":
                    raise RuntimeError("secret detail")
                if script == "endless":
                    while True:
                        await asyncio.sleep(0.01)
                        yield {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "x" * 1000}}}
                yield {"messageStop": {"stopReason": "end_turn"}}
                yield {
                    "metadata": {
                        "usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3},
                        "metrics": {"latencyMs": 5},
                    }
                }
            finally:
                self.closed.append(script)

        if script == "fails-first":

            async def failing():
                raise Throttled("too many")
                yield

            return {"stream": failing()}
        return {"stream": events()}

    def invoke_model_with_response_stream(self, call, request):
        def chunks():
            for number in range(3):
                yield {"chunk": {"bytes": b'{"n":%d}' % number}}

        return {"body": chunks(), "contentType": "application/json"}

    def invoke_model(self, call, request):
        return {"body": request["body"][::-1], "contentType": "application/json"}

    def invoke_model_with_bidirectional_stream(self, call, request):
        def echo():
            for event in request["body"]:
                yield {"chunk": {"bytes": event["chunk"]["bytes"]}}

        return {"body": echo()}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    gateway = GatewayUnderTest(tmp_path_factory.mktemp("gateway"), [Scripted()])
    with gateway.served() as port:
        yield (
            gateway,
            boto3.client(
                "bedrock-runtime",
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name=REGION,
                aws_access_key_id=gateway.high[0],
                aws_secret_access_key=gateway.high[1],
                config=Config(retries={"total_max_attempts": 1}),
            ),
        )
    gateway.close()


MESSAGES = [{"role": "user", "content": [{"text": "hi"}]}]


def stream_of(client, model):
    return client.converse_stream(modelId=model, messages=MESSAGES)["stream"]


def entries(gateway):
    return [entry for log in gateway.ledger.entries.values() for entry in log]


def test_boto3_reads_a_stream(served):
    gateway, client = served
    events = list(stream_of(client, "plain"))
    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)
    assert text == "Hello wörld"
    assert [next(iter(e)) for e in events][-2:] == ["messageStop", "metadata"]
    begun, ended = [e for e in entries(gateway) if e["eventName"] == "ConverseStream"][-2:]
    assert begun["requestID"] == ended["requestID"]
    assert begun["honmaru"]["details"] == {"stream": "begins"}
    assert ended["honmaru"]["details"]["stream"] == "complete"
    assert ended["honmaru"]["details"]["pieces"] == 6
    assert ended["honmaru"]["responseDigest"].startswith("sha384:")


def test_synchronous_sources_stream_too(served):
    _, client = served
    events = client.invoke_model_with_response_stream(modelId="m", body=b"{}")["body"]
    assert [event["chunk"]["bytes"] for event in events] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']


def test_what_fails_before_the_stream_is_an_http_error(served):
    _, client = served
    for model, code, status in (
        ("fails-before", "ModelNotReadyException", 429),
        ("fails-first", "ThrottlingException", 429),
    ):
        with pytest.raises(ClientError) as caught:
            stream_of(client, model)
        assert caught.value.response["Error"]["Code"] == code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def test_modelled_exception_inside_the_stream(served):
    gateway, client = served
    with pytest.raises(EventStreamError, match="the engine broke") as caught:
        list(stream_of(client, "fails-modelled"))
    assert caught.value.response["Error"]["Code"] == "modelStreamErrorException"
    ended = [e for e in entries(gateway) if e["eventName"] == "ConverseStream"][-1]
    assert ended["honmaru"]["details"]["stream"] == "failed"
    assert ended["errorCode"] == "ModelStreamErrorException"


def test_unexpected_exception_tells_nothing(served):
    _, client = served
    with pytest.raises(EventStreamError) as caught:
        list(stream_of(client, "fails-other"))
    assert "secret detail" not in str(caught.value)
    assert caught.value.response["Error"]["Code"] == "internalServerException"


def test_a_client_that_leaves_cancels_the_stream(served):
    gateway, client = served
    stream = stream_of(client, "endless")
    next(iter(stream))
    stream.close()

    def gone():
        return any(e["honmaru"]["details"].get("stream") == "client gone" for e in entries(gateway))

    for _ in range(500):
        if gone() and "endless" in Scripted.closed:
            return
        asyncio.run(asyncio.sleep(0.01))
    pytest.fail("the stream was not cancelled")


def test_raw_bodies(served):
    _, client = served
    assert client.invoke_model(modelId="m", body=b"abc")["body"].read() == b"cba"


def bidirectional(gateway, body):
    return gateway.send(
        gateway.signed(
            "bedrock",
            "POST",
            "/model/m/invoke-with-bidirectional-stream",
            body=body,
            headers=[("X-Amz-Content-SHA256", hashlib.sha256(body).hexdigest())],
        )
    )


def test_input_events(served):
    gateway, _ = served
    frame = eventstreams.encode(
        {":message-type": "event", ":event-type": "chunk", ":content-type": "application/json"}, b'{"bytes":"aGVsbG8="}'
    )
    reply = bidirectional(gateway, frame * 2)
    assert reply.status == 200, reply.body
    frames = eventstreams.Decoder().feed(reply.body)
    assert [f.payload for f in frames] == [b'{"bytes":"aGVsbG8="}'] * 2


@pytest.mark.parametrize("damage", ["flip", "cut", "unknown", "garbage"])
def test_malformed_input_events(served, damage):
    gateway, _ = served
    good = eventstreams.encode({":message-type": "event", ":event-type": "chunk"}, b'{"bytes":"aGVsbG8="}')
    body = {
        "flip": good[:-5] + b"\x00" + good[-4:],
        "cut": good[:-1],
        "garbage": b"\x00" * 40,
        "unknown": eventstreams.encode({":message-type": "event", ":event-type": "nothing"}, b"{}"),
    }[damage]
    reply = bidirectional(gateway, body)
    assert reply.status == 400
    assert reply.headers["x-amzn-errortype"] == "ValidationException"
