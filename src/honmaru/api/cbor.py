"""CBOR values to bytes and back, only what smithy's RPC v2 CBOR protocol uses of RFC 8949.

    decode   bytes → None, bool, int, float, str, bytes, list, dict and (tag 1) aware datetimes
    head     the first bytes of an item, for writers

Invariants:
- Nothing is allocated for a length that the remaining bytes cannot hold; depth and number of items are limited.
- Keys of a map are distinct texts; texts are UTF-8; no tag but 1 (seconds since 1970) and no simple value but false,
  true, null and undefined (read as null) is taken; bytes after the item are refused.
- Items of indefinite length are read within the same limits; they are never written.

Source: RFC 8949; "Smithy RPC v2 CBOR protocol", Smithy 2.0. Tested against botocore's writer and reader.
"""

from __future__ import annotations

import struct
from typing import Any

from honmaru.api import timestamps
from honmaru.api.misreads import Misread

MAX_DEPTH = 100
"""Nesting of maps, lists and tags in one body, as for JSON."""
MAX_ITEMS = 400_000
"""Items (values and keys) in one body."""

UNSIGNED, NEGATIVE, BYTES, TEXT, LIST, MAP, TAG = range(7)
_BREAK = 0xFF
_INDEFINITE = 31
_SIMPLE: dict[int, bool | None] = {20: False, 21: True, 22: None, 23: None}
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}


def decode(body: bytes) -> Any:
    """The one item that `body` holds. Raises Misread."""
    reader = _Reader(body)
    try:
        value = reader.item(0)
    except (IndexError, struct.error):
        raise Misread("a whole CBOR item", None) from None
    except UnicodeDecodeError:
        raise Misread("CBOR text in UTF-8", None) from None
    if reader.at != len(body):
        raise Misread("one CBOR item and nothing behind it", None)
    return value


def head(major: int, value: int) -> bytes:
    """The initial bytes of an item: a number, a length, a tag; in the shortest form."""
    kind = major << 5
    if value < 24:
        return bytes((kind | value,))
    if value < 1 << 8:
        return bytes((kind | 24, value))
    if value < 1 << 16:
        return bytes((kind | 25,)) + value.to_bytes(2)
    if value < 1 << 32:
        return bytes((kind | 26,)) + value.to_bytes(4)
    return bytes((kind | 27,)) + value.to_bytes(8)


class _Reader:
    __slots__ = ("at", "body", "items")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0
        self.items = 0

    def item(self, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS or depth > MAX_DEPTH:
            raise Misread(f"at most {MAX_ITEMS} CBOR items, {MAX_DEPTH} levels deep", None)
        initial = self.body[self.at]
        self.at += 1
        major, low = initial >> 5, initial & 0x1F
        if major == TEXT:
            return str(self._string(TEXT, low), "utf-8")
        if major == UNSIGNED:
            return self._number(low)
        if major == NEGATIVE:
            return -1 - self._number(low)
        if major == MAP:
            return self._map(low, depth)
        if major == LIST:
            return self._list(low, depth)
        if major == BYTES:
            return self._string(BYTES, low)
        if major == TAG:
            return self._moment(low, depth)
        return self._simple(low)

    def _number(self, low: int) -> int:
        if low < 24:
            return low
        if low > 27:
            raise Misread("CBOR without reserved lengths", None)
        return int.from_bytes(self._take(1 << (low - 24)))

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.body):
            raise Misread("a whole CBOR item", None)
        piece = self.body[self.at : end]
        self.at = end
        return piece

    def _string(self, major: int, low: int) -> bytes:
        if low != _INDEFINITE:
            return self._take(self._number(low))
        pieces = []
        while (initial := self.body[self.at]) != _BREAK:
            self.items += 1
            if initial >> 5 != major or initial & 0x1F == _INDEFINITE or self.items > MAX_ITEMS:
                raise Misread("CBOR strings in pieces of their own kind", None)
            self.at += 1
            piece = self._take(self._number(initial & 0x1F))
            if major == TEXT:
                piece.decode()  # each piece is UTF-8 by itself
            pieces.append(piece)
        self.at += 1
        return b"".join(pieces)

    def _length(self, low: int, each: int) -> int:
        """The number of elements, of at least `each` bytes; -1 when it is indefinite."""
        if low == _INDEFINITE:
            return -1
        count = self._number(low)
        if count * each > len(self.body) - self.at:
            raise Misread("a whole CBOR item", None)
        return count

    def _more(self, left: int) -> bool:
        if left >= 0:
            return left > 0
        if self.body[self.at] != _BREAK:
            return True
        self.at += 1
        return False

    def _list(self, low: int, depth: int) -> list[Any]:
        left = self._length(low, 1)
        out: list[Any] = []
        while self._more(left):
            out.append(self.item(depth + 1))
            if left > 0:
                left -= 1
        return out

    def _map(self, low: int, depth: int) -> dict[str, Any]:
        left = self._length(low, 2)
        out: dict[str, Any] = {}
        while self._more(left):
            if self.body[self.at] >> 5 != TEXT:
                raise Misread("CBOR maps whose keys are texts", None)
            key = self.item(depth + 1)
            if key in out:
                raise Misread("CBOR maps with distinct keys", None, key[:128])
            out[key] = self.item(depth + 1)
            if left > 0:
                left -= 1
        return out

    def _moment(self, low: int, depth: int) -> Any:
        if self._number(low) != 1:
            raise Misread("no CBOR tag but 1, seconds since 1970", None)
        if self.body[self.at] >> 5 not in (UNSIGNED, NEGATIVE, 7):
            raise Misread("a number of seconds since 1970", None)
        return timestamps.read_unix(self.item(depth + 1))

    def _simple(self, low: int) -> bool | float | None:
        form = _FLOATS.get(low)
        if form is not None:
            value: float = form.unpack_from(self.body, self.at)[0]
            self.at += form.size
            return value
        try:
            return _SIMPLE[low]
        except KeyError:
            raise Misread("CBOR's false, true, null or a float", None) from None
