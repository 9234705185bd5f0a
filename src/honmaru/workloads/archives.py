"""Opening a submitted code archive, inside the sandbox, as if an attacker had made it.

Invariants (each refused archive raises BadArchive with the reason, and nothing of it is used):
- Only regular files and directories: no links, devices, pipes or sparse files.
- Every name stays below the target: no absolute names, no "..", no name twice, no file used as a folder.
- At most MAX_ENTRIES entries and MAX_BYTES unpacked, counted while unpacking, whatever the headers claim.
- Unpacked files are 0644 or 0755; owners, other mode bits and extended attributes are dropped.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

MAX_ENTRIES = 20_000
MAX_BYTES = 2 << 30
_CHUNK = 1 << 20
_MAX_NAME = 1024


class BadArchive(Exception):
    """The archive is refused; the message names the entry and why."""


def unpack(archive: Path, target: Path, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> int:
    """Unpack a tar (gzip, bzip2, xz or plain) below `target`; returns the number of files."""
    count = entries = size = 0
    made: set[Path] = set()
    try:
        with tarfile.open(archive, "r|*") as stream:
            for entry in stream:
                entries += 1
                if entries > max_entries:
                    raise BadArchive(f"it has more than {max_entries} entries")
                path = _path(entry, target)
                if entry.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                if path in made:
                    raise BadArchive(f"{entry.name!r} is in it twice")
                made.add(path)
                size += entry.size
                if size > max_bytes:
                    raise BadArchive(f"it unpacks to more than {max_bytes >> 20} MiB")
                _write(stream, entry, path)
                count += 1
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as fault:
        raise BadArchive(f"it cannot be unpacked: {fault}") from fault
    return count


def _path(entry: tarfile.TarInfo, target: Path) -> Path:
    name = entry.name
    if entry.issym() or entry.islnk():
        raise BadArchive(f"{name!r} is a link")
    if entry.sparse is not None or not (entry.isreg() or entry.isdir()):
        raise BadArchive(f"{name!r} is neither a plain file nor a directory")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name or len(name) > _MAX_NAME:
        raise BadArchive(f"{name[:200]!r} would leave the code directory")
    return target.joinpath(*parts)


def _write(stream: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = stream.extractfile(entry)
    if source is None:
        raise BadArchive(f"{entry.name!r} has no content")
    left = entry.size
    with path.open("xb") as out:
        while left and (chunk := source.read(min(_CHUNK, left))):
            out.write(chunk)
            left -= len(chunk)
    if left:
        raise BadArchive(f"{entry.name!r} is cut off")
    path.chmod(0o755 if entry.mode & 0o100 else 0o644)
