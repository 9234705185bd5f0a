"""Backup and restore of a whole enclave, while it runs or while it is down.

Invariants:
- What a backup holds fits together: the records at one instant, every blob that they name, and a ledger that has every
  entry of theirs (or their outbox has). The order is: deletions of blobs are held back, records, blobs, keys, ledger.
- Files that are only ever replaced whole are taken by a further link, so a running enclave goes on; memory is constant.
- A backup is sealed under a passphrase, signed by the ledger's key, and read to its end and checked before the first
  byte of a restore is written. A restore appears whole or not at all.

Not here: a record store in PostgreSQL or blobs in a remote store are backed up by their own means.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from honmaru import __version__
from honmaru.app.backup_format import BackupReader, BackupWriter, Manifest
from honmaru.core.errors import ConfigurationFault, IntegrityFault
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.crypto.secret_files import sync_directory
from honmaru.security.ledger.checkpoints import Signer

if TYPE_CHECKING:
    from honmaru.app.enclave import Enclave

_STAGE = "backup.stage"
_PLAIN = ("enclave.json", "environments.json", "engines.json")


def back_up(data: Path, target: Path, passphrase: str, enclave: Enclave | None = None) -> Manifest:
    """Write a backup of the enclave in `data` to a new file.

    Args:
        enclave: The running one; None while it is down (the caller holds its lock).
    Raises:
        ConfigurationFault: the target exists, the passphrase is short, or records or blobs lie elsewhere.
        IntegrityFault: a part is missing or damaged; no file is left.
    """
    if target.exists():
        raise ConfigurationFault([f"{target} exists already: name a new file"])
    if not (data / "records.sqlite").exists() or not (data / "enclave.json").exists():
        raise ConfigurationFault([f"{data} holds no enclave with records and blobs of its own, so it is not backed up"])
    stage = data / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    draft = target.with_name(f".{target.name}.incomplete")
    try:
        lengths = _staged(data, stage, enclave)
        facts = json.loads((stage / "enclave.json").read_text())
        signer = enclave.ledger.signer if enclave else _signer(data)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            writer = BackupWriter(file, passphrase, os.urandom)
            for path in _files(stage):
                name = path.relative_to(stage).as_posix()
                with path.open("rb") as source:
                    writer.add(name, source, lengths.get(name, os.fstat(source.fileno()).st_size))
            made = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = writer.finish(
                signer, region=facts["region"], account=facts["account"], made=made, version=__version__
            )
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target)
        sync_directory(target.parent)
        return manifest
    except OSError as error:
        raise _unwritable(error, target) from error
    finally:
        draft.unlink(missing_ok=True)
        shutil.rmtree(stage, ignore_errors=True)


def _staged(data: Path, stage: Path, enclave: Enclave | None) -> dict[str, int]:
    """Lay out what the backup holds; returns how much counts of files that still grow."""
    for name in _PLAIN:
        if (data / name).exists():
            _link(data / name, stage / name)
    with enclave.guard.keeping_blobs() if enclave else contextlib.nullcontext():
        _copy_database(data / "records.sqlite", stage / "records.sqlite")
        _link_tree(data / "blobs", stage / "blobs", lambda name: name != ".incoming")
    keyring = enclave.keyring if enclave else Keyring(data / "keys" / "ring", os.urandom)
    with keyring.still():
        _link_tree(data / "keys", stage / "keys", lambda name: name not in ("lock", "ledger"))
    _link_tree(data / "tls", stage / "tls", lambda _: True)
    lengths: dict[str, int] = {}
    (stage / "keys" / "ledger").mkdir(mode=0o700)
    for path in (data / "keys" / "ledger").glob("*.key*"):
        _link(path, stage / "keys" / "ledger" / path.name)
    (stage / "ledger").mkdir(mode=0o700)
    for directory in sorted(path for path in (data / "ledger").iterdir() if path.is_dir()):
        with enclave.ledger.still(directory.name) if enclave else contextlib.nullcontext():
            _link_tree(directory, stage / "ledger" / directory.name, lambda name: not name.endswith(".incomplete"))
            head = data / "keys" / "ledger" / f"{directory.name}.head"
            if head.exists():
                _link(head, stage / "keys" / "ledger" / head.name)
            for segment in (directory / "tail").glob("*"):
                lengths[f"ledger/{directory.name}/tail/{segment.name}"] = segment.stat().st_size
    return lengths


def _signer(data: Path) -> Signer:
    """The ledger's key of an enclave that is down."""
    path = data / "keys" / "ledger" / "signing.key"
    if not path.exists():
        raise ConfigurationFault(["the ledger's key is sealed: start and unseal the enclave, then back it up"])
    return Signer(path.read_bytes())


def _copy_database(source: Path, target: Path) -> None:
    """The database at one instant, whatever is written meanwhile."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)
    target.chmod(0o600)


def _link(source: Path, target: Path) -> None:
    os.link(source, target, follow_symlinks=False)


def _link_tree(source: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    target.mkdir(mode=0o700, parents=True)
    if not source.is_dir():
        return
    with os.scandir(source) as found:
        for entry in found:
            if not wanted(entry.name) or entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                _link_tree(Path(entry.path), target / entry.name, wanted)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # a blob that no record named went away
                    _link(Path(entry.path), target / entry.name)


def _files(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def forget_stage(data: Path) -> None:
    """Remove what a backup that was cut short left: its links would keep deleted blobs. Call it at start."""
    shutil.rmtree(data / _STAGE, ignore_errors=True)


def _unwritable(error: OSError, path: Path) -> ConfigurationFault:
    return ConfigurationFault([f"{error.filename or path}: {error.strerror or error}"])


def verify(source: Path, passphrase: str) -> Manifest:
    """Read a backup to its end. Raises IntegrityFault, or ConfigurationFault for what is no backup."""
    try:
        with source.open("rb") as file:
            reader = BackupReader(file, passphrase)
            for entry in reader.entries():
                for _ in entry.chunks:
                    pass
    except OSError as error:
        raise _unwritable(error, source) from error
    if reader.manifest is None:
        raise IntegrityFault("the backup has no end")
    return reader.manifest


def restore(source: Path, data: Path, passphrase: str, *, signer: str = "") -> Manifest:
    """Lay the enclave of a backup out in an empty directory.

    Args:
        signer: Fingerprint of the ledger key that must have signed it (its first characters suffice); "" for any.
    Raises:
        ConfigurationFault: the directory is not empty, this is no backup, or another enclave's key signed it.
        IntegrityFault: the backup was changed or cut. Nothing was written.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise ConfigurationFault([f"{data} is not empty: name a new directory with --data"])
    manifest = verify(source, passphrase)
    if not manifest.signer.startswith(signer.lower()):
        raise ConfigurationFault([f"the backup is signed by {manifest.signer[:16]}…, not by {signer}"])
    data.parent.mkdir(parents=True, exist_ok=True)
    draft = data.with_name(f".{data.name}.restoring")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    try:
        with source.open("rb") as file:
            reader = BackupReader(file, passphrase)
            for entry in reader.entries():
                _write(draft / entry.path, entry.chunks)
        if reader.manifest != manifest:
            raise IntegrityFault("the backup changed while it was restored")
        for folder, _, _ in os.walk(draft):
            sync_directory(Path(folder))
        if data.exists():
            data.rmdir()
        draft.rename(data)
        sync_directory(data.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _unwritable(error, data) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return manifest


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    for folder in reversed([folder for folder in path.parents if not folder.exists()]):
        folder.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
