"""A raw HTTP/1.1 client in a process of its own: a closed loop over keep-alive connections with requests made ahead.

Reads one JSON object from stdin, {host, port, ca, connections, seconds, warmup_s, rate, pids, requests: [base64 ...]},
and prints one: {requests, failures, seconds, latencies_ms: {p50, p99, max}, cpu_s, rss_bytes}. The CPU seconds are user
and system time of `pids` between the ends of the warm-up and of the measurement; signing is not in them.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that the processes have used so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of the processes, shared pages counted once for each."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


class Connection(asyncio.Protocol):
    """Sends one request after the other and notes how long each answer took."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.transport: asyncio.Transport | None = None
        self.begun = 0.0
        self.buffer = bytearray()
        self.missing = -1
        self.status = 0
        self.waiting = False
        self.closes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.next()

    def next(self) -> None:
        if self.lane.stopped or self.transport is None:
            if self.transport is not None:
                self.transport.close()
            return
        pause = self.lane.pause()
        if pause > 0:
            self.lane.loop.call_later(pause, self.send)
        else:
            self.send()

    def send(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self.begun = time.perf_counter()
        self.waiting = True
        self.transport.write(next(self.lane.requests))

    def data_received(self, data: bytes) -> None:
        if self.missing < 0:
            self.buffer += data
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            self.status = int(head[9:12])
            if self.status == 100:
                del self.buffer[: end + 4]
                self.data_received(b"")
                return
            at = head.find(b"content-length:")
            if at < 0:
                raise RuntimeError(f"an answer without a length: {head!r}")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            self.closes = b"\r\nconnection: close" in head
            self.missing = length - (len(self.buffer) - end - 4)
        else:
            self.missing -= len(data)
        if self.missing == 0:
            self.lane.done(self.begun, self.status, bytes(self.buffer[-300:]))
            self.buffer.clear()
            self.missing = -1
            self.waiting = False
            if self.closes and self.transport is not None:  # a server without keep-alive: its peer connects anew
                self.transport.close()
            else:
                self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.waiting and not self.lane.stopped:
            self.lane.lost += 1
        if not self.lane.stopped:
            self.lane.reconnect()


class Lane:
    """All connections of one measurement."""

    def __init__(self, facts: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        self.facts = facts
        self.loop = loop
        self.requests = itertools.cycle([base64.b64decode(text) for text in facts["requests"]])
        self.stopped = False
        self.latencies: list[float] = []
        self.failures = 0
        self.lost = 0
        self.example = ""
        self.context = ssl.create_default_context(cafile=facts["ca"]) if facts.get("ca") else None
        self.due = time.perf_counter()

    def pause(self) -> float:
        """Seconds until the next request may be sent, when a rate was asked for."""
        if not self.facts.get("rate"):
            return 0.0
        now = time.perf_counter()
        self.due = max(self.due + 1 / self.facts["rate"], now - 1.0)
        return self.due - now

    def done(self, begun: float, status: int, tail: bytes) -> None:
        self.latencies.append(time.perf_counter() - begun)
        if status not in (200, 204):
            self.failures += 1
            self.example = self.example or f"{status} {tail!r}"

    def reconnect(self) -> None:
        self.loop.create_task(self.connect())

    async def connect(self) -> None:
        host, port = self.facts["host"], self.facts["port"]
        name = "localhost" if self.context else None
        await self.loop.create_connection(lambda: Connection(self), host, port, ssl=self.context, server_hostname=name)


async def measure(facts: dict[str, Any]) -> dict[str, Any]:
    lane = Lane(facts, asyncio.get_running_loop())
    await asyncio.gather(*(lane.connect() for _ in range(facts["connections"])))
    await asyncio.sleep(facts["warmup_s"])
    lane.latencies.clear()
    pids = facts.get("pids") or []
    begun, cpu = time.perf_counter(), cpu_seconds(pids)
    await asyncio.sleep(facts["seconds"])
    used, took = cpu_seconds(pids) - cpu, time.perf_counter() - begun
    taken = sorted(lane.latencies)
    lane.stopped = True
    if not taken:
        raise RuntimeError("no request was answered")
    if lane.failures > facts.get("failures_allowed", 0) * len(taken):
        raise RuntimeError(f"{lane.failures} of {len(taken)} requests failed, the first with {lane.example}")
    return {
        "requests": len(taken),
        "failures": lane.failures,
        "lost": lane.lost,
        "seconds": took,
        "latencies_ms": {
            "p50": taken[len(taken) // 2] * 1000,
            "p99": taken[int(len(taken) * 0.99)] * 1000,
            "max": taken[-1] * 1000,
        },
        "cpu_s": used,
        "rss_bytes": resident_bytes(pids),
    }


def main() -> None:
    import uvloop

    facts = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(facts))))


if __name__ == "__main__":
    main()
