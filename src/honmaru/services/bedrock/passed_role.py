"""The role that a caller passes to a job: may they, and does it trust Bedrock?"""

from __future__ import annotations

from typing import Protocol

from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Call

PRINCIPAL = "bedrock.amazonaws.com"


class Roles(Protocol):
    """What this needs of `security.identity.Identity`."""

    def service_session(
        self, role_arn: str, *, label: Label, service: str, session_name: str, human: str, account: str
    ) -> Session: ...


def check(call: Call, roles: Roles, role_arn: str, session_name: str) -> str:
    """ARN of the human behind the call. Raises AccessDenied, or ValidationFault for a role that cannot be assumed."""
    session = call.session
    call.authorize("iam:PassRole", role_arn, {"iam:PassedToService": PRINCIPAL})
    human = session.human or session.principal_arn
    roles.service_session(
        role_arn,
        label=session.label,
        service=PRINCIPAL,
        session_name=session_name,
        human=human,
        account=session.account,
    )
    return human
