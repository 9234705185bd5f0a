"""Proofs that an entry is in a log, and that a log only ever grew, from the tiles on disk.

Invariants:
- A proof reads a few tiles, never the whole log.
- A proof stands alone: entry, checkpoint and public key are in it, so `verify.check_proof` needs nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from honmaru.security.ledger.checkpoints import Checkpoint
from honmaru.security.ledger.tiles import ALGORITHMS, TileFiles
from honmaru.security.ledger.tree import Subtrees


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Entry `index` is in the tree of `checkpoint`. Paths are sibling hashes from the leaf up, one per tree."""

    index: int
    entry: bytes
    sha256: tuple[bytes, ...]
    sha384: tuple[bytes, ...]
    checkpoint: Checkpoint
    verifier_key: str

    def document(self) -> dict[str, Any]:
        """The proof as JSON, as `honmaru ledger verify-proof` reads it."""
        return {
            "type": "honmaru inclusion proof v1",
            "index": self.index,
            "entry": self.entry.decode(),
            "sha256": _encode(self.sha256),
            "sha384": _encode(self.sha384),
            "checkpoint": self.checkpoint.note,
            "publicKey": self.verifier_key.strip(),
        }


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """The tree of `checkpoint` extends the tree of its first `first` entries. Hashes as RFC 9162 §2.1.4 orders them."""

    first: int
    sha256: tuple[bytes, ...]
    sha384: tuple[bytes, ...]
    checkpoint: Checkpoint


def prove_inclusion(files: TileFiles, checkpoint: Checkpoint, index: int, entry: bytes) -> InclusionProof:
    """Raises IndexError when the checkpoint does not cover the entry, IntegrityFault when a tile is missing."""
    sha256, sha384 = (
        tuple(Subtrees(algorithm, checkpoint.size, files.reader(algorithm)).inclusion(index))
        for algorithm in ALGORITHMS
    )
    verifier_key = (files.directory / "public-key").read_text()
    return InclusionProof(index, entry, sha256, sha384, checkpoint, verifier_key)


def prove_consistency(files: TileFiles, checkpoint: Checkpoint, first: int) -> ConsistencyProof:
    """Raises IndexError unless 0 < first <= the checkpoint's size."""
    sha256, sha384 = (
        tuple(Subtrees(algorithm, checkpoint.size, files.reader(algorithm)).consistency(first))
        for algorithm in ALGORITHMS
    )
    return ConsistencyProof(first, sha256, sha384, checkpoint)


def _encode(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(value).decode() for value in hashes]
