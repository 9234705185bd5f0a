"""The tail of a log: entries in the order they came, in frames, each durable with one fsync.

A segment file `tail/<index of its first entry, 20 digits>` is a sequence of frames:

    "HMF1" · first index (8) · count (4) · payload bytes (4) · SHA-384 of all the rest (48) ·
    HMAC-SHA-384 of origin, head and payload (48) · payload: entries in bundle form

Invariants:
- A frame counts when it is whole. The last frame of the last segment may be torn by a crash: it is cut off. A broken
  frame with a whole one behind it is damage, because a frame is begun only after the one before it was durable.
- The HMAC key lies outside the log: entries not yet under a signed checkpoint cannot be rewritten without it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import IntegrityFault
from honmaru.security.ledger.tiles import pack, sync, unpack

MAGIC = b"HMF1"
_HEAD = struct.Struct(">4sQII")
_FRAME = _HEAD.size + 48 + 48


@dataclass(frozen=True, slots=True)
class TailKey:
    """Authenticates the frames of one log."""

    key: bytes
    origin: str

    def tag(self, head: bytes, payload: bytes) -> bytes:
        return hmac.digest(self.key, self.origin.encode() + b"\n" + head + payload, "sha384")


def frame(key: TailKey, first: int, entries: list[bytes]) -> bytes:
    """One frame with entries from index `first` on."""
    payload = pack(entries)
    head = _HEAD.pack(MAGIC, first, len(entries), len(payload))
    tag = key.tag(head, payload)
    return b"".join((head, hashlib.sha384(head + tag + payload).digest(), tag, payload))


def segment_path(directory: Path, first: int) -> Path:
    return directory / "tail" / f"{first:020d}"


def segment_paths(directory: Path) -> list[tuple[int, Path]]:
    """(first index, path) of all segments, in order."""
    try:
        paths = sorted(path for path in (directory / "tail").iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []
    return [(int(path.name), path) for path in paths]


def read_segment(path: Path, first: int, key: TailKey) -> tuple[list[bytes], list[int]]:
    """Entries of a segment, and the offset behind each of them that ends a frame (0 elsewhere).

    A torn frame at the end is left out. Raises IntegrityFault when whole frames lie behind a broken one.
    """
    content = path.read_bytes()
    entries: list[bytes] = []
    ends: list[int] = []
    at = 0
    while at < len(content):
        found = _parse(content, at, first + len(entries), key)
        if found is None:
            _require_nothing_behind(path, content, at, first + len(entries), key)
            break
        size, more = found
        at += size
        entries += more
        ends += [0] * (len(more) - 1) + [at]
    return entries, ends


def _parse(content: bytes, at: int, first: int | None, key: TailKey) -> tuple[int, list[bytes]] | None:
    start = at + _FRAME
    if start > len(content):
        return None
    head = content[at : at + _HEAD.size]
    magic, index, count, length = _HEAD.unpack(head)
    if magic != MAGIC or (first is not None and index != first) or count == 0 or start + length > len(content):
        return None
    payload = content[start : start + length]
    digest = content[at + _HEAD.size : at + _HEAD.size + 48]
    tag = content[at + _HEAD.size + 48 : start]
    if hashlib.sha384(head + tag + payload).digest() != digest or not hmac.compare_digest(key.tag(head, payload), tag):
        return None
    entries = unpack(payload)
    return (_FRAME + length, entries) if len(entries) == count else None


def _require_nothing_behind(path: Path, content: bytes, at: int, index: int, key: TailKey) -> None:
    search = content.find(MAGIC, at + 1)
    while search >= 0:
        if _parse(content, search, None, key) is not None:
            raise IntegrityFault(f"{path}: the frame of entry {index} is damaged, and whole frames follow it")
        search = content.find(MAGIC, search + 1)


class TailWriter:
    """Appends frames to one segment. Any OSError means: stop using it and recover from disk."""

    def __init__(self, directory: Path, first: int, key: TailKey, length: int = 0) -> None:
        """Open the segment that starts at `first`, cut to `length` bytes (0 for a new one)."""
        self.first = first
        self.size = length
        self._key = key
        self._path = segment_path(directory, first)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(self._descriptor, length)
            os.lseek(self._descriptor, length, os.SEEK_SET)
            os.fsync(self._descriptor)
            sync(self._path.parent)
            self._inode = os.fstat(self._descriptor).st_ino
        except OSError:
            os.close(self._descriptor)
            raise

    def append(self, first: int, entries: list[bytes]) -> None:
        """Write one frame; durable on return. Raises OSError, then nothing is known of what is on disk."""
        content = frame(self._key, first, entries)
        self._write(content)
        self.size += len(content)

    def probe(self) -> None:
        """Prove that the disk takes writes: 64 KiB out, durable, and cut off again. Raises OSError."""
        self._write(bytes(65_536))
        os.ftruncate(self._descriptor, self.size)
        os.lseek(self._descriptor, self.size, os.SEEK_SET)
        os.fsync(self._descriptor)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fdatasync(self._descriptor)
        if self._path.stat().st_ino != self._inode:  # a write into a deleted file is durable nowhere
            raise FileNotFoundError(f"{self._path} was replaced while the ledger wrote to it")

    def close(self) -> None:
        os.close(self._descriptor)
