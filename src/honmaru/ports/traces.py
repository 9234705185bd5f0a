"""Where spans go: what happened in a request, step by step, at the request's label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from honmaru.core.labels import Label


@dataclass(frozen=True, slots=True)
class Span:
    """One step. Ids are lower-case hex of 16 and 8 bytes; times are nanoseconds since 1970. `kind` as OpenTelemetry
    counts: 1 internal, 2 server. `error` is a code, "" for none."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    kind: int = 1
    attributes: Mapping[str, str | int | bool] = field(default_factory=dict)
    error: str = ""


class SpanSink(Protocol):
    def add(self, label: Label, spans: Sequence[Span]) -> None:
        """Take the spans of one request. Never blocks; what cannot be kept is dropped and counted."""
        ...
