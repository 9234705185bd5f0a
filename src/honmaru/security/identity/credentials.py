"""What sign-in and STS deal in: credentials, and requests for a session.

Invariant: secrets and tokens never appear in a repr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from honmaru.core.sessions import Session


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request is signed with, and the session that it opens."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session: Session


@dataclass(frozen=True, slots=True)
class TemporaryCredential:
    """What STS hands out. `packed` is the share of the room for policies and tags that is used, in percent."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    expires: datetime
    session: Session
    packed: int = 0


@dataclass(frozen=True, slots=True)
class AssumeRole:
    """A request for a session. `duration_s` None means AWS's default for the operation."""

    role_arn: str
    session_name: str
    duration_s: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    transitive: frozenset[str] = frozenset()
    policy: str | None = None
    policy_arns: Sequence[str] = ()
    external_id: str | None = None
    source_identity: str | None = None
    serial_number: str | None = None
    token_code: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class WebIdentity:
    """What a verified identity token says: who is issuer, audience and subject."""

    provider_arn: str
    issuer: str
    audience: str
    subject: str
