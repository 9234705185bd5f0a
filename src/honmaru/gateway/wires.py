"""What a wire must do for a request: its half of the life that `app.Gateway.handlers` spells out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from honmaru.gateway.exchange import Exchange

Handler = Callable[[Exchange], Awaitable[None] | None]
Headers = list[tuple[bytes, bytes]]


class Wire(Protocol):
    """See the module. Of several wires the first that owns a request serves it."""

    @property
    def dialect(self) -> str | None:
        """For the ledger, the dialect that an operation was asked for in; None for AWS's own."""
        ...

    def owns(self, exchange: Exchange) -> bool: ...

    def identify(self, exchange: Exchange) -> None: ...

    def claim(self, exchange: Exchange) -> None: ...

    async def receive(self, exchange: Exchange) -> None: ...

    def verify(self, exchange: Exchange) -> None: ...

    def parse(self, exchange: Exchange) -> None: ...

    def serialise(self, exchange: Exchange) -> None: ...

    def identity(self, exchange: Exchange) -> Headers:
        """Headers that name the request in its answer."""
        ...

    def fault(self, exchange: Exchange, error: BaseException) -> tuple[int, Headers, bytes]:
        """(status, headers, body) of a refusal."""
        ...
