"""AWS event stream framing: frames to bytes and bytes to frames.

A frame is [total u32][headers length u32][CRC32 of these 8 bytes][headers][payload][CRC32 of everything before].

Invariants:
- A decoded frame has passed both checksums; a frame over MAX_FRAME_BYTES is refused before it is buffered.
Source: Smithy "Amazon Event Stream specification"; tested against botocore.eventstream.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

from honmaru.api.misreads import Misread

MAX_FRAME_BYTES = 16 << 20
MAX_HEADERS_BYTES = 128 << 10

_PRELUDE = struct.Struct(">II")
_U32 = struct.Struct(">I")
_U16 = struct.Struct(">H")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Frame:
    headers: Mapping[str, Any]
    payload: bytes
    raw_headers: bytes = b""
    """The encoded headers, which event signatures cover."""


def encode(headers: Mapping[str, Any], payload: bytes) -> bytes:
    """One frame. Header values are str, bool, int (32 bits), bytes or datetime (milliseconds)."""
    packed = encode_headers(headers)
    prelude = _PRELUDE.pack(16 + len(packed) + len(payload), len(packed))
    body = b"".join((prelude, _U32.pack(crc32(prelude)), packed, payload))
    return body + _U32.pack(crc32(body))


def encode_headers(headers: Mapping[str, Any]) -> bytes:
    parts = []
    for name, value in headers.items():
        raw_name = name.encode()
        parts.append(bytes((len(raw_name),)) + raw_name)
        if value is True or value is False:
            parts.append(b"\x00" if value else b"\x01")
        elif isinstance(value, str):
            raw = value.encode()
            parts.append(b"\x07" + _U16.pack(len(raw)) + raw)
        elif isinstance(value, int):
            parts.append(b"\x04" + struct.pack(">i", value))
        elif isinstance(value, bytes):
            parts.append(b"\x06" + _U16.pack(len(value)) + value)
        else:
            parts.append(b"\x08" + struct.pack(">q", round((value - _EPOCH) / timedelta(milliseconds=1))))
    return b"".join(parts)


class Decoder:
    """Bytes in, frames out. `feed` raises Misread for a malformed frame, after which the decoder is useless."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Every frame that `data` completes."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= 12:
            total, headers_length = _PRELUDE.unpack_from(self._buffer)
            if _U32.unpack_from(self._buffer, 8)[0] != crc32(self._buffer[:8]):
                raise Misread("an event stream frame whose prelude checksum is right", None)
            if total > MAX_FRAME_BYTES or headers_length > MAX_HEADERS_BYTES or total < 16 + headers_length:
                raise Misread(f"an event stream frame of at most {MAX_FRAME_BYTES} bytes", None)
            if len(self._buffer) < total:
                break
            raw = bytes(self._buffer[:total])
            del self._buffer[:total]
            if _U32.unpack_from(raw, total - 4)[0] != crc32(raw[:-4]):
                raise Misread("an event stream frame whose checksum is right", None)
            raw_headers = raw[12 : 12 + headers_length]
            frames.append(Frame(decode_headers(raw_headers), raw[12 + headers_length : -4], raw_headers))
        return frames

    def close(self) -> None:
        """Raises Misread when the stream ended inside a frame."""
        if self._buffer:
            raise Misread("an event stream that ends with a whole frame", None)


_FIXED = {2: ">b", 3: ">h", 4: ">i", 5: ">q"}


def decode_headers(raw: bytes) -> dict[str, Any]:
    """Encoded headers → values. Raises Misread."""
    out: dict[str, Any] = {}
    at = 0
    try:
        while at < len(raw):
            length = raw[at]
            name = raw[at + 1 : at + 1 + length].decode()
            at += 1 + length
            kind = raw[at]
            at += 1
            if name in out or not length:
                raise Misread("event stream headers with distinct names", None)
            if kind in (0, 1):
                out[name] = kind == 0
            elif kind in _FIXED:
                out[name] = struct.unpack_from(_FIXED[kind], raw, at)[0]
                at += struct.calcsize(_FIXED[kind])
            elif kind in (6, 7):
                size = _U16.unpack_from(raw, at)[0]
                value = raw[at + 2 : at + 2 + size]
                if len(value) != size:
                    raise Misread("event stream headers that end inside the frame", None)
                out[name] = value if kind == 6 else value.decode()
                at += 2 + size
            elif kind == 8:
                out[name] = _EPOCH + timedelta(milliseconds=struct.unpack_from(">q", raw, at)[0])
                at += 8
            elif kind == 9:
                if at + 16 > len(raw):
                    raise Misread("event stream headers that end inside the frame", None)
                out[name] = raw[at : at + 16]
                at += 16
            else:
                raise Misread("event stream headers of known types", None)
    except (IndexError, struct.error, UnicodeDecodeError, OverflowError):
        raise Misread("well-formed event stream headers", None) from None
    return out
