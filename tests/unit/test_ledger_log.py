"""The ledger: order, durability, recovery, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from honmaru.core.errors import ConfigurationFault, IntegrityFault, LedgerUnavailable, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.security.ledger import Ledger, Receipt, verify
from honmaru.security.ledger import log as log_module
from honmaru.security.ledger.checkpoints import Checkpoint
from honmaru.security.ledger.reading import StoredLog, backward, stored_logs

SECRET = Label.parse("SECRET")


class SteppingClock:
    """Advances a millisecond a call; can be set back."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        self.at += timedelta(milliseconds=1)
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


def open_ledger(root: Path, clock: SteppingClock | None = None) -> Ledger:
    return Ledger(root / "ledger", clock=clock or SteppingClock(), secret=os.urandom)


def fill(ledger: Ledger, label: Label, count: int, start: int = 0) -> list[Receipt]:
    futures = [ledger.append(label, {"eventID": f"e{start + n}", "n": start + n}) for n in range(count)]
    return [future.result(10) for future in futures]


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def directory_of(root: Path, label: Label = BOTTOM) -> Path:
    return root / "ledger" / label.token


def checkpoint_of_nothing(root: Path, ledger: Ledger) -> bytes:
    """The checkpoint that a log begins with, signed once more."""
    origin = ledger.signer.verifier.origin(BOTTOM.token)
    roots = (hashlib.sha256().digest(), hashlib.sha384().digest())
    return ledger.signer.sign(
        Checkpoint(origin, 0, *roots, BOTTOM.canonical, "2026-11-23T12:00:00.000000Z")
    ).note.encode()


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_entries_come_back_in_order_after_reopening_and_verify(tmp_path: Path, count: int) -> None:
    ledger = open_ledger(tmp_path)
    assert [receipt.index for receipt in fill(ledger, BOTTOM, count)] == list(range(count))
    ledger.close()
    again = open_ledger(tmp_path)
    assert again.size(BOTTOM) == count
    assert [entry["n"] for entry in again.entries(BOTTOM)] == list(range(count))
    fill(again, BOTTOM, 300, start=count)
    again.close()
    heads = [path.read_bytes() for path in (tmp_path / "keys" / "ledger").glob("*.head")]
    report = verify.verify(tmp_path / "ledger", checkpoints=heads)
    assert report.ok, report
    assert report.logs[0].size == count + 300


def test_entries_are_gapless_and_times_never_go_back(tmp_path: Path) -> None:
    clock = SteppingClock()
    ledger = open_ledger(tmp_path, clock)
    fill(ledger, BOTTOM, 10)
    clock.at -= timedelta(hours=1)
    fill(ledger, BOTTOM, 10, start=10)
    ledger.close()
    clock.at -= timedelta(hours=1)
    ledger = open_ledger(tmp_path, clock)
    fill(ledger, BOTTOM, 10, start=20)
    entries = list(ledger.entries(BOTTOM))
    ledger.close()
    assert [entry["index"] for entry in entries] == list(range(30))
    times = [entry["recorded"] for entry in entries]
    assert times == sorted(times)
    assert verify.verify(tmp_path / "ledger").ok


