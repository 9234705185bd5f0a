"""Acknowledged S3 puts survive `kill -9`, and what a crash leaves behind is swept.

A child process puts, overwrites and deletes objects at two labels and acknowledges each on a pipe; the parent kills it
at a random moment, opens the same directory, and compares. Few rounds by default, 200 with HONMARU_LONG=1.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from honmaru.core.errors import NotFound
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, SeededIds, session

ROUNDS = 200 if os.environ.get("HONMARU_LONG") == "1" else 5
LABELS = ("UNCLASSIFIED", "SECRET")

CHILD = """
import random, sys, threading
from pathlib import Path
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, SeededIds, Upload, session
import hashlib

directory, seed = Path(sys.argv[1]), sys.argv[2]
keep = Keep(directory, ids=SeededIds(seed))
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


def _kill_at_random(directory: Path, seed: str, chance: random.Random) -> list[list[str]]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(directory), seed], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(chance.uniform(0.02, 0.6))
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read()
    child.wait()
    child.stdout.close()
    lines = (first + rest).splitlines()
    return [words for line in lines if len(words := line.split()) == 4]


@pytest.mark.timeout(3600)
def test_acknowledged_puts_survive_kill_minus_nine(tmp_path: Path) -> None:
    chance = random.Random(2030)
    start = Keep(tmp_path)
    for marking in LABELS[:1]:
        S3(start.ids, BucketCommits()).create_bucket(start.call(session(marking), "CreateBucket"), {"Bucket": "bucket"})
    start.close()
    # What each key may hold: one value once acknowledged, or also the one whose acknowledgement never came.
    allowed: dict[tuple[str, str], set[str]] = {}
    acknowledged = 0
    for number in range(ROUNDS):
        for verb, marking, key, digest in _kill_at_random(tmp_path, f"round {number}", chance):
            if verb == "did":
                allowed[marking, key] = {digest}
                acknowledged += 1
            else:
                allowed.setdefault((marking, key), {"-"}).add(digest)
        keep = Keep(tmp_path, ids=SeededIds(f"check {number}"))
        keep.guard.drain_outbox()
        keep.guard.sweep_blobs()
        s3 = S3(keep.ids, BucketCommits())
        for (marking, key), digests in allowed.items():
            found = _content(keep, s3, marking, key)
            assert found in digests, f"round {number}: {marking} {key} holds {found}, expected one of {digests}"
            allowed[marking, key] = {found}
        named = sum(1 for row in keep.store.scan() if row.kind == "object")
        assert len(list(keep.blob_store.paths(""))) == named, "a crash left a blob that the sweep did not take"
        assert not any((tmp_path / "blobs" / ".incoming").iterdir())
        keep.close()
    assert acknowledged > 10 * ROUNDS


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
