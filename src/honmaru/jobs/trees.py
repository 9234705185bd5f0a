"""Reading what a job left behind, and writing what it will see, without trusting a single name.

Invariants:
- Files are opened relative to directory handles and never through a symbolic link, so a link that a job plants, even
  while we look, and anywhere below the root that is ours, leads nowhere. Links, devices, sockets and pipes are passed
  over; so is a folder that cannot be opened.
- However deep a job nests folders, a walk holds at most `DEPTH` handles.
- `place` never leaves its root: absolute names, "..", empty and over-long parts are refused.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from honmaru.core.errors import ValidationFault

_CHUNK = 1 << 20
DEPTH = 100
"""Folders inside folders that are looked into."""
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file below `folder` ("" for the root itself), which lies below a root. Names use "/"."""

    root: Path
    folder: str
    name: str
    size: int
    modified_ns: int
    executable: bool


def files(root: Path, folder: str = "") -> Iterator[Found]:
    """Every regular file of a folder below the root, by name, links not followed, also not on the way to the folder.

    Raises ValidationFault for folders nested deeper than `DEPTH`.
    """
    try:
        at = _open_folder(root, folder.split("/") if folder else [])
    except FileNotFoundError:
        return
    yield from _walk(at, root, folder, "", 0)


def _walk(at: int, root: Path, folder: str, below: str, depth: int) -> Iterator[Found]:
    """Closes `at`."""
    try:
        folders = []
        for name in sorted(os.listdir(at)):
            try:
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                folders.append(name)
            elif stat.S_ISREG(found.st_mode):
                executable = bool(found.st_mode & 0o100)
                yield Found(root, folder, f"{below}{name}", found.st_size, found.st_mtime_ns, executable)
        if folders and depth == DEPTH:
            raise ValidationFault(f"the job left folders nested deeper than {DEPTH}")
        for name in folders:
            try:
                following = os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=at)
            except OSError:
                continue
            yield from _walk(following, root, folder, f"{below}{name}/", depth + 1)
    finally:
        os.close(at)


def opened(found: Found) -> BinaryIO:
    """The file for reading. Raises FileNotFoundError when it went away or is no longer a regular file."""
    name = f"{found.folder}/{found.name}" if found.folder else found.name
    return os.fdopen(_open_below(found.root, name), "rb")


def chunks(found: Found) -> Iterator[bytes]:
    """The file's bytes. Raises as `opened`."""
    with opened(found) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def text(root: Path, name: str, limit: int) -> str | None:
    """The beginning of a small text file, or None when there is none."""
    try:
        handle = _open_below(root, name)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as stream:
        return stream.read(limit * 4).decode("utf-8", "replace")[:limit]


def is_part(part: str) -> bool:
    """Whether this names a file or folder in its folder, and nothing else."""
    return part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= 255


def place(root: Path, name: str) -> Path:
    """Where a file of this name goes below the root; its folder is made. Raises ValidationFault for a bad name."""
    parts = name.split("/")
    if not all(map(is_part, parts)):
        raise ValidationFault(f"{name!r} cannot be the name of a file: it has an empty, dotted or over-long part")
    target = root.joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValidationFault(f"{name!r} would lie below a file of the same name as its folder") from None
    if target.is_dir():
        raise ValidationFault(f"{name!r} is the name of a file and of a folder")
    return target


def write(target: Path, content: Iterable[bytes], limit: int) -> int:
    """Write a file of at most `limit` bytes; returns its size. Raises ValidationFault when there is more."""
    size = 0
    with target.open("wb") as stream:
        for chunk in content:
            size += len(chunk)
            if size > limit:
                raise ValidationFault(f"the data is larger than the {limit >> 20} MiB that are left of the volume")
            stream.write(chunk)
    return size


def archive(members: Iterable[Found]) -> Iterator[bytes]:
    """A gzip-compressed tar of the files, streamed; memory use is a few chunks.

    A file that shrinks meanwhile is filled up with zero bytes, one that grows is cut, so the archive stays readable.
    Source: POSIX.1-2001 pax; RFC 1952.
    """
    gzip = zlib.compressobj(1, zlib.DEFLATED, 31)
    for found in members:
        entry = tarfile.TarInfo(found.name)
        entry.size, entry.mtime = found.size, found.modified_ns // 1_000_000_000
        entry.mode = 0o755 if found.executable else 0o644
        yield gzip.compress(entry.tobuf(tarfile.PAX_FORMAT))
        left = found.size
        for chunk in chunks(found):
            yield gzip.compress(chunk[:left])
            left -= min(left, len(chunk))
        while left:
            yield gzip.compress(b"\0" * min(left, _CHUNK))
            left -= min(left, _CHUNK)
        yield gzip.compress(b"\0" * (-found.size % tarfile.BLOCKSIZE))
    yield gzip.compress(b"\0" * 2 * tarfile.BLOCKSIZE)
    yield gzip.flush()


def _open_folder(root: Path, parts: Sequence[str]) -> int:
    """A handle of a folder below the root, walking by handles. Raises FileNotFoundError for anything else."""
    at = -1
    try:
        at = os.open(root, _LOOK | os.O_DIRECTORY)
        for part in parts:
            following = os.open(part, _LOOK | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = following
    except OSError as fault:
        if at >= 0:
            os.close(at)
        raise FileNotFoundError(f"no folder {'/'.join(parts)!r}") from fault
    return at


def _open_below(root: Path, name: str) -> int:
    """Open a regular file for reading, walking by handles. Raises FileNotFoundError for anything else."""
    *folders, last = name.split("/")
    at = _open_folder(root, folders)
    try:
        handle = os.open(last, _LOOK, dir_fd=at)
    except OSError as fault:
        raise FileNotFoundError(f"no regular file {name!r}") from fault
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(f"no regular file {name!r}")
    return handle
