"""What every wire reads of a request in the same way: headers, a body within its limits, the caller's surroundings.

Invariants:
- A header that decides something is refused when it comes twice; others are joined as HTTP says.
- A body is never held beyond its limit, whatever length was declared for it.
- Bodies whose sender is not yet verified hold no more memory together than their budget, and no more for one key id
  than half of it: who knows a key's id cannot fill the memory, nor lock the other keys out.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace

from honmaru.api import query_codec
from honmaru.api.misreads import Misread
from honmaru.core.errors import AuthenticationFailed, Throttled, ValidationFault
from honmaru.core.sessions import Session
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.limits import Limits
from honmaru.security.identity.entities import within

_SINGLE = frozenset({"host", "authorization", "content-type", "content-length", "content-encoding", "x-api-key"})


def read_headers(exchange: Exchange) -> None:
    """Headers by lower-case name. Raises ValidationFault."""
    headers = exchange.headers
    for raw_name, raw_value in exchange.scope["headers"]:
        name = raw_name.decode("latin-1")
        value = raw_value.decode("latin-1")
        if name in headers:
            if name in _SINGLE or name.startswith("x-amz-"):
                raise ValidationFault(f"The header {name[:64]} was sent twice", code="InvalidRequest")
            value = f"{headers[name]},{value}"
        headers[name] = value


def read_query(exchange: Exchange) -> None:
    """The query string's values by name, in order. Raises ValidationFault."""
    out: dict[str, list[str]] = {}
    try:
        for part in exchange.raw_query.encode("latin-1").split(b"&") if exchange.raw_query else ():
            name, _, value = part.partition(b"=")
            if name:
                out.setdefault(query_codec.decode(name), []).append(query_codec.decode(value))
    except Misread as misread:
        raise ValidationFault(f"The query string is malformed: {misread.message}") from None
    exchange.query = out


class Budget:
    """Bytes of unverified bodies, counted as they come. For the event loop's thread only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._held: dict[str, int] = {}

    def grow(self, exchange: Exchange, size: int) -> None:
        """`size` more bytes of the exchange's body are held. Raises Throttled."""
        if not size or exchange.session is not None:
            return
        key = "" if exchange.claim is None else exchange.claim.access_key_id
        held = self._held.get(key, 0) + size
        if self._total + size > self._limit or held > self._limit // 2:
            raise Throttled("Please reduce your request rate.")
        self._total += size
        self._held[key] = held
        exchange.unverified = (key, size + (exchange.unverified[1] if exchange.unverified else 0))

    def free(self, exchange: Exchange) -> None:
        """The exchange's caller is known by now, or it is over. Idempotent."""
        if exchange.unverified is None:
            return
        key, size = exchange.unverified
        exchange.unverified = None
        self._total -= size
        left = self._held[key] - size
        if left:
            self._held[key] = left
        else:
            del self._held[key]


async def read_body(exchange: Exchange, limit: int, body_s: float) -> None:
    """The whole body and its digest; at most `limit` bytes within `body_s` seconds. Raises ValidationFault."""
    headers = exchange.headers
    declared = content_length(headers)
    if declared is not None and declared > limit:
        raise too_large(exchange, limit)
    if declared != 0 and (declared is not None or "transfer-encoding" in headers):
        ready = exchange.scope.get("honmaru.body")
        body = None if ready is None else ready()
        if body is not None and len(body) > limit:
            raise too_large(exchange, limit)
        if body is not None and exchange.budget is not None:
            exchange.budget.grow(exchange, len(body))
        exchange.body = await _whole(exchange, limit, body_s) if body is None else body
    exchange.request_digest = f"sha256:{hashlib.sha256(exchange.body).hexdigest()}"


async def short_body(exchange: Exchange, declared: int | None, limits: Limits) -> bytes | None:
    """The raw body of an upload by a known caller when it is short, or here already: then its operation never waits
    for the client. None for all others. Raises ValidationFault."""
    ready = exchange.scope.get("honmaru.body")
    body: bytes | None = None if ready is None else ready()
    if body is None and declared is not None and declared <= _SHORT:
        body = await _whole(exchange, _SHORT, limits.body_s) if declared else b""
    if body is not None and len(body) > limits.upload_bytes:
        raise too_large(exchange, limits.upload_bytes)
    return body


_SHORT = 64 << 10
"""Bytes of an upload that are read before its operation begins: what a connection buffers anyway."""


async def _whole(exchange: Exchange, limit: int, body_s: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(body_s):
            while True:
                message = await exchange.receive()
                if message["type"] != "http.request":
                    code = "IncompleteBody" if exchange.protocol == "rest-xml" else None
                    raise ValidationFault("The client closed the connection inside the body", code=code)
                piece = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise too_large(exchange, limit)
                if exchange.budget is not None:
                    exchange.budget.grow(exchange, len(piece))
                if not message.get("more_body"):
                    if not pieces:
                        return bytes(piece)
                    pieces.append(piece)
                    return b"".join(pieces)
                pieces.append(piece)
    except TimeoutError:
        raise too_slow(exchange) from None


def presented(exchange: Exchange, session: Session) -> Session:
    """The session with what policies may ask of this request: address, client, TLS.

    Raises AuthenticationFailed, in the words for an unknown key, when the session is bound to other networks.
    """
    agent = exchange.headers.get("user-agent", "")[:512]
    key = (id(session), exchange.client, agent, exchange.secure)
    known = _PRESENTED.get(key)
    if known is not None and known[0] is session:
        return known[1]
    if session.networks and not within(exchange.client, session.networks):
        raise AuthenticationFailed("The security token included in the request is invalid.")
    made = replace(session, source_ip=exchange.client, user_agent=agent, secure_transport=exchange.secure)
    if len(_PRESENTED) >= _PRESENTED_LIMIT:
        _PRESENTED.clear()
    _PRESENTED[key] = (session, made)
    return made


_PRESENTED: dict[tuple[int, str | None, str, bool], tuple[Session, Session]] = {}
"""A client asks again and again from one address with one agent. The session itself is kept beside its number, so no
other object can have that number; a session made anew (because IAM changed, say) is another object."""
_PRESENTED_LIMIT = 4096


def content_length(headers: Mapping[str, str]) -> int | None:
    """The declared length; None when there is none. Raises ValidationFault."""
    text = headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise ValidationFault("Content-Length must be a number", code="InvalidRequest")
    return int(text)


def too_large(exchange: Exchange, limit: int) -> ValidationFault:
    code = {"rest-xml": "EntityTooLarge", "query": "RequestEntityTooLarge"}.get(
        exchange.protocol, "RequestEntityTooLargeException"
    )
    return ValidationFault(f"The request body exceeds the maximum allowed size of {limit} bytes", code=code)


def too_slow(exchange: Exchange) -> ValidationFault:
    code = "RequestTimeout" if exchange.protocol in ("rest-xml", "query") else "RequestTimeoutException"
    return ValidationFault(
        "Your socket connection to the server was not read from or written to within the timeout period.", code=code
    )
