"""Dialects: other APIs that say the same as operations of AWS. A dialect is a table of endpoints, each of which
translates a request into members of one operation; from there on the pipeline does what it does for AWS's own wire.

Invariants:
- A dialect has no operation of its own: IAM, labels and ledger see the translated operation and nothing else.
- Callers present a bearer key, bound to user and label, or sign for the dialect's own name (`signed_as`); nothing of
  a body is read for an unknown one.
- What is asked for and cannot be done is refused, naming parameter and model; nothing is dropped silently but members
  that change neither the answer nor what is kept of it.

Not here: what the bodies of one dialect look like (gateway/openai, gateway/anthropic).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import orjson

from honmaru.api import json_codec
from honmaru.api.misreads import Misread
from honmaru.api.plans import Answer
from honmaru.core import errors
from honmaru.core.errors import NotFound, ValidationFault
from honmaru.core.members import Unsupported
from honmaru.gateway.aws import signatures
from honmaru.gateway.aws.faults import code_and_status, message_of
from honmaru.gateway.aws.signatures import SignatureFault, bearer_token
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.pipeline import Pipeline
from honmaru.gateway.reading import presented, read_body, read_headers, read_query
from honmaru.gateway.streams import Framing
from honmaru.gateway.wires import Headers

_IDENTIFIER = re.compile(r"arn:[a-z0-9:-]{1,128}:[a-z-]{1,64}/[0-9a-zA-Z._:/-]{1,256}|[0-9a-zA-Z][0-9a-zA-Z._:-]*")
"""Names, ids and ARNs that models can have. Ids of foundation models, and no other names, have a full stop."""

_STATUS: Mapping[type[BaseException], int] = {
    errors.AuthenticationFailed: 401,
    errors.AccessDenied: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Throttled: 429,
    errors.NotReady: 503,
    errors.RequestFault: 400,
    errors.NotImplementedYet: 501,
    errors.StoreUnavailable: 503,
    errors.LedgerUnavailable: 503,
    BaseException: 500,
}
_NO_MODEL = "ResourceNotFoundException"
"""The code with which Bedrock says that there is no such model, or none that the session may see."""

_OF_HTTP = (408, 413)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request of a dialect says, once it is known to be JSON. `label` is the part of the path that varies."""

    body: Mapping[str, Any]
    label: str
    query: Mapping[str, Sequence[str]]
    request_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Translation:
    """A request as an operation. Exactly one of `answer` (result → JSON) and `framing` (of its events) is set."""

    operation: str
    members: dict[str, Any]
    answer: Callable[[Mapping[str, Any]], Any] | None = None
    framing: Framing | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method and path of a dialect. `operation` is what the ledger says when a request cannot be translated."""

    method: str
    path: re.Pattern[str]
    service: str
    operation: str
    translate: Callable[[Asked], Translation]


class Dialect:
    """A Wire (see gateway.wires) over a table of endpoints."""

    dialect: ClassVar[str]
    endpoints: ClassVar[Sequence[Endpoint]]
    request_id_header: ClassVar[bytes]
    signed_as: ClassVar[str | None] = None
    """The service that signatures name in their scope, where AWS has one for the dialect."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._keys = signatures.SigningKeys()

    def owns(self, exchange: Exchange) -> bool:
        """True for a request to a path of this dialect that is not signed, or signed for the dialect."""
        if not self.is_path(exchange.raw_path, {name for name, _ in exchange.scope["headers"]}):
            return False
        return not _signed(exchange) or (self.signed_as is not None and _signed_for(exchange, self.signed_as))

    def is_path(self, path: str, headers: Iterable[bytes]) -> bool:
        """Whether a path, with headers of these names, is this dialect's."""
        raise NotImplementedError

    def error(self, status: int, message: str, error: BaseException | None, request_id: str) -> Any:
        """The body of a refusal."""
        raise NotImplementedError

    # identify → claim → receive → verify → parse

    def identify(self, exchange: Exchange) -> None:
        exchange.protocol = "rest-json"  # in whose words the ledger names errors
        read_headers(exchange)
        read_query(exchange)
        if bearer_token(exchange.headers) is None:
            exchange.claim = signatures.read_claim(exchange.headers, exchange.query)
        for endpoint in self.endpoints:
            match = endpoint.path.fullmatch(exchange.raw_path)
            if match is not None and endpoint.method == exchange.method:
                exchange.endpoint = endpoint
                exchange.service = self._pipeline.models[endpoint.service]
                exchange.operation_name = endpoint.operation
                exchange.labels = match.groupdict()
                return
        exchange.routing_fault = NotFound(f"There is no {exchange.method} {exchange.raw_path[:256]} here")

    def claim(self, exchange: Exchange) -> None:
        """The caller's session; of a signed request, the one to be verified. Raises AuthenticationFailed."""
        claim = exchange.claim
        if claim is not None:
            pipeline = self._pipeline
            signatures.check_claim(
                claim, now=exchange.at, regions=frozenset({pipeline.region}), headers=exchange.headers
            )
            credential = pipeline.identity.credential(claim.access_key_id, claim.token)
            exchange.signing_key = self._keys.key(credential.secret_access_key, claim.date, claim.region, claim.service)
            exchange.candidate = credential.session
            return
        given = {bearer_token(exchange.headers), exchange.headers.get("x-api-key")} - {None}
        if len(given) != 1:
            reason = "malformed" if given else "missing"
            what = "Two different API keys were sent" if given else "No API key was sent"
            raise SignatureFault(
                reason, f"{what}: send one that `honmaru env` prints, as Authorization: Bearer or as x-api-key"
            )
        exchange.session = presented(exchange, self._pipeline.identity.bearer(str(given.pop())))

    async def receive(self, exchange: Exchange) -> None:
        limits = self._pipeline.limits
        await read_body(exchange, limits.invoke_bytes, limits.body_s)

    def verify(self, exchange: Exchange) -> None:
        """The signature over the body's hash; a bearer key signs nothing. Raises AuthenticationFailed."""
        if exchange.claim is None or exchange.candidate is None:
            return
        signatures.verify(
            exchange.claim,
            exchange.signing_key,
            method=exchange.method,
            raw_path=exchange.raw_path,
            raw_query=exchange.raw_query,
            headers=exchange.headers,
            payload_hash=(exchange.request_digest or "").removeprefix("sha256:"),
        )
        exchange.session = presented(exchange, exchange.candidate)

    def parse(self, exchange: Exchange) -> None:
        """The operation and its members. Raises ValidationFault, NotFound."""
        endpoint, service = exchange.endpoint, exchange.service
        if exchange.routing_fault is not None or endpoint is None or service is None:
            raise exchange.routing_fault or RuntimeError("parse ran before identify")
        body: Any = {}
        try:
            label = unquote_to_bytes(exchange.labels.get("label") or "").decode()
            if exchange.method == "POST":
                body = json_codec.parse(exchange.body)
            if type(body) is not dict:
                raise Misread("an object", body)
        except UnicodeDecodeError:
            raise NotFound("The path is not UTF-8") from None
        except Misread as misread:
            raise ValidationFault(f"The body is not JSON as it must be: {misread.message}") from None
        asked = Asked(body, label, exchange.query, exchange.request_id, exchange.at)
        try:
            translation = exchange.translation = endpoint.translate(asked)
        except Unsupported as unsupported:
            raise unsupported.fault(body.get("model")) from None
        exchange.operation = service.operations[translation.operation]
        exchange.operation_name = translation.operation
        name = _identifier(translation.members)
        if name is not None and (len(name) > 1011 or not _IDENTIFIER.fullmatch(name)):
            raise NotFound(_no_model(name), code=_NO_MODEL)
        exchange.operation.plan.check(translation.members)
        exchange.members = translation.members

    # The answer

    def serialise(self, exchange: Exchange) -> None:
        """The answer in the dialect, from the operation's result."""
        translation = exchange.translation
        if translation is None or exchange.result is None:
            raise RuntimeError("nothing was dispatched")
        if translation.answer is None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            exchange.answer = Answer(200, headers, events=exchange.result["stream"])
            return
        beside = exchange.call.beside if exchange.call is not None else {}
        body = orjson.dumps(translation.answer({**exchange.result, **beside} if beside else exchange.result))
        exchange.answer = Answer(200, [(b"content-type", b"application/json")], body)

    def identity(self, exchange: Exchange) -> Headers:
        return [(self.request_id_header, f"req_{exchange.request_id}".encode())]

    def fault(self, exchange: Exchange, error: BaseException) -> tuple[int, Headers, bytes]:
        """(status, headers, body) of a refusal: the status by its kind, the message as AWS's wire words it."""
        status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
        _, aws = code_and_status(error, exchange.service, exchange.protocol)
        if aws in _OF_HTTP:
            status = aws
        message = message_of(error)
        if isinstance(error, NotFound) and error.code == _NO_MODEL and exchange.translation is not None:
            message = _no_model(_identifier(exchange.translation.members))
        body = orjson.dumps(self.error(status, message, error, f"req_{exchange.request_id}"))
        return status, [(b"content-type", b"application/json")], body


