"""What sign-in and STS deal in: credentials, a request to assume a role, and AWS's words for a refusal.

Invariant: secrets and tokens never appear in a repr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from honmaru.core.sessions import Session
from honmaru.security.policy import Decision, Effect


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request is signed with, and the session that it opens."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session: Session


@dataclass(frozen=True, slots=True)
class TemporaryCredential:
    """What STS hands out."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    expires: datetime
    session: Session


@dataclass(frozen=True, slots=True)
class AssumeRole:
    """A request to assume a role. `duration_s` None means AWS's default of an hour."""

    role_arn: str
    session_name: str
    duration_s: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    transitive: frozenset[str] = frozenset()
    policy: str | None = None
    policy_arns: Sequence[str] = ()
    external_id: str | None = None
    source_identity: str | None = None


def refusal(session: Session, action: str, resource_arn: str, decision: Decision) -> str:
    """AWS's words for a refused request."""
    head = f"User: {session.principal_arn} is not authorized to perform: {action} on resource: {resource_arn}"
    kinds = {
        "identity": "identity-based policy",
        "boundary": "permissions boundary",
        "session": "session policy",
    }
    if decision.reason not in kinds:
        return f"{head} because the resource is in another partition"
    kind = kinds[decision.reason]
    if decision.effect is Effect.EXPLICIT_DENY:
        article = "an" if kind.startswith("i") else "a"
        return f"{head} with an explicit deny in {article} {kind}"
    return f"{head} because no {kind} allows the {action} action"
