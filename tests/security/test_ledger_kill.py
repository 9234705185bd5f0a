"""kill -9 under load loses no acknowledged entry, and what is left verifies and goes on."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from honmaru.app.runtime import SystemClock
from honmaru.core.labels import BOTTOM, Label
from honmaru.security.ledger import Ledger, verify

CHILD = """
import os, sys, threading
from pathlib import Path
from honmaru.app.runtime import SystemClock
from honmaru.core.labels import BOTTOM, Label
from honmaru.security.ledger import Ledger, log

log.ROTATE_BYTES = 60_000  # so that kills also hit the change of tail segments
ledger = Ledger(Path(sys.argv[1]) / "ledger", clock=SystemClock(), secret=os.urandom)
labels = [BOTTOM, Label.parse("SECRET")]
os.write(1, b"ready\\n")

def produce(number):
    position = 0
    while True:
        label = labels[number % 2]
        waiting = []
        for _ in range(1 + number * 7):
            event = f"{sys.argv[2]}-{number}-{position}"
            position += 1
            waiting.append((event, ledger.append(label, {"eventID": event, "filler": "x" * (position % 900)})))
        lines = [f"{number % 2} {future.result().index} {event}\\n" for event, future in waiting]
        os.write(1, "".join(lines).encode())  # at most PIPE_BUF bytes: whole or not at all

for number in range(4):
    threading.Thread(target=produce, args=(number,)).start()
"""

LABELS = (BOTTOM, Label.parse("SECRET"))


def run_and_kill(root: Path, round_number: int, chance: random.Random) -> list[tuple[int, int, str]]:
    """Start the child, kill it at a random moment; returns what it had acknowledged by then."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root), str(round_number)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    output = b""
    if round_number % 5:  # else: while it starts and recovers
        while b"ready\n" not in output:
            output += os.read(child.stdout.fileno(), 65536)
    deadline = time.monotonic() + chance.uniform(0.0, 0.35)
    while (left := deadline - time.monotonic()) > 0:
        if select.select([child.stdout], [], [], left)[0]:
            output += os.read(child.stdout.fileno(), 1 << 20)
    child.send_signal(signal.SIGKILL)
    output += child.stdout.read()
    child.wait()
    child.stdout.close()
    lines = output.removeprefix(b"ready\n").decode().splitlines()
    return [(int(log), int(index), event) for log, index, event in (line.split() for line in lines)]


def check(root: Path, acknowledged: dict[tuple[int, int], str]) -> None:
    """Every acknowledged entry is at its index, before and after recovery; what the kill left verifies offline."""
    heads = [path.read_bytes() for path in (root / "keys" / "ledger").glob("*.head")]
    if (root / "ledger").exists():
        report = verify.verify(root / "ledger", checkpoints=heads)
        begun = {path.stem for path in (root / "keys" / "ledger").glob("*.head")}
        assert not [log for log in report.logs if log.findings and Path(log.path).name in begun], report
    ledger = Ledger(root / "ledger", clock=SystemClock(), secret=os.urandom)
    for number, label in enumerate(LABELS):
        wanted = {index: event for (log, index), event in acknowledged.items() if log == number}
        stored = {entry["index"]: entry["eventID"] for entry in ledger.entries(label, min(wanted, default=0))}
        lost = {index: event for index, event in wanted.items() if stored.get(index) != event}
        assert not lost
    ledger.close()
    heads = [path.read_bytes() for path in (root / "keys" / "ledger").glob("*.head")]
    assert verify.verify(root / "ledger", checkpoints=heads).ok


def kill_often(tops: Path, rounds: int) -> int:
    chance = random.Random(2)
    total = 0
    pending: dict[tuple[int, int], str] = {}
    for number in range(rounds):
        if number % 20 == 0:  # a fresh ledger now and then: what is checked grows with the log
            root = tops / str(number)
            root.mkdir(mode=0o700)
        for log, index, event in run_and_kill(root, number, chance):
            assert (log, index) not in pending, "an index was given twice"
            pending[log, index] = event
            total += 1
        # Where nothing is checked, the next child recovers from this kill by itself.
        if chance.random() < 0.6 or number % 20 == 19 or number == rounds - 1:
            check(root, pending)
            pending.clear()
    return total


def test_killed_ledgers_keep_what_they_acknowledged(tmp_path: Path) -> None:
    assert kill_often(tmp_path, 8) > 500


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("HONMARU_LONG") != "1", reason="200 kills: make test-long")
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    assert kill_often(tmp_path, 200) > 50_000


def test_a_ledger_that_acknowledges_too_early_is_caught(tmp_path: Path) -> None:
    """Sabotage: an acknowledged entry that never reached the disk turns the check red."""
    acknowledged = {(log, index): event for log, index, event in run_and_kill(tmp_path, 1, random.Random(1))}
    ledger = Ledger(tmp_path / "ledger", clock=SystemClock(), secret=os.urandom)
    acknowledged[0, ledger.size(BOTTOM)] = "never-written"
    ledger.close()
    with pytest.raises(AssertionError, match="never-written"):
        check(tmp_path, acknowledged)
