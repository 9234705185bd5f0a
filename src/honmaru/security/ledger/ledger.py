"""The audit ledger of an enclave: one log per label, written before any answer leaves.

Invariants:
- The log of one label holds nothing of another label: logs have their own directory, thread, checkpoint and tail.
- A ledger directory is written by one process at a time.
- Heads (the newest checkpoint of each log) and keys lie outside the ledger directory, so that rolling the directory
  back, or removing a log from it, is seen at the next start.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from honmaru.core.errors import ConfigurationFault, IntegrityFault, LedgerUnavailable, ValidationFault
from honmaru.core.labels import Label
from honmaru.ports.runtime import Clock
from honmaru.security.crypto.secret_files import private_directory, read_or_create
from honmaru.security.ledger.checkpoints import Checkpoint, Signer
from honmaru.security.ledger.entries import MAX_ENTRY_BYTES
from honmaru.security.ledger.log import Log, Receipt, Waiting
from honmaru.security.ledger.proofs import ConsistencyProof, InclusionProof, prove_consistency, prove_inclusion
from honmaru.security.ledger.reading import backward, forward, position
from honmaru.security.ledger.tiles import DRAFT

CHECKPOINT_INTERVAL_S = 0.1
"""Longest time that a durable entry waits for a signed checkpoint while the disk keeps up."""


class Ledger:
    """See the module. Thread-safe; every method may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        secret: Callable[[int], bytes],
        heads: Path | None = None,
        kept: Callable[[Path, Callable[[], bytes]], bytes] = read_or_create,
    ) -> None:
        """Open the ledger in `directory`, recovering every log in it.

        `heads` holds the keys and heads; by default `keys/ledger` beside `directory`. `secret` makes random bytes.
        `kept` keeps a secret in a file (`Keyring.kept`, where the root key may be sealed).
        Raises IntegrityFault when a log does not extend what was signed before, ConfigurationFault when another
        process has the ledger open or its files are open to others.
        """
        self._directory = directory
        self._heads = heads or directory.parent / "keys" / "ledger"
        self._clock = clock
        private_directory(directory)
        private_directory(self._heads)
        self._news = threading.Event()
        self._lock_file = _lock(self._heads / "lock")
        try:
            self.signer = Signer(kept(self._heads / "signing.key", lambda: secret(32)))
            self._tail_key = kept(self._heads / "tail.key", lambda: secret(48))
            self._logs: dict[str, Log] = {}
            for label in self._stored_labels():
                log = self._logs[label.canonical] = self._make(label)
                log.open()
        except BaseException:
            os.close(self._lock_file)
            raise
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._sealer = threading.Thread(target=self._seal, name="ledger-sealer", daemon=True)
        self._sealer.start()

    # Writing

    def append(self, label: Label, entry: Mapping[str, Any]) -> Future[Receipt]:
        """Append an entry to the log of `label`; the future resolves once it is durable.

        The entry is a JSON object of at most 65,000 bytes with an "eventID"; the ledger puts its "index" and the time
        "recorded" in front. Raises LedgerUnavailable, here or in the future, while the disk cannot be written.
        """
        future: Future[Receipt] = Future()
        self.append_to(label, entry, future)
        return future

    def append_to(self, label: Label, entry: Mapping[str, Any], waiting: Waiting) -> None:
        """As `append`, settling what the caller brought: a `Future` costs more than the entry."""
        self._log(label).submit(encode(entry), waiting)

    def append_encoded(self, label: Label, body: bytes, waiting: Waiting) -> None:
        """As `append_to`, of what `encode` made in another process of this enclave. Raises ValidationFault too."""
        if len(body) > MAX_ENTRY_BYTES or body[:1] != b"{" or body[-1:] != b"}":
            raise ValidationFault("that is no ledger entry")
        self._log(label).submit(body, waiting)

    @property
    def writable(self) -> bool:
        """False from a failed write until writing works again; the ledger tries by itself, four times a second."""
        return not self._closing.is_set() and all(log.fault is None for log in list(self._logs.values()))

    @property
    def fault(self) -> str | None:
        """Why the ledger cannot be written, for the operator."""
        return next((log.fault for log in list(self._logs.values()) if log.fault is not None), None)

    def checkpoint(self, label: Label) -> Checkpoint:
        """A signed checkpoint over everything durable in a label's log. Raises IndexError or LedgerUnavailable."""
        return self._existing(label).seal()

    @contextmanager
    def still(self, token: str) -> Iterator[None]:
        """Sign everything durable in the log of a label's token, and let none of its files go until the end: its
        directory may be copied meanwhile. Entries go on being appended to its tail."""
        log = next((log for log in list(self._logs.values()) if log.label.token == token), None)
        if log is None:
            yield
            return
        with log.sealed():
            log.seal()
            yield

    def close(self) -> None:
        """Write and sign what is queued, then stop. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._news.set()
        self._sealer.join()
        for log in list(self._logs.values()):
            log.close()
        os.close(self._lock_file)

    # Reading

    def labels(self) -> list[Label]:
        """Labels that have a log. For a session, use only those that its label dominates."""
        return [log.label for log in list(self._logs.values())]

    def size(self, label: Label) -> int:
        """Durable entries in a label's log."""
        log = self._logs.get(label.canonical)
        return log.size if log else 0

    def lag(self, label: Label) -> int:
        """Durable entries of a label's log that no signed checkpoint covers yet."""
        log = self._logs.get(label.canonical)
        return log.lag if log else 0

    def entries(self, label: Label, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Entries `start` to `stop` (exclusive), in order. Raises IntegrityFault at a bundle that does not verify."""
        log, size = self._logs.get(label.canonical), self.size(label)
        return iter(()) if log is None else forward(log, start, size if stop is None else min(stop, size))

    def backward(
        self, label: Label, before: int, words: Sequence[str] = (), *, until: int = 0
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, entry) from `before` - 1 down to `until`, of entries with every word in some string of theirs.

        Bundles without the words are passed over without being parsed.
        """
        log = self._logs.get(label.canonical)
        return iter(()) if log is None else backward(log, before, words, until=until)

    def position(self, label: Label, time: str) -> int:
        """Index of the first entry recorded at `time` (ISO 8601, UTC, Z) or later; the size when there is none."""
        log = self._logs.get(label.canonical)
        return 0 if log is None else position(log, time)

    def inclusion_proof(self, label: Label, index: int) -> InclusionProof:
        """Proof that entry `index` is in a label's log. Raises IndexError, LedgerUnavailable or IntegrityFault."""
        log = self._existing(label)
        with log.sealed():
            checkpoint = log.seal()
            if not 0 <= index < checkpoint.size:
                raise IndexError(f"the log has {checkpoint.size} entries, no entry {index}")
            return prove_inclusion(log.files, checkpoint, index, log.read(index)[0])

    def consistency_proof(self, label: Label, first: int) -> ConsistencyProof:
        """Proof that the log extends its first `first` entries. Raises as `inclusion_proof`."""
        log = self._existing(label)
        with log.sealed():
            return prove_consistency(log.files, log.seal(), first)

    # Inside

    def _log(self, label: Label) -> Log:
        log = self._logs.get(label.canonical)
        if log is not None:
            return log
        with self._guard:
            if self._closing.is_set():
                raise LedgerUnavailable("the audit ledger is closed")
            return self._logs.setdefault(label.canonical, self._make(label))

    def _existing(self, label: Label) -> Log:
        log = self._logs.get(label.canonical)
        if log is None:
            raise IndexError(f"the label {label.banner} has no log")
        return log

    def _make(self, label: Label) -> Log:
        head = self._heads / f"{label.token}.head"
        return Log(self._directory / label.token, head, label, self.signer, self._tail_key, self._clock, self._news.set)

    def _stored_labels(self) -> list[Label]:
        """Labels of the logs on disk; every head must have its log."""
        labels = []
        names = {path.name for path in self._directory.iterdir() if path.is_dir()}
        for name in sorted(names):
            try:
                about = orjson.loads((self._directory / name / "label.json").read_bytes())
                label = Label.decode(about["label"])
            except FileNotFoundError:
                if (self._heads / f"{name}.head").exists():
                    raise IntegrityFault(f"{self._directory / name / 'label.json'} is missing: restore it") from None
                _clear_unborn(self._directory / name)
                continue
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise IntegrityFault(f"{self._directory / name / 'label.json'} does not state a label") from error
            if label.token != name:
                raise IntegrityFault(f"{self._directory / name} states the label of another log")
            labels.append(label)
        for head in self._heads.glob("*.head"):
            if head.stem not in names:
                raise IntegrityFault(f"{self._directory / head.stem} is missing, but {head} exists: restore the log")
        return labels

    def _seal(self) -> None:
        while not self._closing.is_set():
            self._news.wait()
            self._closing.wait(CHECKPOINT_INTERVAL_S)
            self._news.clear()
            for log in list(self._logs.values()):
                if log.unsigned and not self._closing.is_set():
                    try:
                        log.seal()
                    except LedgerUnavailable:
                        continue  # the log says so itself, and its writer tries again


def encode(entry: Mapping[str, Any]) -> bytes:
    """An entry as JSON bytes; text that is not Unicode is written with replacement characters.

    Raises ValidationFault when it is too large or has no event id, TypeError for values that are not JSON.
    """
    if not isinstance(entry.get("eventID"), str) or "index" in entry or "recorded" in entry:
        raise ValidationFault('a ledger entry needs an "eventID"; "index" and "recorded" are the ledger\'s to give')
    try:
        body = orjson.dumps(entry if type(entry) is dict else dict(entry))
    except orjson.JSONEncodeError:
        body = orjson.dumps(_clean(entry))
    if len(body) > MAX_ENTRY_BYTES:
        raise ValidationFault(f"a ledger entry of {len(body)} bytes is over the limit of {MAX_ENTRY_BYTES}")
    return body


def _clean(value: Any) -> Any:
    """The value with lone surrogates replaced, mappings and sequences made plain."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item) for item in value]
    return value


def _clear_unborn(directory: Path) -> None:
    """Remove a log's directory that a crash left before the log was laid out; the first append makes it again.

    Its label is the first file of a log, durable before any entry, so there is nothing here but drafts. Raises
    IntegrityFault where there is more.
    """
    for path in directory.iterdir():
        if path.suffix != DRAFT:
            raise IntegrityFault(f"{directory / 'label.json'} is missing, but {path.name} is there: restore it")
        path.unlink()
    directory.rmdir()


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigurationFault(
            [f"another honmaru process writes this ledger ({path} is locked): stop it with `honmaru down` first"]
        ) from None
    return descriptor
