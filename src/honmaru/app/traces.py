"""Spans as OTLP-JSON: lines in a file of each label, or posted to a collector on this machine.

    DATA/traces/<label token>/traces-000001.jsonl      one ExportTraceServiceRequest a line (OTLP file exporter)

Invariants:
- Spans of two labels are never in one file nor in one post. A collector is told the spans of labels that its own label
  dominates, and of no others.
- A collector is on loopback: the enclave never reaches the network by itself.
- `add` never blocks: spans beyond `QUEUED` are dropped and counted. Files of a label take at most about
  `FILE_BYTES` times `FILES`; the oldest goes first.

Source: OpenTelemetry protocol 1.5, "OTLP/HTTP"; OpenTelemetry protocol file exporter.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from honmaru.core.errors import ConfigurationFault
from honmaru.core.labels import Label
from honmaru.ports.traces import Span

QUEUED = 16_384
FILE_BYTES = 32 << 20
FILES = 8
_FLUSH_S = 1.0
_TIMEOUT_S = 5.0
_LOG = logging.getLogger(__name__)


class SpanFiles:
    """A `ports.traces.SpanSink` over files, or a collector, with a thread of its own.

    Args:
        directory: Where the files go.
        collector: URL of OTLP/HTTP (http://127.0.0.1:4318/v1/traces) in place of files; "" for files.
        collector_label: The highest label whose spans the collector may be told.
        resource: Attributes that name the enclave (service.name, cloud.region ...).
    Raises:
        ConfigurationFault: the collector is not on loopback.
    """

    def __init__(
        self, directory: Path, resource: dict[str, str], *, collector: str = "", collector_label: Label | None = None
    ) -> None:
        self._directory = directory
        self._resource = resource
        self._collector = _loopback(collector) if collector else None
        self._cleared = collector_label
        self._queue: deque[tuple[Label, Span]] = deque(maxlen=None)
        self.dropped = 0
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, label: Label, spans: Sequence[Span]) -> None:
        """See `ports.traces.SpanSink`."""
        if len(self._queue) + len(spans) > QUEUED:
            self.dropped += len(spans)
            return
        self._queue.extend((label, span) for span in spans)

    def close(self) -> None:
        """Write what is queued, then stop."""
        self._leaving.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_S * 2)

    def flush(self) -> int:
        """Write what is queued now; returns the number of spans."""
        by_label: dict[Label, list[Span]] = {}
        count = 0
        while self._queue:
            label, span = self._queue.popleft()
            by_label.setdefault(label, []).append(span)
            count += 1
        for label, spans in by_label.items():
            request = export_request(label, spans, self._resource)
            if self._collector is None:
                self._append(label, orjson.dumps(request) + b"\n")
            elif self._cleared is not None and self._cleared.dominates(label):
                self._post(orjson.dumps(request))
        return count

    def _run(self) -> None:
        while True:
            leaving = self._leaving.wait(_FLUSH_S)
            try:
                self.flush()
            except OSError as fault:  # a full disk or a collector that is away must not end the thread
                _LOG.error("traces could not be written: %s", type(fault).__name__)
            if leaving:
                return

    def _append(self, label: Label, line: bytes) -> None:
        folder = self._directory / label.token
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = sorted(folder.glob("traces-*.jsonl"))
        newest = files[-1] if files else folder / "traces-000001.jsonl"
        if newest.exists() and newest.stat().st_size + len(line) > FILE_BYTES:
            newest = folder / f"traces-{int(newest.stem.rpartition('-')[2]) + 1:06d}.jsonl"
            for old in files[: max(0, len(files) + 1 - FILES)]:
                old.unlink(missing_ok=True)
        newest.touch(mode=0o600)
        with newest.open("ab") as file:
            file.write(line)

    def _post(self, body: bytes) -> None:
        if self._collector is None:
            return
        host, port, path = self._collector
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 400:
                raise OSError(f"the collector answered {answer.status}")
        except http.client.HTTPException as fault:
            raise OSError("the collector did not answer HTTP") from fault
        finally:
            connection.close()


def export_request(label: Label, spans: Sequence[Span], resource: dict[str, str]) -> dict[str, Any]:
    """An ExportTraceServiceRequest in OTLP's JSON."""
    named = {**resource, "honmaru.label": label.banner}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [_attribute(key, value) for key, value in named.items()]},
                "scopeSpans": [{"scope": {"name": "honmaru.gateway"}, "spans": [_span(span) for span in spans]}],
            }
        ]
    }


def _span(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": [_attribute(key, value) for key, value in span.attributes.items()],
        "status": {"code": 2, "message": span.error} if span.error else {},
    }
    if span.parent_id:
        found["parentSpanId"] = span.parent_id
    return found


def _attribute(key: str, value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value}}


def _loopback(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        port = parts.port or 4318
    except ValueError:
        local, port = False, 0
    if parts.scheme != "http" or not local:
        raise ConfigurationFault(
            [f"the collector of traces {url!r} is not http on loopback: use http://127.0.0.1:4318/v1/traces"]
        )
    return ("127.0.0.1" if host == "localhost" else host), port, parts.path or "/v1/traces"
