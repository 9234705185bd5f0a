"""What an enclave does by itself, again and again: expiry of logs and metrics, states of alarms, delivery of trails.

Invariants:
- A step that fails is said in the operator's log, by kind of error only, and tried again at its next time; it neither
  ends the thread nor holds other steps up.
- Steps are repeatable: one that was cut short by `kill -9` does the rest at its next time.
- No step begins after `stop`, which waits for the running ones.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """`work` is called every `every_s` seconds, for the first time that long after the start."""

    name: str
    every_s: float
    work: Callable[[], object]


class Background:
    """The steps, each in a thread of its own and at its own pace."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self._leaving = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for step in self._steps:
            thread = threading.Thread(target=self._repeat, args=(step,), name=f"background {step.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Raises nothing; a step that still runs after the time is left behind, and does no harm (see above)."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(timeout_s)

    def _repeat(self, step: Step) -> None:
        while not self._leaving.wait(step.every_s):
            try:
                step.work()
            except Exception as fault:  # the thread must outlive any fault of a store; values may be above this log
                _LOG.error("background step %s failed: %s; it is tried again", step.name, type(fault).__name__)