def test_many_producers_share_one_log(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    receipts: list[Receipt] = []

    def produce(number: int) -> None:
        for position in range(50):
            receipts.append(ledger.append(BOTTOM, {"eventID": f"{number}-{position}"}).result(10))

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = {entry["index"]: entry["eventID"] for entry in ledger.entries(BOTTOM)}
    ledger.close()
    assert sorted(receipt.index for receipt in receipts) == list(range(400))
    assert len(set(stored.values())) == 400


def test_labels_do_not_meet(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 3)
    before = {p.name: p.read_bytes() for p in directory_of(tmp_path).iterdir() if p.is_file()}
    ledger.checkpoint(BOTTOM)
    low = {p: p.read_bytes() for p in directory_of(tmp_path).rglob("*") if p.is_file()}
    ledger.append(SECRET, {"eventID": "high", "n": "NEEDLE"}).result(10)
    ledger.checkpoint(SECRET)
    assert {p: p.read_bytes() for p in directory_of(tmp_path).rglob("*") if p.is_file()} == low
    assert set(before) == {"checkpoint", "label.json", "public-key"}
    assert set(ledger.labels()) == {BOTTOM, SECRET}
    assert not any(b"NEEDLE" in content for content in low.values())
    ledger.close()


def test_proofs_of_a_growing_log_hold(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 700)
    proof = ledger.inclusion_proof(BOTTOM, 300)
    facts = verify.check_proof(proof.document(), fingerprint=ledger.signer.verifier.fingerprint)
    assert (facts["index"], facts["size"], facts["entry"]["eventID"]) == (300, 700, "e300")
    first = ledger.checkpoint(BOTTOM)
    fill(ledger, BOTTOM, 500, start=700)
    grown = ledger.consistency_proof(BOTTOM, 700)
    assert verify.check_consistency(700, 1200, (first.sha384, grown.checkpoint.sha384), list(grown.sha384), "sha384")
    with pytest.raises(IndexError):
        ledger.inclusion_proof(BOTTOM, 1200)
    with pytest.raises(IndexError):
        ledger.inclusion_proof(SECRET, 0)
    assert ledger.labels() == [BOTTOM], "asking makes no log"
    ledger.close()


@pytest.mark.parametrize("field", ["entry", "index", "sha256", "sha384", "checkpoint", "publicKey"])
def test_a_changed_proof_does_not_hold(tmp_path: Path, field: str) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 10)
    document = json.loads(json.dumps(ledger.inclusion_proof(BOTTOM, 4).document()))
    ledger.close()
    verify.check_proof(document)
    value = document[field]
    if isinstance(value, int):
        document[field] = value + 1
    elif isinstance(value, list):
        document[field] = value[::-1]
    else:
        document[field] = value.replace("4", "5")
    with pytest.raises(verify.Invalid):
        verify.check_proof(document)