def _identifier(members: Mapping[str, Any]) -> str | None:
    """The model that an operation is about."""
    name: str | None = members.get("modelId", members.get("modelIdentifier"))
    return name


def _no_model(name: str | None) -> str:
    return f"The model {(name or '')[:128]!r} does not exist or you do not have access to it"


def _signed(exchange: Exchange) -> bool:
    """True when the request carries any AWS signature: then it is AWS's, whatever its path."""
    if "X-Amz-" in exchange.raw_query or "AWSAccessKeyId" in exchange.raw_query:
        return True
    return any(name == b"authorization" and value[:3].upper() == b"AWS" for name, value in exchange.scope["headers"])


def _signed_for(exchange: Exchange, service: str) -> bool:
    """Whether the scope of the Authorization header names a service. It is verified later, as every signature is."""
    scope = f"/{service}/aws4_request".encode()
    return any(name == b"authorization" and scope in value for name, value in exchange.scope["headers"])


# What dialects say alike: their lists of models are of those declared and of those imported or customised


def list_models(asked: Asked, answer: Callable[[Sequence[Mapping[str, Any]]], Any]) -> Translation:
    """The models that the session may ask, the newest thousand of each kind: {"id", "name", "owner", "created"}."""

    def write(result: Mapping[str, Any]) -> Any:
        return answer([_declared(one, asked.at) for one in result["foundation"]] + _imported(result))

    return Translation("ListImportedModels", {"maxResults": 1000}, write)


def get_model(asked: Asked, answer: Callable[[Mapping[str, Any]], Any]) -> Translation:
    """One of them."""

    label = asked.label
    if "." in label or ":foundation-model/" in label:
        members = {"modelIdentifier": label}
        return Translation(
            "GetFoundationModel",
            members,
            lambda result: answer({**_declared(result["modelDetails"], asked.at), "id": label}),
        )

    def write(result: Mapping[str, Any]) -> Any:
        model = {"id": label, "name": result["modelName"], "owner": "imported", "created": result["creationTime"]}
        return answer(model)

    return Translation("GetImportedModel", {"modelIdentifier": label}, write)


def _declared(summary: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    return {
        "id": summary["modelId"],
        "name": summary["modelName"],
        "owner": summary["providerName"],
        "created": at.replace(hour=0, minute=0, second=0, microsecond=0),
    }


def _imported(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model's id is its name, or its ARN where several have the name."""
    summaries = result["modelSummaries"]
    names = [summary["modelName"] for summary in summaries]
    return [
        {
            "id": one["modelName"] if names.count(one["modelName"]) == 1 else one["modelArn"],
            "name": one["modelName"],
            "owner": "imported",
            "created": one["creationTime"],
        }
        for one in summaries
    ]
