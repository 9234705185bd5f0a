"""The record store on SQLite (default) or PostgreSQL: tables, statements, and what they mean.

Invariants (beside those of the port, `ports.records`):
- Names compare by code point on both databases: SQLite's BINARY and PostgreSQL's COLLATE "C".
- SQLite runs in WAL mode with synchronous=FULL: a commit is on disk before `apply` returns. On PostgreSQL
  synchronous_commit is on for every session. (`sql_databases`, where commits are grouped.)
- An index range serves every `get` and `list`: (scope, service, kind, name) is the primary key, where a scope is one
  account at one label. A list reads only rows of the scopes that were asked for, so rows at other labels cost nothing.
- What is asked of all accounts costs what it finds, not how many accounts there are: an index without the scope serves
  it, for every kind but those of which there are millions (`_BULK`).

Only the guard holds a store; bodies arrive sealed.
"""

from __future__ import annotations

import builtins
import functools
import heapq
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sql

from honmaru.core.errors import Conflict, StoreUnavailable
from honmaru.ports.records import (
    OWNER,
    Absence,
    Change,
    Condition,
    Create,
    Delete,
    OutboxEntry,
    Presence,
    Row,
    Update,
)
from honmaru.stores.sql_databases import Execute, open_database

_CHUNK = 256
_SCHEMA = 1

_text = sql.Text().with_variant(sql.Text(collation="C"), "postgresql")
_serial = sql.BigInteger().with_variant(sql.Integer(), "sqlite")
_metadata = sql.MetaData()

_schema = sql.Table("schema_version", _metadata, sql.Column("version", sql.Integer, primary_key=True))

_scopes = sql.Table(
    "scopes",
    _metadata,
    sql.Column("id", _serial, primary_key=True, autoincrement=True),
    sql.Column("account", _text, nullable=False),
    sql.Column("label", _text, nullable=False),
    sql.UniqueConstraint("account", "label"),
)

_records = sql.Table(
    "records",
    _metadata,
    sql.Column("scope", _serial, primary_key=True, autoincrement=False),
    sql.Column("service", _text, primary_key=True),
    sql.Column("kind", _text, primary_key=True),
    sql.Column("name", _text, primary_key=True),
    sql.Column("state", _text, nullable=False),
    sql.Column("version", sql.BigInteger, nullable=False),
    sql.Column("created", sql.BigInteger, nullable=False),
    sql.Column("updated", sql.BigInteger, nullable=False),
    sql.Column("body", sql.LargeBinary, nullable=False),
)
# Partial: most records (S3 objects) have no state, and this index costs them nothing.
sql.Index(
    "records_by_state",
    _records.c.scope,
    _records.c.service,
    _records.c.kind,
    _records.c.state,
    _records.c.name,
    sqlite_where=_records.c.state != sql.literal_column("''"),
    postgresql_where=_records.c.state != sql.literal_column("''"),
)

_BULK = ("layout", "null-version", "object", "part", "version")
"""Kinds whose rows are too many for a further index, and which nobody asks for across accounts."""
_NOT_BULK = f"kind NOT IN ({', '.join(repr(kind) for kind in _BULK)})"
_STATED = f"state != '' AND {_NOT_BULK}"
sql.Index(
    "records_across",
    _records.c.service,
    _records.c.kind,
    _records.c.name,
    _records.c.scope,
    sqlite_where=sql.text(_NOT_BULK),
    postgresql_where=sql.text(_NOT_BULK),
)
sql.Index(
    "records_across_by_state",
    _records.c.service,
    _records.c.kind,
    _records.c.state,
    _records.c.name,
    _records.c.scope,
    sqlite_where=sql.text(_STATED),
    postgresql_where=sql.text(_STATED),
)
_FEW = 16
"""Up to so many scopes are asked one by one."""

