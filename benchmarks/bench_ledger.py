"""Durable ledger appends per second and verify time, beside plain alternatives in the same run on the same disk.

Every figure counts entries whose caller was told that they are on disk. The peers do what one would write without a
ledger: an fsync per entry on a hash chain, the same chain with group commit and no proofs, and SQLite WAL with
synchronous=FULL, one transaction an entry.

    python benchmarks/bench_ledger.py [--seconds S] [--producers N] [--directory DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from honmaru.app.runtime import SystemClock
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.ledger import Ledger, Receipt
from honmaru.security.ledger.entries import api_call
from honmaru.security.ledger.ledger import encode
from honmaru.security.ledger.reading import StoredLog
from honmaru.security.ledger.verify import check_proof, verify

ALICE = "arn:aws-iso-b:iam::123456789012:user/alice"
SESSION = Session(
    "123456789012", "aws-iso-b", "us-isob-east-1", ALICE, "AIDAX", "user", BOTTOM, ALICE, access_key_id="AKIAEXAMPLE"
)
DIGEST = "0" * 96


def entry(number: int) -> dict[str, object]:
    """An entry as the gateway writes it: about 1.2 kB."""
    return api_call(
        event_id=f"event-{number:012d}", session=SESSION, service="s3", event_source="s3.amazonaws.com",
        operation="PutObject", request_id=f"request-{number}", at=SystemClock().now(), decision="Allow",
        resources=[("arn:aws-iso-b:s3:::corpus/text/part-0001.txt", "AWS::S3::Object")], request_digest=DIGEST,
        response_digest=DIGEST, source_ip="127.0.0.1", user_agent="Boto3/1.44 md/Botocore#1.44 lang/python#3.11",
        region="us-isob-east-1", account="123456789012", read_only=False,
    )  # fmt: skip


def ledger_rate(ledger: Ledger, producers: int, seconds: float, window: int) -> float:
    """`producers` threads, each with up to `window` appends in flight, as concurrent requests have."""
    counts = [0] * producers
    stop = time.perf_counter() + seconds
    made = [entry(number) for number in range(256)]

    def produce(which: int) -> None:
        waiting: list[Future[Receipt]] = []
        while time.perf_counter() < stop:
            waiting.append(ledger.append(BOTTOM, made[counts[which] % 256]))
            if len(waiting) == window:
                for future in waiting:
                    future.result()
                counts[which] += len(waiting)
                waiting.clear()
        for future in waiting:
            future.result()
        counts[which] += len(waiting)

    threads = [threading.Thread(target=produce, args=(which,)) for which in range(producers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def lone_latencies(ledger: Ledger, count: int) -> list[float]:
    """Milliseconds from append to durable, one at a time, a pause between them."""
    waits = []
    for number in range(count):
        made = entry(number)
        started = time.perf_counter()
        ledger.append(Label.parse("SECRET"), made).result()
        waits.append((time.perf_counter() - started) * 1000)
        time.sleep(0.002)
    return sorted(waits)


def chain_rate(directory: Path, seconds: float) -> float:
    """A hash chain in a plain file, one fsync an entry."""
    made = [encode(entry(number)) for number in range(256)]
    head, count, stop = b"", 0, time.perf_counter() + seconds
    with (directory / "chain").open("ab", buffering=0) as file:
        while time.perf_counter() < stop:
            head = hashlib.sha384(head + made[count % 256]).digest()
            file.write(head + made[count % 256] + b"\n")
            os.fsync(file.fileno())
            count += 1
    return count / seconds


def sqlite_rate(directory: Path, seconds: float) -> float:
    """A hash chain in SQLite, WAL, synchronous=FULL, one transaction an entry."""
    made = [encode(entry(number)) for number in range(256)]
    base = sqlite3.connect(directory / "chain.sqlite", isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, head BLOB, entry BLOB)")
    head, count, stop = b"", 0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        head = hashlib.sha384(head + made[count % 256]).digest()
        base.execute("INSERT INTO log (head, entry) VALUES (?, ?)", (head, made[count % 256]))
        count += 1
    base.close()
    return count / seconds


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement (default 3)")
    parser.add_argument("--producers", type=int, default=8)
    parser.add_argument("--window", type=int, default=64, help="appends in flight per producer (default 64)")
    parser.add_argument("--directory", type=Path, help="where to write (default: beside this file's repository)")
    arguments = parser.parse_args()
    parent = arguments.directory or Path(__file__).resolve().parents[1]
    root = Path(tempfile.mkdtemp(prefix=".bench-ledger-", dir=parent))
    try:
        run(root, arguments)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(root: Path, arguments: argparse.Namespace) -> None:
    seconds = arguments.seconds
    print(f"entries of {len(encode(entry(0)))} bytes; {os.cpu_count()} cores; {seconds:.0f} s a measurement\n")
    chain, sqlite = chain_rate(root, seconds), sqlite_rate(root, seconds)
    ledger = Ledger(root / "ledger", clock=SystemClock(), secret=os.urandom)
    lone = lone_latencies(ledger, 300)
    rates = [ledger_rate(ledger, arguments.producers, seconds, arguments.window) for _ in range(3)]
    rate = statistics.median(rates)
    entries = ledger.size(BOTTOM)
    proving = timed(lambda: ledger.inclusion_proof(BOTTOM, entries // 3))
    closing = timed(ledger.close)
    reports: list[bool] = []
    verifying = timed(lambda: reports.append(verify(root / "ledger").ok))
    opening = timed(lambda: Ledger(root / "ledger", clock=SystemClock(), secret=os.urandom).close())
    stored = StoredLog(root / "ledger" / BOTTOM.token)
    proof = stored.inclusion_proof(entries // 3).document()
    checking = timed(lambda: check_proof(proof))

    rows = [
        (
            f"honmaru ledger, {arguments.producers} producers × {arguments.window} in flight",
            f"{rate:>10,.0f} appends/s",
        ),
        ("   the three runs", "  ".join(f"{value:,.0f}" for value in rates)),
        ("peer: hash chain, one fsync an entry", f"{chain:>10,.0f} appends/s"),
        ("peer: hash chain in SQLite WAL FULL, one entry a transaction", f"{sqlite:>10,.0f} appends/s"),
        (
            "lone append, durable: p50, p95, p99",
            "  ".join(f"{lone[int(len(lone) * share)]:.2f} ms" for share in (0.5, 0.95, 0.99)),
        ),
        (f"inclusion proof among {entries:,}", f"{proving * 1000:>10.1f} ms"),
        ("   checking it", f"{checking * 1000:>10.1f} ms"),
        ("close, with the last checkpoint", f"{closing * 1000:>10.1f} ms"),
        ("open again, recovering", f"{opening * 1000:>10.1f} ms"),
        (
            f"verify all {entries:,} entries offline, both trees ({'ok' if reports[0] else 'FOUND SOMETHING'})",
            f"{verifying:>10.2f} s",
        ),
        ("   entries verified", f"{entries / verifying:>10,.0f} /s"),
    ]
    for name, value in rows:
        print(f"{name:<72} {value}")
    print(
        f"\nsummary: {rate:,.0f} durable appends/s = {rate / chain:.1f} × fsync chain, "
        f"{rate / sqlite:.1f} × SQLite WAL FULL; verify {entries / verifying:,.0f} entries/s"
    )


if __name__ == "__main__":
    main()
