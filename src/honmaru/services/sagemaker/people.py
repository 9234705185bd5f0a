"""Who stands behind a session, for the two-person rule.

Invariants:
- Two sessions are of the same person when the principals behind them are the same, whatever roles they assumed.
- A session whose person cannot be told (a role without a source identity, a service) is nobody's and approves nothing.
"""

from __future__ import annotations

from honmaru.core.sessions import Session


def person(session: Session) -> str | None:
    """ARN of the principal that acts, or None when it cannot be told."""
    if session.human:
        return session.human
    return session.principal_arn if session.kind in ("user", "root") else None
