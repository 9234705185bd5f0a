"""Events that one service gives and others take: an outbox of records, delivered at least once.

A change and the events that tell of it are stored in one transaction, so no acknowledged change is without its event
and no event tells of a change that was not made. Whoever takes events reads those of a destination, does its work, and
acknowledges: what was not acknowledged is read again, after a restart too. So a taker may meet an event twice and
tells by its id.

Invariants:
- An event lies at the label of the session whose change it tells of. A session reads events at or below its label, and
  acknowledges only those at its own: a taker works once for each label, as a session at that label.
- Events are read in the order of their changes as far as the clock tells them apart; `order` sorts those of one key.
- An event that nobody acknowledged is kept for `KEPT_DAYS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from honmaru.core.labels import Label
from honmaru.core.sessions import Session

KEPT_DAYS = 7


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        id: Unique; the same for each delivery.
        destination: The ARN that the owner of the resource wants it sent to.
        account: The owner's.
        detail: The event as AWS writes it: one member of S3's `Records`, as JSON values.
        order: Sorts the events of one key, oldest first.
    """

    id: str
    destination: str
    account: str
    label: Label
    detail: Mapping[str, Any]
    order: str


class Destinations(Protocol):
    """What can take events: asked when the owner of a resource names a destination."""

    def takes(self, arn: str) -> bool:
        """Whether events that are sent to this ARN have a taker in this enclave."""
        ...


class EventOutbox(Protocol):
    """The taker's side."""

    def read(self, session: Session, destination: str, limit: int = 100) -> Sequence[Event]:
        """The oldest events for a destination that the session sees and nobody has acknowledged."""
        ...

    def acknowledge(self, session: Session, events: Sequence[Event]) -> None:
        """Forget events. One that is gone already is no error; one below the session's label raises AccessDenied."""
        ...
