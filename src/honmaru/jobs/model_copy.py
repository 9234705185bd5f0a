"""The kind of job behind CreateModelCopyJob: a custom model's files, stored again as a model of its own.

Invariants:
- The job acts as the session that started it: the source must be visible there, and the copy carries that session's
  label. So a copy of a lower model lives on at the higher label when the lower one is deleted.
- The copy shares no blob with its source.
- The copy's id is in the record from the start, so `kill -9` anywhere leads to one model, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.jobs.kept_sessions import session_of
from honmaru.jobs.kinds import Claim
from honmaru.ports.models import CUSTOM_MODEL_KIND, CUSTOM_MODEL_NAME_KIND, MODEL_SERVICE
from honmaru.ports.runtime import Clock
from honmaru.security.guard import Guard
from honmaru.security.guard.records import Creation

if TYPE_CHECKING:
    from honmaru.core.sessions import Session
    from honmaru.security.guard import GuardedRecords, Record

KIND = "model-copy-job"
IN_PROGRESS, COMPLETED, FAILED = "InProgress", "Completed", "Failed"


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """A `jobs.kinds.JobKind`. `find`: (records, ARN) → the source, or None when the session may see none."""

    guard: Guard
    clock: Clock
    find: Callable[[GuardedRecords, str], Record | None]
    running: int = 1

    @property
    def service(self) -> str:
        return MODEL_SERVICE

    @property
    def kind(self) -> str:
        return KIND

    @property
    def claimable(self) -> frozenset[str]:
        return frozenset({IN_PROGRESS})

    @property
    def slots(self) -> int:
        return self.running

    def run(self, claim: Claim) -> None:
        session = session_of(claim.record)
        records = self.guard.records(session, MODEL_SERVICE)
        if records.get(CUSTOM_MODEL_KIND, claim.body["model_id"]) is None and not self._copy(claim, session, records):
            return
        self._end(claim, COMPLETED, "")

    def fail(self, claim: Claim, reason: str) -> None:
        self._end(claim, FAILED, reason)

    def _copy(self, claim: Claim, session: Session, records: GuardedRecords) -> bool:
        """Store the files and make the records; False when the enclave leaves. Raises NotFound, ValidationFault."""
        body = claim.body
        source = self.find(records, body["source"])
        if source is None:
            raise NotFound(f"Could not find custom model {body['source']}")
        blobs = self.guard.blobs(session)
        files: dict[str, str] = {}
        for name, blob_id in source.body["files"].items():
            if claim.leaving:
                break
            files[name] = blobs.write(blobs.read(blob_id)).id
        model = {
            **source.body,
            "id": body["model_id"],
            "name": body["model_name"],
            "files": files,
            "tags": body["model_tags"],
            "copied_from": body["source"],
        }
        try:
            if claim.leaving:
                return False
            pointer = Creation(CUSTOM_MODEL_NAME_KIND, body["model_name"], {"id": body["model_id"]})
            records.apply([pointer, Creation(CUSTOM_MODEL_KIND, body["model_id"], model)])
            files = {}
            return True
        except Conflict:
            raise ValidationFault(f"a custom model named {body['model_name']!r} was made meanwhile") from None
        finally:
            for blob_id in files.values():
                blobs.delete(blob_id)

    def _end(self, claim: Claim, state: str, reason: str) -> None:
        def end(body: dict[str, Any]) -> str:
            body["ended"] = self.clock.now().isoformat()
            if reason:
                body["failure"] = reason[:2048]
            return state

        claim.change(end)
