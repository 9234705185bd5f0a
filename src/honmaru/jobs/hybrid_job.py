"""The kind of job behind Braket's CreateJob: the user's code in a sandbox, which may submit quantum tasks.

Invariants:
- The job acts as its role, at the label of the session that made it; its code too: the broker hands out nothing else.
- Each step reads the status that the record has and can be repeated: `kill -9` at any point, then a new start, adopts
  the running sandbox (with a new broker at the same place) or runs the job again, and ends it exactly once.
- COMPLETED is stored only when model.tar.gz is durable in S3 and the code exited with 0.
- The broker of a job is gone before its final status is stored.

Source: Amazon Braket developer guide, "Environment variables for your hybrid job"; amazon-braket-sdk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import Conflict, ExecutorLost
from honmaru.core.sessions import Session
from honmaru.jobs import trees
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity, size_of
from honmaru.jobs.job_broker import BROKER_INSIDE, JobBrokers
from honmaru.jobs.kinds import Claim
from honmaru.jobs.output import OutputFollower
from honmaru.jobs.sandboxed import follow, status_of
from honmaru.jobs.staging import SUBMIT_DIRECTORY, CheckpointSync, Staging, checkpoint_folders
from honmaru.jobs.training import EntryLog, Roles
from honmaru.ports.buckets import Buckets, split_uri
from honmaru.ports.executors import Executor, JobSpec, JobStatus, Phase
from honmaru.ports.logs import LogSink
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.ledger.entries import api_call

if TYPE_CHECKING:
    from honmaru.security.guard import Record

SERVICE, KIND = "braket", "job"
PRINCIPAL = "braket.amazonaws.com"
LOG_GROUP = "/aws/braket/jobs"
ENTRY_MODULE = "honmaru.workloads.quantum.job"
GRACE_S = 30.0
_LOGS_EVERY_S, _CHECKPOINT_EVERY_S = 1.0, 20.0
_RERUNS = 3
_REASON_LIMIT = 1024
_GIB = 1 << 30

TABLE: Mapping[tuple[str, str], str] = {
    ("QUEUED", "run"): "RUNNING",
    ("RUNNING", "again"): "QUEUED",
    ("RUNNING", "complete"): "COMPLETED",
    **{(status, "fail"): "FAILED" for status in ("QUEUED", "RUNNING", "CANCELLING")},
    **{(status, "cancel"): "CANCELLING" for status in ("QUEUED", "RUNNING")},
    ("CANCELLING", "cancelled"): "CANCELLED",
}
CLAIMABLE = frozenset({"QUEUED", "RUNNING", "CANCELLING"})
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})

_SANDBOX_REASONS = {
    "out-of-memory": "the job used more memory than its instance type has and was ended",
    "disk-quota": "the job wrote more than volumeSizeInGb and was ended",
    "process-limit": "the job tried to make more processes than the sandbox allows and was ended",
    "time-limit": "the job ran longer than maxRuntimeInSeconds and was ended",
}


def advance(body: dict[str, Any], state: str, event: str, at: datetime, told: tuple[str, str]) -> str:
    """The status after an event; notes it in the body's events. Raises Conflict for a transition that is not there."""
    if (state, event) not in TABLE:
        raise Conflict(f"a hybrid job that is {state} cannot {event}", code="ConflictException")
    note(body, at, told)
    return TABLE[state, event]


def note(body: dict[str, Any], at: datetime, told: tuple[str, str]) -> None:
    """Add an event (type, message) to those that GetJob shows; the newest 20 stay."""
    event = {"type": told[0], "at": at.isoformat(), "message": told[1]}
    body["events"] = [*body.get("events", []), event][-20:]


class _Leaving(Exception):
    """The enclave stops, or the job shall stop, while it is staged."""


