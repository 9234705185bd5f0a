"""What the parts of `Identity` share: where it stands, what it reads, and who stands behind a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from honmaru.core.clearances import Clearance, ceiling_permits, may_hold
from honmaru.core.errors import AuthenticationFailed
from honmaru.core.labels import Label
from honmaru.core.partitions import Partition
from honmaru.core.sessions import Session
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.identity import entities
from honmaru.security.identity.directory import Directories, Directory, Principal
from honmaru.security.identity.organization import Organization
from honmaru.security.identity.resources import Resources

Link = tuple[str, ...]
"""(kind, name, unique id, account) of one key or principal behind a session."""
KEYS = (entities.ACCESS_KEY, entities.BEARER_KEY)


class Part:
    """Base of the parts of `Identity`."""

    partition: str
    region: str
    account: str
    """The enclave's own account: the management account where there is an organisation."""
    clock: Clock
    ids: Ids
    directories: Directories
    organization: Organization
    resources: Resources
    _keyring: Keyring
    _ceiling: Partition

    @property
    def directory(self) -> Directory:
        """The directory of the enclave's own account."""
        return self.directories.of(self.account)

    def now_s(self) -> float:
        """Epoch seconds."""
        return self.clock.now().timestamp()

    def principal_of(self, session: Session) -> Principal | None:
        """The user or role whose policies a session has; None when it is gone, or the session has none."""
        kind = _PRINCIPALS.get(session.kind)
        if kind is None:
            return None
        name = session.issuer_arn.rpartition("/")[2]
        unique_id = session.chain[-1][2] if session.chain else session.principal_id.partition(":")[0]
        return self.directories.of(session.account).principal(kind, name, session.label, unique_id)

    def principal_by_arn(self, principal_arn: str, at: Label) -> Principal | None:
        """The visible user or role of exactly that ARN, in whichever account it names."""
        parts = principal_arn.split(":", 5)
        if len(parts) != 6 or parts[2] != "iam":
            return None
        kind, _, rest = parts[5].partition("/")
        if kind not in (entities.USER, entities.ROLE) or not rest:
            return None
        if parts[4] != self.account and not self.organization.member(parts[4], at):
            return None
        principal = self.directories.of(parts[4]).principal(kind, rest.rpartition("/")[2], at)
        return principal if principal is not None and principal.arn == principal_arn else None

    # Who stands behind a session

    def holds(self, principal: Principal, label: Label) -> bool:
        """Whether a principal is cleared for a label that the enclave may hold."""
        cleared = principal.clearance is None or may_hold(principal.clearance, label)
        return cleared and ceiling_permits(self._ceiling, label)

    def chain_holds(self, chain: Iterable[Link], at: Label, label: Label) -> bool:
        """Whether everything behind a session at `at` remains, and is cleared for `label`."""
        for link in chain:
            kind, name, unique_id = link[:3]
            directory = self.directories.of(self._account_of(link))
            if not self._open(directory.account, at):
                return False
            if kind in KEYS:
                keys = directory.records(kind, name)
                if len(keys) != 1 or keys[0].state != entities.ACTIVE:
                    return False
                if not all(may_hold(Clearance.parse(limit), label) for limit in keys[0].body.get("limits", ())):
                    return False
                continue
            if kind not in (entities.USER, entities.ROLE):
                found = [
                    r for r in directory.records(kind, name) if r.body["id"] == unique_id and at.dominates(r.label)
                ]
                text = found[0].body["tags"].get(entities.CLEARANCE_TAG, "UNCLASSIFIED") if found else None
                if text is None or not may_hold(Clearance.parse(text), label):
                    return False
                continue
            principal = directory.principal(kind, name, at, unique_id)
            if principal is None or not self.holds(principal, label):
                return False
        return ceiling_permits(self._ceiling, label)

    def _account_of(self, link: Link) -> str:
        return link[3] if len(link) > 3 and link[3] else self.account

    def _open(self, account: str, at: Label) -> bool:
        return account == self.account or self.organization.member(account, at)

    def clearances_behind(self, session: Session) -> list[str]:
        """The clearances, as text, of everybody behind a session; a role without one adds none.

        A key that this session makes carries them as its limits. Someone who is gone counts as cleared for nothing.
        """
        texts: list[str] = []
        for link in session.chain:
            kind, name, unique_id = link[:3]
            directory = self.directories.of(self._account_of(link))
            if kind in KEYS:
                texts += [text for record in directory.records(kind, name) for text in record.body.get("limits", ())]
                continue
            if kind not in (entities.USER, entities.ROLE):
                continue
            principal = directory.principal(kind, name, session.label, unique_id)
            text = None if principal is None else principal.tags.get(entities.CLEARANCE_TAG)
            if text is not None:
                texts.append(text)
            elif principal is None or kind == entities.USER:
                texts.append("UNCLASSIFIED")
        if not signed_in(session.chain):
            texts.append("UNCLASSIFIED")
        return list(dict.fromkeys(texts))

    def may_grant(self, session: Session, clearance: Clearance) -> bool:
        """Whether everybody behind the session covers a clearance: nobody grants what they do not hold."""
        return all(Clearance.parse(text).covers(clearance) for text in self.clearances_behind(session))


_PRINCIPALS = {"user": entities.USER, "federated-user": entities.USER, "assumed-role": entities.ROLE}


def signed_in(chain: Sequence[Link]) -> bool:
    """Whether somebody's key stands behind a session. Without one it works on behalf of a job, or came with a token of
    an identity provider, whose word about clearances nobody takes."""
    return any(link[0] in KEYS for link in chain)


def unknown() -> AuthenticationFailed:
    """The one answer to credentials that are unknown, inactive, uncleared or in the wrong place."""
    return AuthenticationFailed("The security token included in the request is invalid.")
