"""Resource limits by control groups, version 1 or 2, where this process may make them.

`Group.make` tries version 2, then version 1, and says by `achieved` which limits hold; a limit that no group can
enforce is the caller's to enforce otherwise. Nothing here is a security wall by itself.

Source: Linux Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PERIOD_US = 100_000


@dataclass(slots=True)
class Group:
    """The control group directories of one instance. `achieved` maps memory, processes, cpu to "cgroup-v1|v2"."""

    folders: dict[str, Path] = field(default_factory=dict)
    achieved: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def make(name: str, *, memory_bytes: int, processes: int, cpu: float, root: Path = Path("/sys/fs/cgroup")) -> Group:
        """Make a group with what limits can be set; never raises for a limit that cannot."""
        group = Group()
        memberships = _memberships(Path("/proc/self/cgroup").read_text())
        for place in _version_2_places(root, memberships):
            if group._try_version_2(place / name, memory_bytes, processes, cpu):
                break
        quota = str(max(int(cpu * _PERIOD_US), 1000))
        version_1: Mapping[str, tuple[str, list[tuple[str, str]]]] = {
            "memory": ("memory", [("memory.limit_in_bytes", str(memory_bytes))]),
            "pids": ("processes", [("pids.max", str(processes))]),
            "cpu": ("cpu", [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", quota)]),
        }
        for controller, (limit, settings) in version_1.items():
            if limit not in group.achieved and controller in memberships:
                place = root / controller / memberships[controller].lstrip("/") / name
                if _make(place, settings):
                    group.folders[controller] = place
                    group.achieved[limit] = "cgroup-v1"
        memory = group.folders.get("memory")
        if memory is not None:  # absent without swap accounting
            _write(memory / "memory.memsw.limit_in_bytes", str(memory_bytes))
        return group

    def _try_version_2(self, place: Path, memory_bytes: int, processes: int, cpu: float) -> bool:
        offered = _words(place.parent / "cgroup.subtree_control")
        if not {"memory", "pids"} <= offered:
            return False
        settings = [("memory.max", str(memory_bytes)), ("memory.oom.group", "1"), ("pids.max", str(processes))]
        if not _make(place, settings):
            return False
        _write(place / "memory.swap.max", "0")
        self.folders["unified"] = place
        self.achieved |= {"memory": "cgroup-v2", "processes": "cgroup-v2"}
        if "cpu" in offered and _write(place / "cpu.max", f"{int(cpu * _PERIOD_US)} {_PERIOD_US}"):
            self.achieved["cpu"] = "cgroup-v2"
        return True

    def enter(self) -> None:
        """Move the calling process in; its children follow. Raises OSError."""
        for folder in self.folders.values():
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def out_of_memory(self) -> int:
        """How many processes the kernel has killed for memory."""
        unified, memory = self.folders.get("unified"), self.folders.get("memory")
        if unified is not None:
            return _counter(unified / "memory.events", "oom_kill")
        return _counter(memory / "memory.oom_control", "oom_kill") if memory is not None else 0

    def refused_forks(self) -> int:
        """How many new processes the limit has refused."""
        place = self.folders.get("unified") or self.folders.get("pids")
        return _counter(place / "pids.events", "max") if place is not None else 0

    def remove(self) -> None:
        """Delete the empty groups; one that still has processes stays for the next call."""
        for folder in self.folders.values():
            try:
                folder.rmdir()
            except OSError:
                continue


def _memberships(text: str) -> dict[str, str]:
    """Controller → path of this process's group; version 2 under ""."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _version_2_places(root: Path, memberships: Mapping[str, str]) -> list[Path]:
    """Where a child group could be made: beside our own group, or below it when it is the root of the tree."""
    if "" not in memberships:
        return []
    own = root / memberships[""].lstrip("/")
    return [own] if own == root else [own.parent]


def _make(place: Path, settings: list[tuple[str, str]]) -> bool:
    try:
        place.mkdir(exist_ok=True)
    except OSError:
        return False
    if all(_write(place / name, value) for name, value in settings):
        return True
    try:
        place.rmdir()
    except OSError:
        return False
    return False


def _write(file: Path, value: str) -> bool:
    try:
        file.write_text(value)
    except OSError:
        return False
    return True


def _words(file: Path) -> set[str]:
    try:
        return set(file.read_text().split())
    except OSError:
        return set()


def _counter(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
