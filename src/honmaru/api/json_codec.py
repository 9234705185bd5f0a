"""Readers and writers of JSON bodies (protocols json 1.0, json 1.1 and rest-json), compiled from shapes.

Invariants:
- A reader accepts exactly the modelled types; nothing is converted silently. null means absent.
- A member that the model does not have is refused (see `misreads.UnknownMember`).
- A writer leaves out members that are None, and raises TypeError for members that the model does not have.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from honmaru.api import timestamps
from honmaru.api.misreads import Misread, UnknownMember
from honmaru.api.models import ServiceModel

Reader = Callable[[Any], Any]
Writer = Callable[[Any], Any]

MAX_DEPTH = 100
"""Nesting of objects and lists in one body."""
MAX_CONTAINERS = 1_000_000
"""Objects and lists in one body (brackets inside texts are counted too): an empty list takes twenty times its bytes."""


def parse(body: bytes) -> Any:
    """Bytes → JSON values, at most MAX_DEPTH deep. Raises Misread."""
    if len(body) > MAX_CONTAINERS and body.count(b"{") + body.count(b"[") > MAX_CONTAINERS:
        raise Misread(f"at most {MAX_CONTAINERS} objects and lists", None)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Misread("valid JSON in UTF-8", body) from None
    check_depth(body, value)
    return value


def check_depth(body: bytes, value: Any) -> None:
    """Raises Misread when `value`, parsed from `body`, is nested deeper than MAX_DEPTH."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    level = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise Misread(f"at most {MAX_DEPTH} levels of nesting", value)
        deeper: list[Any] = []
        for item in level:
            if type(item) is dict:
                deeper.extend(item.values())
            elif type(item) is list:
                deeper.extend(item)
        level = deeper


def reader(service: ServiceModel, reference: Mapping[str, Any]) -> Reader:
    """The reader of a shape reference; compiled once per service and shape."""
    return _compiled(service, "json-read", reference["shape"], _build_reader)


def writer(service: ServiceModel, reference: Mapping[str, Any]) -> Writer | None:
    """The writer of a shape reference, None where values go out as they are."""
    shape = service.shapes[reference["shape"]]
    if shape["type"] in ("string", "integer", "long", "boolean") or shape.get("document"):
        return None
    return _compiled(service, "json-write", reference["shape"], _build_writer)


_Build = Callable[[ServiceModel, str, Mapping[str, Any]], Callable[[Any], Any]]


def _compiled(service: ServiceModel, kind: str, name: str, build: _Build) -> Callable[[Any], Any]:
    key = (kind, name)
    found: Callable[[Any], Any] | None = service.compiled.get(key)
    if found is None:
        cell: list[Callable[[Any], Any]] = []
        service.compiled[key] = lambda value: cell[0](value)  # what a recursive shape refers to
        found = build(service, name, service.shapes[name])
        cell.append(found)
        service.compiled[key] = found
    return found


def _build_reader(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Reader:
    kind = shape["type"]
    if shape.get("document"):
        return lambda value: value
    if kind == "structure":
        return _structure_reader(service, name, shape)
    if kind == "list":
        return _list_reader(reader(service, shape["member"]))
    if kind == "map":
        return _map_reader(reader(service, shape["value"]))
    if kind == "timestamp":
        return timestamps.READERS[shape.get("timestampFormat", "unixTimestamp")]
    return _SCALARS[kind]


def _structure_reader(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Reader:
    members: dict[str, tuple[str, Reader | None]] = {}
    for member, reference in shape["members"].items():
        if "location" in reference:
            continue
        plain = service.shapes[reference["shape"]]["type"] == "string"
        members[reference.get("locationName", member)] = (member, None if plain else reader(service, reference))

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Misread("a structure", value)
        out: dict[str, Any] = {}
        for key, item in value.items():
            entry = members.get(key)
            if entry is None:
                if item is None:
                    continue
                raise UnknownMember(key, name)
            if item is None:
                continue
            member, inner = entry
            if inner is None:
                if type(item) is not str:
                    raise Misread("a String", item, member)
                out[member] = item
                continue
            try:
                out[member] = inner(item)
            except Misread as misread:
                raise misread.inside(member) from None
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


def _read_string(value: Any) -> str:
    if type(value) is not str:
        raise Misread("a String", value)
    return value


def _read_integer(value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise Misread("an Integer of 32 bits", value)
    return value


def _read_long(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise Misread("a Long of 64 bits", value)
    return value


def _read_float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    elif value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    raise Misread("a Double", value)


def _read_boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise Misread("a Boolean", value)
    return value


def read_base64(value: Any) -> bytes:
    """Base64 text → bytes. Raises Misread."""
    if type(value) is not str:
        raise Misread("a Base64 String", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Misread("valid Base64", value) from None


_SCALARS: dict[str, Reader] = {
    "string": _read_string,
    "integer": _read_integer,
    "long": _read_long,
    "float": _read_float,
    "double": _read_float,
    "boolean": _read_boolean,
    "blob": read_base64,
}


def _build_writer(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Writer:
    kind = shape["type"]
    if kind == "structure":
        return structure_writer(service, name, shape)
    if kind == "list":
        inner = writer(service, shape["member"])
        return list if inner is None else lambda value: [inner(item) for item in value]
    if kind == "map":
        of_value = writer(service, shape["value"])
        if of_value is None:
            return dict
        return lambda value: {key: of_value(item) for key, item in value.items() if item is not None}
    if kind == "timestamp":
        return timestamps.WRITERS[shape.get("timestampFormat", "unixTimestamp")]
    if kind == "blob":
        return write_base64
    return _write_float


def structure_writer(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Writer:
    """The writer of a structure's body members (those without a location)."""
    members: dict[str, tuple[str, Writer | None]] = {
        member: (reference.get("locationName", member), writer(service, reference))
        for member, reference in shape["members"].items()
        if "location" not in reference
    }

    def write(value: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for member, item in value.items():
            if item is None:
                continue
            entry = members.get(member)
            if entry is None:
                raise TypeError(f"{name} has no member {member}")
            key, inner = entry
            out[key] = item if inner is None else inner(item)
        return out

    return write


def write_base64(value: bytes | str) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode("ascii")


def _write_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
