"""Principals and their policies as the authenticator sees them: read across labels, compiled, cached until IAM changes.

Invariants:
- After a change of any IAM record has returned, no answer is given from before that change.
- What bears on a session is read at or below the session's label: principals, and the policies attached to them at or
  below the principal's own record, so nothing high changes what a low session may do.
- A principal that was deleted and made again has another unique id, and is another principal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from honmaru.core.clearances import Clearance
from honmaru.core.errors import ValidationFault
from honmaru.core.labels import Label
from honmaru.security.guard import Guard, Record
from honmaru.security.identity import entities
from honmaru.security.identity.managed import managed_document
from honmaru.security.policy import PolicyKind, PolicySet, compile_policy

_LIMIT = 65536
Value = TypeVar("Value")


@dataclass(frozen=True)
class Principal:
    """A user or role at the label of its record, with its compiled policies. `clearance` None: the ceiling only."""

    kind: str
    name: str
    id: str
    arn: str
    label: Label
    tags: dict[str, str]
    clearance: Clearance | None
    policies: PolicySet
    boundary: PolicySet | None
    trust: PolicySet | None
    max_session_s: int
    path: str
    networks: str
    """Where its sessions may come from; "" anywhere."""

    @property
    def service_linked(self) -> bool:
        return self.kind == entities.ROLE and self.path.startswith(entities.SERVICE_LINKED_PATH)


class Directories:
    """The directories of all accounts, made when they are first asked for. A change in one leaves the others alone."""

    def __init__(self, guard: Guard, *, partition: str) -> None:
        self._guard = guard
        self._partition = partition
        self._of: dict[str, Directory] = {}
        guard.on_change(entities.SERVICE, entities.KINDS - entities.WITHOUT_BEARING, self._forget)

    def of(self, account: str) -> Directory:
        """The directory of an account. It is empty for one that does not exist."""
        found = self._of.get(account)
        if found is None:
            if len(self._of) >= _LIMIT:
                self._of = {}
            found = self._of.setdefault(account, Directory(self._guard, partition=self._partition, account=account))
        return found

    def _forget(self, account: str | None) -> None:
        for directory in list(self._of.values()) if account is None else [self._of.get(account)]:
            if directory is not None:
                directory.forget()


class Directory:
    """A read-through cache of the principals of one account. Thread-safe: a change swaps the whole cache."""

    def __init__(self, guard: Guard, *, partition: str, account: str) -> None:
        self.trusted = guard.trusted(entities.SERVICE, entities.KINDS)
        self.account = account
        self._partition = partition
        self._cache: dict[object, Any] = {}

    def forget(self) -> None:
        """Ask the records again from now on."""
        self._cache = {}

    def cached(self, key: object, make: Callable[[], Value]) -> Value:
        """`make()`, once for each key until an IAM record changes. None and exceptions are not kept.

        A value that was computed while a change happened goes into the abandoned cache, so it is never served later.
        """
        cache = self._cache
        found: Value | None = cache.get(key)
        if found is None:
            found = make()
            if found is not None:
                if len(cache) >= _LIMIT:
                    cache.clear()
                cache[key] = found
        return found

    def records(self, kind: str, name: str) -> list[Record]:
        """Every instance of a name, at every label."""
        return self.cached(("records", kind, name), lambda: self.trusted.get(kind, name, account=self.account))

    def visible(self, kind: str, name: str, at: Label) -> Record | None:
        """The instance of a name that a session at `at` sees: its own, else a maximal one below it."""
        best: Record | None = None
        for record in sorted(self.records(kind, name), key=lambda r: r.label.canonical):
            if at.dominates(record.label) and (best is None or record.label.dominates(best.label)):
                best = record
        return best

    def principal(self, kind: str, name: str, at: Label, unique_id: str = "") -> Principal | None:
        """A user or role: by unique id among the instances at or below `at`, else the visible instance."""
        return self.cached(("principal", kind, name, at, unique_id), lambda: self._principal(kind, name, at, unique_id))

    def _principal(self, kind: str, name: str, at: Label, unique_id: str) -> Principal | None:
        if unique_id:
            found = [r for r in self.records(kind, name) if r.body["id"] == unique_id and at.dominates(r.label)]
            record = found[0] if found else None
        else:
            record = self.visible(kind, name, at)
        if record is None:
            return None
        body = record.body
        boundary = body.get("boundary")
        return Principal(
            kind=kind,
            name=name,
            id=body["id"],
            arn=entities.arn(self._partition, self.account, kind, body["path"], name),
            label=record.label,
            tags=dict(body["tags"]),
            clearance=_clearance(kind, body["tags"].get(entities.CLEARANCE_TAG)),
            policies=self._policies(body, record.label),
            boundary=self._attached([boundary], record.label) if boundary else None,
            trust=compile_policy(body["trust"], name, PolicyKind.TRUST) if kind == entities.ROLE else None,
            max_session_s=body.get("max_session_s", 0),
            path=body["path"],
            networks=body["tags"].get(entities.NETWORK_TAG, ""),
        )

    def _policies(self, body: Any, label: Label) -> PolicySet:
        """A principal's own policies and those of its groups. A group that is gone or not visible adds nothing."""
        bodies = [body]
        for name in body.get("groups", ()):
            group = self.visible(entities.GROUP, name, label)
            if group is not None:
                bodies.append(group.body)
        sets: list[PolicySet] = []
        for holder in bodies:
            sets += [compile_policy(text, name) for name, text in sorted(holder["inline"].items())]
            sets.append(self._attached(holder["attached"], label))
        return PolicySet.union(sets)

    def _attached(self, arns: list[str], label: Label) -> PolicySet:
        """Attached policies. One that is gone allows nothing."""
        sets: list[PolicySet] = []
        for policy_arn in arns:
            text = self.policy_text(policy_arn, label)
            if text is not None:
                sets.append(compile_policy(text, policy_arn))
        return PolicySet.union(sets)

    def group_policies(self, group_arn: str, at: Label) -> PolicySet | None:
        """The policies of the visible group of exactly that ARN."""
        record = self.visible(entities.GROUP, group_arn.rpartition("/")[2], at)
        if record is None:
            return None
        own = entities.arn(self._partition, self.account, entities.GROUP, record.body["path"], record.name)
        return self._policies(record.body, record.label) if own == group_arn else None

    def policy_texts(self, kind: str, name: str, at: Label) -> list[str]:
        """The documents of all policies of a user, group or role, its groups' and its boundary included."""
        record = self.visible(kind, name, at)
        if record is None:
            return []
        bodies = [record.body]
        bodies += [
            group.body
            for each in record.body.get("groups", ())
            if (group := self.visible(entities.GROUP, each, record.label)) is not None
        ]
        texts: list[str] = []
        for body in bodies:
            texts += body["inline"].values()
            arns = [*body["attached"], *([body["boundary"]] if body.get("boundary") else [])]
            texts += [text for arn in arns if (text := self.policy_text(arn, record.label)) is not None]
        return texts

    def policy_text(self, policy_arn: str, at: Label) -> str | None:
        """The default version of a managed policy, AWS's or the account's, as seen from a label."""
        text = managed_document(policy_arn, self._partition)
        if text is not None:
            return text
        prefix = f"arn:{self._partition}:iam::{self.account}:policy/"
        if not policy_arn.startswith(prefix):
            return None
        name = policy_arn.rpartition("/")[2]
        record = self.visible(entities.POLICY, name, at)
        if record is None or prefix + record.body["path"][1:] + name != policy_arn:
            return None
        body = record.body
        return str(body["versions"][body["default"]]["text"])


def _clearance(kind: str, text: str | None) -> Clearance | None:
    if text is None:
        return Clearance() if kind == entities.USER else None
    try:
        return Clearance.parse(text)
    except ValidationFault:
        return Clearance()  # fail closed: what does not parse clears for nothing but public information
