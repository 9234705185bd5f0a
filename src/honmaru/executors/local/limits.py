"""What the runner enforces itself: process limits at start, and watching disk, memory and processes while it runs.

Invariants:
- Usage is measured without following links and never fails because a job changes files meanwhile.
- Every entry counts at least 512 bytes, so a flood of empty files reaches the quota too; a file with holes counts with
  its size, because whoever collects it gets the holes as zeros.
- Folders nested beyond what a path can name count as more than any quota: what lies in them cannot be measured.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

UNMEASURABLE = 1 << 62
"""Bytes that stand for a tree too deep to be measured."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Per instance. `data_bytes` and `processes` are None where a control group enforces them."""

    disk_bytes: int
    data_bytes: int | None
    processes: int | None


def apply(limits: Limits) -> None:
    """Set the calling process's resource limits, soft and hard. Source: setrlimit(2)."""
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, limits.disk_bytes)
    _set(resource.RLIMIT_NOFILE, 65536)
    if limits.data_bytes is not None:
        _set(resource.RLIMIT_DATA, limits.data_bytes)
    if limits.processes is not None:
        # The kernel counts all processes of the user, so those outside the sandbox come on top.
        _set(resource.RLIMIT_NPROC, limits.processes + _processes_of(os.getuid()))


def disk_usage(folders: Iterable[Path], skip: frozenset[Path] = frozenset()) -> int:
    """Bytes that the folders occupy, without the `skip` ones. Hard-linked files count each time."""
    total = 0
    pending = [folder for folder in folders if folder not in skip]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False) and Path(entry.path) not in skip:
                            pending.append(Path(entry.path))
                    except OSError as fault:
                        if fault.errno == errno.ENAMETOOLONG:
                            return UNMEASURABLE
                        continue
                    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
                    total += max(found.st_blocks * 512, size, 512)
        except OSError as fault:
            if fault.errno == errno.ENAMETOOLONG:
                return UNMEASURABLE
            continue
    return total


def members(pid_namespace: str) -> list[int]:
    """Host pids of all processes in a pid namespace ("pid:[...]")."""
    found: list[int] = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                if str((place / "ns" / "pid").readlink()) == pid_namespace:
                    found.append(int(place.name))
            except OSError:
                continue
    return found


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of the processes together; shared pages count once per process (an upper bound)."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            continue
    return total


def _processes_of(user: int) -> int:
    count = 0
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                if place.stat().st_uid == user:
                    count += sum(1 for _ in (place / "task").iterdir())
            except OSError:
                continue
    return count


def _set(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (bounded, bounded))
