"""A closed-loop client: every connection asks again as soon as it was answered.

Reads one JSON line: {"port", "request" (text), "connections", "seconds", "pids", "warm"}; prints one JSON line.
CPU is user and system time of the server's processes while requests were counted.

    python benchmarks/inference_load.py < plan.json
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def resident(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


class Asker(asyncio.Protocol):
    """One connection. Knows the end of an answer by its length, or by the last chunk."""

    def __init__(self, request: bytes, note: Any) -> None:
        self.request, self.note = request, note

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.data = b""
        self.first = 0.0
        self.begun = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.first and b"data:" in self.data:
            self.first = time.perf_counter()
        head, mark, rest = self.data.partition(b"\r\n\r\n")
        if not mark:
            return
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            if not rest.endswith(b"0\r\n\r\n"):
                return
        else:
            at = lower.find(b"content-length:")
            if len(rest) < int(lower[at + 15 :].split(b"\r\n", 1)[0]):
                return
        good = self.data[9:12] == b"200"
        self.note(good, self.begun, self.first, self.data if not good else b"")
        self.ask()


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    times: list[float] = []
    firsts: list[float] = []
    bad: list[bytes] = []
    counting = False

    def note(good: bool, begun: float, first: float, answer: bytes) -> None:
        if not good:
            bad.append(answer)
        elif counting:
            times.append(time.perf_counter() - begun)
            if first:
                firsts.append(first - begun)

    loop = asyncio.get_running_loop()
    request = plan["request"].encode()
    made = [
        (await loop.create_connection(lambda: Asker(request, note), "127.0.0.1", plan["port"]))[0]
        for _ in range(plan["connections"])
    ]
    await asyncio.sleep(plan["warm"])
    counting, before, begun = True, cpu(plan["pids"]), time.perf_counter()
    await asyncio.sleep(plan["seconds"])
    counting, after, took = False, cpu(plan["pids"]), time.perf_counter() - begun
    for transport in made:
        transport.abort()
    times.sort()
    firsts.sort()

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))] * 1000 if values else float("nan")

    return {
        "rps": len(times) / took,
        "p50_ms": at(times, 0.5),
        "p99_ms": at(times, 0.99),
        "first_ms": at(firsts, 0.5),
        "cpu_us": (after - before) / max(1, len(times)) * 1e6,
        "rss_mb": resident(plan["pids"]) / 1e6,
        "bad": len(bad),
        "example": bad[0][:300].decode("latin-1") if bad else "",
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.stdin.readline())))))
