"""The kind of job behind CreateModelCustomizationJob: records from S3, trained on in a sandbox, a custom model made.

Invariants:
- The job acts as the role that was passed to it, at the label of the session that started it: the base model and the
  data must be visible there, and what comes out carries that label.
- Nothing of data or weights is parsed in this process but safetensors headers and the sandbox's report.
- Each step may be repeated: the ids of the sandboxed job and of the model are in the record from the start, so
  `kill -9` anywhere leads to one model, once; the sandbox goes on training meanwhile.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.core.model_files import is_plain_name
from honmaru.core.sessions import Session
from honmaru.jobs import trees
from honmaru.jobs.batch_inference import input_files
from honmaru.jobs.kinds import Claim
from honmaru.jobs.model_import import Environments, Roles, check_output, read_report
from honmaru.jobs.sandboxed import follow, status_of
from honmaru.ports.buckets import Buckets, split_uri
from honmaru.ports.executors import Executor, JobSpec, JobStatus, Phase
from honmaru.ports.models import CUSTOM_MODEL_KIND, CUSTOM_MODEL_NAME_KIND, MODEL_SERVICE, ModelArtifact
from honmaru.ports.runtime import Clock
from honmaru.security.guard import Guard
from honmaru.security.guard.records import Creation

if TYPE_CHECKING:
    from honmaru.security.guard import Record

KIND = "model-customization-job"
IN_PROGRESS, STOPPING = "InProgress", "Stopping"
COMPLETED, FAILED, STOPPED = "Completed", "Failed", "Stopped"
PRINCIPAL = "bedrock.amazonaws.com"
ENVIRONMENT = "serve"
MAX_DATA_BYTES = 4 << 30
_TIME_LIMIT_S = 5 * 86400.0
_RERUNS = 3
_REPORT = "report.json"
_METRICS: Mapping[str, str] = {
    "step_wise_training_metrics.csv": "training_artifacts/step_wise_training_metrics.csv",
    "validation_metrics.csv": "validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv",
}


@dataclass(frozen=True, slots=True)
class ModelCustomization:
    """A `jobs.kinds.JobKind`.

    Args:
        resolve: (session, identifier) → the base model, or None when the session may see none of that name.
        scratch: Where jobs are laid out (0700, on the executor's machine).
    """

    guard: Guard
    roles: Roles
    buckets: Buckets
    environments: Environments
    executor: Executor
    resolve: Callable[[Session, str], ModelArtifact | None]
    clock: Clock
    scratch: Path
    cores: int = 2
    running: int = 1

    @property
    def service(self) -> str:
        return MODEL_SERVICE

    @property
    def kind(self) -> str:
        return KIND

    @property
    def claimable(self) -> frozenset[str]:
        return frozenset({IN_PROGRESS, STOPPING})

    @property
    def slots(self) -> int:
        return self.running

    def run(self, claim: Claim) -> None:
        body, record = claim.body, claim.record
        session = self.roles.service_session(
            body["role_arn"],
            label=record.label,
            service=PRINCIPAL,
            session_name=f"customize-{record.name}",
            human=body["human"],
            account=record.account,
        )
        if self.guard.records(session, MODEL_SERVICE).get(CUSTOM_MODEL_KIND, body["model_id"]) is None:
            status = self._train(claim, session)
            if status is None:
                return
            if claim.refresh().state == STOPPING:
                self._end(claim, STOPPED, "")
                return
            self._register(claim, session)
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

    # Training

    def _train(self, claim: Claim, session: Session) -> JobStatus | None:
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
                claim, self.executor, job_id, stop_wanted=_stops, grace_s=120.0, tick=lambda: None, poll_s=0.5
            )
            if status is None:
                return None
            if status.phase is Phase.EXITED:
                self._check_exit(claim, status, job_id)
                return status

    def _count_loss(self, claim: Claim) -> None:
        def count(body: dict[str, Any]) -> None:
            body["attempt"] = int(body.get("attempt", 1)) + 1

        if int(claim.change(count).body["attempt"]) > _RERUNS:
            raise ValidationFault(f"the training was lost {_RERUNS} times with the machine it ran on")

    def _check_exit(self, claim: Claim, status: JobStatus, job_id: str) -> None:
        isolation = dict(status.isolation)
        claim.change(lambda body: body.update(isolation=isolation))
        if claim.record.state == STOPPING or (not any(status.exit_codes) and not status.reason):
            return
        said = trees.text(self._ml(job_id), "output/failure", 1024)
        raise ValidationFault(said or f"the training ended with {status.reason or status.exit_codes}")

    def _start(self, claim: Claim, session: Session, job_id: str) -> bool:
        """Stage and start; False when the enclave leaves."""
        body = claim.body
        base = self.resolve(session, body["base"])
        if base is None or not base.files:
            raise NotFound(f"Could not find the base model {body['base']}")
        shutil.rmtree(self.scratch / job_id, ignore_errors=True)
        ml = self._ml(job_id)
        for folder in ("input/config", "input/data/base", "input/data/training", "model", "output", "checkpoints"):
            (ml / folder).mkdir(mode=0o700, parents=True)
        blobs = self.guard.blobs(session)
        size = 0
        for name, blob_id in base.files.items():
            if not is_plain_name(name):
                raise ValidationFault(f"the base model names a file {name[:100]!r}")
            size += trees.write(ml / "input" / "data" / "base" / name, blobs.read(blob_id), 1 << 40)
        data = self._stage(session, ml, "training", [body["training_uri"]])
        if body["validation_uris"]:
            (ml / "input/data/validation").mkdir(mode=0o700)
            data += self._stage(session, ml, "validation", body["validation_uris"])
        hyperparameters = {**body["hyperparameters"], "customizationType": body["customization_type"]}
        (ml / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters), "utf-8")
        if claim.leaving:
            return False
        environment = self.environments.named(ENVIRONMENT)
        spec = JobSpec(
            job_id=job_id,
            root=self.scratch / job_id,
            environment=environment,
            argv=(f"{environment.prefix}/bin/python", "-m", "honmaru.workloads.fine_tuning"),
            variables={},
            label=session.label.banner,
            cpu=float(self.cores),
            memory_bytes=(4 << 30) + 16 * size + 2 * data,
            disk_bytes=(2 << 30) + 12 * size,
            time_limit_s=_TIME_LIMIT_S,
        )
        self.executor.start(spec)
        return True

    def _stage(self, session: Session, ml: Path, channel: str, uris: list[str]) -> int:
        size = 0
        for at, uri in enumerate(uris):
            for name, stored in input_files(self.buckets, session, uri).items():
                if not is_plain_name(name):
                    raise ValidationFault(f"{uri} holds a file with the name {name[:100]!r}; rename it")
                content = self.buckets.read(session, stored.bucket, stored.key)
                size += trees.write(ml / "input" / "data" / channel / f"{at}-{name}", content, MAX_DATA_BYTES - size)
        return size

    # The result

    def _register(self, claim: Claim, session: Session) -> None:
        """Metrics to S3, files as blobs, the model's records. Raises ValidationFault."""
        body = claim.body
        ml = self._ml(_job_id(body))
        text = trees.text(ml, f"model/{_REPORT}", 1 << 16)
        report = read_report(text)
        told = _losses(text)
        self._write_metrics(claim, session, ml)
        blobs = self.guard.blobs(session)
        files: dict[str, str] = {}
        for found in trees.files(ml, "model"):
            if found.name == _REPORT:
                continue
            check_output(found)
            files[found.name] = blobs.write(trees.chunks(found)).id
        if "config.json" not in files or "tokenizer.json" not in files:
            raise ValidationFault("the training left no complete model")
        model = {
            "id": body["model_id"],
            "name": body["model_name"],
            "job_id": claim.record.name,
            "job_name": body["job_name"],
            "base": body["base"],
            "customization_type": body["customization_type"],
            "hyperparameters": body["hyperparameters"],
            "training_uri": body["training_uri"],
            "validation_uris": body["validation_uris"],
            "output_uri": body["output_uri"],
            "files": files,
            "tags": body["model_tags"],
            **report,
            **told,
        }
        records = self.guard.records(session, MODEL_SERVICE)
        pointer = Creation(CUSTOM_MODEL_NAME_KIND, body["model_name"], {"id": body["model_id"]})
        try:
            records.apply([pointer, Creation(CUSTOM_MODEL_KIND, body["model_id"], model)])
        except Conflict:
            for blob_id in files.values():
                blobs.delete(blob_id)
            raise ValidationFault(f"a custom model named {body['model_name']!r} was made meanwhile") from None
        claim.change(lambda stored: stored.update(told))

    def _write_metrics(self, claim: Claim, session: Session, ml: Path) -> None:
        bucket, prefix = split_uri(claim.body["output_uri"])
        folder = "/".join(part for part in (prefix.strip("/"), f"model-customization-job-{claim.record.name}") if part)
        for found in trees.files(ml, "output/data"):
            if found.name in _METRICS:
                self.buckets.write(session, bucket, f"{folder}/{_METRICS[found.name]}", trees.chunks(found))

    def _ml(self, job_id: str) -> Path:
        return self.scratch / job_id / "algo-1" / "ml"


def _stops(record: Record) -> bool:
    return record.state == STOPPING


def _job_id(body: Mapping[str, Any]) -> str:
    return f"customize-{body['id']}"


def _losses(text: str | None) -> dict[str, Any]:
    """The losses that the sandbox reports, as numbers or not at all."""
    report = json.loads(text or "{}")
    training, validation = report.get("training_loss"), report.get("validation_losses")
    out: dict[str, Any] = {}
    if isinstance(training, int | float):
        out["training_loss"] = float(training)
    if isinstance(validation, list) and all(isinstance(loss, int | float) for loss in validation):
        out["validation_losses"] = [float(loss) for loss in validation[:16]]
    return out
