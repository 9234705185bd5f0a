"""The files that say whether an enclave runs in a data directory, and where.

Invariants:
- One enclave per data directory: its process holds an exclusive lock on `run/lock` for as long as it lives, so the
  lock tells the truth even after `kill -9`.
- `run/enclave.json` is written only when the enclave answers.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO, Any

from honmaru.core.errors import ConfigurationFault

_TRIES, _BETWEEN_TRIES_S = 10, 0.05
"""Whoever asks whether an enclave runs holds the lock for an instant; that must not be taken for an enclave."""


def take_lock(data: Path) -> IO[str]:
    """Become the enclave of `data`. Raises ConfigurationFault when another process is."""
    run = data / "run"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (run / "lock").open("a+")
    for remaining in reversed(range(_TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as cause:
            if not remaining:
                raise ConfigurationFault(
                    [f"an enclave already runs in {data}: use `honmaru status`, or stop it with `honmaru down`"]
                ) from cause
            time.sleep(_BETWEEN_TRIES_S)
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def running_pid(data: Path) -> int | None:
    """The process id of the enclave that holds the lock; None when nobody does."""
    path = data / "run" / "lock"
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = lock.read()
            return int(text) if text.isdigit() else None
    return None


def publish(data: Path, facts: dict[str, Any]) -> None:
    """Say that the enclave answers, and where."""
    path = data / "run" / "enclave.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(facts))
    temporary.replace(path)


def published(data: Path) -> dict[str, Any] | None:
    """What the running enclave published; None when none runs or it does not answer yet."""
    pid = running_pid(data)
    path = data / "run" / "enclave.json"
    if pid is None or not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts if facts.get("pid") == pid else None


def running_sandboxes(data: Path, *, stop: bool = False) -> list[str]:
    """Ids of the jobs that run in sandboxes although the enclave may be down; `stop` ends them within their grace.

    A stopped job is recorded as stopped when the enclave starts again.
    """
    from honmaru.executors.local import LocalExecutor

    if not (data / "executor").is_dir():
        return []
    executor = LocalExecutor(data / "executor")
    jobs = executor.running()
    if stop:
        for job in jobs:
            executor.stop(job, grace_s=5.0)
    return jobs


def withdraw(data: Path) -> None:
    (data / "run" / "enclave.json").unlink(missing_ok=True)
