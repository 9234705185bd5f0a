"""Guarded records: what a session may see and change of the record store.

Invariants (Bell-LaPadula with strong tranquility; SP 800-53 AC-3(3), AC-4):
- Reading needs the session's label to dominate the record's label; what is above does not exist for the session.
- What a session creates carries the session's label, and a record's label never changes.
- A session changes or deletes only records at exactly its own label (no write-down, no blind write-up).
- Names may repeat at different labels (polyinstantiation). A session sees one instance of each name: the one at its
  own label, else a maximal visible one, ties broken by the label's text.
- A body opens only under the account, service, kind, name, label, state and version that it was sealed for.
- `TrustedRecords` reads across labels and accounts; its updates keep the record's label. Only the authenticator and
  the supervisor hold one.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import AccessDenied, Conflict, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.ports.records import Row

if TYPE_CHECKING:
    from honmaru.security.guard.guard import Guard

_PAGE = 256


@dataclass(frozen=True, slots=True)
class Record:
    """One resource as a session sees it. `body` must not be changed in place: copy, change, `update`."""

    account: str
    service: str
    kind: str
    name: str
    label: Label
    body: Mapping[str, Any]
    state: str
    version: int
    created: datetime
    updated: datetime


@dataclass(frozen=True, slots=True)
class Creation:
    """A record to be made at the session's label."""

    kind: str
    name: str
    body: Mapping[str, Any]
    state: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """A new body for `record`, and a new state unless None, if the stored version is still `record.version`."""

    record: Record
    body: Mapping[str, Any]
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """Delete `record` if the stored version is still `record.version`."""

    record: Record


GuardedChange = Creation | Revision | Removal


@dataclass(frozen=True, slots=True)
class StillThere:
    """A condition: `record`, at the session's label, is there in the instant of the change, at whatever version."""

    record: Record


@dataclass(frozen=True, slots=True)
class NoneLeft:
    """A condition: after the change no record of the kind at the session's label has a name that starts so."""

    kind: str
    prefix: str


GuardedCondition = StillThere | NoneLeft


