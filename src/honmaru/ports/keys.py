"""Keys of the key service as the other services see them: data keys for what they store.

Implemented by `services.kms`, joined by `app`. Every use is decided by the key's policy for the session of the call,
leaves its place in the call's ledger entry, and needs the key to be enabled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from honmaru.core.sessions import Session

CallT = TypeVar("CallT", contravariant=True)
"""The call on whose behalf a key is used (`security.calls.Call`, which lies above the ports)."""


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What a service may know of a key before it uses it. `state` is "Enabled", "Disabled", "PendingDeletion" ..."""

    arn: str
    state: str


@dataclass(frozen=True, slots=True)
class DataKey:
    """32 bytes to seal with, and the same as the key service has wrapped them. Keep `wrapped` and the context only."""

    arn: str
    plain: bytes = field(repr=False)
    wrapped: bytes


class Keys(Protocol[CallT]):
    """`key` is a key id, a key's ARN, an alias or an alias's ARN; "" means the platform's own key of `service`.

    All raise NotFound (NotFoundException), AccessDenied, and Conflict, RequestFault or ValidationFault with the key
    service's own code (DisabledException, KMSInvalidStateException, InvalidKeyUsageException).
    """

    def resolve(self, call: CallT, key: str, service: str) -> KeyFacts:
        """The key that a member names."""
        ...

    def data_key(self, call: CallT, key: str, context: Mapping[str, str], service: str) -> DataKey:
        """A new data key, bound to a context. Asks kms:GenerateDataKey. Label: it carries the session's."""
        ...

    def open(self, call: CallT, wrapped: bytes, context: Mapping[str, str], service: str) -> bytes:
        """The data key that `data_key` wrapped. Asks kms:Decrypt. Label: it must be dominated by the session's."""
        ...


class SessionKeys(Protocol):
    """Keys for the platform's own work, which no request carries: used as a session, each use with an entry of its own.

    `key`, `context` and `service`, and what is raised, as for `Keys`.
    """

    def data_key(self, session: Session, key: str, context: Mapping[str, str], service: str) -> DataKey:
        """As `Keys.data_key`; the entry is durable on return."""
        ...

    def open(self, session: Session, wrapped: bytes, context: Mapping[str, str], service: str) -> bytes:
        """As `Keys.open`; the entry is durable on return."""
        ...
