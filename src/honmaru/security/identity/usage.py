"""When keys were last used: noted in memory with each request, written down now and then.

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
        """A long-term key was used for a service."""
        if session.kind == "user" and not session.issued_s:
            self._uses[session.access_key_id] = (self.clock.now(), service, session)

    def last_use(self, key: Record, at: Label) -> dict[str, Any]:
        """The AccessKeyLastUsed shape of a key, as a session at `at` may know it."""
        label = Label.decode(key.body["label"])
        if at.dominates(label):
            noted = self._uses.get(key.name)
            if noted is not None:
                return {"LastUsedDate": noted[0], "ServiceName": noted[1], "Region": noted[2].region}
            trusted = self.directories.of(key.account).trusted
            for record in trusted.get(entities.USED, f"key:{key.name}", account=key.account):
                if at.dominates(record.label):
                    body = record.body
                    return {
                        "LastUsedDate": datetime.fromisoformat(body["at"]),
                        "ServiceName": body["service"],
                        "Region": body["region"],
                    }
        return {"LastUsedDate": None, "ServiceName": "N/A", "Region": "N/A"}

    def write_uses(self) -> None:
        """Write down every use that is newer than what is written. Called in the background."""
        for key, (at, service, session) in list(self._uses.items()):
            if self._written.get(key) == at:
                continue
            body = {"at": at.isoformat(), "service": service, "region": session.region}
            trusted = self.directories.of(session.account).trusted
            found = trusted.get(entities.USED, f"key:{key}", account=session.account)
            own = next((record for record in found if record.label == session.label), None)
            try:
                if own is None:
                    trusted.create(session.account, session.label, entities.USED, f"key:{key}", body)
                else:
                    trusted.update(own, body)
            except Conflict:
                continue  # another worker wrote at the same moment
            self._written[key] = at
