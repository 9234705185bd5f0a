"""Values of a query in periods. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Values:
    """`points` are second since 1970 → value; a period without observations has none."""

    points: Mapping[int, float]
    period: int

    def ordered(self) -> list[tuple[int, float]]:
        return sorted(self.points.items())
