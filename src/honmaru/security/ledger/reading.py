"""Reading logs: forward, backward with a search, and from the files of a log that another process may be writing.

Invariants:
- What is read from a stored bundle was compared with its tile first.
- Searching reads bundles from the newest on and parses only those that hold the words.
- A stored log is seen as of one checkpoint, whose signature was verified.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from honmaru.core.errors import IntegrityFault
from honmaru.security.ledger.checkpoints import Checkpoint, Verifier
from honmaru.security.ledger.proofs import InclusionProof, prove_inclusion
from honmaru.security.ledger.recovery import recorded, stored_bundle
from honmaru.security.ledger.tiles import ALGORITHMS, TileFiles, bundle_path, tile_path
from honmaru.security.ledger.tree import WIDTH, levels

_ATTEMPTS = 50


class Source(Protocol):
    """A log to read: `read(start)` gives the entries from `start` to the end of its bundle or of the log."""

    @property
    def files(self) -> TileFiles: ...

    @property
    def size(self) -> int: ...

    def read(self, start: int) -> list[bytes]: ...


def forward(source: Source, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Entries `start` to `stop` (exclusive), parsed."""
    while start < stop:
        chunk = source.read(start)[: stop - start]
        yield from (orjson.loads(entry) for entry in chunk)
        start += len(chunk)


def backward(
    source: Source, before: int, words: Sequence[str] = (), *, until: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, entry) from `before` - 1 down to `until`, of entries with every word in some string of theirs."""
    needles = [orjson.dumps(word)[1:-1] for word in words]
    end = min(before, source.size)
    while end > until:
        first = (end - 1) // WIDTH * WIDTH
        chunk = _chunk(source, first, needles)[: end - first]
        for index in range(first + len(chunk) - 1, max(first, until) - 1, -1):
            entry = chunk[index - first]
            if all(needle in entry for needle in needles):
                yield index, orjson.loads(entry)
        end = first


def position(source: Source, moment: str) -> int:
    """Index of the first entry recorded at `moment` (ISO 8601, UTC, Z) or later; the size when there is none."""
    low, high = 0, source.size
    while low < high:
        middle = (low + high) // 2
        if recorded(source.read(middle)[0])[1] < moment:
            low = middle + 1
        else:
            high = middle
    return low


def _chunk(source: Source, first: int, needles: Sequence[bytes]) -> list[bytes]:
    """Entries of the bundle at `first`; none when the stored bundle does not hold every needle."""
    if needles and first + WIDTH <= source.size:
        bundle = source.files.stored_bundle_bytes(first // WIDTH)
        if bundle is not None and not all(needle in bundle for needle in needles):
            return []
    return source.read(first)


class StoredLog:
    """A log directory as of its newest checkpoint, read without the enclave. For the operator's terminal."""

    def __init__(self, directory: Path) -> None:
        """Raises IntegrityFault when the directory is not a log or its checkpoint does not verify."""
        try:
            about = orjson.loads((directory / "label.json").read_bytes())
            self.label, token = str(about["label"]), str(about["token"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityFault(f"{directory} is not a log: {error}") from error
        self.verifier = Verifier.stored(directory / "public-key")
        origin = self.verifier.origin(token)
        self.checkpoint, kept = _as_of_one_checkpoint(directory, self.verifier, origin, self.label)
        self.files = TileFiles(directory, kept)

    @property
    def size(self) -> int:
        """Entries under the checkpoint."""
        return self.checkpoint.size

    def read(self, start: int) -> list[bytes]:
        number = start // WIDTH
        if (number + 1) * WIDTH <= self.size:
            return stored_bundle(self.files, number)[start % WIDTH :]
        return self.files.bundle(number, self.size % WIDTH)[start % WIDTH :] if start < self.size else []

    def inclusion_proof(self, index: int) -> InclusionProof:
        """Proof that entry `index` is under the checkpoint."""
        return prove_inclusion(self.files, self.checkpoint, index, self.read(index)[0])


def stored_logs(directory: Path) -> list[StoredLog]:
    """All logs of a ledger directory. Raises IntegrityFault."""
    if not directory.is_dir():
        raise IntegrityFault(f"there is no ledger in {directory}")
    return [StoredLog(path) for path in sorted(directory.iterdir()) if (path / "label.json").exists()]


def _as_of_one_checkpoint(
    directory: Path, verifier: Verifier, origin: str, label: str
) -> tuple[Checkpoint, dict[str, bytes]]:
    for _ in range(_ATTEMPTS):
        checkpoint = verifier.read(directory / "checkpoint", origin, label)
        if checkpoint is None:
            raise IntegrityFault(f"{directory / 'checkpoint'} is missing")
        try:
            return checkpoint, {path: (directory / path).read_bytes() for path in _partials(checkpoint.size)}
        except FileNotFoundError:
            time.sleep(0.01)  # the enclave has just signed a newer one
    raise IntegrityFault(f"{directory} lacks tiles of its checkpoint")


def _partials(size: int) -> Iterator[str]:
    for level in range(levels(size)):
        count = size >> (8 * level)
        if count % WIDTH:
            yield from (tile_path(algorithm, level, count // WIDTH, count % WIDTH) for algorithm in ALGORITHMS)
            if level == 0:
                yield bundle_path(count // WIDTH, count % WIDTH)
