"""What a log directory holds, found out and checked before anything is appended or signed.

Invariants:
- The recovered tree extends every checkpoint known for the log: the one beside the entries and the head kept outside.
  A log that is shorter or different raises IntegrityFault: truncation and roll-back are refused, not repaired.
- Only a torn frame at the very end of the tail is dropped; no acknowledged entry can be in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import IntegrityFault
from honmaru.security.ledger.checkpoints import Checkpoint, Verifier
from honmaru.security.ledger.tail import TailKey, read_segment, segment_paths
from honmaru.security.ledger.tiles import ALGORITHMS, TileFiles, bundle_path, pack, tile_path
from honmaru.security.ledger.tree import WIDTH, Algorithm, ReadTile, Tile, Tree

_STAMP = re.compile(rb'\{"index":(\d+),"recorded":"([^"]+)"')


@dataclass(slots=True)
class Recovered:
    """A log as found. `entries` are those from index `base` on (a multiple of 256); the rest lies in full bundles.

    `files` are the full tiles and bundles of `entries`; `segments` the first indices of the tail's segments, of which
    the last is whole up to `length` bytes.
    """

    base: int
    entries: list[bytes]
    trees: list[Tree]
    files: dict[str, bytes]
    segments: list[int]
    length: int
    checkpoint: Checkpoint | None

    @property
    def size(self) -> int:
        return self.base + len(self.entries)


def recover(
    directory: Path,
    head: Path,
    verifier: Verifier,
    key: TailKey,
    label: str,
    *,
    limit: int | None = None,
) -> Recovered:
    """Read a log back. Entries from `limit` on are dropped: they were refused when they could not be made durable.

    Raises IntegrityFault (see the module) and OSError.
    """
    known = [
        checkpoint
        for path in (directory / "checkpoint", head)
        if (checkpoint := verifier.read(path, key.origin, label)) is not None
    ]
    segments = segment_paths(directory)
    if not segments:
        if any(checkpoint.size for checkpoint in known):
            raise IntegrityFault(f"{directory} has lost its tail: restore the ledger from a backup made after {head}")
        return Recovered(0, [], [Tree(a) for a in ALGORITHMS], {}, [], 0, _latest(known))

    base = segments[0][0] // WIDTH * WIDTH
    entries = TileFiles(directory).bundle(base // WIDTH)[: segments[0][0] - base] if segments[0][0] > base else []
    length = 0
    for position, (first, path) in enumerate(segments):
        if first != base + len(entries):
            raise IntegrityFault(f"{path} starts at entry {first}, but {base + len(entries)} comes next")
        found, ends = read_segment(path, first, key)
        if limit is not None and position == len(segments) - 1:
            found = found[: max(0, limit - first)]
        entries += found
        length = ends[len(found) - 1] if found else 0

    trees, files = _grow(directory, base, entries, known)
    return Recovered(base, entries, trees, files, [first for first, _ in segments], length, _latest(known))


def tile_files(algorithm: Algorithm, tiles: Iterable[Tile]) -> dict[str, bytes]:
    """Path and content of tiles, full or partial."""
    size = algorithm.digest_size
    return {tile_path(algorithm, level, index, len(hashes) // size): hashes for level, index, hashes in tiles}


def bundle_files(base: int, entries: list[bytes], start: int, stop: int) -> dict[str, bytes]:
    """Path and content of the full bundles number `start` to `stop`, from entries that begin at index `base`."""
    return {
        bundle_path(number): pack(entries[number * WIDTH - base : (number + 1) * WIDTH - base])
        for number in range(start, stop)
    }


def stored_bundle(files: TileFiles, number: int) -> list[bytes]:
    """A full bundle, checked against its SHA-256 tile. Raises IntegrityFault."""
    entries = files.bundle(number)
    algorithm = ALGORITHMS[0]
    if b"".join([algorithm.leaf(entry) for entry in entries]) != files.reader(algorithm)(0, number, WIDTH):
        raise IntegrityFault(f"{files.directory}: entry bundle {number} does not match its tile")
    return entries


def recorded(entry: bytes) -> tuple[int, str]:
    """Index and time that the ledger wrote in front of an entry. Raises IntegrityFault."""
    stamp = _STAMP.match(entry)
    if stamp is None:
        raise IntegrityFault("an entry does not begin with its index and time")
    return int(stamp[1]), stamp[2].decode()


def _latest(known: list[Checkpoint]) -> Checkpoint | None:
    return max(known, key=lambda checkpoint: checkpoint.size, default=None)


def _grow(
    directory: Path, base: int, entries: list[bytes], known: list[Checkpoint]
) -> tuple[list[Tree], dict[str, bytes]]:
    files = bundle_files(base, entries, base // WIDTH, (base + len(entries)) // WIDTH)
    trees = []
    for algorithm in ALGORITHMS:
        tree = Tree.load(algorithm, base, _from_below(TileFiles(directory), algorithm))
        for checkpoint in sorted(known, key=lambda checkpoint: checkpoint.size):
            if not base <= checkpoint.size <= base + len(entries):
                raise IntegrityFault(
                    f"{directory} holds entries {base} to {base + len(entries)} in its tail, but a checkpoint over "
                    f"{checkpoint.size} entries was signed: it was truncated or rolled back; restore it from a backup"
                )
            more = entries[tree.size - base : checkpoint.size - base]
            files |= tile_files(algorithm, tree.extend([algorithm.leaf(entry) for entry in more]))
            if tree.root() != getattr(checkpoint, algorithm.name):
                raise IntegrityFault(
                    f"{directory} is not the log that was signed at {checkpoint.size} entries ({checkpoint.time}): "
                    f"run `honmaru ledger verify` on it and restore it from a backup"
                )
        rest = entries[tree.size - base :]
        files |= tile_files(algorithm, tree.extend([algorithm.leaf(entry) for entry in rest]))
        trees.append(tree)
    return trees, files


def _from_below(files: TileFiles, algorithm: Algorithm) -> ReadTile:
    """Reads a partial tile as roots of the full tiles below it: those were durable before the tail let go of them."""
    full = files.reader(algorithm)

    def read(level: int, index: int, width: int) -> bytes:
        below = range(index * WIDTH, index * WIDTH + width)
        return b"".join([algorithm.fold(full(level - 1, number, WIDTH)) for number in below])

    return read
