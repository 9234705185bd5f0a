"""A plan reads, checks and writes the messages of one operation: compiled from the model once, then only run.

    read(request) → members      raises ValidationFault (wrong form; code of the protocol's own kind)
    check(members)               raises ValidationFault (AWS's "n validation errors detected")
    write(result) → Answer       unset members absent

Invariants:
- A request that one plan read is checked against every constraint of the model before a service sees it.
- idempotencyToken members that the client left out are named in `tokens`; the gateway fills them in.

Not here: framing of errors, request ids, labels (gateway); HTTP itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from honmaru.api import cbor_codec, checks, corrections, json_codec, query_codec, rest_codec, xml_codec
from honmaru.api.events import EventReader, EventWriter, event_stream_member
from honmaru.api.misreads import Misread
from honmaru.core.errors import ValidationFault

if TYPE_CHECKING:
    from honmaru.api.models import Operation

Members = dict[str, Any]


@dataclass(slots=True)
class WireRequest:
    """What a plan reads: the request's parts, percent-decoding still to do in `labels`.

    `query` maps decoded names to decoded values in order; `headers` have lower-case names; `stream` is the body of an
    operation that streams its input, else `body` holds all of it.
    """

    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    labels: Mapping[str, str]
    body: bytes = b""
    stream: Any = None


@dataclass(slots=True)
class Answer:
    """What a plan wrote. Exactly one of `body` (complete), `chunks` (bytes) and `events` (event stream) carries it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    chunks: Iterable[bytes] | None = None
    events: Iterable[Mapping[str, Any]] | AsyncIterator[Mapping[str, Any]] | None = None
    length: int | None = None
    """Content-Length when `chunks` is given and the service stated it."""


@dataclass(slots=True)
class Plan:
    """See the module. `content_type` of a complete answer; `event_writer` of an event stream."""

    operation: Operation
    read_members: Callable[[WireRequest], Members]
    check_members: checks.Check | None
    write_result: Callable[[Mapping[str, Any], str], Answer]
    tokens: tuple[str, ...]
    event_writer: EventWriter | None = None
    misread_code: str | None = None
    pages_in: tuple[str, ...] = ()
    """Input members that hold a page token of an earlier answer."""
    pages_out: tuple[str, ...] = ()
    """Output members that hold page tokens."""
    forged_code: str | None = None
    """The error that the model has for a page token that is not one; None: a validation error."""
    tag_members: tuple[str, ...] = field(default=())
    """Input members that hold tags of a resource: a list of {Key, Value} or a map."""

    def read(self, request: WireRequest) -> Members:
        """The request's members. Raises ValidationFault."""
        try:
            return self.read_members(request)
        except Misread as misread:
            raise ValidationFault(misread.message, code=self.misread_code) from None

    def check(self, members: Members) -> None:
        """Raises ValidationFault that names every violation."""
        if self.check_members is not None:
            errors: list[str] = []
            self.check_members(members, None, "", errors)
            if errors:
                raise ValidationFault(checks.message(errors))

    def write(self, result: Mapping[str, Any] | None, request_id: str) -> Answer:
        """The answer. Raises TypeError or AttributeError when the service returned what the model does not have."""
        return self.write_result(result or {}, request_id)


MISREAD_CODES = {
    "json": "SerializationException",
    "rest-json": "SerializationException",
    "query": "MalformedInput",
    "rest-xml": "MalformedXML",
    "smithy-rpc-v2-cbor": "SerializationException",
}


def compile_plan(operation: Operation, protocol: str) -> Plan:
    """Compile one operation for a protocol of its service. Costs about a millisecond for a large one."""
    service = operation.service
    input_shape = operation.input_shape
    read, write = _PROTOCOLS[protocol](operation)
    writer = None
    if operation.output is not None:
        member = event_stream_member(operation.output_shape, service)
        if member is not None:
            writer = EventWriter(service, operation.output_shape["members"][member]["shape"])
    return Plan(
        operation=operation,
        read_members=read,
        check_members=checks.check(service, operation.input) if operation.input else None,
        write_result=write,
        tokens=tuple(name for name, ref in input_shape["members"].items() if ref.get("idempotencyToken")),
        event_writer=writer,
        misread_code=MISREAD_CODES[protocol],
        **page_tokens(operation),
        tag_members=tuple(_tag_members(operation, input_shape)),
    )


_FORGED = frozenset(
    {
        "InvalidMarkerException",
        "InvalidNextToken",
        "InvalidNextTokenException",
        "InvalidPaginationTokenException",
        "PaginationTokenExpiredException",
    }
)


