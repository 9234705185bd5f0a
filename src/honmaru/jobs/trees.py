"""Reading what a job left behind, and writing what it will see, without trusting a single name.

Invariants:
- Files are opened relative to directory handles and never through a symbolic link, so a link that a job plants, even
  while we look, leads nowhere. Links, devices, sockets and pipes are passed over.
- `place` never leaves its root: absolute names, "..", empty and over-long parts are refused.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import ValidationFault

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file below a root. `name` uses "/"."""

    root: Path
    name: str
    size: int
    modified_ns: int
    executable: bool


def files(root: Path) -> Iterator[Found]:
    """Every regular file below the root, by name, links not followed."""
    if not root.is_dir() or root.is_symlink():
        return
    for folder, folders, names, handle in os.fwalk(root, follow_symlinks=False):
        folders.sort()
        below = os.path.relpath(folder, root)
        for name in sorted(names):
            try:
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                path = name if below == "." else f"{below}/{name}"
                yield Found(root, path, found.st_size, found.st_mtime_ns, bool(found.st_mode & 0o100))


def chunks(found: Found) -> Iterator[bytes]:
    """The file's bytes. Raises FileNotFoundError when it went away or is no longer a regular file."""
    handle = _open_below(found.root, found.name)
    with os.fdopen(handle, "rb") as stream:
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


def place(root: Path, name: str) -> Path:
    """Where a file of this name goes below the root; its folder is made. Raises ValidationFault for a bad name."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > 255 for part in parts):
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


def _open_below(root: Path, name: str) -> int:
    """Open a regular file for reading, walking by handles. Raises FileNotFoundError for anything else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    *folders, last = name.split("/")
    at = os.open(root, flags | os.O_DIRECTORY)
    try:
        for folder in folders:
            following = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = following
        handle = os.open(last, flags, dir_fd=at)
    except OSError as fault:
        raise FileNotFoundError(f"no regular file {name!r}") from fault
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(f"no regular file {name!r}")
    return handle
