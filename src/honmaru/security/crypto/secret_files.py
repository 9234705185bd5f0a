"""Secrets in files: made once, readable by their owner only.

Invariants:
- A secret file and its directory have no permission for group or others, and it is no link; else nothing is read.
- Creation is atomic and durable: after a crash the file holds the whole secret or does not exist; two racing
  creators end with the same secret.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from honmaru.core.errors import ConfigurationFault

_SHARED = stat.S_IRWXG | stat.S_IRWXO


def read_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    """The secret in `path`; where there is none, `make()` is asked for one and it is stored first.

    Missing directories are made with mode 0700. Raises ConfigurationFault, naming the repair, when the file or its
    directory is open to others, is not a plain file, is empty, or belongs to another user.
    """
    private_directory(path.parent)
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    secret = make()
    draft = _draft(path, secret)
    try:
        try:
            os.link(draft, path)
        except FileExistsError:
            return _read(path)
    finally:
        draft.unlink()
    sync_directory(path.parent)
    return secret


def read_secret(path: Path) -> bytes:
    """The secret in `path`. Raises FileNotFoundError, and ConfigurationFault as `read_or_create` does."""
    return _read(path)


def replace_secret(path: Path, secret: bytes) -> None:
    """Make `secret` the content of `path`, whatever it was: after a crash it is the old or the new, whole."""
    private_directory(path.parent)
    draft = _draft(path, secret)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def forget_secret(path: Path) -> None:
    """Overwrite a secret and remove its file; a missing one is no error. A copy-on-write disk may keep it even so."""
    try:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except FileNotFoundError:
        return
    sync_directory(path.parent)


def _draft(path: Path, secret: bytes) -> Path:
    """A durable file of mode 0600 beside `path`."""
    if not secret:
        raise ValueError("an empty secret is no secret")
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    return draft


def private_directory(path: Path) -> None:
    """Make a directory (and its parents) with mode 0700; raises ConfigurationFault when others may enter it."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would give those the process's own mode
    status = path.stat()
    problems = []
    if status.st_mode & _SHARED:
        problems.append(f"{path} is open to other users (mode {status.st_mode & 0o777:04o}): run chmod 700 {path}")
    if status.st_uid != os.geteuid():
        problems.append(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}: run chown -R on it")
    if problems:
        raise ConfigurationFault(problems)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationFault(
            [f"{path} cannot be read ({error.strerror}): make it a plain file of mode 0600"]
        ) from error
    try:
        status = os.fstat(descriptor)
        problems = []
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{path} is not a plain file: put the secret back from a backup")
        elif not status.st_size:
            problems.append(f"{path} is empty: put the secret back from a backup")
        if status.st_mode & _SHARED:
            problems.append(f"{path} is open to other users (mode {status.st_mode & 0o777:04o}): run chmod 600 {path}")
        if status.st_uid != os.geteuid():
            problems.append(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}: run chown on it")
        if problems:
            raise ConfigurationFault(problems)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
