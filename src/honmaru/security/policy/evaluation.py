"""Compiled evaluation of policies: statements are indexed by action once, then only the relevant ones are asked.

Invariants:
- Order of decision: an explicit Deny anywhere; then an Allow of the identity's policies; then the permissions boundary
  and the session policy must allow as well. What nobody allows is denied.
- The answer depends on documents and request only. It never depends on whether the resource exists.
- An unresolvable variable in Resource matches nothing; in NotResource it makes an Allow not apply and a Deny apply.

Source: IAM user guide, "Policy evaluation logic".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from honmaru.security.policy.conditions import compile_condition
from honmaru.security.policy.documents import Document, PolicyKind, Statement, read_policy
from honmaru.security.policy.patterns import ArnPattern, compile_arn, glob

_SLICE_LIMIT = 4096


class Effect(Enum):
    ALLOWED = "allowed"
    EXPLICIT_DENY = "explicitDeny"
    IMPLICIT_DENY = "implicitDeny"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one set of policies says. `matched` are (policy name, Sid) of the statements that decided."""

    effect: Effect
    matched: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What all sets together say. `reason` is "", "identity", "boundary" or "session": the set that refused."""

    effect: Effect
    reason: str
    matched: tuple[tuple[str, str], ...]
    digest: str
    """Names the policies that were asked, for the ledger."""

    @property
    def allowed(self) -> bool:
        return self.effect is Effect.ALLOWED


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for the Principal element of trust policies. `service` is set for the platform's services only."""

    arn: str = ""
    issuer_arn: str = ""
    account: str = ""
    partition: str = ""
    service: str = ""


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One statement, ready to be asked."""

    policy: str
    sid: str
    allow: bool
    actions: tuple[Callable[[str], bool], ...]
    negated_actions: bool
    resources: tuple[ArnPattern, ...]
    negated_resources: bool
    everything: bool
    principals: Mapping[str, tuple[str, ...]]
    negated_principals: bool
    conditions: tuple[Callable[[Mapping[str, Any]], bool], ...]

    def concerns(self, action: str) -> bool:
        return any(match(action) for match in self.actions) != self.negated_actions

    def applies(self, resource: str, context: Mapping[str, Any]) -> bool:
        if not self.everything:
            answers = [pattern.matches(resource, context) for pattern in self.resources]
            if self.negated_resources:
                if any(answers) or (self.allow and None in answers):
                    return False
            elif not any(answers):
                return False
        return all(holds(context) for holds in self.conditions)

    def names(self, caller: Caller) -> bool:
        return _names(self.principals, caller) != self.negated_principals


def _names(principals: Mapping[str, tuple[str, ...]], caller: Caller) -> bool:
    if caller.service:
        return caller.service in principals.get("Service", ())
    account = (caller.account, f"arn:{caller.partition}:iam::{caller.account}:root")
    return any(p == "*" or p in account or p in (caller.arn, caller.issuer_arn) for p in principals.get("AWS", ()))


def names_exactly(principals: Mapping[str, tuple[str, ...]], caller: Caller) -> bool:
    """Whether the caller itself is named, not only its account: then a trust policy alone suffices in the account."""
    return not caller.service and any(p in (caller.arn, caller.issuer_arn) for p in principals.get("AWS", ()))


def _compile(document: Document, name: str) -> tuple[_Compiled, ...]:
    return tuple(_compile_statement(statement, name, document.variables) for statement in document.statements)


def _compile_statement(statement: Statement, name: str, variables: bool) -> _Compiled:
    return _Compiled(
        policy=name,
        sid=statement.sid,
        allow=statement.allow,
        actions=tuple(glob(action.lower()) for action in statement.actions),
        negated_actions=statement.negated_actions,
        resources=tuple(compile_arn(resource, variables=variables) for resource in statement.resources),
        negated_resources=statement.negated_resources,
        everything="*" in statement.resources and not statement.negated_resources,
        principals=statement.principals,
        negated_principals=statement.negated_principals,
        conditions=tuple(compile_condition(statement.condition, variables=variables)),
    )


@lru_cache(maxsize=4096)
def compile_policy(text: str, name: str = "", kind: PolicyKind = PolicyKind.IDENTITY) -> PolicySet:
    """One document → a set of one. Raises MalformedPolicy. Cached: the same text is compiled once."""
    return PolicySet(_compile(read_policy(text, kind), name), hashlib.sha384(text.encode()).hexdigest())


class PolicySet:
    """Compiled statements that are asked together, sliced by action on first use. Immutable but for that cache."""

    def __init__(self, statements: Sequence[_Compiled], digest: str) -> None:
        self._statements = tuple(statements)
        self._slices: dict[str, tuple[tuple[_Compiled, ...], tuple[_Compiled, ...]]] = {}
        self.digest = digest

    @staticmethod
    def union(sets: Sequence[PolicySet]) -> PolicySet:
        """All statements of several sets."""
        digest = hashlib.sha384("\n".join(sorted(s.digest for s in sets)).encode()).hexdigest()
        return PolicySet([statement for s in sets for statement in s._statements], digest)

    def evaluate(self, action: str, resource: str, context: Mapping[str, Any], caller: Caller | None = None) -> Outcome:
        """What these policies say of one request. Context keys are in lower case.

        `caller` is asked for by trust policies; identity policies have no principal.
        """
        denies, allows = self._slice(action)
        for statement in denies:
            if (caller is None or statement.names(caller)) and statement.applies(resource, context):
                return Outcome(Effect.EXPLICIT_DENY, ((statement.policy, statement.sid),))
        for statement in allows:
            if (caller is None or statement.names(caller)) and statement.applies(resource, context):
                return Outcome(Effect.ALLOWED, ((statement.policy, statement.sid),))
        return Outcome(Effect.IMPLICIT_DENY)

    def allows_exactly(self, action: str, context: Mapping[str, Any], caller: Caller) -> bool:
        """Whether a trust policy allows the caller by its own name, not only through its account."""
        _, allows = self._slice(action)
        return any(
            not s.negated_principals and names_exactly(s.principals, caller) and s.applies("*", context) for s in allows
        )

    def _slice(self, action: str) -> tuple[tuple[_Compiled, ...], tuple[_Compiled, ...]]:
        found = self._slices.get(action)
        if found is None:
            lowered = action.lower()
            concerned = [s for s in self._statements if s.concerns(lowered)]
            found = (tuple(s for s in concerned if not s.allow), tuple(s for s in concerned if s.allow))
            if len(self._slices) >= _SLICE_LIMIT:
                self._slices.clear()
            self._slices[action] = found
        return found


def decide(
    action: str,
    resource: str,
    context: Mapping[str, Any],
    *,
    identity: PolicySet,
    boundary: PolicySet | None = None,
    session: PolicySet | None = None,
) -> Decision:
    """The decision over all sets that bear on a principal. See the module's invariants for the order."""
    sets = [("identity", identity)]
    if boundary is not None:
        sets.append(("boundary", boundary))
    if session is not None:
        sets.append(("session", session))
    digest = sets[0][1].digest if len(sets) == 1 else PolicySet.union([s for _, s in sets]).digest
    outcomes = [(reason, policies.evaluate(action, resource, context)) for reason, policies in sets]
    for wanted in (Effect.EXPLICIT_DENY, Effect.IMPLICIT_DENY):
        for reason, outcome in outcomes:
            if outcome.effect is wanted:
                return Decision(wanted, reason, outcome.matched, digest)
    return Decision(Effect.ALLOWED, "", outcomes[0][1].matched, digest)
