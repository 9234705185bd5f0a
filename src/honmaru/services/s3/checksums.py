"""Checksums of S3 objects: computed while bytes stream by, compared with what the client sent, combined over parts.

Invariants:
- A checksum or Content-MD5 that the client sent, in a header or a trailer, is compared before the bytes are kept; a
  difference is BadDigest and nothing is stored.
- Every object has a stored checksum: of the client's algorithm, else CRC64NVME.
- The checksum of a multipart object is that of the whole object (FULL_OBJECT, CRCs only) or the checksum of the
  parts' checksums, marked "-N" (COMPOSITE).

Source: Amazon S3 User Guide, "Checking object integrity in Amazon S3".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from honmaru.core.errors import ValidationFault

DEFAULT = "CRC64NVME"
FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"


class Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...

    def digest(self) -> bytes: ...


class _Crc:
    """A CRC with the shape of a hashlib object; `step` is (data, previous) → next."""

    def __init__(self, step: Callable[[bytes, int], int], width: int) -> None:
        self._step = step
        self._width = width
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width, "big")


class _XxHash:
    def __init__(self, kind: str) -> None:
        from awscrt.checksums import XXHash

        self._hash = getattr(XXHash, f"new_{kind}")()
        self._digest: bytes | None = None

    def update(self, data: bytes, /) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        if self._digest is None:
            self._digest = bytes(self._hash.finalize())
        return self._digest


def _crc32c() -> Hash:
    from awscrt.checksums import crc32c

    return _Crc(crc32c, 4)


def _crc64nvme() -> Hash:
    from awscrt.checksums import crc64nvme

    return _Crc(crc64nvme, 8)


_NEW: Mapping[str, Callable[[], Hash]] = {
    "CRC32": lambda: _Crc(zlib.crc32, 4),
    "CRC32C": _crc32c,
    "CRC64NVME": _crc64nvme,
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "SHA256": hashlib.sha256,
    "SHA512": hashlib.sha512,
    "MD5": lambda: hashlib.md5(usedforsecurity=False),
    "XXHASH64": lambda: _XxHash("xxhash64"),
    "XXHASH3": lambda: _XxHash("xxhash3_64"),
    "XXHASH128": lambda: _XxHash("xxhash3_128"),
}
ALGORITHMS = tuple(_NEW)
_COMBINING = ("CRC32", "CRC32C", "CRC64NVME")


def member(algorithm: str) -> str:
    """The name of the algorithm's member in S3's shapes: ChecksumCRC32, ..."""
    return f"Checksum{algorithm}"


def new(algorithm: str) -> Hash:
    """A fresh checksum. Raises ValidationFault (InvalidRequest) for an algorithm that S3 does not have."""
    if algorithm not in _NEW:
        raise ValidationFault(
            f"Checksum algorithm provided is unsupported. Please try again with any of the valid types: {list(_NEW)}",
            code="InvalidRequest",
        )
    return _NEW[algorithm]()


def text(digest: bytes) -> str:
    """The base64 form that S3 shows."""
    return base64.b64encode(digest).decode()


def etag_of(digests: Sequence[bytes]) -> str:
    """The entity tag of a multipart object: the MD5 of the parts' MD5s, and their number."""
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def type_for(algorithm: str, wanted: str | None) -> str:
    """The checksum type of a multipart upload. Raises ValidationFault for a pair that S3 does not have."""
    default = FULL_OBJECT if algorithm == "CRC64NVME" else COMPOSITE
    kind = wanted or default
    if (algorithm == "CRC64NVME" and kind == COMPOSITE) or (algorithm not in _COMBINING and kind == FULL_OBJECT):
        raise ValidationFault(
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
            code="InvalidRequest",
        )
    return kind


def combined(algorithm: str, kind: str, parts: Sequence[tuple[str, int]]) -> str:
    """The checksum of a multipart object from its parts' (checksum as text, size in bytes)."""
    digests = [base64.b64decode(value) for value, _ in parts]
    if kind == COMPOSITE:
        whole = new(algorithm)
        whole.update(b"".join(digests))
        return f"{text(whole.digest())}-{len(parts)}"
    import awscrt.checksums

    combine = getattr(awscrt.checksums, f"combine_{algorithm.lower()}")
    value = int.from_bytes(digests[0], "big")
    for digest, (_, size) in zip(digests[1:], parts[1:], strict=True):
        value = combine(value, int.from_bytes(digest, "big"), size)
    return text(int(value).to_bytes(len(digests[0]), "big"))


class Source(Protocol):
    """What an upload reads: the gateway's ByteStream, or chunks of the platform itself."""

    def __iter__(self) -> Iterator[bytes]: ...


