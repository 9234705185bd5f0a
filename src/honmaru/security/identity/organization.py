"""What an organisation lays on its accounts: service and resource control policies, from the root to the account.

The records are made by `services.organizations` in the management account: kinds `organization` (one, named "self"),
`account` (by account number), `unit` (roots and organisational units, by id) and `policy` (by id). A unit's and an
account's body hold `parent` and `policies` (ids attached to it, by type).

Invariants:
- Control policies grant nothing. The management account's principals and resources are bound by none, nor are
  service-linked roles.
- What binds a session was read at or below its label.
- At every level some policy must allow: a level without one allows nothing (AWS keeps one attached at all times).

Source: AWS Organizations user guide, "SCP evaluation", "RCP evaluation".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from honmaru.core.labels import Label
from honmaru.security.guard import Guard, Record
from honmaru.security.policy import PolicyKind, PolicySet, compile_policy

SERVICE = "organizations"
ORGANIZATION, ACCOUNT, UNIT, POLICY = "organization", "account", "unit", "policy"
KINDS = frozenset((ORGANIZATION, ACCOUNT, UNIT, POLICY))
SELF = "self"
SCP, RCP = "SERVICE_CONTROL_POLICY", "RESOURCE_CONTROL_POLICY"
FULL_ACCESS = {SCP: "p-FullAWSAccess", RCP: "p-RCPFullAWSAccess"}
"""The policies that AWS lays down: they allow everything and are attached where nothing else was chosen."""
RCP_SERVICES = frozenset(("s3", "sts", "kms", "sqs", "secretsmanager", "ecr", "dynamodb", "cognito-idp", "logs"))
"""Services whose resources resource control policies bind."""
_DEPTH = 8
_LIMIT = 65536


@dataclass(frozen=True, slots=True)
class Controls:
    """What binds one account. `scps` and `rcps` have one set a level, the root first."""

    organization: str = ""
    path: str = ""
    """As aws:PrincipalOrgPaths words it: o-…/r-…/ou-…/."""
    scps: tuple[PolicySet, ...] = ()
    rcps: tuple[PolicySet, ...] = ()


NONE = Controls()


class Organization:
    """A read-through cache of controls. Thread-safe: a change swaps it."""

    def __init__(self, guard: Guard, *, management: str) -> None:
        self.management = management
        self._guard = guard
        self._trusted = guard.trusted(SERVICE, KINDS)
        self._cache: dict[tuple[str, Label], Controls] = {}
        self._accounts: dict[tuple[str, Label | None], bool] = {}
        guard.on_change(SERVICE, KINDS, self._forget_controls)
        guard.on_change(SERVICE, {ACCOUNT}, self._forget_accounts)

    def _forget_controls(self, _account: str | None) -> None:
        self._cache = {}

    def _forget_accounts(self, _account: str | None) -> None:
        self._accounts = {}

    def controls(self, account: str, label: Label) -> Controls:
        """What binds an account's principals and resources, as a session at `label` sees it."""
        cache = self._cache
        found = cache.get((account, label))
        if found is None:
            if len(cache) >= _LIMIT:
                cache.clear()
            found = cache[account, label] = self._controls(account, label)
        return found

    def member(self, account: str, label: Label) -> bool:
        """Whether an account is the management account, or one that the organisation made and has not closed."""
        return account == self.management or self._is(account, label)

    def known(self, account: str) -> bool:
        """As `member`, at whichever label: for sign-in, which must find the account of a key before its label."""
        return account == self.management or self._is(account, None)

    def _is(self, account: str, label: Label | None) -> bool:
        accounts = self._accounts
        found = accounts.get((account, label))
        if found is None:
            if label is None:
                records = self._trusted.get(ACCOUNT, account, account=self.management)
            else:
                seen = self._guard.sight(label, SERVICE).get(ACCOUNT, account, account=self.management)
                records = [] if seen is None else [seen]
            found = any(record.body["status"] == "ACTIVE" for record in records)
            if len(accounts) >= _LIMIT:
                accounts.clear()
            accounts[account, label] = found
        return found

    def _controls(self, account: str, label: Label) -> Controls:
        sight = self._guard.sight(label, SERVICE)

        def read(kind: str, name: str) -> Record | None:
            return sight.get(kind, name, account=self.management)

        organization = read(ORGANIZATION, SELF)
        place = None if organization is None else read(ACCOUNT, account)
        if organization is None or place is None:
            return NONE
        levels: list[Mapping[str, Any]] = [place.body]
        path = ""
        while levels[-1].get("parent") and len(levels) < _DEPTH:
            name = levels[-1]["parent"]
            unit = read(UNIT, name)
            if unit is None:
                break
            levels.append(unit.body)
            path = f"{name}/{path}"
        path = f"{organization.body['id']}/{path}"
        if account == self.management:
            return Controls(organization.body["id"], path)

        def sets(kind: PolicyKind, wanted: str) -> tuple[PolicySet, ...]:
            if wanted not in organization.body["enabled"]:
                return ()
            return tuple(self._level(level, kind, wanted, read) for level in reversed(levels))

        return Controls(organization.body["id"], path, sets(PolicyKind.SCP, SCP), sets(PolicyKind.RCP, RCP))

    @staticmethod
    def _level(level: Mapping[str, Any], kind: PolicyKind, wanted: str, read: Any) -> PolicySet:
        found = []
        for policy_id in level["policies"].get(wanted, ()):
            if policy_id == FULL_ACCESS[wanted]:
                found.append(EVERYTHING)
                continue
            record = read(POLICY, policy_id)
            if record is not None:
                found.append(compile_policy(record.body["content"], policy_id, kind))
        return PolicySet.union(found) if found else NOTHING_ALLOWED


EVERYTHING = compile_policy(
    '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}', "FullAWSAccess"
)
NOTHING_ALLOWED = PolicySet((), "")
