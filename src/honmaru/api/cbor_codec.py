"""Readers and writers of CBOR bodies (protocol smithy-rpc-v2-cbor), compiled from shapes.

Invariants:
- A reader accepts exactly the modelled types; nothing is converted silently. null means absent.
- A member that the model does not have is refused (see `misreads.UnknownMember`).
- A writer leaves out members that are None, and raises TypeError for members that the model does not have.

Source: "Smithy RPC v2 CBOR protocol", Smithy 2.0: members go by their own names, whatever other protocols call them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from honmaru.api import cbor, timestamps
from honmaru.api.misreads import Misread, UnknownMember
from honmaru.api.models import ServiceModel

Reader = Callable[[Any], Any]
Writer = Callable[[bytearray, Any], None]

_NULL = b"\xf6"
_DOUBLE = struct.Struct(">Bd")
_SINGLE = struct.Struct(">Bf")


def parse(body: bytes) -> Any:
    """Bytes → values; an empty body is an empty structure. Raises Misread."""
    return cbor.decode(body) if body else {}


def reader(service: ServiceModel, reference: Mapping[str, Any]) -> Reader:
    """The reader of a shape reference; compiled once per service and shape."""
    name = reference["shape"]
    key = ("cbor-read", name)
    found: Reader | None = service.compiled.get(key)
    if found is None:
        cell: list[Reader] = []
        service.compiled[key] = lambda value: cell[0](value)  # what a recursive shape refers to
        found = _build_reader(service, name, service.shapes[name])
        cell.append(found)
        service.compiled[key] = found
    return found


def _build_reader(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Reader:
    kind = shape["type"]
    if kind == "structure":
        return _document if shape.get("document") else _structure_reader(service, name, shape)
    if kind == "list":
        return _list_reader(reader(service, shape["member"]))
    if kind == "map":
        return _map_reader(reader(service, shape["value"]))
    return _SCALARS[kind]


def _structure_reader(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Reader:
    members = {member: reader(service, reference) for member, reference in shape["members"].items()}

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Misread("a structure", value)
        out: dict[str, Any] = {}
        for key, item in value.items():
            if item is None:
                continue
            inner = members.get(key)
            if inner is None:
                raise UnknownMember(key, name)
            try:
                out[key] = inner(item)
            except Misread as misread:
                raise misread.inside(key) from None
        return out

    return read


def _list_reader(inner: Reader) -> Reader:
    def read(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Misread("a list", value)
        position = 0
        try:
            out = []
            for item in value:
                position += 1
                out.append(inner(item))
            return out
        except Misread as misread:
            raise misread.inside(f"{position}.member") from None

    return read


def _map_reader(inner: Reader) -> Reader:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Misread("a map", value)
        out: dict[str, Any] = {}
        for key, item in value.items():
            try:
                out[key] = inner(item)
            except Misread as misread:
                raise misread.inside(key[:128]) from None
        return out

    return read


def _document(value: Any) -> Any:
    """A document holds what JSON can hold."""
    if type(value) in (bytes, datetime):
        raise Misread("a document", value)
    for item in value.values() if type(value) is dict else value if type(value) is list else ():
        _document(item)
    return value


def _integer(bits: int) -> Reader:
    most = 1 << (bits - 1)
    expected = f"an {'Integer' if bits == 32 else 'integer'} of {bits} bits"

    def read(value: Any) -> int:
        if type(value) is not int or not -most <= value < most:
            raise Misread(expected, value)
        return value

    return read


def _read_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise Misread("a Double", value)


def _exactly(kind: type, expected: str) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise Misread(expected, value)
        return value

    return read


_SCALARS: dict[str, Reader] = {
    "string": _exactly(str, "a String"),
    "integer": _integer(32),
    "long": _integer(64),
    "float": _read_float,
    "double": _read_float,
    "boolean": _exactly(bool, "a Boolean"),
    "blob": _exactly(bytes, "bytes"),
    "timestamp": _exactly(datetime, "a timestamp (CBOR tag 1)"),
}


def writer(service: ServiceModel, reference: Mapping[str, Any]) -> Writer:
    """The writer of a shape reference; compiled once per service and shape."""
    name = reference["shape"]
    key = ("cbor-write", name)
    found: Writer | None = service.compiled.get(key)
    if found is None:
        cell: list[Writer] = []
        service.compiled[key] = lambda out, value: cell[0](out, value)
        found = _build_writer(service, name, service.shapes[name])
        cell.append(found)
        service.compiled[key] = found
    return found


def _build_writer(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Writer:
    kind = shape["type"]
    if kind == "structure":
        return write_any if shape.get("document") else _structure_writer(service, name, shape)
    if kind == "list":
        return _list_writer(writer(service, shape["member"]))
    if kind == "map":
        return _map_writer(writer(service, shape["value"]))
    return _WRITERS[kind]


def _structure_writer(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Writer:
    members = {
        member: (_text(member), writer(service, reference))
        for member, reference in shape["members"].items()
        if "location" not in reference
    }

    def write(out: bytearray, value: Mapping[str, Any]) -> None:
        out += cbor.head(cbor.MAP, sum(item is not None for item in value.values()))
        for member, item in value.items():
            if item is None:
                continue
            entry = members.get(member)
            if entry is None:
                raise TypeError(f"{name} has no member {member}")
            out += entry[0]
            entry[1](out, item)

    return write


def _list_writer(inner: Writer) -> Writer:
    def write(out: bytearray, value: Any) -> None:
        items = value if isinstance(value, list | tuple) else list(value)
        out += cbor.head(cbor.LIST, len(items))
        for item in items:
            inner(out, item)

    return write


def _map_writer(inner: Writer) -> Writer:
    def write(out: bytearray, value: Mapping[str, Any]) -> None:
        kept = {key: item for key, item in value.items() if item is not None}
        out += cbor.head(cbor.MAP, len(kept))
        for key, item in kept.items():
            out += _text(key)
            inner(out, item)

    return write


def _text(value: str) -> bytes:
    raw = value.encode()
    return cbor.head(cbor.TEXT, len(raw)) + raw


def _write_text(out: bytearray, value: str) -> None:
    out += _text(value)


def _write_bytes(out: bytearray, value: bytes | str) -> None:
    raw = value.encode() if isinstance(value, str) else bytes(value)
    out += cbor.head(cbor.BYTES, len(raw))
    out += raw


def _write_integer(out: bytearray, value: int) -> None:
    out += cbor.head(cbor.UNSIGNED, value) if value >= 0 else cbor.head(cbor.NEGATIVE, -1 - value)


def _write_double(out: bytearray, value: float) -> None:
    out += _DOUBLE.pack(0xFB, value)


def _write_single(out: bytearray, value: float) -> None:
    try:
        out += _SINGLE.pack(0xFA, value)
    except OverflowError:
        out += _SINGLE.pack(0xFA, math.copysign(math.inf, value))


def _write_boolean(out: bytearray, value: bool) -> None:
    out.append(0xF5 if value else 0xF4)


def _write_timestamp(out: bytearray, value: datetime) -> None:
    out += cbor.head(cbor.TAG, 1)
    seconds = timestamps.write_unix(value)
    if isinstance(seconds, int):
        _write_integer(out, seconds)
    else:
        _write_double(out, seconds)


_WRITERS: dict[str, Writer] = {
    "string": _write_text,
    "integer": _write_integer,
    "long": _write_integer,
    "float": _write_single,
    "double": _write_double,
    "boolean": _write_boolean,
    "blob": _write_bytes,
    "timestamp": _write_timestamp,
}


def write_any(out: bytearray, value: Any) -> None:
    """Writes a value by its own type: documents, and the members of errors."""
    if value is None:
        out += _NULL
    elif isinstance(value, bool):
        _write_boolean(out, value)
    elif isinstance(value, int):
        _write_integer(out, value)
    elif isinstance(value, float):
        _write_double(out, value)
    elif isinstance(value, str):
        _write_text(out, value)
    elif isinstance(value, bytes):
        _write_bytes(out, value)
    elif isinstance(value, datetime):
        _write_timestamp(out, value)
    elif isinstance(value, Mapping):
        _map_writer(write_any)(out, value)
    elif isinstance(value, list | tuple):
        _list_writer(write_any)(out, value)
    else:
        raise TypeError(f"CBOR cannot hold a {type(value).__name__}")
