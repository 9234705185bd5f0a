"""Carrying what a job prints into its log streams while it runs.

Invariants:
- Every byte of output reaches the log exactly once, also across `kill -9`: how far the output was read is stored with
  the events themselves.
- Lines stay whole; a line longer than an event may be is cut into several events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from honmaru.core.sessions import Session
from honmaru.ports.executors import Executor
from honmaru.ports.logs import LogEvent, LogSink
from honmaru.ports.runtime import Clock

_EVENT_BYTES = 64 << 10
_TAIL_BYTES = 4096
_KEPT_BYTES = 64 << 20


class OutputFollower:
    """Follows the instances of one job. `streams` are the log streams' names, instance 1 first."""

    def __init__(
        self,
        executor: Executor,
        sink: LogSink,
        session: Session,
        clock: Clock,
        *,
        job_id: str,
        group: str,
        streams: Sequence[str],
    ) -> None:
        self._executor = executor
        self._sink = sink
        self._session = session
        self._clock = clock
        self._job_id = job_id
        self._group = group
        self._streams = streams
        self._read: dict[int, int] = {}

    def ship(self, *, final: bool = False) -> None:
        """Move complete lines into the streams; with `final` also a last line without an end."""
        for instance, stream in enumerate(self._streams, start=1):
            while self._ship_page(instance, stream, final):
                continue

    def _ship_page(self, instance: int, stream: str, final: bool) -> bool:
        """Whether something was shipped, so that there may be more."""
        if instance not in self._read:
            self._read[instance] = int(self._sink.position(self._session, self._group, stream) or 0)
        offset = self._read[instance]
        page = self._executor.output(self._job_id, instance, offset)
        whole = page.rfind(b"\n") + 1
        if whole == 0 and (final or len(page) >= _EVENT_BYTES):
            whole = len(page)
        if whole == 0:
            return False
        now = int(self._clock.now().timestamp() * 1000)
        events = [LogEvent(now, line) for line in _lines(page[:whole])]
        self._sink.append(self._session, self._group, stream, events, position=str(offset + whole))
        self._read[instance] = offset + whole
        return True

    def tail(self, instance: int) -> str:
        """The last lines of an instance's output, at most 4 KiB."""
        end = b""
        for page in self.pages(instance):
            end = (end + page)[-_TAIL_BYTES:]
        return end.decode("utf-8", "replace").strip()

    def pages(self, instance: int) -> Iterator[bytes]:
        """An instance's output from its beginning, at most 64 MiB of it."""
        offset = 0
        while offset < _KEPT_BYTES and (page := self._executor.output(self._job_id, instance, offset)):
            yield page
            offset += len(page)

    @property
    def instances(self) -> range:
        return range(1, len(self._streams) + 1)


def _lines(page: bytes) -> Iterator[str]:
    for line in page.rstrip(b"\n").split(b"\n"):
        for begin in range(0, len(line) or 1, _EVENT_BYTES):
            yield line[begin : begin + _EVENT_BYTES].decode("utf-8", "replace").rstrip("\r")
