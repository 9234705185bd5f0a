"""The life of a quantum task as a table: (status, event) → status.

Invariants:
- A transition that the table does not hold raises Conflict and changes nothing.
- Final statuses have no way out, so a task ends exactly once.

A short task goes from QUEUED to its end without RUNNING being stored: one durable write less, and nothing is lost,
because a task found QUEUED after a crash is run again.
"""

from __future__ import annotations

from collections.abc import Mapping

from honmaru.core.errors import Conflict

TABLE: Mapping[tuple[str, str], str] = {
    ("QUEUED", "run"): "RUNNING",
    ("RUNNING", "run"): "RUNNING",
    **{(status, "complete"): "COMPLETED" for status in ("QUEUED", "RUNNING")},
    **{(status, "fail"): "FAILED" for status in ("QUEUED", "RUNNING")},
    **{(status, "cancel"): "CANCELLING" for status in ("QUEUED", "RUNNING")},
    **{("CANCELLING", event): "CANCELLED" for event in ("run", "complete", "fail", "cancelled")},
}
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
CLAIMABLE = frozenset({"QUEUED", "RUNNING", "CANCELLING"})


def after(status: str, event: str) -> str:
    """The status that follows. Raises Conflict for a transition that is not there."""
    if (status, event) not in TABLE:
        raise Conflict(f"a quantum task that is {status} cannot {event}", code="ConflictException")
    return TABLE[status, event]