_outbox = sql.Table(
    "outbox",
    _metadata,
    sql.Column("position", _serial, primary_key=True, autoincrement=True),
    sql.Column("id", _text, nullable=False, unique=True),
    sql.Column("label", _text, nullable=False),
    sql.Column("payload", sql.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

_changes = sql.Table(
    "changes",
    _metadata,
    sql.Column("topic", _text, primary_key=True),
    sql.Column("count", sql.BigInteger, nullable=False),
)

# Statements are plain texts: SQLAlchemy takes longer to compile and run one than SQLite to answer it.
_COLUMNS = "scope, service, kind, name, state, version, created, updated, body"
_INSERT = f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"  # noqa: S608
_UPDATE = (
    "UPDATE records SET body = ?, state = ?, version = ?, updated = ? "
    "WHERE scope = ? AND service = ? AND kind = ? AND name = ? AND version = ?"
)
_DELETE = "DELETE FROM records WHERE scope = ? AND service = ? AND kind = ? AND name = ? AND version = ?"
# PostgreSQL holds the row until the end of the transaction; on SQLite there is no other writer until then.
_PRESENCE = "SELECT version FROM records WHERE scope = ? AND service = ? AND kind = ? AND name = ?"
_PRESENT = {True: _PRESENCE, False: f"{_PRESENCE} FOR SHARE"}
_FROM = "SELECT version FROM records WHERE scope = ? AND service = ? AND kind = ? AND name >= ?"
_ENQUEUE = "INSERT INTO outbox (id, label, payload) VALUES (?, ?, ?)"
_OUTBOX = "SELECT id, label, payload FROM outbox{} ORDER BY position LIMIT ?"
_OF_OWNER = f" WHERE substr(id, {OWNER + 1}, 1) = ':' AND substr(id, 1, {OWNER}) = ?"
_OF_NOBODY = f" WHERE substr(id, {OWNER + 1}, 1) <> ':'"
_RAISE = "INSERT INTO changes (topic, count) VALUES (?, 1) ON CONFLICT (topic) DO UPDATE SET count = changes.count + 1"
_CHANGES = "SELECT topic, count FROM changes"
_SCOPES = "SELECT id, account, label FROM scopes WHERE id > ?"
# Scopes are only ever added. A sequence of PostgreSQL may commit a lower number after a higher one; SQLite has one
# writer, so there the highest number tells, and finding it reads one page however many there are.
_NEWS = {True: "SELECT max(id) AS news FROM scopes", False: "SELECT count(*) AS news FROM scopes"}
_ADD_SCOPE = "INSERT INTO scopes (account, label) VALUES (?, ?) ON CONFLICT DO NOTHING"
_SCOPE = "SELECT id FROM scopes WHERE account = ? AND label = ?"
_GET_ACROSS = f"SELECT {_COLUMNS} FROM records WHERE service = ? AND kind = ? AND name = ? AND {_NOT_BULK}"  # noqa: S608
_LAST_SCOPE = (1 << 62) - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SqlRecordStore:
    """A `ports.records.RecordStore`.

    Args:
        url: `sqlite:////path/to/records.db`, or `postgresql+psycopg://user@host/database`.
    Raises:
        StoreUnavailable: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._sqlite = sql.make_url(url).get_backend_name() == "sqlite"
        self._database = open_database(url, _metadata)
        self._news: Any = None
        self._scopes: dict[tuple[str, str], int] = {}
        self._places: dict[int, tuple[str, str]] = {}
        self._labels: frozenset[str] = frozenset()
        versions = self._database.read("SELECT version FROM schema_version")
        if not versions:
            self._database.write(lambda execute: execute("INSERT INTO schema_version (version) VALUES (?)", (_SCHEMA,)))
        elif versions != [(_SCHEMA,)]:
            raise StoreUnavailable(f"the record store has schema {versions}, this honmaru reads {_SCHEMA}")
        self._load_scopes()

    def get(self, account: str | None, service: str, kind: str, name: str, labels: Collection[str]) -> list[Row]:
        scopes = self._scope_ids(account, labels)
        if not scopes:
            self.labels()
            return []
        if account is None and len(scopes) > _FEW and kind not in _BULK:
            self.labels()
            wanted = frozenset(scopes)
            found = self._database.read(_GET_ACROSS, (service, kind, name))
            rows = [self._row(columns) for columns in found if columns[0] in wanted]
        else:
            found = self._database.read(_get(len(scopes), self._sqlite), (*scopes, service, kind, name))
            if found[0][0] != self._news:
                self._load_scopes()
            rows = [self._row(columns[1:]) for columns in found if columns[1] is not None]
        return rows if len(rows) < 2 else sorted(rows, key=lambda row: (row.label, row.account))

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
        scopes = self._scope_ids(account, labels)
        if account is None and len(scopes) > _FEW and kind not in _BULK:
            across = self._across(frozenset(scopes), service, kind, prefix, after, state)
            return [row for row, _ in zip(across, range(limit), strict=False)]
        streams = [self._stream(scope, service, kind, prefix, after, state, limit) for scope in scopes]
        if len(streams) == 1:
            return [*streams[0]]
        merged = heapq.merge(*streams, key=lambda row: (row.name, row.label, row.account))
        return [row for row, _ in zip(merged, range(limit), strict=False)]

    def apply(
        self,
        changes: Sequence[Change],
        outbox: Sequence[OutboxEntry] = (),
        confirmed: Collection[str] = (),
        conditions: Sequence[Condition] = (),
        raised: str = "",
    ) -> builtins.list[Row]:
        new_scopes: dict[tuple[str, str], int] = {}

        def work(execute: Execute) -> builtins.list[Row]:
            for condition in conditions:
                if isinstance(condition, Presence):
                    self._require_presence(execute, condition.row)
            rows = [self._change(execute, change, new_scopes) for change in changes]
            for condition in conditions:
                if isinstance(condition, Absence):
                    self._require_absence(execute, condition)
            for entry in outbox:
                execute(_ENQUEUE, (entry.id, entry.label, entry.payload))
            if confirmed:
                execute(_confirm(len(confirmed)), tuple(confirmed))
            if raised:  # last: on PostgreSQL others that raise it wait for the end of this transaction
                execute(_RAISE, (raised,))
            return rows

        rows: builtins.list[Row] = self._database.write(work)
        self._remember(new_scopes)
        return rows

    def scan(self) -> Iterator[Row]:
        key = "scope, service, kind, name"
        place: tuple[Any, ...] = ()
        while True:
            where = f"WHERE ({key}) > (?, ?, ?, ?)" if place else ""
            found = self._database.read(
                f"SELECT {_COLUMNS} FROM records {where} ORDER BY {key} LIMIT ?",  # noqa: S608
                (*place, _CHUNK),
            )
            if not found:
                return
            place = tuple(found[-1][:4])
            if any(columns[0] not in self._places for columns in found):
                self._load_scopes()
            yield from (self._row(columns) for columns in found)

    def labels(self) -> frozenset[str]:
        # Another process may have added a scope; scopes are never changed or removed.
        if self._database.read(_NEWS[self._sqlite])[0][0] != self._news:
            self._load_scopes()
        return self._labels

    def known_labels(self) -> frozenset[str]:
        return self._labels

    def changes(self) -> dict[str, int]:
        return {topic: int(count) for topic, count in self._database.read(_CHANGES)}

    def outbox(
        self, limit: int = 1000, *, owner: str | None = None, but: Collection[str] = ()
    ) -> builtins.list[OutboxEntry]:
        where, values = "", tuple(but)
        if owner is not None:
            where, values = (_OF_OWNER, (owner,)) if owner else (_OF_NOBODY, ())
        elif but:
            where = f"{_OF_NOBODY} OR substr(id, 1, {OWNER}) NOT IN ({', '.join('?' * len(values))})"
        found = self._database.read(_OUTBOX.format(where), (*values, limit))
        return [OutboxEntry(event_id, label, bytes(payload)) for event_id, label, payload in found]

    def confirm(self, ids: Collection[str]) -> None:
        self.apply((), (), ids)

    def hold(self) -> None:
        """Become the one enclave of this database, until `close` or the end of the process. Raises ConfigurationFault
        when another enclave, perhaps on another host, is. A SQLite file belongs to its data directory, which has a
        lock of its own."""
        self._database.hold()

    def held(self) -> bool:
        """Whether this is still the one enclave of its database, taken up again if the connection was lost meanwhile.
        True while the database does not answer: then nobody is answered from it either."""
        return self._database.held()

    def close(self) -> None:
        """Close every connection; on SQLite the WAL is folded into the database."""
        self._database.close()

    def _require_presence(self, execute: Execute, row: Row) -> None:
        key = (self._scopes.get((row.account, row.label), -1), row.service, row.kind, row.name)
        if execute(_PRESENT[self._sqlite], key).fetchone() is None:
            raise Conflict(f"{row.kind} {row.name!r} was deleted meanwhile; read it again and retry")

    def _require_absence(self, execute: Execute, condition: Absence) -> None:
        scope = self._scopes.get((condition.account, condition.label), -1)
        end = _successor(condition.prefix)
        below = "" if end is None else " AND name < ?"
        values = (scope, condition.service, condition.kind, condition.prefix, *([] if end is None else [end]))
        if execute(f"{_FROM}{below} LIMIT 1", values).fetchone() is not None:
            raise Conflict(f"a {condition.kind} was made meanwhile; read it again and retry")

    def _change(self, execute: Execute, change: Change, new_scopes: dict[tuple[str, str], int]) -> Row:
        if isinstance(change, Create):
            return self._create(execute, change, new_scopes)
        row = change.row
        key = (self._scopes.get((row.account, row.label), -1), row.service, row.kind, row.name, row.version)
        if isinstance(change, Delete):
            count = execute(_DELETE, key).rowcount
            stored = row
        else:
            stored = _updated(change)
            values = (stored.body, stored.state, stored.version, _micros(stored.updated))
            count = execute(_UPDATE, (*values, *key)).rowcount
        if count != 1:
            raise Conflict(f"{row.kind} {row.name!r} was changed or deleted meanwhile; read it again and retry")
        return stored

    def _create(self, execute: Execute, change: Create, new_scopes: dict[tuple[str, str], int]) -> Row:
        place = (change.account, change.label)
        scope = self._scopes.get(place) or new_scopes.get(place)
        if scope is None:
            scope = new_scopes[place] = self._add_scope(execute, place)
        at = _micros(change.at)
        values = (scope, change.service, change.kind, change.name, change.state, 1, at, at, change.body)
        if execute(_INSERT, values).rowcount != 1:
            raise Conflict(f"{change.kind} {change.name!r} already exists")
        return Row(
            change.account,
            change.service,
            change.kind,
            change.name,
            change.label,
            change.body,
            change.state,
            1,
            change.at,
            change.at,
        )

    @staticmethod
    def _add_scope(execute: Execute, place: tuple[str, str]) -> int:
        execute(_ADD_SCOPE, place)
        return int(execute(_SCOPE, place).fetchone()[0])

    def _stream(
        self, scope: int, service: str, kind: str, prefix: str, after: str, state: str | None, limit: int
    ) -> Iterator[Row]:
        """Rows of one scope by name, fetched in chunks that grow, so a merge of many scopes stays cheap."""
        of_kind = (scope, service, kind) if state is None else (scope, service, kind, state)
        end = _successor(prefix)
        until = () if end is None else (end,)
        filtered = None if state is None else state != ""
        start, inclusive = (after, False) if after >= prefix else (prefix, True)
        left = limit
        chunk = _CHUNK
        while left > 0:
            size = min(chunk, left)
            statement = _page(filtered, inclusive, end is not None)
            found = self._database.read(statement, (*of_kind, start, *until, size))
            yield from (self._row(columns) for columns in found)
            if len(found) < size:
                return
            left -= size
            start, inclusive = found[-1][3], False
            chunk *= 2

    def _across(
        self, scopes: frozenset[int], service: str, kind: str, prefix: str, after: str, state: str | None
    ) -> Iterator[Row]:
        """Rows of many scopes by (name, label, account)."""
        end = _successor(prefix)
        until = () if end is None else (end,)
        of_kind = (service, kind) if state is None else (service, kind, state)
        filtered = None if state is None else state != ""
        # The last scope of `after` lies behind every one of its rows; the first name from `prefix` on before them.
        place: tuple[str, int] = (after, _LAST_SCOPE) if after >= prefix else (prefix, -1)
        group: builtins.list[Row] = []
        while True:
            found = self._database.read(_across_page(filtered, end is not None), (*of_kind, *place, *until, _CHUNK))
            for columns in found:
                if columns[0] not in scopes:
                    continue
                row = self._row(columns)
                if group and group[0].name != row.name:
                    yield from sorted(group, key=lambda row: (row.label, row.account))
                    group = []
                group.append(row)
            if len(found) < _CHUNK:
                yield from sorted(group, key=lambda row: (row.label, row.account))
                return
            place = (found[-1][3], found[-1][0])

    def _row(self, columns: Any) -> Row:
        scope, service, kind, name, state, version, created, updated, body = columns
        account, label = self._places[scope]
        made = _time(created)
        return Row(
            account,
            service,
            kind,
            name,
            label,
            bytes(body),
            state,
            version,
            made,
            made if updated == created else _time(updated),
        )

    def _scope_ids(self, account: str | None, labels: Collection[str]) -> builtins.list[int]:
        if account is not None:
            scopes = self._scopes
            return [scopes[account, label] for label in labels if (account, label) in scopes]
        wanted = frozenset(labels)
        return [scope for scope, (_, label) in self._places.items() if label in wanted]

    def _load_scopes(self) -> None:
        news = self._database.read(_NEWS[self._sqlite])[0][0]  # first: what comes between the two is loaded again
        # On SQLite scopes are numbered in the order of their commits, so only those behind the last load are new: not
        # those behind the last known one, which this process may have added after another one's.
        behind = self._news if self._sqlite and self._news is not None else -1
        found = self._database.read(_SCOPES, (behind,))
        self._remember({(account, label): scope for scope, account, label in found})
        self._news = news

    def _remember(self, scopes: dict[tuple[str, str], int]) -> None:
        # Replaced, not changed: readers in other threads iterate over them.
        if scopes:
            self._scopes = self._scopes | scopes
            self._places = self._places | {scope: place for place, scope in scopes.items()}
            self._labels |= frozenset(label for _, label in scopes)


@functools.cache
def _get(scopes: int, sqlite: bool) -> str:
    """The instances of a name beside what tells whether a scope was added: one statement, so one state of both."""
    places = "r.scope = ?" if scopes == 1 else f"r.scope IN ({', '.join('?' * scopes)})"
    columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
    return (
        f"SELECT n.news, {columns} FROM ({_NEWS[sqlite]}) AS n LEFT JOIN records AS r "  # noqa: S608
        f"ON {places} AND r.service = ? AND r.kind = ? AND r.name = ?"
    )


@functools.cache
def _confirm(count: int) -> str:
    return f"DELETE FROM outbox WHERE id IN ({', '.join('?' * count)})"  # noqa: S608


@functools.cache
def _page(filtered: bool | None, inclusive: bool, bounded: bool) -> str:
    """One chunk of a list. `filtered`: by a state that is not empty (the partial index fits once that is said)."""
    wanted = "" if filtered is None else " AND state = ?" + (" AND state != ''" if filtered else "")
    return (
        f"SELECT {_COLUMNS} FROM records WHERE scope = ? AND service = ? AND kind = ?{wanted} "  # noqa: S608
        f"AND name {'>=' if inclusive else '>'} ?{' AND name < ?' if bounded else ''} ORDER BY name LIMIT ?"
    )


@functools.lru_cache(maxsize=8)
def _across_page(filtered: bool | None, bounded: bool) -> str:
    """One chunk of a list over all scopes, in the order of names."""
    wanted = "" if filtered is None else " AND state = ?" + (" AND state != ''" if filtered else "")
    return (
        f"SELECT {_COLUMNS} FROM records WHERE service = ? AND kind = ?{wanted} AND {_NOT_BULK} "  # noqa: S608
        f"AND (name, scope) > (?, ?){' AND name < ?' if bounded else ''} ORDER BY name, scope LIMIT ?"
    )


def _updated(change: Update) -> Row:
    row = change.row
    return Row(
        row.account,
        row.service,
        row.kind,
        row.name,
        row.label,
        change.body,
        change.state,
        row.version + 1,
        row.created,
        change.at,
    )


def _successor(prefix: str) -> str | None:
    """The least text greater than every text that starts with `prefix`; None when there is none."""
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position])
        if point < 0x10FFFF:
            return prefix[:position] + chr(0xE000 if point + 1 == 0xD800 else point + 1)
    return None


def _micros(at: datetime) -> int:
    delta = at - _EPOCH
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