@dataclass(frozen=True, slots=True)
class HybridJob:
    """A `jobs.kinds.JobKind`.

    Args:
        scratch: Where job trees are laid out (0700, on the executor's machine).
        capacity: What the machine has.
        running: Hybrid jobs at the same time.
    """

    roles: Roles
    buckets: Buckets
    logs: LogSink
    ledger: EntryLog
    environments: Environments
    executor: Executor
    brokers: JobBrokers
    clock: Clock
    ids: Ids
    scratch: Path
    capacity: Capacity
    running: int = 2

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
            if claim.record.body.get("ending"):
                self._finish(claim, session)
            elif claim.record.state == "QUEUED":
                self._start(claim, session)
            else:
                self._follow(claim, session)

    def fail(self, claim: Claim, reason: str) -> None:
        body = claim.body
        self._clean(body)

        def end(fresh: dict[str, Any]) -> str:
            fresh["failure"] = (fresh.get("failure") or reason)[:_REASON_LIMIT]
            return self._ended(claim, fresh, "fail", ("FAILED", fresh["failure"]))

        claim.change(end)

    # Steps

    def _start(self, claim: Claim, session: Session) -> None:
        """Stage and start, or adopt what an earlier process started just before it died."""
        body = claim.body
        job_id, request = _job_id(body), body["request"]
        root = self._root(body)
        self.brokers.open(job_id, session, f"braket/job/{claim.record.name}")
        if status_of(self.executor, job_id) is None:
            now = self.clock.now()
            claim.change(lambda fresh: note(fresh, now, ("DOWNLOADING_DATA", "Downloading code and input data")))

            def keep_going() -> None:
                if claim.leaving or claim.refresh().state != "QUEUED":
                    raise _Leaving

            volume = int(request["instanceConfig"]["volumeSizeInGb"]) * _GIB
            instances = _instances(request)
            try:
                Staging(self.buckets, session, root, as_training(request), instances, volume, keep_going).run()
                _write_hyperparameters(root, request, instances)
                keep_going()
            except _Leaving:
                return
            self.executor.start(self._spec(claim.record, job_id, root, instances, volume))
        isolation = dict(self.executor.status(job_id).isolation)
        self._record_isolation(session, claim.record, isolation)

        def begin(fresh: dict[str, Any]) -> str | None:
            fresh["isolation"] = isolation
            fresh.setdefault("started", self.clock.now().isoformat())
            fresh["log_streams"] = self._streams(claim.record, job_id)
            if claim.record.state == "CANCELLING":
                return None
            told = ("RUNNING", "The user's code is running")
            return advance(fresh, claim.record.state, "run", self.clock.now(), told)

        claim.change(begin)

    def _follow(self, claim: Claim, session: Session) -> None:
        """RUNNING or CANCELLING: wait for the sandbox, then note how the job is to end."""
        body = claim.body
        job_id = _job_id(body)
        status = status_of(self.executor, job_id)
        if status is None or status.phase is Phase.LOST:
            self._lost(claim)
            return
        if not body.get("log_streams"):
            claim.change(lambda fresh: fresh.update(log_streams=self._streams(claim.record, job_id)))
            body = claim.body
        self.brokers.open(job_id, session, f"braket/job/{claim.record.name}")
        watched = self._watch(claim, session, job_id, body)
        if watched is None:
            return
        if watched.phase is Phase.LOST:
            self._lost(claim)
            return
        follower = self._follower(session, job_id, body)
        follower.ship(final=True)
        failure = self._failure(watched, self._root(body), follower)

        def end(fresh: dict[str, Any]) -> None:
            cancelling = claim.record.state == "CANCELLING"
            fresh["ending"] = "cancelled" if cancelling else "fail" if failure else "complete"
            if failure and not cancelling:
                fresh["failure"] = failure
            fresh["exit_codes"] = list(watched.exit_codes)
            fresh["ended"] = self.clock.now().isoformat()
            note(fresh, self.clock.now(), ("UPLOADING_RESULTS", "Uploading results"))

        claim.change(end)

    def _watch(self, claim: Claim, session: Session, job_id: str, body: Mapping[str, Any]) -> JobStatus | None:
        follower = self._follower(session, job_id, body)
        sync = self._checkpoints(session, body)
        due = dict.fromkeys(("logs", "checkpoints"), self.clock.monotonic())

        def tick() -> None:
            now = self.clock.monotonic()
            if now >= due["logs"]:
                follower.ship()
                due["logs"] = now + _LOGS_EVERY_S
            if sync is not None and now >= due["checkpoints"]:
                sync.run(final=False)
                due["checkpoints"] = now + _CHECKPOINT_EVERY_S

        return follow(
            claim,
            self.executor,
            job_id,
            stop_wanted=lambda record: record.state == "CANCELLING",
            grace_s=GRACE_S,
            tick=tick,
        )

    def _lost(self, claim: Claim) -> None:
        """The sandbox went away with its runner (the machine restarted), or never was: run again, or end."""
        self._clean(claim.body)
        if claim.record.state == "CANCELLING":
            claim.change(lambda fresh: self._ended(claim, fresh, "cancelled", ("CANCELLED", "Cancelled")))
            return
        attempts = int(claim.record.body["attempt"])
        if attempts > _RERUNS:
            self.fail(claim, f"the job's sandbox went away {attempts} times. Please try again.")
            return

        def again(fresh: dict[str, Any]) -> str | None:
            if claim.record.state != "RUNNING":
                return None
            fresh["attempt"] = attempts + 1
            fresh.pop("log_streams", None)
            told = ("QUEUED_FOR_EXECUTION", "The sandbox went away; starting again")
            return advance(fresh, claim.record.state, "again", self.clock.now(), told)

        claim.change(again)

    def _finish(self, claim: Claim, session: Session) -> None:
        """Collect what the job made, close its way out, delete its scratch, set the final status."""
        body = claim.body
        if not body.get("collected"):
            self._collect(session, body)
            claim.change(lambda fresh: fresh.update(collected=True))
        self._clean(body)
        told = {
            "complete": ("COMPLETED", "The job has completed"),
            "cancelled": ("CANCELLED", "The job was cancelled"),
            "fail": ("FAILED", str(body.get("failure") or "failed")),
        }

        def end(fresh: dict[str, Any]) -> str:
            # A cancel that came after the code had ended still ends the job as cancelled.
            event = "cancelled" if claim.record.state == "CANCELLING" else fresh["ending"]
            return self._ended(claim, fresh, event, told[event])

        claim.change(end)

    # Parts of steps

    def _ended(self, claim: Claim, fresh: dict[str, Any], event: str, told: tuple[str, str]) -> str:
        fresh.setdefault("ended", self.clock.now().isoformat())
        fresh.pop("lease", None)
        return advance(fresh, claim.record.state, event, self.clock.now(), told)

    def _clean(self, body: Mapping[str, Any]) -> None:
        self.executor.forget(_job_id(body))
        self.brokers.close(_job_id(body))
        shutil.rmtree(self._root(body), ignore_errors=True)

    def _session(self, record: Record) -> Session:
        body = record.body
        return self.roles.service_session(
            body["request"]["roleArn"],
            label=record.label,
            service=PRINCIPAL,
            session_name="Braket",
            human=body["human"],
            account=record.account,
            source_arn=body["arn"],
        )

    def _spec(self, record: Record, job_id: str, root: Path, instances: int, volume: int) -> JobSpec:
        body = record.body
        request = body["request"]
        size = size_of(request["instanceConfig"]["instanceType"], self.capacity)
        environment = self.environments.named(body["environment"]["name"])
        return JobSpec(
            job_id=job_id,
            root=root,
            environment=environment,
            argv=(f"{environment.prefix}/bin/python", "-m", ENTRY_MODULE, "--broker", BROKER_INSIDE),
            variables=variables(record),
            label=record.label.banner,
            instances=instances,
            cpu=float(size.cores),
            memory_bytes=size.memory_bytes,
            disk_bytes=volume,
            time_limit_s=float((request.get("stoppingCondition") or {}).get("maxRuntimeInSeconds") or 432_000),
            grace_s=GRACE_S,
            loopback=True,
            sockets={str(self.brokers.folder(job_id)): BROKER_INSIDE},
        )

    def _record_isolation(self, session: Session, record: Record, isolation: Mapping[str, str]) -> None:
        entry = api_call(
            event_id=self.ids.uuid(),
            session=session,
            service=SERVICE,
            event_source=PRINCIPAL,
            operation="RunJob",
            request_id=self.ids.uuid(),
            at=self.clock.now(),
            decision="allow",
            resources=[(record.body["arn"], "AWS::Braket::Job")],
            details={"isolation": dict(isolation), "environment": record.body["environment"]},
            region=record.body["region"],
            account=record.account,
            read_only=False,
        )
        self.ledger.append(record.label, {**entry, "eventType": "AwsServiceEvent"}).result()

    def _streams(self, record: Record, job_id: str) -> list[str]:
        stem = f"{record.body['request']['jobName']}/{record.name}"
        attempt = job_id.rpartition("-")[2]
        at = int(self.clock.now().timestamp())
        return [f"{stem}/algo-{n}-{at}{attempt:0>2}" for n in range(1, _instances(record.body["request"]) + 1)]

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
        request = as_training(body["request"])
        configuration = request.get("CheckpointConfig")
        if not configuration:
            return None
        folders = checkpoint_folders(self._root(body), configuration, _instances(body["request"]))
        limit = _instances(body["request"]) * int(body["request"]["instanceConfig"]["volumeSizeInGb"]) * _GIB
        return CheckpointSync(self.buckets, session, folders, configuration["S3Uri"], limit=limit)

    def _failure(self, status: JobStatus, root: Path, follower: OutputFollower) -> str:
        """failureReason, or "" when every instance exited with 0."""
        failed = [number for number, code in enumerate(status.exit_codes, start=1) if code != 0]
        if not failed and status.reason in ("", "stopped"):
            return ""
        why = _SANDBOX_REASONS.get(status.reason, "")
        number = failed[0] if failed else 1
        told = trees.text(root / f"algo-{number}" / "ml", "output/failure", _REASON_LIMIT)
        if told:
            why = f"{told.strip()}; {why}" if why else told.strip()
        if not why:
            why = f"the last lines of algo-{number}: {follower.tail(number)[-700:]}"
        code = status.exit_codes[number - 1] if failed else 0
        return f"AlgorithmError: {why[: _REASON_LIMIT - 60]}, exit code: {code}"

    def _collect(self, session: Session, body: Mapping[str, Any]) -> None:
        """Write checkpoints, and model.tar.gz with the results unless the job failed."""
        root, request = self._root(body), body["request"]
        if not root.exists():
            raise ExecutorLost("the job's scratch is gone before its outputs were collected")
        sync = self._checkpoints(session, body)
        if sync is not None:
            sync.run(final=True)
        if body["ending"] == "fail":
            return
        found: dict[str, trees.Found] = {}
        for number in range(1, _instances(request) + 1):
            for file in trees.files(root / f"algo-{number}" / "ml", "model"):
                found.setdefault(file.name, file)
        bucket, prefix = split_uri(request["outputDataConfig"]["s3Path"])
        key = "/".join(part for part in (prefix.strip("/"), "output", "model.tar.gz") if part)
        sealed_under = request["outputDataConfig"].get("kmsKeyId") or ""
        self.buckets.write(session, bucket, key, trees.archive([found[name] for name in sorted(found)]), sealed_under)

    def _root(self, body: Mapping[str, Any]) -> Path:
        return self.scratch / _job_id(body)


