"""Where numbers about jobs, models and requests go: metrics, as CloudWatch shows them.

Implemented over the guard (sealed at rest, labelled) by `services.cloudwatch`; written by jobs and services.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from honmaru.core.sessions import Session


@dataclass(frozen=True, slots=True)
class Datum:
    """`count` observations of `value` at a time. `unit` is one of CloudWatch's, `resolution_s` 60 or 1."""

    name: str
    value: float
    at: datetime
    dimensions: Mapping[str, str] = field(default_factory=dict)
    unit: str = "None"
    count: float = 1.0
    resolution_s: int = 60


class MetricSink(Protocol):
    def put(self, session: Session, namespace: str, data: Sequence[Datum]) -> None:
        """Add observations to metrics at the session's label, making the metrics where absent. Durable on return."""
        ...
