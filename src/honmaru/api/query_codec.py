"""Readers of form-encoded requests (protocol query), compiled from shapes. Answers are XML: see `xml_codec`.

Invariants:
- At most MAX_FIELDS fields, MAX_DEPTH name parts and MAX_NODES structures; percent-encoding must be complete and UTF-8.
- A field that the model does not have, that is given twice, or that is both a value and a prefix is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from honmaru.api.misreads import Misread, UnknownMember
from honmaru.api.models import ServiceModel
from honmaru.api.text_scalars import text_reader

Tree = dict[str, Any]
"""Name part → text or subtree."""

MAX_FIELDS = 20_000
MAX_DEPTH = 48
MAX_NODES = 100_000
"""Structures, lists and maps that the names of one form may spell."""

_Reader = Callable[[Any], Any]


def fields(body: bytes) -> dict[str, str]:
    """`a=1&b=2` → {"a": "1", "b": "2"}, order kept. Raises Misread."""
    out: dict[str, str] = {}
    if not body:
        return out
    pairs = body.split(b"&")
    if len(pairs) > MAX_FIELDS:
        raise Misread(f"at most {MAX_FIELDS} form fields", None)
    for pair in pairs:
        if not pair:
            continue
        name, _, value = pair.partition(b"=")
        key = decode(name)
        if key in out:
            raise Misread("each form field once", None, key[:128])
        out[key] = decode(value)
    return out


def decode(raw: bytes) -> str:
    """One percent-encoded form or query-string part → text; `+` is a space. Raises Misread for what is not UTF-8."""
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    try:
        return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8")
    except UnicodeDecodeError:
        raise Misread("UTF-8", None) from None


def tree(flat: Mapping[str, str]) -> Tree:
    """`{"Tags.member.1.Key": "a"}` → nested dicts. Raises Misread."""
    root: Tree = {}
    nodes = 0
    for name, value in flat.items():
        if "." not in name:
            if name in root:
                raise Misread("a field that is either a value or a prefix", value, name[:128])
            root[name] = value
            continue
        parts = name.split(".")
        if len(parts) > MAX_DEPTH:
            raise Misread(f"at most {MAX_DEPTH} name parts", value, name[:128])
        node = root
        for part in parts[:-1]:
            below = node.get(part)
            if below is None:
                nodes += 1
                if nodes > MAX_NODES:
                    raise Misread(f"at most {MAX_NODES} structures and lists", None)
                below = node[part] = {}
            elif type(below) is not dict:
                raise Misread("a field that is either a value or a prefix", value, name[:128])
            node = below
        if parts[-1] in node:
            raise Misread("a field that is either a value or a prefix", value, name[:128])
        node[parts[-1]] = value
    return root


def reader(service: ServiceModel, reference: Mapping[str, Any]) -> _Reader:
    """The reader of a shape reference from a (sub)tree; compiled once per shape and wire traits."""
    name = reference["shape"]
    shape = service.shapes[name]
    flattened = bool(reference.get("flattened") or shape.get("flattened"))
    key = ("query-flat" if flattened else "query", name)
    found: _Reader | None = service.compiled.get(key)
    if found is None:
        cell: list[_Reader] = []
        service.compiled[key] = lambda value: cell[0](value)
        found = _build(service, name, shape, flattened)
        cell.append(found)
        service.compiled[key] = found
    return found


def _build(service: ServiceModel, name: str, shape: Mapping[str, Any], flattened: bool) -> _Reader:
    kind = shape["type"]
    if kind == "structure":
        return _structure(service, name, shape)
    if kind == "list":
        return _list(service, shape, flattened)
    if kind == "map":
        return _map(service, shape, flattened)
    inner = text_reader(shape, "iso8601")

    def read(value: Any) -> Any:
        if type(value) is not str:
            raise Misread("a value, not a structure", value)
        return value if inner is None else inner(value)

    return read


def _structure(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> _Reader:
    members: dict[str, tuple[str, _Reader]] = {}
    for member, reference in shape["members"].items():
        wire = reference.get("locationName", member)
        target = service.shapes[reference["shape"]]
        if target["type"] == "list" and (reference.get("flattened") or target.get("flattened")):
            wire = target["member"].get("locationName", wire)
        members[wire] = (member, reader(service, reference))

    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Misread("a structure", value)
        out: dict[str, Any] = {}
        for key, item in value.items():
            entry = members.get(key)
            if entry is None:
                raise UnknownMember(key, name)
            member, inner = entry
            try:
                out[member] = inner(item)
            except Misread as misread:
                raise misread.inside(member) from None
        return out

    return read


def _indexed(value: Tree) -> list[Any]:
    """`{"1": a, "2": b}` → [a, b]; the numbers must be 1, 2, 3 … without a gap."""
    out = []
    for position in range(1, len(value) + 1):
        try:
            out.append(value[str(position)])
        except KeyError:
            raise Misread("members numbered from 1 without a gap", value) from None
    return out


def _list(service: ServiceModel, shape: Mapping[str, Any], flattened: bool) -> _Reader:
    inner = reader(service, shape["member"])
    element = shape["member"].get("locationName", "member")

    def read(value: Any) -> list[Any]:
        if value == "":
            return []
        if not flattened and type(value) is dict and len(value) == 1:
            value = value.get(element, value.get("member"))
        if type(value) is not dict:
            raise Misread("a list", value)
        out = []
        for item in _indexed(value):
            try:
                out.append(inner(item))
            except Misread as misread:
                raise misread.inside(f"{len(out) + 1}.member") from None
        return out

    return read


def _map(service: ServiceModel, shape: Mapping[str, Any], flattened: bool) -> _Reader:
    of_key = reader(service, shape["key"])
    of_value = reader(service, shape["value"])
    key_name = shape["key"].get("locationName", "key")
    value_name = shape["value"].get("locationName", "value")

    def read(value: Any) -> dict[Any, Any]:
        if value == "":
            return {}
        if not flattened and type(value) is dict and len(value) == 1:
            value = value.get("entry")
        if type(value) is not dict:
            raise Misread("a map", value)
        out: dict[Any, Any] = {}
        for entry in _indexed(value):
            if type(entry) is not dict or entry.keys() != {key_name, value_name}:
                raise Misread("a map entry of key and value", entry)
            out[of_key(entry[key_name])] = of_value(entry[value_name])
        return out

    return read
