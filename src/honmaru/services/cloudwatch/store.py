"""Metrics as guarded records: sealed at rest, at the label of the session that wrote them.

A metric is one record; its observations lie in chunks, one record for each hour (day, month) of a metric. Older
observations are kept more coarsely, as AWS keeps them:

    period      kept         a chunk holds
    1 s         3 hours      5 minutes       only for metrics with a storage resolution of 1
    1 minute    15 days      an hour
    5 minutes   63 days      a day
    1 hour      455 days     30 days

Invariants:
- A put is one transaction: all of its observations, or none of them.
- An observation lies in exactly one of the tiers from one minute on; a roll-up moves it atomically.
- A session writes only metrics of its own label, and sees of each metric one instance: its own, else a visible one.
- `Expiry` acts on each metric as the platform's session at the metric's own label. It reads across labels only which
  metrics there are (a trusted handle on the kind `metric`).

Source: Amazon CloudWatch user guide, "Metrics retention".
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from honmaru.core.errors import Conflict
from honmaru.core.sessions import Session, platform_session
from honmaru.ports.metrics import Datum
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Creation, Guard, GuardedChange, GuardedRecords, Record, Removal, Revision
from honmaru.services.cloudwatch.points import Point

SERVICE = "cloudwatch"
METRIC = "metric"
EXPIRE_EVERY_S = 3600.0
_SEPARATOR = "\x1f"
_LOG = logging.getLogger(__name__)

Dimensions = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tier:
    """Points of `period` seconds, in chunks of `span` seconds, kept for `keep`."""

    period: int
    span: int
    keep: timedelta

    @property
    def kind(self) -> str:
        return f"points-{self.period}"


TIERS = (
    Tier(1, 300, timedelta(hours=3)),
    Tier(60, 3600, timedelta(days=15)),
    Tier(300, 86400, timedelta(days=63)),
    Tier(3600, 30 * 86400, timedelta(days=455)),
)
_MINUTES = TIERS[1]


@dataclass(frozen=True, slots=True)
class Sample:
    """Observations of one metric at one time. `resolution` is 60 or 1 seconds."""

    name: str
    dimensions: Dimensions
    at: datetime
    point: Point
    unit: str = "None"
    resolution: int = 60


Series = dict[tuple[int, str], Point]
"""(second since 1970, unit) → point."""


class MetricStore:
    """A `ports.metrics.MetricSink`, and what the CloudWatch API reads. Thread-safe."""

    def __init__(self, guard: Guard, ids: Ids) -> None:
        self._guard = guard
        self._ids = ids

    def records(self, session: Session) -> GuardedRecords:
        return self._guard.records(session, SERVICE)

    # Writing

    def put(self, session: Session, namespace: str, data: Sequence[Datum]) -> None:
        """See `ports.metrics.MetricSink`."""
        samples = [
            Sample(
                datum.name,
                dimensions_of(datum.dimensions),
                datum.at,
                Point.of(datum.value, datum.count),
                datum.unit,
                datum.resolution_s,
            )
            for datum in data
        ]
        self.put_samples(session, namespace, samples)

    def put_samples(self, session: Session, namespace: str, samples: Sequence[Sample]) -> None:
        """Add observations at the session's label; durable on return."""
        records = self.records(session)
        while samples:
            try:
                records.apply(self._changes(records, namespace, samples))
                return
            except Conflict:  # another writer of the same metric won
                continue

    def _changes(self, records: GuardedRecords, namespace: str, samples: Sequence[Sample]) -> list[GuardedChange]:
        changes: list[GuardedChange] = []
        by_metric: dict[tuple[str, Dimensions], list[Sample]] = {}
        for sample in samples:
            by_metric.setdefault((sample.name, sample.dimensions), []).append(sample)
        for (name, dimensions), own in by_metric.items():
            identity = metric_name(namespace, name, dimensions)
            record = records.get(METRIC, identity)
            if record is not None and record.label != records.session.label:
                record = None
            seconds = [int(sample.at.timestamp()) for sample in own]
            first, last = (edge // _MINUTES.span * _MINUTES.span for edge in (min(seconds), max(seconds)))
            if record is None:
                body: dict[str, Any] = {
                    "namespace": namespace,
                    "name": name,
                    "dimensions": [list(pair) for pair in dimensions],
                    "uid": self._ids.token("m-", 20),
                    "first": first,
                    "last": last,
                }
                changes.append(Creation(METRIC, identity, body))
            else:
                body = dict(record.body)
                if first < body["first"] or last > body["last"]:
                    body["first"], body["last"] = min(first, body["first"]), max(last, body["last"])
                    changes.append(Revision(record, body))
            changes += _chunk_changes(records, body["uid"], own)
        return changes

    # Reading

    def metric(self, records: GuardedRecords, namespace: str, name: str, dimensions: Dimensions) -> Record | None:
        """The visible instance of a metric."""
        return records.get(METRIC, metric_name(namespace, name, dimensions))

    def metrics(self, records: GuardedRecords, namespace: str, name: str, after: str = "") -> Iterator[Record]:
        """The visible metrics of a namespace ("" for all), and of a name ("" for all), in the order of their names."""
        prefix = f"{namespace}{_SEPARATOR}" if namespace else ""
        if namespace and name:
            prefix += f"{name}{_SEPARATOR}"
        return (each for each in records.iterate(METRIC, prefix=prefix, after=after) if name in ("", each.body["name"]))

    def series(self, records: GuardedRecords, metric: Record, start: int, end: int, *, fine: bool) -> Series:
        """Points from `start` to before `end` (seconds since 1970); `fine` reads points of one second where kept."""
        found: Series = {}
        uid, first, last = metric.body["uid"], int(metric.body["first"]), int(metric.body["last"])
        low, high = max(start, first), min(end, last + _MINUTES.span)
        covered: set[int] = set()
        for tier in TIERS if fine else TIERS[1:]:
            for chunk in _chunks(records, tier, uid, low, high):
                for unit, points in chunk.body["points"].items():
                    for offset, plain in points.items():
                        second = chunk.body["start"] + int(offset) * tier.period
                        if tier.period == 1:
                            covered.add(second // 60)
                        elif second // 60 in covered and tier.period == 60:
                            continue  # read in seconds already
                        if start <= second < end:
                            point, key = Point.read(plain), (second, unit)
                            found[key] = found[key].merged(point) if key in found else point
        return found


def dimensions_of(pairs: Mapping[str, str]) -> Dimensions:
    return tuple(sorted(pairs.items()))


def metric_name(namespace: str, name: str, dimensions: Dimensions) -> str:
    """The name of a metric's record: namespaces and names sort together; dimensions may be long, so they are hashed."""
    digest = hashlib.sha384(orjson.dumps(dimensions)).hexdigest()[:32]
    return f"{namespace}{_SEPARATOR}{name}{_SEPARATOR}{digest}"


def _chunk_changes(records: GuardedRecords, uid: str, samples: Iterable[Sample]) -> Iterator[GuardedChange]:
    wanted: dict[tuple[Tier, int], list[tuple[int, str, Point]]] = {}
    for sample in samples:
        second = int(sample.at.timestamp())
        for tier in TIERS[:2] if sample.resolution == 1 else TIERS[1:2]:
            start = second // tier.span * tier.span
            offset = (second - start) // tier.period
            wanted.setdefault((tier, start), []).append((offset, sample.unit, sample.point))
    for (tier, start), points in wanted.items():
        yield _merged_chunk(records, tier, uid, start, points)


def _merged_chunk(
    records: GuardedRecords, tier: Tier, uid: str, start: int, points: Iterable[tuple[int, str, Point]]
) -> GuardedChange:
    """A chunk with more points in it: revised, or made."""
    name = _chunk_name(uid, start)
    record = records.get(tier.kind, name)
    held: dict[str, dict[str, list[object]]] = {}
    if record is not None:
        held = {unit: dict(points) for unit, points in record.body["points"].items()}
    for offset, unit, point in points:
        of_unit = held.setdefault(unit, {})
        key = str(offset)
        of_unit[key] = (Point.read(of_unit[key]).merged(point) if key in of_unit else point).plain()
    body: dict[str, Any] = {"start": start, "points": held}
    return Creation(tier.kind, name, body) if record is None else Revision(record, body)


def _chunk_name(uid: str, start: int) -> str:
    return f"{uid}:{start:011d}"


def _chunks(records: GuardedRecords, tier: Tier, uid: str, low: int, high: int) -> Iterator[Record]:
    """Chunks of a metric with points from `low` to before `high`, oldest first."""
    after = _chunk_name(uid, max(0, low // tier.span * tier.span))[:-1]  # sorts just before the first chunk's name
    for record in records.iterate(tier.kind, prefix=f"{uid}:", after=after):
        start = int(record.body["start"])
        if start >= high:
            return
        if start + tier.span > low:
            yield record


class Expiry:
    """Roll-up and deletion of old points: a background step. `partition` and `region` name the platform's session."""

    def __init__(self, guard: Guard, clock: Clock, *, partition: str, region: str) -> None:
        self._guard = guard
        self._clock = clock
        self._place = (partition, region)
        self._metrics = guard.trusted(SERVICE, frozenset({METRIC}))

    def expire(self) -> int:
        """Roll up and delete what is due; returns the number of chunks that went."""
        now = self._clock.now()
        gone = 0
        for metric in self._metrics.list(METRIC):
            session = platform_session(metric.account, *self._place, "monitoring", metric.label)
            records = self._guard.records(session, SERVICE)
            try:
                gone += self._roll(records, metric, now)
            except Conflict:
                continue  # it is being written to; the next time will do
            except Exception as fault:  # one metric holds no other up; values may be above this log
                _LOG.error("a metric could not be rolled up: %s", type(fault).__name__)
        return gone

    def _roll(self, records: GuardedRecords, metric: Record, now: datetime) -> int:
        gone = 0
        for place, tier in enumerate(TIERS):
            horizon = int((now - tier.keep).timestamp())
            for chunk in list(_chunks(records, tier, metric.body["uid"], 0, horizon)):
                if int(chunk.body["start"]) + tier.span > horizon:
                    continue
                changes: list[GuardedChange] = [Removal(chunk)]
                if tier.period > 1 and place + 1 < len(TIERS):
                    changes += _coarser(records, metric.body["uid"], chunk, tier, TIERS[place + 1])
                records.apply(changes)
                gone += 1
        oldest = now - TIERS[-1].keep - timedelta(seconds=TIERS[-1].span)
        if int(metric.body["last"]) < oldest.timestamp():
            records.delete(metric)
        return gone


def _coarser(records: GuardedRecords, uid: str, chunk: Record, tier: Tier, coarse: Tier) -> Iterator[GuardedChange]:
    by_chunk: dict[int, list[tuple[int, str, Point]]] = {}
    for unit, points in chunk.body["points"].items():
        for offset, plain in points.items():
            second = int(chunk.body["start"]) + int(offset) * tier.period
            start = second // coarse.span * coarse.span
            by_chunk.setdefault(start, []).append(((second - start) // coarse.period, unit, Point.read(plain)))
    for start, points in by_chunk.items():
        yield _merged_chunk(records, coarse, uid, start, points)


def moment(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)
