"""The decision over all policies that bear on a request, in the order that AWS publishes.

    explicit Deny anywhere → resource control policies → service control policies → resource policy → identity
    policies → permissions boundary → session policies

Invariants:
- What nobody allows is denied, and an explicit Deny in any policy wins over every Allow.
- Service and resource control policies grant nothing: at every level, from the root to the account, one must allow.
- Within one account a resource policy that names the very session or IAM user allows by itself; one that names its
  role, or everybody, stands in for an identity policy; one that names the account only leaves it to identity policies.
- A role's trust policy must allow in every case; naming everybody there still asks for an identity policy.
- Across accounts both sides must allow: the resource's policy, and the caller's own policies.
- A resource whose policy governs (a KMS key) is opened by identity policies only where that policy names the account.
- The answer depends on documents and request only. It never depends on what lies above the session.

Stricter than AWS: `Principal: "*"` stands in for an identity policy, it does not overrule boundaries; see
`statements` for NotPrincipal.

Source: IAM user guide, "Policy evaluation logic", "Cross-account policy evaluation logic", "Resource control policies";
AWS Organizations user guide, "SCP evaluation"; AWS KMS developer guide, "Key policies".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from honmaru.security.policy.conditions import Context
from honmaru.security.policy.statements import NOTHING, Caller, Effect, Naming, Outcome, PolicySet

ORDER = ("rcp", "scp", "resource", "identity", "boundary", "session")


@dataclass(frozen=True, slots=True)
class Decision:
    """What all policies together say. `reason` names the kind that refused (one of ORDER), "" when allowed."""

    effect: Effect
    reason: str
    matched: tuple[tuple[str, str], ...]
    digests: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """The kinds of policies that were asked."""

    def asked(self, kind: str) -> bool:
        """Whether policies of a kind (one of ORDER) had a say."""
        return kind in self.kinds

    @property
    def allowed(self) -> bool:
        return self.effect is Effect.ALLOWED

    @property
    def digest(self) -> str:
        """Names the policies that were asked, for the ledger."""
        if len(self.digests) == 1:
            return self.digests[0]
        return hashlib.sha384("\n".join(sorted(self.digests)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ResourcePolicy:
    """The resource's side of a request. `policies` None: it bears none.

    `same_account`: the caller is of the owner's account. `governs`, `confined`: see `security.calls.Resource`.
    `alone`: from which naming on the policy suffices without identity policies, within the account; a role's trust
    policy does so for who is named itself, not for everybody.
    """

    policies: PolicySet | None = None
    caller: Caller | None = None
    same_account: bool = True
    governs: bool = False
    confined: bool = False
    alone: Naming = Naming.EVERYBODY


OWN = ResourcePolicy()


def decide(
    action: str,
    resource: str,
    context: Context,
    *,
    identity: PolicySet | None,
    boundary: PolicySet | None = None,
    session: PolicySet | None = None,
    of_resource: ResourcePolicy = OWN,
    scps: Sequence[PolicySet] = (),
    rcps: Sequence[PolicySet] = (),
) -> Decision:
    """The decision over everything that bears on a request. See the module for the order.

    Args:
        identity: The caller's own policies; None for the platform's services and federated callers, who have none.
        boundary, session: None where there is none.
        scps, rcps: One set for each level from the root of the organisation to the account.
    """
    said: list[tuple[str, PolicySet, Outcome]] = []
    for policies in rcps:
        said.append(("rcp", policies, policies.evaluate(action, resource, context)))
    for policies in scps:
        said.append(("scp", policies, policies.evaluate(action, resource, context)))
    granted = NOTHING
    if of_resource.policies is not None:
        granted = of_resource.policies.evaluate(action, resource, context, of_resource.caller)
        if of_resource.confined and not of_resource.same_account and granted.effect is Effect.ALLOWED:
            granted = NOTHING
        said.append(("resource", of_resource.policies, granted))
    own = NOTHING
    if identity is not None:
        own = identity.evaluate(action, resource, context)
        said.append(("identity", identity, own))
    limits = 0
    if boundary is not None:
        said.append(("boundary", boundary, boundary.evaluate(action, resource, context)))
        limits += 1
    if session is not None:
        said.append(("session", session, session.evaluate(action, resource, context)))
        limits += 1
    digests = tuple(policies.digest for _, policies, _ in said)
    kinds = tuple(kind for kind, _, _ in said)
    for reason, _, outcome in said:
        if outcome.effect is Effect.EXPLICIT_DENY:
            return Decision(Effect.EXPLICIT_DENY, reason, outcome.matched, digests, kinds)
    for reason, _, outcome in said[: len(rcps) + len(scps)]:
        if outcome.effect is Effect.IMPLICIT_DENY:
            return Decision(Effect.IMPLICIT_DENY, reason, (), digests, kinds)
    refused = _grants(of_resource, granted, own, has_identity=identity is not None)
    if refused:
        return Decision(Effect.IMPLICIT_DENY, refused, (), digests, kinds)
    direct = of_resource.same_account and granted.naming is Naming.SESSION
    if not direct:
        for reason, _, outcome in said[len(said) - limits :] if limits else ():
            if outcome.effect is Effect.IMPLICIT_DENY:
                return Decision(Effect.IMPLICIT_DENY, reason, (), digests, kinds)
    matched = own.matched if own.effect is Effect.ALLOWED else granted.matched
    return Decision(Effect.ALLOWED, "", matched, digests, kinds)


def _grants(side: ResourcePolicy, granted: Outcome, own: Outcome, *, has_identity: bool) -> str:
    """ "" when the resource's side and the caller's side together grant the request, else the kind that does not."""
    own_allows = own.effect is Effect.ALLOWED
    if not has_identity:
        return "" if granted.naming is Naming.SESSION else "resource"
    if side.same_account and not side.governs:
        return "" if own_allows or granted.naming >= side.alone else "identity"
    if granted.naming is Naming.NOT:
        return "resource"
    if side.same_account and granted.naming >= side.alone:
        return ""
    return "" if own_allows else "identity"
