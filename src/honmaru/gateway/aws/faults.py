"""One table from the error tree (class, code) to each protocol's wire.

Code: what the service stated, else the service's default for the class, else the protocol's.
Status: what the service's model states for the code, else the table's for the code, else the class's.

Invariants:
- An exception outside the tree answers as the protocol's internal error, without any detail of it.
- A service that once spoke query only names its errors twice: by shape, and (header x-amzn-query-error, for clients
  that ask for it) by the code that it had in query.
- A HEAD request and a 304 are answered without a body.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from honmaru.api import cbor_codec
from honmaru.api.models import ServiceModel
from honmaru.api.xml_codec import escape
from honmaru.core import errors
from honmaru.gateway.aws.routing import RPC_V2
from honmaru.gateway.aws.signatures import SignatureFault

_Row = tuple[str, int]

_JSON: Mapping[type[Exception], _Row] = {
    errors.ValidationFault: ("ValidationException", 400),
    errors.NotFound: ("ResourceNotFoundException", 404),
    errors.Conflict: ("ConflictException", 409),
    errors.QuotaExceeded: ("ServiceQuotaExceededException", 402),
    errors.Throttled: ("ThrottlingException", 429),
    errors.NotReady: ("ConflictException", 409),
    errors.AccessDenied: ("AccessDeniedException", 403),
    errors.AuthenticationFailed: ("UnrecognizedClientException", 403),
    errors.NotImplementedYet: ("NotImplemented", 501),
    errors.StoreUnavailable: ("ServiceUnavailableException", 503),
    errors.LedgerUnavailable: ("ServiceUnavailableException", 503),
    errors.RequestFault: ("ValidationException", 400),
    errors.HonmaruError: ("InternalServerException", 500),
}
_QUERY: Mapping[type[Exception], _Row] = {
    errors.ValidationFault: ("ValidationError", 400),
    errors.NotFound: ("NoSuchEntity", 404),
    errors.Conflict: ("EntityAlreadyExists", 409),
    errors.QuotaExceeded: ("LimitExceeded", 409),
    errors.Throttled: ("Throttling", 400),
    errors.NotReady: ("EntityTemporarilyUnmodifiable", 409),
    errors.AccessDenied: ("AccessDenied", 403),
    errors.AuthenticationFailed: ("InvalidClientTokenId", 403),
    errors.NotImplementedYet: ("NotImplemented", 501),
    errors.StoreUnavailable: ("ServiceUnavailable", 503),
    errors.LedgerUnavailable: ("ServiceUnavailable", 503),
    errors.RequestFault: ("ValidationError", 400),
    errors.HonmaruError: ("InternalFailure", 500),
}
_XML: Mapping[type[Exception], _Row] = {
    errors.ValidationFault: ("InvalidArgument", 400),
    errors.NotFound: ("NoSuchKey", 404),
    errors.Conflict: ("OperationAborted", 409),
    errors.QuotaExceeded: ("TooManyBuckets", 400),
    errors.Throttled: ("SlowDown", 503),
    errors.NotReady: ("OperationAborted", 409),
    errors.AccessDenied: ("AccessDenied", 403),
    errors.AuthenticationFailed: ("InvalidAccessKeyId", 403),
    errors.NotImplementedYet: ("NotImplemented", 501),
    errors.StoreUnavailable: ("ServiceUnavailable", 503),
    errors.LedgerUnavailable: ("ServiceUnavailable", 503),
    errors.RequestFault: ("InvalidRequest", 400),
    errors.HonmaruError: ("InternalError", 500),
}
_PROTOCOLS = {"json": _JSON, RPC_V2: _JSON, "rest-json": _JSON, "query": _QUERY, "rest-xml": _XML}

_SERVICES: Mapping[str, Mapping[type[Exception], _Row]] = {
    "sagemaker": {
        errors.NotFound: ("ResourceNotFound", 400),
        errors.Conflict: ("ResourceInUse", 400),
        errors.NotReady: ("ResourceInUse", 400),
        errors.QuotaExceeded: ("ResourceLimitExceeded", 400),
        errors.StoreUnavailable: ("ServiceUnavailable", 503),
        errors.LedgerUnavailable: ("ServiceUnavailable", 503),
        errors.HonmaruError: ("InternalFailure", 500),
    },
    "logs": {
        errors.ValidationFault: ("InvalidParameterException", 400),
        errors.Conflict: ("ResourceAlreadyExistsException", 400),
        errors.QuotaExceeded: ("LimitExceededException", 400),
        errors.NotReady: ("OperationAbortedException", 400),
    },
    "bedrock-runtime": {
        errors.NotReady: ("ModelNotReadyException", 429),
        errors.EngineFailed: ("ModelErrorException", 424),
    },
    "iam": {errors.HonmaruError: ("ServiceFailure", 500)},
    "kms": {
        errors.NotFound: ("NotFoundException", 400),
        errors.Conflict: ("KMSInvalidStateException", 400),
        errors.QuotaExceeded: ("LimitExceededException", 400),
        errors.StoreUnavailable: ("DependencyTimeoutException", 503),
        errors.LedgerUnavailable: ("DependencyTimeoutException", 503),
        errors.HonmaruError: ("KMSInternalException", 500),
    },
    "cloudwatch": {
        errors.NotFound: ("ResourceNotFound", 404),
        errors.QuotaExceeded: ("LimitExceeded", 400),
        errors.HonmaruError: ("InternalServiceError", 500),
    },
    "braket": {
        errors.StoreUnavailable: ("InternalServiceException", 500),
        errors.LedgerUnavailable: ("InternalServiceException", 500),
        errors.HonmaruError: ("InternalServiceException", 500),
    },
}

_STATUS: Mapping[str, int] = {
    # S3, "List of error codes"
    "BadDigest": 400,
    "BucketAlreadyExists": 409,
    "BucketAlreadyOwnedByYou": 409,
    "BucketNotEmpty": 409,
    "EntityTooLarge": 400,
    "EntityTooSmall": 400,
    "ExpiredToken": 400,
    "IllegalLocationConstraintException": 400,
    "IncompleteBody": 400,
    "InvalidArgument": 400,
    "InvalidBucketName": 400,
    "InvalidBucketState": 409,
    "InvalidDigest": 400,
    "InvalidObjectState": 403,
    "InvalidPart": 400,
    "InvalidPartNumber": 416,
    "InvalidPartOrder": 400,
    "InvalidRange": 416,
    "InvalidRequest": 400,
    "InvalidTag": 400,
    "KeyTooLongError": 400,
    "MalformedXML": 400,
    "MaxMessageLengthExceeded": 400,
    "MetadataTooLarge": 400,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "MissingSecurityHeader": 400,
    "NoSuchBucket": 404,
    "NoSuchBucketPolicy": 404,
    "NoSuchKey": 404,
    "NoSuchLifecycleConfiguration": 404,
    "NoSuchTagSet": 404,
    "NoSuchUpload": 404,
    "NoSuchVersion": 404,
    "NotModified": 304,
    "OperationAborted": 409,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "RequestTimeout": 400,
    "SlowDown": 503,
    "XAmzContentSHA256Mismatch": 400,
    # the protocols' own
    "SerializationException": 400,
    "UnknownOperationException": 400,
    "RequestEntityTooLargeException": 413,
    "RequestEntityTooLarge": 413,
    "InvalidAction": 400,
    "MalformedInput": 400,
    "RequestTimeoutException": 408,
}

_REASONS: Mapping[str, Mapping[str, _Row]] = {
    # reason: protocol → (code, status)
    "missing": {
        "json": ("MissingAuthenticationTokenException", 400),
        "rest-json": ("MissingAuthenticationTokenException", 403),
        "query": ("MissingAuthenticationToken", 403),
        "rest-xml": ("AccessDenied", 403),
    },
    "malformed": {
        "json": ("IncompleteSignatureException", 400),
        "rest-json": ("IncompleteSignatureException", 403),
        "query": ("IncompleteSignature", 400),
        "rest-xml": ("AuthorizationHeaderMalformed", 400),
    },
    "query": {
        "json": ("IncompleteSignatureException", 400),
        "rest-json": ("IncompleteSignatureException", 403),
        "query": ("IncompleteSignature", 400),
        "rest-xml": ("AuthorizationQueryParametersError", 400),
    },
    "mismatch": {
        "json": ("InvalidSignatureException", 400),
        "rest-json": ("InvalidSignatureException", 403),
        "query": ("SignatureDoesNotMatch", 403),
        "rest-xml": ("SignatureDoesNotMatch", 403),
    },
    "scope": {
        "json": ("InvalidSignatureException", 400),
        "rest-json": ("InvalidSignatureException", 403),
        "query": ("SignatureDoesNotMatch", 403),
        "rest-xml": ("AuthorizationHeaderMalformed", 400),
    },
    "skew": {
        "json": ("InvalidSignatureException", 400),
        "rest-json": ("InvalidSignatureException", 403),
        "query": ("SignatureDoesNotMatch", 403),
        "rest-xml": ("RequestTimeTooSkewed", 403),
    },
    "expired": {
        "json": ("InvalidSignatureException", 400),
        "rest-json": ("InvalidSignatureException", 403),
        "query": ("SignatureDoesNotMatch", 403),
        "rest-xml": ("AccessDenied", 403),
    },
    "headers": {
        "json": ("InvalidSignatureException", 400),
        "rest-json": ("InvalidSignatureException", 403),
        "query": ("SignatureDoesNotMatch", 403),
        "rest-xml": ("AccessDenied", 403),
    },
    "payload": {
        "json": ("InvalidSignatureException", 400),
        "rest-json": ("InvalidSignatureException", 403),
        "query": ("SignatureDoesNotMatch", 403),
        "rest-xml": ("XAmzContentSHA256Mismatch", 400),
    },
    "legacy": {
        "json": ("IncompleteSignatureException", 400),
        "rest-json": ("IncompleteSignatureException", 403),
        "query": ("IncompleteSignature", 400),
        "rest-xml": ("InvalidRequest", 400),
    },
}

_TOKENS: Mapping[str, Mapping[str, _Row]] = {
    # what the authenticator calls a refused credential → protocol → (code, status)
    "InvalidClientTokenId": {
        "json": ("UnrecognizedClientException", 400),
        "rest-json": ("UnrecognizedClientException", 403),
        "query": ("InvalidClientTokenId", 403),
        "rest-xml": ("InvalidAccessKeyId", 403),
    },
    "ExpiredToken": {
        "json": ("ExpiredTokenException", 400),
        "rest-json": ("ExpiredTokenException", 403),
        "query": ("ExpiredToken", 403),
        "rest-xml": ("ExpiredToken", 400),
    },
    "InvalidToken": {
        "json": ("UnrecognizedClientException", 400),
        "rest-json": ("UnrecognizedClientException", 403),
        "query": ("InvalidClientTokenId", 403),
        "rest-xml": ("InvalidToken", 400),
    },
}


_S3_CREDENTIALS: Mapping[str, str] = {
    "InvalidAccessKeyId": "The AWS Access Key Id you provided does not exist in our records.",
    "InvalidToken": "The provided token is malformed or otherwise invalid.",
    "ExpiredToken": "The provided token has expired.",
}
"""S3's own words for refused credentials; every other service says "The security token included in the request …"."""


