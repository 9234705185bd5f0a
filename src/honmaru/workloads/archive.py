"""Unpacking a model archive that nobody vouches for.

Invariants:
- Only regular files at the top of the archive are written, under plain names, inside the target directory.
- A link, a device, a name that leaves the directory, a duplicate, or more bytes than the limits allow is a refusal,
  and the target directory is then left without a single file.
"""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path

from honmaru.core.errors import ValidationFault
from honmaru.core.model_files import is_plain_name

MAX_MEMBERS = 10_000
MAX_BYTES = 64 << 30
MAX_RATIO = 100
_FREE_BYTES = 256 << 20
_CHUNK = 1 << 20


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .tar.gz into `target`, which is made. Raises ValidationFault with the reason."""
    target.mkdir(parents=True)
    limit = min(MAX_BYTES, max(_FREE_BYTES, archive.stat().st_size * MAX_RATIO))
    try:
        with tarfile.open(archive, "r|gz") as tar:
            _unpack(tar, target, limit)
    except (tarfile.TarError, EOFError, zlib.error, UnicodeError, OSError) as fault:
        shutil.rmtree(target, ignore_errors=True)
        raise ValidationFault(f"{archive.name} is not a readable .tar.gz archive: {str(fault)[:150]}") from None
    except ValidationFault:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _unpack(tar: tarfile.TarFile, target: Path, limit: int) -> None:
    written = members = 0
    for member in tar:
        members += 1
        name = member.name
        if members > MAX_MEMBERS:
            raise ValidationFault(f"the archive has more than {MAX_MEMBERS} members")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
            raise ValidationFault(f"the archive holds {name[:100]!r}, which leads out of its directory")
        if member.issym() or member.islnk():
            raise ValidationFault(f"the archive holds the link {name[:100]!r}; links are not accepted")
        if not member.isreg() and not member.isdir():
            raise ValidationFault(f"the archive holds {name[:100]!r}, which is neither a file nor a directory")
        written += member.size
        if written > limit:
            raise ValidationFault(f"the archive unpacks to more than {limit} bytes")
        if member.isdir() or len(parts) != 1:
            continue  # code/ and the like are no part of a model
        if not is_plain_name(parts[0]):
            continue
        path = target / parts[0]
        if path.exists():
            raise ValidationFault(f"the archive holds {parts[0]!r} twice")
        source = tar.extractfile(member)
        if source is None:
            raise ValidationFault(f"the archive's member {parts[0]!r} cannot be read")
        with path.open("xb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK)
        if path.stat().st_size != member.size:
            raise ValidationFault(f"the archive ends within {parts[0]!r}")
