"""Observations of a metric in one period, and what can be said of them. Pure.

Invariants:
- Merging is exact for count, sum, minimum and maximum, whatever the order.
- A point keeps every distinct value while there are at most `MAX_VALUES`; beyond that values are rounded to three, then
  fewer significant digits, so percentiles are exact for few values and within 1 % for many. Its size is bounded.
- A statistic set holds no single values: percentiles of a period that holds one do not exist (unless all its values
  are the same), as with AWS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_VALUES = 150


@dataclass(frozen=True, slots=True)
class Point:
    """`values` are (value, count) pairs by value; None when single values are not known."""

    count: float
    total: float
    low: float
    high: float
    values: tuple[tuple[float, float], ...] | None

    @staticmethod
    def of(value: float, count: float = 1.0) -> Point:
        return Point(count, value * count, value, value, ((value, count),))

    @staticmethod
    def of_many(pairs: Sequence[tuple[float, float]]) -> Point:
        """(value, count) pairs, at least one."""
        counts, values = [count for _, count in pairs], [value for value, _ in pairs]
        total = math.fsum(value * count for value, count in pairs)
        return Point(math.fsum(counts), total, min(values), max(values), _bounded(pairs))

    @staticmethod
    def statistics(count: float, total: float, low: float, high: float) -> Point:
        """A statistic set."""
        known = low == high or count == 1
        return Point(count, total, low, high, ((low, count),) if known else None)

    def merged(self, other: Point) -> Point:
        values: tuple[tuple[float, float], ...] | None = None
        if self.values is not None and other.values is not None:
            values = _bounded((*self.values, *other.values))
        return Point(
            self.count + other.count,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
            values,
        )

    def plain(self) -> list[object]:
        """As stored in a record."""
        return [self.count, self.total, self.low, self.high, None if self.values is None else [*map(list, self.values)]]

    @staticmethod
    def read(plain: Sequence[object]) -> Point:
        count, total, low, high, values = plain
        pairs = None if values is None else tuple((float(v), float(n)) for v, n in values)  # type: ignore[attr-defined]
        return Point(float(count), float(total), float(low), float(high), pairs)  # type: ignore[arg-type]


def _bounded(pairs: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    for digits in (None, 3, 2, 1):
        counts: dict[float, float] = {}
        for value, count in pairs:
            key = value if digits is None else float(f"{value:.{digits - 1}e}")
            counts[key] = counts.get(key, 0.0) + count
        if len(counts) <= MAX_VALUES or digits == 1:
            break
    found = sorted(counts.items())
    while len(found) > MAX_VALUES:  # a hundred decades: neighbours are put together
        found = [(found[at][0], sum(count for _, count in found[at : at + 2])) for at in range(0, len(found), 2)]
    return tuple(found)


Statistic = Callable[[Point], float | None]

BASIC: Mapping[str, Statistic] = {
    "SampleCount": lambda point: point.count,
    "Average": lambda point: point.total / point.count if point.count else None,
    "Sum": lambda point: point.total,
    "Minimum": lambda point: point.low,
    "Maximum": lambda point: point.high,
}
_PERCENTILE = re.compile(r"p(100(?:\.0{1,10})?|\d{1,2}(?:\.\d{1,10})?)")
_TRIMMED = re.compile(r"(tm|wm|tc|ts)(\d{1,2}(?:\.\d{1,10})?)", re.IGNORECASE)


def statistic(name: str) -> Statistic | None:
    """The function of a statistic's name: Average, Sum, ..., p99, p99.9, IQM, tm90, tc90, ts90; None for others."""
    basic = BASIC.get(name)
    if basic is not None:
        return basic
    if name == "IQM":
        return lambda point: _trimmed(point, 25, 75, "tm")
    wanted = _PERCENTILE.fullmatch(name)
    if wanted is not None:
        share = float(wanted[1])
        return lambda point: percentile(point, share)
    trimmed = _TRIMMED.fullmatch(name)
    if trimmed is not None and trimmed[1].lower() != "wm":
        kind, top = trimmed[1].lower(), float(trimmed[2])
        return lambda point: _trimmed(point, 0, top, kind)
    return None


def percentile(point: Point, share: float) -> float | None:
    """The value at or below which `share` percent of the observations lie, interpolated between neighbours."""
    if point.values is None or not point.count:
        return None
    place = (point.count - 1) * share / 100
    low = math.floor(place)
    below, above = _ranked(point, low), _ranked(point, low + 1)
    return below + (above - below) * (place - low)


def _ranked(point: Point, rank: float) -> float:
    seen = 0.0
    for value, count in point.values or ():
        seen += count
        if rank < seen:
            return value
    return point.high


def _trimmed(point: Point, low: float, high: float, kind: str) -> float | None:
    """Mean (tm), sum (ts) or count (tc) of the observations between two percentiles."""
    if point.values is None or not point.count:
        return None
    first, last = point.count * low / 100, point.count * high / 100
    seen = total = kept = 0.0
    for value, count in point.values:
        inside = max(0.0, min(seen + count, last) - max(seen, first))
        total += value * inside
        kept += inside
        seen += count
    if kind == "tc":
        return kept
    if kind == "ts":
        return total
    return total / kept if kept else None