def code_and_status(error: BaseException, service: ServiceModel | None, protocol: str) -> _Row:
    """The wire's error code and HTTP status of an exception."""
    rpc = "json" if protocol == RPC_V2 else protocol
    if isinstance(error, SignatureFault):
        return _REASONS[error.reason][rpc]
    code = error.code if isinstance(error, errors.HonmaruError) else None
    if isinstance(error, errors.AuthenticationFailed):
        known = _TOKENS.get(code or "InvalidClientTokenId")
        if known is not None:
            return known[rpc]
    default, status = _default(error, service, protocol)
    if code is None:
        code = default
    if service is not None:
        modelled = service.errors.get(code)
        if modelled is not None:
            if len(service.protocols) > 1:
                code = _spelled(modelled, protocol)
            if modelled[0] is not None:
                return code, modelled[0]
    status = _STATUS.get(code, status)
    if rpc == "json" and isinstance(error, errors.RequestFault) and status not in (413,):
        status = 400
    return code, status


def _spelled(modelled: tuple[int | None, str, Mapping[str, Any]], protocol: str) -> str:
    """The code of a modelled error: its own in query, its shape's name in JSON and CBOR."""
    _, shape, model = modelled
    return str(model.get("error", {}).get("code", shape)) if protocol == "query" else shape


