"""Tiles and entry bundles on files, in the layout of C2SP tlog-tiles; the SHA-384 tree lies beside it under `sha384/`.

    checkpoint                     the newest signed checkpoint
    tile/<level>/<N>[.p/<width>]   256 SHA-256 hashes; N in groups of three digits, all but the last with an x before
    tile/entries/<N>[.p/<width>]   256 entries, each after its length in 16 bits, big-endian
    sha384/tile/<level>/<N>[…]     the same tree with SHA-384

Invariants:
- A file appears whole or not at all (written aside, then renamed), mode 0600.
- Of partial tiles only those of the newest checkpoint are kept; C2SP would keep older ones until the tile is full.
Source: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from honmaru.core.errors import IntegrityFault
from honmaru.security.ledger.tree import SHA256, SHA384, WIDTH, Algorithm, ReadTile

ALGORITHMS = (SHA256, SHA384)
DRAFT = ".incomplete"
"""Suffix of a file that is being written; the offline verifier knows it too."""
_ROOTS = {"sha256": "tile", "sha384": "sha384/tile"}
_PARTIAL = re.compile(r"\.p/(\d+)$")


def tile_path(algorithm: Algorithm, level: int, index: int, width: int = WIDTH) -> str:
    """Path of a tile inside its log directory."""
    return f"{_ROOTS[algorithm.name]}/{level}/{_number(index)}{_suffix(width)}"


def bundle_path(index: int, width: int = WIDTH) -> str:
    """Path of an entry bundle inside its log directory."""
    return f"tile/entries/{_number(index)}{_suffix(width)}"


def pack(entries: Iterable[bytes]) -> bytes:
    """Entries in bundle form. Each is at most 65,535 bytes."""
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def unpack(bundle: bytes) -> list[bytes]:
    """The inverse of `pack`. Raises IntegrityFault when the lengths do not add up."""
    entries, at = [], 0
    while at < len(bundle):
        start = at + 2
        at = start + int.from_bytes(bundle[at:start], "big")
        if at > len(bundle):
            raise IntegrityFault("an entry bundle ends inside an entry")
        entries.append(bundle[start:at])
    return entries


def write_file(root: Path, path: str, content: bytes, *, durable: bool) -> None:
    """Write a whole file below `root` by renaming; when `durable`, content and name survive a power failure.

    Raises OSError; a `root` that has gone is not made anew.
    """
    target = root / path
    draft = target.with_name(target.name + DRAFT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        descriptor = os.open(draft, flags, 0o600)
    except FileNotFoundError:
        _make_folders(root, target.parent)
        descriptor = os.open(draft, flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.rename(target)
    if durable:
        sync(target.parent)


def sync_files(root: Path, paths: Iterable[str]) -> None:
    """Make files below `root` durable, with every folder that leads to them. Raises OSError."""
    folders = {root}
    for path in paths:
        sync(root / path)
        folder = (root / path).parent
        while folder not in folders:
            folders.add(folder)
            folder = folder.parent
    for folder in folders:
        sync(folder)


def _make_folders(root: Path, folder: Path) -> None:
    if folder == root:
        return
    _make_folders(root, folder.parent)
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        return


def sync(path: Path) -> None:
    """fsync a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class TileFiles:
    """The tiles and bundles of one log directory, for reading. `kept` holds files read before, by path."""

    def __init__(self, directory: Path, kept: Mapping[str, bytes] | None = None) -> None:
        self.directory = directory
        self._kept = kept or {}

    def reader(self, algorithm: Algorithm) -> ReadTile:
        """A function that reads the first `width` hashes of a tile. It raises IntegrityFault when there are fewer."""

        def read(level: int, index: int, width: int) -> bytes:
            content = self._first(tile_path(algorithm, level, index, width), tile_path(algorithm, level, index))
            if len(content) < width * algorithm.digest_size:
                raise IntegrityFault(f"{self.directory}: tile {level}/{index} of {algorithm.name} is too short")
            return content[: width * algorithm.digest_size]

        return read

    def bundle(self, index: int, width: int = WIDTH) -> list[bytes]:
        """The first `width` entries of a bundle. Raises IntegrityFault when missing or too short."""
        entries = unpack(self._first(bundle_path(index, width), bundle_path(index)))
        if len(entries) < width:
            raise IntegrityFault(f"{self.directory}: entry bundle {index} has {len(entries)} entries, not {width}")
        return entries[:width]

    def stored_bundle_bytes(self, index: int) -> bytes | None:
        """The bytes of a full bundle, for searching before parsing; None when it is not on disk yet."""
        try:
            return (self.directory / bundle_path(index)).read_bytes()
        except FileNotFoundError:
            return None

    def _first(self, *paths: str) -> bytes:
        for path in paths:
            if path in self._kept:
                return self._kept[path]
            try:
                return (self.directory / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
        raise IntegrityFault(f"{self.directory / paths[0]} is missing")

    def partials(self) -> Iterator[str]:
        """Paths of all partial tiles and bundles on disk."""
        for top in ("tile", "sha384"):
            for folder, _, names in os.walk(self.directory / top):
                if folder.endswith(".p"):
                    yield from (str(Path(folder, name).relative_to(self.directory)) for name in names)


def remove_partial(directory: Path, path: str) -> None:
    """Delete a partial tile and its folder when that is empty."""
    (directory / path).unlink(missing_ok=True)
    try:
        (directory / path).parent.rmdir()
    except OSError:
        return  # another partial of the same tile lies in it


def _number(index: int) -> str:
    text = f"{index % 1000:03d}"
    while index := index // 1000:
        text = f"x{index % 1000:03d}/{text}"
    return text


def _suffix(width: int) -> str:
    return "" if width == WIDTH else f".p/{width}"
