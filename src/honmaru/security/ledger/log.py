"""One append-only log of one label: group commit in a writer thread, checkpoints behind it.

Invariants:
- A future is resolved only after its entry is durable, and entries keep the order of their indices: gapless from 0.
- Times never go back: an entry is recorded at the clock's time or at the time of the entry before it, if that is later.
- After a failed write nothing is assumed: the log is read back from disk before it is written again, cut to what was
  acknowledged. Until that works, appends are refused.
- What is signed was durable first; the head outside the log is never ahead of the log.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol

import orjson

from honmaru.core.errors import IntegrityFault, LedgerUnavailable
from honmaru.core.labels import Label
from honmaru.ports.runtime import Clock
from honmaru.security.ledger.checkpoints import Checkpoint, Signer
from honmaru.security.ledger.recovery import Recovered, bundle_files, recorded, recover, stored_bundle, tile_files
from honmaru.security.ledger.tail import TailKey, TailWriter, segment_path, segment_paths
from honmaru.security.ledger.tiles import (
    ALGORITHMS,
    TileFiles,
    bundle_path,
    pack,
    remove_partial,
    sync,
    sync_files,
    write_file,
)
from honmaru.security.ledger.tree import WIDTH, Tree

BATCH = 1024
"""Most entries in one frame."""
ROTATE_BYTES = 4 << 20
"""Size of a tail segment after which the next one is begun."""
RETRY_S = 0.25
"""Pause between attempts to write again after a failure."""
MAX_UNSIGNED = 32_768
"""Durable entries without a checkpoint after which appends wait until they are signed."""
BACKLOG = 65_536
"""Most entries that may wait for the disk."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an entry is, durable: its log's label and its index in that log."""

    label: Label
    index: int


