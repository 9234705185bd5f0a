"""Counts and latencies of requests, kept apart by account and label, and their text for Prometheus.

Invariants:
- A reader is shown only series of its own account whose label its own dominates; of others not even a name.
- Requests of nobody known are counted at the lowest label, as the ledger records them.
- Names come from service models and error tables, never from a request's bytes: the number of series is bounded.
- Counting takes a few microseconds and no lock: it happens on the event loop's thread only. What the processes of one
  enclave counted is shown as one.

Source: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from honmaru.core.labels import BOTTOM, Label
from honmaru.gateway.aws.faults import code_and_status
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.model_calls import SERVICE as MODELS
from honmaru.gateway.model_calls import ModelMeter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who is shown what: series of an account ("" for every) at labels that `label` dominates."""

    account: str
    label: Label


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of the enclave beside the requests', at a label. `kind` is "gauge" or "counter"."""

    name: str
    help: str
    label: Label
    value: float
    marks: Mapping[str, str]
    kind: str = "gauge"
    account: str = ""


Measurements = Callable[[], Iterable[Measurement]]


class _Series:
    __slots__ = ("buckets", "codes", "count", "total")

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.count = 0
        self.total = 0.0


_Key = tuple[str, Label, str, str, str]
"""(account, label, service, operation, dialect)."""
Row = tuple[list[str], dict[str, int], list[int], float]
"""A series on its way to another process: key, codes, buckets, seconds."""


class RequestMeter:
    """See the module.

    Args:
        account: The enclave's own, which requests of nobody known are counted for.
        measurements: Further numbers, read when somebody asks.
    """

    def __init__(self, account: str, measurements: Measurements = tuple) -> None:
        self._account = account
        self._measurements = measurements
        self._series: dict[_Key, _Series] = {}
        self._elsewhere: dict[str, list[Row]] = {}
        """What other processes counted so far, by process."""
        self.models = ModelMeter()

    def observe(self, exchange: Exchange, seconds: float) -> None:
        """Count a request that has been answered or refused."""
        session, service, wire = exchange.session, exchange.service, exchange.wire
        known = exchange.operation is not None
        key = (
            session.account if session is not None else self._account,
            session.label if session is not None else BOTTOM,
            service.name if service is not None else "unknown",
            exchange.operation_name if known or exchange.routing_fault is None else "Unknown",
            (wire.dialect or "") if wire is not None else "",
        )
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
        error = exchange.error
        code = "ok" if error is None else code_and_status(error, service, exchange.protocol)[0]
        series.codes[code] = series.codes.get(code, 0) + 1
        series.buckets[bisect_left(BOUNDS_S, seconds)] += 1
        series.count += 1
        series.total += seconds
        if service is not None and service.name == MODELS:
            self.models.observe(exchange, seconds)

    def rows(self) -> list[Row]:
        """What was counted so far, for the enclave's first process. From any thread."""
        return [
            ([key[0], key[1].canonical, *key[2:]], dict(series.codes), list(series.buckets), series.total)
            for key, series in list(self._series.items())
        ]

    def add(self, process: str, rows: list[Row]) -> None:
        """What another process counted so far, in place of what it said before. From any thread."""
        self._elsewhere[process] = rows

    def keep(self, process: str) -> None:
        """A process has ended: what it counted stays, in one with all that ended before."""
        rows = self._elsewhere.pop(process, [])
        series = _merged([*self._elsewhere.get("", []), *rows])
        self._elsewhere[""] = [
            ([key[0], key[1].canonical, *key[2:]], each.codes, each.buckets, each.total) for key, each in series.items()
        ]

    def _all(self) -> dict[_Key, _Series]:
        """The series of all processes."""
        if not self._elsewhere:
            return dict(list(self._series.items()))
        return _merged([*self.rows(), *(row for rows in list(self._elsewhere.values()) for row in rows)])

    def counts(self) -> dict[_Key, int]:
        """Requests so far by account, label, service, operation and dialect, for the platform's own accounting."""
        return {key: series.count for key, series in self._all().items()}

    def text(self, reader: Reader) -> str:
        """The exposition for one reader."""
        return "\n".join([*self._requests(reader), *self._others(reader), ""])

    def _requests(self, reader: Reader) -> Iterator[str]:
        shown = sorted(
            (
                (key, series)
                for key, series in self._all().items()
                if reader.account in ("", key[0]) and reader.label.dominates(key[1])
            ),
            key=lambda item: (item[0][0], item[0][1].canonical, *item[0][2:]),
        )
        yield "# HELP honmaru_requests_total Requests that were answered or refused, by error code."
        yield "# TYPE honmaru_requests_total counter"
        for key, series in shown:
            marks = _marks_of(key)
            for code, count in sorted(dict(series.codes).items()):
                yield f"honmaru_requests_total{_marked({**marks, 'code': code})} {count}"
        yield "# HELP honmaru_request_duration_seconds Time from the request's headers to the end of its answer."
        yield "# TYPE honmaru_request_duration_seconds histogram"
        for key, series in shown:
            marks, below = _marks_of(key), 0
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), list(series.buckets), strict=True):
                below += count
                yield f"honmaru_request_duration_seconds_bucket{_marked({**marks, 'le': bound})} {below}"
            yield f"honmaru_request_duration_seconds_sum{_marked(marks)} {series.total:.6f}"
            yield f"honmaru_request_duration_seconds_count{_marked(marks)} {below}"

    def _others(self, reader: Reader) -> Iterator[str]:
        last = ""
        shown = [
            each
            for each in self._measurements()
            if reader.label.dominates(each.label) and (not reader.account or each.account in ("", reader.account))
        ]
        for each in sorted(shown, key=lambda each: (each.name, each.label.canonical, sorted(each.marks.items()))):
            if each.name != last:
                last = each.name
                yield f"# HELP {each.name} {each.help}"
                yield f"# TYPE {each.name} {each.kind}"
            yield f"{each.name}{_marked({'label': each.label.banner, **each.marks})} {each.value:g}"


def _merged(rows: Iterable[Row]) -> dict[_Key, _Series]:
    merged: dict[_Key, _Series] = {}
    for (account, label, service, operation, dialect), codes, buckets, total in rows:
        series = merged.setdefault((account, Label.decode(label), service, operation, dialect), _Series())
        for code, count in codes.items():
            series.codes[code] = series.codes.get(code, 0) + count
        series.buckets = [one + other for one, other in zip(series.buckets, buckets, strict=True)]
        series.count += sum(buckets)
        series.total += total
    return merged


def _marks_of(key: _Key) -> dict[str, str]:
    account, label, service, operation, dialect = key
    marks = {"label": label.banner, "account": account, "service": service, "operation": operation}
    return {**marks, "dialect": dialect} if dialect else marks


def _marked(marks: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in marks.items())
    return f"{{{inside}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
