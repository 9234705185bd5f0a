"""Modelled events of event streams: members to frames, frames to members.

Invariants:
- An exception that the stream's shape models leaves as an exception frame of its member's name; any other as an
  error frame with code and message. After either, the stream ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from honmaru.api import eventstreams, json_codec, xml_codec
from honmaru.api.misreads import Misread
from honmaru.api.models import ServiceModel
from honmaru.core.errors import ValidationFault


def event_stream_member(shape: Mapping[str, Any], service: ServiceModel) -> str | None:
    """The member of a structure that is an event stream, if one is."""
    for member, inner in shape["members"].items():
        if service.shapes[inner["shape"]].get("eventstream"):
            return str(member)
    return None


class EventWriter:
    """Writes the events and the modelled exceptions of one stream shape."""

    def __init__(self, service: ServiceModel, stream_shape: str) -> None:
        self._events: dict[str, Callable[[Mapping[str, Any]], bytes]] = {}
        self._exceptions: dict[str, tuple[str, str]] = {}
        for member, reference in service.shapes[stream_shape]["members"].items():
            shape = service.shapes[reference["shape"]]
            if shape.get("exception"):
                message = next((name for name in shape["members"] if name.lower() == "message"), "message")
                self._exceptions[reference["shape"]] = (member, message)
            else:
                self._events[member] = _event_writer(service, member, reference)

    def write(self, event: Mapping[str, Any]) -> bytes:
        """`{event name: {members}}` → one frame. Raises KeyError or TypeError for what the model does not have."""
        ((name, members),) = event.items()
        return self._events[name](members)

    def initial(self, payload: bytes) -> bytes:
        """The first frame of RPC protocols: the members beside the stream."""
        return eventstreams.encode(
            {
                ":event-type": "initial-response",
                ":content-type": "application/x-amz-json-1.1",
                ":message-type": "event",
            },
            payload,
        )

    def fault(self, code: str, message: str) -> bytes:
        """The frame that ends a stream with an error."""
        modelled = self._exceptions.get(code)
        if modelled is None:
            return eventstreams.encode(
                {":message-type": "error", ":error-code": code, ":error-message": message[:1024]}, b""
            )
        member, key = modelled
        return eventstreams.encode(
            {":message-type": "exception", ":exception-type": member, ":content-type": "application/json"},
            orjson.dumps({key: message}),
        )


def _event_writer(
    service: ServiceModel, event: str, reference: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], bytes]:
    name = reference["shape"]
    shape = service.shapes[name]
    headers = [member for member, inner in shape["members"].items() if inner.get("eventheader")]
    payload = next((member for member, inner in shape["members"].items() if inner.get("eventpayload")), None)
    xml = service.protocol == "rest-xml"
    kind = service.shapes[shape["members"][payload]["shape"]]["type"] if payload else "structure"
    content_type = {"blob": "application/octet-stream", "string": "text/plain"}.get(
        kind, "text/xml" if xml else "application/json"
    )
    target = shape["members"][payload] if payload and kind == "structure" else reference
    to_xml = xml_codec.writer(service, target) if xml else None
    if payload and kind == "structure":
        to_json = json_codec.writer(service, target)
    else:
        to_json = json_codec.structure_writer(service, name, shape)

    def write(members: Mapping[str, Any]) -> bytes:
        head: dict[str, Any] = {":event-type": event, ":content-type": content_type, ":message-type": "event"}
        for member in headers:
            if members.get(member) is not None:
                head[member] = members[member]
        value: Any = members[payload] if payload else members
        if headers and not payload:
            value = {member: item for member, item in members.items() if member not in headers}
        if kind == "blob":
            body = bytes(value)
        elif kind == "string":
            body = value.encode()
        elif to_xml is not None:
            parts: list[str] = []
            to_xml(parts, target["shape"], value)
            body = "".join(parts).encode()
        else:
            body = orjson.dumps(to_json(value) if to_json else value)
        return eventstreams.encode(head, body)

    return write


class EventReader:
    """Reads the events of one input stream shape."""

    def __init__(self, service: ServiceModel, stream_shape: str) -> None:
        self._readers: dict[str, tuple[str | None, str, json_codec.Reader]] = {}
        for member, reference in service.shapes[stream_shape]["members"].items():
            shape = service.shapes[reference["shape"]]
            payload = next((name for name, inner in shape["members"].items() if inner.get("eventpayload")), None)
            target = shape["members"][payload] if payload else reference
            kind = service.shapes[target["shape"]]["type"]
            self._readers[member] = (payload, kind, json_codec.reader(service, target))

    def read(self, stream: Any) -> Iterator[dict[str, Any]]:
        """Events as they arrive on a ByteStream. Raises ValidationFault for a malformed frame or an unknown event."""
        decoder = eventstreams.Decoder()
        try:
            while data := stream.read():
                for frame in decoder.feed(data):
                    yield self._event(frame)
            decoder.close()
        except Misread as misread:
            raise ValidationFault(misread.message) from None

    def _event(self, frame: eventstreams.Frame) -> dict[str, Any]:
        name = str(frame.headers.get(":event-type", ""))
        if frame.headers.get(":message-type") != "event" or name not in self._readers:
            raise Misread(f"an event of {', '.join(sorted(self._readers))}", None)
        payload, kind, reader = self._readers[name]
        if payload is not None and kind == "blob":
            return {name: {payload: frame.payload}}
        value = reader(json_codec.parse(frame.payload or b"{}"))
        return {name: {payload: value} if payload is not None else value}
