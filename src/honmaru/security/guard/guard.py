"""The guard: the only holder of the record store and the blob store, and the only place where labels are enforced.

Invariants:
- Reading needs the session's label to dominate the object's label; what is above a session is not found, absent from
  lists and from counts (SP 800-53 AC-3(3); Bell-LaPadula simple security).
- What a session writes carries the session's label; no label ever changes (*-property, strong tranquility).
- Every committed change leaves a ledger entry at the record's label: it is written to the outbox in the same
  transaction, so a crash or a failing ledger between commit and append only delays it. After such a failure an entry
  that the ledger already holds may be appended again, with the same eventID.
- No audit, no change: while the ledger is not writable nothing can be changed.
- No policy, role or principal is asked here: identity and policy cannot widen what labels forbid.

Not here: IAM (discretionary, at the door), and who may make a session at which label (identity).
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

import orjson

from honmaru.core.errors import LedgerUnavailable
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.ports.blobs import BlobStore
from honmaru.ports.records import (
    OWNER,
    Absence,
    Change,
    Condition,
    Create,
    Delete,
    OutboxEntry,
    Presence,
    RecordStore,
    Row,
    Update,
)
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard.blobs import BlobVault, GuardedBlobs, Peers
from honmaru.security.guard.records import (
    Creation,
    GuardedChange,
    GuardedCondition,
    GuardedRecords,
    Record,
    Removal,
    Sight,
    StillThere,
    TrustedRecords,
)
from honmaru.security.ledger.entries import state_change

_ROWS_A_QUESTION = 256


class _Stopped(Exception):
    """A sweep was told to end."""


class EntryLog(Protocol):
    """What the guard needs of the ledger (`security.ledger.Ledger`)."""

    @property
    def writable(self) -> bool: ...

    def append(self, label: Label, entry: Mapping[str, Any]) -> Future[Any]: ...


class Guard:
    """The reference monitor of one enclave. Thread-safe.

    Args:
        store, blobs: The stores; nobody else may hold them.
        keyring: Seals bodies and wraps blob keys per account and label.
        ledger: Where state changes are recorded.
        owner: Whose outbox entries this guard's are, where several processes write one store; "" for the first one.
        peers: The other processes of this enclave; None where there are none.
    """

    def __init__(
        self,
        store: RecordStore,
        blobs: BlobStore,
        keyring: Keyring,
        ledger: EntryLog,
        clock: Clock,
        ids: Ids,
        *,
        owner: str = "",
        peers: Peers | None = None,
    ) -> None:
        self._store = store
        self._owner = owner
        self._shared = peers is not None
        self._keyring = keyring
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._vault = BlobVault(blobs, keyring, ids, self.label, peers)
        self._labels: dict[str, Label] = {}
        self._present: tuple[frozenset[str], list[str]] = (frozenset(), [])
        self._visible: dict[Label, tuple[frozenset[str], list[str]]] = {}
        """Label of a session → (the store's labels then, those that it dominates)."""
        self._callbacks: dict[str, list[tuple[frozenset[str], Callable[[str | None], None]]]] = {}
        self._changes: dict[str, int] = {}
        self._elsewhere: frozenset[str] = frozenset()
        """Owners of outbox entries that append and confirm them by themselves."""
        self._lock = threading.Lock()
        self._appended: deque[tuple[str, Future[Any]]] = deque()
        self._behind = False

    # What services hold

    def records(self, session: Session, service: str) -> GuardedRecords:
        """The records of one service, as `session`."""
        return GuardedRecords(self, session, service)

    def blobs(self, session: Session) -> GuardedBlobs:
        """The blobs of the session's account, as `session`."""
        return GuardedBlobs(self._vault, session)

    def trusted(self, service: str, kinds: Collection[str]) -> TrustedRecords:
        """Records of stated kinds across labels: for the authenticator and the supervisor only."""
        return TrustedRecords(self, service, frozenset(kinds))

    def sight(self, label: Label, service: str, account: str | None = None, asking: str = "") -> Sight:
        """What a session at `label` could see of a service's records in one or any account: for questions to IAM.

        `asking` is the account of the session: of one name in several accounts its own is meant.
        """
        return Sight(self, label, service, account, asking)

    def on_change(self, service: str, kinds: Collection[str], callback: Callable[[str | None], None]) -> None:
        """Call `callback(account)` after every committed change of records of these kinds of `service`, in the thread
        that made it and before the change is acknowledged; and `callback(None)`, for any account, when `catch_up` finds
        that another process made some."""
        self._callbacks.setdefault(service, []).append((frozenset(kinds), callback))

    def catch_up(self) -> None:
        """Tell those who asked for it (`on_change`) what other processes changed since the last time.

        What such a change returned before this call is told when it returns. Raises StoreUnavailable.
        """
        changes = self._store.changes()
        for service, count in changes.items():
            if self._changes.get(service) != count:
                for _, callback in self._callbacks.get(service, ()):
                    callback(None)
        self._changes = changes

    # Start and end

    def drain_outbox(self) -> int:
        """Append every outbox entry that is not yet in the ledger, and forget those that are; returns how many.

        Call at start and after the ledger became writable again. Raises LedgerUnavailable.
        """
        drained = 0
        waiting: dict[str, Future[Any]] = {}
        while True:
            with self._lock:
                waiting.update(self._appended)
                self._appended.clear()
                self._behind = False
            entries = self._store.outbox(owner=self._owner) if self._owner else self._store.outbox(but=self._elsewhere)
            if not entries:
                return drained
            try:
                futures = [
                    waiting.get(entry.id) or self._ledger.append(self.label(entry.label), orjson.loads(entry.payload))
                    for entry in entries
                ]
                for future in futures:
                    future.result()
            except LedgerUnavailable:
                self._behind = True
                raise
            self._store.confirm([entry.id for entry in entries])
            drained += len(entries)

    def lend_outbox(self, owner: str) -> None:
        """From now on a process of this enclave appends and confirms the outbox entries of `owner` by itself."""
        self._elsewhere |= {owner}

    def take_over(self, owner: str, held: Collection[str]) -> int:
        """A process that was lent the outbox has ended: append what it left; returns how many entries.

        `held` are the event ids among them that the ledger was given by it and holds: each entry is there once.
        Repeat it for a while: a database may carry out the last transaction of a process that was killed. Raises
        LedgerUnavailable.
        """
        appended = 0
        while entries := self._store.outbox(owner=owner):
            futures = [
                self._ledger.append(self.label(entry.label), orjson.loads(entry.payload))
                for entry in entries
                if entry.id[OWNER + 1 :] not in held
            ]
            for future in futures:
                future.result()
            self._store.confirm([entry.id for entry in entries])
            appended += len(futures)
        self._elsewhere -= {owner}
        return appended

    def sweep_blobs(self, *, alone: bool = False, go_on: Callable[[], bool] = lambda: True) -> int:
        """Delete blobs that no record names: left behind by a crash or a store that failed; returns how many.

        A blob lives as long as the body of some record contains its id, so ids must never be kept elsewhere only.
        Safe beside running requests of this process and others: what nothing names goes when the sweep before this
        one, some hours ago, found it unnamed too. Raises IntegrityFault, and deletes nothing, when a record does not
        open.

        Args:
            alone: Since this guard was made nobody else writes: what nothing names goes at once. For the start.
            go_on: Asked every few hundred records, and may take its time so that requests come first; False ends the
                sweep, and nothing was deleted.
        """

        def bodies() -> Iterator[bytes]:
            for number, row in enumerate(self._store.scan()):
                if number % _ROWS_A_QUESTION == 0 and not go_on():
                    raise _Stopped
                yield self._seal_open(row)

        try:
            return self._vault.sweep(bodies(), alone=alone)
        except _Stopped:
            return 0

    def keeping_blobs(self) -> AbstractContextManager[None]:
        """Blobs that are deleted meanwhile go away at the end only: for a backup, which takes records, then blobs."""
        return self._vault.keeping()

    @property
    def vault(self) -> BlobVault:
        """For the processes of one enclave, which must not take blobs from each other; never for a service."""
        return self._vault

    # What the guarded handles are made of

    def label(self, canonical: str) -> Label:
        """The label of a canonical text, decoded once."""
        label = self._labels.get(canonical)
        if label is None:
            label = self._labels[canonical] = Label.decode(canonical)
        return label

    def all_labels(self) -> list[str]:
        """Every label that any record carries or has carried, sorted."""
        return list(self._sorted(self._store.labels()))

    def visible_labels(self, high: Label) -> list[str]:
        """Those of `all_labels` that `high` dominates."""
        return self._below(high, self._store.labels())

    def _below(self, high: Label, present: frozenset[str]) -> list[str]:
        known = self._visible.get(high)
        if known is None or known[0] is not present:
            below = [canonical for canonical in self._sorted(present) if high.dominates(self.label(canonical))]
            known = self._visible[high] = (present, below)
        return known[1]

    def _sorted(self, present: frozenset[str]) -> list[str]:
        """The store gives the same set until a label is added, so it is sorted once."""
        if self._present[0] is not present:
            self._present = (present, sorted(present))
        return self._present[1]

    def visible_rows(self, account: str | None, service: str, kind: str, name: str, high: Label) -> list[Row]:
        """Sealed instances of one name at the labels that `high` dominates, whoever added the newest of them."""
        while True:
            visible = self._below(high, self._store.known_labels())
            rows = self._store.get(account, service, kind, name, visible)
            if self._below(high, self._store.known_labels()) == visible:
                return rows

    def rows(self, account: str | None, service: str, kind: str, name: str, labels: Collection[str]) -> list[Row]:
        """Sealed instances of one name at the given labels."""
        return self._store.get(account, service, kind, name, labels)

    def page(
        self,
        account: str | None,
        service: str,
        kind: str,
        labels: Collection[str],
        prefix: str,
        after: str,
        state: str | None,
        limit: int,
    ) -> list[Row]:
        """Sealed records at the given labels, as the store lists them."""
        return self._store.list(account, service, kind, labels, prefix=prefix, after=after, state=state, limit=limit)

    def open(self, row: Row) -> Record:
        """The record inside a row. Raises IntegrityFault when it is not what was sealed under this identity."""
        return Record(
            account=row.account,
            service=row.service,
            kind=row.kind,
            name=row.name,
            label=self.label(row.label),
            body=orjson.loads(self._seal_open(row)),
            state=row.state,
            version=row.version,
            created=row.created,
            updated=row.updated,
        )

    def commit(
        self,
        session: Session | None,
        account: str,
        label: Label,
        service: str,
        changes: Sequence[GuardedChange],
        conditions: Sequence[GuardedCondition] = (),
    ) -> list[Record]:
        """Carry out changes that the handles have checked, each at `label`, with their outbox entries, atomically."""
        if not self._ledger.writable:
            raise LedgerUnavailable("the ledger cannot be written, so nothing can be changed; see `honmaru doctor`")
        if self._behind:
            self.drain_outbox()
        at = self._clock.now()
        stored: list[Change] = []
        entries: list[tuple[str, dict[str, Any]]] = []
        for change in changes:
            sealed, body, verb, version, state = self._stored(change, account, label, service, at)
            stored.append(sealed)
            kind, name = (
                (change.kind, change.name) if isinstance(change, Creation) else (change.record.kind, change.record.name)
            )
            event_id = self._ids.uuid()
            entry = state_change(
                event_id=event_id,
                at=at,
                account=account,
                service=service,
                kind=kind,
                name=name,
                label=label.canonical,
                change=verb,
                state=state,
                version=version,
                body_digest=None if body is None else hashlib.sha384(body).hexdigest(),
                principal_arn=session.principal_arn if session else None,
                region=session.region if session else "",
            )
            entries.append((event_id, entry))
        mine = f"{self._owner}:" if self._owner else ""
        outbox = [OutboxEntry(mine + event_id, label.canonical, orjson.dumps(entry)) for event_id, entry in entries]
        told = self._told(service, changes)
        confirmed = self._take_confirmed()
        try:
            rows = self._store.apply(
                stored,
                outbox,
                confirmed,
                [_condition(one, account, service, label) for one in conditions],
                service if told and self._shared else "",
            )
        except BaseException:
            self._give_back(confirmed)
            raise
        self._append(label, entries)
        records = [self._committed(change, row) for change, row in zip(changes, rows, strict=True)]
        for callback in told:
            callback(account)
        return records

    def _told(self, service: str, changes: Sequence[GuardedChange]) -> list[Callable[[str | None], None]]:
        """Who asked to be told of one of these changes."""
        callbacks = self._callbacks.get(service)
        if not callbacks:
            return []
        kinds = {change.kind if isinstance(change, Creation) else change.record.kind for change in changes}
        return [callback for wanted, callback in callbacks if not wanted.isdisjoint(kinds)]

    def _stored(
        self, change: GuardedChange, account: str, label: Label, service: str, at: datetime
    ) -> tuple[Change, bytes | None, str, int, str]:
        """(the store's change, sealed body, verb, version and state after it)."""
        if isinstance(change, Creation):
            identity = (account, service, change.kind, change.name, label.canonical)
            body = self._seal(change.body, identity, change.state, 1)
            create = Create(account, service, change.kind, change.name, label.canonical, body, change.state, at)
            return create, body, "create", 1, change.state
        record = change.record
        row = _row(record, account, service, label)
        if isinstance(change, Removal):
            return Delete(row), None, "delete", record.version, record.state
        state = record.state if change.state is None else change.state
        version = record.version + 1
        identity = (account, service, record.kind, record.name, label.canonical)
        body = self._seal(change.body, identity, state, version)
        return Update(row, body, state, at), body, "update", version, state

    def _committed(self, change: GuardedChange, row: Row) -> Record:
        if isinstance(change, Removal):
            return change.record
        body = orjson.loads(orjson.dumps(change.body))
        return Record(
            row.account,
            row.service,
            row.kind,
            row.name,
            self.label(row.label),
            body,
            row.state,
            row.version,
            row.created,
            row.updated,
        )

    def _seal(
        self, body: Mapping[str, Any], identity: tuple[str, str, str, str, str], state: str, version: int
    ) -> bytes:
        plaintext = orjson.dumps(body, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS)
        self._vault.mention(plaintext)
        account, _, _, _, label = identity
        return self._keyring.seal(account, label, plaintext, _context(identity, state, version))

    def _seal_open(self, row: Row) -> bytes:
        identity = (row.account, row.service, row.kind, row.name, row.label)
        return self._keyring.open(row.account, row.label, row.body, _context(identity, row.state, row.version))

    # The outbox

    def _append(self, label: Label, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        for event_id, entry in entries:
            try:
                future = self._ledger.append(label, entry)
            except LedgerUnavailable:
                self._behind = True  # committed: it waits in the outbox, and answers are refused meanwhile
                return
            with self._lock:
                self._appended.append((f"{self._owner}:{event_id}" if self._owner else event_id, future))

    def _take_confirmed(self) -> list[str]:
        """Ids of entries that the ledger holds durably by now, to be forgotten with the next commit."""
        confirmed: list[str] = []
        with self._lock:
            while self._appended and self._appended[0][1].done():
                event_id, future = self._appended.popleft()
                if future.exception() is None:
                    confirmed.append(event_id)
                else:
                    self._behind = True
        return confirmed

    def _give_back(self, confirmed: Sequence[str]) -> None:
        done: Future[Any] = Future()
        done.set_result(None)
        with self._lock:
            self._appended.extendleft((event_id, done) for event_id in confirmed)


def _row(record: Record, account: str, service: str, label: Label) -> Row:
    """A record as the store knows it, without its body."""
    return Row(
        account,
        service,
        record.kind,
        record.name,
        label.canonical,
        b"",
        record.state,
        record.version,
        record.created,
        record.updated,
    )


def _condition(condition: GuardedCondition, account: str, service: str, label: Label) -> Condition:
    if isinstance(condition, StillThere):
        return Presence(_row(condition.record, account, service, label))
    return Absence(account, service, condition.kind, condition.prefix, label.canonical)


def _context(identity: tuple[str, str, str, str, str], state: str, version: int) -> bytes:
    """What a sealed body is bound to: a body put under another name, label, state or version does not open."""
    return orjson.dumps([*identity, state, version])
