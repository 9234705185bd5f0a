"""StartLiveTail: events as they arrive, as an event stream.

Invariants:
- A session sees what its label dominates, at every moment of the tail, and nothing that arrived before it began.
- An update comes once a second, with at most 500 events; when there were more, it says that it is a sample.
- A tail ends after three hours with SessionTimeoutException, and when its groups are all gone.

Source: Amazon CloudWatch Logs API reference, StartLiveTail.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from honmaru.core.errors import HonmaruError, QuotaExceeded
from honmaru.ports.runtime import Clock
from honmaru.security.calls import Call
from honmaru.services.logs.finding import Request, find_group, invalid
from honmaru.services.logs.patterns import Pattern, compiled
from honmaru.services.logs.store import LogStore, name_of

SESSION_S = 3 * 3600.0
UPDATE_S = 1.0
UPDATE_EVENTS = 500
SESSIONS = 15
"""Tails of one account at one label at a time."""


class LiveTails:
    """The tails of one enclave."""

    def __init__(self, store: LogStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._open: Counter[tuple[str, str]] = Counter()

    async def start(self, call: Call, request: Request) -> dict[str, Any]:
        names, prefixes = request.get("logStreamNames") or (), request.get("logStreamNamePrefixes") or ()
        identifiers = list(request["logGroupIdentifiers"])
        if names and prefixes:
            raise invalid("logStreamNames and logStreamNamePrefixes are mutually exclusive parameters.")
        if (names or prefixes) and len(identifiers) > 1:
            raise invalid("logStreamNames and logStreamNamePrefixes need exactly one log group.")
        pattern = compiled(request.get("logEventFilterPattern") or "")
        groups = await asyncio.to_thread(
            lambda: [find_group(call, self._store, {"logGroupIdentifier": each}).name for each in identifiers]
        )
        tail = _Tail(self._store, call, groups, tuple(names), tuple(prefixes), pattern)
        await asyncio.to_thread(tail.begin)
        whose = (call.session.account, call.session.label.canonical)
        with self._lock:
            if self._open[whose] >= SESSIONS:
                raise QuotaExceeded(f"an account has at most {SESSIONS} Live Tail sessions at a time")
            self._open[whose] += 1
        return {"responseStream": _Stream(self._events(call, request, tail), lambda: self._release(whose))}

    def _release(self, whose: tuple[str, str]) -> None:
        with self._lock:
            self._open[whose] -= 1

    async def _events(self, call: Call, request: Request, tail: _Tail) -> AsyncGenerator[dict[str, Any], None]:
        started = self._clock.monotonic()
        yield {
            "sessionStart": {
                "requestId": call.request_id,
                "sessionId": call.request_id,
                "logGroupIdentifiers": list(request["logGroupIdentifiers"]),
                "logStreamNames": list(request.get("logStreamNames") or ()),
                "logStreamNamePrefixes": list(request.get("logStreamNamePrefixes") or ()),
                "logEventFilterPattern": request.get("logEventFilterPattern") or "",
            }
        }
        while self._clock.monotonic() - started < SESSION_S:
            await asyncio.sleep(UPDATE_S)
            found, sampled = await asyncio.to_thread(tail.news)
            yield {"sessionUpdate": {"sessionMetadata": {"sampled": sampled}, "sessionResults": found}}
        raise HonmaruError("The Live Tail session has reached its limit of 3 hours.", code="SessionTimeoutException")


class _Stream:
    """An asynchronous iterator that gives its place back, also when it is closed before it was begun."""

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], release: Any) -> None:
        self._events, self._release = events, release

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            return await anext(self._events)
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            self._end()

    def _end(self) -> None:
        release, self._release = self._release, lambda: None
        release()


@dataclass
class _Tail:
    store: LogStore
    call: Call
    groups: list[str]
    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    pattern: Pattern
    seen: dict[str, int] = field(default_factory=dict)
    """Stream's uid → place of the next event to show."""

    def begin(self) -> None:
        for group in self.groups:
            for stream in self.store.streams(self.call.records, group):
                self.seen[stream.body["uid"]] = int(stream.body["events"])

    def news(self) -> tuple[list[Mapping[str, Any]], bool]:
        """Events that arrived since, in order of time; and whether there were more."""
        found: list[dict[str, Any]] = []
        sampled = False
        for group in self.groups:
            for stream in self.store.streams(self.call.records, group):
                name, uid = name_of(stream), stream.body["uid"]
                start, end = self.seen.get(uid, 0), int(stream.body["events"])
                self.seen[uid] = end
                if start == end or not self._wanted(name):
                    continue
                for event in self.store.events(self.call.records, stream, start):
                    if event.place >= end:
                        self.seen[uid] = event.place + 1
                    if not self.pattern(event.message):
                        continue
                    if len(found) == UPDATE_EVENTS:
                        sampled = True
                        break
                    found.append(
                        {
                            "logStreamName": name,
                            "logGroupIdentifier": f"{self.call.session.account}:{group}",
                            "message": event.message,
                            "timestamp": event.timestamp_ms,
                            "ingestionTime": event.ingested_ms,
                        }
                    )
        found.sort(key=lambda each: int(each["timestamp"]))
        return list(found), sampled

    def _wanted(self, name: str) -> bool:
        if self.names:
            return name in self.names
        return not self.prefixes or name.startswith(self.prefixes)
