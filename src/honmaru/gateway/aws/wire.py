"""The AWS half of a request's life: identify → claim → receive → verify → parse, and serialise at the end.

Invariants:
- Nothing of a body is read for a caller whose claim is malformed, out of scope, out of date, or of an unknown key;
  for one without a claim, no more than tells whether the operation needs none (`unsigned`).
- The whole body is covered: by its hash (computed here, never believed), by chunk signatures, or, for S3 over TLS or
  with a presigned URL only, explicitly by nothing.
- Whoever is not authenticated learns neither whether an operation nor whether a resource exists.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping
from typing import Any

from honmaru.api import query_codec
from honmaru.api.misreads import Misread
from honmaru.api.models import Operation, ServiceModel
from honmaru.api.plans import WireRequest
from honmaru.core.errors import AccessDenied, NotFound, ValidationFault
from honmaru.gateway.aws import payloads, signatures, unsigned
from honmaru.gateway.aws.digests import check_document
from honmaru.gateway.aws.faults import fault_body
from honmaru.gateway.aws.routing import RPC_V2, ServiceRouter, protocol_of, rpc_v2_names, speaks_rpc_v2
from honmaru.gateway.aws.signatures import SignatureFault
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.pipeline import Pipeline
from honmaru.gateway.reading import (
    content_length,
    presented,
    read_body,
    read_headers,
    read_query,
    short_body,
    too_large,
    too_slow,
)
from honmaru.gateway.uploads import Pull, Upload, limited
from honmaru.security.page_tokens import PageTokens

_GLOBAL_REGION = {"aws-us-gov": "us-gov-west-1", "aws-iso": "us-iso-east-1", "aws-iso-b": "us-isob-east-1"}
"""Where clients of a partition sign for its global services (botocore endpoints of iam)."""

_GLOBAL_SERVICES = frozenset({"iam", "sts", "organizations"})
_HEX64 = re.compile(r"[0-9a-f]{64}")


class AwsWire:
    """See the module."""

    dialect = None

    def __init__(self, pipeline: Pipeline, *, region: str, partition: str, pages: PageTokens) -> None:
        self._pipeline = pipeline
        self._pages = pages
        self._router = ServiceRouter(pipeline.models)
        self._keys = signatures.SigningKeys()
        own = frozenset({region})
        self._regions = {
            name: own | {_GLOBAL_REGION.get(partition, region)} if name in _GLOBAL_SERVICES else own
            for name in (service.name for service in pipeline.models)
        }

    def owns(self, _exchange: Exchange) -> bool:
        """Whatever is no other wire's."""
        return True

    # Which service and operation?

    def identify(self, exchange: Exchange) -> None:
        """Headers, query string, service, protocol and (but for forms) operation. Raises a RequestFault only for
        what cannot be read at all; an unknown operation is remembered until the caller is known."""
        read_headers(exchange)
        exchange.protocol = _likely_protocol(exchange.headers)
        read_query(exchange)
        bearer = signatures.bearer_token(exchange.headers) is not None
        if not bearer:
            exchange.claim = signatures.read_claim(exchange.headers, exchange.query)
        service = self._service(exchange, bearer=bearer)
        if service is None:
            return
        exchange.service = service
        exchange.protocol = protocol_of(service, exchange.headers, exchange.query)
        self._find_operation(exchange, service)

    def _service(self, exchange: Exchange, *, bearer: bool) -> ServiceModel | None:
        query = exchange.query
        route = (exchange.method, exchange.raw_path, query, exchange.headers)
        if exchange.claim is not None:
            scoped = exchange.claim.service
            service = self._router.by_scope(scoped, *route)
            if service is None:
                exchange.routing_fault = NotFound(
                    f"Service '{scoped}' is not carried by this enclave", code="UnknownServiceException"
                )
            return service
        service = self._router.by_request(*route, bearer=bearer)
        if service is None:
            exchange.routing_fault = NotFound(
                "No service of this enclave matches the request", code="UnknownServiceException"
            )
        return service

    def _find_operation(self, exchange: Exchange, service: ServiceModel) -> None:
        if exchange.protocol == "json":
            target = exchange.headers.get("x-amz-target", "")
            prefix, _, name = target.rpartition(".")
            operation = service.operations.get(name) if prefix == service.target_prefix else None
            if operation is None:
                exchange.operation_name = name[:128] or "Unknown"
                exchange.routing_fault = ValidationFault(
                    f"The operation '{target[:128]}' is not one of {service.name}", code="UnknownOperationException"
                )
            self._found(exchange, operation)
        elif exchange.protocol == RPC_V2:
            self._found(exchange, _rpc_v2_operation(exchange, service))
        elif exchange.protocol == "query":
            action = exchange.query.get("Action")
            if action and exchange.method == "GET":
                self._found(exchange, self._action(exchange, service, action[0]))
        else:
            path = exchange.raw_path
            if service.name == "s3":
                path = self._router.bucket_path(path, exchange.headers.get("host", ""))
                exchange.host_path = path
            try:
                found = self._router.rest[service.name].match(exchange.method, path, exchange.query, exchange.headers)
            except Misread:
                found = None
            if found is None:
                exchange.routing_fault = _no_route(exchange, service)
                return
            operation, exchange.labels = found
            self._found(exchange, operation)

    @staticmethod
    def _found(exchange: Exchange, operation: Operation | None) -> None:
        exchange.operation = operation
        if operation is not None:
            exchange.operation_name = operation.name

    @staticmethod
    def _action(exchange: Exchange, service: ServiceModel, action: str) -> Operation | None:
        operation = service.operations.get(action)
        if operation is None:
            exchange.operation_name = action[:128]
            exchange.routing_fault = ValidationFault(
                f"Could not find operation {action[:128]} for version {service.api_version}", code="InvalidAction"
            )
        return operation

    # Who calls?

    def claim(self, exchange: Exchange) -> None:
        """Everything about the caller that does not need the body. Raises AuthenticationFailed."""
        token = signatures.bearer_token(exchange.headers)
        if token is not None:
            self._bearer(exchange, token)
            return
        claim = exchange.claim
        if claim is None:
            unsigned.check_possible(exchange, self._pipeline)
            return
        service = exchange.service
        regions = self._regions[service.name] if service else frozenset({self._pipeline.region})
        signatures.check_claim(claim, now=exchange.at, regions=regions, headers=exchange.headers)
        credential = self._pipeline.identity.credential(claim.access_key_id, claim.token)
        exchange.signing_key = self._keys.key(credential.secret_access_key, claim.date, claim.region, claim.service)
        stated = exchange.headers.get("x-amz-content-sha256")
        if stated is None and claim.expires_s is not None and claim.service == "s3":
            stated = signatures.UNSIGNED_PAYLOAD
        if stated is not None:
            self._check_form(exchange, stated)
            exchange.expected_hash = stated
            self._verify(exchange, stated)
        elif exchange.operation is not None and exchange.operation.streams_input:
            raise ValidationFault(
                "Missing required header for this request: x-amz-content-sha256", code="InvalidRequest"
            )
        if stated is None:
            exchange.candidate = credential.session
        else:
            exchange.session = presented(exchange, credential.session)

    def _bearer(self, exchange: Exchange, token: str) -> None:
        service = exchange.service
        if service is None or not service.bearer:
            raise SignatureFault("malformed", "Bearer tokens are accepted by bedrock and bedrock-runtime only")
        exchange.session = presented(exchange, self._pipeline.identity.bearer(token))

    @staticmethod
    def _check_form(exchange: Exchange, stated: str) -> None:
        """Raises when the payload form is unknown or not allowed here."""
        if _HEX64.fullmatch(stated):
            return
        service = exchange.service
        operation = exchange.operation
        s3 = service is not None and service.name == "s3"
        if s3 and stated == signatures.UNSIGNED_PAYLOAD:
            if exchange.secure or (exchange.claim is not None and exchange.claim.expires_s is not None):
                return
            raise SignatureFault(
                "headers", "UNSIGNED-PAYLOAD is accepted over TLS only: sign the payload, or use https"
            )
        if s3 and stated in payloads.STREAMING:
            if operation is None or not operation.streams_input:
                raise ValidationFault(f"{stated} is not supported for this operation", code="InvalidRequest")
            if stated == payloads.UNSIGNED_TRAILER and not exchange.secure:
                raise SignatureFault("headers", f"{stated} is accepted over TLS only: sign the chunks, or use https")
            return
        if not s3 and stated == payloads.SIGNED_EVENTS and operation is not None and operation.streams_input:
            return
        raise ValidationFault(
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING form, or a valid sha256 value"
            if s3
            else "x-amz-content-sha256 must be a valid sha256 value",
            code="InvalidRequest" if s3 else None,
        )

    @staticmethod
    def _verify(exchange: Exchange, payload_hash: str) -> None:
        if exchange.claim is None:
            raise SignatureFault("missing", "Request is missing Authentication Token")
        signatures.verify(
            exchange.claim,
            exchange.signing_key,
            method=exchange.method,
            raw_path=exchange.raw_path,
            raw_query=exchange.raw_query,
            headers=exchange.headers,
            payload_hash=payload_hash,
        )

    # The body

    async def receive(self, exchange: Exchange) -> None:
        """Reads the body, or makes the Upload through which the operation will. Raises a RequestFault."""
        operation = exchange.operation
        if operation is not None and operation.streams_input:
            if exchange.session is not None:
                declared = content_length(exchange.headers)
                whole = await short_body(exchange, declared, self._pipeline.limits)
                self._open_upload(exchange, declared, whole)
            return
        limits = self._pipeline.limits
        runtime = exchange.service is not None and exchange.service.name == "bedrock-runtime"
        await read_body(exchange, limits.invoke_bytes if runtime else limits.body_bytes, limits.body_s)

    def _open_upload(self, exchange: Exchange, declared: int | None, whole: bytes | None) -> None:
        headers = exchange.headers
        limit = self._pipeline.limits.upload_bytes
        stated = exchange.expected_hash
        payload: payloads.Payload
        if stated is not None and stated in payloads.STREAMING and exchange.claim is not None:
            decoded = headers.get("x-amz-decoded-content-length", "")
            if not decoded.isascii() or not decoded.isdigit() or len(decoded) > 15:
                raise ValidationFault(
                    "You must provide the x-amz-decoded-content-length header", code="MissingContentLength"
                )
            length: int | None = int(decoded)
            names = frozenset(
                name.strip().lower() for name in headers.get("x-amz-trailer", "").split(",") if name.strip()
            )
            payload = payloads.ChunkedPayload(
                stated, length=int(decoded), trailer_names=names, claim=exchange.claim, key=exchange.signing_key
            )
        else:
            if declared is None and "transfer-encoding" not in headers:
                declared = 0
            length = declared
            expected = stated if stated is not None and stated != signatures.UNSIGNED_PAYLOAD else None
            payload = payloads.PlainPayload(length, expected)
        if length is not None and length > limit:
            raise too_large(exchange, limit)
        pull = limited(self._pull(exchange), limit + (limit >> 4) + (1 << 20), "EntityTooLarge")
        exchange.upload = Upload(pull, payload, length, asyncio.get_running_loop(), whole)

    def _pull(self, exchange: Exchange) -> Pull:
        idle_s, least = self._pipeline.limits.idle_s, self._pipeline.limits.upload_bytes_s
        loop = asyncio.get_running_loop()
        ended = False
        waited, came = 0.0, 0

        async def pull() -> bytes:
            nonlocal ended, waited, came
            while not ended:
                begun = loop.time()
                try:
                    async with asyncio.timeout(idle_s):
                        message = await exchange.receive()
                except TimeoutError:
                    raise too_slow(exchange) from None
                waited += loop.time() - begun
                came += len(message.get("body", b""))
                if waited > idle_s and came < waited * least:
                    raise too_slow(exchange)
                if message["type"] != "http.request":
                    raise ValidationFault("The client closed the connection inside the body", code="IncompleteBody")
                ended = not message.get("more_body")
                piece: bytes = message.get("body", b"")
                if piece:
                    return piece
            return b""

        return pull

    def verify(self, exchange: Exchange) -> None:
        """The signature over the body's hash, where `claim` could not verify it yet. Raises AuthenticationFailed."""
        digest = (exchange.request_digest or "").removeprefix("sha256:")
        if exchange.claim is None and exchange.session is None:
            unsigned.admit(exchange, self._pipeline, self._router)
        elif exchange.candidate is not None:
            self._verify(exchange, digest)
            exchange.session = presented(exchange, exchange.candidate)
        elif (
            exchange.upload is None
            and exchange.expected_hash not in (None, signatures.UNSIGNED_PAYLOAD)
            and digest != exchange.expected_hash
        ):
            raise SignatureFault(
                "payload", "The provided 'x-amz-content-sha256' header does not match what was computed."
            )

    # What is asked?

    def parse(self, exchange: Exchange) -> None:
        """Members of the operation, checked against the model. Raises ValidationFault."""
        self._inflate(exchange)
        if exchange.operation is None and exchange.service is not None and exchange.protocol == "query":
            self._form_operation(exchange, exchange.service)
        if exchange.routing_fault is not None:
            raise exchange.routing_fault
        operation = exchange.operation
        if operation is None:
            raise ValidationFault("The request names no operation", code="InvalidAction")
        if exchange.body and operation.service.name == "s3":
            check_document(exchange.headers, exchange.body)
        plan = operation.plan_for(exchange.protocol)
        members = plan.read(
            WireRequest(exchange.query, exchange.headers, exchange.labels, exchange.body, exchange.upload)
        )
        for token in plan.tokens:
            if token not in members:
                members[token] = self._pipeline.ids.uuid()
        plan.check(members)
        for name in plan.pages_in:
            if members.get(name):
                members[name] = self._open_page(exchange, operation, members[name], plan.forged_code)
        exchange.members = members

    def _open_page(self, exchange: Exchange, operation: Operation, token: str, code: str | None) -> str:
        if exchange.session is None:
            raise RuntimeError("a page token was read before its caller was known")
        return self._pages.open(exchange.session, f"{operation.service.name}:{operation.name}", token, code=code)

    def _sealed_pages(
        self, exchange: Exchange, operation: Operation, names: tuple[str, ...], result: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The result with its page tokens sealed for this caller's next question."""
        if exchange.session is None or not any(result.get(name) for name in names):
            return result
        asked = f"{operation.service.name}:{operation.name}"
        sealed = {name: self._pages.seal(exchange.session, asked, result[name]) for name in names if result.get(name)}
        return {**result, **sealed}

    def _inflate(self, exchange: Exchange) -> None:
        """Undoes the gzip of a body whose service lets clients compress. The signature covered the compressed bytes."""
        service = exchange.service
        if service is None or not service.inflates or exchange.headers.get("content-encoding") != "gzip":
            return
        limit = self._pipeline.limits.body_bytes
        unzip = zlib.decompressobj(31)
        try:
            exchange.body = unzip.decompress(exchange.body, limit)
        except zlib.error:
            raise ValidationFault(
                "The body is not gzip, as Content-Encoding says", code="SerializationException"
            ) from None
        if unzip.unconsumed_tail:
            raise too_large(exchange, limit)
        if not unzip.eof or unzip.unused_data:
            raise ValidationFault("The body is not one whole gzip member", code="SerializationException")

    def _form_operation(self, exchange: Exchange, service: ServiceModel) -> None:
        try:
            fields = query_codec.fields(exchange.body)
        except Misread as misread:
            raise ValidationFault(misread.message, code="MalformedInput") from None
        action = fields.get("Action")
        if action is None:
            raise ValidationFault("Missing Action: the form must name an operation", code="MissingAction")
        version = fields.get("Version")
        if version is not None and version != service.api_version:
            raise ValidationFault(
                f"Could not find operation {action[:128]} for version {version[:32]}", code="InvalidAction"
            )
        self._found(exchange, self._action(exchange, service, action))

    def serialise(self, exchange: Exchange) -> None:
        """The answer, from the result."""
        operation = exchange.operation
        call = exchange.call
        if operation is None or call is None:
            raise RuntimeError("nothing was dispatched")
        plan = operation.plan_for(exchange.protocol)
        result = exchange.result
        if plan.pages_out and result is not None:
            result = self._sealed_pages(exchange, operation, plan.pages_out, result)
        answer = plan.write(result, exchange.request_id)
        if call.status is not None:
            answer.status = call.status
        answer.headers += _encoded(call.response_headers)
        exchange.answer = answer

    def identity(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        """Headers that name the request."""
        request_id = exchange.request_id.encode()
        if exchange.protocol == "rest-xml":
            return [(b"x-amz-request-id", request_id), (b"x-amz-id-2", request_id)]
        return [(b"x-amzn-requestid", request_id)]

    def fault(self, exchange: Exchange, error: BaseException) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """(status, headers, body) of a refusal."""
        _, status, headers, body = fault_body(
            error,
            service=exchange.service,
            protocol=exchange.protocol,
            request_id=exchange.request_id,
            resource=exchange.host_path.partition("?")[0],
            query_mode=exchange.headers.get("x-amzn-query-mode") == "true",
        )
        if exchange.call is not None:  # validators of a 304, CORS: what the operation said before it refused
            headers += _encoded(exchange.call.response_headers)
        if isinstance(error, AccessDenied) and error.explanation:
            # What sts:DecodeAuthorizationMessage reads; AWS puts it into the messages of a few services.
            headers.append((b"x-honmaru-authorization-message", error.explanation.encode()))
        return status, headers, body


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _likely_protocol(headers: Mapping[str, str]) -> str:
    """The protocol in which to answer a request whose service is not known."""
    content_type = headers.get("content-type", "")
    if speaks_rpc_v2(headers):
        return RPC_V2
    if "x-amz-target" in headers or content_type.startswith("application/x-amz-json"):
        return "json"
    if content_type.startswith("application/x-www-form-urlencoded"):
        return "query"
    if content_type.startswith("application/json") or headers.get("authorization", "")[:6].lower() == "bearer":
        return "rest-json"
    return "rest-xml"


def _rpc_v2_operation(exchange: Exchange, service: ServiceModel) -> Operation | None:
    """The operation of an RPC v2 request; None, and why is noted, when it names none."""
    names = rpc_v2_names(exchange.raw_path)
    if exchange.method == "POST" and names is not None and "x-amz-target" not in exchange.headers:
        exchange.operation_name = names[1]
        operation = service.operations.get(names[1]) if names[0] == service.target_prefix else None
        if operation is not None:
            return operation
    exchange.routing_fault = ValidationFault(
        f"Expected POST /service/{service.target_prefix}/operation/NAME with an operation of {service.name}",
        code="UnknownOperationException",
    )
    return None


def _no_route(exchange: Exchange, service: ServiceModel) -> Exception:
    if service.name == "s3":
        return ValidationFault("The specified method is not allowed against this resource.", code="MethodNotAllowed")
    return NotFound(
        f"No operation of {service.name} has {exchange.method} and this path", code="UnknownOperationException"
    )
