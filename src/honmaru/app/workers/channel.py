"""The channel between the enclave's first process and one worker: a pair of sockets that only these two hold.

    frame: length (4 bytes) | kind (1) | payload

Invariants:
- Frames arrive whole and in order, each once; `ended` is called once, after the last of them.
- `send` never waits: a peer that takes nothing for too long loses its channel.
- The pair has no name: nobody else can connect to it.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import traceback
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from honmaru.core.errors import HonmaruError

_LOG = logging.getLogger("honmaru.workers")
_HEAD = struct.Struct(">IB")
_READ = 256 << 10
_MOST_FRAME_BYTES = 16 << 20
_MOST_QUEUED_BYTES = 64 << 20


class Kind(IntEnum):
    """What a frame says. The first eight go to the first process, the others to a worker."""

    READY = 1
    ENTRY = 2
    """An entry for the ledger."""
    DROP = 3
    """A blob that no record names any more."""
    FREE = 4
    """Nobody in this worker reads a blob."""
    SPARE = 5
    """Blobs that a record is about to name."""
    TELLING = 6
    """From now on every such record is told of."""
    COUNTED = 7
    """Requests that were answered."""
    HELLO = 32
    DURABLE = 33
    REFUSED = 34
    """An entry that the ledger did not take."""
    WRITABLE = 35
    DOOM = 36
    """Begin to read a blob no more, and say when nobody reads it."""
    GONE = 37
    SPARED = 38
    SWEEP = 39


class ChannelClosed(HonmaruError):
    """The other process is gone, or takes nothing."""


class Channel:
    """One end. `handle(kind, payload)` is called in the channel's own thread."""

    def __init__(
        self, connection: socket.socket, handle: Callable[[int, bytes], None], ended: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._handle, self._ended = handle, ended
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._news = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=work, name=f"channel {name}", daemon=True)
            for name, work in (("out", self._write), ("in", self._read))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def send(self, kind: Kind, *parts: bytes) -> None:
        """Queue a frame. Raises ChannelClosed."""
        frame = b"".join((_HEAD.pack(sum(map(len, parts)), kind), *parts))
        with self._news:
            if self._closed:
                raise ChannelClosed("the enclave's other process is gone")
            self._queued += len(frame)
            if self._queued > _MOST_QUEUED_BYTES:
                self._shut()
                raise ChannelClosed("the enclave's other process takes nothing")
            self._queue.append(frame)
            self._news.notify()

    def close(self) -> None:
        """Send what is queued, then end. Returns when the other end has read it or is gone."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._threads[0].join()
        self._threads[1].join()
        self._connection.close()

    def drained(self, timeout_s: float) -> bool:
        """Whether the channel ended, and everything that came was handled, within the time."""
        self._threads[1].join(timeout_s)
        return not self._threads[1].is_alive()

    def _shut(self) -> None:
        self._closed = True
        self._connection.shutdown(socket.SHUT_RDWR)

    def _write(self) -> None:
        while True:
            with self._news:
                while not self._queue and not self._closed:
                    self._news.wait()
                frames, self._queue = self._queue, deque()
                self._queued = 0
                closed = self._closed
            try:
                if frames:
                    self._connection.sendall(b"".join(frames))
                if closed:
                    self._connection.shutdown(socket.SHUT_WR)
                    return
            except OSError:
                return  # the reading thread sees the same end

    def _read(self) -> None:
        buffer = bytearray()
        try:
            while piece := self._connection.recv(_READ):
                buffer += piece
                at = 0
                while len(buffer) - at >= _HEAD.size:
                    length, kind = _HEAD.unpack_from(buffer, at)
                    if length > _MOST_FRAME_BYTES:
                        return
                    if len(buffer) - at - _HEAD.size < length:
                        break
                    start = at + _HEAD.size
                    at = start + length
                    self._handle(kind, bytes(buffer[start:at]))
                del buffer[:at]
        except OSError:
            pass  # the other end is gone
        except Exception as fault:  # a frame that cannot be handled: nothing after it is believed
            # Kind and place only: a value may be above this log's label.
            places = "".join(traceback.format_tb(fault.__traceback__))
            _LOG.error("a channel between processes ends: %s\n%s", type(fault).__name__, places)
            self._connection.close()
        finally:
            with self._news:
                self._closed = True
                self._news.notify()
            self._ended()
