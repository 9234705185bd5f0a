"""Scalars as text: in forms, XML elements, headers, query strings and path labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from honmaru.api import timestamps
from honmaru.api.json_codec import read_base64, write_base64
from honmaru.api.misreads import Misread

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def text_reader(shape: Mapping[str, Any], timestamp_format: str) -> Callable[[str], Any] | None:
    """The reader of a scalar shape from text, None for strings."""
    kind = shape["type"]
    if kind == "timestamp":
        return timestamps.TEXT_READERS[shape.get("timestampFormat", timestamp_format)]
    return _READERS.get(kind)


def text_writer(shape: Mapping[str, Any], timestamp_format: str) -> Callable[[Any], str]:
    """The writer of a scalar shape to text."""
    kind = shape["type"]
    if kind == "timestamp":
        return timestamps.TEXT_WRITERS[shape.get("timestampFormat", timestamp_format)]
    return _WRITERS.get(kind, str)


def _read_integer(text: str) -> int:
    if _INTEGER.fullmatch(text):
        value = int(text)
        if -(2**31) <= value < 2**31:
            return value
    raise Misread("an Integer of 32 bits", text)


def _read_long(text: str) -> int:
    if _INTEGER.fullmatch(text):
        value = int(text)
        if -(2**63) <= value < 2**63:
            return value
    raise Misread("a Long of 64 bits", text)


def _read_float(text: str) -> float:
    if text in ("NaN", "Infinity", "-Infinity") or (len(text) < 400 and _FLOAT.fullmatch(text)):
        return float(text)
    raise Misread("a Double", text)


def _read_boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered == "true":
        return True
    if lowered == "false":
        return False
    raise Misread("true or false", text)


def _write_boolean(value: bool) -> str:
    return "true" if value else "false"


_READERS: dict[str, Callable[[str], Any]] = {
    "integer": _read_integer,
    "long": _read_long,
    "float": _read_float,
    "double": _read_float,
    "boolean": _read_boolean,
    "blob": read_base64,
}
_WRITERS: dict[str, Callable[[Any], str]] = {"boolean": _write_boolean, "blob": write_base64}
