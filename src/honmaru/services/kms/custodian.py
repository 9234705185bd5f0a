"""The custodian: does to keys what their time has come for. It destroys, rotates, and lets imported material go.

Invariants:
- It works on each key as the platform at the key's own label, one transaction a key: cut short by `kill -9` it has
  done all of it or nothing, and does the rest at its next time.
- A key is destroyed with all its materials, grants and aliases at its label; each destruction leaves an entry that says
  what was shredded with it: everything that only this key opens.
- It never reads material, except to make a new one.

Source: AWS KMS developer guide, "Deleting keys"; CloudTrail's DeleteKey event; SP 800-88r1 (cryptographic erase).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from honmaru.core.errors import Conflict
from honmaru.core.labels import Label
from honmaru.core.sessions import Session, platform_session
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.guard import Guard, GuardedChange, Record, Removal
from honmaru.security.ledger.entries import api_call
from honmaru.services.kms import import_material, rotation
from honmaru.services.kms.keys import ALIAS, GRANT, KEY, current
from honmaru.services.kms.vault import MATERIAL, Vault

INTERVAL_S = 60.0
_LOG = logging.getLogger(__name__)


class EntryLog(Protocol):
    """What this needs of the ledger."""

    def append(self, label: Label, entry: Mapping[str, Any]) -> Future[Any]: ...


class Custodian:
    """See the module. `step` is called again and again by the composition root."""

    def __init__(
        self, guard: Guard, vault: Vault, ledger: EntryLog, clock: Clock, ids: Ids, *, partition: str, region: str
    ) -> None:
        self._guard = guard
        self._vault = vault
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._partition = partition
        self._region = region
        self._trusted = guard.trusted("kms", {KEY})

    def step(self) -> int:
        """Do what is due now; returns how many keys were changed."""
        done = 0
        for key in self._trusted.list(KEY):
            try:
                done += self._tend(key)
            except Conflict:
                continue  # changed at this moment by its owner: looked at again the next time
            except Exception as fault:  # one key holds no other up
                _LOG.error("a key could not be tended: %s", type(fault).__name__)
        return done

    def _tend(self, key: Record) -> int:
        now = self._clock.now()
        session = platform_session(key.account, self._partition, self._region, "kms", key.label)
        records = self._guard.records(session, "kms")
        if current(key, now) is None:
            self._destroy(session, key)
            return 1
        if rotation.due(key, now):
            rotation.turn(records, self._vault, key, now, "AUTOMATIC")
            self._note(session, key, "RotateKey", {"rotationType": "AUTOMATIC"})
            return 1
        gone = import_material.expired(key, now)
        if gone:
            records.apply(import_material.without(self._vault, records, key, gone, now))
            self._note(session, key, "DeleteExpiredKeyMaterial", {"keyMaterialIds": gone})
            return 1
        return 0

    def _destroy(self, session: Session, key: Record) -> None:
        records = self._guard.records(session, "kms")

        def own(kind: str, prefix: str = "") -> list[Record]:
            return [one for one in records.iterate_instances(kind, prefix=prefix) if one.label == key.label]

        materials = own(MATERIAL, f"{key.name}/")
        aliases = [one for one in own(ALIAS) if one.body["key"] == key.name]
        changes: list[GuardedChange] = [Removal(one) for one in (*materials, *own(GRANT, f"{key.name}/"), *aliases)]
        records.apply([*changes, Removal(key)])
        shredded = {"keyMaterialIds": [one.name.rpartition("/")[2] for one in materials], "shredded": True}
        self._note(session, key, "DeleteKey", shredded)

    def _note(self, session: Session, key: Record, event: str, details: Mapping[str, Any]) -> None:
        entry = api_call(
            event_id=self._ids.uuid(),
            session=session,
            service="kms",
            event_source="kms.amazonaws.com",
            operation=event,
            request_id=self._ids.uuid(),
            at=self._clock.now(),
            decision="Allow",
            resources=[(key.body["arn"], "AWS::KMS::Key")],
            details=details,
            region=self._region,
            account=key.account,
            read_only=False,
        )
        self._ledger.append(key.label, entry).result()