def as_training(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request in the words of a training job, whose staging it shares."""
    script = (request.get("algorithmSpecification") or {}).get("scriptModeConfig") or {}
    channels = [
        {
            "ChannelName": channel["channelName"],
            "DataSource": {
                "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": channel["dataSource"]["s3DataSource"]["s3Uri"]}
            },
        }
        for channel in request.get("inputDataConfig") or []
    ]
    training: dict[str, Any] = {
        "HyperParameters": {**(request.get("hyperParameters") or {}), SUBMIT_DIRECTORY: script.get("s3Uri", "")},
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "InputDataConfig": channels,
        "ResourceConfig": {"InstanceType": request["instanceConfig"]["instanceType"]},
    }
    if request.get("checkpointConfig"):
        training["CheckpointConfig"] = {"S3Uri": request["checkpointConfig"]["s3Uri"]}
    return training


def variables(record: Record) -> dict[str, str]:
    """What Braket's SDK reads inside the job. Paths are those of the sandbox, under /opt/ml."""
    body = record.body
    request = body["request"]
    script = (request.get("algorithmSpecification") or {}).get("scriptModeConfig") or {}
    bucket, _ = split_uri(request["outputDataConfig"]["s3Path"])
    return {
        "AMZN_BRAKET_JOB_NAME": request["jobName"],
        "AMZN_BRAKET_JOB_ARN": body["arn"],
        "AMZN_BRAKET_DEVICE_ARN": body["device"],
        "AMZN_BRAKET_JOB_TOKEN": body["token"],
        "AMZN_BRAKET_HP_FILE": "/opt/ml/input/config/hyperparameters.json",
        "AMZN_BRAKET_INPUT_DIR": "/opt/ml/input/data",
        "AMZN_BRAKET_JOB_RESULTS_DIR": "/opt/ml/model",
        "AMZN_BRAKET_CHECKPOINT_DIR": "/opt/ml/checkpoints",
        "AMZN_BRAKET_OUT_S3_BUCKET": bucket,
        "AMZN_BRAKET_TASK_RESULTS_S3_URI": f"s3://{bucket}/jobs/{request['jobName']}/tasks",
        "AMZN_BRAKET_SCRIPT_ENTRY_POINT": script.get("entryPoint", ""),
        "AMZN_BRAKET_SCRIPT_S3_URI": script.get("s3Uri", ""),
        "AMZN_BRAKET_SCRIPT_COMPRESSION_TYPE": script.get("compressionType") or "GZIP",
        "AWS_REGION": body["region"],
        "AWS_DEFAULT_REGION": body["region"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _write_hyperparameters(root: Path, request: Mapping[str, Any], instances: int) -> None:
    """The user's own, without the one that told the staging where the code is."""
    text = json.dumps(dict(request.get("hyperParameters") or {}))
    for number in range(1, instances + 1):
        (root / f"algo-{number}" / "ml" / "input" / "config" / "hyperparameters.json").write_text(text)


def _instances(request: Mapping[str, Any]) -> int:
    return int(request["instanceConfig"].get("instanceCount") or 1)


def _job_id(body: Mapping[str, Any]) -> str:
    return f"{body['uid']}-{body['attempt']}"
