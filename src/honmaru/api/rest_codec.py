"""The parts of a REST message outside its body: path labels, query string, headers; and raw and XML payloads."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from honmaru.api import corrections, xml_codec
from honmaru.api.misreads import Misread, UnknownMember
from honmaru.api.text_scalars import text_reader, text_writer

if TYPE_CHECKING:
    from honmaru.api.models import Operation
    from honmaru.api.plans import Answer, WireRequest

_TextReader = Callable[[str], Any] | None


def is_signing(name: str) -> bool:
    """True for the query parameters of a presigned request."""
    return name[:6].lower() == "x-amz-" and corrections.SIGNED_QUERY.fullmatch(name) is not None


def literal_query(uri: str) -> dict[str, str | None]:
    """`/{Bucket}?list-type=2&uploads` → {"list-type": "2", "uploads": None}."""
    _, _, query = uri.partition("?")
    found: dict[str, str | None] = {}
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        found[name] = value if equals else None
    return found


def request_reader(operation: Operation) -> Callable[[WireRequest], dict[str, Any]]:
    """The reader of everything that is not the body. Refuses query parameters that the operation does not have:
    they may name a sub-resource of a newer API, and ignoring that would carry out something else."""
    service = operation.service
    labels: list[tuple[str, str, _TextReader]] = []
    query: dict[str, tuple[str, bool, _TextReader]] = {}
    rest_of_query: str | None = None
    headers: list[tuple[str, str, Callable[[str], Any] | None]] = []
    prefixes: list[tuple[str, str]] = []
    for member, reference in operation.input_shape["members"].items():
        location = reference.get("location")
        if location is None:
            continue
        shape = service.shapes[reference["shape"]]
        wire = reference.get("locationName", member)
        if location == "uri":
            labels.append((wire, member, text_reader(shape, "iso8601")))
        elif location == "querystring":
            if shape["type"] == "map":
                rest_of_query = member
            elif shape["type"] == "list":
                query[wire] = (member, True, text_reader(service.shapes[shape["member"]["shape"]], "iso8601"))
            else:
                query[wire] = (member, False, text_reader(shape, "iso8601"))
        elif location == "header":
            headers.append((wire.lower(), member, _header_reader(operation, reference, shape)))
        elif location == "headers":
            prefixes.append((wire.lower(), member))
    ignored = corrections.QUERY_EXTRAS.get(service.name, frozenset()) | literal_query(operation.uri).keys()

    def read(request: WireRequest) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for wire, member, inner in labels:
            value = request.labels[wire]
            out[member] = value if inner is None else _converted(inner, value, member)
        for name, values in request.query.items():
            entry = query.get(name)
            if entry is None:
                if name in ignored or is_signing(name):
                    continue
                if rest_of_query is None:
                    raise UnknownMember(name, operation.name)
                out.setdefault(rest_of_query, {})[name] = values[0]
                continue
            member, many, inner = entry
            if many:
                out[member] = values if inner is None else [_converted(inner, value, member) for value in values]
            elif len(values) > 1:
                raise Misread("one value", None, member)
            elif inner is None:
                out[member] = values[0]
            elif values[0]:
                out[member] = _converted(inner, values[0], member)
        present = request.headers
        for wire, member, inner in headers:
            if wire in present:
                value = present[wire]
                out[member] = value if inner is None else _converted(inner, value, member)
        for prefix, member in prefixes:
            found = {name[len(prefix) :]: value for name, value in present.items() if name.startswith(prefix)}
            if found:
                out[member] = found
        return out

    return read


def _converted(inner: Callable[[str], Any], value: str, member: str) -> Any:
    try:
        return inner(value)
    except Misread as misread:
        raise misread.inside(member) from None


def _header_reader(operation: Operation, reference: Mapping[str, Any], shape: Mapping[str, Any]) -> _TextReader:
    if reference.get("jsonvalue"):
        return _read_json_header
    if shape["type"] == "list":
        item = text_reader(operation.service.shapes[shape["member"]["shape"]], "rfc822")
        return lambda value: [text if item is None else item(text) for text in split_list(value)]
    return text_reader(shape, "rfc822")


def _read_json_header(value: str) -> Any:
    try:
        return orjson.loads(base64.b64decode(value, validate=True))
    except ValueError:
        raise Misread("Base64 of JSON", value) from None


def split_list(value: str) -> list[str]:
    """A header list: commas between items, items with commas or quotes in double quotes."""
    if '"' not in value:
        return [item.strip() for item in value.split(",")]
    items: list[str] = []
    current: list[str] = []
    quoted = escaped = False
    for character in value:
        if escaped:
            current.append(character)
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            items.append("".join(current).strip())
            current = []
        else:
            current.append(character)
    items.append("".join(current).strip())
    return items


def header_writer(operation: Operation) -> Callable[[Mapping[str, Any]], list[tuple[bytes, bytes]]]:
    """The writer of an answer's header members (also those of an error shape would fit)."""
    service = operation.service
    scalars: list[tuple[str, bytes, Callable[[Any], str]]] = []
    prefixes: list[tuple[str, str]] = []
    for member, reference in operation.output_shape["members"].items():
        location = reference.get("location")
        wire = reference.get("locationName", member)
        shape = service.shapes[reference["shape"]]
        if location == "header":
            if shape["type"] == "list":
                item = text_writer(service.shapes[shape["member"]["shape"]], "rfc822")
                scalars.append((member, wire.lower().encode(), _list_writer(item)))
            else:
                scalars.append((member, wire.lower().encode(), text_writer(shape, "rfc822")))
        elif location == "headers":
            prefixes.append((member, wire.lower()))

    def write(result: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
        out: list[tuple[bytes, bytes]] = []
        for member, wire, inner in scalars:
            value = result.get(member)
            if value is not None:
                out.append((wire, header_bytes(inner(value))))
        for member, prefix in prefixes:
            for name, value in (result.get(member) or {}).items():
                out.append((header_bytes(prefix + name), header_bytes(value)))
        return out

    return write


def _list_writer(item: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: ",".join(map(item, value))


def header_bytes(value: str) -> bytes:
    """A header's bytes: UTF-8 as clients sent it (read as Latin-1), and no control characters, ever."""
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError:
        raw = value.encode("utf-8")
    return raw.translate(None, _CONTROLS)


_CONTROLS = bytes([*range(0x20), 0x7F])


def raw_payload_writer(payload: str, json: bool) -> Callable[[Mapping[str, Any], Answer], None]:
    """The writer of a blob or string payload: bytes, text, or an iterable of bytes that is sent as it comes."""

    def write(result: Mapping[str, Any], answer: Answer) -> None:
        value = result.get(payload)
        if not any(name == b"content-type" for name, _ in answer.headers):
            answer.headers.append((b"content-type", b"application/json" if json else b"binary/octet-stream"))
        if value is None:
            return
        if isinstance(value, str):
            answer.body = value.encode()
        elif isinstance(value, bytes | bytearray | memoryview):
            answer.body = bytes(value)
        else:
            answer.chunks = value
            answer.length = result.get("ContentLength")

    return write


def xml_payload_writer(operation: Operation, located: frozenset[str]) -> Callable[[Mapping[str, Any], Answer], None]:
    """The writer of an XML answer: the payload member's content, or all members without a location."""
    service = operation.service
    shape = operation.output_shape
    payload = shape.get("payload")
    reference: Mapping[str, Any] = shape["members"][payload] if payload else operation.output or {}
    target = reference["shape"]
    root = corrections.ROOT_ELEMENTS.get(operation.name) or reference.get("locationName", target)
    opening = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{service.xml_namespace}">'
    inside = xml_codec.members_writer(service, target, service.shapes[target])
    bare_text = "LocationConstraint" if operation.name == "GetBucketLocation" else None

    def write(result: Mapping[str, Any], answer: Answer) -> None:
        if payload:
            value = result.get(payload) or {}
        elif located:
            value = {member: item for member, item in result.items() if member not in located}
        else:
            value = result
        parts = [opening]
        if bare_text is not None:  # the one answer whose root element holds the text itself
            parts.append(xml_codec.escape(value.get(bare_text) or ""))
        else:
            inside(parts, value)
        parts.append(f"</{root}>")
        answer.headers.append((b"content-type", b"application/xml"))
        answer.body = "".join(parts).encode()

    return write
