"""The policy decision point: what IAM says of a request, over every policy that bears on it.

Invariants:
- No database on the hot path: principals, resources and control policies are read once and kept until they change.
- What the session says of itself wins over every condition key that the request or a provider states.
- Why a request was refused is told in full only to who may decode it: at the label of the refused session or above,
  with sts:DecodeAuthorizationMessage.

Source: IAM user guide "Policy evaluation logic", "Troubleshoot access denied error messages", "Comparing the AWS STS
API operations"; NIST SP 800-207.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from honmaru.core.errors import AccessDenied, IntegrityFault, NotFound, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Resource
from honmaru.security.identity import entities
from honmaru.security.identity.context import RequestContext
from honmaru.security.identity.directory import Principal
from honmaru.security.identity.organization import NONE, RCP_SERVICES, Controls
from honmaru.security.identity.part import Part
from honmaru.security.identity.refusals import refusal
from honmaru.security.policy import (
    Caller,
    Decision,
    Effect,
    PolicyKind,
    PolicySet,
    ResourcePolicy,
    compile_policy,
    decide,
)

_MESSAGE = b"sts authorization message 1"
_UNBOUND = ResourcePolicy()


class Decisions(Part):
    """See the module."""

    def authorize(self, session: Session, action: str, resource_arn: str, context: Mapping[str, Any]) -> Decision:
        """What IAM says of one request. Never raises for a refusal; see `require`.

        `context` holds the request's condition keys; the session's and the resource's own are added here and win.
        """
        return self._ask(session, action, resource_arn, context)[0]

    def require(self, session: Session, action: str, resource_arn: str, context: Mapping[str, Any]) -> str:
        """The account of the resource, "" where none is known: the request acts in that account.

        Raises AccessDenied, worded as AWS words it, unless IAM allows the request. Its `explanation` is the encoded
        authorisation message.
        """
        decision, resource, full = self._ask(session, action, resource_arn, context)
        if decision.effect is not Effect.ALLOWED:
            denied = AccessDenied(refusal(session, action, resource_arn, decision))
            denied.explanation = self._explained(session, action, resource_arn, decision, full)
            raise denied
        return "" if resource is None else resource.account

    def _ask(
        self, session: Session, action: str, resource_arn: str, context: Mapping[str, Any]
    ) -> tuple[Decision, Resource | None, RequestContext]:
        parts = resource_arn.split(":", 5)
        is_arn = len(parts) == 6
        principal = self.principal_of(session)
        resource = self.resources.find(parts, session.label, session.account) if is_arn else None
        if resource is not None and resource.account != session.account and action in self.resources.makers:
            resource = None
        owner = session.account
        if resource is not None:
            owner = resource.account
            resource_arn = resource.arn or resource_arn
        elif is_arn and parts[4] not in ("", "aws"):
            owner = parts[4]
        controls = self.organization.controls(session.account, session.label)

        def gather() -> dict[str, Any]:
            found = resource
            if found is None and is_arn:
                found = self.resources.find(parts, session.label, session.account, policies=False)
            return self._context(session, principal, found, owner, controls, context)

        full = RequestContext(gather)
        if is_arn and parts[1] != self.partition:
            return Decision(Effect.EXPLICIT_DENY, "partition", ()), resource, full
        if principal is None or _barred(session, action):
            return Decision(Effect.IMPLICIT_DENY, "identity", ()), resource, full
        exempt = principal.service_linked
        rcps: Sequence[PolicySet] = ()
        if not exempt and action.partition(":")[0] in RCP_SERVICES:
            rcps = (controls if owner == session.account else self.organization.controls(owner, session.label)).rcps
        session_policy = None if session.session_policy is None else compile_policy(session.session_policy, "session")
        decision = decide(
            action,
            resource_arn,
            full,
            identity=principal.policies,
            boundary=principal.boundary,
            session=session_policy,
            of_resource=self._side(session, resource, owner),
            scps=() if exempt else controls.scps,
            rcps=rcps,
        )
        return decision, resource, full

    def _side(self, session: Session, resource: Resource | None, owner: str) -> ResourcePolicy:
        same_account = owner == session.account
        if resource is None or (resource.policy is None and not resource.governs):
            return _UNBOUND if same_account else ResourcePolicy(same_account=False)
        policies = None if resource.policy is None else compile_policy(resource.policy, "", PolicyKind.RESOURCE)
        return ResourcePolicy(
            policies,
            caller_of(session),
            same_account=same_account,
            governs=resource.governs,
            confined=resource.confined,
        )

    # Condition keys

    def _context(
        self,
        session: Session,
        principal: Principal | None,
        resource: Resource | None,
        owner: str,
        controls: Controls,
        stated: Mapping[str, Any],
    ) -> dict[str, Any]:
        full = lowered(stated)
        if resource is not None:
            full |= {key.lower(): value for key, value in resource.context.items()}
            full |= {f"aws:resourcetag/{key.lower()}": value for key, value in resource.tags.items()}
            full["honmaru:resourcelabel"] = resource.label.banner
            full["honmaru:resourcelevel"] = resource.label.level
        full["aws:resourceaccount"] = owner
        full["aws:resourceorgid"] = self.organization.controls(owner, session.label).organization or None
        full |= self.session_context(session, principal, controls)
        return full

    def session_context(
        self, session: Session, principal: Principal | None, controls: Controls = NONE
    ) -> dict[str, Any]:
        """The condition keys that a session brings, in lower case."""
        now = self.clock.now()
        temporary = session.issued_s > 0
        is_user = session.kind == "user"
        full: dict[str, Any] = {
            "aws:currenttime": now,
            "aws:epochtime": int(now.timestamp()),
            "aws:federatedprovider": session.federated_provider or None,
            "aws:multifactorauthpresent": session.mfa_s > 0 if temporary else None,
            "aws:multifactorauthage": int(now.timestamp() - session.mfa_s) if session.mfa_s else None,
            "aws:principalaccount": session.account,
            "aws:principalarn": session.issuer_arn,
            "aws:principalisawsservice": False,
            "aws:principalorgid": controls.organization or None,
            "aws:principalorgpaths": [controls.path] if controls.path else None,
            "aws:principaltype": _TYPES.get(session.kind, "User"),
            "aws:requestedregion": session.region,
            "aws:securetransport": session.secure_transport,
            "aws:sourceip": session.source_ip,
            "aws:tokenissuetime": datetime.fromtimestamp(session.issued_s, UTC) if temporary else None,
            "aws:useragent": session.user_agent or None,
            "aws:userid": session.principal_id,
            "aws:username": session.issuer_arn.rpartition("/")[2] if is_user else None,
            "aws:sourceidentity": session.source_identity or None,
            "honmaru:sessionlabel": session.label.banner,
            "honmaru:sessionlevel": session.label.level,
        }
        if principal is not None:
            full |= {f"aws:principaltag/{key.lower()}": value for key, value in principal.tags.items()}
        full |= {f"aws:principaltag/{key.lower()}": value for key, value in session.tags.items()}
        return full

    # Why not?

    def _explained(
        self, session: Session, action: str, resource_arn: str, decision: Decision, context: RequestContext
    ) -> str:
        items = [
            {"key": key, "values": {"items": [{"value": _shown(each)} for each in _several(value)]}}
            for key, value in sorted(context.items())
            if value is not None
        ]
        content = {
            "allowed": False,
            "explicitDeny": decision.effect is Effect.EXPLICIT_DENY,
            "matchedStatements": {
                "items": [{"statementId": sid, "sourcePolicyId": policy} for policy, sid in decision.matched]
            },
            "failures": {"items": [{"policyType": decision.reason}]},
            "context": {
                "principal": {"id": session.principal_id, "arn": session.principal_arn},
                "action": action,
                "resource": resource_arn,
                "conditions": {"items": items},
            },
        }
        sealed = self._keyring.seal(
            self.account, BOTTOM.canonical, orjson.dumps([session.label.canonical, session.account, content]), _MESSAGE
        )
        return base64.urlsafe_b64encode(sealed).decode()

    def decode_message(self, session: Session, encoded: str) -> str:
        """The JSON text of an encoded authorisation message of the session's account, at or below its label.

        Raises ValidationFault for what is no such message, or none that this session may see.
        """
        refused = ValidationFault(
            "Authorization message could not be decoded.", code="InvalidAuthorizationMessageException"
        )
        try:
            opened = self._keyring.open(
                self.account, BOTTOM.canonical, base64.b64decode(encoded, altchars=b"-_", validate=True), _MESSAGE
            )
        except (IntegrityFault, binascii.Error, ValueError):
            raise refused from None
        label, account, content = orjson.loads(opened)
        if account != session.account or not session.label.dominates(Label.decode(label)):
            raise refused
        return orjson.dumps(content).decode()

    # What if?

    def simulate(
        self,
        principal_arn: str,
        at: Label,
        action: str,
        resource_arn: str,
        context: Mapping[str, Any],
        more: Sequence[PolicySet] = (),
        *,
        boundary: PolicySet | None = None,
        resource_policy: PolicySet | None = None,
        caller: Caller | None = None,
    ) -> Decision:
        """What IAM would say of a request of a user, role or group's member, as a session at `at` sees its policies,
        with `more` added.

        `boundary` replaces the principal's own. Raises NotFound when there is no such principal at or below `at`.
        """
        account = principal_arn.split(":", 5)[4] if principal_arn.count(":") >= 5 else ""
        group = self.directories.of(account).group_policies(principal_arn, at) if ":group/" in principal_arn else None
        if group is not None:
            scps = self.organization.controls(account, at).scps
            own = PolicySet.union([group, *more])
            return decide(action, resource_arn, lowered(context), identity=own, boundary=boundary, scps=scps)
        principal = self.principal_by_arn(principal_arn, at)
        if principal is None:
            raise NotFound(f"The entity {principal_arn} cannot be found.", code="NoSuchEntity")
        stated = lowered(context)
        stated.setdefault("aws:principalarn", principal.arn)
        if principal.kind == entities.USER:
            stated.setdefault("aws:username", principal.name)
        for key, value in principal.tags.items():
            stated.setdefault(f"aws:principaltag/{key.lower()}", value)
        controls = self.organization.controls(account, at)
        side = ResourcePolicy()
        if resource_policy is not None:
            who = caller or Caller(principal.arn, principal.arn, account, self.partition, unique_id=principal.id)
            side = ResourcePolicy(resource_policy, who, same_account=who.account == account)
        return decide(
            action,
            resource_arn,
            stated,
            identity=PolicySet.union([principal.policies, *more]) if more else principal.policies,
            boundary=boundary if boundary is not None else principal.boundary,
            of_resource=side,
            scps=() if principal.service_linked else controls.scps,
        )


def lowered(context: Mapping[str, Any]) -> dict[str, Any]:
    """Condition keys in lower case."""
    return {key.lower(): value for key, value in context.items()}


_TYPES = {"assumed-role": "AssumedRole", "federated-user": "FederatedUser", "user": "User"}


def caller_of(session: Session) -> Caller:
    """A session as the Principal element of a policy knows it."""
    return Caller(
        session.principal_arn,
        session.issuer_arn,
        session.account,
        session.partition,
        unique_id=session.chain[-1][2] if session.chain else session.principal_id.partition(":")[0],
    )


def _barred(session: Session, action: str) -> bool:
    """What AWS keeps from temporary credentials of users, whatever their policies say: IAM, to federated users and to
    sessions without a one-time password."""
    if session.issued_s <= 0 or session.kind == "assumed-role" or not action.lower().startswith("iam:"):
        return False
    return session.kind == "federated-user" or not session.mfa_s


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)
