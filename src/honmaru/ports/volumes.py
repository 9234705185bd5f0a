"""Directories on disk whose content the kernel encrypts under a key of the caller's: the volumes of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Volumes(Protocol):
    def supported(self, folder: Path) -> bool:
        """Whether directories below `folder` can be encrypted here."""
        ...

    def create(self, folder: Path, key: bytes) -> None:
        """Make an empty directory (0700) whose files and names lie on disk under `key` (32 bytes) only.

        Raises ExecutorLost when the file system cannot do it.
        """
        ...

    def held(self, folder: Path) -> bytes:
        """Names the key that a directory needs; b"" for one that is not encrypted or not there."""
        ...

    def release(self, parent: Path, held: bytes) -> None:
        """Forget a key, once the directory below `parent` that needed it is gone: what it encrypted opens no more."""
        ...
