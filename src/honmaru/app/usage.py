"""Calls of the APIs as metrics, as AWS has them: AWS/Usage (CallCount) and AWS/Bedrock (calls of models). A background
step.

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
        """Write the calls since the last time; returns how many metrics of usage had some."""
        self._write_models()
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

    def _write_models(self) -> None:
        now = self._clock.now()
        for (account, label, model), calls in self._meter.models.drain().items():
            dimensions = {"ModelId": model}
            data = [
                Datum(name, value, now, dimensions, "Count")
                for name, value in (
                    ("Invocations", float(calls.invocations)),
                    ("InvocationThrottles", float(calls.throttled)),
                    ("InvocationServerErrors", float(calls.server_errors)),
                    ("InputTokenCount", float(calls.input_tokens)),
                    ("OutputTokenCount", float(calls.output_tokens)),
                )
                if value
            ]
            data += [
                Datum("InvocationLatency", float(latency), now, dimensions, "Milliseconds", float(count))
                for latency, count in calls.latencies_ms.items()
            ]
            session = platform_session(account, *self._place, "usage", label)
            self._metrics.put(session, "AWS/Bedrock", data)
