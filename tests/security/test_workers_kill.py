"""`kill -9` of a worker, and of the first process, under load: nothing acknowledged is lost, no entry lost or doubled.

Clients put, replace, copy and delete objects over both workers while one worker after the other is killed. Afterwards
every acknowledged object has its bytes, on disk lie the blobs of what lists show and no others, the ledger verifies
offline, each event id is in it once, and every record in the database is as its newest entry says. One kill by default,
20 with HONMARU_LONG=1. The sabotage takes an entry out of what was read: the same comparison must find that.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from honmaru.app.run_files import running_pid
from honmaru.app.runtime import SystemClock
from honmaru.security.ledger import Ledger
from honmaru.testing.enclaves import LiveEnclave
from honmaru.testing.lines import Line, lines, workers

LONG = os.environ.get("HONMARU_LONG") == "1"
KILLS = 20 if LONG else 1
CLIENTS = 3
GONE = "-"
WHO = "Action=GetCallerIdentity&Version=2011-06-15"


class Client(threading.Thread):
    """Writes keys of its own until told to stop; knows what each of them may hold."""

    def __init__(self, enclave: LiveEnclave, number: int, leave: threading.Event) -> None:
        super().__init__(daemon=True)
        self._enclave, self._number, self._leave = enclave, number, leave
        self._chance = random.Random(number)
        self.allowed: dict[str, set[str]] = {}
        self.acknowledged = 0

    def run(self) -> None:
        s3: Any = None
        while not self._leave.is_set():
            # A client that keeps its connections would stay with one worker.
            if s3 is None or self._chance.random() < 0.1:
                s3 = self._enclave.client("s3", read_timeout=20, retries={"total_max_attempts": 1})
            try:
                self._write(s3)
            except (BotoCoreError, ClientError):
                s3 = None  # the worker died under it: that write was not acknowledged
                time.sleep(0.01)

    def _write(self, s3: Any) -> None:
        key = f"{self._number}/{self._chance.randrange(8)}"
        place = {"Bucket": "bucket", "Key": key}
        if self._chance.random() < 0.2:
            self.allowed.setdefault(key, {GONE}).add(GONE)
            s3.delete_object(**place)
            self.allowed[key] = {GONE}
        else:
            content = self._chance.randbytes(self._chance.choice((0, 100, 70_000)))
            digest = hashlib.sha256(content).hexdigest()
            self.allowed.setdefault(key, {GONE}).add(digest)
            s3.put_object(**place, Body=content)
            self.allowed[key] = {digest}
        self.acknowledged += 1

    def losses(self, s3: Any) -> Iterator[str]:
        for key, digests in self.allowed.items():
            try:
                found = hashlib.sha256(s3.get_object(Bucket="bucket", Key=key)["Body"].read()).hexdigest()
            except ClientError as fault:
                found = GONE if fault.response["Error"]["Code"] == "NoSuchKey" else str(fault)
            if found not in digests:
                yield f"{key} holds {found}, expected one of {sorted(digests)}"


def entries_of(data: Path) -> list[dict[str, Any]]:
    """Every entry of a ledger that nobody writes."""
    ledger = Ledger(data / "ledger", heads=data / "keys" / "ledger", clock=SystemClock(), secret=os.urandom)
    try:
        return [entry for label in ledger.labels() for entry in ledger.entries(label)]
    finally:
        ledger.close()


def unaccounted(data: Path, entries: list[dict[str, Any]]) -> list[str]:
    """What is wrong between the database and the ledger: entries twice, records whose newest change has no entry."""
    times = Counter(entry["eventID"] for entry in entries)
    wrong = [f"{event} is there {count} times" for event, count in times.items() if count > 1]
    digests = {entry["honmaru"].get("bodyDigest") for entry in entries}
    with sqlite3.connect(data / "records.sqlite") as database:
        for kind, name, body in database.execute("SELECT kind, name, body FROM records"):
            if hashlib.sha384(body).hexdigest() not in digests:
                wrong.append(f"the newest change of {kind} {name} has no entry")
    return wrong


def verified(data: Path) -> bool:
    command = [sys.executable, "-m", "honmaru", "ledger", "verify", "--data", str(data)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0


@pytest.mark.timeout(1800)
def test_a_killed_worker_loses_nothing_and_another_takes_its_place(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path / "e", http=True).up("--workers", "2")
    try:
        live.client("s3").create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": live.region})
        leave = threading.Event()
        clients = [Client(live, number, leave) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        chance = random.Random(7)
        for number in range(KILLS):
            wanted = sum(client.acknowledged for client in clients) + 40
            while sum(client.acknowledged for client in clients) < wanted:
                time.sleep(0.005)
            victim, survivor = chance.sample(workers(live), 2)
            os.kill(victim["pid"], signal.SIGKILL)
            assert survivor in workers(live, restarts=number + 1), "the other one was not touched"
        leave.set()
        for client in clients:
            client.join(60)
        s3 = live.client("s3")
        assert [loss for client in clients for loss in client.losses(s3)] == []
        shown = s3.list_objects_v2(Bucket="bucket")["KeyCount"]
        pids = [worker["pid"] for worker in workers(live)]
    finally:
        live.down()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "`down` stops the workers too"
    assert verified(live.data)
    entries = entries_of(live.data)
    assert unaccounted(live.data, entries) == []
    changes = [entry for entry in entries if entry["honmaru"].get("bodyDigest")]
    assert len(unaccounted(live.data, [*entries, changes[0]])) == 1, "the sabotage: an entry twice"
    with sqlite3.connect(live.data / "records.sqlite") as database:
        ((body,),) = database.execute("SELECT body FROM records LIMIT 1").fetchall()
    digest = hashlib.sha384(body).hexdigest()
    without = [entry for entry in entries if entry["honmaru"].get("bodyDigest") != digest]
    assert len(unaccounted(live.data, without)) == 1, "the sabotage: an entry lost"
    if not LONG:
        return
    # The next start's sweep frees what the dead worker had not finished.
    live.up()
    try:
        until = time.monotonic() + 20
        while (found := sum(1 for path in (live.data / "blobs").rglob("*") if path.is_file())) != shown:
            assert time.monotonic() < until, f"{found} blobs on disk, {shown} objects"
            time.sleep(0.05)
    finally:
        live.down()


@pytest.mark.timeout(600)
def test_workers_end_with_the_first_process_and_a_new_start_finds_everything(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path / "e", http=True).up("--workers", "2")
    try:
        s3 = live.client("s3")
        s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": live.region})
        leave = threading.Event()
        client = Client(live, 1, leave)
        client.start()
        while client.acknowledged < 40:
            time.sleep(0.005)
        pids = [worker["pid"] for worker in workers(live)]
        live.kill()
        leave.set()
        until = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < until, "a worker outlives the process that writes its entries"
            time.sleep(0.02)
        client.join(60)
        live.up("--workers", "2")
        assert list(client.losses(live.client("s3"))) == []
        second = subprocess.run(
            [sys.executable, "-m", "honmaru", "status", "--json", "--data", str(live.data)],
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert [worker["answers"] for worker in json.loads(second.stdout)["workers"]] == [True, True]
    finally:
        live.down()
    assert running_pid(live.data) is None
    assert verified(live.data)


@pytest.mark.long
@pytest.mark.skipif(not LONG, reason="set HONMARU_LONG=1")
def test_a_rate_is_one_for_all_workers(tmp_path: Path) -> None:
    live = LiveEnclave(tmp_path / "e", http=True).up("--workers", "2", "--principal-rate", "5")
    try:
        admin = live.credentials()
        both = lines(live)
        statuses: list[int] = []

        def flood(line: Line) -> None:
            statuses.extend(line.form(admin, "sts", WHO)[0] for _ in range(40))

        begun = time.monotonic()
        threads = [threading.Thread(target=flood, args=(line,)) for line in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        allowed = 10 + 5 * (time.monotonic() - begun) + 1  # the burst of two seconds, and what came back meanwhile
        assert 10 <= statuses.count(200) <= allowed
    finally:
        live.down()
