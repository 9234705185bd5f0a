"""`kill -9` during rotation, deletion and re-wrapping of keys never loses a key that protects live data.

A child process makes keys, seals with them, rotates them, destroys some, rotates the root key, and acknowledges each
step on a pipe; the parent kills it at a random moment, opens the same directory, and compares. Few rounds by default,
200 with HONMARU_LONG=1. The sabotage takes the old root key away before its keys are sealed under the next one; the
same comparison must find that.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from honmaru.core.errors import HonmaruError
from honmaru.services.kms import Kms, Vault
from honmaru.testing.keep import Keep, SeededIds, session

ROUNDS = 200 if os.environ.get("HONMARU_LONG") == "1" else 2
LABELS = ("UNCLASSIFIED", "SECRET")

CHILD = """
import random, sys, threading
from pathlib import Path
from honmaru.services.kms import Custodian, Kms, Vault
from honmaru.testing.keep import Keep, SeededIds, session

directory, seed = Path(sys.argv[1]), sys.argv[2]
keep = Keep(directory, ids=SeededIds(seed))
vault = Vault(keep.keyring, keep.ids)
kms = Kms(vault, keep.ledger)
custodian = Custodian(keep.guard, vault, keep.ledger, keep.clock, keep.ids, partition="aws-iso", region="us-iso-east-1")
lock = threading.Lock()

def acknowledge(*words):
    with lock:
        print(*words, flush=True)

def do(who, operation, **request):
    return getattr(kms, operation)(keep.call(who, operation, service="kms"), request)

def work(marking):
    chance = random.Random(f"{seed}{marking}")
    who = session(marking)
    keys = []
    while True:
        step = chance.random()
        if step < 0.3 or not keys:
            key = do(who, "create_key")["KeyMetadata"]["KeyId"]
            do(who, "enable_key_rotation", KeyId=key, RotationPeriodInDays=90)
            keys.append(key)
        key = chance.choice(keys)
        if step < 0.75:
            blob = do(who, "encrypt", KeyId=key, Plaintext=key.encode())["CiphertextBlob"]
            acknowledge("live", marking, key, blob.hex())
        elif step < 0.9:
            do(who, "rotate_key_on_demand", KeyId=key) if len(keys) < 20 else None
            acknowledge("did", marking, key, "rotated")
        elif len(keys) > 2:
            keys.remove(key)
            acknowledge("try", marking, key, "destroy")
            do(who, "schedule_key_deletion", KeyId=key, PendingWindowInDays=7)

def background():
    while True:
        keep.clock.seconds += 8 * 86400
        custodian.step()
        acknowledge("did", "-", "-", "custody")
        keep.keyring.rotate()
        acknowledge("did", "-", "-", "root")

for marking in ("UNCLASSIFIED", "SECRET"):
    threading.Thread(target=work, args=(marking,), daemon=True).start()
background()
"""
SABOTAGE = CHILD.replace(
    "kms = Kms(vault, keep.ledger)",
    "kms = Kms(vault, keep.ledger)\nfrom honmaru.security.crypto.root_key import RootKey\n"
    "real = RootKey.begin\n"
    "def begin(self):\n"
    "    made = real(self)\n"
    "    (self._directory / 'root.key').write_bytes(made)\n"
    "    return made\n"
    "RootKey.begin = begin\n",
)


def _kill_at_random(script: str, directory: Path, seed: str, chance: random.Random) -> list[list[str]]:
    child = subprocess.Popen([sys.executable, "-c", script, str(directory), seed], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines: list[str] = []
    wanted = chance.randrange(3, 60)
    while wanted:
        line = child.stdout.readline()
        if not line:
            break  # the sabotage makes the child fail by itself
        lines.append(line)
        wanted -= 1
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    return [words for line in lines if len(words := line.split()) == 4]


def _first_loss(script: str, directory: Path, rounds: int) -> str | None:
    """What was lost over some rounds of killing; None when all is well."""
    chance = random.Random(2031)
    directory.mkdir(mode=0o700)
    live: list[tuple[str, str, bytes]] = []
    doomed: set[str] = set()
    for number in range(rounds):
        for verb, marking, key, what in _kill_at_random(script, directory, f"s{number}", chance):
            if verb == "live":
                live.append((marking, key, bytes.fromhex(what)))
            elif verb == "try":
                doomed.add(key)
        keep = Keep(directory, ids=SeededIds(f"check{number}"))
        try:
            loss = _lost(keep, live, doomed)
        finally:
            keep.close()
        if loss is not None:
            return f"round {number}: {loss}"
    return None if len(live) > rounds else "the child did next to nothing"


def _lost(keep: Keep, live: list[tuple[str, str, bytes]], doomed: set[str]) -> str | None:
    kms = Kms(Vault(keep.keyring, keep.ids), keep.ledger)
    for marking, key, blob in live:
        if key in doomed:
            continue
        call = keep.call(session(marking), "decrypt", service="kms")
        try:
            opened = kms.decrypt(call, {"CiphertextBlob": blob})
        except HonmaruError as fault:
            return f"{key} at {marking} no longer opens what it sealed: {fault.code or fault}"
        if opened["Plaintext"] != key.encode():
            return f"{key} opened something else"
    for marking in LABELS:
        records = keep.guard.records(session(marking), "kms")
        stated = {f"{key.name}/{one['id']}" for key in records.iterate("key") for one in key.body["materials"]}
        stored = {record.name for record in records.iterate("material")}
        if stated != stored:
            return f"at {marking} keys and materials differ: {sorted(stated ^ stored)[:3]}"
    return None


def test_no_key_of_live_data_is_lost(tmp_path: Path) -> None:
    assert _first_loss(CHILD, tmp_path / "data", ROUNDS) is None


def test_the_comparison_finds_a_lost_root_key(tmp_path: Path) -> None:
    try:
        loss = _first_loss(SABOTAGE, tmp_path / "data", 12)
    except HonmaruError as fault:
        loss = str(fault)
    assert loss is not None
