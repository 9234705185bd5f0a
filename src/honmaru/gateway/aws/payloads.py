"""Forms in which a streamed body arrives, decoded and verified piece by piece.

    PlainPayload     unsigned, or a whole body whose SHA-256 the signature covers (checked at its end)
    ChunkedPayload   aws-chunked: unsigned with trailer, signed chunks, signed chunks with signed trailer

Invariants:
- Bytes of a signed chunk are released only after the chunk's signature is right; the last chunk and the trailer are
  verified before `finish` returns. A reader that sees the end has seen what the signer signed, all of it.
- Lines, chunks and trailers are bounded; the decoded length is what X-Amz-Decoded-Content-Length declared.
Source: "Signature calculations for the Authorization header: transferring payload in multiple chunks", S3 API.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Protocol

from honmaru.core.errors import ValidationFault
from honmaru.gateway.aws.signatures import EMPTY_SHA256, Claim, SignatureFault, sign

UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
SIGNED_EVENTS = "STREAMING-AWS4-HMAC-SHA256-EVENTS"
"""Of an event stream that a client sends. Its head is verified; no operation here reads such a body."""
STREAMING = frozenset({UNSIGNED_TRAILER, SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER})

MAX_SIGNED_CHUNK = 32 << 20
MAX_LINE = 1024
MAX_TRAILERS = 16

_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,12})(?:;chunk-signature=([0-9a-f]{64}))?")
_TRAILER_LINE = re.compile(rb"([a-z0-9-]{1,128}):(.*)")


class Payload(Protocol):
    """Feeds on wire bytes, gives decoded bytes."""

    digest: str
    """SHA-256 (hex) of the decoded bytes, known after `finish`."""

    @property
    def trailers(self) -> Mapping[str, str]: ...

    def feed(self, data: bytes) -> bytes:
        """Decoded bytes that `data` completes. Raises a RequestFault."""
        ...

    def finish(self) -> None:
        """The body has ended. Raises a RequestFault unless it ended where it had to and everything verifies."""
        ...


class PlainPayload:
    """The body as it is. `expected` is the SHA-256 that was signed, None for an unsigned payload."""

    def __init__(self, length: int | None, expected: str | None) -> None:
        self._trailers: dict[str, str] = {}
        self.digest = ""
        self._length = length
        self._expected = expected
        self._hash = hashlib.sha256()
        self._seen = 0

    @property
    def trailers(self) -> Mapping[str, str]:
        return self._trailers

    def feed(self, data: bytes) -> bytes:
        self._seen += len(data)
        self._hash.update(data)
        return data

    def finish(self) -> None:
        self.digest = self._hash.hexdigest()
        if self._length is not None and self._seen != self._length:
            raise ValidationFault(
                f"You did not provide the number of bytes specified by the Content-Length header: "
                f"received {self._seen}, expected {self._length}",
                code="IncompleteBody",
            )
        if self._expected is not None and not hmac.compare_digest(self.digest, self._expected):
            raise SignatureFault(
                "payload", "The provided 'x-amz-content-sha256' header does not match what was computed."
            )


class ChunkedPayload:
    """aws-chunked. `key` and `claim` are those of the request's signature; None for the unsigned form."""

    def __init__(self, form: str, *, length: int, trailer_names: frozenset[str], claim: Claim, key: bytes) -> None:
        self._trailers: dict[str, str] = {}
        self.digest = ""
        self._signed = form != UNSIGNED_TRAILER
        self._with_trailer = form != SIGNED_CHUNKS
        self._length = length
        self._names = trailer_names
        self._claim = claim
        self._key = key
        self._previous = claim.signature
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._seen = 0
        self._left = -1  # bytes of the current chunk still to come; -1: a chunk line comes next
        self._signature = ""
        self._phase = "line"

    @property
    def trailers(self) -> Mapping[str, str]:
        return self._trailers

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        out: list[bytes] = []
        while self._step(out):
            pass
        return b"".join(out)

    def finish(self) -> None:
        if self._phase != "end" or self._buffer:
            raise _malformed("the body ended inside an aws-chunked part")
        if self._seen != self._length:
            raise _malformed(f"{self._seen} bytes arrived, X-Amz-Decoded-Content-Length declared {self._length}")
        missing = self._names - self._trailers.keys()
        if missing:
            raise _malformed(f"the trailer {sorted(missing)[0]} was declared and did not arrive")
        self.digest = self._hash.hexdigest()

    def _step(self, out: list[bytes]) -> bool:
        if self._phase == "line":
            return self._chunk_line()
        if self._phase == "data":
            return self._chunk_data(out)
        if self._phase == "trailer":
            return self._trailer_line()
        if self._buffer:
            raise _malformed("bytes follow the last part")
        return False

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, MAX_LINE)
        if end < 0:
            if len(self._buffer) >= MAX_LINE:
                raise _malformed("a line is too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _chunk_line(self) -> bool:
        line = self._line()
        if line is None:
            return False
        match = _CHUNK_LINE.fullmatch(line)
        if match is None or (match[2] is not None) != self._signed:
            raise _malformed("a chunk must begin with its size in hexadecimal" + ";chunk-signature=…" * self._signed)
        self._left = int(match[1], 16)
        self._signature = match[2].decode() if match[2] else ""
        if self._seen + self._left > self._length:
            raise _malformed(f"more bytes than X-Amz-Decoded-Content-Length ({self._length}) arrived")
        if self._signed and self._left > MAX_SIGNED_CHUNK:
            raise _malformed(f"a signed chunk has at most {MAX_SIGNED_CHUNK} bytes")
        if self._left:
            self._phase = "data"
            return True
        if self._signed:
            self._verify_chunk(b"")
        self._phase = "trailer"  # without one, the empty line behind the last chunk
        return True

    def _chunk_data(self, out: list[bytes]) -> bool:
        available = len(self._buffer)
        if self._signed:
            if available < self._left + 2:
                return False
            chunk = bytes(self._buffer[: self._left])
            self._verify_chunk(chunk)
            self._release(chunk, out)
        elif self._left:
            chunk = bytes(self._buffer[: self._left])
            if not chunk:
                return False
            self._release(chunk, out)
        if self._left == 0:
            if len(self._buffer) < 2:
                return False
            if self._buffer[:2] != b"\r\n":
                raise _malformed("a chunk must end with CR LF")
            del self._buffer[:2]
            self._phase = "line"
        return True

    def _release(self, chunk: bytes, out: list[bytes]) -> None:
        del self._buffer[: len(chunk)]
        self._left -= len(chunk)
        self._seen += len(chunk)
        self._hash.update(chunk)
        out.append(chunk)

    def _verify_chunk(self, chunk: bytes) -> None:
        claim = self._claim
        text = (
            f"AWS4-HMAC-SHA256-PAYLOAD\n{claim.timestamp}\n{claim.scope}\n{self._previous}\n{EMPTY_SHA256}\n"
            f"{hashlib.sha256(chunk).hexdigest()}"
        )
        if not hmac.compare_digest(sign(self._key, text), self._signature):
            raise SignatureFault("mismatch", "The chunk signature we calculated does not match the one you provided")
        self._previous = self._signature

    def _trailer_line(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            if self._signed and self._with_trailer and "x-amz-trailer-signature" not in self._trailers:
                raise SignatureFault("mismatch", "The trailer must end with x-amz-trailer-signature")
            self._trailers.pop("x-amz-trailer-signature", None)
            self._phase = "end"
            return True
        match = _TRAILER_LINE.fullmatch(line)
        if match is None or not self._with_trailer or len(self._trailers) >= MAX_TRAILERS:
            raise _malformed("a trailer line must be name:value")
        name = match[1].decode()
        value = match[2].decode("latin-1").strip()
        if name == "x-amz-trailer-signature" and self._signed:
            self._verify_trailer(value)
        elif name not in self._names or name in self._trailers or "x-amz-trailer-signature" in self._trailers:
            raise _malformed(f"the trailer {name} was not declared in X-Amz-Trailer, or came twice")
        self._trailers[name] = value
        return True

    def _verify_trailer(self, signature: str) -> None:
        claim = self._claim
        canonical = "".join(f"{name}:{self._trailers[name]}\n" for name in sorted(self._trailers))
        text = (
            f"AWS4-HMAC-SHA256-TRAILER\n{claim.timestamp}\n{claim.scope}\n{self._previous}\n"
            f"{hashlib.sha256(canonical.encode('latin-1')).hexdigest()}"
        )
        if not hmac.compare_digest(sign(self._key, text), signature):
            raise SignatureFault("mismatch", "The trailer signature we calculated does not match the one you provided")


def _malformed(what: str) -> ValidationFault:
    return ValidationFault(f"The request body is malformed: {what}", code="IncompleteBody")