class GuardedRecords:
    """The records of one service, as one session. Made by `Guard.records`."""

    def __init__(self, guard: Guard, session: Session, service: str) -> None:
        self._guard = guard
        self._session = session
        self._service = service

    @property
    def session(self) -> Session:
        return self._session

    def get(self, kind: str, name: str) -> Record | None:
        """The visible instance of a name, or None. Label: reads at or below the session's label."""
        if not _is_name(name):
            return None
        rows = self._guard.visible_rows(self._session.account, self._service, kind, name, self._session.label)
        row = self._resolve(rows)
        return None if row is None else self._guard.open(row)

    def instances(self, kind: str, name: str) -> builtins.list[Record]:
        """Every visible instance of a name, by label. Label: reads at or below the session's label, as `get`."""
        if not _is_name(name):
            return []
        rows = self._guard.visible_rows(self._session.account, self._service, kind, name, self._session.label)
        return [self._guard.open(row) for row in rows]

    def iterate_instances(self, kind: str, *, prefix: str = "", after: str = "", page: int = _PAGE) -> Iterator[Record]:
        """Like `iterate`, with every visible instance of each name, by (name, label)."""
        if not _is_name(prefix):
            return
        for group in self._grouped(kind, prefix, after, None, self._visible(), max(page, 1)):
            yield from (self._guard.open(row) for row in group)

    def list(
        self, kind: str, *, prefix: str = "", after: str = "", state: str | None = None, limit: int = 1000
    ) -> builtins.list[Record]:
        """At most `limit` records whose name starts with `prefix` and is greater than `after`, by name.

        One record per name, resolved as by `get`; `state` then keeps only those whose visible instance is in it.
        """
        records: list[Record] = []
        for record in self.iterate(kind, prefix=prefix, after=after, state=state, page=min(limit, _PAGE)):
            if len(records) == limit:
                break
            records.append(record)
        return records

    def iterate(
        self, kind: str, *, prefix: str = "", after: str = "", state: str | None = None, page: int = _PAGE
    ) -> Iterator[Record]:
        """Like `list` without a limit, fetched page by page; concurrent changes may or may not be seen."""
        if not _is_name(prefix):
            return
        visible = self._visible()
        # With one visible label the store may filter: the only instance of a name is the resolved one.
        wanted = state if len(visible) == 1 else None
        for group in self._grouped(kind, prefix, after, wanted, visible, max(page, 1)):
            row = self._resolve(group)
            if row is not None and (state is None or row.state == state):
                yield self._guard.open(row)

    def create(self, kind: str, name: str, body: Mapping[str, Any], state: str = "") -> Record:
        """Make a record at the session's label; durable on return.

        Raises:
            Conflict: a record of this name exists at exactly the session's label.
            ValidationFault: the name cannot be stored.
        """
        return self.apply([Creation(kind, name, body, state)])[0]

    def update(self, record: Record, body: Mapping[str, Any], state: str | None = None) -> Record:
        """Replace the body, and the state unless None; durable on return.

        Raises:
            AccessDenied: the record is not at the session's label (no write-down).
            Conflict: the record changed or went away since it was read.
        """
        return self.apply([Revision(record, body, state)])[0]

    def delete(self, record: Record) -> None:
        """Delete a record; raises as `update` does."""
        self.apply([Removal(record)])

    def apply(
        self, changes: Sequence[GuardedChange], conditions: Sequence[GuardedCondition] = ()
    ) -> builtins.list[Record]:
        """Carry out several changes atomically: all of them durable on return, or none. Raises as the single ones, and
        Conflict for a condition that does not hold. Label: conditions look at the session's own label only."""
        session = self._session
        for change in changes:
            if isinstance(change, Creation):
                _check_name(change.name)
            else:
                self._check_own(change.record)
        for condition in conditions:
            if isinstance(condition, StillThere):
                self._check_own(condition.record)
        return self._guard.commit(session, session.account, session.label, self._service, changes, conditions)

    def _check_own(self, record: Record) -> None:
        session = self._session
        if record.account != session.account or record.service != self._service:
            raise AccessDenied(f"record {record.name!r} belongs to another account or service than this session's")
        if record.label != session.label:
            raise AccessDenied(
                f"{record.name!r} is at {record.label.banner} and this session is at {session.label.banner}: "
                f"a session changes only what carries its own label; sign in at {record.label.banner} to change it"
            )

    def _visible(self) -> builtins.list[str]:
        return self._guard.visible_labels(self._session.label)

    def _resolve(self, rows: Iterable[Row]) -> Row | None:
        """The instance at the session's label, else a maximal one; the session's label dominates all of them."""
        best: Row | None = None
        for row in rows if type(rows) is builtins.list and len(rows) < 2 else sorted(rows, key=lambda row: row.label):
            if best is None or self._above(row, best):
                best = row
        return best

    def _above(self, row: Row, other: Row) -> bool:
        return self._guard.label(row.label).dominates(self._guard.label(other.label))

    def _grouped(
        self, kind: str, prefix: str, after: str, state: str | None, visible: Collection[str], page: int
    ) -> Iterator[builtins.list[Row]]:
        """The rows of each name. A page may end inside a name: its last name is taken up again with the next page."""
        size = page + len(visible)
        while True:
            rows = self._guard.page(self._session.account, self._service, kind, visible, prefix, after, state, size)
            groups = [list(group) for _, group in groupby(rows, key=lambda row: row.name)]
            more = len(rows) == size
            yield from groups[:-1] if more else groups
            if not more:
                return
            after = groups[-2][0].name if len(groups) > 1 else after


class Sight:
    """Records of one service that a label dominates, in every account: what a question to IAM is about.

    It widens what a session sees by accounts only, never by label, and reads only: an answer of IAM may depend on who
    owns a resource and on its policy, never on what lies above the session. Made by `Guard.sight`.
    """

    def __init__(self, guard: Guard, label: Label, service: str, account: str | None = None, asking: str = "") -> None:
        self._guard = guard
        self._service = service
        self._asking = asking
        self.label = label
        self.account = account
        """The account that is meant, where the question names one; None looks in all of them."""

    def get(self, kind: str, name: str, *, account: str | None = None) -> Record | None:
        """The instance of a name that this label sees: the one at the label itself, else a maximal one below it.

        Without an account, here and in the question, all are searched (S3's bucket names are one name space), that of
        who asks first: nobody hides another's by making one of its name at a higher label. Of several others' instances
        at one label the first in the order of account numbers is meant.
        """
        account = account or self.account
        if not _is_name(name):
            return None
        best: Row | None = None
        rows = self._guard.visible_rows(account, self._service, kind, name, self.label)
        own = [row for row in rows if row.account == self._asking]
        for row in own or rows:
            label = self._guard.label
            if best is None or (row.label != best.label and label(row.label).dominates(label(best.label))):
                best = row
        return None if best is None else self._guard.open(best)

    def iterate(self, kind: str, *, account: str, prefix: str = "") -> Iterator[Record]:
        """Every visible instance of every name of one account that starts with `prefix`, by (name, label)."""
        visible = self._guard.visible_labels(self.label)
        size = _PAGE + len(visible)
        after = ""
        while True:
            rows = self._guard.page(account, self._service, kind, visible, prefix, after, None, size)
            more = len(rows) == size
            # A page may end inside a name, so its last name is taken up again with the next page.
            last = rows[-1].name if more else None
            yield from (self._guard.open(row) for row in rows if row.name != last)
            if not more:
                return
            after = next(row.name for row in reversed(rows) if row.name != last)


