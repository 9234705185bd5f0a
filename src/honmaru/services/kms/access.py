"""Keys for the platform's other services: what `ports.keys` asks, answered as the session whose data it is.

Invariants:
- Every use passes IAM as the session, with `kms:ViaService` naming the service that asks, so key policies decide.
- Data keys carry the session's label like every ciphertext; what a higher session sealed opens for no lower one.

Source: AWS KMS developer guide, "How Amazon S3 uses AWS KMS".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import NotFound
from honmaru.ports.keys import DataKey, KeyFacts
from honmaru.security.calls import Call
from honmaru.security.crypto.key_specs import ENCRYPT, SYMMETRIC
from honmaru.security.guard import Record
from honmaru.services.kms import alias, encryption
from honmaru.services.kms.keys import allowed, named, require_usable, require_usage
from honmaru.services.kms.vault import Vault


class KmsKeys:
    """A `ports.keys.Keys`. Thread-safe."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def resolve(self, call: Call, key: str, service: str) -> KeyFacts:
        """The key that a member names; "" and `alias/aws/<service>` mean the platform's own key of the service."""
        record = self._named(call, key, service)
        return KeyFacts(record.body["arn"], record.state)

    def _named(self, call: Call, key: str, service: str) -> Record:
        own = f"alias/aws/{service}"
        if key in ("", own) or key.endswith(f":{own}"):
            return alias.managed_key(call, self._vault, service)
        name = named(call, key, aliases=True)
        record = call.sight("kms").get("key", name.key_id, account=name.account)
        if record is None:
            raise NotFound(f"Key '{key}' does not exist", code="NotFoundException")
        return record

    def data_key(self, call: Call, key: str, context: Mapping[str, str], service: str) -> DataKey:
        record = self._named(call, key, service)
        inside, record = self._allowed(call, record, "GenerateDataKey", context, service)
        plain = self._vault.ids.secret(32)
        wrapped = encryption.sealed(inside, self._vault, record, context, plain)
        return DataKey(record.body["arn"], plain, wrapped)

    def open(self, call: Call, wrapped: bytes, context: Mapping[str, str], service: str) -> bytes:
        found = encryption.taken_apart(wrapped)
        record = call.sight("kms").get("key", found.key_id)
        if record is None:
            raise NotFound("The key that protects this has been destroyed", code="NotFoundException")
        inside, record = self._allowed(call, record, "Decrypt", context, service)
        return encryption.unsealed(inside, self._vault, found, record, context).plaintext

    def _allowed(
        self, call: Call, record: Record, action: str, context: Mapping[str, str], service: str
    ) -> tuple[Call, Record]:
        session = call.session
        asked: dict[str, Any] = {
            **encryption.facts(context, SYMMETRIC),
            "kms:ViaService": f"{service}.{session.region}.amazonaws.com",
            "aws:ViaAWSService": True,
            "aws:CalledVia": [f"{service}.amazonaws.com"],
        }
        name = named(call, record.body["arn"], aliases=False)
        inside, key = allowed(call, name, action, asked)
        require_usage(key, ENCRYPT, SYMMETRIC)
        require_usable(call, key)
        return inside, key
