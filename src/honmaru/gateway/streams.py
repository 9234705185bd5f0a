"""Answers that are sent while they are made: event streams, and bodies in pieces.

Invariants:
- A source is drawn only as fast as the client takes its pieces; a client that takes nothing for `idle_s` is gone.
- When the client is gone the source is closed, and what was being made for it is cancelled.
- Synchronous sources run in worker threads, asynchronous ones on the loop; a source is closed exactly once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from honmaru.api.plans import Answer
from honmaru.gateway.pipeline import Pipeline

_END = object()


class Framing(Protocol):
    """How the events of a stream become bytes on one wire; an event may become none."""

    def initial(self, payload: bytes) -> bytes: ...

    def write(self, event: Mapping[str, Any]) -> bytes: ...

    def fault(self, code: str, message: str) -> bytes:
        """What ends a stream that failed."""
        ...


class Pieces:
    """The pieces of one answer as bytes, counted and hashed. `framing` is that of its events."""

    def __init__(self, pipeline: Pipeline, framing: Framing | None, answer: Answer) -> None:
        self.count = 0
        self.size = 0
        self._hash = hashlib.sha384()
        self._pipeline = pipeline
        self._first: bytes | None = None
        self._pending: asyncio.Future[Any] | None = None
        self._encode: Callable[[Any], bytes] = bytes
        source: Iterable[Any] | AsyncIterator[Any] | None = answer.chunks
        self.events = framing if answer.events is not None else None
        if self.events is not None:
            source = answer.events
            self._encode = self.events.write
        self._async = source if isinstance(source, AsyncIterator) else None
        self._sync: Iterator[Any] = iter(()) if self._async is not None else iter(source or ())  # type: ignore[arg-type]
        self._preamble = answer.body if self.events is not None else b""
        answer.body = b""

    @property
    def digest(self) -> str:
        """Digest of everything drawn so far."""
        return f"sha384:{self._hash.hexdigest()}"

    async def draw(self) -> bytes | None:
        """The next piece; None at the end. Raises what the source raises."""
        if self._first is not None:
            piece: bytes | None = self._first
            self._first = None
            return piece
        return await self._draw()

    async def prime(self) -> None:
        """Draws the first piece and keeps it for `draw`: what fails before it can be answered as an error."""
        if self._first is None:
            self._first = await self._draw()

    async def whole(self, length: int | None) -> bytes | None:
        """The complete body when the first piece holds it (`length` bytes); else None, and nothing is lost."""
        await self.prime()
        first = self._first
        if self.events is not None or (first is not None and (length is None or len(first) < length)):
            return None
        if first is not None and await self._draw() is not None:
            raise RuntimeError("a service sent more than the length it stated")
        return first or b""

    async def _draw(self) -> bytes | None:
        if self._preamble and self.events is not None:
            piece = self.events.initial(self._preamble)
            self._preamble = b""
            return self._counted(piece)
        while True:
            item = await self._next()
            if item is _END:
                return None
            piece = self._encode(item)
            if piece:
                return self._counted(piece)

    def _counted(self, piece: bytes) -> bytes:
        self.count += 1
        self.size += len(piece)
        self._hash.update(piece)
        return piece

    async def _next(self) -> Any:
        if self._async is not None:
            return await anext(self._async, _END)
        self._pending = asyncio.ensure_future(self._pipeline.in_worker(lambda: next(self._sync, _END)))
        item = await asyncio.shield(self._pending)
        self._pending = None
        return item

    async def close(self) -> None:
        """Ends the source. Waits for a piece that a worker thread is making."""
        if self._async is not None:
            if hasattr(self._async, "aclose"):
                await self._async.aclose()
            return
        if self._pending is not None and not self._pending.done():
            await asyncio.wait({self._pending})
        end = getattr(self._sync, "close", None)
        if end is not None:
            await self._pipeline.in_worker(end)
