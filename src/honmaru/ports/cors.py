"""What the gateway asks of S3 when a browser asks whether it may ask (a preflight of CORS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from honmaru.core.labels import Label


class CrossOriginRules(Protocol):
    def preflight(self, label: Label, bucket: str, origin: str, method: str, asked: Sequence[str]) -> Mapping[str, str]:
        """The headers that a bucket answers a preflight with; none when it allows nothing of it, or is not there.

        Args:
            label: What the asker may see: the lowest label, unless a signature vouches for more.
            asked: Names in Access-Control-Request-Headers.
        Label: reads at or below `label`.
        """
        ...
