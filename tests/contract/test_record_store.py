"""What every record store promises (ports.records), on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from honmaru.core.errors import ConfigurationFault, Conflict, StoreUnavailable
from honmaru.ports.records import Absence, Create, Delete, OutboxEntry, Presence, Row, Update
from honmaru.stores.records_sql import SqlRecordStore

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LOW, HIGH, OTHER = "U", "S", "U//X"


@pytest.fixture
def store(store_url: str) -> Iterator[SqlRecordStore]:
    opened = SqlRecordStore(store_url)
    yield opened
    opened.close()


def create(name: str, label: str = LOW, *, account: str = "1", kind: str = "object", state: str = "") -> Create:
    return Create(account, "s3", kind, name, label, f"{name}@{label}".encode(), state, NOW)


def names(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.name, row.label) for row in rows]


def test_a_created_record_is_read_back_whole(store: SqlRecordStore) -> None:
    (made,) = store.apply([create("a", state="New")])
    assert made == Row("1", "s3", "object", "a", LOW, b"a@U", "New", 1, NOW, NOW)
    assert store.get("1", "s3", "object", "a", [LOW, HIGH]) == [made]


def test_a_create_of_an_existing_identity_is_a_conflict_and_changes_nothing(store: SqlRecordStore) -> None:
    store.apply([create("a")])
    with pytest.raises(Conflict):
        store.apply([create("b"), create("a")], [OutboxEntry("1", LOW, b"{}")])
    assert names(store.list("1", "s3", "object", [LOW])) == [("a", LOW)]
    assert store.outbox() == []


def test_names_repeat_at_labels_accounts_and_kinds(store: SqlRecordStore) -> None:
    store.apply([create("a"), create("a", HIGH), create("a", account="2"), create("a", kind="bucket")])
    assert [row.label for row in store.get("1", "s3", "object", "a", [LOW, HIGH, OTHER])] == [HIGH, LOW]
    assert [(row.account, row.label) for row in store.get(None, "s3", "object", "a", [LOW, HIGH])] == [
        ("1", HIGH),
        ("1", LOW),
        ("2", LOW),
    ]


def test_only_the_labels_asked_for_are_looked_at(store: SqlRecordStore) -> None:
    store.apply([create("a", HIGH), create("b", LOW), create("c", OTHER)])
    assert names(store.list("1", "s3", "object", [LOW])) == [("b", LOW)]
    assert store.get("1", "s3", "object", "a", [LOW, OTHER]) == []
    assert store.list("1", "s3", "object", []) == []
    assert store.list("1", "s3", "object", ["never seen"]) == []


def test_an_update_needs_the_stored_version(store: SqlRecordStore) -> None:
    (first,) = store.apply([create("a")])
    later = NOW + timedelta(seconds=1)
    (second,) = store.apply([Update(first, b"2", "Done", later)])
    assert (second.version, second.body, second.state, second.created, second.updated) == (2, b"2", "Done", NOW, later)
    assert store.get("1", "s3", "object", "a", [LOW]) == [second]
    with pytest.raises(Conflict):
        store.apply([Update(first, b"3", "", later)])
    with pytest.raises(Conflict):
        store.apply([Delete(first)])
    assert store.get("1", "s3", "object", "a", [LOW]) == [second]


def test_a_deleted_record_is_gone_and_its_name_is_free(store: SqlRecordStore) -> None:
    (first,) = store.apply([create("a")])
    assert store.apply([Delete(first)]) == [first]
    assert store.get("1", "s3", "object", "a", [LOW]) == []
    with pytest.raises(Conflict):
        store.apply([Delete(first)])
    assert store.apply([create("a")])[0].version == 1


def test_changes_of_an_unknown_label_are_a_conflict(store: SqlRecordStore) -> None:
    ghost = Row("1", "s3", "object", "a", "never seen", b"", "", 1, NOW, NOW)
    for change in (Delete(ghost), Update(ghost, b"", "", NOW)):
        with pytest.raises(Conflict):
            store.apply([change])


def test_lists_are_in_code_point_order_whatever_the_locale(store: SqlRecordStore) -> None:
    unordered = ["b", "B", "a", "Z", "é", "z", "a/b", "a-b", "a b", "", "本", "\U0001f600", "ab", "A", "_", "~", "aé"]
    wanted = [name for name in unordered if name]
    store.apply([create(name) for name in wanted])
    assert [row.name for row in store.list("1", "s3", "object", [LOW])] == sorted(wanted)


def test_prefix_after_and_limit(store: SqlRecordStore) -> None:
    store.apply([create(name, label) for name in ("a", "b/1", "b/2", "b/3", "b0", "c") for label in (LOW, HIGH)])
    listed = store.list("1", "s3", "object", [LOW, HIGH], prefix="b/", after="b/1", limit=3)
    assert names(listed) == [("b/2", HIGH), ("b/2", LOW), ("b/3", HIGH)]
    assert store.list("1", "s3", "object", [LOW], prefix="b/", after="b/3") == []
    assert names(store.list("1", "s3", "object", [LOW], prefix="b/", after="a", limit=1)) == [("b/1", LOW)]
    assert names(store.list("1", "s3", "object", [LOW], prefix="b%")) == []


def test_a_wildcard_in_a_prefix_is_a_plain_character(store: SqlRecordStore) -> None:
    store.apply([create(name) for name in ("a_b", "axb", "a%b", "a\U0010ffffb", "a\U0010ffff")])
    assert [row.name for row in store.list("1", "s3", "object", [LOW], prefix="a_")] == ["a_b"]
    assert [row.name for row in store.list("1", "s3", "object", [LOW], prefix="a%")] == ["a%b"]
    assert len(store.list("1", "s3", "object", [LOW], prefix="a\U0010ffff")) == 2


def test_state_filter(store: SqlRecordStore) -> None:
    store.apply([create(f"j{i}", state=("Running", "Done", "")[i % 3]) for i in range(9)])
    assert [row.name for row in store.list("1", "s3", "object", [LOW], state="Running")] == ["j0", "j3", "j6"]
    assert [row.name for row in store.list(None, "s3", "object", [LOW], state="Done", after="j1")] == ["j4", "j7"]
    assert [row.name for row in store.list("1", "s3", "object", [LOW], state="")] == ["j2", "j5", "j8"]


def test_a_list_over_all_accounts_is_by_name_then_label_then_account(store: SqlRecordStore) -> None:
    store.apply([create("b"), create("a", account="2"), create("a"), create("a", HIGH, account="2")])
    rows = store.list(None, "s3", "object", [LOW, HIGH])
    assert [(row.name, row.label, row.account) for row in rows] == [
        ("a", HIGH, "2"),
        ("a", LOW, "1"),
        ("a", LOW, "2"),
        ("b", LOW, "1"),
    ]


def test_lists_longer_than_one_fetch(store: SqlRecordStore) -> None:
    store.apply([create(f"{i:05}", LOW if i % 3 else HIGH) for i in range(1500)])
    rows = store.list("1", "s3", "object", [LOW, HIGH], limit=1400)
    assert [row.name for row in rows] == [f"{i:05}" for i in range(1400)]


@pytest.mark.parametrize("kind", ["bucket", "object"])
def test_what_is_asked_of_many_accounts_agrees_with_asking_each(store: SqlRecordStore, kind: str) -> None:
    accounts = [str(number) for number in range(10, 40)]
    made = [
        create(f"{name}{int(account) % 3}", label, account=account, kind=kind, state=state)
        for account in accounts
        for name, state in (("a", ""), ("b", "New"), ("c", "Old"))
        for label in (LOW, HIGH)
        if (int(account) + len(label)) % 4
    ]
    store.apply(made)
    for labels in ([LOW], [HIGH], [LOW, HIGH, OTHER]):
        for state in (None, "", "New"):
            every = [row for a in accounts for row in store.list(a, "s3", kind, labels, state=state)]
            every.sort(key=lambda row: (row.name, row.label, row.account))
            assert store.list(None, "s3", kind, labels, state=state) == every
            assert store.list(None, "s3", kind, labels, state=state, limit=7) == every[:7]
            assert store.list(None, "s3", kind, labels, state=state, prefix="b", after="b0") == [
                row for row in every if row.name > "b0" and row.name.startswith("b")
            ]
        one = [row for a in accounts for row in store.get(a, "s3", kind, "a1", labels)]
        assert store.get(None, "s3", kind, "a1", labels) == sorted(one, key=lambda row: (row.label, row.account))


def test_labels_are_remembered_after_the_last_record_is_gone(store: SqlRecordStore) -> None:
    assert store.labels() == frozenset()
    (first, _) = store.apply([create("a"), create("a", HIGH)])
    store.apply([Delete(first)])
    assert store.labels() == {LOW, HIGH}


def test_a_refused_create_leaves_no_label_behind(store: SqlRecordStore) -> None:
    store.apply([create("a")])
    with pytest.raises(Conflict):
        store.apply([create("b", HIGH), create("a")])
    assert store.labels() == {LOW}
    store.apply([create("b", HIGH)])
    assert names(store.list("1", "s3", "object", [HIGH])) == [("b", HIGH)]


def test_the_outbox_keeps_order_until_confirmed(store: SqlRecordStore) -> None:
    entries = [OutboxEntry(f"id{i}", LOW, f'{{"n":{i}}}'.encode()) for i in (3, 1, 2)]
    store.apply([create("a")], entries)
    assert store.outbox() == entries
    assert store.outbox(limit=2) == entries[:2]
    store.confirm(["id1"])
    store.apply([create("b")], [OutboxEntry("id4", HIGH, b"{}")], ["id3", "unknown"])
    assert [entry.id for entry in store.outbox()] == ["id2", "id4"]


def test_scan_gives_every_record_of_every_service(store: SqlRecordStore) -> None:
    store.apply([create(f"{i:03}", label) for i in range(300) for label in (LOW, HIGH)])
    store.apply([Create("2", "iam", "user", "x", OTHER, b"", "", NOW)])
    found = {(row.account, row.service, row.name, row.label) for row in store.scan()}
    assert len(found) == 601 and ("2", "iam", "x", OTHER) in found


def test_a_second_opening_sees_the_same(store: SqlRecordStore, store_url: str) -> None:
    store.apply([create("a", HIGH)], [OutboxEntry("1", HIGH, b"{}")])
    again = SqlRecordStore(store_url)
    assert again.list("1", "s3", "object", [HIGH]) == store.list("1", "s3", "object", [HIGH])
    assert again.labels() == {HIGH} and len(again.outbox()) == 1
    again.apply([create("b", OTHER)])
    assert store.labels() == {HIGH, OTHER}
    assert names(store.list("1", "s3", "object", [OTHER])) == [("b", OTHER)]
    again.close()


def test_labels_of_other_processes_are_seen_whoever_added_one_later(store: SqlRecordStore, store_url: str) -> None:
    again = SqlRecordStore(store_url)
    store.apply([create("a", LOW)])
    again.apply([create("a", HIGH)])
    store.apply([create("a", OTHER)])  # this one knows LOW and OTHER now, the other one HIGH in between
    assert store.known_labels() == {LOW, OTHER}
    assert [row.label for row in store.get("1", "s3", "object", "a", [LOW])] == [LOW]
    assert store.known_labels() == {LOW, HIGH, OTHER}
    assert [row.label for row in store.get("1", "s3", "object", "a", [LOW, HIGH, OTHER])] == [HIGH, LOW, OTHER]
    assert again.get("1", "s3", "object", "missing", ["nowhere"]) == []
    assert again.known_labels() == {LOW, HIGH, OTHER}
    known = store.known_labels()
    store.get("1", "s3", "object", "missing", [LOW])
    assert store.known_labels() is known
    again.close()


def test_one_of_many_concurrent_writers_wins_each_version(store: SqlRecordStore) -> None:
    (row,) = store.apply([create("counter")])
    won: list[int] = []

    def increment(rounds: int) -> None:
        for _ in range(rounds):
            while True:
                (seen,) = store.get("1", "s3", "object", "counter", [LOW])
                try:
                    (stored,) = store.apply([Update(seen, str(seen.version).encode(), "", NOW)])
                except Conflict:
                    continue
                won.append(stored.version)
                break

    threads = [threading.Thread(target=increment, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(row.version + 1, row.version + 41))


def test_concurrent_first_creates_at_one_new_label_all_succeed(store: SqlRecordStore) -> None:
    faults: list[BaseException] = []

    def make(number: int) -> None:
        try:
            store.apply([create(f"n{number}", HIGH)])
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and len(store.list("1", "s3", "object", [HIGH])) == 8


_name = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_list_agrees_with_a_sorted_python_list(store: SqlRecordStore, data: st.DataObject) -> None:
    kind = f"k{time.monotonic_ns()}"
    present = data.draw(st.sets(st.tuples(_name, st.sampled_from([LOW, HIGH])), max_size=12))
    store.apply([create(name, label, kind=kind) for name, label in present])
    prefix = data.draw(st.one_of(st.just(""), _name))
    after = data.draw(st.one_of(st.just(""), _name))
    limit = data.draw(st.integers(1, 6))
    wanted = sorted(pair for pair in present if pair[0].startswith(prefix) and pair[0] > after)[:limit]
    assert names(store.list("1", "s3", kind, [LOW, HIGH], prefix=prefix, after=after, limit=limit)) == wanted


def test_conditions_hold_or_nothing_is_changed(store: SqlRecordStore) -> None:
    (bucket,) = store.apply([create("b", kind="bucket")])
    none = Absence("1", "s3", "object", "b/", LOW)
    store.apply([create("b/1")], conditions=[Presence(bucket)])
    with pytest.raises(Conflict):
        store.apply([Delete(bucket)], [OutboxEntry("1", LOW, b"{}")], conditions=[none])
    assert store.get("1", "s3", "bucket", "b", [LOW]) == [bucket] and store.outbox() == []
    (bucket,) = store.apply([Update(bucket, b"2", "State", NOW)])
    store.apply([create("b/2")], conditions=[Presence(bucket)])
    for other in (Absence("1", "s3", "object", "b/3", LOW), Absence("1", "s3", "object", "b/", HIGH)):
        store.apply([], conditions=[other])
    left = store.list("1", "s3", "object", [LOW])
    store.apply([Delete(bucket), *(Delete(row) for row in left)], conditions=[none])
    with pytest.raises(Conflict):
        store.apply([create("b/3")], conditions=[Presence(bucket)])
    assert store.list("1", "s3", "object", [LOW]) == []


def test_of_a_deletion_and_a_creation_that_need_each_other_one_is_refused(store_url: str) -> None:
    """Two stores over one database, as two processes have them: no object is left without its bucket."""
    one, two = SqlRecordStore(store_url), SqlRecordStore(store_url)
    for number in range(60):
        (bucket,) = one.apply([create(f"b{number}", kind="bucket")])
        start = threading.Barrier(2)
        refused: list[str] = []

        def attempt(name: str, work: Callable[[], object], start: Any = start, refused: Any = refused) -> None:
            start.wait()
            try:
                work()
            except Conflict:
                refused.append(name)

        none = Absence("1", "s3", "object", f"b{number}/", LOW)
        jobs = {
            "delete": lambda bucket=bucket, none=none: one.apply([Delete(bucket)], conditions=[none]),
            "create": lambda bucket=bucket, number=number: two.apply(
                [create(f"b{number}/k")], conditions=[Presence(bucket)]
            ),
        }
        threads = [threading.Thread(target=attempt, args=job) for job in jobs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = bool(one.get("1", "s3", "bucket", f"b{number}", [LOW]))
        assert refused == (["delete"] if kept else ["create"])
        assert bool(one.get("1", "s3", "object", f"b{number}/k", [LOW])) == kept
    one.close()
    two.close()


def test_a_database_that_cannot_be_opened_is_store_unavailable() -> None:
    for url in ("sqlite:////proc/none/records.db", "postgresql+psycopg://honmaru@/x?host=/nonexistent"):
        with pytest.raises(StoreUnavailable):
            SqlRecordStore(url)


@pytest.mark.long
def test_lists_stay_fast_over_many_records(store: SqlRecordStore) -> None:
    """A page in the middle of 10^6 records costs about what it costs in 10^4 (long run; 2*10^4 by default)."""
    count = 1_000_000 if os.environ.get("HONMARU_LONG") == "1" else 20_000
    for start in range(0, count, 5000):
        store.apply([create(f"b/{i:08}", HIGH if i % 10 else LOW) for i in range(start, min(start + 5000, count))])
    began = time.monotonic()
    rows = store.list("1", "s3", "object", [LOW], prefix="b/", after=f"b/{count // 2:08}", limit=100)
    assert len(rows) == 100 and time.monotonic() - began < 0.5


def test_counts_of_changes_go_up_with_the_change_that_raises_them_and_not_without(
    store: SqlRecordStore, store_url: str
) -> None:
    other = SqlRecordStore(store_url)
    store.apply([create("a")])
    assert other.changes() == {}
    store.apply([create("b")], raised="iam")
    other.apply([create("c")], raised="iam")
    other.apply([create("d")], raised="s3")
    assert store.changes() == other.changes() == {"iam": 2, "s3": 1}
    with pytest.raises(Conflict):
        store.apply([create("a")], raised="iam")
    assert store.changes() == {"iam": 2, "s3": 1}
    other.close()


def test_concurrent_changes_are_all_counted(store: SqlRecordStore, store_url: str) -> None:
    stores = [store, SqlRecordStore(store_url)]

    def work(number: int) -> None:
        for turn in range(10):
            stores[number % 2].apply([create(f"{number}/{turn}")], raised="iam")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.changes() == {"iam": 40}
    stores[1].close()


def test_the_outbox_is_asked_by_owner(store: SqlRecordStore) -> None:
    owners = ("", "aaaaaaaa:", "bbbbbbbb:")
    for number, owner in enumerate(owners):
        uuid_like = f"0000000{number}-0000-4000-8000-000000000000"
        store.apply([create(str(number))], [OutboxEntry(owner + uuid_like, LOW, b"{}")])

    def numbers(**asked: Any) -> list[str]:
        return [entry.id[-36:][7] for entry in store.outbox(**asked)]

    assert numbers() == ["0", "1", "2"]
    assert numbers(owner="") == ["0"]
    assert numbers(owner="bbbbbbbb") == ["2"]
    assert numbers(but=["aaaaaaaa"]) == ["0", "2"]
    assert numbers(but=["aaaaaaaa", "bbbbbbbb"]) == ["0"]


def test_one_enclave_at_a_time_holds_a_shared_database(store: SqlRecordStore, store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("a SQLite file belongs to its data directory, which has a lock of its own")
    store.hold()
    other = SqlRecordStore(store_url)
    with pytest.raises(ConfigurationFault, match="another enclave serves from this database"):
        other.hold()
    assert store.held() and not other.held()
    store.close()
    other.hold()
    assert other.held()
    with other._database._engine.begin() as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    assert other.held(), "a lost connection is taken up again while nobody else holds the database"
    third = SqlRecordStore(store_url)
    assert not third.held()
    third.close()
    other.close()
