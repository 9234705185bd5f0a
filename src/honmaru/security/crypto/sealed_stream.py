"""A long stream of bytes under one key and in constant memory: what a backup is written in (STREAM construction).

    segment 0 | segment 1 | ...     each at most 1 MiB of plain bytes, AES-256-GCM, tag of 16 bytes

Invariants:
- One key seals one stream. Segment i has nonce (i, last?) and the stream's header as associated data, so nonces never
  repeat, and a segment that is changed, moved, missing or foreign does not open.
- A stream that was cut at a segment's border is found: its end is not marked as the end.

Source: Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance".
"""

from __future__ import annotations

from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from honmaru.core.errors import IntegrityFault

SEGMENT_BYTES = 1 << 20
_TAG = 16


class SealingWriter:
    """Writes plain bytes sealed; `close` marks the end, without which nothing opens the stream."""

    def __init__(self, file: BinaryIO, key: bytes, header: bytes) -> None:
        self._file = file
        self._key = AESGCM(key)
        self._header = header
        self._buffer = bytearray()
        self._index = 0

    def write(self, content: bytes) -> None:
        self._buffer += content
        while len(self._buffer) > SEGMENT_BYTES:
            self._seal(bytes(memoryview(self._buffer)[:SEGMENT_BYTES]), last=False)
            del self._buffer[:SEGMENT_BYTES]

    def close(self) -> None:
        self._seal(bytes(self._buffer), last=True)

    def _seal(self, content: bytes, *, last: bool) -> None:
        self._file.write(self._key.encrypt(_nonce(self._index, last=last), content, self._header))
        self._index += 1


class OpeningReader:
    """Reads plain bytes of a sealed stream. Every read raises IntegrityFault when a segment does not open."""

    def __init__(self, file: BinaryIO, key: bytes, header: bytes) -> None:
        self._file = file
        self._key = AESGCM(key)
        self._header = header
        self._buffer = b""
        self._at = 0
        self._index = 0
        self._ended = False
        self._ahead = file.read(SEGMENT_BYTES + _TAG)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises IntegrityFault when the stream ends before."""
        pieces = []
        while size:
            if self._at == len(self._buffer):
                if self._ended:
                    raise IntegrityFault("the sealed stream ends too early")
                self._open()
                continue
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Raises IntegrityFault unless everything was read and the stream ends as it was ended."""
        if not self._ended and self._at == len(self._buffer):
            self._open()
        if not self._ended or self._at != len(self._buffer):
            raise IntegrityFault("the sealed stream goes on where it should end")

    def _open(self) -> None:
        sealed = self._ahead
        self._ahead = self._file.read(SEGMENT_BYTES + _TAG)
        last = not self._ahead
        try:
            self._buffer = self._key.decrypt(_nonce(self._index, last=last), sealed, self._header)
        except (InvalidTag, ValueError):
            raise IntegrityFault("the sealed stream was changed or cut, or the passphrase is another") from None
        self._at = 0
        self._index += 1
        self._ended = last


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + (b"\x01" if last else b"\x00")
