"""The guard: the only way to records and blobs, where labels are enforced."""

from honmaru.security.guard.blobs import BlobRef, GuardedBlobs
from honmaru.security.guard.guard import Guard
from honmaru.security.guard.records import (
    Creation,
    GuardedChange,
    GuardedCondition,
    GuardedRecords,
    NoneLeft,
    Record,
    Removal,
    Revision,
    Sight,
    StillThere,
    TrustedRecords,
)

__all__ = [
    "BlobRef",
    "Creation",
    "Guard",
    "GuardedBlobs",
    "GuardedChange",
    "GuardedCondition",
    "GuardedRecords",
    "NoneLeft",
    "Record",
    "Removal",
    "Revision",
    "Sight",
    "StillThere",
    "TrustedRecords",
]
