"""One guard among several: the outbox of each, what others changed, and blobs that somebody reads elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from honmaru.core.errors import LedgerUnavailable, NotFound
from honmaru.security.guard import Guard
from honmaru.security.guard.guard import EntryLog
from honmaru.testing.keep import Keep, quick_directory, session

S = session("SECRET")


class Peers:
    """What a guard tells the other processes."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.spared: list[str] = []
        self.swept: list[bool] = []

    def drop(self, path: str) -> None:
        self.dropped.append(path)

    def spare(self, blob_ids: Sequence[str]) -> None:
        self.spared += blob_ids

    def sweeping(self, on: bool) -> None:
        self.swept.append(on)


class Cut:
    """A ledger whose process is killed after it took some entries, of which it tells nobody."""

    writable = True

    def __init__(self, keep: Keep, takes: int) -> None:
        self._keep, self._left = keep, takes

    def append(self, label: Any, entry: Any) -> Future[Any]:
        if self._left:
            self._left -= 1
            self._keep.ledger.append(label, entry)
        return Future()


@pytest.fixture
def keep() -> Iterator[Keep]:
    with quick_directory() as directory:
        yield Keep(directory)


def beside(keep: Keep, owner: str = "", ledger: EntryLog | None = None) -> tuple[Guard, Peers]:
    """Another process's guard over the same stores."""
    peers = Peers()
    log = ledger or keep.ledger
    guard = Guard(keep.store, keep.blob_store, keep.keyring, log, keep.clock, keep.ids, owner=owner, peers=peers)
    return guard, peers


def events(keep: Keep) -> list[str]:
    return [entry["eventID"] for entries in keep.ledger.entries.values() for entry in entries]


@pytest.mark.parametrize("took", range(4))
def test_what_a_killed_process_committed_is_in_the_ledger_once(keep: Keep, took: int) -> None:
    first, _ = beside(keep)
    first.lend_outbox("aaaaaaaa")
    worker, _ = beside(keep, "aaaaaaaa", Cut(keep, took))
    for number in range(3):
        worker.records(S, "x").create("k", str(number), {})
    held = events(keep)
    assert len(held) == took and len(keep.store.outbox()) == 3
    assert first.drain_outbox() == 0, "it is the other one's as long as that lives"
    assert first.take_over("aaaaaaaa", held) == 3 - took
    assert len(events(keep)) == len(set(events(keep))) == 3 and keep.store.outbox() == []
    assert first.take_over("aaaaaaaa", held) == 0


def test_forgetting_which_entries_came_makes_them_twice(keep: Keep) -> None:
    """The sabotage of the test above."""
    first, _ = beside(keep)
    worker, _ = beside(keep, "aaaaaaaa", Cut(keep, 3))
    worker.records(S, "x").create("k", "a", {})
    first.take_over("aaaaaaaa", [])
    assert len(events(keep)) == 2


def test_a_process_drains_its_own_entries_only(keep: Keep) -> None:
    keep.ledger.writable = True
    worker, _ = beside(keep, "aaaaaaaa", Cut(keep, 0))
    other, _ = beside(keep, "bbbbbbbb")
    worker.records(S, "x").create("k", "a", {})
    other.records(S, "x").create("k", "b", {})
    other.drain_outbox()
    assert [entry.id[:9] for entry in keep.store.outbox()] == ["aaaaaaaa:"]


def test_nothing_is_taken_over_while_the_ledger_is_shut(keep: Keep) -> None:
    first, _ = beside(keep)
    worker, _ = beside(keep, "aaaaaaaa", Cut(keep, 0))
    worker.records(S, "x").create("k", "a", {})
    keep.ledger.writable = False
    with pytest.raises(LedgerUnavailable):
        first.take_over("aaaaaaaa", [])
    assert len(keep.store.outbox()) == 1
    keep.ledger.writable = True
    assert first.take_over("aaaaaaaa", []) == 1


def test_what_another_process_changed_is_told_when_it_is_asked_for(keep: Keep) -> None:
    one, _ = beside(keep)
    other, _ = beside(keep, "aaaaaaaa")
    told: list[str | None] = []
    other.on_change("x", {"k"}, told.append)
    one.on_change("x", {"k"}, lambda _account: None)
    record = one.records(S, "x").create("k", "a", {})
    assert told == []
    other.catch_up()
    other.catch_up()
    assert told == [None]
    one.records(S, "x").update(record, {"b": 1})
    one.records(S, "x").create("of no interest", "a", {})
    one.records(S, "y").create("k", "a", {})
    other.catch_up()
    assert told == [None, None]
    other.records(S, "x").create("k", "b", {})
    assert told == [None, None, S.account], "its own changes are told at once"


def test_a_deletion_is_left_to_the_process_that_deletes_and_waits_for_readers_here(keep: Keep) -> None:
    guard, peers = beside(keep)
    blobs = guard.blobs(S)
    ref = blobs.write([b"x" * 10])
    reading = blobs.read(ref.id)
    blobs.delete(ref.id)
    assert peers.dropped == [], "somebody reads it here"
    with pytest.raises(NotFound):
        blobs.read(ref.id)
    assert b"".join(reading) == b"x" * 10
    (path,) = peers.dropped
    assert list(keep.blob_store.paths("")) == [path]
    guard.vault.delete_now(path)
    assert list(keep.blob_store.paths("")) == []


def test_a_blob_that_another_process_deletes_is_free_after_the_last_reader_here(keep: Keep) -> None:
    guard, peers = beside(keep)
    ref = guard.blobs(S).write([b"x" * 10])
    (path,) = keep.blob_store.paths("")
    free: list[int] = []
    readings = [guard.blobs(S).read(ref.id) for _ in range(2)]
    guard.vault.await_readers(path, lambda: free.append(1))
    for reading in readings:
        assert free == []
        with pytest.raises(NotFound):
            guard.blobs(S).read(ref.id)
        assert b"".join(reading) == b"x" * 10
    assert free == [1] and peers.dropped == []
    guard.vault.gone(path)
    assert b"".join(guard.blobs(S).read(ref.id)) == b"x" * 10, "nothing of it is remembered"
    guard.vault.await_readers(path, lambda: free.append(2))
    assert free == [1, 2]


def test_a_record_names_a_blob_after_the_process_that_sweeps_knows_of_it(keep: Keep) -> None:
    worker, peers = beside(keep, "aaaaaaaa")
    worker.vault.tell_sweep(True)
    ref = worker.blobs(S).write([b"x"])
    assert peers.spared == [ref.id]

    def refuse(_blob_ids: Sequence[str]) -> None:
        raise LedgerUnavailable("gone")

    spare: Callable[[Sequence[str]], None] = peers.spare
    peers.spare = refuse  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailable):
        worker.records(S, "x").create("k", "a", {"blob": ref.id})
    assert worker.records(S, "x").get("k", "a") is None
    peers.spare = spare  # type: ignore[method-assign]
    worker.records(S, "x").create("k", "a", {"blob": ref.id})
    assert peers.spared == [ref.id] * 2
    worker.vault.tell_sweep(False)
    worker.records(S, "x").create("k", "b", {"blob": ref.id})
    assert peers.spared == [ref.id] * 2


def test_a_sweep_spares_what_another_process_told_of(keep: Keep) -> None:
    theirs = keep.guard.blobs(S).write([b"theirs"])
    keep.guard.blobs(S).write([b"orphan"])
    first, peers = beside(keep)
    first.vault.spare([theirs.id])
    assert first.sweep_blobs(alone=True) == 1
    assert peers.swept == [True, False] and len(peers.dropped) == 1
    assert theirs.id[-32:] not in peers.dropped[0]