def test_a_proof_by_another_enclave_is_not_trusted(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    document = ledger.inclusion_proof(BOTTOM, 0).document()
    ledger.close()
    with pytest.raises(verify.Invalid, match="not by the trusted one"):
        verify.check_proof(document, fingerprint="0" * 96)


def test_files_are_private(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 300)
    ledger.close()
    for path in [*tmp_path.joinpath("ledger").rglob("*"), *tmp_path.joinpath("keys").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_torn_frame_is_cut_off_at_start(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 5)
    ledger.close()
    segment = next((directory_of(tmp_path) / "tail").iterdir())
    whole = segment.read_bytes()
    for torn in (whole[:100], b"\0" * 5000, b"HMF1" + b"\xff" * 300):
        segment.write_bytes(whole + torn)
        report = verify.verify(tmp_path / "ledger")
        assert report.ok
        assert report.logs[0].notes
        again = open_ledger(tmp_path)
        assert again.size(BOTTOM) == 5
        again.close()
        assert segment.read_bytes() == whole


def test_damage_before_whole_frames_is_not_taken_for_a_torn_frame(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    fill(ledger, BOTTOM, 1, start=1)
    ledger.close()
    segment = next((directory_of(tmp_path) / "tail").iterdir())
    content = bytearray(segment.read_bytes())
    content[150] ^= 1
    segment.write_bytes(content)
    with pytest.raises(IntegrityFault, match="damaged"):
        open_ledger(tmp_path)


def test_unsigned_entries_cannot_be_rewritten_without_the_key(tmp_path: Path) -> None:
    """The frame's digest alone can be recomputed by anybody; its HMAC cannot."""
    from honmaru.security.ledger.tail import TailKey, frame

    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    ledger.close()
    segment = next((directory_of(tmp_path) / "tail").iterdir())
    origin = json.loads((directory_of(tmp_path) / "label.json").read_bytes())["origin"]
    forged = frame(
        TailKey(b"guess", origin), 1, [b'{"index":1,"recorded":"2026-11-23T12:00:00.000000Z","eventID":"x"}']
    )
    segment.write_bytes(segment.read_bytes() + forged)
    again = open_ledger(tmp_path)
    assert again.size(BOTTOM) == 1
    again.close()


def roll_back(root: Path) -> None:
    ledger = open_ledger(root)
    fill(ledger, BOTTOM, 300)
    ledger.close()
    shutil.copytree(root / "ledger", root / "old")
    ledger = open_ledger(root)
    fill(ledger, BOTTOM, 300)
    ledger.close()
    shutil.rmtree(root / "ledger")
    (root / "old").rename(root / "ledger")


def test_a_rolled_back_log_is_refused_at_start(tmp_path: Path) -> None:
    roll_back(tmp_path)
    assert verify.verify(tmp_path / "ledger").ok, "an older valid copy is valid in itself"
    with pytest.raises(IntegrityFault, match="rolled back"):
        open_ledger(tmp_path)


def test_a_rolled_back_log_is_found_with_the_head_kept_outside(tmp_path: Path) -> None:
    roll_back(tmp_path)
    head = next((tmp_path / "keys" / "ledger").glob("*.head")).read_bytes()
    report = verify.verify(tmp_path / "ledger", checkpoints=[head])
    assert [finding.code for finding in report.logs[0].findings] == ["rolled-back"]


def test_a_known_checkpoint_over_nothing_is_extended_by_every_log(tmp_path: Path) -> None:
    """The head outside is written after the checkpoint beside the entries: a crash between leaves the older one."""
    ledger = open_ledger(tmp_path)
    empty = checkpoint_of_nothing(tmp_path, ledger)
    fill(ledger, BOTTOM, 300)
    ledger.close()
    assert verify.verify(tmp_path / "ledger", checkpoints=[empty]).ok
    other = Ledger(tmp_path / "other" / "ledger", clock=SteppingClock(), secret=os.urandom)
    fill(other, BOTTOM, 1)
    foreign = checkpoint_of_nothing(tmp_path / "other", other)
    other.close()
    assert not verify.verify(tmp_path / "ledger", checkpoints=[foreign]).ok


@pytest.mark.parametrize("drafts", [[], ["label.json.incomplete"]])
def test_a_log_that_a_crash_left_unborn_is_no_finding_after_the_next_start(tmp_path: Path, drafts: list[str]) -> None:
    open_ledger(tmp_path).close()
    unborn = directory_of(tmp_path, SECRET)
    unborn.mkdir(mode=0o700)
    for name in drafts:
        (unborn / name).write_bytes(b"{")
    ledger = open_ledger(tmp_path)
    assert verify.verify(tmp_path / "ledger").ok and not unborn.exists()
    fill(ledger, SECRET, 1)
    ledger.close()
    assert verify.verify(tmp_path / "ledger").ok and unborn.exists()


def test_a_log_without_its_label_and_its_head_is_not_taken_for_unborn(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    ledger.close()
    (directory_of(tmp_path) / "label.json").unlink()
    next((tmp_path / "keys" / "ledger").glob("*.head")).unlink()
    with pytest.raises(IntegrityFault, match="is there"):
        open_ledger(tmp_path)
    assert (directory_of(tmp_path) / "checkpoint").exists()


@pytest.mark.parametrize("what", ["log", "tail", "head", "label.json", "one tile"])
def test_a_missing_part_is_refused_at_start(tmp_path: Path, what: str) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 2)
    ledger.close()
    log = directory_of(tmp_path)
    match what:
        case "log":
            shutil.rmtree(log)
        case "tail":
            shutil.rmtree(log / "tail")
        case "head":
            next((tmp_path / "keys" / "ledger").glob("*.head")).unlink()
        case "label.json":
            (log / "label.json").unlink()
        case "one tile":
            shutil.rmtree(log / "tile")  # what the tail can give back is made again
            open_ledger(tmp_path).close()
            assert verify.verify(tmp_path / "ledger").ok
            return
    with pytest.raises(IntegrityFault):
        open_ledger(tmp_path)


def test_long_logs_let_go_of_their_tail_and_recover_from_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "ROTATE_BYTES", 20_000)
    count = 0
    for _ in range(3):
        ledger = open_ledger(tmp_path)
        for _ in range(6):
            fill(ledger, BOTTOM, 170, start=count)
            count += 170
            ledger.checkpoint(BOTTOM)
        ledger.close()
    first = min(int(path.name) for path in (directory_of(tmp_path) / "tail").iterdir())
    assert first > 1000, "the oldest segments are gone"
    ledger = open_ledger(tmp_path)
    assert [entry["n"] for entry in ledger.entries(BOTTOM)] == list(range(count))
    ledger.close()
    assert verify.verify(tmp_path / "ledger").ok


def test_every_entry_is_signed_before_long_without_another_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signer must not look before the first batch is durable and then go to sleep."""
    monkeypatch.setattr("honmaru.security.ledger.ledger.CHECKPOINT_INTERVAL_S", 0.0)
    for number in range(15):
        ledger = open_ledger(tmp_path / str(number))
        fill(ledger, BOTTOM, 2)
        log = directory_of(tmp_path / str(number))
        assert eventually(lambda log=log: StoredLog(log).size == 2)
        ledger.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(ConfigurationFault, match="another honmaru process"):
        open_ledger(tmp_path)
    ledger.close()
    open_ledger(tmp_path).close()


def test_a_ledger_whose_directory_vanishes_refuses_and_comes_back_by_itself(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 10)
    log = directory_of(tmp_path)
    away = tmp_path / "away"
    log.rename(away)
    with pytest.raises(LedgerUnavailable):
        ledger.append(BOTTOM, {"eventID": "lost"}).result(10)
    assert not ledger.writable
    assert ledger.fault
    with pytest.raises(LedgerUnavailable):
        ledger.append(BOTTOM, {"eventID": "lost"})
    time.sleep(0.6)
    assert not ledger.writable, "an empty log in its place would be a roll-back"
    assert not log.exists()
    away.rename(log)
    assert eventually(lambda: ledger.writable)
    assert fill(ledger, BOTTOM, 1, start=10)[0].index == 10
    assert [entry["eventID"] for entry in ledger.entries(BOTTOM)] == [f"e{n}" for n in range(11)]
    ledger.close()
    assert verify.verify(tmp_path / "ledger").ok


def test_a_failing_checkpoint_refuses_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was appended since the start, so no writer runs yet: it must be begun to get out of the failure."""
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 10)
    ledger.close()
    ledger = open_ledger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(log_module.Log, "_hash", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(LedgerUnavailable, match="No space"):
            ledger.checkpoint(BOTTOM)
        with pytest.raises(LedgerUnavailable):
            ledger.append(BOTTOM, {"eventID": "refused"}).result(10)
    assert eventually(lambda: ledger.writable)
    assert fill(ledger, BOTTOM, 1, start=10)[0].index == 10
    ledger.close()
    assert verify.verify(tmp_path / "ledger").ok


def test_a_failing_write_refuses_everything_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 10)
    real = os.fdatasync

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    futures: list[Future[Receipt]] = []
    for number in range(20):
        try:
            futures.append(ledger.append(BOTTOM, {"eventID": f"f{number}"}))
        except LedgerUnavailable:
            break
    assert futures
    for future in futures:
        with pytest.raises(LedgerUnavailable):
            future.result(10)
    time.sleep(0.4)
    assert not ledger.writable
    monkeypatch.setattr(os, "fdatasync", real)
    assert eventually(lambda: ledger.writable)
    fill(ledger, BOTTOM, 5, start=10)
    stored = [entry["eventID"] for entry in ledger.entries(BOTTOM)]
    ledger.close()
    assert stored == [f"e{n}" for n in range(15)], "what was refused is not in the log"
    assert verify.verify(tmp_path / "ledger").ok


def test_a_cancelled_wait_leaves_the_entry_and_the_writer_alone(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for number in range(200):
        ledger.append(BOTTOM, {"eventID": f"c{number}"}).cancel()
    fill(ledger, BOTTOM, 1)
    assert ledger.size(BOTTOM) == 201
    ledger.close()


def test_a_closed_ledger_refuses(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    ledger.close()
    assert not ledger.writable
    for label in (BOTTOM, SECRET):
        with pytest.raises(LedgerUnavailable):
            ledger.append(label, {"eventID": "late"})


@pytest.mark.parametrize(
    "entry", [{}, {"eventID": 1}, {"eventID": "x", "index": 0}, {"eventID": "x", "b": "y" * 66_000}]
)
def test_what_is_not_an_entry_is_refused_before_it_is_queued(tmp_path: Path, entry: dict[str, object]) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(ValidationFault):
        ledger.append(BOTTOM, entry)
    ledger.close()


def test_text_that_is_not_unicode_is_recorded_all_the_same(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.append(BOTTOM, {"eventID": "x", "userAgent": "a\udcffb"}).result(10)
    assert next(ledger.entries(BOTTOM))["userAgent"] == "a?b"
    ledger.close()


def test_searching_backward_finds_what_forward_reading_finds(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 900)
    everything = list(ledger.entries(BOTTOM))
    found = list(ledger.backward(BOTTOM, 800, ["e12"], until=12))
    assert [index for index, _ in found] == sorted((n for n in range(12, 800) if "e12" in f"e{n}"), reverse=True)
    for probe in (0, 1, 256, 450, 899):
        assert ledger.position(BOTTOM, everything[probe]["recorded"]) <= probe
    assert ledger.position(BOTTOM, "9999") == 900
    ledger.checkpoint(BOTTOM)
    stored = stored_logs(tmp_path / "ledger")[0]
    assert [entry for _, entry in backward(stored, stored.size)] == everything[::-1]
    ledger.close()


def test_reading_and_verifying_beside_a_writing_enclave_find_no_fault(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    ledger.checkpoint(BOTTOM)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            fill(ledger, BOTTOM, 37, start=number)
            number += 37

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            report = verify.verify(tmp_path / "ledger")
            assert report.ok, report
            log = StoredLog(directory_of(tmp_path))
            verify.check_proof(log.inclusion_proof(log.size - 1).document())
    finally:
        stop.set()
        writer.join()
        ledger.close()


def test_a_lone_append_does_not_wait_for_company(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    fill(ledger, BOTTOM, 1)
    waits = []
    for number in range(50):
        started = time.perf_counter()
        fill(ledger, BOTTOM, 1, start=number)
        waits.append(time.perf_counter() - started)
    ledger.close()
    assert sorted(waits)[10] < 0.05, "the fastest fifth of lone appends waits for the disk alone, not for a timer"


def test_appends_wait_for_a_signature_that_lags_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MAX_UNSIGNED", 100)
    monkeypatch.setattr("honmaru.security.ledger.ledger.CHECKPOINT_INTERVAL_S", 60.0)
    ledger = open_ledger(tmp_path)
    for start in range(0, 2000, 50):
        fill(ledger, BOTTOM, 50, start=start)
        head = verify.read_head(
            (directory_of(tmp_path) / "checkpoint").read_bytes(),
            ledger.signer.verifier.origin(BOTTOM.token),
            ledger.signer.verifier.public_key,
        )
        assert ledger.size(BOTTOM) - head.size <= 100 + log_module.BATCH
    assert head.size > 1500
    ledger.close()
