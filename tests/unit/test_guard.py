"""The guard's invariants, in the words of security/guard/guard.py, records.py and blobs.py."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from honmaru.core.errors import (
    AccessDenied,
    Conflict,
    IntegrityFault,
    LedgerUnavailable,
    NotFound,
    ValidationFault,
)
from honmaru.core.labels import Label
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard import Creation, NoneLeft, Record, Removal, Revision, StillThere
from honmaru.security.guard.orphans import orphans
from honmaru.testing.keep import ACCOUNT, Keep, quick_directory, session

U, C, S, TS = (session(marking) for marking in ("UNCLASSIFIED", "CONFIDENTIAL", "SECRET", "TOP SECRET"))
SI, TK = session("SECRET//SI"), session("SECRET//TK")
BOTH = session("SECRET//SI/TK")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    made = Keep(tmp_path)
    yield made
    made.close()


def names(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.name, record.label.banner.partition("//")[0]) for record in records]


# Reading needs the session's label to dominate the record's label; what is above does not exist for the session.


def test_reading_needs_dominance_and_what_is_above_does_not_exist(keep: Keep) -> None:
    made = keep.guard.records(S, "x").create("k", "plan", {"a": 1}, "New")
    for who in (S, TS, SI):
        assert keep.guard.records(who, "x").get("k", "plan") == made
        assert keep.guard.records(who, "x").list("k") == [made]
    for who in (U, C):
        assert keep.guard.records(who, "x").get("k", "plan") is None
        assert keep.guard.records(who, "x").list("k") == []
        assert list(keep.guard.records(who, "x").iterate("k", prefix="pl")) == []


def test_incomparable_labels_do_not_see_each_other(keep: Keep) -> None:
    keep.guard.records(SI, "x").create("k", "plan", {})
    assert keep.guard.records(TK, "x").get("k", "plan") is None
    assert keep.guard.records(TS, "x").list("k") == []
    assert keep.guard.records(BOTH, "x").get("k", "plan") is not None


def test_accounts_and_services_do_not_see_each_other(keep: Keep) -> None:
    keep.guard.records(S, "x").create("k", "plan", {})
    assert keep.guard.records(session("SECRET", account="999999999999"), "x").get("k", "plan") is None
    assert keep.guard.records(S, "y").get("k", "plan") is None


# What a session creates carries the session's label, and a record's label never changes.


def test_what_a_session_creates_carries_its_label(keep: Keep) -> None:
    for who in (U, S, SI):
        assert keep.guard.records(who, "x").create("k", f"of {who.label.canonical}", {}).label == who.label


def test_a_label_never_changes(keep: Keep) -> None:
    records = keep.guard.records(S, "x")
    made = records.create("k", "plan", {})
    forged = replace(made, label=U.label)
    with pytest.raises(AccessDenied):
        records.update(forged, {})
    with pytest.raises(Conflict):
        keep.guard.records(U, "x").update(forged, {})
    assert records.update(made, {"b": 2}).label == S.label


# A session changes or deletes only records at exactly its own label (no write-down, no blind write-up).


def test_no_write_down_and_no_write_up(keep: Keep) -> None:
    made = keep.guard.records(C, "x").create("k", "plan", {"v": 1})
    for who in (S, TS, U, SI):
        records = keep.guard.records(who, "x")
        for attempt in (lambda r=records: r.update(made, {}), lambda r=records: r.delete(made)):
            with pytest.raises(AccessDenied) as refused:
                attempt()
            assert "CONFIDENTIAL" in refused.value.message and who.label.banner in refused.value.message
    assert keep.guard.records(C, "x").get("k", "plan") == made


def test_several_changes_are_all_or_nothing(keep: Keep) -> None:
    records = keep.guard.records(S, "x")
    first, second = records.create("k", "a", {}), records.create("k", "b", {})
    with pytest.raises(Conflict):
        records.apply([Creation("k", "c", {}), Removal(first), Revision(replace(second, version=9), {})])
    low = keep.guard.records(U, "x").create("k", "low", {})
    with pytest.raises(AccessDenied):
        records.apply([Creation("k", "c", {}), Removal(low)])
    assert names(records.list("k")) == [("a", "SECRET"), ("b", "SECRET"), ("low", "UNCLASSIFIED")]
    made, changed, _ = records.apply([Creation("k", "c", {"x": 1}), Revision(second, {"y": 2}, "Done"), Removal(first)])
    assert (made.version, changed.version, changed.state) == (1, 2, "Done")
    assert records.get("k", "a") is None


# Names may repeat at different labels. A session sees one instance of each name.


def test_polyinstantiation_shows_the_own_instance_else_a_maximal_visible_one(keep: Keep) -> None:
    for who in (U, C, SI, TK):
        keep.guard.records(who, "x").create("k", "plan", {"of": who.label.canonical})
    with pytest.raises(Conflict):
        keep.guard.records(C, "x").create("k", "plan", {})

    def seen(who: object) -> Label:
        record = keep.guard.records(who, "x").get("k", "plan")  # type: ignore[arg-type]
        assert record is not None and keep.guard.records(who, "x").list("k") == [record]  # type: ignore[arg-type]
        return record.label

    assert (seen(U), seen(C), seen(SI), seen(TK)) == (U.label, C.label, SI.label, TK.label)
    assert seen(S) == C.label and seen(TS) == C.label
    assert seen(BOTH) == min((SI.label, TK.label), key=lambda label: label.canonical)


def test_instances_are_all_visible_ones_and_no_others(keep: Keep) -> None:
    for who in (U, C, S, TS):
        for name in ("a", "b"):
            keep.guard.records(who, "x").create("k", name, {})
    records = keep.guard.records(S, "x")
    seen = {"CONFIDENTIAL", "SECRET", "UNCLASSIFIED"}
    assert {banner for _, banner in names(records.instances("k", "a"))} == seen
    assert keep.guard.records(S, "x").instances("k", "none") == []
    for page in (1, 2, 100):
        found = names(list(records.iterate_instances("k", page=page)))
        assert [name for name, _ in found] == ["a"] * 3 + ["b"] * 3 and {banner for _, banner in found} == seen
    assert len(list(records.iterate_instances("k", prefix="b"))) == len(list(records.iterate_instances("k", after="a")))


def test_conditions_hold_or_nothing_changes_and_look_at_the_own_label_only(keep: Keep) -> None:
    low, high = keep.guard.records(U, "x"), keep.guard.records(S, "x")
    parent = low.create("parent", "p", {})
    high.create("child", "p/1", {})  # above: neither seen nor counted
    low.apply([Creation("child", "p/2", {})], [StillThere(parent)])
    before = dict(keep.ledger.entries)
    with pytest.raises(Conflict):
        low.apply([Removal(parent)], [NoneLeft("child", "p/")])
    with pytest.raises(AccessDenied):
        high.apply([Creation("child", "p/3", {})], [StillThere(parent)])
    assert low.get("parent", "p") == parent and keep.ledger.entries == before
    child = low.get("child", "p/2")
    assert child is not None
    low.apply([Removal(child), Removal(parent)], [NoneLeft("child", "p/")])
    with pytest.raises(Conflict):
        low.apply([Creation("child", "p/4", {})], [StillThere(parent)])
    assert low.list("child") == [] and names(high.list("child")) == [("p/1", "SECRET")]


def test_a_state_filter_looks_at_the_visible_instance_only(keep: Keep) -> None:
    keep.guard.records(U, "x").create("k", "job", {}, "Running")
    keep.guard.records(S, "x").create("k", "job", {}, "Done")
    assert keep.guard.records(S, "x").list("k", state="Running") == []
    assert len(keep.guard.records(S, "x").list("k", state="Done")) == 1
    assert len(keep.guard.records(U, "x").list("k", state="Running")) == 1


_markings = ("UNCLASSIFIED", "CONFIDENTIAL", "SECRET", "SECRET//SI", "SECRET//TK", "TOP SECRET//SI/TK")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lists_agree_with_gets_page_by_page(tmp_path: Path, data: st.DataObject) -> None:
    keep = Keep(Path(tempfile.mkdtemp(dir=tmp_path)))
    for name, marking in data.draw(
        st.sets(st.tuples(st.text("ab/", min_size=1, max_size=3), st.sampled_from(_markings)))
    ):
        keep.guard.records(session(marking), "x").create("k", name, {"at": marking})
    records = keep.guard.records(session(data.draw(st.sampled_from(_markings))), "x")
    everything = records.list("k")
    assert [record.name for record in everything] == sorted({record.name for record in everything})
    assert all(records.get("k", record.name) == record for record in everything)
    page, paged = data.draw(st.integers(1, 3)), []
    while batch := records.list("k", after=paged[-1].name if paged else "", limit=page):
        assert len(batch) <= page
        paged += batch
    assert paged == everything
    assert list(records.iterate("k", page=1)) == everything
    keep.close()


# A body opens only under the account, service, kind, name, label, state and version that it was sealed for.


@pytest.mark.parametrize("column", ["name", "kind", "service", "state", "version", "scope", "body"])
def test_a_body_moved_in_the_database_does_not_open(keep: Keep, tmp_path: Path, column: str) -> None:
    keep.guard.records(U, "x").create("k", "other", {})
    keep.guard.records(S, "x").create("k", "plan", {"secret": "body"}, "Pending")
    low_scope = "(SELECT scope FROM records WHERE name = 'other')"
    value = {"version": "7", "scope": low_scope, "body": "(SELECT body FROM records WHERE name = 'other')"}
    moved = {"name": "moved", "kind": "k2", "service": "y"}
    with sqlite3.connect(tmp_path / "records.db") as database:
        text = value.get(column, f"'{moved.get(column, 'Approved')}'")
        database.execute(f"UPDATE records SET {column} = {text} WHERE name = 'plan'")
    who = U if column == "scope" else S
    records = keep.guard.records(who, moved.get("service", "x") if column == "service" else "x")
    with pytest.raises(IntegrityFault):
        records.get(moved["kind"] if column == "kind" else "k", "moved" if column == "name" else "plan")


def test_no_plain_text_of_a_body_or_blob_reaches_the_disk(keep: Keep, tmp_path: Path) -> None:
    keep.guard.records(S, "x").create("k", "plan", {"text": "needle-in-the-body"})
    keep.guard.blobs(S).write([b"needle-in-the-blob"])
    keep.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"needle" not in stored and b"plan" in stored


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_names_that_a_store_cannot_hold_are_refused(keep: Keep, name: str) -> None:
    records = keep.guard.records(S, "x")
    with pytest.raises(ValidationFault):
        records.create("k", name, {})
    assert records.get("k", name) is None


# TrustedRecords reads across labels and accounts; its updates keep the record's label.


def test_trusted_records_read_across_labels_and_keep_them(keep: Keep) -> None:
    for who in (U, S, session("SECRET", account="999999999999")):
        keep.guard.records(who, "x").create("job", "j", {}, "Pending")
    trusted = keep.guard.trusted("x", {"job"})
    found = trusted.list("job", state="Pending")
    assert len(found) == 3 and found == trusted.get("job", "j")
    for record in found:
        changed = trusted.update(record, {"lease": 1}, "Running")
        assert changed.label == record.label and changed.account == record.account
        assert trusted.reread(record) == changed
        with pytest.raises(Conflict):
            trusted.update(record, {})
    assert trusted.list("job", state="Pending") == []
    trusted.delete(changed)
    assert trusted.reread(changed) is None
    made = trusted.create("1", S.label, "job", "k", {})
    assert trusted.get("job", "k", account="1") == [made]


def test_trusted_records_are_limited_to_the_stated_kinds(keep: Keep) -> None:
    made = keep.guard.records(S, "x").create("other", "j", {})
    trusted = keep.guard.trusted("x", {"job"})
    for attempt in (
        lambda: trusted.list("other"),
        lambda: trusted.get("other", "j"),
        lambda: trusted.update(made, {}),
        lambda: trusted.delete(made),
        lambda: trusted.reread(made),
        lambda: trusted.create("1", S.label, "other", "k", {}),
    ):
        with pytest.raises(AccessDenied):
            attempt()


def test_trusted_lists_longer_than_a_page(keep: Keep) -> None:
    records = keep.guard.records(S, "x")
    records.apply([Creation("job", f"{number:04}", {}) for number in range(700)])
    assert [record.name for record in keep.guard.trusted("x", {"job"}).list("job")] == [f"{n:04}" for n in range(700)]


# Every committed change leaves a ledger entry at the record's label.


def test_every_committed_change_leaves_an_entry_at_its_label(keep: Keep) -> None:
    records = keep.guard.records(S, "x")
    made = records.create("k", "plan", {})
    records.delete(records.update(made, {}, "Done"))
    with pytest.raises(Conflict):
        records.update(made, {})
    entries = keep.ledger.entries[S.label.canonical]
    assert [entry["honmaru"]["change"] for entry in entries] == ["create", "update", "delete"]
    assert [entry["honmaru"]["version"] for entry in entries] == [1, 2, 2]
    assert set(keep.ledger.entries) == {S.label.canonical}
    assert keep.guard.drain_outbox() == 1 and len(keep.ledger.entries[S.label.canonical]) == 3


def test_a_crash_between_commit_and_ledger_only_delays_the_entry(keep: Keep, tmp_path: Path) -> None:
    keep.guard.records(S, "x").create("k", "plan", {})
    again = Keep(tmp_path, ids=keep.ids)
    assert again.guard.drain_outbox() == 1 and again.guard.drain_outbox() == 0
    (entry,) = again.ledger.entries[S.label.canonical]
    assert entry == keep.ledger.entries[S.label.canonical][0]


def test_a_ledger_that_fails_after_the_commit_is_caught_up_with(keep: Keep) -> None:
    records = keep.guard.records(S, "x")
    append, keep.ledger.append = keep.ledger.append, _failing  # type: ignore[method-assign]
    records.create("k", "a", {})
    keep.ledger.append = append  # type: ignore[method-assign]
    records.create("k", "b", {})
    assert [entry["honmaru"]["name"] for entry in keep.ledger.entries[S.label.canonical]] == ["a", "b"]


def _failing(*_: object) -> None:
    raise LedgerUnavailable("full")


def test_no_audit_no_change(keep: Keep) -> None:
    records = keep.guard.records(S, "x")
    made = records.create("k", "plan", {})
    keep.ledger.writable = False
    for attempt in (
        lambda: records.create("k", "b", {}),
        lambda: records.update(made, {}),
        lambda: records.delete(made),
    ):
        with pytest.raises(LedgerUnavailable):
            attempt()
    keep.ledger.writable = True
    assert records.list("k") == [made]


def test_the_outbox_does_not_grow(keep: Keep) -> None:
    for number in range(20):
        keep.guard.records(S, "x").create("k", str(number), {})
    assert len(keep.store.outbox()) <= 1


def test_callbacks_after_every_committed_change_of_the_service(keep: Keep) -> None:
    calls: list[str | None] = []
    keep.guard.on_change("x", {"k"}, calls.append)
    records = keep.guard.records(S, "x")
    record = records.create("k", "plan", {})
    keep.guard.records(S, "y").create("k", "plan", {})
    with pytest.raises(Conflict):
        records.create("k", "plan", {})
    records.create("another kind", "plan", {})
    assert calls == [ACCOUNT]
    trusted = keep.guard.trusted("x", {"k"})
    trusted.delete(trusted.update(record, {}))
    assert calls == [ACCOUNT] * 3


def test_a_sight_widens_by_accounts_and_never_by_labels(keep: Keep) -> None:
    theirs = session("SECRET", account="999999999999")
    low = keep.guard.records(session("UNCLASSIFIED", account="999999999999"), "x").create("k", "shared", {"at": "U"})
    high = keep.guard.records(theirs, "x").create("k", "shared", {"at": "S"})
    assert keep.guard.records(S, "x").get("k", "shared") is None
    assert keep.guard.sight(S.label, "x").get("k", "shared") == high
    assert keep.guard.sight(U.label, "x").get("k", "shared") == low
    assert keep.guard.sight(U.label, "x").get("k", "shared", account=ACCOUNT) is None
    own = keep.guard.records(U, "x").create("k", "shared", {"at": "U, ours"})
    assert keep.guard.sight(S.label, "x", asking=ACCOUNT).get("k", "shared") == own
    assert keep.guard.sight(S.label, "x", asking="111111111111").get("k", "shared") == high


# Blobs


def read(keep: Keep, who: object, blob_id: str, *place: int) -> bytes:
    return b"".join(keep.guard.blobs(who).read(blob_id, *place))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 5])
def test_a_blob_is_read_back_at_any_place(keep: Keep, size: int) -> None:
    content = keep.ids.secret(size)
    ref = keep.guard.blobs(S).write(content[at : at + 300_000] for at in range(0, size, 300_000))
    assert ref.size == size and read(keep, S, ref.id) == content
    for start, length in ((0, 1), (size // 2, 10), (max(0, size - 3), 10), ((1 << 20) - 2, 4), (size, 5), (0, size)):
        assert read(keep, S, ref.id, start, length) == content[start : start + length]


def test_a_blob_is_not_found_unless_dominated(keep: Keep) -> None:
    ref = keep.guard.blobs(SI).write([b"x"])
    for who in (U, S, TS, TK, session("SECRET//SI", account="999999999999")):
        with pytest.raises(NotFound) as refused:
            keep.guard.blobs(who).read(ref.id)
        with pytest.raises(NotFound) as absent:
            keep.guard.blobs(who).read(ref.id.replace(ref.id[-4:], "0000"))
        assert refused.value.message.replace(ref.id[-4:], "0000") == absent.value.message
    assert read(keep, BOTH, ref.id) == b"x"
    with pytest.raises(NotFound):
        keep.guard.blobs(S).read("../../etc/passwd")


def _file(keep: Keep) -> Path:
    (path,) = keep.blob_store.paths("")
    return keep.directory / "blobs" / path


def test_every_flipped_byte_is_found_and_never_served(keep: Keep) -> None:
    content = bytes(range(256)) * 5000
    ref = keep.guard.blobs(S).write([content])
    path = _file(keep)
    whole = path.read_bytes()
    for place in [*range(0, 400, 3), 5000, len(whole) // 2, (1 << 20) + 300, len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        served = b""
        with pytest.raises((IntegrityFault, NotFound)):
            for chunk in keep.guard.blobs(S).read(ref.id):
                served += chunk
        assert content.startswith(served) and len(served) < len(content)
    path.write_bytes(whole)
    assert read(keep, S, ref.id) == content


@pytest.mark.parametrize("cut", [1, 16, 17, 1 << 20, (1 << 20) + 16])
def test_a_cut_or_lengthened_blob_is_found(keep: Keep, cut: int) -> None:
    ref = keep.guard.blobs(S).write([b"x" * (2 << 20)])
    path = _file(keep)
    whole = path.read_bytes()
    for damaged in (whole[:-cut], whole + b"\0" * cut):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityFault):
            read(keep, S, ref.id)


def test_a_blob_under_anothers_name_or_label_does_not_open(keep: Keep) -> None:
    high = keep.guard.blobs(S).write([b"high"])
    path = _file(keep)
    low = keep.guard.blobs(U).write([b"low"])
    (low_path,) = (keep.directory / "blobs" / name for name in keep.blob_store.paths("") if not path.match(name))
    sealed = path.read_bytes()
    low_path.write_bytes(sealed)
    with pytest.raises(NotFound):
        read(keep, U, low.id)
    claims = sealed.replace(f'"label":"{S.label.canonical}"'.encode(), f'"label":"{U.label.canonical}"'.encode())
    assert claims != sealed
    low_path.write_bytes(claims)
    with pytest.raises(IntegrityFault):
        read(keep, U, low.id)
    assert read(keep, S, high.id) == b"high"


def test_a_blob_is_deleted_only_at_its_own_label(keep: Keep) -> None:
    ref = keep.guard.blobs(S).write([b"x"])
    with pytest.raises(AccessDenied):
        keep.guard.blobs(TS).delete(ref.id)
    keep.guard.blobs(U).delete(ref.id)
    assert read(keep, S, ref.id) == b"x"
    keep.guard.blobs(S).delete(ref.id)
    keep.guard.blobs(S).delete(ref.id)
    with pytest.raises(NotFound):
        read(keep, S, ref.id)


def test_a_blob_deleted_while_it_is_read_goes_away_after_the_last_reader(keep: Keep) -> None:
    blobs = keep.guard.blobs(S)
    ref = blobs.write([b"x" * (3 << 20)])
    reader = blobs.read(ref.id)
    second = blobs.join([(ref.id, 0, 5), (ref.id, 7, 5)])
    next(reader)
    blobs.delete(ref.id)
    with pytest.raises(NotFound):
        blobs.read(ref.id)
    assert sum(map(len, reader)) == 2 << 20
    assert list(keep.blob_store.paths("")) != []
    del second
    assert list(keep.blob_store.paths("")) == []


def test_memory_stays_constant_while_a_large_blob_passes(keep: Keep) -> None:
    import tracemalloc

    chunk = bytes(1 << 20)
    tracemalloc.start()
    ref = keep.guard.blobs(S).write(chunk for _ in range(64))
    assert sum(map(len, keep.guard.blobs(S).read(ref.id))) == 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def test_the_sweep_deletes_only_what_no_record_names(keep: Keep, tmp_path: Path) -> None:
    kept = keep.guard.blobs(S).write([b"kept"])
    orphan = keep.guard.blobs(U).write([b"orphan"])
    keep.guard.records(S, "bedrock").create("model", "m", {"files": {"a": kept.id}})
    assert keep.guard.sweep_blobs(alone=True) == 0, "this process wrote them: they may yet get into a record"
    again = Keep(tmp_path, ids=keep.ids)
    fresh = again.guard.blobs(S).write([b"fresh"])
    assert again.guard.sweep_blobs(alone=True) == 1
    assert read(again, S, kept.id) == b"kept" and read(again, S, fresh.id) == b"fresh"
    with pytest.raises(NotFound):
        read(again, U, orphan.id)


def test_a_later_sweep_deletes_what_two_in_turn_found_unnamed(keep: Keep, tmp_path: Path) -> None:
    """Beside other writers: what is on its way into a record at one sweep is in it at the next."""
    orphan, late = (keep.guard.blobs(S).write([name]) for name in (b"orphan", b"late"))
    again = Keep(tmp_path, ids=keep.ids)
    assert again.guard.sweep_blobs() == 0
    keep.guard.records(S, "x").create("k", "late", {"blob": late.id})
    assert again.guard.sweep_blobs() == 1 and again.guard.sweep_blobs() == 0
    assert read(again, S, late.id) == b"late"
    with pytest.raises(NotFound):
        read(again, S, orphan.id)


def test_what_is_stored_and_no_blob_is_no_orphan() -> None:
    named, orphan = ("0123456789abcdef" * 2, "fedcba9876543210" * 2)
    paths = [f"1/{'a' * 16}/{one[:2]}/{one}" for one in (named, orphan)] + ["1/other", ".incoming/x", "1/a/b/c"]
    bodies = [b'{"blob":"blob-' + b"a" * 16 + b"-" + named.encode() + b'"}']
    assert list(orphans(paths, bodies)) == [(paths[1], f"blob-{'a' * 16}-{orphan}")]


def test_a_sweep_that_is_told_to_end_deletes_nothing(keep: Keep, tmp_path: Path) -> None:
    keep.guard.blobs(S).write([b"orphan"])
    keep.guard.records(S, "x").create("k", "n", {})
    again = Keep(tmp_path, ids=keep.ids)
    assert again.guard.sweep_blobs(alone=True, go_on=lambda: False) == 0
    assert len(list(again.blob_store.paths(""))) == 1


def test_a_record_moved_while_the_sweep_looks_keeps_its_blob(keep: Keep, tmp_path: Path) -> None:
    """A part becomes an object: its id leaves a record not yet scanned and enters one that was scanned already."""
    ref = keep.guard.blobs(S).write([b"part"])
    part = keep.guard.records(S, "x").create("z", "part", {"blob": ref.id})
    again = Keep(tmp_path, ids=keep.ids)
    scan = again.store.scan

    def scan_late() -> Iterator[object]:
        again.guard.records(S, "x").apply([Creation("a", "object", {"blob": ref.id}), Removal(part)])
        again.store.scan = lambda: iter(())  # type: ignore[method-assign]
        return iter(())

    again.store.scan = scan_late  # type: ignore[assignment]
    assert again.guard.sweep_blobs(alone=True) == 0
    again.store.scan = scan  # type: ignore[method-assign]
    assert read(again, S, ref.id) == b"part"


def test_a_sweep_that_meets_a_damaged_record_deletes_nothing(keep: Keep, tmp_path: Path) -> None:
    keep.guard.blobs(S).write([b"orphan"])
    keep.guard.records(S, "x").create("k", "plan", {})
    with sqlite3.connect(tmp_path / "records.db") as database:
        database.execute("UPDATE records SET body = zeroblob(64)")
    again = Keep(tmp_path, ids=keep.ids)
    with pytest.raises(IntegrityFault):
        again.guard.sweep_blobs(alone=True)
    assert len(list(again.blob_store.paths(""))) == 1


# The keyring


def test_what_was_sealed_for_one_account_and_label_opens_for_no_other(tmp_path: Path, keep: Keep) -> None:
    ring = Keyring(tmp_path / "ring", keep.ids.secret)
    sealed = ring.seal("1", "S", b"plain", b"context")
    wrapped = ring.wrap("1", "S", b"k" * 32, b"context")
    assert ring.open("1", "S", sealed, b"context") == b"plain"
    assert ring.unwrap("1", "S", wrapped, b"context") == b"k" * 32
    for account, label, context in (("2", "S", b"context"), ("1", "U", b"context"), ("1", "S", b"other")):
        with pytest.raises(IntegrityFault):
            ring.open(account, label, sealed, context)
        with pytest.raises(IntegrityFault):
            ring.unwrap(account, label, wrapped, context)
    for damaged in (b"", sealed[:-1], sealed + b"\0", bytes([sealed[0] ^ 1]) + sealed[1:], wrapped):
        with pytest.raises(IntegrityFault):
            ring.open("1", "S", damaged, b"context")
    assert Keyring(tmp_path / "ring", keep.ids.secret).open("1", "S", sealed, b"context") == b"plain"


def test_key_files_are_private_and_sealed_by_the_root_key(tmp_path: Path, keep: Keep) -> None:
    Keyring(tmp_path / "ring", keep.ids.secret).seal("1", "S", b"plain", b"")
    files = sorted(path.name for path in (tmp_path / "ring").iterdir())
    assert files[1:] == ["lock", "root.key"] and all(
        (tmp_path / "ring" / name).stat().st_mode & 0o077 == 0 for name in files
    )
    kek = next(path for path in (tmp_path / "ring").iterdir() if path.suffix == ".kek")
    raw = kek.read_bytes()
    kek.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(IntegrityFault):
        Keyring(tmp_path / "ring", keep.ids.secret).open("1", "S", raw, b"")
