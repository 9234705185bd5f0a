"""The kind of job behind StartAsyncInvoke: one native body, answered by a model, its answer to S3.

Invariants:
- The job acts as the session that started it, at that session's label; what it may do is asked anew at each step.
- An answer is stored before it is written to S3, so `kill -9` anywhere leads to one answer, written once or written
  again byte for byte, and the job ends once.
- Invocations share the model servers of batches: what callers ask at the same time waits for none of them.

Source: Amazon Bedrock API reference, StartAsyncInvoke.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from honmaru.core.conversation import native
from honmaru.core.errors import EngineFailed, NotFound, NotReady, Throttled
from honmaru.jobs.batch_inference import BatchInference, Counts
from honmaru.jobs.kept_sessions import session_of
from honmaru.jobs.kinds import Claim
from honmaru.ports.buckets import split_uri
from honmaru.ports.models import MODEL_SERVICE

if TYPE_CHECKING:
    from honmaru.core.sessions import Session
    from honmaru.security.guard import GuardedBlobs

KIND = "async-invoke"
IN_PROGRESS, COMPLETED, FAILED = "InProgress", "Completed", "Failed"
OUTPUT = "output.json"
_KEPT = ("input", "result")
"""Members of the body that name blobs, which go when the job ends."""


def output_place(uri: str, job_id: str) -> tuple[str, str]:
    """(bucket, key) of the answer below the URI that the caller named. Raises ValidationFault."""
    bucket, prefix = split_uri(uri)
    return bucket, "/".join(part for part in (prefix.strip("/"), job_id, OUTPUT) if part)


@dataclass(frozen=True, slots=True)
class AsyncInvocation:
    """A `jobs.kinds.JobKind`. `batches` asks the models, with the patience of a batch."""

    batches: BatchInference
    running: int = 4

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
        blobs = self.batches.guard.blobs(session)
        if "result" not in claim.body:
            self._answer(claim, session, blobs)
        body = claim.body
        bucket, key = output_place(body["output_uri"], claim.record.name)
        self.batches.buckets.write(session, bucket, key, blobs.read(body["result"]), kms_key=body["kms_key"])
        self._end(claim, COMPLETED, "")

    def fail(self, claim: Claim, reason: str) -> None:
        self._end(claim, FAILED, reason)

    def _answer(self, claim: Claim, session: Session, blobs: GuardedBlobs) -> None:
        body = claim.body
        model = self.batches.resolve(session, body["model_id"])
        if model is None:
            raise NotFound(f"Could not resolve the model from the model identifier {body['model_id']!r}")
        given = json.loads(b"".join(blobs.read(body["input"])))
        try:
            answer = self.batches.answer(session, model, "InvokeModel", given, claim.record.name, counts := Counts())
        except (NotReady, Throttled) as busy:
            raise EngineFailed(busy.message) from busy  # nothing is wrong with the job: the supervisor runs it again
        result = blobs.write([native.written(answer)]).id

        def note(stored: dict[str, Any]) -> None:
            stored |= {"result": result, "input_tokens": counts.input_tokens, "output_tokens": counts.output_tokens}

        claim.change(note)

    def _end(self, claim: Claim, state: str, reason: str) -> None:
        kept = [claim.body[name] for name in _KEPT if name in claim.body]

        def end(body: dict[str, Any]) -> str:
            body["ended"] = self.batches.clock.now().isoformat()
            if reason:
                body["failure"] = reason[:2048]
            for name in _KEPT:
                body.pop(name, None)
            return state

        claim.change(end)
        blobs = self.batches.guard.blobs(session_of(claim.record))
        for blob_id in kept:  # what a crash leaves here, the guard's sweep deletes
            blobs.delete(blob_id)
