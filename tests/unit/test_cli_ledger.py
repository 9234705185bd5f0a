"""`honmaru ledger`: what it prints and how it exits."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from honmaru.__main__ import main
from honmaru.app.runtime import SystemClock
from honmaru.core.labels import BOTTOM, Label
from honmaru.security.ledger import Ledger

SECRET = Label.parse("SECRET")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "ledger", clock=SystemClock(), secret=os.urandom)
    futures = [ledger.append(BOTTOM, {"eventID": f"e{n}", "eventName": "GetObject"}) for n in range(300)]
    for future in futures:
        future.result(10)
    ledger.append(SECRET, {"eventID": "s1", "eventName": "[red]Converse", "errorCode": "AccessDenied"}).result(10)
    ledger.close()
    return tmp_path


def test_verify_says_ok_with_both_places_for_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "verify", "--data", str(data)]) == 0
    first = capsys.readouterr().out
    assert "The ledger verifies: 301 entries" in first
    assert "2 known checkpoints" in first
    assert SECRET.banner in first
    assert "\x1b" not in first, "no colour when not on a terminal"
    assert main(["ledger", "--data", str(data), "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_verify_of_a_changed_copy_names_what_it_found(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data / "ledger", copy)
    victim = copy / BOTTOM.token / "tile" / "entries" / "000"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    assert main(["ledger", "verify", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "does not verify" in out
    assert "tile/0/000 is not what its entries hash to" in out
    assert main(["ledger", "verify", str(copy / BOTTOM.token), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["logs"][0]["findings"]


def test_verify_compares_with_a_known_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(data / "ledger", old)
    ledger = Ledger(data / "ledger", clock=SystemClock(), secret=os.urandom)
    ledger.append(BOTTOM, {"eventID": "later"}).result(10)
    ledger.close()
    assert main(["ledger", "verify", str(old)]) == 0
    capsys.readouterr()
    newer = data / "ledger" / BOTTOM.token / "checkpoint"
    assert main(["ledger", "verify", str(old), "--checkpoint", str(newer)]) == 1
    assert "rolled-back" in capsys.readouterr().out
    assert main(["ledger", "verify", str(data / "ledger"), "--fingerprint", "00"]) == 1


def test_a_proof_is_printed_and_checked(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "prove", "--event-id", "e123", "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    proof = tmp_path / "proof.json"
    proof.write_text(printed)
    assert main(["ledger", "verify-proof", str(proof)]) == 0
    assert "is entry 123 of the 300" in capsys.readouterr().out
    assert main(["ledger", "prove", "--event-id", "s1", "--summary", "--data", str(data)]) == 0
    assert "The proof holds. [red]Converse by nobody known" in capsys.readouterr().out
    proof.write_text(printed.replace("GetObject", "PutObject"))
    assert main(["ledger", "verify-proof", str(proof)]) == 1
    assert "the proof does not hold" in capsys.readouterr().err


def test_what_cannot_be_proved_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "prove", "--event-id", "e999", "--data", str(data)]) == 1
    assert "no entry of the ledger" in capsys.readouterr().err
    assert main(["ledger", "prove", "--event-id", "e1", "--data", str(tmp_path / "nowhere")]) == 1
    assert "there is no ledger" in capsys.readouterr().err
    (tmp_path / "x").write_text("[]")
    assert main(["ledger", "verify-proof", str(tmp_path / "x")]) == 1
    assert main(["ledger", "verify", str(tmp_path / "nowhere")]) == 1


def test_list_shows_the_newest_of_all_logs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "list", "-n", "5", "--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert "AccessDenied" in out
    assert "[red]Converse" in out
    assert out.count("GetObject") == 4
    assert main(["ledger", "list", "-n", "2", "--json", "--data", str(data)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert {"s1", "e299"} == {line["eventID"] for line in lines}
