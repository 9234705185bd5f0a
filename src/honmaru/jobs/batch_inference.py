"""The kind of job behind CreateModelInvocationJob: the records of JSONL files in S3, answered by a model, back to S3.

Invariants:
- The job acts as the role that was passed to it, at the label of the session that started it.
- A record that cannot be answered gets its error beside it in the output; only a job that cannot read, write or ask
  at all fails.
- Progress is durable: records are answered in chunks, each stored before the next begins, so `kill -9` repeats at most
  one chunk and no record is answered twice in the output.
- Batches have model servers of their own: what callers ask at the same time waits for none of them.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from honmaru.core.conversation import converse, invocation, native
from honmaru.core.errors import EngineFailed, HonmaruError, NotFound, NotReady, RequestFault, Throttled, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.jobs.kinds import Claim
from honmaru.ports.buckets import Buckets, StoredObject, split_uri
from honmaru.ports.models import MODEL_SERVICE, ModelArtifact, ModelServers
from honmaru.ports.runtime import Clock
from honmaru.security.guard import Guard

if TYPE_CHECKING:
    from honmaru.security.guard import GuardedBlobs

KIND = "model-invocation-job"
SUBMITTED, IN_PROGRESS, STOPPING = "Submitted", "InProgress", "Stopping"
COMPLETED, PARTIAL, FAILED, STOPPED, EXPIRED = "Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired"
PRINCIPAL = "bedrock.amazonaws.com"
CHUNK = 64
CHUNK_BYTES = 32 << 20
AT_ONCE = 16
MAX_RECORDS = 1_000_000
MAX_LINE_BYTES = 25 << 20
MAX_INPUT_BYTES = 5 << 30
_TRIES = 6
_MANIFEST = "manifest.json.out"


class Roles(Protocol):
    """What this needs of `security.identity.Identity`."""

    def service_session(
        self, role_arn: str, *, label: Label, service: str, session_name: str, human: str, account: str
    ) -> Session: ...


@dataclass(slots=True)
class Counts:
    """What the manifest says."""

    total: int = 0
    good: int = 0
    bad: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class BatchInference:
    """A `jobs.kinds.JobKind`.

    Args:
        servers: Model servers of batches; all their work runs on this object's own event loop.
        resolve: (session, identifier) → the model, or None when the session may see none of that name.
    """

    guard: Guard
    roles: Roles
    buckets: Buckets
    servers: ModelServers
    resolve: Callable[[Session, str], ModelArtifact | None]
    clock: Clock
    running: int = 1
    _loop: asyncio.AbstractEventLoop | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def service(self) -> str:
        return MODEL_SERVICE

    @property
    def kind(self) -> str:
        return KIND

    @property
    def claimable(self) -> frozenset[str]:
        return frozenset({SUBMITTED, IN_PROGRESS, STOPPING})

    @property
    def slots(self) -> int:
        return self.running

    def run(self, claim: Claim) -> None:
        body, record = claim.body, claim.record
        session = self.roles.service_session(
            body["role_arn"],
            label=record.label,
            service=PRINCIPAL,
            session_name=f"batch-{record.name}",
            human=body["human"],
            account=record.account,
        )
        model = self.resolve(session, body["model_id"])
        if model is None:
            raise NotFound(f"Could not resolve the model from the model identifier {body['model_id']!r}")
        if record.state == SUBMITTED:
            claim.change(lambda _: IN_PROGRESS)
        blobs = self.guard.blobs(session)
        files = input_files(self.buckets, session, body["input_uri"])
        for name, stored in files.items():
            if not self._file(claim, session, model, blobs, name, stored):
                return
        self._finish(claim, session, blobs)

    def fail(self, claim: Claim, reason: str) -> None:
        self._end(claim, FAILED, reason)
        self._drop_parts(claim)

    # The records

    def _file(
        self, claim: Claim, session: Session, model: ModelArtifact, blobs: GuardedBlobs, name: str, stored: StoredObject
    ) -> bool:
        """Answer what is left of one file; False when the job ends or the enclave leaves before its end."""
        done = int((claim.body.get("progress") or {}).get(name, {}).get("records", 0))
        pending: list[bytes] = []
        number = size = 0
        for line in lines(self.buckets.read(session, stored.bucket, stored.key)):
            number += 1
            if number > MAX_RECORDS:
                raise ValidationFault(f"{name} holds more than {MAX_RECORDS} records")
            if number <= done:
                continue
            pending.append(line)
            size += len(line)
            if len(pending) == CHUNK or size > CHUNK_BYTES:
                if not self._goes_on(claim, session, blobs):
                    return False
                self._chunk(claim, session, model, blobs, name, pending)
                pending, size = [], 0
        if pending or not number:
            if not self._goes_on(claim, session, blobs):
                return False
            self._chunk(claim, session, model, blobs, name, pending)
        return True

    def _goes_on(self, claim: Claim, session: Session, blobs: GuardedBlobs) -> bool:
        record = claim.refresh()
        if claim.leaving:
            return False
        if record.state == STOPPING:
            self._write(claim, session, blobs)
            self._end(claim, STOPPED, "stopped by StopModelInvocationJob")
            self._drop_parts(claim)
            return False
        if self.clock.now() > datetime.fromisoformat(record.body["expires"]):
            self._write(claim, session, blobs)
            self._end(claim, EXPIRED, "the time that timeoutDurationInHours allows is over")
            self._drop_parts(claim)
            return False
        return True

    def _chunk(
        self,
        claim: Claim,
        session: Session,
        model: ModelArtifact,
        blobs: GuardedBlobs,
        name: str,
        records: Sequence[bytes],
    ) -> None:
        counts = Counts(total=len(records))
        kind = claim.body["invocation_type"]
        first = int((claim.body.get("progress") or {}).get(name, {}).get("records", 0))
        out = self._on_loop(self._answer_all(session, model, kind, records, first, counts))
        part = blobs.write([b"".join(out)]).id

        def note(body: dict[str, Any]) -> None:
            progress = body.setdefault("progress", {}).setdefault(name, {"records": 0, "parts": []})
            progress["records"] += len(records)
            progress["parts"].append(part)
            for member, value in (
                ("total", counts.total),
                ("good", counts.good),
                ("bad", counts.bad),
                ("input_tokens", counts.input_tokens),
                ("output_tokens", counts.output_tokens),
            ):
                body[member] = int(body.get(member, 0)) + value

        claim.change(note)

    async def _answer_all(
        self,
        session: Session,
        model: ModelArtifact,
        kind: str,
        records: Sequence[bytes],
        first: int,
        counts: Counts,
    ) -> list[bytes]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, line: bytes) -> bytes:
            async with places:
                return await self._record(session, model, kind, first + number, line, counts)

        tasks = [asyncio.ensure_future(one(number, line)) for number, line in enumerate(records)]
        try:
            return await asyncio.gather(*tasks)
        except (NotReady, Throttled) as fault:
            # Nothing is wrong with the job: the supervisor runs it again, from this chunk on.
            raise EngineFailed(fault.message) from fault
        finally:
            for task in tasks:
                task.cancel()

    async def _record(
        self, session: Session, model: ModelArtifact, kind: str, number: int, line: bytes, counts: Counts
    ) -> bytes:
        """The output line of one record."""
        out: dict[str, Any] = {"recordId": f"{number:011d}"}
        try:
            given = _record_of(line)
            out = {"modelInput": given["modelInput"], "recordId": given.get("recordId", out["recordId"])}
            out["modelOutput"] = await self._ask(session, model, kind, given["modelInput"], out["recordId"], counts)
            counts.good += 1
        except HonmaruError as fault:
            if isinstance(fault, NotReady | Throttled):
                raise  # nothing is wrong with the record: the supervisor runs the chunk again
            counts.bad += 1
            code = 400 if isinstance(fault, RequestFault) else 500
            out["error"] = {"errorCode": code, "errorMessage": fault.message}
        try:
            return native.written(out) + b"\n"
        except RecursionError:
            error = {"errorCode": 400, "errorMessage": "the record is nested too deeply to be repeated here"}
            return native.written({"recordId": out["recordId"], "error": out.get("error", error)}) + b"\n"

    async def _ask(
        self, session: Session, model: ModelArtifact, kind: str, given: Any, record_id: str, counts: Counts
    ) -> Any:
        started = self.clock.monotonic()
        if kind == "Converse":
            wanted = invocation.from_members(given, model.name, model.features, instruct=model.instruct)
            completion = await self._patiently(lambda: self.servers.complete(session, model, wanted))
            paths = given.get("additionalModelResponseFieldPaths")
            answer = converse.result(completion, paths, int((self.clock.monotonic() - started) * 1000))
        else:
            embeds = invocation.only_embeds(model.features)
            asked = native.read(json.dumps(given).encode(), model.name, model.families, embeds=embeds)
            texts = invocation.embedding(asked, model.name, model.features)
            if texts is not None:
                vectors = await self._patiently(lambda: self.servers.embed(session, model, texts.texts, None))
                counts.input_tokens += vectors.input_tokens
                return invocation.embedded(asked, vectors, model.name, record_id)
            wanted = invocation.wanted(asked, model.name, model.features, instruct=model.instruct)
            completion = await self._patiently(lambda: self.servers.complete(session, model, wanted))
            latency = int((self.clock.monotonic() - started) * 1000)
            answer = invocation.answer(asked, completion, model.name, record_id, latency)
        counts.input_tokens += completion.input_tokens
        counts.output_tokens += completion.output_tokens
        return answer

    def answer(
        self, session: Session, model: ModelArtifact, kind: str, given: Any, record_id: str, counts: Counts
    ) -> Any:
        """The body that answers one record; what it cost is added to `counts`. Blocking.

        Raises what the model's server raises after several tries, and ValidationFault.
        """
        return self._on_loop(self._ask(session, model, kind, given, record_id, counts))

    async def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask again while the server is busy or starting: a batch has time. Raises what the last try raised."""
        for attempt in range(_TRIES):
            try:
                return await ask()
            except (Throttled, NotReady, EngineFailed):
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
        raise AssertionError  # the loop returns or raises

    def _on_loop(self, work: Any) -> Any:
        """Run on the loop that the batches' servers belong to."""
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="batch-inference", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # The end

    def _finish(self, claim: Claim, session: Session, blobs: GuardedBlobs) -> None:
        self._write(claim, session, blobs)
        body = claim.body
        good, bad = int(body.get("good", 0)), int(body.get("bad", 0))
        if bad and not good:
            self._end(claim, FAILED, f"none of the {bad} records could be answered; each has its error in the output")
        else:
            self._end(claim, PARTIAL if bad else COMPLETED, f"{bad} records have errors" if bad else "")
        self._drop_parts(claim)

    def _write(self, claim: Claim, session: Session, blobs: GuardedBlobs) -> None:
        """Everything that was answered, and the manifest, to S3; repeating it writes the same."""
        body = claim.body
        bucket, prefix = split_uri(body["output_uri"])
        folder = f"{prefix.rstrip('/')}/{claim.record.name}" if prefix.strip("/") else claim.record.name
        for name, progress in (body.get("progress") or {}).items():
            parts = _joined(blobs, progress["parts"])
            self.buckets.write(session, bucket, f"{folder}/{name}.out", parts, kms_key=body.get("kms_key", ""))
        good, bad = int(body.get("good", 0)), int(body.get("bad", 0))
        manifest = {
            "totalRecordCount": int(body.get("total", 0)),
            "processedRecordCount": good + bad,
            "successRecordCount": good,
            "errorRecordCount": bad,
            "inputTokenCount": int(body.get("input_tokens", 0)),
            "outputTokenCount": int(body.get("output_tokens", 0)),
        }
        told = [json.dumps(manifest).encode()]
        self.buckets.write(session, bucket, f"{folder}/{_MANIFEST}", told, kms_key=body.get("kms_key", ""))

    def _end(self, claim: Claim, state: str, reason: str) -> None:
        def end(body: dict[str, Any]) -> str:
            body["ended"] = self.clock.now().isoformat()
            if reason:
                body["message"] = reason[:2048]
            return state

        claim.change(end)

    def _drop_parts(self, claim: Claim) -> None:
        """Forget the parts; what is not deleted by a crash between, the guard's sweep deletes."""
        claim.change(_without_parts)


