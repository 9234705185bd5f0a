"""The real clock and the real randomness: the only place that asks the machine for either."""

from __future__ import annotations

import secrets
import time
import uuid
from datetime import UTC, datetime

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class SystemClock:
    """Implements ports.runtime.Clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class SystemIds:
    """Implements ports.runtime.Ids on the operating system's generator."""

    def uuid(self) -> str:
        return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))

    def token(self, prefix: str, length: int) -> str:
        return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))

    def secret(self, size_bytes: int) -> bytes:
        return secrets.token_bytes(size_bytes)
