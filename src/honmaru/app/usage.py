"""Calls of the APIs as metrics: AWS/Usage, CallCount, as AWS has them. A background step.

Invariants:
- Calls of an account at a label become metrics of that account at that label, written as the platform's session there.
- What happened since the last step is written once; calls between it and a `kill -9` are not.
"""

from __future__ import annotations

from honmaru.core.sessions import platform_session
from honmaru.gateway.meters import RequestMeter
from honmaru.ports.metrics import Datum, MetricSink
from honmaru.ports.runtime import Clock

EVERY_S = 60.0


class Usage:
    """The step."""

    def __init__(self, meter: RequestMeter, metrics: MetricSink, clock: Clock, *, partition: str, region: str) -> None:
        self._meter = meter
        self._metrics = metrics
        self._clock = clock
        self._place = (partition, region)
        self._told = meter.counts()

    def write(self) -> int:
        """Write the calls since the last time; returns how many metrics had some."""
        counts = self._meter.counts()
        now = self._clock.now()
        by_scope: dict[tuple[str, str], list[Datum]] = {}
        labels = {}
        written = 0
        for key, count in counts.items():
            new = count - self._told.get(key, 0)
            account, label, service, operation, _ = key
            if new <= 0 or service == "unknown":
                continue
            dimensions = {"Type": "API", "Service": service, "Resource": operation, "Class": "None"}
            scope = (account, label.canonical)
            labels[scope] = label
            by_scope.setdefault(scope, []).append(Datum("CallCount", float(new), now, dimensions))
            written += 1
        for scope, data in by_scope.items():
            session = platform_session(scope[0], *self._place, "usage", labels[scope])
            self._metrics.put(session, "AWS/Usage", data)
        self._told = counts
        return written
