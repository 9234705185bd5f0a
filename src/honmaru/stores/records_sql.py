"""The record store on SQLite (default) or PostgreSQL, through SQLAlchemy Core.

Invariants (beside those of the port, `ports.records`):
- Names compare by code point on both databases: SQLite's BINARY and PostgreSQL's COLLATE "C".
- SQLite runs in WAL mode with synchronous=FULL: a commit is on disk before `apply` returns. On PostgreSQL
  synchronous_commit is on for every session.
- An index range serves every `get` and `list`: (scope, service, kind, name) is the primary key, where a scope is one
  account at one label. A list reads only rows of the scopes that were asked for, so rows at other labels cost nothing.

Only the guard holds a store; bodies arrive sealed.
"""

from __future__ import annotations

import builtins
import heapq
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from honmaru.core.errors import Conflict, StoreUnavailable
from honmaru.ports.records import Change, Create, Delete, OutboxEntry, Row, Update

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

_outbox = sql.Table(
    "outbox",
    _metadata,
    sql.Column("position", _serial, primary_key=True, autoincrement=True),
    sql.Column("id", _text, nullable=False, unique=True),
    sql.Column("label", _text, nullable=False),
    sql.Column("payload", sql.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

_of_name = (
    (_records.c.scope == sql.bindparam("scope"))
    & (_records.c.service == sql.bindparam("service"))
    & (_records.c.kind == sql.bindparam("kind"))
    & (_records.c.name == sql.bindparam("name"))
)
# Statements are built once: building them takes longer than running them.
_GET = sql.select(_records).where(
    _records.c.scope.in_(sql.bindparam("scopes", expanding=True)),
    _records.c.service == sql.bindparam("service"),
    _records.c.kind == sql.bindparam("kind"),
    _records.c.name == sql.bindparam("name"),
)
_COUNT_SCOPES = sql.select(sql.func.count()).select_from(_scopes)
_ENQUEUE = sql.insert(_outbox)
_CONFIRM = sql.delete(_outbox).where(_outbox.c.id.in_(sql.bindparam("ids", expanding=True)))
_INSERT = sql.insert(_records)
_UPDATE = (
    sql.update(_records)
    .where(
        (_records.c.scope == sql.bindparam("k_scope"))
        & (_records.c.service == sql.bindparam("k_service"))
        & (_records.c.kind == sql.bindparam("k_kind"))
        & (_records.c.name == sql.bindparam("k_name"))
        & (_records.c.version == sql.bindparam("k_version"))
    )
    .values(
        body=sql.bindparam("new_body"),
        state=sql.bindparam("new_state"),
        version=sql.bindparam("new_version"),
        updated=sql.bindparam("new_updated"),
    )
)
_DELETE = sql.delete(_records).where(_of_name & (_records.c.version == sql.bindparam("version")))


class SqlRecordStore:
    """A `ports.records.RecordStore`.

    Args:
        url: `sqlite:////path/to/records.db`, or `postgresql+psycopg://user@host/database`.
    Raises:
        StoreUnavailable: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        parsed = sql.make_url(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(parsed) if self._sqlite else _postgresql_engine(parsed)
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite has one writer; waiting here is fair and cheap, waiting in SQLite is polling.
        self._writing = threading.Lock()
        self._scopes: dict[tuple[str, str], int] = {}
        self._places: dict[int, tuple[str, str]] = {}
        with self._faults(), self._engine.begin() as connection:
            _metadata.create_all(connection)
            versions = connection.execute(sql.select(_schema.c.version)).scalars().all()
            if not versions:
                connection.execute(sql.insert(_schema).values(version=_SCHEMA))
            elif versions != [_SCHEMA]:
                raise StoreUnavailable(f"the record store has schema {versions}, this honmaru reads {_SCHEMA}")
        self._load_scopes()

    def get(self, account: str | None, service: str, kind: str, name: str, labels: Collection[str]) -> list[Row]:
        scopes = self._scope_ids(account, labels)
        if not scopes:
            return []
        key = {"scopes": scopes, "service": service, "kind": kind, "name": name}
        with self._faults(), self._reader.connect() as connection:
            rows = [self._row(found) for found in connection.execute(_GET, key)]
        return sorted(rows, key=lambda row: (row.label, row.account))

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
        streams = [
            self._stream(scope, service, kind, prefix, after, state, limit)
            for scope in self._scope_ids(account, labels)
        ]
        merged = heapq.merge(*streams, key=lambda row: (row.name, row.label, row.account))
        return [row for row, _ in zip(merged, range(limit), strict=False)]

    def apply(
        self, changes: Sequence[Change], outbox: Sequence[OutboxEntry] = (), confirmed: Collection[str] = ()
    ) -> builtins.list[Row]:
        new_scopes: dict[tuple[str, str], int] = {}
        with self._faults(), self._write_lock(), self._engine.begin() as connection:
            rows = [self._change(connection, change, new_scopes) for change in changes]
            if outbox:
                connection.execute(
                    _ENQUEUE,
                    [{"id": entry.id, "label": entry.label, "payload": entry.payload} for entry in outbox],
                )
            if confirmed:
                connection.execute(_CONFIRM, {"ids": list(confirmed)})
        self._remember(new_scopes)
        return rows

    def scan(self) -> Iterator[Row]:
        key = (_records.c.scope, _records.c.service, _records.c.kind, _records.c.name)
        place: tuple[Any, ...] | None = None
        while True:
            query = sql.select(_records).order_by(*key).limit(_CHUNK)
            if place is not None:
                query = query.where(sql.tuple_(*key) > sql.tuple_(*place))
            with self._faults(), self._reader.connect() as connection:
                found = connection.execute(query).all()
            if not found:
                return
            place = (found[-1].scope, found[-1].service, found[-1].kind, found[-1].name)
            if any(row.scope not in self._places for row in found):
                self._load_scopes()
            yield from (self._row(row) for row in found)

    def labels(self) -> frozenset[str]:
        # Another process (an operator's command) may have added a scope; scopes are never changed or removed.
        with self._faults(), self._reader.connect() as connection:
            count = connection.execute(_COUNT_SCOPES).scalar_one()
        if count != len(self._places):
            self._load_scopes()
        return frozenset(label for _, label in self._scopes)

    def outbox(self, limit: int = 1000) -> builtins.list[OutboxEntry]:
        query = sql.select(_outbox).order_by(_outbox.c.position).limit(limit)
        with self._faults(), self._reader.connect() as connection:
            return [OutboxEntry(row.id, row.label, bytes(row.payload)) for row in connection.execute(query)]

    def confirm(self, ids: Collection[str]) -> None:
        self.apply((), (), ids)

    def close(self) -> None:
        """Close every connection; on SQLite the WAL is folded into the database."""
        self._engine.dispose()

    def _change(self, connection: sql.Connection, change: Change, new_scopes: dict[tuple[str, str], int]) -> Row:
        if isinstance(change, Create):
            return self._create(connection, change, new_scopes)
        row = change.row
        scope = self._scopes.get((row.account, row.label), -1)
        if isinstance(change, Delete):
            key = {"scope": scope, "service": row.service, "kind": row.kind, "name": row.name, "version": row.version}
            count = connection.execute(_DELETE, key).rowcount
            stored = row
        else:
            stored = _updated(change)
            values = {
                "k_scope": scope,
                "k_service": row.service,
                "k_kind": row.kind,
                "k_name": row.name,
                "k_version": row.version,
                "new_body": stored.body,
                "new_state": stored.state,
                "new_version": stored.version,
                "new_updated": _micros(stored.updated),
            }
            count = connection.execute(_UPDATE, values).rowcount
        if count != 1:
            raise Conflict(f"{row.kind} {row.name!r} was changed or deleted meanwhile; read it again and retry")
        return stored

    def _create(self, connection: sql.Connection, change: Create, new_scopes: dict[tuple[str, str], int]) -> Row:
        place = (change.account, change.label)
        scope = self._scopes.get(place) or new_scopes.get(place)
        if scope is None:
            scope = new_scopes[place] = self._add_scope(connection, place)
        values = {
            "scope": scope,
            "service": change.service,
            "kind": change.kind,
            "name": change.name,
            "state": change.state,
            "version": 1,
            "created": _micros(change.at),
            "updated": _micros(change.at),
            "body": change.body,
        }
        try:
            connection.execute(_INSERT, values)
        except IntegrityError:
            raise Conflict(f"{change.kind} {change.name!r} already exists") from None
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

    def _add_scope(self, connection: sql.Connection, place: tuple[str, str]) -> int:
        account, label = place
        exists = sql.select(_scopes.c.id).where(_scopes.c.account == account, _scopes.c.label == label)
        if self._sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        connection.execute(insert(_scopes).values(account=account, label=label).on_conflict_do_nothing())
        return int(connection.execute(exists).scalar_one())

    def _stream(
        self, scope: int, service: str, kind: str, prefix: str, after: str, state: str | None, limit: int
    ) -> Iterator[Row]:
        """Rows of one scope by name, fetched in chunks that grow, so a merge of many scopes stays cheap."""
        columns = _records.c
        query = (
            sql.select(_records)
            .where(columns.scope == scope, columns.service == service, columns.kind == kind)
            .order_by(columns.name)
        )
        if state is not None:
            query = query.where(columns.state == state)
            if state:
                query = query.where(columns.state != sql.literal_column("''"))
        end = _successor(prefix)
        if end is not None:
            query = query.where(columns.name < end)
        left = limit
        chunk = _CHUNK
        start = columns.name > after if after >= prefix else columns.name >= prefix
        while left > 0:
            size = min(chunk, left)
            with self._faults(), self._reader.connect() as connection:
                found = connection.execute(query.where(start).limit(size)).all()
            yield from (self._row(row) for row in found)
            if len(found) < size:
                return
            left -= size
            start = columns.name > found[-1].name
            chunk *= 2

    def _row(self, found: Any) -> Row:
        account, label = self._places[found.scope]
        return Row(
            account,
            found.service,
            found.kind,
            found.name,
            label,
            bytes(found.body),
            found.state,
            found.version,
            _time(found.created),
            _time(found.updated),
        )

    def _scope_ids(self, account: str | None, labels: Collection[str]) -> builtins.list[int]:
        if account is not None:
            return [self._scopes[account, label] for label in labels if (account, label) in self._scopes]
        wanted = frozenset(labels)
        return [scope for scope, (_, label) in self._places.items() if label in wanted]

    def _load_scopes(self) -> None:
        with self._faults(), self._reader.connect() as connection:
            found = connection.execute(sql.select(_scopes)).all()
        self._remember({(row.account, row.label): row.id for row in found})

    def _remember(self, scopes: dict[tuple[str, str], int]) -> None:
        # Replaced, not changed: readers in other threads iterate over them.
        if scopes:
            self._scopes = self._scopes | scopes
            self._places = self._places | {scope: place for place, scope in scopes.items()}

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        if not self._sqlite:
            yield
            return
        with self._writing:
            yield

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as fault:
            if getattr(fault.orig, "sqlstate", None) in ("40001", "40P01"):
                raise Conflict("a concurrent change won; read again and retry") from fault
            raise StoreUnavailable(f"the record store does not answer: {fault.orig}") from fault
        except DBAPIError as fault:
            raise StoreUnavailable(f"the record store refused: {fault.orig}") from fault


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


def _sqlite_engine(url: sql.URL) -> sql.Engine:
    engine = sql.create_engine(url, pool_size=64, max_overflow=-1, connect_args={"timeout": 30})

    @sql.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says, not where the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sql.event.listens_for(engine, "begin")
    def begin(connection: sql.Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql_engine(url: sql.URL) -> sql.Engine:
    engine = sql.create_engine(url, pool_size=16, max_overflow=48, pool_pre_ping=True)

    @sql.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.autocommit = True
        connection.execute("SET synchronous_commit = on")
        connection.autocommit = False

    return engine


def _successor(prefix: str) -> str | None:
    """The least text greater than every text that starts with `prefix`; None when there is none."""
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position])
        if point < 0x10FFFF:
            return prefix[:position] + chr(0xE000 if point + 1 == 0xD800 else point + 1)
    return None


def _micros(at: datetime) -> int:
    delta = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


def _time(micros: int) -> datetime:
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
