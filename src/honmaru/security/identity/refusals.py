"""AWS's words for a request that policy refused.

Source: IAM user guide, "Troubleshoot access denied error messages".
"""

from __future__ import annotations

from honmaru.core.sessions import Session
from honmaru.security.policy import Decision, Effect

_KINDS = {
    "rcp": "resource control policy",
    "scp": "service control policy",
    "resource": "resource-based policy",
    "identity": "identity-based policy",
    "boundary": "permissions boundary",
    "session": "session policy",
}


def refusal(session: Session, action: str, resource_arn: str, decision: Decision) -> str:
    """The message of AccessDenied: who, what, on what, and which kind of policy said no."""
    head = f"User: {session.principal_arn} is not authorized to perform: {action} on resource: {resource_arn}"
    kind = _KINDS.get(decision.reason)
    if kind is None:
        return f"{head} because the resource is in another partition"
    if decision.effect is Effect.EXPLICIT_DENY:
        article = "an" if kind.startswith("i") else "a"
        return f"{head} with an explicit deny in {article} {kind}"
    return f"{head} because no {kind} allows the {action} action"
