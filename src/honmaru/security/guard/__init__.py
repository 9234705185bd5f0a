"""The reference monitor's public face: see `guard.py`, `records.py`, `blobs.py`."""

from honmaru.security.guard.blobs import GuardedBlobs
from honmaru.security.guard.guard import Guard
from honmaru.security.guard.records import GuardedRecords

__all__ = ["Guard", "GuardedBlobs", "GuardedRecords"]
