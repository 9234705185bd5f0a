"""The body of a streaming upload: pulled from the connection by the worker thread, piece by piece.

Invariants:
- At most one piece is in memory beyond what `read` was asked for: the client is read only when the worker asks.
- An upload whose body had come whole before the operation began asks the connection for nothing, and so holds up no
  thread however slow its client is.
- `read` returns b"" only after the payload verified (length, hash, chunk and trailer signatures); everything that
  can be wrong with an upload is raised as a RequestFault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping

from honmaru.core.errors import RequestFault, ValidationFault
from honmaru.gateway.aws.payloads import Payload

Pull = Callable[[], Awaitable[bytes]]
"""The next piece of the raw body; b"" at its end. Raises a RequestFault."""


class Upload:
    """Implements `security.calls.ByteStream`."""

    def __init__(
        self,
        pull: Pull,
        payload: Payload,
        length: int | None,
        loop: asyncio.AbstractEventLoop,
        whole: bytes | None = None,
    ) -> None:
        """`whole` is the raw body when all of it is here already; `pull` is not asked then."""
        self.length = length
        self._pull = pull
        self._whole = whole
        self._payload = payload
        self._loop = loop
        self._buffer = bytearray()
        self._ended = False
        self._fault: RequestFault | None = None

    @property
    def trailers(self) -> Mapping[str, str]:
        return self._payload.trailers

    @property
    def waits(self) -> bool:
        """Whether reading may have to wait for the client."""
        return self._whole is None

    @property
    def finished(self) -> bool:
        """True once the whole body has been read and verified."""
        return self._ended

    @property
    def digest(self) -> str:
        return self._payload.digest

    def read(self, size: int = 1 << 20) -> bytes:
        """See `ByteStream.read`. For worker threads only."""
        while len(self._buffer) < size and not self._ended:
            if self._fault is not None:
                raise self._fault
            if self._whole is not None:
                self._take([self._whole, b""] if self._whole else [b""])
                self._whole = b""
                continue
            wanted = size - len(self._buffer)
            pieces = asyncio.run_coroutine_threadsafe(self._gather(wanted), self._loop).result()
            self._take(pieces)
        out = bytes(self._buffer[:size])
        del self._buffer[:size]
        return out

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece

    def _take(self, pieces: list[bytes]) -> None:
        try:
            for piece in pieces:
                if piece:
                    self._buffer += self._payload.feed(piece)
                else:
                    self._payload.finish()
                    self._ended = True
        except RequestFault as fault:
            self._fault = fault
            raise

    async def _gather(self, wanted: int) -> list[bytes]:
        pieces = []
        while wanted > 0:
            piece = await self._pull()
            pieces.append(piece)
            if not piece:
                break
            wanted -= len(piece)
        return pieces


def limited(pull: Pull, limit: int, code: str) -> Pull:
    """`pull` that raises ValidationFault once more than `limit` bytes have come."""
    seen = 0

    async def next_piece() -> bytes:
        nonlocal seen
        piece = await pull()
        seen += len(piece)
        if seen > limit:
            raise ValidationFault(f"Your proposed upload exceeds the maximum allowed size of {limit} bytes", code=code)
        return piece

    return next_piece
