"""The guard: the only way to records and blobs, where labels are enforced."""

from honmaru.security.guard.blobs import BlobRef, BlobVault, GuardedBlobs, Peers
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
    "BlobVault",
    "Creation",
    "Guard",
    "GuardedBlobs",
    "GuardedChange",
    "GuardedCondition",
    "GuardedRecords",
    "NoneLeft",
    "Peers",
    "Record",
    "Removal",
    "Revision",
    "Sight",
    "StillThere",
    "TrustedRecords",
]
