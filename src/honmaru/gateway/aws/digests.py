"""Digests that clients state of S3's XML documents, compared before a document is read.

Objects' own bytes are not compared here but while they stream (services.s3.checksums). Algorithms that no client
states of documents (CRC32C, CRC64NVME) are left to the signature, which covers every document's SHA-256.
Source: S3 API, "PutBucketPolicy" and others with httpChecksumRequired.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping

from honmaru.core.errors import ValidationFault

_DIGESTS: Mapping[str, tuple[str, Callable[[bytes], bytes]]] = {
    # header: what S3 calls it, and how it is computed
    "content-md5": ("Content-MD5", lambda body: hashlib.md5(body, usedforsecurity=False).digest()),
    "x-amz-checksum-crc32": ("CRC32", lambda body: zlib.crc32(body).to_bytes(4, "big")),
    "x-amz-checksum-sha1": ("SHA1", lambda body: hashlib.sha1(body, usedforsecurity=False).digest()),
    "x-amz-checksum-sha256": ("SHA256", lambda body: hashlib.sha256(body).digest()),
    "x-amz-checksum-sha512": ("SHA512", lambda body: hashlib.sha512(body).digest()),
}


def check_document(headers: Mapping[str, str], body: bytes) -> None:
    """Raises ValidationFault (BadDigest) when a stated digest is not the document's."""
    for header, (name, digest) in _DIGESTS.items():
        stated = headers.get(header)
        if stated is not None and stated != base64.b64encode(digest(body)).decode():
            words = (
                "did not match what we received" if name == "Content-MD5" else "did not match the calculated checksum"
            )
            raise ValidationFault(f"The {name} you specified {words}.", code="BadDigest")