class Waiting(Protocol):
    """Whoever waits for an entry: what `concurrent.futures.Future` has of it. Settled from the writer's thread."""

    def set_running_or_notify_cancel(self) -> bool: ...

    def cancelled(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


class Log:
    """A log directory and the thread that writes it. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        head: Path,
        label: Label,
        signer: Signer,
        key: bytes,
        clock: Clock,
        durable: Callable[[], None],
    ) -> None:
        """Touches no disk yet. `durable` is called, from the writer thread, when entries wait for a checkpoint."""
        self.label = label
        self._durable = durable
        self.directory = directory
        self.origin = signer.verifier.origin(label.token)
        self.files = TileFiles(directory)
        self._head = head
        self._signer = signer
        self._key = TailKey(key, self.origin)
        self._clock = clock
        self._condition = threading.Condition()
        self._queue: deque[tuple[bytes, Waiting]] = deque()
        self._fault: str | None = None
        self._closing = False
        self._opened = False
        self._size = 0
        self._recent: list[bytes] = []
        self._recent_first = 0
        self._last_time = ""
        self._tail: TailWriter | None = None
        self._rotate = False
        # What follows is guarded by _sealing, which is taken before _condition.
        self._sealing = threading.RLock()
        self._trees = [Tree(algorithm) for algorithm in ALGORITHMS]
        self._pending: dict[str, bytes] = {}
        self._unsynced: list[str] = []
        self._synced = 0
        self._segments: list[int] = []
        self._checkpoint: Checkpoint | None = None
        self._thread: threading.Thread | None = None

    # The public face

    @property
    def fault(self) -> str | None:
        """Why the log cannot be written now; None when it can."""
        return self._fault

    @property
    def size(self) -> int:
        """Entries that are durable."""
        return self._size

    @property
    def unsigned(self) -> bool:
        """Whether entries are durable that no checkpoint covers yet."""
        return self._fault is None and self._signed < self._size

    @property
    def lag(self) -> int:
        """Durable entries that no checkpoint covers yet."""
        return max(0, self._size - self._signed)

    def open(self) -> None:
        """Recover an existing log now, or make it. Raises IntegrityFault or OSError."""
        with self._sealing:
            self._open()

    def submit(self, body: bytes, future: Waiting) -> None:
        """Queue an encoded JSON object. Raises LedgerUnavailable while the log cannot be written."""
        with self._condition:
            if self._closing or self._fault is not None:
                raise LedgerUnavailable(f"the audit ledger cannot be written: {self._fault or 'it is closed'}")
            if len(self._queue) >= BACKLOG:
                raise LedgerUnavailable(f"{BACKLOG} ledger entries wait for the disk already")
            self._start_writer()
            self._queue.append((body, future))
            self._condition.notify()

    def read(self, start: int) -> list[bytes]:
        """Entries from `start` to the end of its bundle, or to the end of the log.

        Raises IntegrityFault when a stored bundle does not match the tree.
        """
        with self._condition:
            if start >= self._recent_first:
                at = start - self._recent_first
                return self._recent[at : at + WIDTH - at % WIDTH]
        return stored_bundle(self.files, start // WIDTH)[start % WIDTH :]

    def seal(self) -> Checkpoint:
        """A signed checkpoint over everything durable, with all its tiles on disk. Raises LedgerUnavailable."""
        with self._sealing:
            if self._fault is None:
                try:
                    if self._tail is None:
                        self._open()
                    self._hash()
                    self._publish()
                except (OSError, IntegrityFault) as error:
                    self._fail(error)
            if self._fault is not None or self._checkpoint is None:
                raise LedgerUnavailable(f"the audit ledger cannot be written: {self._fault}")
            return self._checkpoint

    def sealed(self) -> AbstractContextManager[bool]:
        """Hold this lock and the tiles of the newest checkpoint stay where they are."""
        return self._sealing

    def close(self) -> None:
        """Write what is queued, sign it, stop. A log that cannot be written is left as it is."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._sealing:
            if self._fault is None and self._tail is not None:
                try:
                    self._hash()
                    self._publish()
                except OSError as error:
                    self._fail(error)
            if self._tail is not None:
                self._tail.close()
                self._tail = None

    # The writer thread

    def _start_writer(self) -> None:
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._run, name=f"ledger-{self.label.token}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # a defect: nobody may wait for a writer that is gone
            self._fail(LedgerUnavailable(f"its writer has stopped: {error!r}"))
            raise

    def _step(self) -> bool:
        """Write one batch, or try to get out of a failure; False when closing and done."""
        with self._condition:
            while not self._queue and not self._closing and self._fault is None:
                self._condition.wait()
            if self._fault is not None and not self._closing:
                self._condition.wait(RETRY_S)
            if self._closing and (self._fault is not None or not self._queue):
                return False
            failed = self._fault is not None
        if failed or self._tail is None or self._rotate:
            try:
                self._prepare(failed)
            except (OSError, IntegrityFault) as error:
                self._fail(error)
                return True
        if self._size - self._signed > MAX_UNSIGNED:
            self._sign_now()
            return True
        with self._condition:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH))]
        if batch:
            self._write(batch)
        return True

    @property
    def _signed(self) -> int:
        return self._checkpoint.size if self._checkpoint else 0

    def _sign_now(self) -> None:
        """Let the checkpoint catch up, so that memory and the time without a signature stay bounded."""
        with suppress(LedgerUnavailable):  # recorded as a fault: the next step deals with it
            self.seal()

    def _prepare(self, failed: bool) -> None:
        with self._sealing:
            if failed or self._tail is None:
                self._open()
                return
            self._rotate = False
            self._tail.close()
            self._tail = TailWriter(self.directory, self._size, self._key)
            self._segments.append(self._size)

    def _write(self, batch: list[tuple[bytes, Waiting]]) -> None:
        wanted = [future for _, future in batch if future.set_running_or_notify_cancel()]
        first = self._size
        try:
            self._last_time = max(self._now(), self._last_time)
            stamp = self._last_time.encode()
            entries = [
                b'{"index":%d,"recorded":"%s",%s' % (index, stamp, body[1:])
                for index, (body, _) in enumerate(batch, first)
            ]
            if self._tail is None:
                raise OSError("the tail is not open")
            self._tail.append(first, entries)
        except Exception as error:  # whatever it was: whoever waits is refused, and the log is read back first
            self._fail(error)
            for future in wanted:
                future.set_exception(LedgerUnavailable(f"the audit ledger cannot be written: {error}"))
            return
        with self._condition:
            self._recent += entries
            self._size += len(entries)
        self._durable()
        for index, (_, future) in enumerate(batch, first):
            if not future.cancelled():
                future.set_result(Receipt(self.label, index))

    def _now(self) -> str:
        return self._clock.now().astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            self._fault = str(error)
            self._start_writer()  # it is the writer that tries again
            waiting = list(self._queue)
            self._queue.clear()
            self._condition.notify_all()
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(LedgerUnavailable(f"the audit ledger cannot be written: {error}"))

    # Under the sealing lock

    def _open(self) -> None:
        """Recover from disk (or make the directory), prove that it can be written, and publish."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None
        if self._size == 0:
            self._create()
        limit = self._size if self._opened else None
        found = recover(self.directory, self._head, self._signer.verifier, self._key, self.label.canonical, limit=limit)
        if self._opened:
            self._require_acknowledged(found)
        tail = TailWriter(self.directory, found.segments[-1] if found.segments else 0, self._key, found.length)
        try:
            tail.probe()
        except OSError:
            tail.close()
            raise
        self._tail = tail
        self._segments = found.segments or [0]
        self._trees = found.trees
        self._pending = found.files
        self._unsynced = []
        self._synced = found.base
        self._checkpoint = found.checkpoint
        self._rotate = tail.size > ROTATE_BYTES
        with self._condition:
            self._recent, self._recent_first = found.entries, found.base
            self._size = found.size
            self._opened = True
            times = [recorded(entry)[1] for entry in found.entries[-1:]]
            if found.checkpoint is not None:
                times.append(found.checkpoint.time)
            self._last_time = max(times, default="")
        self._publish(refresh=True)
        with self._condition:
            self._fault = None

    def _require_acknowledged(self, found: Recovered) -> None:
        with self._condition:
            first = max(self._recent_first, found.base)
            same = found.entries[first - found.base :] == self._recent[first - self._recent_first :]
            if found.size != self._size or not same:
                raise IntegrityFault(
                    f"{self.directory} holds {found.size} entries and {self._size} were acknowledged, or they differ: "
                    "put the directory back as it was"
                )

    def _create(self) -> None:
        """Lay out a new log: its label, its key and an empty checkpoint first, so that no roll-back goes unseen."""
        head = self._signer.verifier.read(self._head, self.origin, self.label.canonical)
        if head is not None and head.size > 0:
            if not self.directory.is_dir():
                raise IntegrityFault(f"{self.directory} is missing: restore it from a backup")
            return
        if head is None and any(path.stat().st_size for _, path in segment_paths(self.directory)):
            raise IntegrityFault(f"{self._head} is missing, so a roll-back of {self.directory} would go unseen")
        self.directory.mkdir(mode=0o700, exist_ok=True)
        sync(self.directory.parent)
        about = {"label": self.label.canonical, "token": self.label.token, "origin": self.origin}
        write_file(self.directory, "label.json", orjson.dumps(about) + b"\n", durable=True)
        write_file(self.directory, "public-key", self._signer.verifier.line(self.origin).encode(), durable=True)
        if head is None:
            empty = self._sign().note.encode()
            write_file(self.directory, "checkpoint", empty, durable=True)
            write_file(self._head.parent, self._head.name, empty, durable=True)

    def _sign(self) -> Checkpoint:
        sha256, sha384 = (tree.root() for tree in self._trees)
        return self._signer.sign(
            Checkpoint(
                self.origin,
                self._trees[0].size,
                sha256,
                sha384,
                self.label.canonical,
                max(self._now(), self._last_time),
            )
        )

    def _hash(self) -> None:
        """Bring both trees up to what is durable."""
        with self._condition:
            base, start, stop = self._recent_first, self._trees[0].size, self._size
            entries = self._recent[: stop - base]
        for tree in self._trees:
            leaves = [tree.algorithm.leaf(entry) for entry in entries[start - base :]]
            self._pending |= tile_files(tree.algorithm, tree.extend(leaves))
        self._pending |= bundle_files(base, entries, start // WIDTH, stop // WIDTH)

    def _publish(self, *, refresh: bool = False) -> None:
        """Write tiles, then the checkpoint beside them, then the head outside; then let go of what is old."""
        size = self._trees[0].size
        current = self._checkpoint is not None and self._checkpoint.size == size
        if current and not refresh:
            return
        for path in list(self._pending):
            write_file(self.directory, path, self._pending[path], durable=False)
            self._unsynced.append(path)
            del self._pending[path]
        partial: dict[str, bytes] = {}
        for tree in self._trees:
            partial |= tile_files(tree.algorithm, tree.partial())
        if size % WIDTH:
            with self._condition:
                first = size - size % WIDTH - self._recent_first
                entries = self._recent[first : first + size % WIDTH]
            partial[bundle_path(size // WIDTH, size % WIDTH)] = pack(entries)
        for path, content in partial.items():
            write_file(self.directory, path, content, durable=False)
        checkpoint = self._checkpoint if current and self._checkpoint else self._sign()
        write_file(self.directory, "checkpoint", checkpoint.note.encode(), durable=True)
        write_file(self._head.parent, self._head.name, checkpoint.note.encode(), durable=True)
        self._checkpoint = checkpoint
        for path in self.files.partials():
            if path not in partial:
                remove_partial(self.directory, path)
        self._let_go(size)

    def _let_go(self, size: int) -> None:
        """Forget entries that full bundles hold; drop tail segments whose entries are durable in bundles."""
        boundary = size - size % WIDTH
        with self._condition:
            del self._recent[: boundary - self._recent_first]
            self._recent_first = boundary
        if self._tail is not None and self._tail.size > ROTATE_BYTES and not self._rotate:
            sync_files(self.directory, self._unsynced)
            self._unsynced = []
            self._synced = boundary
            self._rotate = True
        while len(self._segments) > 1 and self._segments[1] <= self._synced:
            segment_path(self.directory, self._segments.pop(0)).unlink(missing_ok=True)
