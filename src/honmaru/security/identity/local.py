"""What the local operator does with identities: the same operating-system user, outside of IAM and below every label.

Invariant: the operator's records lie at BOTTOM, so sessions at every label see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.security.identity.managed import managed_arn
from honmaru.security.identity.part import Part
from honmaru.security.identity.signin import bearer_token

ADMIN = "admin"


class LocalOperator(Part):
    """See the module."""

    def bootstrap(self) -> None:
        """Make `admin` and its key bound to BOTTOM on the first start. Idempotent."""
        if self.directory.visible(entities.USER, ADMIN, BOTTOM) is None:
            self.create_user(ADMIN, self._ceiling.ceiling, ["AdministratorAccess"])
        self.access_key(ADMIN, BOTTOM)

    def create_user(self, name: str, clearance: str, policies: Sequence[str]) -> None:
        """Make a user at BOTTOM. `policies` are names or ARNs of managed policies. Raises Conflict, ValidationFault."""
        entities.check_name(name)
        tags = {entities.CLEARANCE_TAG: clearance} if clearance else {}
        entities.check_tags(tags)
        attached: list[str] = []
        for policy in policies:
            policy_arn = policy if policy.startswith("arn:") else self._policy_arn(policy)
            if policy_arn is None or self.directory.policy_text(policy_arn, BOTTOM) is None:
                raise ValidationFault(f"there is no managed policy {policy!r}; for example AmazonS3FullAccess")
            attached.append(policy_arn)
        body = entities.user_body(self.ids, path="/", tags=tags, attached=attached)
        try:
            self.directory.trusted.create(self.account, BOTTOM, entities.USER, name, body)
        except Conflict:
            raise Conflict(f"User with name {name} already exists.", code="EntityAlreadyExists") from None

    def _policy_arn(self, name: str) -> str | None:
        found = managed_arn(self.partition, name)
        record = None if found else self.directory.visible(entities.POLICY, name, BOTTOM)
        if record is not None:
            found = entities.arn(self.partition, self.account, entities.POLICY, record.body["path"], name)
        return found

    def access_key(self, user: str, label: Label) -> tuple[str, str]:
        """(access key id, secret) of the operator's key of a user bound to a label; made when there is none yet.

        Raises NotFound; AccessDenied when the user or the enclave is not cleared for the label.
        """
        record = self._operator_key(entities.ACCESS_KEY, user, label, "AKIA")
        return record.name, record.body["secret"]

    def bearer_key(self, user: str, label: Label) -> str:
        """As `access_key`, a bearer token for Bedrock."""
        record = self._operator_key(entities.BEARER_KEY, user, label, "BKIA")
        return bearer_token(record.name, record.body["secret"])

    def _operator_key(self, kind: str, user: str, label: Label, prefix: str) -> Record:
        principal = self.directory.principal(entities.USER, user, label)
        if principal is None:
            raise NotFound(f"The user with name {user} cannot be found.", code="NoSuchEntity")
        if not self.holds(principal, label):
            raise AccessDenied(
                f"{user} cannot sign in at {label.banner}: the clearance of the user, or the ceiling "
                f"{self._ceiling.ceiling} of this enclave, does not cover it"
            )
        for record in self.directory.trusted.list(kind, account=self.account, state=entities.ACTIVE):
            body = record.body
            if body["user_id"] == principal.id and body["label"] == label.canonical and body.get("operator"):
                return record
        body = entities.key_body(self.ids, user=user, user_id=principal.id, label=label) | {"operator": True}
        name = entities.key_id(self.ids, prefix, self.account)
        return self.directory.trusted.create(self.account, principal.label, kind, name, body, entities.ACTIVE)

    def users(self) -> list[dict[str, Any]]:
        """Every user of the enclave's own account: name, clearance, names of attached policies, label."""
        return [
            {
                "name": record.name,
                "clearance": record.body["tags"].get(entities.CLEARANCE_TAG, "UNCLASSIFIED"),
                "policies": [policy.rpartition("/")[2] for policy in record.body["attached"]],
                "label": record.label.banner,
            }
            for record in self.directory.trusted.list(entities.USER, account=self.account)
        ]
