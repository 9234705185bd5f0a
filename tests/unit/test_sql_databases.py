"""The writer of SQLite: works that wait share a commit, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from honmaru.core.errors import Conflict, StoreUnavailable
from honmaru.stores.sql_databases import Execute, SqliteDatabase, open_database

METADATA = sql.MetaData()
sql.Table("t", METADATA, sql.Column("n", sql.Integer, primary_key=True))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    opened = open_database(f"sqlite:///{tmp_path}/t.db", METADATA)
    assert isinstance(opened, SqliteDatabase)
    yield opened
    opened.close()


def insert(*numbers: int) -> Callable[[Execute], int]:
    def work(execute: Execute) -> int:
        for number in numbers:
            execute("INSERT INTO t (n) VALUES (?)", (number,))
        return sum(numbers)

    return work


def together(database: SqliteDatabase, *works: Callable[[Execute], Any]) -> list[Any]:
    """Runs works that all wait while another has the writer: one batch, in this order. Results or what was raised."""
    outcomes: list[Any] = [None] * len(works)
    entered, leave = threading.Event(), threading.Event()

    def hold(_execute: Execute) -> None:
        entered.set()
        assert leave.wait(5)

    def run(at: int) -> None:
        try:
            outcomes[at] = database.write(works[at])
        except Exception as fault:
            outcomes[at] = fault

    threads = [threading.Thread(target=lambda: database.write(hold))]
    threads[0].start()
    assert entered.wait(5)
    for at in range(len(works)):
        threads.append(threading.Thread(target=run, args=(at,)))
        threads[-1].start()
        while len(database._queue) <= at:
            pass
    leave.set()
    for thread in threads:
        thread.join(5)
    return outcomes


def stored(database: SqliteDatabase) -> list[int]:
    return [number for (number,) in database.read("SELECT n FROM t ORDER BY n")]


def test_works_that_wait_share_one_commit(database: SqliteDatabase) -> None:
    commits: list[str] = []
    database._writer.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    assert together(database, insert(1), insert(2), insert(3)) == [1, 2, 3]
    assert stored(database) == [1, 2, 3]
    assert len(commits) == 2  # that of the work which held the writer, and theirs


def test_a_work_that_fails_takes_nothing_with_it_and_leaves_nothing(database: SqliteDatabase) -> None:
    def refuses(execute: Execute) -> None:
        insert(20, 21)(execute)
        raise Conflict("no")

    first, second, third = together(database, insert(1), refuses, insert(3))
    assert (first, third) == (1, 3)
    assert isinstance(second, Conflict)
    assert stored(database) == [1, 3]


def test_a_database_that_fails_in_one_work_fails_all_of_its_commit_and_the_next_one_works(
    database: SqliteDatabase,
) -> None:
    outcomes = together(database, insert(1), lambda execute: execute("INSERT INTO missing VALUES (1)", ()), insert(3))
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert stored(database) == []
    assert database.write(insert(5)) == 5
    assert stored(database) == [5]


def test_a_closed_database_is_unavailable(tmp_path: Path) -> None:
    opened = open_database(f"sqlite:///{tmp_path}/t.db", METADATA)
    opened.close()
    with pytest.raises(StoreUnavailable):
        opened.write(insert(1))
    with pytest.raises(StoreUnavailable):
        opened.read("SELECT n FROM t")