def _without_parts(body: dict[str, Any]) -> None:
    for progress in (body.get("progress") or {}).values():
        progress["parts"] = []


def _joined(blobs: GuardedBlobs, parts: Sequence[str]) -> Iterator[bytes]:
    for part in parts:
        yield from blobs.read(part)


def _record_of(line: bytes) -> Mapping[str, Any]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise ValidationFault("the record is not JSON") from None
    if not isinstance(given, dict) or not isinstance(given.get("modelInput"), dict):
        raise ValidationFault('a record must be an object with a modelInput, {"recordId": ..., "modelInput": {...}}')
    if not isinstance(given.get("recordId", ""), str):
        raise ValidationFault("recordId must be a text")
    return given


def lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a file that are not empty. Raises ValidationFault for one over MAX_LINE_BYTES."""
    pending = b""
    for chunk in chunks:
        *whole, pending = (pending + chunk).split(b"\n")
        if len(pending) > MAX_LINE_BYTES:
            raise ValidationFault(f"a record exceeds {MAX_LINE_BYTES} bytes")
        yield from (line for line in whole if line.strip())
    if pending.strip():
        yield pending


def input_files(buckets: Buckets, session: Session, uri: str) -> dict[str, StoredObject]:
    """File name → object of the JSONL files at a URI: one object, or every one below a prefix.

    Raises ValidationFault when there is none or they are too large; NotFound or AccessDenied from S3.
    """
    bucket, key = split_uri(uri)
    folder = key if not key or key.endswith("/") else f"{key}/"
    found: dict[str, StoredObject] = {}
    for stored in buckets.list(session, bucket, key):
        if stored.key == key:
            found = {key.rpartition("/")[2]: stored}
            break
        name = stored.key.removeprefix(folder)
        if stored.key.startswith(folder) and name and "/" not in name and name.endswith(".jsonl"):
            found[name] = stored
    if not found:
        raise ValidationFault(f"there is no JSONL file at {uri}: name one, or a prefix of names that end with .jsonl")
    if sum(stored.size for stored in found.values()) > MAX_INPUT_BYTES:
        raise ValidationFault(f"the input exceeds {MAX_INPUT_BYTES} bytes")
    return found
