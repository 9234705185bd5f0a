"""What a service may put into a caller's bucket in its own name (CloudTrail's log files), as AWS lets services do it.

Implemented over `services.s3`, joined by `app`. The bucket's policy must name the service as principal; identity
policies have no say, because no user acts. The guard lets it write at the session's label only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from honmaru.core.sessions import Session
from honmaru.ports.buckets import StoredObject

NOTHING: Mapping[str, str] = MappingProxyType({})


class Deliveries(Protocol):
    def check(self, session: Session, bucket: str, key: str, *, source_arn: str) -> None:
        """Whether `write` would be let. Raises NotFound (bucket) or AccessDenied (its policy)."""
        ...

    def check_key(self, session: Session, kms_key: str, *, source_arn: str, context: Mapping[str, str]) -> None:
        """Whether `write` would be let seal under a key of KMS (an ARN). Raises AccessDenied (the key's policy)."""
        ...

    def write(
        self,
        session: Session,
        bucket: str,
        key: str,
        chunks: Iterable[bytes],
        *,
        source_arn: str,
        kms_key: str = "",
        context: Mapping[str, str] = NOTHING,
    ) -> StoredObject:
        """Store an object at the session's label; durable on return. Raises NotFound (bucket) or AccessDenied.

        With `kms_key` (an ARN) it is sealed under that key, with `context` in its encryption context; raises
        ValidationFault (a code beginning with "KMS.") when the key cannot be used.

        `session` is a `platform_session` of the service; `source_arn` is the resource that the service works for.
        """
        ...
