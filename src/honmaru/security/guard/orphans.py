"""Which stored blobs no record names: the comparison behind the sweep, in little memory.

Invariants:
- A path that is not a blob's is never an orphan.
- Memory is about 40 bytes for each blob and mention, whatever their order: ids lie in 256 heaps by their first byte,
  and only one heap at a time becomes a set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_PATH = re.compile(r"([^/]+/([0-9a-f]{16}))/[0-9a-f]{2}/([0-9a-f]{32})")
_MENTION = re.compile(rb"blob-[0-9a-f]{16}-([0-9a-f]{32})")
_ID_BYTES = 16
_PLACE_BYTES = 4
_STORED_BYTES = _ID_BYTES + _PLACE_BYTES


def orphans(paths: Iterable[str], bodies: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(path, blob id) of every blob among `paths` whose id is in none of `bodies`.

    All of `paths` are read before the first of `bodies` is asked for, and all of those before the first answer.
    """
    stored = [bytearray() for _ in range(256)]
    places: dict[str, int] = {}
    for path in paths:
        match = _PATH.fullmatch(path)
        if match is not None:
            place = places.setdefault(match[1], len(places))
            blob = bytes.fromhex(match[3])
            stored[blob[0]] += blob + place.to_bytes(_PLACE_BYTES, "big")
    named = [bytearray() for _ in range(256)]
    for body in bodies:
        for found in _MENTION.findall(body):
            blob = bytes.fromhex(found.decode())
            named[blob[0]] += blob
    folders = list(places)
    for heap, mentions in zip(stored, named, strict=True):
        alive = set(_pieces(mentions, _ID_BYTES))
        for piece in _pieces(heap, _STORED_BYTES):
            blob = piece[:_ID_BYTES]
            if blob not in alive:
                folder = folders[int.from_bytes(piece[_ID_BYTES:], "big")]
                name = blob.hex()
                yield f"{folder}/{name[:2]}/{name}", f"blob-{folder.rpartition('/')[2]}-{name}"


def _pieces(heap: bytearray, size: int) -> Iterator[bytes]:
    return (bytes(heap[at : at + size]) for at in range(0, len(heap), size))
