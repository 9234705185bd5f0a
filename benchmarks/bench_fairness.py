"""Does one tenant that floods hurt another, and do connections that do nothing hurt anybody?

A quiet tenant asks at a steady pace. Its p99 is measured alone, beside a tenant that floods with `--flooders`
connections in closed loops, beside a stranger that floods with signatures that do not verify, and beside `--idle`
connections that say nothing, or one byte of a header now and then. The aim: within twice its quiet value. Each pair is
measured in turn several times and the medians are compared, because the machine has other noise too.

    python benchmarks/bench_fairness.py [--seconds S] [--rounds N] [--flooders N] [--idle N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_gateway import HERE, honmaru
from gateway_client import resident_bytes
from gateway_requests import Site, describe, get, identity, lay_out, put

OPERATIONS: dict[str, tuple[Callable[[Site, int], str], int]] = {
    "GetCallerIdentity": (identity, 16),
    "DescribeTrainingJob": (describe, 16),
    "GetObject 1 KiB": (get("1k"), 16),
    "PutObject 1 KiB": (put(1024, "fair"), 16),
}
AIM = 2.0


def facts(site: Site, make: Callable[[Site, int], str], pool: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": site.port,
        "ca": site.ca,
        "seconds": seconds,
        "warmup_s": 0.3,
        "pids": [],
        "requests": [make(site, number) for number in range(pool)],
        **more,
    }


def drive(what: dict[str, Any]) -> subprocess.Popen[str]:
    client = subprocess.Popen(
        [sys.executable, str(HERE / "gateway_client.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None
    client.stdin.write(json.dumps(what))
    client.stdin.close()
    return client


def result(client: subprocess.Popen[str]) -> dict[str, Any]:
    assert client.stdout is not None and client.stderr is not None
    out, errors = client.stdout.read(), client.stderr.read()
    if client.wait():
        raise RuntimeError(errors.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(out)
    return found


def quiet(site: Site, name: str, seconds: float) -> dict[str, Any]:
    """The quiet tenant: two connections, 40 requests a second."""
    make, pool = OPERATIONS[name]
    return result(drive(facts(site, make, pool, seconds, connections=2, rate=40)))


@contextmanager
def flood(site: Site, name: str, connections: int, seconds: float, failures: float = 0.0) -> Iterator[None]:
    make, pool = OPERATIONS[name]
    client = drive(facts(site, make, pool, seconds + 1.5, connections=connections, failures_allowed=failures))
    time.sleep(1.0)
    try:
        yield
    finally:
        row = result(client)
        flood.last = row["requests"] / row["seconds"]  # type: ignore[attr-defined]


@contextmanager
def idlers(site: Site, count: int) -> Iterator[None]:
    """Connections that say nothing, half of them one byte of a header a second."""
    code = (
        "import socket, sys, time\n"
        "port, count = int(sys.argv[1]), int(sys.argv[2])\n"
        "held = []\n"
        "def one():\n"
        "    s = socket.create_connection(('127.0.0.1', port)); s.setblocking(False); held.append(s)\n"
        "for _ in range(count): one()\n"
        "print('ready', flush=True)\n"
        "at = 0\n"
        "while True:\n"
        "    for _ in range(max(1, len(held) // 200)):\n"
        "        at = (at + 2) % len(held)\n"
        "        try:\n"
        "            held[at].send(b'G')\n"
        "            if held[at].recv(1) == b'': raise OSError\n"
        "        except BlockingIOError: pass\n"
        "        except OSError:\n"
        "            held[at].close(); held[at] = socket.create_connection(('127.0.0.1', port))\n"
        "            held[at].setblocking(False)\n"
        "    time.sleep(0.01)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code, str(site.port), str(count)], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    if client.stdout.readline().strip() != "ready":
        raise RuntimeError("the idle connections could not be opened")
    try:
        yield
    finally:
        client.kill()
        client.wait()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def compare(label: str, site: Site, name: str, seconds: float, rounds: int, beside: Callable[[], Any]) -> float:
    """p99 of the quiet tenant alone and beside something, in turn; prints medians and gives the ratio."""
    alone, beset, rates = [], [], []
    for _ in range(rounds):
        alone.append(quiet(site, name, seconds)["latencies_ms"])
        flood.last = 0.0  # type: ignore[attr-defined]
        with beside():
            beset.append(quiet(site, name, seconds)["latencies_ms"])
        rates.append(flood.last)  # type: ignore[attr-defined]
    before, after = (statistics.median(row["p99"] for row in rows) for rows in (alone, beset))
    middle, later = (statistics.median(row["p50"] for row in rows) for rows in (alone, beset))
    ratio = after / before
    flooded = f", flood {statistics.median(rates):,.0f}/s" if any(rates) else ""
    print(
        f"{label:<52}{name:<22}p50 {middle:6.2f} → {later:6.2f} ms   p99 {before:6.2f} → {after:6.2f} ms"
        f"   {ratio:4.1f} ×{flooded}",
        flush=True,
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flooders", type=int, default=64, help="connections of the tenant that floods (default 64)")
    parser.add_argument("--idle", type=int, default=10_000, help="connections that do nothing (default 10,000)")
    parser.add_argument("--directory", type=Path, help="where to write (default: beside this file's repository)")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    root = Path(tempfile.mkdtemp(prefix=".bench-fairness-", dir=arguments.directory or HERE.parent))
    try:
        run(root, arguments)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(root: Path, arguments: argparse.Namespace) -> None:
    seconds, rounds = arguments.seconds, arguments.rounds
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} before the start; medians of {rounds} rounds")
    with honmaru(root / "data", tls=False, extra=()) as site:
        lay_out(site)
        other = tenant(root / "data", site)
        stranger = replace(site, secret_key="x" * 40)
        ratios = []
        for name in OPERATIONS:
            ratios.append(
                compare(
                    f"one tenant floods, {arguments.flooders} connections", site, name, seconds, rounds,
                    lambda name=name: flood(other, name, arguments.flooders, seconds),
                )
            )  # fmt: skip
        ratios.append(
            compare(
                f"bad signatures, {arguments.flooders} connections", site, "GetCallerIdentity", seconds, rounds,
                lambda: flood(stranger, "GetCallerIdentity", arguments.flooders, seconds, 2.0),
            )
        )  # fmt: skip
        before = resident_bytes(list(site.pids)) / 1e6
        held: list[float] = []

        @contextmanager
        def idle() -> Iterator[None]:
            with idlers(site, arguments.idle):
                yield
                held.append(resident_bytes(list(site.pids)) / 1e6)

        ratios.append(
            compare(f"{arguments.idle:,} idle and slow connections", site, "GetCallerIdentity", seconds, 1, idle)
        )
        with socket.create_connection(("127.0.0.1", site.port), timeout=5) as late:
            late.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            served = late.recv(64).startswith(b"HTTP/1.1 200")
    print(
        f"\nsummary: p99 of the quiet tenant at most {max(ratios):.1f} × its quiet value (aim {AIM:.0f}); "
        f"{arguments.idle:,} idle connections: {before:.0f} → {max(held):.0f} MB resident, "
        f"a new one {'is' if served else 'IS NOT'} served; load {os.getloadavg()[0]:.1f} at the end"
    )


def tenant(data: Path, site: Site) -> Site:
    """Another person with keys of its own."""
    from honmaru.app.operator import ask

    ask(data, "CreateUser", name="flooder", clearance="UNCLASSIFIED", policies=["AdministratorAccess"])
    keys = ask(data, "GetCredentials", user="flooder", label="")
    return replace(site, access_key=keys["access_key_id"], secret_key=keys["secret_access_key"])


if __name__ == "__main__":
    main()
