"""The kind of job behind CreateTrainingJob: stage, run in a sandbox, carry logs and checkpoints, collect, end.

Invariants:
- The job acts as its execution role, at the label of the session that started it; the role is asked for anew whenever
  the job is taken up.
- Each step reads the status that the record has and can be repeated: `kill -9` at any point, then a new start, adopts
  the running sandbox or runs the job again, and ends it exactly once.
- A job never ends Completed unless its model is durable in S3 and every instance exited with 0.
- What the sandbox achieved as isolation is in the record and in the ledger before the job is called Training.
- The user's code reaches the enclave as the execution role at the job's label, through the job's broker and by no other
  way; a job with network isolation does not reach it at all, and has no credentials.

Source: Amazon SageMaker developer guide, "Use your own training algorithms".
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from honmaru.core.errors import ExecutorLost
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.jobs import metrics, trees
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity, size_of
from honmaru.jobs.job_broker import BROKER_INSIDE, JobBrokers
from honmaru.jobs.kinds import Claim
from honmaru.jobs.output import OutputFollower
from honmaru.jobs.sandboxed import follow, status_of
from honmaru.jobs.staging import CheckpointSync, Staging, checkpoint_folders
from honmaru.jobs.training_states import CLAIMABLE, FINAL, advance
from honmaru.jobs.volumes import JobVolumes
from honmaru.ports.buckets import Buckets, split_uri
from honmaru.ports.executors import Executor, JobSpec, JobStatus, Phase
from honmaru.ports.logs import LogSink
from honmaru.ports.metrics import Datum, MetricSink
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.ledger.entries import api_call

if TYPE_CHECKING:
    from honmaru.security.guard import Record

SERVICE, KIND = "sagemaker", "training-job"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_BROKERED = "honmaru.workloads.brokered"
GRACE_S = 120.0
"""Between SIGTERM and SIGKILL, as SageMaker does it."""
_CHECKPOINT_EVERY_S = 20.0
_LOGS_EVERY_S = 1.0
_METRICS_EVERY_S = 10.0
_RERUNS = 3
_REASON_LIMIT = 1024
_GIB = 1 << 30

_SANDBOX_REASONS = {
    "out-of-memory": "the job used more memory than its instance type has and was ended",
    "disk-quota": "the job wrote more than VolumeSizeInGB and was ended",
    "process-limit": "the job tried to make more processes than the sandbox allows and was ended",
}


class Roles(Protocol):
    """What jobs need of `security.identity.Identity`."""

    def service_session(
        self,
        role_arn: str,
        *,
        label: Label,
        service: str,
        session_name: str,
        human: str,
        account: str,
        source_arn: str = "",
    ) -> Session: ...


class EntryLog(Protocol):
    """What jobs need of the ledger."""

    def append(self, label: Label, entry: Mapping[str, Any]) -> Future[Any]: ...


class _Leaving(Exception):
    """The enclave stops, or the job shall stop, while it is staged."""


@dataclass(frozen=True, slots=True)
class Training:
    """A `jobs.kinds.JobKind`.

    Args:
        scratch: Where job trees are laid out (0700, on the executor's machine).
        capacity: What the machine has.
        running: Training jobs at the same time.
        brokers: The jobs' way to the enclave; None leaves them without.
        volumes: Makes scratch directories that are encrypted.
        metrics: Takes what MetricDefinitions find in the output, under the namespace /aws/sagemaker/TrainingJobs.
    """

    roles: Roles
    buckets: Buckets
    logs: LogSink
    ledger: EntryLog
    environments: Environments
    executor: Executor
    clock: Clock
    ids: Ids
    scratch: Path
    capacity: Capacity
    running: int = 2
    metrics: MetricSink | None = None
    brokers: JobBrokers | None = None
    volumes: JobVolumes = field(default_factory=JobVolumes)

    @property
    def service(self) -> str:
        return SERVICE

    @property
    def kind(self) -> str:
        return KIND

    @property
    def claimable(self) -> frozenset[str]:
        return CLAIMABLE

    @property
    def slots(self) -> int:
        return self.running

    def run(self, claim: Claim) -> None:
        session = self._session(claim.record)
        while not claim.leaving and claim.record.state not in FINAL:
            status = claim.record.body["secondary"]
            if claim.record.body.get("ending"):
                self._finish(claim, session)
            elif status in ("Starting", "Restarting"):
                claim.change(self._stage)
            elif status == "Downloading":
                self._start(claim, session)
            else:
                self._follow(claim, session)

    def fail(self, claim: Claim, reason: str) -> None:
        body = claim.body
        self._discard(body)
        known = reason if reason.startswith(("AlgorithmError", "InternalServerError")) else f"ClientError: {reason}"

        def end(fresh: dict[str, Any]) -> str:
            fresh["failure"] = fresh.get("failure") or known[:_REASON_LIMIT]
            return self._end(fresh, "fail")

        claim.change(end)

    # Steps

    def _start(self, claim: Claim, session: Session) -> None:
        """Stage and start, or adopt what an earlier process started just before it died."""
        body = claim.body
        job_id = _job_id(body)
        request = body["request"]
        instances = int(request["ResourceConfig"].get("InstanceCount") or 1)
        if status_of(self.executor, job_id) is None:
            volume = _volume_bytes(request)

            def keep_going() -> None:
                if claim.leaving or claim.refresh().body["secondary"] != "Downloading":
                    raise _Leaving

            root = self._root(body)
            try:
                self._discard(body)  # what an earlier process began
                key = request["ResourceConfig"].get("VolumeKmsKeyId") or ""
                lay_root = self.volumes.maker(session, key, body["arn"])
                Staging(self.buckets, session, root, request, instances, volume, keep_going, lay_root).run()
                keep_going()
            except _Leaving:
                return
            self._open_broker(claim.record, job_id, session)
            self.executor.start(self._spec(claim.record, job_id, root, instances, volume))
        self._open_broker(claim.record, job_id, session)
        isolation = dict(self.executor.status(job_id).isolation)
        self._record_isolation(session, claim.record, isolation)

        def begin(fresh: dict[str, Any]) -> str | None:
            fresh["isolation"] = isolation
            fresh.setdefault("started", self.clock.now().isoformat())
            fresh["log_streams"] = _streams(claim.record.name, job_id, instances, self.clock.now())
            if fresh["secondary"] == "Stopping":
                return None
            return advance(fresh, "run", self.clock.now())

        claim.change(begin)

    def _follow(self, claim: Claim, session: Session) -> None:
        """Training or Stopping: wait for the sandbox, then note how the job is to end."""
        body = claim.body
        job_id = _job_id(body)
        status = status_of(self.executor, job_id)
        if status is not None and not body.get("log_streams"):  # stopped between start and its record
            instances = int(body["request"]["ResourceConfig"].get("InstanceCount") or 1)
            streams = _streams(claim.record.name, job_id, instances, self.clock.now())
            claim.change(lambda fresh: fresh.update(log_streams=streams))
            body = claim.body
        if status is not None and status.phase is not Phase.LOST:
            self._open_broker(claim.record, job_id, session)
            status = self._watch(claim, session, job_id, body)
            if status is None:
                return
        if status is None or status.phase is Phase.LOST:
            self._lost(claim)
            return
        self._note_ending(claim, session, status)

    def _watch(self, claim: Claim, session: Session, job_id: str, body: Mapping[str, Any]) -> JobStatus | None:
        request = body["request"]
        follower = self._follower(session, job_id, body)
        sync = self._checkpoints(session, body)
        definitions = request["AlgorithmSpecification"].get("MetricDefinitions") or []
        due = dict.fromkeys(("logs", "checkpoints", "metrics"), self.clock.monotonic())

        def tick() -> None:
            now = self.clock.monotonic()
            if now >= due["logs"]:
                follower.ship()
                due["logs"] = now + _LOGS_EVERY_S
            if sync is not None and now >= due["checkpoints"]:
                sync.run(final=False)
                due["checkpoints"] = now + _CHECKPOINT_EVERY_S
            if definitions and now >= due["metrics"]:
                self._note_metrics(claim, definitions, follower)
                due["metrics"] = self.clock.monotonic() + _METRICS_EVERY_S

        return follow(
            claim,
            self.executor,
            job_id,
            stop_wanted=lambda record: bool(record.body["secondary"] == "Stopping"),
            grace_s=GRACE_S,
            tick=tick,
        )

    def _note_ending(self, claim: Claim, session: Session, status: JobStatus) -> None:
        body = claim.body
        job_id = _job_id(body)
        follower = self._follower(session, job_id, body)
        follower.ship(final=True)
        definitions = body["request"]["AlgorithmSpecification"].get("MetricDefinitions") or []
        if definitions:
            self._note_metrics(claim, definitions, follower)
        failure = self._failure(status, self._root(body), follower)

        def note(fresh: dict[str, Any]) -> str | None:
            stopping = fresh["secondary"] == "Stopping"
            if stopping:
                fresh["ending"] = "stopped"
            elif status.reason == "time-limit":
                fresh["ending"] = "expire"
            elif failure:
                fresh["ending"], fresh["failure"] = "fail", failure
            else:
                fresh["ending"] = "complete"
            fresh["exit_codes"] = list(status.exit_codes)
            fresh["ended"] = self.clock.now().isoformat()
            return None if stopping else advance(fresh, "upload", self.clock.now())

        claim.change(note)

    def _lost(self, claim: Claim) -> None:
        """The sandbox went away with its runner (the machine restarted): run again, or end."""
        if claim.record.body["secondary"] == "Stopping":
            self._discard(claim.body)
            claim.change(lambda fresh: self._end(fresh, "stopped"))
            return
        attempts = int(claim.record.body["attempt"])
        retries = (claim.record.body["request"].get("RetryStrategy") or {}).get("MaximumRetryAttempts")
        self._discard(claim.body)
        if attempts > (_RERUNS if retries is None else int(retries)):
            self.fail(claim, f"InternalServerError: the job's sandbox went away {attempts} times. Please try again.")
            return

        def again(fresh: dict[str, Any]) -> str | None:
            if fresh["secondary"] == "Stopping":
                return None
            fresh["attempt"] = attempts + 1
            fresh.pop("log_streams", None)
            return advance(fresh, "restart", self.clock.now())

        claim.change(again)

    def _finish(self, claim: Claim, session: Session) -> None:
        """Collect what the job made, delete its scratch, set the final status."""
        body = claim.body
        if not body.get("collected"):
            artifact = self._collect(session, claim.record.name, body)

            def note(fresh: dict[str, Any]) -> None:
                fresh["collected"] = True
                if artifact:
                    fresh["artifact"] = artifact

            claim.change(note)
        self._discard(body)
        claim.change(lambda fresh: self._end(fresh, fresh["ending"]))

    # Parts of steps

    def _open_broker(self, record: Record, job_id: str, session: Session) -> None:
        """The job's way to the enclave, unless it asked for none. Idempotent."""
        if self.brokers is not None and not _isolated(record):
            self.brokers.open(job_id, session, f"sagemaker/training-job/{record.name}")

    def _discard(self, body: Mapping[str, Any]) -> None:
        """Nothing of an attempt stays: its sandbox, its broker, its scratch and the key of that."""
        job_id, root = _job_id(body), self._root(body)
        held = self.volumes.held(root)
        self.executor.forget(job_id)
        if self.brokers is not None:
            self.brokers.close(job_id)
        self.volumes.discard(root, held)

    def _session(self, record: Record) -> Session:
        body = record.body
        return self.roles.service_session(
            body["request"]["RoleArn"],
            label=record.label,
            service="sagemaker.amazonaws.com",
            session_name="SageMaker",
            human=body["human"],
            account=record.account,
            source_arn=body["arn"],
        )

    def _spec(self, record: Record, job_id: str, root: Path, instances: int, volume: int) -> JobSpec:
        request = record.body["request"]
        algorithm = request["AlgorithmSpecification"]
        environment = self.environments.resolve(algorithm["TrainingImage"])
        size = size_of(request["ResourceConfig"]["InstanceType"], self.capacity)
        entry = algorithm.get("ContainerEntrypoint") or ["python", "-m", environment.entry_module]
        writable = ("input/data/code", "input/data/sm_drivers") if algorithm.get("ContainerEntrypoint") else ()
        variables = {
            "OMP_NUM_THREADS": str(max(1, size.cores // instances)),
            "TRAINING_JOB_NAME": record.name,
            "TRAINING_JOB_ARN": record.body["arn"],
            "AWS_REGION": record.body["region"],
            "AWS_DEFAULT_REGION": record.body["region"],
            **(request.get("Environment") or {}),
        }
        argv = [*entry, *(algorithm.get("ContainerArguments") or [])]
        sockets = {}
        if self.brokers is not None and not _isolated(record):
            sockets = {str(self.brokers.folder(job_id)): BROKER_INSIDE}
            argv = [f"{environment.prefix}/bin/python", "-m", _BROKERED, BROKER_INSIDE, "--", *argv]
        return JobSpec(
            job_id=job_id,
            root=root,
            environment=environment,
            argv=tuple(argv),
            variables=variables,
            label=record.label.banner,
            instances=instances,
            cpu=float(size.cores),
            memory_bytes=size.memory_bytes,
            disk_bytes=volume,
            time_limit_s=float((request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds") or 86400),
            grace_s=GRACE_S,
            loopback=not _isolated(record),
            writable=writable,
            sockets=sockets,
        )

    def _record_isolation(self, session: Session, record: Record, isolation: Mapping[str, str]) -> None:
        entry = api_call(
            event_id=self.ids.uuid(),
            session=session,
            service=SERVICE,
            event_source="sagemaker.amazonaws.com",
            operation="RunTrainingJob",
            request_id=self.ids.uuid(),
            at=self.clock.now(),
            decision="allow",
            resources=[(record.body["arn"], "AWS::SageMaker::TrainingJob")],
            details={"isolation": dict(isolation), "environment": record.body["environment"]},
            region=record.body["region"],
            account=record.account,
            read_only=False,
        )
        self.ledger.append(record.label, {**entry, "eventType": "AwsServiceEvent"}).result()

    def _follower(self, session: Session, job_id: str, body: Mapping[str, Any]) -> OutputFollower:
        return OutputFollower(
            self.executor,
            self.logs,
            session,
            self.clock,
            job_id=job_id,
            group=LOG_GROUP,
            streams=body["log_streams"],
        )

    def _checkpoints(self, session: Session, body: Mapping[str, Any]) -> CheckpointSync | None:
        configuration = body["request"].get("CheckpointConfig")
        if not configuration:
            return None
        instances = int(body["request"]["ResourceConfig"].get("InstanceCount") or 1)
        folders = checkpoint_folders(self._root(body), configuration, instances)
        limit = instances * _volume_bytes(body["request"])
        return CheckpointSync(self.buckets, session, folders, configuration["S3Uri"], limit=limit)

    def _note_metrics(self, claim: Claim, definitions: list[dict[str, str]], follower: OutputFollower) -> None:
        pages = (page for instance in follower.instances for page in follower.pages(instance))
        values = metrics.extract(definitions, pages)
        seen = {metric["name"]: int(metric.get("count", 0)) for metric in claim.record.body.get("metrics") or []}
        if not values or {name: found.count for name, found in values.items()} == seen:
            return
        now = self.clock.now()
        if self.metrics is not None:
            # Before the record: a crash in between repeats the newest points and loses none.
            session = self._session(claim.record)
            dimensions = {"TrainingJobName": claim.record.name}
            data = [
                Datum(name, value, now, dimensions)
                for name, found in values.items()
                for value in found.since(seen.get(name, 0))
            ]
            self.metrics.put(session, LOG_GROUP, data)
        noted = [
            {"name": name, "value": found.last[-1], "at": now.isoformat(), "count": found.count}
            for name, found in values.items()
        ]
        claim.change(lambda fresh: fresh.update(metrics=noted))

    def _failure(self, status: JobStatus, root: Path, follower: OutputFollower) -> str:
        """FailureReason, or "" when every instance exited with 0."""
        failed = [number for number, code in enumerate(status.exit_codes, start=1) if code != 0]
        if not failed and status.reason in ("", "stopped", "time-limit"):
            return ""
        why = _SANDBOX_REASONS.get(status.reason, "")
        for number in failed or [1]:
            told = trees.text(root / f"algo-{number}" / "ml", "output/failure", _REASON_LIMIT)
            if told:
                why = f"{told.strip()}; {why}" if why else told.strip()
                break
        code = status.exit_codes[failed[0] - 1] if failed else 0
        if not why:
            why = f"the last lines of algo-{failed[0]}: {follower.tail(failed[0])[-700:]}"
        return f"AlgorithmError: {why[: _REASON_LIMIT - 60]}, exit code: {code}"

    def _collect(self, session: Session, name: str, body: Mapping[str, Any]) -> str:
        """Write outputs to S3; returns the URI of the model, or "" when the job failed."""
        root, request = self._root(body), body["request"]
        if not root.exists():
            raise ExecutorLost("the job's scratch is gone before its outputs were collected")
        instances = int(request["ResourceConfig"].get("InstanceCount") or 1)
        bucket, prefix = split_uri(request["OutputDataConfig"]["S3OutputPath"])
        base = "/".join(part for part in (prefix.strip("/"), name, "output") if part)
        key = request["OutputDataConfig"].get("KmsKeyId") or ""
        sync = self._checkpoints(session, body)
        if sync is not None:
            sync.run(final=True)
        outputs = _merged(root, instances, "output/data")
        within = sum(found.size for found in outputs) <= instances * _volume_bytes(request)
        if outputs and (within or body["ending"] != "fail"):
            self.buckets.write(session, bucket, f"{base}/output.tar.gz", trees.archive(outputs), key)
        if body["ending"] == "fail":
            return ""
        model = _merged(root, instances, "model")
        if request["OutputDataConfig"].get("CompressionType") == "NONE":
            for found in model:
                self.buckets.write(session, bucket, f"{base}/model/{found.name}", trees.chunks(found), key)
            return f"s3://{bucket}/{base}/model/"
        self.buckets.write(session, bucket, f"{base}/model.tar.gz", trees.archive(model), key)
        return f"s3://{bucket}/{base}/model.tar.gz"

    def _stage(self, fresh: dict[str, Any]) -> str | None:
        stopping = fresh["secondary"] == "Stopping"
        return None if stopping else advance(fresh, "stage", self.clock.now())

    def _end(self, fresh: dict[str, Any], event: str) -> str:
        fresh.setdefault("ended", self.clock.now().isoformat())
        fresh.pop("lease", None)
        return advance(fresh, event, self.clock.now())

    def _root(self, body: Mapping[str, Any]) -> Path:
        return self.scratch / _job_id(body)


def _isolated(record: Record) -> bool:
    return bool(record.body["request"].get("EnableNetworkIsolation", False))


def _volume_bytes(request: Mapping[str, Any]) -> int:
    return int(request["ResourceConfig"].get("VolumeSizeInGB") or 1) * _GIB


def _job_id(body: Mapping[str, Any]) -> str:
    return f"{body['uid']}-{body['attempt']}"


def _streams(name: str, job_id: str, instances: int, at: datetime) -> list[str]:
    attempt = job_id.rpartition("-")[2]
    return [f"{name}/algo-{each}-{int(at.timestamp())}{attempt:0>2}" for each in range(1, instances + 1)]


def _merged(root: Path, instances: int, folder: str) -> list[trees.Found]:
    """The files of a folder over all instances; where a name repeats, the first instance's."""
    found: dict[str, trees.Found] = {}
    for number in range(1, instances + 1):
        for file in trees.files(root / f"algo-{number}" / "ml", folder):
            found.setdefault(file.name, file)
    return [found[name] for name in sorted(found)]
