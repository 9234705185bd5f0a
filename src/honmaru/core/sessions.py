"""The subject of every request: who acts, for which account, at which label.

Invariants:
- A session's label is fixed when the session is made and never changes (strong tranquility of subjects).
- `label` is within the principal's clearance and the enclave's ceiling; whoever makes a Session has checked that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from honmaru.core.labels import Label


@dataclass(frozen=True, slots=True)
class Session:
    """An authenticated subject at a fixed label.

    `kind` is one of "user", "federated-user", "assumed-role", "service". `issuer_arn` is the IAM role or user behind
    an assumed-role or federated session, whose policies apply; else it equals `principal_arn`. `source_ip` is None for
    the platform's own work.
    """

    account: str
    partition: str
    region: str
    principal_arn: str
    principal_id: str
    kind: str
    label: Label
    issuer_arn: str
    access_key_id: str = ""
    session_name: str = ""
    session_policy: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    source_ip: str | None = None
    user_agent: str = ""
    secure_transport: bool = True
    human: str = ""
    """ARN of the principal behind an assumed role, carried through chains: the two-person rule compares these."""
    source_identity: str = ""
    """What the caller stated as SourceIdentity. Never used in place of `human`."""
    transitive_tags: frozenset[str] = frozenset()
    """Session tags that pass on to roles assumed from this session."""
    chain: tuple[tuple[str, ...], ...] = ()
    """(kind, name, unique id, account) of the access key and principals behind the session; each must remain, and be
    cleared."""
    issued_s: float = 0.0
    """When the session's credentials were issued (epoch seconds); 0 for a long-term key."""
    mfa_s: float = 0.0
    """When a one-time password was verified for the session (epoch seconds); 0 when none was."""
    federated_provider: str = ""
    """ARN of the identity provider whose token or assertion opened the session."""
    networks: str = ""
    """Where its requests may come from: lists of networks parted by ";", each of which must hold; "" anywhere."""


def platform_session(account: str, partition: str, region: str, service: str, label: Label) -> Session:
    """The platform's own work for one account at one label: what a service does by itself, with nobody asking.

    It passes the guard like any session, so it sees nothing above `label` and makes everything at it. It carries no
    policies and is never handed to a caller. Use it only at the label of the record whose work is done.
    """
    arn = f"arn:{partition}:sts::{account}:assumed-role/aws-service-role/{service}.amazonaws.com"
    return Session(account, partition, region, arn, f"service:{service}", "service", label, arn)
