"""The kinds of job behind CreateModelImportJob and CreateCustomModel: read from S3, check and convert in a sandbox,
store, register; what comes out is an imported model of the one, a custom model of the other.

Invariants:
- The job acts as the role that was passed to it, at the label of the session that started it.
- Nothing of the model is parsed in this process but file names, JSON of the report and safetensors headers; archives
  and weights are opened in the sandbox.
- Each step may be repeated: the ids of the sandboxed job and of the model are in the record from the start, so
  `kill -9` anywhere leads to one model, once.
- The model package that the source belongs to must be approved, also at the time the bytes are read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from honmaru.core.errors import Conflict, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.model_files import SERVED, WEIGHTS_INDEX, is_plain_name, wanted_files
from honmaru.core.safetensors import read_header
from honmaru.core.sessions import Session
from honmaru.jobs import trees
from honmaru.jobs.kinds import Claim
from honmaru.jobs.model_approval import require_approved
from honmaru.jobs.sandboxed import follow, status_of
from honmaru.ports.buckets import Buckets, StoredObject, split_uri
from honmaru.ports.executors import Environment, Executor, JobSpec, JobStatus, Phase
from honmaru.ports.models import (
    CUSTOM_MODEL_KIND,
    CUSTOM_MODEL_NAME_KIND,
    MODEL_KIND,
    MODEL_NAME_KIND,
    MODEL_SERVICE,
)
from honmaru.ports.runtime import Clock
from honmaru.security.guard import Guard
from honmaru.security.guard.records import Creation

if TYPE_CHECKING:
    from honmaru.security.guard import GuardedRecords

KIND = "model-import-job"
CREATION_KIND = "custom-model-creation"
"""Records of custom models that are made of files in S3, each named by the id of the model."""
IN_PROGRESS, COMPLETED, FAILED = "InProgress", "Completed", "Failed"
PRINCIPAL = "bedrock.amazonaws.com"
ENVIRONMENT = "serve"
MAX_SOURCE_BYTES = 64 << 30
_TIME_LIMIT_S = 3600.0
_RERUNS = 3
_REPORT_LIMIT = 1 << 16
_REPORT = "report.json"


class Roles(Protocol):
    """What this needs of `security.identity.Identity`."""

    def service_session(
        self, role_arn: str, *, label: Label, service: str, session_name: str, human: str, account: str
    ) -> Session: ...


class Environments(Protocol):
    """What this needs of `jobs.environments.Environments`."""

    def named(self, name: str) -> Environment: ...


@dataclass(frozen=True, slots=True)
class ModelImport:
    """A `jobs.kinds.JobKind`. `scratch` is where jobs are laid out (0700, on the executor's machine)."""

    guard: Guard
    roles: Roles
    buckets: Buckets
    environments: Environments
    executor: Executor
    clock: Clock
    scratch: Path
    cores: int = 2
    running: int = 1
    of: str = KIND
    """KIND or CREATION_KIND."""

    @property
    def service(self) -> str:
        return MODEL_SERVICE

    @property
    def kind(self) -> str:
        return self.of

    @property
    def _made(self) -> str:
        """The kind of the models that come out."""
        return CUSTOM_MODEL_KIND if self.of == CREATION_KIND else MODEL_KIND

    @property
    def claimable(self) -> frozenset[str]:
        return frozenset({IN_PROGRESS})

    @property
    def slots(self) -> int:
        return self.running

    def run(self, claim: Claim) -> None:
        body = claim.body
        record = claim.record
        session = self.roles.service_session(
            body["role_arn"],
            label=record.label,
            service=PRINCIPAL,
            session_name=f"import-{record.name}",
            human=body["human"],
            account=record.account,
        )
        records = self.guard.records(session, MODEL_SERVICE)
        if records.get(self._made, body["model_id"]) is None:
            status = self._convert(claim, session)
            if status is None:
                return
            self._register(claim, session, records)
        self._end(claim, COMPLETED, "")

    def fail(self, claim: Claim, reason: str) -> None:
        self._end(claim, FAILED, reason)

    def _end(self, claim: Claim, state: str, reason: str) -> None:
        def end(body: dict[str, Any]) -> str:
            body["ended"] = self.clock.now().isoformat()
            if reason:
                body["failure"] = reason[:2048]
            return state

        claim.change(end)
        job_id = _job_id(claim.body)
        self.executor.forget(job_id)
        shutil.rmtree(self.scratch / job_id, ignore_errors=True)

    def _convert(self, claim: Claim, session: Session) -> JobStatus | None:
        """Run the sandboxed part to a good end; None when the enclave leaves. Raises ValidationFault."""
        job_id = _job_id(claim.body)
        while True:
            status = status_of(self.executor, job_id)
            if status is None:
                if not self._start(claim, session, job_id):
                    return None
            elif status.phase is Phase.LOST:
                self._count_loss(claim)
                self.executor.forget(job_id)
                continue
            status = follow(
                claim, self.executor, job_id, stop_wanted=lambda _: False, grace_s=10.0, tick=lambda: None, poll_s=0.2
            )
            if status is None:
                return None
            if status.phase is Phase.EXITED:
                self._note_isolation(claim, dict(status.isolation))
                self._check_exit(status, job_id)
                return status

    def _note_isolation(self, claim: Claim, isolation: dict[str, str]) -> None:
        claim.change(lambda body: body.update(isolation=isolation))

    def _count_loss(self, claim: Claim) -> None:
        def count(body: dict[str, Any]) -> None:
            body["attempt"] = int(body.get("attempt", 1)) + 1

        if int(claim.change(count).body["attempt"]) > _RERUNS:
            raise ValidationFault(f"the import was lost {_RERUNS} times with the machine it ran on")

    def _check_exit(self, status: JobStatus, job_id: str) -> None:
        if not any(status.exit_codes) and not status.reason:
            return
        said = trees.text(self._ml(job_id), "output/failure", 1024)
        raise ValidationFault(said or f"the conversion ended with {status.reason or status.exit_codes}")

    def _start(self, claim: Claim, session: Session, job_id: str) -> bool:
        """Stage and start; False when the enclave leaves."""
        uri = claim.body["source_uri"]
        pinned = require_approved(self.guard.records(session, "sagemaker"), uri)
        shutil.rmtree(self.scratch / job_id, ignore_errors=True)
        ml = self._ml(job_id)
        for folder in ("input/config", "input/data/source", "model", "output", "checkpoints"):
            (ml / folder).mkdir(mode=0o700, parents=True)
        size = 0
        sources = source_files(self.buckets, session, uri)
        for name, stored in sources.items():
            if claim.leaving:
                return False
            content = self.buckets.read(session, stored.bucket, stored.key)
            size += trees.write(ml / "input" / "data" / "source" / name, content, MAX_SOURCE_BYTES - size)
        # Looked at after the bytes were read: what was replaced meanwhile shows.
        check_pinned(source_files(self.buckets, session, uri), pinned)
        environment = self.environments.named(ENVIRONMENT)
        spec = JobSpec(
            job_id=job_id,
            root=self.scratch / job_id,
            environment=environment,
            argv=(f"{environment.prefix}/bin/python", "-m", "honmaru.workloads.model_import"),
            variables={},
            label=session.label.banner,
            cpu=float(self.cores),
            memory_bytes=(4 << 30) + 6 * size,
            disk_bytes=(2 << 30) + 10 * size,
            time_limit_s=_TIME_LIMIT_S,
        )
        self.executor.start(spec)
        return True

    def _register(self, claim: Claim, session: Session, records: GuardedRecords) -> None:
        """Store the converted files as blobs and make the model's records. Raises ValidationFault or Conflict."""
        body = claim.body
        ml = self._ml(_job_id(body))
        report = read_report(trees.text(ml, f"model/{_REPORT}", _REPORT_LIMIT))
        blobs = self.guard.blobs(session)
        files: dict[str, str] = {}
        for found in trees.files(ml, "model"):
            if found.name == _REPORT:
                continue
            check_output(found)
            files[found.name] = blobs.write(trees.chunks(found)).id
        if "config.json" not in files or "tokenizer.json" not in files:
            raise ValidationFault("the conversion left no complete model")
        model = {
            "id": body["model_id"],
            "name": body["model_name"],
            "job_id": claim.record.name,
            "job_name": body["job_name"],
            "source": body["source_uri"],
            "files": files,
            "tags": body["model_tags"],
            **report,
        }
        name_kind = MODEL_NAME_KIND
        if self._made == CUSTOM_MODEL_KIND:
            name_kind, model["customization_type"] = CUSTOM_MODEL_NAME_KIND, "IMPORTED"
        pointer = Creation(name_kind, body["model_name"], {"id": body["model_id"]})
        try:
            records.apply([pointer, Creation(self._made, body["model_id"], model)])
        except Conflict:
            for blob_id in files.values():
                blobs.delete(blob_id)
            raise ValidationFault(f"a model named {body['model_name']!r} was made meanwhile") from None

    def _ml(self, job_id: str) -> Path:
        return self.scratch / job_id / "algo-1" / "ml"


def _job_id(body: Mapping[str, Any]) -> str:
    return f"import-{body['id']}"


def source_files(buckets: Buckets, session: Session, uri: str) -> dict[str, StoredObject]:
    """File name → object of an import source: the files of a model directory, or its one archive.

    Raises ValidationFault for what cannot be a model, NotFound or AccessDenied from S3.
    """
    bucket, key = split_uri(uri)
    folder = key if not key or key.endswith("/") else f"{key}/"
    found: dict[str, StoredObject] = {}
    for stored in buckets.list(session, bucket, key.rstrip("/")):
        if stored.key == key and key.endswith((".tar.gz", ".tgz")):
            return {"model.tar.gz": _within_limit(stored)}
        name = stored.key.removeprefix(folder)
        if stored.key.startswith(folder) and name and "/" not in name:
            found[name] = stored
    if not found:
        raise ValidationFault(
            f"there is nothing to import at {uri}: no file in that folder and no .tar.gz of that name"
        )
    if "model.tar.gz" in found and "config.json" not in found:
        return {"model.tar.gz": _within_limit(found["model.tar.gz"])}
    names = wanted_files(found)
    if sum(found[name].size for name in names) > MAX_SOURCE_BYTES:
        raise ValidationFault(f"the model's files exceed {MAX_SOURCE_BYTES} bytes")
    return {name: found[name] for name in names}


def check_pinned(sources: Mapping[str, StoredObject], pinned: Mapping[str, Collection[str]]) -> None:
    """Raises ValidationFault when an approved artifact is no longer the object that was registered."""
    for stored in sources.values():
        etags = pinned.get(f"s3://{stored.bucket}/{stored.key}")
        if etags and stored.etag.strip('"') not in etags:
            raise ValidationFault(
                f"s3://{stored.bucket}/{stored.key} was replaced after its model package was registered; "
                "register it again and have it approved"
            )


def _within_limit(stored: StoredObject) -> StoredObject:
    if stored.size > MAX_SOURCE_BYTES:
        raise ValidationFault(f"the archive has {stored.size} bytes; the limit is {MAX_SOURCE_BYTES}")
    return stored


def read_report(text: str | None) -> dict[str, Any]:
    """Check what the sandbox says of the model. It is not trusted: names and types are fixed here."""
    try:
        report = json.loads(text or "")
        return {
            "architecture": str(report["architecture"])[:64],
            "context_length": min(int(report["context_length"]), 1 << 24),
            "instruct": bool(report["instruct"]),
            "parameters": int(report["parameters"]),
            "engine": str(report["engine"])[:32],
            "engine_note": str(report["engine_note"])[:500],
        }
    except (ValueError, KeyError, TypeError):
        raise ValidationFault("the conversion left no readable report") from None


def check_output(found: trees.Found) -> None:
    """Only the files that a model server reads are stored; weights must pass the header parser again."""
    weights = found.name.endswith(".safetensors")
    if not is_plain_name(found.name) or not (found.name in SERVED or found.name == WEIGHTS_INDEX or weights):
        raise ValidationFault(f"the conversion left the unexpected file {found.name[:100]!r}")
    if weights:
        with trees.opened(found) as stream:
            read_header(stream, found.size, name=found.name)
