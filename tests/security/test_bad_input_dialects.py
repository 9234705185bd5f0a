"""OpenAI's and Anthropic's dialects over a scripted Bedrock: what is refused, how, and what the ledger says of it."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import ClassVar

import pytest

from honmaru.api.models import ServiceModels
from honmaru.core.conversation.chat import _REQUEST as OPENAI_PARAMETERS
from honmaru.core.conversation.claude import _REQUEST as ANTHROPIC_PARAMETERS
from honmaru.core.errors import EngineFailed, NotFound, NotReady, Throttled
from honmaru.core.labels import Label
from honmaru.gateway.limits import Limits
from honmaru.security.calls import Provider, Target
from honmaru.testing.gateways import ACCOUNT, HOST, GatewayUnderTest, Request

ARN = f"arn:aws-iso-b:bedrock:us-isob-east-1:{ACCOUNT}:imported-model/abcdefghijk"
SECRET = "plutonium"
END = {"usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}, "metrics": {"latencyMs": 1}}


class Scripted(Provider):
    """A bedrock-runtime that does what the model's name says, and keeps what it was asked."""

    service = "bedrock-runtime"
    targets: ClassVar = {"Converse": Target("bedrock:InvokeModel", "{modelId}")}

    def __init__(self):
        self.asked = []
        self.closed = []

    async def converse(self, call, request):
        self.asked.append(dict(request))
        script = request["modelId"]
        if script == "missing":
            raise NotFound("no such", code="ResourceNotFoundException")
        if script == "throttles":
            raise Throttled("slow down")
        if script == "starts":
            raise NotReady("the model is starting", code="ModelNotReadyException")
        if script == "breaks":
            raise EngineFailed("the engine broke", code="ModelErrorException")
        if script == "crashes":
            raise KeyError(SECRET)
        message = {"role": "assistant", "content": [{"text": "Hello"}]}
        return {"output": {"message": message}, "stopReason": "end_turn", **END}

    async def converse_stream(self, call, request):
        self.asked.append(dict(request))
        script = request["modelId"]
        if script == "starts":
            raise NotReady("the model is starting", code="ModelNotReadyException")

        async def events():
            try:
                yield {"messageStart": {"role": "assistant"}}
                yield {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "Hellö\n\n"}}}
                if script == "breaks":
                    raise EngineFailed("the engine broke", code="ModelStreamErrorException")
                if script == "crashes":
                    raise KeyError(SECRET)
                while script == "endless":
                    await asyncio.sleep(0.01)
                yield {"contentBlockStop": {"contentBlockIndex": 0}}
                yield {"messageStop": {"stopReason": "max_tokens"}}
                yield {"metadata": END}
            finally:
                self.closed.append(script)

        return {"stream": events()}


class Twins(Provider):
    """A bedrock whose three models share two names."""

    service = "bedrock"

    def list_imported_models(self, call, request):
        names = {"a": "twin", "b": "twin", "c": "single"}
        made = datetime(2026, 1, 2, tzinfo=UTC)
        call.beside["foundation"] = []
        return {
            "modelSummaries": [{"modelArn": ARN + x, "modelName": n, "creationTime": made} for x, n in names.items()]
        }


class Dialects(GatewayUnderTest):
    def standard_providers(self):
        self.runtime = Scripted()
        return [self.runtime, Twins()]


@pytest.fixture(scope="module")
def g(tmp_path_factory):
    gateway = Dialects(tmp_path_factory.mktemp("gateway"), limits=Limits(invoke_bytes=100_000))
    gateway.token = gateway.identity.bearer_key("admin", Label.parse("SECRET"))
    yield gateway
    gateway.close()


class OpenAi:
    name, chat, request_id = "openai", "/openai/v1/chat/completions", "x-request-id"
    parameters = OPENAI_PARAMETERS

    @staticmethod
    def body(model="good", **more):
        return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}

    @staticmethod
    def headers(token):
        return [("Authorization", f"Bearer {token}")]

    @staticmethod
    def kind(reply):
        return json.loads(reply.body)["error"]["code"]


class Anthropic:
    name, chat, request_id = "anthropic", "/v1/messages", "request-id"
    parameters = ANTHROPIC_PARAMETERS

    @staticmethod
    def body(model="good", **more):
        return {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], **more}

    @staticmethod
    def headers(token):
        return [("x-api-key", token), ("anthropic-version", "2023-06-01")]

    @staticmethod
    def kind(reply):
        body = json.loads(reply.body)
        assert body["type"] == "error" and body["request_id"] == reply.headers["request-id"]
        return body["error"]["type"]


