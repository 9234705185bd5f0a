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
from collections import deque
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
        self._pieces: deque[bytes] = deque()
        self._held = 0
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
        while self._held < size and not self._ended:
            if self._fault is not None:
                raise self._fault
            if self._whole is not None:
                self._take([self._whole, b""] if self._whole else [b""])
                self._whole = b""
                continue
            wanted = size - self._held
            pieces = asyncio.run_coroutine_threadsafe(self._gather(wanted), self._loop).result()
            self._take(pieces)
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        """The first `size` bytes of what is held, or all of it; copied once."""
        out: list[bytes] = []
        while self._pieces and size > 0:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            out.append(piece)
            size -= len(piece)
            self._held -= len(piece)
        return out[0] if len(out) == 1 else b"".join(out)

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece

    def _take(self, pieces: list[bytes]) -> None:
        try:
            for piece in pieces:
                if piece:
                    plain = bytes(self._payload.feed(piece))
                    if plain:
                        self._pieces.append(plain)
                        self._held += len(plain)
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
