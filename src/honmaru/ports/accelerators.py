"""Accelerators of this machine behind one interface, whoever makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device. Sizes in bytes, as they are now."""

    id: str
    """Unlike any other on this machine: a GPU's UUID, "neuron0"."""
    kind: str
    """"cuda" or "neuron"."""
    name: str
    memory_bytes: int
    free_bytes: int
    nodes: Sequence[str]
    """Device nodes that a process needs to use it."""
    visible: Mapping[str, str] = field(default_factory=dict)
    """Variables by which a process is told to use it; of several devices the values are joined by a comma."""


class Accelerators(Protocol):
    def found(self) -> Sequence[Accelerator]:
        """Every device that works now. Blocking, some milliseconds; never raises: without drivers there are none."""
        ...
