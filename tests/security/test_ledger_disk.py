"""No audit, no answer: on a full or size-limited disk the ledger refuses, loses nothing, and comes back by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from honmaru.security.ledger import verify

CHILD = """
import os, resource, sys, time
from pathlib import Path
from honmaru.app.runtime import SystemClock
from honmaru.core.errors import LedgerUnavailable
from honmaru.core.labels import BOTTOM
from honmaru.security.ledger import Ledger

root, how = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(root / "ledger", clock=SystemClock(), secret=os.urandom)
acknowledged = []

def fill(count):
    for _ in range(count):
        event = f"e{len(acknowledged)}"
        index = ledger.append(BOTTOM, {"eventID": event, "filler": "x" * 1000}).result(20).index
        acknowledged.append((index, event))

fill(20)
if how == "full":
    hog = open(root / "hog", "wb", buffering=0)
    try:
        while True:
            hog.write(bytes(4096))
    except OSError:
        pass
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, -1))
refused = 0
for _ in range(200):
    try:
        fill(1)
    except LedgerUnavailable:
        refused += 1
        time.sleep(0.01)
assert refused > 50 and not ledger.writable, (refused, ledger.writable)
assert [e["eventID"] for e in ledger.entries(BOTTOM)] == [event for _, event in acknowledged], "readable all the same"
if how == "full":
    hog.truncate(0)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
deadline = time.monotonic() + 10
while not ledger.writable and time.monotonic() < deadline:
    time.sleep(0.02)
fill(300)
stored = [(e["index"], e["eventID"]) for e in ledger.entries(BOTTOM)]
ledger.close()
assert stored == acknowledged
print("survived", len(stored), refused)
"""


def test_a_limited_file_size_refuses_and_comes_back(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "limit"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("survived"), done.stderr
    assert verify.verify(tmp_path / "ledger").ok


def test_a_full_disk_refuses_and_comes_back(tmp_path: Path) -> None:
    """On a 2 MiB file system of its own, filled to the last byte."""
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=2m,mode=700 none {disk}"
    if not shutil.which("unshare") or subprocess.run([*enter, mount], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace in which a small file system can be mounted")
    script = f'{mount} && "$0" -c "$1" {disk} full && cp -r {disk}/ledger {tmp_path}/kept'
    done = subprocess.run(
        [*enter, script, sys.executable, CHILD], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("survived"), done.stderr
    assert verify.verify(tmp_path / "kept").ok
