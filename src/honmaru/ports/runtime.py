"""Time, randomness and identifiers as arguments: nothing below `app` asks the machine for them."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """Aware UTC."""
        ...

    def monotonic(self) -> float: ...


class Ids(Protocol):
    def uuid(self) -> str: ...

    def token(self, prefix: str, length: int) -> str:
        """`prefix` followed by `length` random characters of A-Z2-7 (AWS unique ids: AKIA…, AIDA…, AROA…)."""
        ...

    def secret(self, size_bytes: int) -> bytes:
        """Cryptographically strong random bytes."""
        ...
