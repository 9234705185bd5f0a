"""Compiled statements and sets of them: sliced by action on first use, and within a slice found by their resource.

Invariants:
- A statement that could apply to a request is among the candidates of its slice; the index only leaves out others.
- An unresolvable variable in Resource matches nothing; in NotResource it makes an Allow not apply and a Deny apply.
- NotPrincipal errs on the safe side: a Deny exempts only who is listed with account, role and session; an Allow
  leaves out whoever is listed by any of them.

Source: IAM user guide, "AWS JSON policy elements: Principal", "... NotPrincipal".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import lru_cache

from honmaru.security.policy.conditions import Context, compile_condition
from honmaru.security.policy.documents import Document, PolicyKind, Statement, read_policy
from honmaru.security.policy.patterns import ArnPattern, compile_arn, glob

_SLICE_LIMIT = 4096
_PLAIN_LIMIT = 8
"""Slices up to this size are asked statement by statement."""


class Effect(Enum):
    ALLOWED = "allowed"
    EXPLICIT_DENY = "explicitDeny"
    IMPLICIT_DENY = "implicitDeny"


class Naming(IntEnum):
    """How a resource policy names a caller; the greater, the less does other policy limit what it grants."""

    NOT = 0
    ACCOUNT = 1
    """Its account: a delegation to that account's identity policies."""
    EVERYBODY = 2
    """`*`: stands in for an identity policy, but for trust policies."""
    PRINCIPAL = 3
    """The role or user behind a session: boundary and session policies must allow as well."""
    SESSION = 4
    """The very session, or an IAM user: implicit denies of the caller's own policies do not count."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one set of policies says. `matched` are (policy name, Sid) of the statements that decided."""

    effect: Effect
    matched: tuple[tuple[str, str], ...] = ()
    naming: Naming = Naming.NOT


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for the Principal element. `service` is set for the platform's services only, `federated` (the ARN of
    an identity provider) for who comes with a token or assertion of it.

    `arn` is the session's (assumed-role, federated-user) or user's, `issuer_arn` that of the role or user behind it,
    `unique_id` that one's id (AROA..., AIDA...).
    """

    arn: str = ""
    issuer_arn: str = ""
    account: str = ""
    partition: str = ""
    service: str = ""
    unique_id: str = ""
    federated: str = ""


@dataclass(frozen=True, slots=True)
class Compiled:
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
    conditions: tuple[Callable[[Context], bool], ...]

    def concerns(self, action: str) -> bool:
        return any(match(action) for match in self.actions) != self.negated_actions

    def applies(self, resource: str, context: Context) -> bool:
        if not self.everything:
            if self.negated_resources:
                answers = [pattern.matches(resource, context) for pattern in self.resources]
                if True in answers or (self.allow and None in answers):
                    return False
            else:
                for pattern in self.resources:
                    if pattern.matches(resource, context):
                        break
                else:
                    return False
        return not self.conditions or all(holds(context) for holds in self.conditions)

    def names(self, caller: Caller) -> Naming:
        """How the statement names a caller."""
        if not self.negated_principals:
            return _naming(self.principals, caller)
        listed = [name in self.principals.get(kind, ()) for kind, name in _layers(caller)]
        exempt = any(listed) if self.allow else all(listed)
        everybody = "*" in self.principals.get("AWS", ())
        return Naming.NOT if exempt or everybody else Naming.EVERYBODY


def _naming(principals: Mapping[str, tuple[str, ...]], caller: Caller) -> Naming:
    if caller.service:
        return Naming.SESSION if caller.service in principals.get("Service", ()) else Naming.NOT
    if caller.federated:
        return Naming.SESSION if caller.federated in principals.get("Federated", ()) else Naming.NOT
    named = principals.get("AWS", ())
    best = Naming.NOT
    for principal in named:
        if principal == caller.arn:
            return Naming.SESSION
        if principal == caller.issuer_arn or principal == caller.unique_id != "":
            best = Naming.PRINCIPAL
        elif principal == "*":
            best = max(best, Naming.EVERYBODY)
        elif best is Naming.NOT and principal in (caller.account, f"arn:{caller.partition}:iam::{caller.account}:root"):
            best = Naming.ACCOUNT
    return best


def _layers(caller: Caller) -> list[tuple[str, str]]:
    """All that a NotPrincipal must list to exempt a caller."""
    if caller.service:
        return [("Service", caller.service)]
    if caller.federated:
        return [("Federated", caller.federated)]
    root = f"arn:{caller.partition}:iam::{caller.account}:root"
    return [("AWS", arn) for arn in dict.fromkeys((root, caller.issuer_arn, caller.arn))]


def _compile(document: Document, name: str) -> tuple[Compiled, ...]:
    return tuple(_compile_statement(statement, name, document.variables) for statement in document.statements)


def _compile_statement(statement: Statement, name: str, variables: bool) -> Compiled:
    return Compiled(
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


@lru_cache(maxsize=16384)
def compile_policy(text: str, name: str = "", kind: PolicyKind = PolicyKind.IDENTITY) -> PolicySet:
    """One document → a set of one. Raises MalformedPolicy. Cached: the same text is compiled once."""
    return PolicySet(_compile(read_policy(text, kind), name), hashlib.sha384(text.encode()).hexdigest())


class _Index:
    """Statements of one effect that concern one action, found by the literal text with which their resources begin."""

    __slots__ = ("_always", "_by_length", "_plain")

    def __init__(self, statements: Sequence[Compiled]) -> None:
        self._plain = tuple(statements) if len(statements) <= _PLAIN_LIMIT else None
        always: list[Compiled] = []
        by_length: dict[int, dict[str, list[Compiled]]] = {}
        for statement in statements if self._plain is None else ():
            heads = {pattern.head for pattern in statement.resources}
            if statement.everything or statement.negated_resources or "" in heads:
                always.append(statement)
                continue
            for head in heads:
                by_length.setdefault(len(head), {}).setdefault(head, []).append(statement)
        self._always = tuple(always)
        self._by_length = tuple(
            (length, {head: tuple(found) for head, found in heads.items()}) for length, heads in by_length.items()
        )

    def candidates(self, resource: str) -> Sequence[Compiled]:
        """Every statement that could apply to a resource, and few others."""
        if self._plain is not None:
            return self._plain
        if not self._by_length:
            return self._always
        found = list(self._always)
        last = resource.split(":", 5)[-1]
        for length, heads in self._by_length:
            found += heads.get(last[:length], ())
        return found


class PolicySet:
    """Compiled statements that are asked together. Immutable but for the cache of slices."""

    def __init__(self, statements: Sequence[Compiled], digest: str) -> None:
        self._statements = tuple(statements)
        self._slices: dict[str, tuple[_Index, _Index]] = {}
        self.digest = digest

    @staticmethod
    def union(sets: Sequence[PolicySet]) -> PolicySet:
        """All statements of several sets."""
        if len(sets) == 1:
            return sets[0]
        digest = hashlib.sha384("\n".join(sorted(s.digest for s in sets)).encode()).hexdigest()
        return PolicySet([statement for s in sets for statement in s._statements], digest)

    def evaluate(self, action: str, resource: str, context: Context, caller: Caller | None = None) -> Outcome:
        """What these policies say of one request. Context keys are in lower case.

        `caller` is asked for by trust and resource policies; others have no principal. Of several Allow statements
        the one counts that names the caller most closely.
        """
        denies, allows = self._slice(action)
        for statement in denies.candidates(resource):
            if (caller is None or statement.names(caller)) and statement.applies(resource, context):
                return Outcome(Effect.EXPLICIT_DENY, ((statement.policy, statement.sid),))
        best: Compiled | None = None
        closest = Naming.NOT
        for statement in allows.candidates(resource):
            naming = Naming.SESSION if caller is None else statement.names(caller)
            if naming > closest and statement.applies(resource, context):
                best, closest = statement, naming
                if naming is Naming.SESSION:
                    break
        if best is None:
            return NOTHING
        return Outcome(Effect.ALLOWED, ((best.policy, best.sid),), closest)

    def _slice(self, action: str) -> tuple[_Index, _Index]:
        found = self._slices.get(action)
        if found is None:
            lowered = action.lower()
            concerned = [s for s in self._statements if s.concerns(lowered)]
            found = (_Index([s for s in concerned if not s.allow]), _Index([s for s in concerned if s.allow]))
            if len(self._slices) >= _SLICE_LIMIT:
                self._slices.clear()
            self._slices[action] = found
        return found


NOTHING = Outcome(Effect.IMPLICIT_DENY)
