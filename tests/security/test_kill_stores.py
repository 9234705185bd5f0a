"""Acknowledged S3 puts survive `kill -9`, what a crash leaves behind is swept, and the ledger knows every change.

A child process puts, overwrites and deletes objects at two labels and acknowledges each on a pipe; the parent kills it
at a random moment, opens the same directory, and compares. Few rounds by default, 200 with HONMARU_LONG=1.
The sabotage acknowledges before it stores; the same comparison must find that.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from honmaru.core.errors import NotFound
from honmaru.security.ledger import Ledger
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, SeededIds, SteppedClock, session

ROUNDS = 200 if os.environ.get("HONMARU_LONG") == "1" else 3
LABELS = ("UNCLASSIFIED", "SECRET")

CHILD = """
import random, sys, threading
from pathlib import Path
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.security.ledger import Ledger
from honmaru.testing.keep import Keep, SeededIds, SteppedClock, Upload, session
import hashlib, secrets

directory, seed = Path(sys.argv[1]), sys.argv[2]
clock = SteppedClock()
ledger = Ledger(directory / "ledger", heads=directory / "heads", clock=clock, secret=secrets.token_bytes)
keep = Keep(directory, clock=clock, ids=SeededIds(seed), ledger=ledger)
s3 = S3(keep.ids, BucketCommits())
lock = threading.Lock()

def acknowledge(*words):
    with lock:
        print(*words, flush=True)

def work(marking, worker):
    chance = random.Random(f"{seed}{marking}{worker}")
    who = session(marking)
    for number in range(100_000):
        key = f"{marking[0]}{worker}/{chance.randrange(8)}"  # else a high delete meets low objects
        if chance.random() < 0.2:
            acknowledge("try", marking, key, "-")
            s3.delete_object(keep.call(who, "DeleteObject"), {"Bucket": "bucket", "Key": key})
            acknowledge("did", marking, key, "-")
            continue
        content = chance.randbytes(chance.choice((0, 10, 5_000, 1_500_000)))
        digest = hashlib.sha256(content).hexdigest()
        acknowledge("try", marking, key, digest)
        s3.put_object(keep.call(who, "PutObject"), {"Bucket": "bucket", "Key": key, "Body": Upload(content)})
        acknowledge("did", marking, key, digest)

for marking in ("UNCLASSIFIED", "SECRET"):
    for worker in range(2):
        threading.Thread(target=work, args=(marking, worker), daemon=True).start()
threading.Event().wait()
"""


def _kill_at_random(child_script: str, directory: Path, seed: str, chance: random.Random) -> list[list[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", child_script, str(directory), seed], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    lines: list[str] = []
    wanted = chance.randrange(2, 40)
    while wanted:
        lines.append(child.stdout.readline())
        assert lines[-1], "the child ended by itself"
        wanted -= lines[-1].startswith("did")
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    return [words for line in lines if len(words := line.split()) == 4]


def _open(directory: Path, seed: str) -> Keep:
    clock = SteppedClock()
    ledger = Ledger(directory / "ledger", heads=directory / "heads", clock=clock, secret=secrets.token_bytes)
    return Keep(directory, clock=clock, ids=SeededIds(seed), ledger=ledger)


def _close(keep: Keep) -> None:
    keep.ledger.close()
    keep.close()


def _first_loss(child_script: str, directory: Path, rounds: int) -> str | None:
    """What was lost, left behind or not recorded over some rounds of killing; None when all is well."""
    chance = random.Random(2030)
    directory.mkdir(mode=0o700)
    (directory / "ledger").mkdir(mode=0o700)
    start = _open(directory, "start")
    S3(start.ids, BucketCommits()).create_bucket(start.call(session(LABELS[0]), "CreateBucket"), {"Bucket": "bucket"})
    _close(start)
    # What each key may hold: one value once acknowledged, or also the one whose acknowledgement never came.
    allowed: dict[tuple[str, str], set[str]] = {}
    for number in range(rounds):
        for verb, marking, key, digest in _kill_at_random(child_script, directory, f"round {number}", chance):
            if verb == "did":
                allowed[marking, key] = {digest}
            else:
                allowed.setdefault((marking, key), {"-"}).add(digest)
        keep = _open(directory, f"check {number}")
        keep.guard.drain_outbox()
        keep.guard.sweep_blobs(alone=True)
        loss = _loss(keep, allowed) or _left_behind(keep, directory) or _unrecorded(keep)
        _close(keep)
        if loss is not None:
            return f"round {number}: {loss}"
    return None


def _loss(keep: Keep, allowed: dict[tuple[str, str], set[str]]) -> str | None:
    s3 = S3(keep.ids, BucketCommits())
    for (marking, key), digests in allowed.items():
        found = _content(keep, s3, marking, key)
        if found not in digests:
            return f"{marking} {key} holds {found}, expected one of {digests}"
        allowed[marking, key] = {found}
    return None


def _left_behind(keep: Keep, directory: Path) -> str | None:
    objects = sum(1 for row in keep.store.scan() if row.kind == "object")
    blobs = len(list(keep.blob_store.paths("")))
    unfinished = list((directory / "blobs" / ".incoming").iterdir())
    return None if blobs == objects and not unfinished else f"{blobs} blobs for {objects} objects, {unfinished}"


def _unrecorded(keep: Keep) -> str | None:
    """A record whose present version, with the digest of its sealed body, no ledger entry of its label states."""
    stated = {
        (
            entry["honmaru"]["label"],
            entry["honmaru"]["name"],
            entry["honmaru"]["version"],
            entry["honmaru"]["bodyDigest"],
        )
        for label in keep.ledger.labels()
        for entry in keep.ledger.entries(label, 0, keep.ledger.size(label))
        if entry["eventType"] == "HonmaruStateChange"
    }
    for row in keep.store.scan():
        if (row.label, row.name, row.version, hashlib.sha384(row.body).hexdigest()) not in stated:
            return f"{row.kind} {row.name} at version {row.version} is in no ledger entry"
    return None


@pytest.mark.timeout(3600)
def test_acknowledged_puts_survive_kill_minus_nine(tmp_path: Path) -> None:
    assert _first_loss(CHILD, tmp_path / "enclave", ROUNDS) is None


def test_the_comparison_finds_a_put_that_is_acknowledged_before_it_is_stored(tmp_path: Path) -> None:
    hurried = CHILD.replace('acknowledge("try", marking, key, digest)', 'acknowledge("did", marking, key, digest)')
    assert hurried != CHILD
    loss = _first_loss(hurried, tmp_path / "enclave", 20)
    assert loss is not None and "expected one of" in loss


def _content(keep: Keep, s3: S3, marking: str, key: str) -> str:
    """The digest of the object at exactly this label, "-" when there is none."""
    who = session(marking)
    record = keep.guard.records(who, "s3").get("object", f"bucket/{key}")
    if record is None or record.label != who.label:
        return "-"
    try:
        body = s3.get_object(keep.call(who, "GetObject"), {"Bucket": "bucket", "Key": key})["Body"]
    except NotFound:
        return "lost"
    return hashlib.sha256(b"".join(body)).hexdigest()
