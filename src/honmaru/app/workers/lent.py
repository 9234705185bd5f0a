"""What a worker has instead of a ledger and a blob sweep of its own: the first process's, over the channel.

Invariants:
- An entry is settled as durable only after the first process said so. When that process is gone, every entry that
  waits fails, none is taken any more, and the worker's process ends: no audit, no answer.
- A record that names blobs while the first process sweeps is committed after that process knows of them.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from honmaru.app.workers.channel import Channel, ChannelClosed, Kind
from honmaru.core.errors import LedgerUnavailable, StoreUnavailable
from honmaru.core.labels import Label
from honmaru.security.guard import BlobVault
from honmaru.security.ledger.ledger import encode
from honmaru.security.ledger.log import BACKLOG, Waiting

ENTRY = struct.Struct(">QBH")
"""Number of an entry, length of the event id of a change (0 for others), length of the label; all three follow."""
NUMBER = struct.Struct(">Q")
_SPARE_S = 10.0


class LentLedger:
    """What a worker's guard and gateway have of the ledger (`security.ledger.Ledger`). Thread-safe."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Waiting] = {}
        self._writable = True
        self._ended = False

    @property
    def writable(self) -> bool:
        return self._writable and not self._ended

    def append(self, label: Label, entry: Mapping[str, Any]) -> Future[Any]:
        """The entry of a change: its event id goes along, so that nobody appends it again. As `Ledger.append`."""
        future: Future[Any] = Future()
        self._send(label, entry, future, str(entry["eventID"]).encode())
        return future

    def append_to(self, label: Label, entry: Mapping[str, Any], waiting: Waiting) -> None:
        """As `Ledger.append_to`."""
        self._send(label, entry, waiting, b"")

    def _send(self, label: Label, entry: Mapping[str, Any], waiting: Waiting, event: bytes) -> None:
        body = encode(entry)
        if not self.writable or len(self._waiting) >= BACKLOG:
            raise LedgerUnavailable("the audit ledger cannot be written")
        number = next(self._numbers)
        canonical = label.canonical.encode()
        self._waiting[number] = waiting
        try:
            self._channel.send(Kind.ENTRY, ENTRY.pack(number, len(event), len(canonical)), event, canonical, body)
        except ChannelClosed as closed:
            self._waiting.pop(number, None)
            raise LedgerUnavailable("the audit ledger cannot be written: its writer is gone") from closed
        if self._ended:
            self.fail()

    # Told by the channel

    def settle(self, number: int, *, durable: bool) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None or not waiting.set_running_or_notify_cancel():
            return
        if durable:
            waiting.set_result(None)
        else:
            self._writable = False  # until the first process says that it can be written again
            waiting.set_exception(LedgerUnavailable("the audit ledger cannot be written"))

    def tell(self, writable: bool) -> None:
        self._writable = writable

    def fail(self) -> None:
        """The writer is gone: so is every entry that waits for it."""
        self._ended = True
        for number in list(self._waiting):
            self.settle(number, durable=False)


class LentBlobs:
    """What a worker's vault knows of the other processes (`security.guard.Peers`). Thread-safe."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._asked: dict[int, threading.Event] = {}

    def drop(self, path: str) -> None:
        try:
            self._channel.send(Kind.DROP, path.encode())
        except ChannelClosed:
            return  # the next start's sweep finds it

    def spare(self, blob_ids: Sequence[str]) -> None:
        number, known = next(self._numbers), threading.Event()
        self._asked[number] = known
        try:
            self._channel.send(Kind.SPARE, NUMBER.pack(number), orjson.dumps(list(blob_ids)))
            if not known.wait(_SPARE_S):
                raise StoreUnavailable("the process that sweeps the blob store does not answer")
        except ChannelClosed as closed:
            raise StoreUnavailable("the process that sweeps the blob store is gone") from closed
        finally:
            self._asked.pop(number, None)

    def sweeping(self, _on: bool) -> None:
        """A worker sweeps nothing."""
        raise RuntimeError("only the enclave's first process sweeps")

    def spared(self, number: int) -> None:
        known = self._asked.get(number)
        if known is not None:
            known.set()


@dataclass(frozen=True, slots=True)
class Lent:
    """What a worker's enclave has of the first process. `owner` is its name in the outbox and in the blob store."""

    owner: str
    ledger: LentLedger
    blobs: LentBlobs
    forward_to: Path
    rates_memory: int


def listener(
    channel: Callable[[], Channel], ledger: LentLedger, blobs: LentBlobs, vault: Callable[[], BlobVault]
) -> Callable[[int, bytes], None]:
    """What a worker does with the frames that come after the first."""

    def doom(path: str) -> None:
        def free() -> None:
            try:
                channel().send(Kind.FREE, path.encode())
            except ChannelClosed:
                return

        vault().await_readers(path, free)

    def handle(kind: int, payload: bytes) -> None:
        if kind in (Kind.DURABLE, Kind.REFUSED):
            ledger.settle(NUMBER.unpack(payload)[0], durable=kind == Kind.DURABLE)
        elif kind == Kind.WRITABLE:
            ledger.tell(payload == b"\1")
        elif kind == Kind.SPARED:
            blobs.spared(NUMBER.unpack(payload)[0])
        elif kind == Kind.DOOM:
            doom(payload.decode())
        elif kind == Kind.GONE:
            vault().gone(payload.decode())
        elif kind == Kind.SWEEP:
            vault().tell_sweep(payload == b"\1")
            if payload == b"\1":
                channel().send(Kind.TELLING)

    return handle
