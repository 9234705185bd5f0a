"""When keys and roles were last used: noted in memory with each request, written down now and then.

Invariants:
- Noting costs no database and no lock; what a crash loses is at most the last interval.
- A use is recorded at the label of the sessions that the key opens: who does not see those learns nothing of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.security.identity.part import Part

USES_EVERY_S = 60.0


class Usage(Part):
    """See the module."""

    _uses: dict[str, tuple[datetime, str, Session]]
    _written: dict[str, datetime]

    def note_use(self, session: Session, service: str) -> None:
        """A long-term key, or a role, was used for a service."""
        if session.kind == "assumed-role":
            self._uses[f"role:{session.principal_id.partition(':')[0]}"] = (self.clock.now(), service, session)
        elif session.kind == "user" and not session.issued_s:
            self._uses[f"key:{session.access_key_id}"] = (self.clock.now(), service, session)

    def last_use(self, key: Record, at: Label) -> dict[str, Any]:
        """The AccessKeyLastUsed shape of a key, as a session at `at` may know it."""
        found = self._last(f"key:{key.name}", key.account, at)
        if found is None:
            return {"LastUsedDate": None, "ServiceName": "N/A", "Region": "N/A"}
        return {"LastUsedDate": found[0], "ServiceName": found[1], "Region": found[2]}

    def last_use_of_role(self, role: Record, at: Label) -> dict[str, Any]:
        """The RoleLastUsed shape of a role, as a session at `at` may know it."""
        found = self._last(f"role:{role.body['id']}", role.account, at)
        return {} if found is None else {"LastUsedDate": found[0], "Region": found[2]}

    def _last(self, name: str, account: str, at: Label) -> tuple[datetime, str, str] | None:
        """(when, service, region) of the newest use by a session that `at` dominates."""
        noted = self._uses.get(name)
        if noted is not None and at.dominates(noted[2].label):
            return noted[0], noted[1], noted[2].region
        trusted = self.directories.of(account).trusted
        found = [
            (datetime.fromisoformat(record.body["at"]), str(record.body["service"]), str(record.body["region"]))
            for record in trusted.get(entities.USED, name, account=account)
            if at.dominates(record.label)
        ]
        return max(found, default=None)

    def write_uses(self) -> None:
        """Write down every use that is newer than what is written. Called in the background."""
        for key, (at, service, session) in list(self._uses.items()):
            if self._written.get(key) == at:
                continue
            body = {"at": at.isoformat(), "service": service, "region": session.region}
            trusted = self.directories.of(session.account).trusted
            found = trusted.get(entities.USED, key, account=session.account)
            own = next((record for record in found if record.label == session.label), None)
            try:
                if own is None:
                    trusted.create(session.account, session.label, entities.USED, key, body)
                else:
                    trusted.update(own, body)
            except Conflict:
                continue  # another worker wrote at the same moment
            self._written[key] = at
