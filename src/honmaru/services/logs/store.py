"""Log groups, streams and events as guarded records: sealed at rest, at the label of the session that wrote them.

A stream's events lie in chunks, one record each, numbered within the stream. A stream's record counts its chunks.

Invariants:
- An append is one transaction: the chunk, the stream's counters and the writer's position, or nothing.
- Events keep the order in which they were appended; a chunk is never changed.
- Expiry deletes whole chunks from a stream's beginning; the places of the events that are left stay as they are.
- A session writes only into a group and a stream of its own label: where only a lower one is visible, it makes its
  own beside it, so a deletion below never takes away what was written above.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from honmaru.core.errors import Conflict
from honmaru.core.sessions import Session
from honmaru.ports.keys import SessionKeys
from honmaru.ports.logs import LogEvent
from honmaru.ports.metrics import MetricSink
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Guard, GuardedRecords, Record
from honmaru.security.guard.records import Creation, Removal, Revision
from honmaru.services.logs.seals import EVENT_OVERHEAD, Seals, last_ms

SERVICE = "logs"
GROUP, STREAM, CHUNK, FILTER = "log-group", "log-stream", "log-chunk", "metric-filter"
_CHUNK_EVENTS = 1000
_CHUNK_BYTES = 512 << 10
_EXPIRE_CHUNKS = 100
AHEAD_MS = 2 * 3_600_000
"""How far ahead of its arrival an event may say that it is."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """`place` orders the events of a stream: its number from 0."""

    place: int
    timestamp_ms: int
    ingested_ms: int
    message: str


class LogStore:
    """A `ports.logs.LogSink`, and what the Logs API reads. Thread-safe."""

    def __init__(
        self,
        guard: Guard,
        clock: Clock,
        ids: Ids,
        metrics: MetricSink | None = None,
        keys: SessionKeys | None = None,
    ) -> None:
        """`metrics` takes what metric filters make of events; without it filters make nothing. `keys` are used by
        groups that are sealed under keys of KMS."""
        self.seals = Seals(keys, clock, ids)
        self._guard = guard
        self._clock = clock
        self._ids = ids
        self._metrics = metrics

    # Writing

    def append(
        self, session: Session, group: str, stream: str, events: Sequence[LogEvent], *, position: str = ""
    ) -> None:
        """See `ports.logs.LogSink`."""
        records = self._records(session)
        while True:
            try:
                own = self.own_stream(records, group, stream)
                self._append(records, own, events, position)
                break
            except Conflict:  # another writer of the same stream won
                continue
        if self._metrics is not None and events:
            from honmaru.services.logs import metric_filters

            metric_filters.apply(self._metrics, records, session, group, events)

    def position(self, session: Session, group: str, stream: str) -> str:
        """See `ports.logs.LogSink`."""
        found = self.stream(self._records(session), group, stream)
        return "" if found is None or found.label != session.label else str(found.body["position"])

    def _append(self, records: GuardedRecords, stream: Record, events: Sequence[LogEvent], position: str) -> None:
        now = self._now_ms()
        body = dict(stream.body)
        group = self._group_of(records, stream)
        changes: list[Creation | Revision] = []
        for batch in _batches(events):
            name = chunk_name(body["uid"], body["chunks"])
            stored = [[event.timestamp_ms, event.message] for event in batch]
            held = {"events": stored} if group is None else self.seals.seal(records.session, group, name, stored)
            chunk = {"stream": body["uid"], "first": body["events"], "ingested_ms": now, **held}
            changes.append(Creation(CHUNK, name, chunk))
            times = [event.timestamp_ms for event in batch]
            body["first_ms"] = min([*times, *([body["first_ms"]] if body["first_ms"] is not None else [])])
            body["last_ms"] = max([*times, *([body["last_ms"]] if body["last_ms"] is not None else [])])
            body["ingested_ms"] = now
            body["bytes"] += sum(len(event.message.encode("utf-8", "replace")) + EVENT_OVERHEAD for event in batch)
            body["chunks"] += 1
            body["events"] += len(batch)
        body["position"] = position or body["position"]
        records.apply([Revision(stream, body), *changes])

    def own_stream(self, records: GuardedRecords, group: str, stream: str) -> Record:
        """The stream of the session's own label, made with its group where absent. Raises Conflict: try again."""
        found = self.stream(records, group, stream)
        if found is not None and found.label == records.session.label:
            return found
        self.own_group(records, group)
        return self.create_stream(records, group, stream)

    def own_group(self, records: GuardedRecords, group: str) -> Record:
        found = self.group(records, group)
        if found is not None and found.label == records.session.label:
            return found
        return self.create_group(records, group, {})

    def create_group(
        self, records: GuardedRecords, group: str, tags: dict[str, str], *, protected: bool = False, key: str = ""
    ) -> Record:
        """`key` is the ARN of a key of KMS. Raises ValidationFault, and Conflict when the session's label has one."""
        body: dict[str, Any] = {"tags": tags, "retention": None, "protected": protected}
        if key:
            body |= self.seals.associated(records.session, group, body, key)
        return records.create(GROUP, group, body)

    def create_stream(self, records: GuardedRecords, group: str, stream: str) -> Record:
        """Raises Conflict when there is one at the session's label."""
        body = {
            "uid": self._ids.token("ls-", 20),
            "chunks": 0,
            "events": 0,
            "bytes": 0,
            "first_ms": None,
            "last_ms": None,
            "ingested_ms": None,
            "position": "",
        }
        return records.create(STREAM, _stream_name(group, stream), body)

    def delete_stream(self, records: GuardedRecords, stream: Record) -> None:
        """Delete a stream with its events, atomically. Raises AccessDenied for a stream of another label."""
        records.apply(self._removals(records, stream))

    def delete_group(self, records: GuardedRecords, group: Record) -> None:
        """Delete a group with its streams at its label, atomically. Raises AccessDenied for one of another label."""
        removals = [Removal(group)]
        for stream in self.streams(records, group.name):
            if stream.label == group.label:
                removals += self._removals(records, stream)
        removals += [Removal(each) for each in records.iterate(FILTER, prefix=f"{group.name}:") if _own(each, group)]
        records.apply(removals)

    def expire(self, records: GuardedRecords, stream: Record, before_ms: int) -> int:
        """Delete the chunks at a stream's beginning whose events are all older than a time; returns how many.

        Raises Conflict when the stream was written to meanwhile; what was deleted by then stays deleted.
        """
        expired = 0
        while True:
            removals: list[Removal] = []
            first, freed = int(stream.body.get("gone", 0)), 0
            for chunk in self._chunks(records, stream, 0):
                if len(removals) == _EXPIRE_CHUNKS or last_ms(chunk) >= before_ms:
                    break
                removals.append(Removal(chunk))
                freed += _size(chunk)
                first = int(chunk.name.rpartition(":")[2]) + 1
            if not removals:
                return expired
            body = {**stream.body, "gone": first, "bytes": max(0, int(stream.body["bytes"]) - freed)}
            if first == body["chunks"]:
                body["first_ms"] = None
            stream = records.apply([Revision(stream, body), *removals])[0]
            expired += len(removals)

    def _removals(self, records: GuardedRecords, stream: Record) -> list[Removal]:
        return [Removal(stream), *(Removal(chunk) for chunk in self._chunks(records, stream, 0))]

    # Reading

    def group(self, records: GuardedRecords, group: str) -> Record | None:
        return records.get(GROUP, group)

    def stream(self, records: GuardedRecords, group: str, stream: str) -> Record | None:
        return records.get(STREAM, _stream_name(group, stream))

    def streams(self, records: GuardedRecords, group: str, prefix: str = "") -> Iterator[Record]:
        """The visible streams of a group by name."""
        return records.iterate(STREAM, prefix=_stream_name(group, prefix))

    def events(
        self, records: GuardedRecords, stream: Record, start: int = 0, *, since_ms: int | None = None
    ) -> Iterator[StoredEvent]:
        """Events from place `start` on, in order; with `since_ms`, without older events that it costs to read.

        No event is from further ahead of its arrival than `AHEAD_MS`, and chunks are in the order of their arrival:
        so whoever follows a stream by time reads its end only.
        """
        first = self._arrived(records, stream, since_ms - AHEAD_MS) if since_ms is not None and start == 0 else None
        for chunk in self._chunks(records, stream, start) if first is None else self._from(records, stream, first):
            body = chunk.body
            for offset, (timestamp_ms, message) in enumerate(self._opened(records, stream, chunk)):
                if body["first"] + offset >= start:
                    yield StoredEvent(body["first"] + offset, timestamp_ms, body["ingested_ms"], message)

    def events_before(self, records: GuardedRecords, stream: Record, end: int) -> Iterator[StoredEvent]:
        """Events before place `end`, last first."""
        for number in reversed(range(int(stream.body.get("gone", 0)), int(stream.body["chunks"]))):
            chunk = records.get(CHUNK, chunk_name(stream.body["uid"], number))
            if chunk is None or chunk.body["first"] >= end:
                continue
            body = chunk.body
            for offset, (timestamp_ms, message) in reversed(list(enumerate(self._opened(records, stream, chunk)))):
                if body["first"] + offset < end:
                    yield StoredEvent(body["first"] + offset, timestamp_ms, body["ingested_ms"], message)

    def _chunks(self, records: GuardedRecords, stream: Record, start: int) -> Iterator[Record]:
        """Chunks that may hold events from place `start` on. Chunks count events, so the search halves."""
        low, high = int(stream.body.get("gone", 0)), int(stream.body["chunks"])
        while high - low > 1 and start > 0:
            middle = (low + high) // 2
            chunk = records.get(CHUNK, chunk_name(stream.body["uid"], middle))
            if chunk is None or chunk.body["first"] > start:
                high = middle
            else:
                low = middle
        return self._from(records, stream, low)

    def _arrived(self, records: GuardedRecords, stream: Record, since_ms: int) -> int:
        """The last chunk that arrived before a time, or the first: events after the time are in it or behind it."""
        low, high = int(stream.body.get("gone", 0)), int(stream.body["chunks"])
        while high - low > 1:
            middle = (low + high) // 2
            chunk = records.get(CHUNK, chunk_name(stream.body["uid"], middle))
            if chunk is None or chunk.body["ingested_ms"] >= since_ms:
                high = middle
            else:
                low = middle
        return low

    def _from(self, records: GuardedRecords, stream: Record, first: int) -> Iterator[Record]:
        for number in range(first, int(stream.body["chunks"])):
            chunk = records.get(CHUNK, chunk_name(stream.body["uid"], number))
            if chunk is not None:
                yield chunk

    def _opened(self, records: GuardedRecords, stream: Record, chunk: Record) -> list[Any]:
        """The events of a chunk. Raises ValidationFault when they are under a key of KMS that cannot be used."""
        if "seal" not in chunk.body:
            events: list[Any] = chunk.body["events"]
            return events
        own = replace(records.session, label=stream.label)  # the group's own label, which the session dominates
        return self.seals.open(own, self._group_of(records, stream), chunk)

    def _group_of(self, records: GuardedRecords, stream: Record) -> Record | None:
        """The group of a stream at its own label."""
        name = stream.name.partition(":")[0]
        return next((each for each in records.instances(GROUP, name) if each.label == stream.label), None)

    def _records(self, session: Session) -> GuardedRecords:
        return self._guard.records(session, SERVICE)

    def _now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def chunk_name(uid: str, number: int) -> str:
    return f"{uid}:{number:09d}"


def name_of(stream: Record) -> str:
    """A stream's name without its group's."""
    return stream.name.partition(":")[2]


def event_id(stream: Record, event: StoredEvent) -> str:
    """Unique for an event, for ever."""
    return base64.b32encode(f"{stream.body['uid']}{event.place:012d}".encode()).decode().rstrip("=")


def _size(chunk: Record) -> int:
    """What a chunk counts for, as CloudWatch counts; `bytes` where its events are sealed."""
    if "seal" in chunk.body:
        return int(chunk.body["bytes"])
    return sum(len(message.encode("utf-8", "replace")) + EVENT_OVERHEAD for _, message in chunk.body["events"])


def _own(record: Record, group: Record) -> bool:
    return record.label == group.label


def _stream_name(group: str, stream: str) -> str:
    return f"{group}:{stream}"  # neither may contain a colon


def _batches(events: Iterable[LogEvent]) -> Iterator[list[LogEvent]]:
    batch: list[LogEvent] = []
    size = 0
    for event in events:
        length = len(event.message.encode("utf-8", "replace")) + EVENT_OVERHEAD
        if batch and (len(batch) == _CHUNK_EVENTS or size + length > _CHUNK_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += length
    if batch:
        yield batch
