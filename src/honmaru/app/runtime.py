"""The real clock and the real randomness: the only place that asks the machine for either."""

from __future__ import annotations

import os
import secrets
import time
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
        # As uuid.uuid4, without its object: two are made for every request.
        raw = os.urandom(16).hex()
        variant = "89ab"[int(raw[16], 16) & 3]
        return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-{variant}{raw[17:20]}-{raw[20:]}"

    def token(self, prefix: str, length: int) -> str:
        return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))

    def secret(self, size_bytes: int) -> bytes:
        return secrets.token_bytes(size_bytes)
