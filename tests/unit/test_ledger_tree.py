"""Merkle trees against a naive reading of RFC 9162: roots, tiles, inclusion and consistency proofs."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.security.ledger import verify
from honmaru.security.ledger.tiles import bundle_path, pack, tile_path, unpack
from honmaru.security.ledger.tree import SHA256, SHA384, WIDTH, Algorithm, Subtrees, Tree

ALGORITHMS = (SHA256, SHA384)


def leaf(index: int) -> bytes:
    return b"entry %d" % index


@lru_cache(maxsize=200_000)
def mth(algorithm: Algorithm, low: int, high: int) -> bytes:
    """MTH(D[low:high]), RFC 9162 §2.1.1, word for word."""
    if low == high:
        return algorithm.new(b"").digest()
    if high - low == 1:
        return algorithm.new(b"\x00" + leaf(low)).digest()
    split = 1
    while split * 2 < high - low:
        split *= 2
    return algorithm.new(b"\x01" + mth(algorithm, low, low + split) + mth(algorithm, low + split, high)).digest()


def naive_path(algorithm: Algorithm, index: int, low: int, high: int) -> list[bytes]:
    """PATH(m, D), RFC 9162 §2.1.3.1."""
    if high - low == 1:
        return []
    split = 1
    while split * 2 < high - low:
        split *= 2
    if index < split:
        return [*naive_path(algorithm, index, low, low + split), mth(algorithm, low + split, high)]
    return [*naive_path(algorithm, index - split, low + split, high), mth(algorithm, low, low + split)]


def naive_subproof(algorithm: Algorithm, first: int, low: int, high: int, complete: bool) -> list[bytes]:
    """SUBPROOF(m, D, b), RFC 9162 §2.1.4.1."""
    if first == high - low:
        return [] if complete else [mth(algorithm, low, high)]
    split = 1
    while split * 2 < high - low:
        split *= 2
    if first <= split:
        return [
            *naive_subproof(algorithm, first, low, low + split, complete),
            mth(algorithm, low + split, high),
        ]
    return [
        *naive_subproof(algorithm, first - split, low + split, high, False),
        mth(algorithm, low, low + split),
    ]


class Stored:
    """A tree of `size` leaves whose tiles are kept in a dict, as on disk."""

    def __init__(self, algorithm: Algorithm, size: int, step: int = 1000) -> None:
        self.algorithm = algorithm
        self.tree = Tree(algorithm)
        self.tiles: dict[tuple[int, int], bytes] = {}
        for start in range(0, size, step):
            leaves = [algorithm.leaf(leaf(index)) for index in range(start, min(size, start + step))]
            for level, index, hashes in self.tree.extend(leaves):
                self.tiles[level, index] = hashes
        for level, index, hashes in self.tree.partial():
            assert (level, index) not in self.tiles
            self.tiles[level, index] = hashes

    def read(self, level: int, index: int, width: int) -> bytes:
        found = self.tiles[level, index]
        assert len(found) >= width * self.algorithm.digest_size
        return found[: width * self.algorithm.digest_size]

    def subtrees(self) -> Subtrees:
        return Subtrees(self.algorithm, self.tree.size, self.read)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 256, 257, 511, 512, 1000, 65_535, 65_536, 66_000])
def test_roots_and_tiles_equal_the_naive_ones(algorithm: Algorithm, size: int) -> None:
    stored = Stored(algorithm, size)
    assert stored.tree.root() == mth(algorithm, 0, size)
    for (level, index), hashes in stored.tiles.items():
        span = WIDTH**level
        start = index * WIDTH
        width = len(hashes) // algorithm.digest_size
        assert width == min(WIDTH, size // span - start)
        for position in {0, width // 2, width - 1}:
            expected = mth(algorithm, (start + position) * span, (start + position + 1) * span)
            assert hashes[position * algorithm.digest_size :][: algorithm.digest_size] == expected


@given(st.integers(1, 1500), st.data())
@settings(max_examples=60, deadline=None)
def test_inclusion_proofs_equal_the_naive_ones_and_verify(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    for algorithm in ALGORITHMS:
        path = Stored(algorithm, size).subtrees().inclusion(index)
        assert path == naive_path(algorithm, index, 0, size)
        root = mth(algorithm, 0, size)
        check = verify._root_from_path
        assert check(algorithm.name, leaf(index), index, size, path) == root
        assert check(algorithm.name, leaf(index) + b"!", index, size, path) != root
        if path:
            assert check(algorithm.name, leaf(index), index, size, path[:-1]) != root
        assert check(algorithm.name, leaf(index), index, size, [*path, root]) != root


@given(st.integers(1, 1500), st.data())
@settings(max_examples=60, deadline=None)
def test_consistency_proofs_equal_the_naive_ones_and_verify(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size))
    for algorithm in ALGORITHMS:
        path = Stored(algorithm, size).subtrees().consistency(first)
        assert path == naive_subproof(algorithm, first, 0, size, True)
        roots = (mth(algorithm, 0, first), mth(algorithm, 0, size))
        assert verify.check_consistency(first, size, roots, path, algorithm.name)
        wrong = (algorithm.leaf(b"another"), roots[1])
        assert not verify.check_consistency(first, size, wrong, path, algorithm.name)
        if path:
            assert not verify.check_consistency(first, size, roots, path[:-1], algorithm.name)


@pytest.mark.parametrize("index", [0, 255, 256, 65_535, 65_536, 65_999])
def test_proofs_over_three_levels_of_tiles(index: int) -> None:
    subtrees = Stored(SHA256, 66_000).subtrees()
    assert subtrees.inclusion(index) == naive_path(SHA256, index, 0, 66_000)
    assert subtrees.consistency(index + 1) == naive_subproof(SHA256, index + 1, 0, 66_000, True)


@given(st.integers(0, 300), st.integers(0, 800))
@settings(max_examples=40, deadline=None)
def test_a_tree_loaded_from_its_tiles_goes_on_as_if_never_stored(full: int, more: int) -> None:
    size = full * WIDTH
    stored = Stored(SHA256, size, step=WIDTH)
    loaded = Tree.load(SHA256, size, stored.read)
    loaded.extend([SHA256.leaf(leaf(index)) for index in range(size, size + more)])
    assert loaded.root() == mth(SHA256, 0, size + more)


def test_paths_are_those_of_tlog_tiles() -> None:
    assert tile_path(SHA256, 0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path(SHA256, 1, 273, 17) == "tile/1/273.p/17"
    assert tile_path(SHA384, 2, 0, 1) == "sha384/tile/2/000.p/1"
    assert bundle_path(1000) == "tile/entries/x001/000"


@given(st.lists(st.binary(max_size=300), max_size=50))
def test_bundles_unpack_to_what_was_packed(entries: list[bytes]) -> None:
    assert unpack(pack(entries)) == entries == verify._unpack(pack(entries))
