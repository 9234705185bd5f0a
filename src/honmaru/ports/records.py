"""The record store: one table of resources for all services.

A record is identified by (account, service, kind, name, label). Names may repeat at different labels. The store
knows nothing of dominance: it is told which labels to look at. Only the guard (`security.guard`) holds a store.

Invariants, which the contract suite checks on every implementation:
- `apply` is atomic: all changes and the outbox entries, or nothing.
- A create of an existing identity, and an update or delete whose `version` is not the stored one, raise Conflict.
- Conditions of an `apply` hold in the same instant as its changes, against any other process too.
- What `apply` returned from is durable.
- Whoever asks for `changes` after an `apply` that raised a count has returned, in any process, sees the raised count.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """One stored resource. `label` is a canonical label string (`Label.canonical`). `version` starts at 1.

    `body` is opaque: the guard seals it (JSON inside) with the key of its account and label, bound to its identity,
    so a row moved to another name or label in the database no longer opens.
    """

    account: str
    service: str
    kind: str
    name: str
    label: str
    body: bytes
    state: str
    version: int
    created: datetime
    updated: datetime


@dataclass(frozen=True, slots=True)
class Create:
    account: str
    service: str
    kind: str
    name: str
    label: str
    body: bytes
    state: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Update:
    """Replace body and state of `row` if its stored version is still `row.version`."""

    row: Row
    body: bytes
    state: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Delete:
    row: Row


Change = Create | Update | Delete


@dataclass(frozen=True, slots=True)
class Presence:
    """`row` is there, at whatever version and state, and stays until the transaction has ended."""

    row: Row


@dataclass(frozen=True, slots=True)
class Absence:
    """After the changes no record of this kind and label has a name that starts with `prefix`.

    Whoever makes such a record asks in the same transaction for the Presence of a record that this one deletes (an
    object's bucket): then of two concurrent transactions one is refused.
    """

    account: str
    service: str
    kind: str
    prefix: str
    label: str


Condition = Presence | Absence
OWNER = 8
"""Characters of the name of a writer of the outbox."""


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A ledger entry that was committed together with the change it describes. `payload` is canonical JSON.

    `id` may begin with the writer whose it is: `OWNER` characters and a colon. Without, it is the enclave's own.
    """

    id: str
    label: str
    payload: bytes


class RecordStore(Protocol):
    """See the module's invariants. Thread-safe."""

    def get(self, account: str | None, service: str, kind: str, name: str, labels: Collection[str]) -> list[Row]:
        """All instances of one name at the given labels (at most one per account and label), by (label, account).

        `account` None means every account (the supervisor and the authenticator only).
        """
        ...

    def list(
        self,
        account: str | None,
        service: str,
        kind: str,
        labels: Collection[str],
        *,
        prefix: str = "",
        after: str = "",
        state: str | None = None,
        limit: int = 1000,
    ) -> list[Row]:
        """Records whose name starts with `prefix` and is greater than `after` (code-point order), by
        (name, label, account).

        `account` None means every account (the supervisor and the authenticator only).
        """
        ...

    def apply(
        self,
        changes: Sequence[Change],
        outbox: Sequence[OutboxEntry] = (),
        confirmed: Collection[str] = (),
        conditions: Sequence[Condition] = (),
        raised: str = "",
    ) -> builtins.list[Row]:
        """Apply all changes in one transaction; returns the records as stored (a deleted one as it was).

        A condition that does not hold is a Conflict, and nothing was changed. `confirmed` names older outbox entries
        that the ledger holds durably: forgetting them rides along for free. `raised` names a count of `changes` that
        goes up by one.
        """
        ...

    def changes(self) -> dict[str, int]:
        """How often each count was raised: what tells other processes that they must ask again."""
        ...

    def scan(self) -> Iterator[Row]:
        """Every record of every service, each committed before the call at least once (the sweep for orphan blobs)."""
        ...

    def labels(self) -> frozenset[str]:
        """Every label that any record carries or has carried."""
        ...

    def known_labels(self) -> frozenset[str]:
        """`labels` as of the newest `get` or `labels` of this store, without asking. Each `get` brings it up to what
        was stored when it read; the same object is given until a label is added."""
        ...

    def outbox(
        self, limit: int = 1000, *, owner: str | None = None, but: Collection[str] = ()
    ) -> builtins.list[OutboxEntry]:
        """Entries not yet confirmed to be in the ledger, oldest first: of one owner ("" for the enclave itself), or of
        all `but` some."""
        ...

    def confirm(self, ids: Collection[str]) -> None:
        """Forget outbox entries that the ledger holds durably."""
        ...

    def close(self) -> None: ...