def _query_error(error: BaseException, service: ServiceModel, status: int) -> bytes:
    """The value of x-amzn-query-error: the code that the error has in query, and whose fault it is."""
    code, _ = code_and_status(error, service, "query")
    return f"{code};{'Sender' if status < 500 else 'Receiver'}".encode()


def _default(error: BaseException, service: ServiceModel | None, protocol: str) -> _Row:
    own = _SERVICES.get(service.name, {}) if service is not None else {}
    table = _PROTOCOLS[protocol]
    for kind in type(error).__mro__:
        if kind in own:
            return own[kind]
        if kind in table:
            return table[kind]
    return own.get(errors.HonmaruError) or table[errors.HonmaruError]


INTERNAL = "We encountered an internal error. Please try again."


def message_of(error: BaseException) -> str:
    """What the caller may read about an exception."""
    if isinstance(error, errors.IntegrityFault) or not isinstance(error, errors.HonmaruError):
        return INTERNAL
    return error.message


def fault_body(
    error: BaseException,
    *,
    service: ServiceModel | None,
    protocol: str,
    request_id: str,
    resource: str,
    query_mode: bool = False,
) -> tuple[str, int, list[tuple[bytes, bytes]], bytes]:
    """(code, status, headers, body) of an exception in a protocol. `query_mode`: the client asks for query's codes."""
    code, status = code_and_status(error, service, protocol)
    message = message_of(error)
    if isinstance(error, errors.AuthenticationFailed) and service is not None and service.name == "s3":
        message = _S3_CREDENTIALS.get(code, message)
    members = error.members if isinstance(error, errors.HonmaruError) else {}
    if protocol == "rest-xml":
        extra = "".join(f"<{name}>{_text(str(value))}</{name}>" for name, value in members.items())
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{_text(message)}</Message>{extra}"
            f"<Resource>{_text(resource)}</Resource><RequestId>{request_id}</RequestId>"
            f"<HostId>{request_id}</HostId></Error>"
        )
        return code, status, [(b"content-type", b"application/xml")], body.encode("utf-8", "replace")
    if protocol == "query":
        kind = "Sender" if status < 500 else "Receiver"
        namespace = service.xml_namespace if service is not None else "https://iam.amazonaws.com/doc/2010-05-08/"
        body = (
            f'<ErrorResponse xmlns="{namespace}"><Error><Type>{kind}</Type><Code>{code}</Code>'
            f"<Message>{_text(message)}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        return code, status, [(b"content-type", b"text/xml")], body.encode("utf-8", "replace")
    key = "message"
    if service is not None and code in service.errors:
        key = next((name for name in service.errors[code][2]["members"] if name.lower() == "message"), key)
    json: dict[str, object] = {key: message.encode("utf-8", "replace").decode(), **members}
    headers = [(b"x-amzn-errortype", code.encode())]
    if query_mode and service is not None and service.query_compatible:
        headers.append((b"x-amzn-query-error", _query_error(error, service, status)))
    if protocol == RPC_V2:
        cbor = bytearray()
        cbor_codec.write_any(cbor, {"__type": _shape_id(service, code), **json})
        headers += [(b"smithy-protocol", b"rpc-v2-cbor"), (b"content-type", b"application/cbor")]
        return code, status, headers, bytes(cbor)
    if protocol == "json":
        version = service.json_version if service is not None else "1.1"
        json = {"__type": _shape_id(service, code) if version == "1.0" else code, **json}
        headers.append((b"content-type", f"application/x-amz-json-{version}".encode()))
    else:
        headers.append((b"content-type", b"application/json"))
    return code, status, headers, orjson.dumps(json, default=str)


_UNWRITABLE = re.compile("[^\\t\\n\\r -\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def _text(value: str) -> str:
    """Text of an error in XML. What XML 1.0 has no way to write becomes U+FFFD: a client must be able to read why."""
    return escape(_UNWRITABLE.sub("\ufffd", value))


def _shape_id(service: ServiceModel | None, code: str) -> str:
    """An error's absolute shape name, as JSON 1.0 and CBOR state it; the protocol's own errors are coral's."""
    if service is not None and code in service.errors:
        return f"com.amazonaws.{service.name.replace('-', '')}#{code}"
    return f"com.amazon.coral.service#{code}"
