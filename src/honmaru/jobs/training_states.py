"""The life of a training job as a table: (secondary status, event) → secondary status.

Invariants:
- A transition that the table does not hold raises Conflict and changes nothing.
- The primary status follows from the secondary one alone.
- Final statuses have no way out.

Source: SageMaker API reference, DescribeTrainingJob, "SecondaryStatus".
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict

TABLE: Mapping[tuple[str, str], str] = {
    ("Starting", "stage"): "Downloading",
    ("Restarting", "stage"): "Downloading",
    ("Downloading", "run"): "Training",
    ("Training", "upload"): "Uploading",
    ("Training", "restart"): "Restarting",
    ("Uploading", "complete"): "Completed",
    ("Uploading", "expire"): "MaxRuntimeExceeded",
    ("Starting", "stop"): "Stopping",
    ("Restarting", "stop"): "Stopping",
    ("Downloading", "stop"): "Stopping",
    ("Training", "stop"): "Stopping",
    ("Stopping", "stopped"): "Stopped",
    **{
        (status, "fail"): "Failed"
        for status in ("Starting", "Restarting", "Downloading", "Training", "Uploading", "Stopping")
    },
}

PRIMARY: Mapping[str, str] = {
    "Starting": "InProgress",
    "Restarting": "InProgress",
    "Downloading": "InProgress",
    "Training": "InProgress",
    "Uploading": "InProgress",
    "Stopping": "Stopping",
    "Completed": "Completed",
    "MaxRuntimeExceeded": "Stopped",
    "Stopped": "Stopped",
    "Failed": "Failed",
}

CLAIMABLE = frozenset({"InProgress", "Stopping"})
FINAL = frozenset({"Completed", "Failed", "Stopped"})

_MESSAGES: Mapping[str, str] = {
    "Starting": "Preparing the instances for training",
    "Restarting": "The machine or the sandbox went away; starting again",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "MaxRuntimeExceeded": "Resource released due to max runtime exceeded",
    "Stopped": "Training job stopped",
    "Failed": "Training job failed",
}


def begin(body: dict[str, Any], at: datetime) -> str:
    """Put a new job's body into its first status; returns the primary status."""
    body["transitions"] = []
    return _enter(body, "Starting", at)


def advance(body: dict[str, Any], event: str, at: datetime) -> str:
    """Move the body by an event; returns the primary status. Raises Conflict for a transition that is not there."""
    status = body["secondary"]
    if (status, event) not in TABLE:
        raise Conflict(f"a training job that is {status} cannot {event}")
    body["transitions"][-1]["end"] = at.isoformat()
    return _enter(body, TABLE[status, event], at)


def _enter(body: dict[str, Any], status: str, at: datetime) -> str:
    body["secondary"] = status
    transition = {"status": status, "start": at.isoformat(), "message": _MESSAGES[status]}
    primary = PRIMARY[status]
    if primary in FINAL:
        transition["end"] = at.isoformat()
    body["transitions"].append(transition)
    body["modified"] = at.isoformat()
    return primary
