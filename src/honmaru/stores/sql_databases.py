"""How the record store runs its statements: on SQLite with one group-committing writer, on PostgreSQL through a pool.

Invariants:
- What `write` returned from is durable. On SQLite (WAL, synchronous=FULL) the works that wait for the writer share one
  transaction and one sync: each runs inside a savepoint of its own, so one that fails takes nothing with it.
- A work sees what works before it in the same transaction did, as if each had been committed by itself.
- Readers never wait for the writer, and see only what is committed.
- A database's own error leaves as StoreUnavailable, a serialisation failure as Conflict.

SQLAlchemy keeps the dialects apart in schema and pool; statements are texts with `?`, compiled by nobody at run time.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, OperationalError

from honmaru.core.errors import ConfigurationFault, Conflict, StoreUnavailable

_BATCH = 64
"""Most works in one transaction."""
_HOLD_KEY = int.from_bytes(b"honmaru", "big")
_HOLD_S = 5.0
_CACHE_KIB = 512
"""Page cache of one connection: the operating system's cache holds the rest, once for all."""


class Cursor(Protocol):
    """What a work gets back of a statement."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...


Execute = Callable[[str, Sequence[Any]], Cursor]
Work = Callable[[Execute], Any]


class Database(Protocol):
    """See the module. Thread-safe."""

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of one query, as tuples."""
        ...

    def write(self, work: Work) -> Any:
        """Runs `work` in a transaction; durable on return. Raises what the work raises, and then nothing was done."""
        ...

    def hold(self) -> None:
        """See `SqlRecordStore.hold`. Raises ConfigurationFault."""
        ...

    def held(self) -> bool:
        """See `SqlRecordStore.held`."""
        ...

    def close(self) -> None: ...


def open_database(url: str, metadata: sql.MetaData) -> Database:
    """The database at a SQLAlchemy URL, its tables made where they are missing. Raises StoreUnavailable."""
    parsed = sql.make_url(url)
    return SqliteDatabase(parsed, metadata) if parsed.get_backend_name() == "sqlite" else PooledDatabase(url, metadata)


