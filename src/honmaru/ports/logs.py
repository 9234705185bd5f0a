"""Where the output of jobs goes: log groups and streams, as CloudWatch Logs shows them.

Implemented over the guard (encrypted at rest, labelled) by `services.logs`; written by `jobs`, read by clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from honmaru.core.sessions import Session


@dataclass(frozen=True, slots=True)
class LogEvent:
    timestamp_ms: int
    message: str


class LogSink(Protocol):
    def append(
        self, session: Session, group: str, stream: str, events: Sequence[LogEvent], *, position: str = ""
    ) -> None:
        """Add events to a stream at the session's label, making group and stream where absent. Durable on return.

        `position` is the writer's own note of how far its source is read; it is stored together with the events.
        """
        ...

    def position(self, session: Session, group: str, stream: str) -> str:
        """The last position stored with a stream; "" for a new one. So a writer goes on exactly where it was."""
        ...
