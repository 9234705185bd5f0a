"""What an enclave does by itself, again and again: expiry of logs and metrics, states of alarms, delivery of trails.

Invariants:
- A step that fails is said in the operator's log, by kind of error only, and tried again at its next time; it neither
  ends the thread nor holds other steps up.
- Steps are repeatable: one that was cut short by `kill -9` does the rest at its next time.
- `stop` returns after the running step; nothing runs after it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from honmaru.ports.runtime import Clock

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """`work` is called every `every_s` seconds, for the first time that long after the start."""

    name: str
    every_s: float
    work: Callable[[], object]


class Background:
    """One thread that runs the steps, each at its own pace."""

    def __init__(self, steps: Sequence[Step], clock: Clock) -> None:
        self._steps = tuple(steps)
        self._clock = clock
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._due: dict[str, float] = {}

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def run_due(self) -> None:
        """Run every step whose time has come."""
        for step in self._steps:
            now = self._clock.monotonic()
            due = self._due.setdefault(step.name, now + step.every_s)
            if now < due or self._leaving.is_set():
                continue
            try:
                step.work()
            except Exception as fault:  # the thread must outlive any fault of a store; values may be above this log
                _LOG.error("background step %s failed: %s; it is tried again", step.name, type(fault).__name__)
            self._due[step.name] = self._clock.monotonic() + step.every_s

    def _run(self) -> None:
        pace = max(0.05, min((step.every_s for step in self._steps), default=1.0) / 4)
        while not self._leaving.wait(pace):
            self.run_due()