class TrustedRecords:
    """Records of stated kinds of one service across labels and accounts, for the authenticator and the supervisor.

    These two are the guard's only trusted subjects: they must read above and below to do their work, and whoever
    holds this handle must never show one label's content to another. Made by `Guard.trusted`.
    """

    def __init__(self, guard: Guard, service: str, kinds: frozenset[str]) -> None:
        self._guard = guard
        self._service = service
        self._kinds = kinds

    def get(self, kind: str, name: str, *, account: str | None = None) -> list[Record]:
        """Every instance of a name, by (label, account)."""
        self._check_kind(kind)
        if not _is_name(name):
            return []
        rows = self._guard.rows(account, self._service, kind, name, self._guard.all_labels())
        return [self._guard.open(row) for row in rows]

    def list(
        self, kind: str, *, account: str | None = None, prefix: str = "", state: str | None = None
    ) -> list[Record]:
        """Every instance of every name, by (name, label, account); `state` keeps those in it."""
        self._check_kind(kind)
        labels = self._guard.all_labels()
        records: list[Record] = []
        after = ""
        size = _PAGE + len(labels)
        while True:
            rows = self._guard.page(account, self._service, kind, labels, prefix, after, state, size)
            groups = [list(group) for _, group in groupby(rows, key=lambda row: row.name)]
            more = len(rows) == size
            if more and len(groups) == 1:
                size *= 2
                continue
            for group in groups[:-1] if more else groups:
                records += [self._guard.open(row) for row in group]
            if not more:
                return records
            after = groups[-2][0].name

    def reread(self, record: Record) -> Record | None:
        """The record as stored now, at the same account and label; None when it was deleted."""
        self._check_kind(record.kind)
        rows = self._guard.rows(record.account, self._service, record.kind, record.name, [record.label.canonical])
        return self._guard.open(rows[0]) if rows else None

    def create(
        self, account: str, label: Label, kind: str, name: str, body: Mapping[str, Any], state: str = ""
    ) -> Record:
        """Make a record at a stated label: what the platform itself lays down. Raises Conflict."""
        self._check_kind(kind)
        _check_name(name)
        return self._guard.commit(None, account, label, self._service, [Creation(kind, name, body, state)])[0]

    def update(self, record: Record, body: Mapping[str, Any], state: str | None = None) -> Record:
        """Replace body and state by compare-and-swap; the label stays. Raises Conflict when stale."""
        return self._change(record, Revision(record, body, state))[0]

    def delete(self, record: Record) -> None:
        """Delete a record by compare-and-swap. Raises Conflict when stale."""
        self._change(record, Removal(record))

    def _change(self, record: Record, change: GuardedChange) -> Sequence[Record]:
        self._check_kind(record.kind)
        if record.service != self._service:
            raise Conflict(f"record {record.name!r} belongs to service {record.service!r}, not {self._service!r}")
        return self._guard.commit(None, record.account, record.label, self._service, [change])

    def _check_kind(self, kind: str) -> None:
        if kind not in self._kinds:
            raise AccessDenied(f"this handle is trusted with {sorted(self._kinds)}, not with {kind!r}")


def _is_name(name: str) -> bool:
    if "\0" in name:
        return False
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _check_name(name: str) -> None:
    """PostgreSQL's text holds neither NUL nor unpaired surrogates; both stores refuse them alike."""
    if not name or not _is_name(name):
        raise ValidationFault(f"{name!r} cannot be a name: expected at least one character, no NUL, valid Unicode")