@pytest.fixture(params=[OpenAi, Anthropic], ids=lambda kind: kind.name)
def d(request):
    return request.param


def post(g, d, body, *, path=None, token=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = [("Host", HOST), ("Content-Type", "application/json"), ("Content-Length", str(len(raw)))]
    return Request("POST", path or d.chat, "", headers + d.headers(token or g.token), raw)


def get(g, d, path, query="", token=None):
    return Request("GET", path, query, [("Host", HOST), *d.headers(token or g.token)])


def entries(g, d, reply):
    request_id = reply.headers[d.request_id].removeprefix("req_")
    return [entry for log in g.ledger.entries.values() for entry in log if entry.get("requestID") == request_id]


def refused(g, d, request, status, kinds, *words):
    """Sends a bad request: refused in the dialect's shape, by one entry, and nothing reached the model."""
    before = len(g.runtime.asked)
    reply = g.send(request)
    assert reply.status == status, (reply.status, reply.body)
    kind = d.kind(reply)
    assert kind == kinds[d.name], (kind, reply.body)
    message = json.loads(reply.body)["error"]["message"]
    for word in words:
        assert word in message, message
    (entry,) = entries(g, d, reply)
    assert entry["errorCode"] and entry["honmaru"]["details"]["dialect"] == d.name
    assert status in (429, 500, 503) or len(g.runtime.asked) == before
    return reply


def invalid(reason):
    return {"openai": reason, "anthropic": "invalid_request_error"}


def test_without_a_key(g, d):
    kinds = {"openai": "invalid_api_key", "anthropic": "authentication_error"}
    for header in ("Authorization", "x-api-key"):
        request = post(g, d, d.body()).with_header("Authorization", None).with_header("x-api-key", None)
        refused(g, d, request, 401, kinds, "honmaru env")
        refused(g, d, request.with_header("Authorization", "Basic YTpi"), 401, kinds)
        wrong = "Bearer wrong" if header == "Authorization" else "wrong"
        reply = refused(g, d, request.with_header(header, wrong), 401, kinds)
        assert "x-honmaru-label" not in reply.headers
    both = post(g, d, d.body()).with_header("Authorization", f"Bearer {g.token}").with_header("x-api-key", "other")
    refused(g, d, both, 401, kinds, "Two different")
    twice = post(g, d, d.body())
    twice.headers.append(d.headers(g.token)[0])
    assert g.send(twice).status == 400


def test_an_unknown_caller_learns_nothing_of_paths(g, d):
    kinds = {"openai": "invalid_api_key", "anthropic": "authentication_error"}
    refused(g, d, post(g, d, d.body(), path="/v1/coffee", token="no"), 401, kinds)
    refused(g, d, post(g, d, b"{", token="no"), 401, kinds)


def test_a_signature_makes_a_request_aws_s(g, d):
    reply = g.send(g.signed("s3", "GET", d.chat))
    assert reply.status in (404, 405, 501) and b"<Error>" in reply.body


def test_paths_that_are_not_there(g, d):
    kinds = {"openai": "not_found", "anthropic": "not_found_error"}
    refused(g, d, post(g, d, d.body(), path="/v1/coffee"), 404, kinds, "POST /v1/coffee")
    refused(g, d, get(g, d, d.chat), 404, kinds)
    refused(g, d, get(g, d, "/v1/models/%ff"), 404, kinds)


def test_bodies_that_are_not_json(g, d):
    deep = b'{"model":' * 900 + b"1" + b"}" * 900
    for body in (b"", b"{", b"[1]", b"nul", b'{"model": "\xff"}', b'"text"', b"{}{}", deep, b'{"model": NaN}'):
        refused(g, d, post(g, d, body), 400, invalid(None))


def test_oversize_bodies(g, d):
    kinds = {"openai": "request_too_large", "anthropic": "request_too_large"}
    large = post(g, d, d.body(model="x" * 100_000))
    refused(g, d, large, 413, kinds)
    chunked = large.with_header("Content-Length", None).with_header("Transfer-Encoding", "chunked")
    refused(g, d, chunked, 413, kinds)


def test_wrong_types_and_ranges(g, d):
    for member, value in (
        ("model", 3), ("messages", "hi"), ("messages", [3]), ("max_tokens", "5"), ("max_tokens", 1.5),
        ("max_tokens", True), ("stream", "yes"), ("temperature", "hot"), ("messages", [{"role": 1, "content": "x"}]),
        ("messages", [{"role": "user", "content": 5}]), ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ):  # fmt: skip
        reply = g.send(post(g, d, d.body() | {member: value}))
        assert reply.status == 400 and member in reply.body.decode(), (member, value, reply.body)
    for member, value in (("max_tokens", 0), ("max_tokens", 2**40), ("temperature", 2.5), ("top_p", -1), ("model", "")):
        refused(g, d, post(g, d, d.body() | {member: value}), 400, invalid("invalid_value"), member)


def test_missing_and_unknown_members(g, d):
    for member in ("model", "messages"):
        body = {name: value for name, value in d.body().items() if name != member}
        refused(g, d, post(g, d, body), 400, invalid("missing_required_parameter"), member)
    refused(g, d, post(g, d, d.body(encrypt_it=True)), 400, invalid("unknown_parameter"), "encrypt_it")
    turn = {"role": "user", "content": "hi", "priority": 1}
    refused(g, d, post(g, d, d.body(messages=[turn])), 400, invalid("unknown_parameter"), "messages[0].priority")


WISHES = {
    "openai": {
        "tools": [{"type": "web_search"}], "store": True, "modalities": ["audio"], "stream": True, "functions": [{}],
    },
    "anthropic": {
        "tools": [{"type": "web_search_20250305", "name": "f"}], "mcp_servers": [{"url": "x"}], "container": "c",
        "speed": "fast",
    },
}  # fmt: skip
"""What no model behind these dialects can do; what only some can is for the model's features to say."""


def test_what_the_model_cannot_do_is_refused_by_name(g, d):
    for member, value in WISHES[d.name].items():
        if member == "stream":  # several answers cannot be told apart in one stream of Converse
            member, value = "n", 2
            request = post(g, d, d.body(n=2, stream=True))
        else:
            request = post(g, d, d.body(**{member: value}))
        refused(g, d, request, 400, invalid("unsupported_parameter"), "'good'", member)
    for part in ({"type": "input_audio", "input_audio": {}}, {"type": "container_upload", "file_id": "f"}):
        turn = {"role": "user", "content": [part]}
        request = post(g, d, d.body(messages=[turn]))
        refused(g, d, request, 400, invalid("unsupported_parameter"), "'good'", "messages[0].content[0]", part["type"])


def test_null_asks_for_nothing(g, d):
    nothing = dict.fromkeys(d.parameters.keys() - d.body().keys())
    assert g.send(post(g, d, d.body(**nothing))).status == 200


def test_only_leading_messages_are_the_systems(g):
    system, user = {"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}
    assert g.send(post(g, OpenAi, OpenAi.body(messages=[system, user, user]))).status == 200
    asked = g.runtime.asked[-1]
    assert asked["system"] == [{"text": "be brief"}]
    assert asked["messages"] == [{"role": "user", "content": [{"text": "hi"}, {"text": "hi"}]}]
    request = post(g, OpenAi, OpenAi.body(messages=[user, system]))
    refused(g, OpenAi, request, 400, invalid("unsupported_parameter"), "messages[1].role", "'good'")


def test_models_that_are_not_there(g, d):
    kinds = {"openai": "model_not_found", "anthropic": "not_found_error"}
    for name in ("no.such/model 1", "x" * 2000, "gpt 4"):
        refused(g, d, post(g, d, d.body(model=name)), 404, kinds, "does not exist")
    reply = g.send(post(g, d, d.body(model="missing")))
    assert (reply.status, d.kind(reply)) == (404, kinds[d.name])
    assert "'missing' does not exist or you do not have access" in reply.body.decode()


@pytest.mark.parametrize(
    ("model", "status", "openai", "anthropic"),
    [
        ("throttles", 429, "rate_limit_exceeded", "rate_limit_error"),
        ("starts", 503, "unavailable", "overloaded_error"),
        ("breaks", 500, None, "api_error"),
        ("crashes", 500, None, "api_error"),
    ],
)
def test_failures_of_the_model(g, d, caplog, model, status, openai, anthropic):
    with caplog.at_level(logging.ERROR, logger="honmaru.gateway"):
        reply = refused(g, d, post(g, d, d.body(model=model)), status, {"openai": openai, "anthropic": anthropic})
    assert SECRET not in reply.body.decode() + caplog.text
    assert reply.headers["x-honmaru-label"].startswith("SECRET")


def test_what_is_not_written_is_501(g):
    reply = g.send(post(g, Anthropic, {"model": "good", "messages": []}, path="/v1/messages/count_tokens"))
    assert reply.status == 501 and "CountTokens" in json.loads(reply.body)["error"]["message"]


def test_policy_decides_for_dialects_too(g, d, monkeypatch):
    from honmaru.core.errors import AccessDenied

    def no(session, action, resource, context):
        raise AccessDenied(f"not authorized to perform: {action} on resource: {resource}")

    monkeypatch.setattr(g.identity, "require", no)
    kinds = {"openai": "permission_denied", "anthropic": "permission_error"}
    reply = refused(g, d, post(g, d, d.body()), 403, kinds, "bedrock:InvokeModel on resource: good")
    (entry,) = entries(g, d, reply)
    assert entry["honmaru"]["decision"] == "deny"


def test_no_audit_no_answer(g, d):
    before = len(g.runtime.asked)
    g.ledger.writable = False
    try:
        reply = g.send(post(g, d, d.body()))
        assert (reply.status, d.kind(reply)) == (
            503,
            {"openai": "unavailable", "anthropic": "overloaded_error"}[d.name],
        )
    finally:
        g.ledger.writable = True
    assert len(g.runtime.asked) == before


def test_a_stream_that_fails(g, d):
    reply = g.send(post(g, d, d.body(model="starts", stream=True)))
    assert reply.status == 503
    for model in ("breaks", "crashes"):
        reply = g.send(post(g, d, d.body(model=model, stream=True)))
        assert reply.status == 200
        last = reply.body.split(b"\n\n")[-2]
        assert b'"error"' in last and b"[DONE]" not in reply.body and b"message_stop" not in reply.body
        assert last.startswith(b"event: error\n") or d is OpenAi
        assert SECRET.encode() not in reply.body
        begun, ended = entries(g, d, reply)
        assert begun["honmaru"]["details"] == {"dialect": d.name, "stream": "begins"}
        assert ended["errorCode"] and ended["honmaru"]["details"]["stream"] == "failed"


def test_a_good_stream_is_entered_twice(g, d):
    reply = g.send(post(g, d, d.body(stream=True)))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "Hellö\\n\\n" in reply.body.decode()
    begun, ended = entries(g, d, reply)
    assert begun["eventName"] == ended["eventName"] == "ConverseStream"
    assert begun["eventSource"] == "bedrock.amazonaws.com"
    assert ended["honmaru"]["details"]["stream"] == "complete" and "errorCode" not in ended


def test_a_client_that_leaves_cancels_the_stream(g, d):
    request = post(g, d, d.body(model="endless", stream=True))
    g.runtime.closed.clear()

    async def leave():
        left = asyncio.Event()
        body = iter([{"type": "http.request", "body": request.body}])

        async def receive():
            for message in body:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if b"Hell" in message.get("body", b""):
                left.set()

        scope = {
            "type": "http", "method": "POST", "raw_path": request.path.encode(), "query_string": b"",
            "headers": [(n.lower().encode(), v.encode()) for n, v in request.headers],
            "scheme": "https", "client": ("127.0.0.1", 1),
        }  # fmt: skip
        await asyncio.wait_for(g.gateway(scope, receive, send), 5)

    asyncio.run(leave())
    assert g.runtime.closed == ["endless"]
    last = [entry for log in g.ledger.entries.values() for entry in log][-1]
    assert last["honmaru"]["details"] == {"dialect": d.name, "stream": "client gone", "pieces": 2} | {
        "bytes": last["honmaru"]["details"]["bytes"]
    }


def test_models_of_one_name_are_listed_by_arn(g):
    both = json.loads(g.send(get(g, OpenAi, "/v1/models")).body)
    assert [model["id"] for model in both["data"]] == [ARN + "a", ARN + "b", "single"]


def test_pages_of_models(g):
    def page(query):
        reply = g.send(get(g, Anthropic, "/v1/models", query))
        assert reply.status == 200, reply.body
        body = json.loads(reply.body)
        return [model["id"][-1] for model in body["data"]], body["has_more"]

    assert page("") == (["a", "b", "e"], False)
    assert page("limit=2") == (["a", "b"], True)
    assert page(f"limit=2&after_id={ARN}b") == (["e"], False)
    assert page("limit=1&before_id=single") == (["b"], True)
    assert page("after_id=gone") == ([], False)
    for query in ("limit=0", "limit=many", "limit=1001", "after_id=a&before_id=b", "limit=%ff"):
        assert g.send(get(g, Anthropic, "/v1/models", query)).status == 400


def test_no_path_of_a_bearer_service_is_taken_away(tmp_path):
    """Bedrock's own operations may be asked for with a bearer key; the dialects own none of their paths."""
    for service in ServiceModels(tmp_path, ("bedrock", "bedrock-runtime")):
        assert not [one for one in service.operations.values() if one.uri.startswith(("/v1/", "/openai/v1/"))]
