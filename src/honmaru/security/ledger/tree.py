"""Merkle tree arithmetic of RFC 9162 §2.1 over tiles of 256 hashes; pure, for any hash function.

Invariants:
- Roots and proofs equal those of a naive reading of RFC 9162 on the list of all leaves.
- A tree in memory holds its right edge only: at most 255 hashes a level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

WIDTH = 256
"""Hashes in a full tile, entries in a full bundle."""


class Hash(Protocol):
    """What is needed of a hashlib object."""

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A hash function for trees. `digest_size` in bytes."""

    name: str
    new: Callable[[bytes], Hash]
    digest_size: int

    def leaf(self, entry: bytes) -> bytes:
        return self.new(b"\x00" + entry).digest()

    def node(self, left: bytes, right: bytes) -> bytes:
        return self.new(b"\x01" + left + right).digest()

    def fold(self, hashes: bytes | bytearray) -> bytes:
        """The root over a power of two of concatenated hashes."""
        new, size = self.new, self.digest_size
        level = bytes(hashes)
        while len(level) > size:
            pairs = range(0, len(level), 2 * size)
            level = b"".join([new(b"\x01" + level[at : at + 2 * size]).digest() for at in pairs])
        return level


SHA256 = Algorithm("sha256", hashlib.sha256, 32)
SHA384 = Algorithm("sha384", hashlib.sha384, 48)

Tile = tuple[int, int, bytes]
"""(level, index within the level, concatenated hashes)."""

ReadTile = Callable[[int, int, int], bytes]
"""(level, index, width in hashes) → the first `width` hashes of a tile."""


@dataclass(slots=True)
class Tree:
    """A growing tree: `size` leaves, of which the right edge is kept."""

    algorithm: Algorithm
    size: int = 0
    edge: list[bytearray] = field(default_factory=list)

    @staticmethod
    def load(algorithm: Algorithm, size: int, read: ReadTile) -> Tree:
        """The tree of `size` leaves, from the tiles on its right edge."""
        tree = Tree(algorithm, size)
        for level in range(levels(size)):
            count = size >> (8 * level)
            width = count % WIDTH
            tree.edge.append(bytearray(read(level, count // WIDTH, width)) if width else bytearray())
        return tree

    def extend(self, leaves: Iterable[bytes]) -> list[Tile]:
        """Add leaf hashes; returns the tiles that became full, lower levels first."""
        full: list[Tile] = []
        for leaf in leaves:
            self._push(0, leaf, full)
            self.size += 1
        return full

    def _push(self, level: int, value: bytes, full: list[Tile]) -> None:
        if level == len(self.edge):
            self.edge.append(bytearray())
        edge = self.edge[level]
        edge += value
        if len(edge) == WIDTH * self.algorithm.digest_size:
            tile = bytes(edge)
            edge.clear()
            full.append((level, self.size >> (8 * (level + 1)), tile))
            self._push(level + 1, self.algorithm.fold(tile), full)

    def partial(self) -> list[Tile]:
        """The partial tiles of the present size."""
        return [(level, self.size >> (8 * (level + 1)), bytes(edge)) for level, edge in enumerate(self.edge) if edge]

    def root(self) -> bytes:
        """The Merkle tree hash; of an empty tree, the hash of nothing."""
        size = self.algorithm.digest_size
        root = b""
        for edge in self.edge:
            at, width = len(edge), len(edge) // size
            while width:
                part = width & -width
                width -= part
                at -= part * size
                left = self.algorithm.fold(edge[at : at + part * size])
                root = self.algorithm.node(left, root) if root else left
        return root or self.algorithm.new(b"").digest()


def levels(size: int) -> int:
    """How many tile levels a tree has."""
    count = 0
    while size >> (8 * count):
        count += 1
    return count


class Subtrees:
    """Hashes of any part of a stored tree of `size` leaves, reading each tile once."""

    def __init__(self, algorithm: Algorithm, size: int, read: ReadTile) -> None:
        self._algorithm = algorithm
        self._size = size
        self._read = read
        self._tiles: dict[tuple[int, int], bytes] = {}

    def root(self, low: int, high: int) -> bytes:
        """MTH(D[low:high]) for a range that occurs in the tree."""
        count = high - low
        if count & (count - 1) == 0:
            return self._perfect(low, count)
        split = _split(count)
        return self._algorithm.node(self.root(low, low + split), self.root(low + split, high))

    def _perfect(self, low: int, count: int) -> bytes:
        height = count.bit_length() - 1
        level, rest = divmod(height, 8)
        first, width = low >> (8 * level), 1 << rest
        tile, position = divmod(first, WIDTH)
        hashes = self._tiles.get((level, tile))
        if hashes is None:
            present = min(WIDTH, (self._size >> (8 * level)) - tile * WIDTH)
            hashes = self._tiles[level, tile] = self._read(level, tile, present)
        size = self._algorithm.digest_size
        return self._algorithm.fold(hashes[position * size : (position + width) * size])

    def inclusion(self, index: int) -> list[bytes]:
        """PATH(index, D[size]) of RFC 9162 §2.1.3.1."""
        if not 0 <= index < self._size:
            raise IndexError(f"entry {index} is not in a tree of {self._size}")
        low, high, path = 0, self._size, []
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                path.append(self.root(middle, high))
                high = middle
            else:
                path.append(self.root(low, middle))
                low = middle
        return path[::-1]

    def consistency(self, first: int) -> list[bytes]:
        """PROOF(first, D[size]) of RFC 9162 §2.1.4.1."""
        if not 0 < first <= self._size:
            raise IndexError(f"no consistency proof from {first} to {self._size}")
        low, high, path, complete = 0, self._size, [], True
        while first != high:
            middle = low + _split(high - low)
            if first <= middle:
                path.append(self.root(middle, high))
                high = middle
            else:
                path.append(self.root(low, middle))
                low, complete = middle, False
        if not complete:
            path.append(self.root(low, high))
        return path[::-1]


def _split(count: int) -> int:
    """The largest power of two smaller than `count` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)
