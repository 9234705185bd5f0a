"""A keep in a directory, for tests: real stores, keyring and guard; deterministic time and ids; a ledger in memory."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from honmaru.core.errors import LedgerUnavailable
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard import Guard
from honmaru.stores.blobs_obstore import ObstoreBlobStore
from honmaru.stores.records_sql import SqlRecordStore

ACCOUNT = "123456789012"
_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@contextmanager
def quick_directory() -> Iterator[Path]:
    """A directory in memory where there is one: for tests of behaviour, which must not pay for fsync."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made inside
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="honmaru-test-", dir=parent) as name:
        yield Path(name)


class SteppedClock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class SeededIds:
    """Ids that depend on the seed and on how many were drawn since `reseed`, and on nothing else."""

    def __init__(self, seed: str = "") -> None:
        self._lock = threading.Lock()
        self.reseed(seed)

    def reseed(self, seed: str) -> None:
        self._seed = seed
        self._drawn = 0

    def secret(self, size_bytes: int) -> bytes:
        with self._lock:
            self._drawn += 1
            return hashlib.shake_256(f"{self._seed}/{self._drawn}".encode()).digest(size_bytes)

    def uuid(self) -> str:
        raw = self.secret(16).hex()
        return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-8{raw[17:20]}-{raw[20:]}"

    def token(self, prefix: str, length: int) -> str:
        return prefix + "".join(_ALPHABET[byte % 32] for byte in self.secret(length))


class MemoryLog:
    """A ledger that keeps entries by label; `writable` False makes it refuse."""

    def __init__(self) -> None:
        self.writable = True
        self.entries: dict[str, list[Mapping[str, Any]]] = {}

    def append(self, label: Label, entry: Mapping[str, Any]) -> Future[Any]:
        if not self.writable:
            raise LedgerUnavailable("the ledger cannot be written")
        future: Future[Any] = Future()
        self.entries.setdefault(label.canonical, []).append(dict(entry))
        future.set_result(None)
        return future

    def append_to(self, label: Label, entry: Mapping[str, Any], waiting: Any) -> None:
        self.append(label, entry)
        waiting.set_result(None)


def session(marking: str, *, account: str = ACCOUNT, name: str = "tester") -> Session:
    """A user's session at a label."""
    arn = f"arn:aws-iso:iam::{account}:user/{name}"
    return Session(account, "aws-iso", "us-iso-east-1", arn, f"AIDA{name.upper()}", "user", Label.parse(marking), arn)


@dataclass
class Keep:
    """A guard over a directory. Two keeps over the same directory, one after the other, are a restart."""

    directory: Path
    url: str = ""
    clock: SteppedClock = field(default_factory=SteppedClock)
    ids: SeededIds = field(default_factory=SeededIds)
    ledger: Any = field(default_factory=MemoryLog)
    """A MemoryLog, or a real `security.ledger.Ledger`."""

    def __post_init__(self) -> None:
        self.directory.chmod(0o700)
        self.store = SqlRecordStore(self.url or f"sqlite:///{self.directory}/records.db")
        self.blob_store = ObstoreBlobStore(self.directory / "blobs")
        self.keyring = Keyring(self.directory / "keys", secrets.token_bytes)
        self.guard = Guard(self.store, self.blob_store, self.keyring, self.ledger, self.clock, self.ids)

    def call(
        self,
        who: Session,
        operation: str,
        *,
        service: str = "s3",
        headers: Mapping[str, str] | None = None,
        authorizer: Callable[[Session, str, str, Mapping[str, Any]], None] = lambda *_: None,
    ) -> Call:
        """What the gateway would hand to a provider; by default IAM allows everything."""
        return Call(
            session=who,
            service=service,
            operation=operation,
            request_id=self.ids.uuid(),
            now=self.clock.now(),
            guard=self.guard,
            headers=dict(headers or {}),
            query={},
            authorizer=authorizer,
        )

    def close(self) -> None:
        self.store.close()


@dataclass
class Upload:
    """A ByteStream over bytes in memory, with trailers known at its end."""

    content: bytes
    length: int | None = None
    sent_trailers: Mapping[str, str] = field(default_factory=dict)
    _at: int = 0

    def read(self, size: int = 1 << 20) -> bytes:
        piece = self.content[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece

    @property
    def trailers(self) -> Mapping[str, str]:
        return self.sent_trailers if self._at >= len(self.content) else {}
