"""Readers and writers of XML bodies (rest-xml requests and answers, query answers), compiled from shapes.

Invariants:
- A document with a DTD, an entity declaration or a processing instruction is refused before anything of it is used
  (no entity expansion, no external reference is ever resolved). Depth and number of elements are limited.
- An element that the model does not have is refused; text between elements of a structure is refused.
- A writer leaves out members that are None, and raises TypeError for members that the model does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from xml.parsers import expat

from honmaru.api.misreads import Misread, UnknownMember
from honmaru.api.models import ServiceModel
from honmaru.api.text_scalars import text_reader, text_writer

MAX_DEPTH = 48
MAX_ELEMENTS = 200_000


class Element:
    """A parsed element: local name, attributes by local name, children, text."""

    __slots__ = ("attributes", "children", "name", "text")

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.attributes = attributes
        self.children: list[Element] = []
        self.text = ""


_Reader = Callable[[list[Element]], Any]
_Writer = Callable[[list[str], str, Any], None]


def parse(body: bytes) -> Element:
    """Bytes → the root element. Raises Misread."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    stack: list[Element] = [Element("", {})]
    pieces: list[list[str]] = [[]]
    count = 0

    def refuse(*_: object) -> None:
        raise Misread("XML without DTD, entities or processing instructions", None)

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS or len(stack) > MAX_DEPTH:
            raise Misread(f"at most {MAX_ELEMENTS} elements, {MAX_DEPTH} levels deep", None)
        element = Element(_local(name), {_local(key): value for key, value in attributes.items()})
        stack[-1].children.append(element)
        stack.append(element)
        pieces.append([])

    def end(_: str) -> None:
        element = stack.pop()
        element.text = "".join(pieces.pop())

    def text(data: str) -> None:
        pieces[-1].append(data)  # joined once: text between a hundred thousand elements must not be copied for each

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ProcessingInstructionHandler = refuse
    parser.ExternalEntityRefHandler = refuse  # type: ignore[assignment]
    parser.SkippedEntityHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError):
        raise Misread("well-formed XML", None) from None
    return stack[0].children[0]


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def reader(service: ServiceModel, reference: Mapping[str, Any]) -> _Reader:
    """The reader of a shape reference from all elements of its name; compiled once per shape and wire traits."""
    name = reference["shape"]
    shape = service.shapes[name]
    flattened = bool(reference.get("flattened") or shape.get("flattened"))
    key = ("xml-read-flat" if flattened else "xml-read", name)
    found: _Reader | None = service.compiled.get(key)
    if found is None:
        cell: list[_Reader] = []
        service.compiled[key] = lambda elements: cell[0](elements)
        found = _build_reader(service, name, shape, flattened)
        cell.append(found)
        service.compiled[key] = found
    return found


def _single(elements: list[Element]) -> Element:
    if len(elements) != 1:
        raise Misread("each element once", None)
    return elements[0]


def _build_reader(service: ServiceModel, name: str, shape: Mapping[str, Any], flattened: bool) -> _Reader:
    kind = shape["type"]
    if kind == "structure":
        return _structure_reader(service, name, shape)
    if kind == "list":
        return _list_reader(service, shape, flattened)
    if kind == "map":
        return _map_reader(service, shape, flattened)
    inner = text_reader(shape, "iso8601")

    def read(elements: list[Element]) -> Any:
        element = _single(elements)
        if element.children:
            raise Misread("text without elements inside", None)
        return element.text if inner is None else inner(element.text.strip())

    return read