class _Waiting:
    """A work that waits for the writer."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False


class SqliteDatabase:
    """SQLite through the driver itself: a connection for the writer, and a stack of them for readers."""

    def __init__(self, url: sql.URL, metadata: sql.MetaData) -> None:
        self._path = url.database or ":memory:"
        with _faults():
            engine = sql.create_engine(url, connect_args={"timeout": 30})
            with engine.begin() as connection:
                _create(metadata, connection)
            engine.dispose()
        with _driver_faults():
            self._writer = self._connect()
        self._writing = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            connection = self._readers.pop()
        except IndexError:
            if self._closed:
                raise StoreUnavailable("the record store is closed") from None
            with _driver_faults():
                connection = self._connect()
                connection.execute("PRAGMA query_only=ON")
        try:
            found = connection.execute(statement, values).fetchall()
        except sqlite3.Error as fault:
            connection.close()
            raise _unavailable(fault) from fault
        if self._closed:
            connection.close()
        else:
            self._readers.append(connection)
        return found

    def write(self, work: Work) -> Any:
        waiting = _Waiting(work)
        self._queue.append(waiting)
        with self._writing:
            if not waiting.done:  # else whoever had the writer before has done it
                self._commit([self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))])
            while not waiting.done:  # more than a batch was waiting
                self._commit([self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))])
        if waiting.error is not None:
            raise waiting.error
        return waiting.result

    def hold(self) -> None:
        return

    def held(self) -> bool:
        return True

    def close(self) -> None:
        """Close every connection; the WAL is folded into the database."""
        with self._writing:
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        # Transactions begin where `_commit` says, not where the driver guesses.
        connection = sqlite3.connect(
            self._path, timeout=30, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{_CACHE_KIB}")
        # Not every build overwrites what is deleted; sealed or not, a destroyed key must not lie about in free pages.
        for pragma in (*pragmas, "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _commit(self, batch: list[_Waiting]) -> None:
        """One transaction for the whole batch. Never raises: each work is told how it went."""
        execute = self._writer.execute
        try:
            with _driver_faults():
                execute("BEGIN IMMEDIATE")
                for waiting in batch:
                    self._run(waiting, alone=len(batch) == 1)
                execute("COMMIT")
        except BaseException as fault:
            if self._writer_is_open():
                with suppress(sqlite3.Error):
                    execute("ROLLBACK")
            for waiting in batch:  # nothing of the transaction remains, whatever each work was told
                waiting.error = waiting.error or fault
        for waiting in batch:
            waiting.done = True

    def _run(self, waiting: _Waiting, *, alone: bool) -> None:
        """Raises when the whole transaction is lost."""
        execute: Execute = self._writer.execute
        if not alone:
            self._writer.execute("SAVEPOINT work")
        try:
            waiting.result = waiting.work(execute)
        except sqlite3.Error as fault:
            raise _unavailable(fault) from fault  # a disk that fails one fails all
        except BaseException as fault:
            waiting.error = fault
        if alone:
            if waiting.error is not None:
                raise waiting.error
            return
        if waiting.error is not None:
            self._writer.execute("ROLLBACK TO work")
        self._writer.execute("RELEASE work")

    def _writer_is_open(self) -> bool:
        try:
            return self._writer.in_transaction
        except sqlite3.ProgrammingError:
            return False


class PooledDatabase:
    """PostgreSQL: SQLAlchemy's pool, statements passed to the driver as they are."""

    def __init__(self, url: str, metadata: sql.MetaData) -> None:
        self._engine = sql.create_engine(url, pool_size=16, max_overflow=48, pool_pre_ping=True)

        @sql.event.listens_for(self._engine, "connect")
        def prepare(connection: Any, _: object) -> None:
            connection.autocommit = True
            connection.execute("SET synchronous_commit = on")
            connection.autocommit = False

        self._holder: sql.Connection | None = None
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with _faults(), self._engine.begin() as connection:
            _create(metadata, connection)

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with _faults(), self._reader.connect() as connection:
            return list(connection.exec_driver_sql(_native(statement), tuple(values)).all())

    def write(self, work: Work) -> Any:
        with _faults(), self._engine.begin() as connection:
            return work(lambda statement, values: connection.exec_driver_sql(_native(statement), tuple(values)))

    def hold(self) -> None:
        deadline = time.monotonic() + _HOLD_S
        while not self._take():
            if time.monotonic() > deadline:  # else the connection of an enclave that was killed may be ending
                raise ConfigurationFault(
                    [
                        (
                            "another enclave serves from this database, perhaps on another host: stop it, or name "
                            "another one with --database. Several hosts cannot share one; --workers uses more cores"
                        )
                    ]
                )
            time.sleep(0.1)

    def held(self) -> bool:
        try:
            if self._holder is not None:
                self._holder.exec_driver_sql("SELECT 1")
                return True
        except DBAPIError:
            with suppress(DBAPIError):
                self._release()
        try:
            return self._take()
        except StoreUnavailable:
            return True

    def _take(self) -> bool:
        """Whether the session's lock is ours. It lasts as long as its connection."""
        with _faults():
            holder = self._reader.connect()
            if holder.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (_HOLD_KEY,)).scalar():
                self._holder = holder
                return True
            holder.close()
            return False

    def _release(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.invalidate()  # back in the pool the connection would keep the lock
            holder.close()

    def close(self) -> None:
        with suppress(DBAPIError):
            self._release()
        self._engine.dispose()


def _create(metadata: sql.MetaData, connection: sql.Connection) -> None:
    """Tables, and indexes that a database of an earlier version lacks."""
    metadata.create_all(connection)
    for table in metadata.tables.values():
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _native(statement: str) -> str:
    return statement.replace("?", "%s")


def _unavailable(fault: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the record store does not answer: {fault}")


@contextmanager
def _driver_faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as fault:
        raise _unavailable(fault) from fault


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except OperationalError as fault:
        if getattr(fault.orig, "sqlstate", None) in ("40001", "40P01"):
            raise Conflict("a concurrent change won; read again and retry") from fault
        raise StoreUnavailable(f"the record store does not answer: {fault.orig}") from fault
    except DBAPIError as fault:
        raise StoreUnavailable(f"the record store refused: {fault.orig}") from fault
