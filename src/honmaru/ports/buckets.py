"""What jobs and deployments may do with S3, as a session, through the same two gates as a client.

Implemented by `services.s3`, joined by `app`. Every call is authorised against the session's policies, passes the
guard at the session's label, and leaves a ledger entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from honmaru.core.sessions import Session


@dataclass(frozen=True, slots=True)
class StoredObject:
    bucket: str
    key: str
    size: int
    etag: str


class Buckets(Protocol):
    def list(self, session: Session, bucket: str, prefix: str) -> Iterator[StoredObject]:
        """Every visible object with the prefix, by key. Raises NotFound (bucket) or AccessDenied."""
        ...

    def read(self, session: Session, bucket: str, key: str) -> Iterator[bytes]:
        """The object's plain bytes in chunks. Raises NotFound or AccessDenied before the first chunk."""
        ...

    def write(
        self, session: Session, bucket: str, key: str, chunks: Iterable[bytes], kms_key: str = ""
    ) -> StoredObject:
        """Store an object at the session's label, under a key of the key service where one is named; durable on
        return."""
        ...


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/prefix` → (bucket, prefix). Raises ValidationFault."""
    from honmaru.core.errors import ValidationFault

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise ValidationFault(f"{uri!r} is not an S3 URI; expected s3://bucket/prefix")
    return bucket, prefix