def _structure_reader(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> _Reader:
    members: dict[str, tuple[str, _Reader]] = {}
    attributes: dict[str, str] = {}
    for member, reference in shape["members"].items():
        if "location" in reference:
            continue
        if reference.get("xmlAttribute"):
            attributes[reference["locationName"].rpartition(":")[2]] = member
            continue
        members[_wire_name(service, member, reference)] = (member, reader(service, reference))

    def read(elements: list[Element]) -> dict[str, Any]:
        element = _single(elements)
        if element.text and not element.text.isspace():
            raise Misread("no text between elements", None)
        out: dict[str, Any] = {}
        for attribute, value in element.attributes.items():
            if attribute in attributes:
                out[attributes[attribute]] = value
        grouped: dict[str, list[Element]] = {}
        for child in element.children:
            grouped.setdefault(child.name, []).append(child)
        for wire, found in grouped.items():
            entry = members.get(wire)
            if entry is None:
                raise UnknownMember(wire, name)
            member, inner = entry
            try:
                out[member] = inner(found)
            except Misread as misread:
                raise misread.inside(member) from None
        return out

    return read


def _wire_name(service: ServiceModel, member: str, reference: Mapping[str, Any]) -> str:
    """The element name of a member; a flattened list may name it at its member (as botocore reads and writes it)."""
    shape = service.shapes[reference["shape"]]
    name: str = reference.get("locationName", member)
    if shape["type"] == "list" and (reference.get("flattened") or shape.get("flattened")):
        name = reference.get("locationName") or shape["member"].get("locationName", member)
    return name


def _list_reader(service: ServiceModel, shape: Mapping[str, Any], flattened: bool) -> _Reader:
    inner = reader(service, shape["member"])
    name = shape["member"].get("locationName", "member")

    def read(elements: list[Element]) -> list[Any]:
        items = elements
        if not flattened:
            items = _single(elements).children
            for item in items:
                if item.name != name:
                    raise UnknownMember(item.name, f"a list of {name}")
        out = []
        for item in items:
            try:
                out.append(inner([item]))
            except Misread as misread:
                raise misread.inside(f"{len(out) + 1}.member") from None
        return out

    return read


def _map_reader(service: ServiceModel, shape: Mapping[str, Any], flattened: bool) -> _Reader:
    of_key = reader(service, shape["key"])
    of_value = reader(service, shape["value"])
    key_name = shape["key"].get("locationName", "key")
    value_name = shape["value"].get("locationName", "value")

    def read(elements: list[Element]) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for entry in elements if flattened else _single(elements).children:
            found = {child.name: child for child in entry.children}
            if found.keys() != {key_name, value_name}:
                raise Misread("a map entry of key and value", None)
            out[of_key([found[key_name]])] = of_value([found[value_name]])
        return out

    return read


_ESCAPED = re.compile('[&<>"\x00-\x1f\x7f\ufffe\uffff]')
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def escape(text: str) -> str:
    """Text for an element or attribute. Control characters become character references, as S3 writes them."""
    return _ESCAPED.sub(lambda match: _NAMED.get(match[0]) or f"&#x{ord(match[0]):x};", text)


def writer(service: ServiceModel, reference: Mapping[str, Any]) -> _Writer:
    """The writer of a shape reference: (parts, element name, value) → appends to parts."""
    name = reference["shape"]
    shape = service.shapes[name]
    flattened = bool(reference.get("flattened") or shape.get("flattened"))
    key = ("xml-write-flat" if flattened else "xml-write", name)
    found: _Writer | None = service.compiled.get(key)
    if found is None:
        cell: list[_Writer] = []
        service.compiled[key] = lambda parts, element, value: cell[0](parts, element, value)
        found = _build_writer(service, name, shape, flattened)
        cell.append(found)
        service.compiled[key] = found
    return found


def _build_writer(service: ServiceModel, name: str, shape: Mapping[str, Any], flattened: bool) -> _Writer:
    kind = shape["type"]
    if kind == "structure":
        return _structure_writer(service, name, shape)
    if kind == "list":
        return _list_writer(service, shape, flattened)
    if kind == "map":
        return _map_writer(service, shape, flattened)
    if kind == "string":

        def write_text(parts: list[str], element: str, value: Any) -> None:
            parts.append(f"<{element}>{escape(value)}</{element}>")

        return write_text
    inner = text_writer(shape, "iso8601")

    def write(parts: list[str], element: str, value: Any) -> None:
        parts.append(f"<{element}>{inner(value)}</{element}>")

    return write


def members_writer(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> Callable[[list[str], Any], None]:
    """The writer of a structure's body members without an element around them."""
    members: dict[str, tuple[str, _Writer]] = {
        member: (_wire_name(service, member, reference), writer(service, reference))
        for member, reference in shape["members"].items()
        if "location" not in reference and not reference.get("xmlAttribute")
    }

    def write(parts: list[str], value: Any) -> None:
        for member, item in value.items():
            if item is None:
                continue
            entry = members.get(member)
            if entry is None:
                raise TypeError(f"{name} has no member {member}")
            entry[1](parts, entry[0], item)

    return write


def _structure_writer(service: ServiceModel, name: str, shape: Mapping[str, Any]) -> _Writer:
    attributes = {
        member: reference["locationName"]
        for member, reference in shape["members"].items()
        if reference.get("xmlAttribute")
    }
    inside = members_writer(service, name, shape)
    namespace = shape.get("xmlNamespace")
    declared = f' xmlns:{namespace["prefix"]}="{namespace["uri"]}"' if namespace and "prefix" in namespace else ""

    def write(parts: list[str], element: str, value: Any) -> None:
        opening = f"<{element}{declared}"
        if attributes:
            for member, attribute in attributes.items():
                if value.get(member) is not None:
                    opening += f' {attribute}="{escape(value[member])}"'
            value = {member: item for member, item in value.items() if member not in attributes}
        parts.append(f"{opening}>")
        inside(parts, value)
        parts.append(f"</{element}>")

    return write


def _list_writer(service: ServiceModel, shape: Mapping[str, Any], flattened: bool) -> _Writer:
    inner = writer(service, shape["member"])
    name = shape["member"].get("locationName", "member")

    def write(parts: list[str], element: str, value: Any) -> None:
        if flattened:
            for item in value:
                inner(parts, element, item)
            return
        parts.append(f"<{element}>")
        for item in value:
            inner(parts, name, item)
        parts.append(f"</{element}>")

    return write


def _map_writer(service: ServiceModel, shape: Mapping[str, Any], flattened: bool) -> _Writer:
    of_key = writer(service, shape["key"])
    of_value = writer(service, shape["value"])
    key_name = shape["key"].get("locationName", "key")
    value_name = shape["value"].get("locationName", "value")

    def write(parts: list[str], element: str, value: Any) -> None:
        wrapper = element if flattened else "entry"
        if not flattened:
            parts.append(f"<{element}>")
        for key, item in value.items():
            parts.append(f"<{wrapper}>")
            of_key(parts, key_name, key)
            of_value(parts, value_name, item)
            parts.append(f"</{wrapper}>")
        if not flattened:
            parts.append(f"</{element}>")

    return write