def page_tokens(operation: Operation) -> dict[str, Any]:
    """Which members of an operation are page tokens; see `corrections.PAGE_TOKENS`."""
    known = corrections.PAGE_TOKENS
    if operation.service.name in corrections.PLAIN_MARKERS:
        known = known - corrections.PLAIN_MARKERS[operation.service.name]
    shapes = operation.service.shapes

    def found(shape: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(
            name
            for name, reference in shape["members"].items()
            if name.lower() in known and shapes[reference["shape"]]["type"] == "string"
        )

    inputs = found(operation.input_shape)
    errors = (error["shape"] for error in operation.model.get("errors", ()))
    return {
        "pages_in": inputs,
        "pages_out": found(operation.output_shape) if inputs else (),
        "forged_code": next((error for error in errors if error in _FORGED), None),
    }


def _tag_members(operation: Operation, shape: Mapping[str, Any]) -> Iterator[str]:
    if operation.service.name == "sts":
        return  # there `honmaru:label` asks for a session's label
    for name, reference in shape["members"].items():
        if "tags" not in name.lower() or "keys" in name.lower():
            continue
        target = operation.service.shapes[reference["shape"]]
        if target["type"] == "map":
            yield name
        elif target["type"] == "list":
            item = operation.service.shapes[target["member"]["shape"]]
            names = {member.lower() for member in item.get("members", ())}
            if {"key", "value"} <= names:
                yield name


_Codec = tuple[Callable[[WireRequest], Members], Callable[[Mapping[str, Any], str], Answer]]


def _json(operation: Operation) -> _Codec:
    service = operation.service
    content_type = (b"content-type", f"application/x-amz-json-{service.json_version}".encode())
    reader = json_codec.reader(service, operation.input) if operation.input else None

    def read(request: WireRequest) -> Members:
        value = json_codec.parse(request.body) if request.body else {}
        if reader is None:
            if type(value) is not dict or value:
                raise Misread("an empty structure", value)
            return {}
        members: Members = reader(value)
        return members

    if operation.output is None:
        return read, lambda _result, _request_id: Answer(operation.status, [content_type])
    stream = event_stream_member(operation.output_shape, service)
    writer = json_codec.structure_writer(service, operation.output["shape"], operation.output_shape)

    def write(result: Mapping[str, Any], _request_id: str) -> Answer:
        if stream is None:
            return Answer(operation.status, [content_type], orjson.dumps(writer(result)))
        rest = {member: item for member, item in result.items() if member != stream}
        initial = orjson.dumps(writer(rest))
        return Answer(operation.status, [_EVENT_STREAM], initial, events=result[stream])

    return read, write


def _cbor(operation: Operation) -> _Codec:
    service = operation.service
    reader = cbor_codec.reader(service, operation.input) if operation.input else None

    def read(request: WireRequest) -> Members:
        value = cbor_codec.parse(request.body)
        if reader is None:
            if type(value) is not dict or value:
                raise Misread("an empty structure", value)
            return {}
        members: Members = reader(value)
        return members

    if operation.output is None:
        return read, lambda _result, _request_id: Answer(operation.status, [_SMITHY])
    if event_stream_member(operation.output_shape, service) is not None:
        raise NotImplementedError(f"{operation}: event streams in CBOR")
    writer = cbor_codec.writer(service, operation.output)

    def write(result: Mapping[str, Any], _request_id: str) -> Answer:
        body = bytearray()
        writer(body, result)
        return Answer(operation.status, [_SMITHY, _CBOR], bytes(body))

    return read, write


def _query(operation: Operation) -> _Codec:
    service = operation.service
    reader = query_codec.reader(service, operation.input) if operation.input else None

    def read(request: WireRequest) -> Members:
        flat = query_codec.fields(request.body)
        if not flat:  # a GET, as presigned requests are
            flat = {name: values[0] for name, values in request.query.items() if not rest_codec.is_signing(name)}
        flat.pop("Action", None)
        flat.pop("Version", None)
        tree = query_codec.tree(flat)
        if reader is None:
            if tree:
                raise Misread("no parameters", tree)
            return {}
        members: Members = reader(tree)
        return members

    name = operation.name
    opening = f'<{name}Response xmlns="{service.xml_namespace}">'
    closing = f"</{name}Response>"
    inside = None
    wrapper = ""
    if operation.output is not None:
        shape = operation.output["shape"]
        inside = xml_codec.members_writer(service, shape, service.shapes[shape])
        wrapper = operation.output.get("resultWrapper", f"{name}Result")

    def write(result: Mapping[str, Any], request_id: str) -> Answer:
        parts = [opening]
        if inside is not None:
            parts.append(f"<{wrapper}>")
            inside(parts, result)
            parts.append(f"</{wrapper}>")
        parts.append(f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>{closing}")
        return Answer(operation.status, [_TEXT_XML], "".join(parts).encode())

    return read, write


def _rest(operation: Operation) -> _Codec:
    service = operation.service
    json = service.protocol == "rest-json"
    read_parts = rest_codec.request_reader(operation)
    read_body = _rest_body_reader(operation, json)

    def read(request: WireRequest) -> Members:
        try:
            members = read_parts(request)
        except Misread as misread:  # not in the body: S3 calls it an argument, not malformed XML
            raise ValidationFault(misread.message, code="SerializationException" if json else None) from None
        if read_body is not None:
            read_body(request, members)
        return members

    if operation.output is None:
        return read, lambda _result, _request_id: Answer(operation.status, [])
    write_headers = rest_codec.header_writer(operation)
    write_body = _rest_body_writer(operation, json)

    def write(result: Mapping[str, Any], _request_id: str) -> Answer:
        answer = Answer(operation.status, write_headers(result))
        write_body(result, answer)
        return answer

    return read, write


def _rest_body_reader(operation: Operation, json: bool) -> Callable[[WireRequest, Members], None] | None:
    if operation.input is None:
        return None
    service = operation.service
    shape = operation.input_shape
    payload = shape.get("payload")
    if payload is None:
        if all("location" in reference for reference in shape["members"].values()):
            return None
        if json:
            json_reader = json_codec.reader(service, operation.input)

            def read_json(request: WireRequest, members: Members) -> None:
                if request.body:
                    members.update(json_reader(json_codec.parse(request.body)))

            return read_json
        xml_reader = xml_codec.reader(service, operation.input)
        xml_root = operation.input.get("locationName", operation.input["shape"])

        def read_xml(request: WireRequest, members: Members) -> None:
            if request.body:
                members.update(xml_reader([_rooted(request.body, xml_root)]))

        return read_xml
    reference = shape["members"][payload]
    target = service.shapes[reference["shape"]]
    if target.get("eventstream"):
        events = EventReader(service, reference["shape"])

        def read_events(request: WireRequest, members: Members) -> None:
            members[payload] = events.read(request.stream)

        return read_events
    if target["type"] == "blob":

        def read_blob(request: WireRequest, members: Members) -> None:
            if request.stream is not None:
                members[payload] = request.stream
            elif request.body:
                members[payload] = request.body

        return read_blob
    if target["type"] == "string":

        def read_string(request: WireRequest, members: Members) -> None:
            try:
                if request.body:
                    members[payload] = request.body.decode("utf-8")
            except UnicodeDecodeError:
                raise Misread("UTF-8", None, payload) from None

        return read_string
    if json:
        json_payload = json_codec.reader(service, reference)

        def read_json_payload(request: WireRequest, members: Members) -> None:
            if request.body:
                members[payload] = json_payload(json_codec.parse(request.body))

        return read_json_payload
    xml_payload = xml_codec.reader(service, reference)
    payload_root = reference.get("locationName", reference["shape"])

    def read_xml_payload(request: WireRequest, members: Members) -> None:
        if request.body:
            members[payload] = xml_payload([_rooted(request.body, payload_root)])

    return read_xml_payload


def _rooted(body: bytes, name: str) -> xml_codec.Element:
    root = xml_codec.parse(body)
    if root.name != name:
        raise Misread(f"the root element {name}, not {root.name[:128]}", None)
    return root


def _rest_body_writer(operation: Operation, json: bool) -> Callable[[Mapping[str, Any], Answer], None]:
    service = operation.service
    shape = operation.output_shape
    payload = shape.get("payload")
    stream = event_stream_member(shape, service)
    if stream is not None:

        def write_events(result: Mapping[str, Any], answer: Answer) -> None:
            answer.headers.append(_EVENT_STREAM)
            answer.events = result[stream]

        return write_events
    if payload is not None and service.shapes[shape["members"][payload]["shape"]]["type"] in ("blob", "string"):
        return rest_codec.raw_payload_writer(payload, operation.name == "GetBucketPolicy")
    located = frozenset(member for member, reference in shape["members"].items() if "location" in reference)
    if operation.status == 204 or (payload is None and len(located) == len(shape["members"])):
        return lambda _result, _answer: None
    if json:
        target = shape["members"][payload] if payload else None
        to_json = (
            json_codec.writer(service, target)
            if target
            else json_codec.structure_writer(service, operation.name, shape)
        )

        def write_json(result: Mapping[str, Any], answer: Answer) -> None:
            value = result.get(payload) if payload else {m: v for m, v in result.items() if m not in located}
            answer.headers.append(_JSON)
            answer.body = orjson.dumps(to_json(value or {}) if to_json else value)

        return write_json
    return rest_codec.xml_payload_writer(operation, located)


_EVENT_STREAM = (b"content-type", b"application/vnd.amazon.eventstream")
_JSON = (b"content-type", b"application/json")
_TEXT_XML = (b"content-type", b"text/xml")
_CBOR = (b"content-type", b"application/cbor")
_SMITHY = (b"smithy-protocol", b"rpc-v2-cbor")

_PROTOCOLS: Mapping[str, Callable[[Operation], _Codec]] = {
    "json": _json,
    "query": _query,
    "rest-json": _rest,
    "rest-xml": _rest,
    "smithy-rpc-v2-cbor": _cbor,
}