@dataclass(slots=True)
class Intake:
    """Chunks of one upload on their way into a blob: counts, hashes, and checks them at the end.

    Iterate once. `sent` are checksums from headers by algorithm; `trailers` is asked after the last chunk.
    """

    chunks: Iterable[bytes]
    algorithm: str
    sent: Mapping[str, str] = field(default_factory=dict)
    content_md5: str | None = None
    length: int | None = None
    limit: int = 5 << 30
    trailers: Callable[[], Mapping[str, str]] = dict
    size: int = 0
    verified: dict[str, str] = field(default_factory=dict)
    """The checksums that the client stated, by algorithm, once they were found right."""
    md5: bytes = b""
    checksum: str = ""

    def __iter__(self) -> Iterator[bytes]:
        hashes = {name: new(name) for name in {self.algorithm, *self.sent, "MD5"}}
        for chunk in self.chunks:
            self.size += len(chunk)
            if self.size > self.limit:
                raise too_large(self.size, self.limit)
            for one in hashes.values():
                one.update(chunk)
            yield chunk
        if self.length is not None and self.size != self.length:
            raise ValidationFault(
                "You did not provide the number of bytes specified by the Content-Length HTTP header",
                code="IncompleteBody",
            )
        self.md5 = hashes["MD5"].digest()
        self.checksum = text(hashes[self.algorithm].digest())
        self._compare({name: text(one.digest()) for name, one in hashes.items()})

    def _compare(self, computed: Mapping[str, str]) -> None:
        if self.content_md5 is not None and self.content_md5 != computed["MD5"]:
            raise ValidationFault("The Content-MD5 you specified did not match what we received.", code="BadDigest")
        for name, value in [*self.sent.items(), *_trailing(self.trailers(), computed)]:
            if value != computed[name]:
                raise ValidationFault(
                    f"The {name} you specified did not match the calculated checksum.", code="BadDigest"
                )
            self.verified[name] = value


def intake(request: Mapping[str, Any], headers: Mapping[str, str], algorithm: str | None = None) -> Intake:
    """An Intake of a request's Body, with everything that PutObject and UploadPart may state about it.

    Args:
        algorithm: The algorithm to store (a multipart upload's); None takes the one that the request names.
    Raises:
        ValidationFault: the stated checksums are malformed or contradict each other.
    """
    sent = {name: request[member(name)] for name in ALGORITHMS if request.get(member(name)) is not None}
    for name, value in sent.items():
        _check_form(name, value)
    content_md5 = request.get("ContentMD5")
    if content_md5 is not None and not _decodes(content_md5, 16):
        raise ValidationFault("The Content-MD5 you specified was invalid.", code="InvalidDigest")
    body = request.get("Body")
    chunks: Iterable[bytes] = (body,) if isinstance(body, bytes) else (body if body is not None else ())
    length = None if body is None or isinstance(body, bytes) else getattr(body, "length", None)
    if length is not None and length > 5 << 30:
        raise too_large(length, 5 << 30)
    return Intake(
        chunks,
        algorithm or _stated(request, headers, sent) or DEFAULT,
        sent,
        content_md5,
        length,
        trailers=lambda: getattr(body, "trailers", None) or {},
    )


def too_large(size: int, limit: int) -> ValidationFault:
    return ValidationFault(
        "Your proposed upload exceeds the maximum allowed size",
        code="EntityTooLarge",
        members={"ProposedSize": str(size), "MaxSizeAllowed": str(limit)},
    )


def _stated(request: Mapping[str, Any], headers: Mapping[str, str], sent: Mapping[str, str]) -> str | None:
    """The algorithm that the client wants kept: a trailer's, a header's, or the one it names."""
    for name in headers.get("x-amz-trailer", "").lower().split(","):
        algorithm = name.strip().removeprefix("x-amz-checksum-").upper()
        if algorithm in _NEW:
            return algorithm
    named = request.get("ChecksumAlgorithm")
    if len(sent) > 1:
        raise ValidationFault("Expecting a single x-amz-checksum- header", code="InvalidRequest")
    if sent:
        return next(iter(sent))
    return str(named).upper() if named else None


def _trailing(trailers: Mapping[str, str], computed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in trailers.items():
        algorithm = name.lower().removeprefix("x-amz-checksum-").upper()
        if name.lower().startswith("x-amz-checksum-") and algorithm in computed:
            yield algorithm, value.strip()


def _check_form(algorithm: str, value: str) -> None:
    if not _decodes(value, len(new(algorithm).digest())):
        raise ValidationFault(f"Value for x-amz-checksum-{algorithm.lower()} header is invalid.", code="InvalidRequest")


def _decodes(value: str, size: int) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == size
    except (binascii.Error, ValueError):
        return False
