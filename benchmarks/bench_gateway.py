"""honmaru's gateway beside moto_server: the same requests, in one go, on the same machine.

honmaru checks signatures, IAM and labels, writes every request to its ledger before it answers, and keeps its state on
disk; it runs with TLS off, with TLS on, and with TLS off and several workers (CPU and memory then are those of all of
its processes). moto_server checks nothing and keeps everything in memory. The client is a
raw keep-alive client in a process of its own (`gateway_client.py`), its requests are signed ahead. CPU is user and
system time of the server's process, every thread of it. moto_server ends each connection after one answer, so its
client connects anew each time; that is left out of nothing, for its users pay it too.

    python benchmarks/bench_gateway.py [--seconds S] [--directory DIR] [--only NAME] [--soak S] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway_client import resident_bytes
from gateway_requests import OPERATIONS, Operation, Site, lay_out

from honmaru.testing.enclaves import LiveEnclave

HERE = Path(__file__).resolve().parent
MOTO = HERE.parent / ".venv-peers" / "gateway" / "bin" / "moto_server"
AIM_CPU_MS, AIM_TIMES, AIM_RSS_MB = 0.4, 5.0, 150


def descendants(pid: int) -> tuple[int, ...]:
    """A process and its child processes (the workers of an enclave), by now."""
    found = [pid]
    for other in Path("/proc").iterdir():
        if other.name.isdecimal():
            try:
                parent = int((other / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found.append(int(other.name))
    return tuple(found)


@contextmanager
def honmaru(directory: Path, *, tls: bool, extra: tuple[str, ...]) -> Iterator[Site]:
    enclave = LiveEnclave(directory, "us-gov-west-1", http=not tls).up(*extra)
    try:
        keys = enclave.credentials()
        workers = extra[extra.index("--workers") + 1] if "--workers" in extra else ""
        yield Site(
            f"honmaru {'TLS' if tls else 'http'}{f' ×{workers}' if workers else ''}",
            enclave.endpoint,
            enclave.region,
            keys["access_key_id"],
            keys["secret_access_key"],
            descendants(enclave.pid),
            enclave.facts["ca"] or None,
        )
    finally:
        enclave.down()


@contextmanager
def moto() -> Iterator[Site]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(MOTO), "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("moto_server does not start") from None
                time.sleep(0.1)
        yield Site("moto http", f"http://127.0.0.1:{port}", "us-gov-west-1", "AKIA" + "A" * 16, "s" * 40, (server.pid,))
    finally:
        server.terminate()
        server.wait(10)


def measure(site: Site, operation: Operation, seconds: float, *, connections: int = 0, **more: Any) -> dict[str, Any]:
    """One row: requests made now, driven from a process of its own."""
    facts = {
        "host": "127.0.0.1",
        "port": site.port,
        "ca": site.ca,
        "connections": connections or operation.connections,
        "seconds": seconds,
        "warmup_s": min(1.0, seconds / 2),
        "pids": site.pids,
        "requests": operation.requests(site),
        **more,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "gateway_client.py")], input=json.dumps(facts), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{site.name}, {operation.name}: {done.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(done.stdout)
    row["cpu_ms"] = row["cpu_s"] * 1000 / row["requests"]
    row["per_s"] = row["requests"] / row["seconds"]
    row["per_core"] = row["requests"] / row["cpu_s"] if row["cpu_s"] else float("inf")
    return row


def show(site: Site, operation: Operation, row: dict[str, Any]) -> None:
    waits = row["latencies_ms"]
    print(
        f"{operation.name:<32}{site.name:<14}{row['cpu_ms']:>8.3f}{row['per_s']:>10,.0f}{row['per_core']:>11,.0f}"
        f"{waits['p50']:>9.2f}{waits['p99']:>9.2f}{row['rss_bytes'] / 1e6:>9.0f}",
        flush=True,
    )


def soak(site: Site, seconds: float, rate: float) -> str:
    """Mixed operations for `seconds`, resident memory along the way. Returns the summary."""
    wanted = [operation for operation in OPERATIONS if operation.pool > 8]
    sizes: list[float] = []
    begun = time.monotonic()
    count = 0
    print(f"\nsoak of {seconds:.0f} s on {site.name}: seconds, requests, resident MB")
    while time.monotonic() - begun < seconds:
        for operation in wanted:
            count += measure(site, operation, min(5.0, seconds / 10), rate=rate)["requests"]
        sizes.append(resident_bytes(list(site.pids)) / 1e6)
        print(f"{time.monotonic() - begun:>8.0f}{count:>12,}{sizes[-1]:>9.1f}", flush=True)
    settled = sizes[max(1, len(sizes) // 5) :] or sizes
    return (
        f"soak {seconds:.0f} s, {count:,} requests: {settled[0]:.0f} → {settled[-1]:.0f} MB after the first fifth, "
        f"highest {max(sizes):.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement (default 4)")
    parser.add_argument("--directory", type=Path, help="where to write (default: beside this file's repository)")
    parser.add_argument("--only", default="", help="only operations and servers with this text in their name")
    parser.add_argument("--soak", type=float, default=0.0, metavar="S", help="afterwards, mixed requests for S seconds")
    parser.add_argument(
        "--soak-rate", type=float, default=0.0, metavar="N", help="requests/s of the soak (0: all it can)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the third run (default 2; 0: none)")
    parser.add_argument("--no-moto", action="store_true", help="leave moto_server out")
    parser.add_argument("--no-tls", action="store_true", help="leave honmaru with TLS out")
    arguments = parser.parse_args()
    if not arguments.no_moto and not MOTO.exists():
        sys.exit("moto_server is not installed: make bench-gateway, or scripts/install-peers gateway")
    root = Path(tempfile.mkdtemp(prefix=".bench-gateway-", dir=arguments.directory or HERE.parent))
    try:
        run(root, arguments)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(root: Path, arguments: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.2f} before the start; {arguments.seconds:.0f} s a row\n")
    print(f"{'':<46}{'CPU ms':>8}{'requests':>10}{'requests':>11}{'p50':>9}{'p99':>9}{'resident':>9}")
    print(f"{'operation':<32}{'server':<14}{'/request':>8}{'/s':>10}{'/CPU s':>11}{'ms':>9}{'ms':>9}{'MB':>9}")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    at_start: dict[str, float] = {}
    soaked = ""
    makers: list[Any] = [lambda: honmaru(root / "http", tls=False, extra=())]
    if not arguments.no_tls:
        makers.append(lambda: honmaru(root / "tls", tls=True, extra=()))
    if arguments.workers:
        beside = ("--workers", str(arguments.workers))
        makers.append(lambda: honmaru(root / "workers", tls=False, extra=beside))
    if not arguments.no_moto:
        makers.append(moto)
    for make in makers:
        with make() as site:
            lay_out(site)
            at_start[site.name] = resident_bytes(list(site.pids)) / 1e6
            for operation in OPERATIONS:
                if arguments.only in operation.name:
                    row = rows[operation.name, site.name] = measure(site, operation, arguments.seconds)
                    show(site, operation, row)
            if arguments.soak and site.name == "honmaru http":
                soaked = soak(site, arguments.soak, arguments.soak_rate)
        print()
    conclude(rows, at_start, soaked)


def conclude(rows: dict[tuple[str, str], dict[str, Any]], at_start: dict[str, float], soaked: str) -> None:
    """Ratios, then one line."""
    times: list[float] = []
    for operation in OPERATIONS:
        ours, peer = rows.get((operation.name, "honmaru http")), rows.get((operation.name, "moto http"))
        if ours is None or peer is None:
            continue
        times.append(ours["per_core"] / peer["per_core"])
        secure = rows.get((operation.name, "honmaru TLS"))
        beside = f", with TLS {secure['per_core'] / peer['per_core']:.1f}" if secure else ""
        print(
            f"{operation.name:<32} honmaru/moto: requests per CPU second {times[-1]:.1f}{beside}, "
            f"requests/s {ours['per_s'] / peer['per_s']:.1f}"
        )
    for (name, site), row in rows.items():
        alone = rows.get((name, "honmaru http"))
        if "×" in site and alone is not None:
            print(f"{name:<32} {site.rpartition('×')[2]} workers/1: requests/s {row['per_s'] / alone['per_s']:.2f}")
    print(f"resident after the layout: {', '.join(f'{name} {size:.0f} MB' for name, size in at_start.items())}")
    if soaked:
        print(soaked)
    simple = [row["cpu_ms"] for (name, site), row in rows.items() if site == "honmaru http" for o in OPERATIONS
              if o.simple and o.name == name]  # fmt: skip
    secure = [row["cpu_ms"] for (name, site), row in rows.items() if site == "honmaru TLS" for o in OPERATIONS
              if o.simple and o.name == name]  # fmt: skip
    sizes = [row["rss_bytes"] / 1e6 for (_, site), row in rows.items() if site in ("honmaru http", "honmaru TLS")]
    parts = []
    if simple:
        parts.append(f"simple requests {min(simple):.2f} to {max(simple):.2f} ms CPU (aim {AIM_CPU_MS})")
    if secure:
        parts.append(f"with TLS {min(secure):.2f} to {max(secure):.2f}")
    if times:
        parts.append(f"{min(times):.1f} to {max(times):.1f} × moto's requests per core (aim {AIM_TIMES:.0f})")
    if sizes:
        parts.append(f"at most {max(sizes):.0f} MB resident (aim {AIM_RSS_MB})")
    print(f"\nsummary: {'; '.join(parts)}; load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
