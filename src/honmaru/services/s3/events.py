"""Where changes of objects become known: one event for each version that is made or deleted, and for its tags.

Whoever wants to know of them (notifications) registers with `ObjectEvents.on`. The listener is asked while the change
is being committed and answers further record changes, which are stored in the same transaction: an acknowledged
change and what a listener notes about it are both durable or neither. A listener may be asked again for the same
event when a commit is retried, so it must do nothing but answer.

Invariants:
- No version is made or deleted without its event.
- An event carries what the session itself did; whatever a listener stores is at that session's label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from honmaru.security.calls import Call
from honmaru.security.guard import GuardedChange, Record


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """One change of one key.

    Attributes:
        name: S3's event name without "s3:", for example "ObjectCreated:Put" or "ObjectRemoved:DeleteMarkerCreated".
        bucket: The bucket's record, as it was when the change was made.
        version_id: None in a bucket that never had versioning.
        size, etag: Of the object; None where there is none (removals).
        order: Sorts events of one key by their order, newest first (for the notification's "sequencer").
    """

    name: str
    bucket: Record
    key: str
    version_id: str | None
    size: int | None
    etag: str | None
    order: str


EXPIRATION = "LifecycleExpiration"
"""What the lifecycle runner does, as an operation."""

Listener = Callable[[Call, ObjectEvent], Iterable[GuardedChange]]

_CREATED = {
    "CopyObject": "ObjectCreated:Copy",
    "CompleteMultipartUpload": "ObjectCreated:CompleteMultipartUpload",
    "PostObject": "ObjectCreated:Post",
}


def created(operation: str) -> str:
    """The name of the event of an object made by an operation."""
    return _CREATED.get(operation, "ObjectCreated:Put")


def removed(operation: str, *, marker: bool) -> str:
    """The name of the event of a deletion: of a version, or by a delete marker that was made."""
    family = "LifecycleExpiration" if operation == EXPIRATION else "ObjectRemoved"
    return f"{family}:{'DeleteMarkerCreated' if marker else 'Delete'}"


class ObjectEvents:
    """The listeners of one enclave's S3. Register at start; thread-safe afterwards."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def on(self, listener: Listener) -> None:
        """Ask `listener` about every event from now on."""
        self._listeners.append(listener)

    def changes(self, call: Call, event: ObjectEvent) -> list[GuardedChange]:
        """What the listeners want stored together with the change."""
        return [change for listener in self._listeners for change in listener(call, event)]
