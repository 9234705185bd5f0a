"""Training jobs: what CreateTrainingJob accepts, and how a job is shown.

Invariants:
- A member whose meaning this enclave cannot keep is refused by name, never ignored; what is harmless without its
  engine (debug hooks without rules, spot pricing, warm pools) is kept and shown.
- The role is checked before the job exists: the caller may pass it, SageMaker may assume it, it is cleared.
- Creating the record is the only effect; the supervisor does the rest.

Source: SageMaker API reference, CreateTrainingJob, DescribeTrainingJob, ListTrainingJobs, StopTrainingJob.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.core.sessions import Session
from honmaru.jobs import metrics
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity, size_of
from honmaru.jobs.output_keys import require_output_key
from honmaru.jobs.staging import checkpoint_folders
from honmaru.jobs.training import KIND, Roles
from honmaru.jobs.training_states import FINAL, TABLE, advance, begin
from honmaru.jobs.volumes import JobVolumes
from honmaru.ports.buckets import split_uri
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.sagemaker import tags
from honmaru.services.sagemaker.listing import Request, modified, moment, page

MAX_INSTANCES = 16
_MAX_RUNTIME_S = 28 * 86400

_KEPT = (
    *("HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig", "OutputDataConfig", "ResourceConfig"),
    *("StoppingCondition", "EnableNetworkIsolation", "EnableInterContainerTrafficEncryption"),
    *("EnableManagedSpotTraining", "CheckpointConfig", "DebugHookConfig", "ProfilerConfig", "Environment"),
    *("RetryStrategy", "InfraCheckConfig", "RemoteDebugConfig"),
)
_TAKEN = frozenset({*_KEPT, "TrainingJobName", "Tags"})
_REFUSED_INSIDE = (
    ("AlgorithmSpecification", "AlgorithmName", "algorithm resources"),
    ("AlgorithmSpecification", "TrainingImageConfig", "private registries: images name environments of this enclave"),
    ("ResourceConfig", "InstanceGroups", "heterogeneous clusters"),
    ("ResourceConfig", "TrainingPlanArn", "training plans"),
    ("ResourceConfig", "InstancePlacementConfig", "instance placement"),
    ("ResourceConfig", "InstancePreferences", "instance preferences"),
)


@dataclass(frozen=True, slots=True)
class TrainingJobs:
    """The operations on training jobs."""

    roles: Roles
    environments: Environments
    capacity: Capacity
    ids: Ids
    volumes: JobVolumes = field(default_factory=JobVolumes)

    def create(self, call: Call, request: Request) -> dict[str, Any]:
        """Check everything that can be checked now, then lay the job down. Raises ValidationFault or Conflict."""
        name = request["TrainingJobName"]
        environment = self._check(request)
        arn = call.arn("sagemaker", f"training-job/{name}")
        self._check_role(call, request["RoleArn"], arn)
        require_output_key(call, request["OutputDataConfig"].get("KmsKeyId"), "OutputDataConfig.KmsKeyId")
        if request["ResourceConfig"].get("VolumeKmsKeyId"):
            require_output_key(call, request["ResourceConfig"]["VolumeKmsKeyId"], "ResourceConfig.VolumeKmsKeyId")
            self.volumes.check()
        body: dict[str, Any] = {
            "request": {member: request[member] for member in _KEPT if request.get(member) is not None},
            "arn": arn,
            "region": call.session.region,
            "uid": self.ids.token("tj-", 20).lower(),
            "attempt": 1,
            "environment": {"name": environment.name, "digest": environment.digest},
            "creator": call.session.principal_arn,
            "human": call.session.human or call.session.principal_arn,
            "tags": tags.from_request(request.get("Tags")),
        }
        state = begin(body, call.now)
        existing = call.records.get(KIND, name)
        if existing is not None and existing.label == call.session.label:
            raise _taken(arn)
        try:
            call.records.create(KIND, name, body, state)
        except Conflict:
            raise _taken(arn) from None
        call.resources.append((arn, "AWS::SageMaker::TrainingJob"))
        call.details["environment"] = body["environment"]
        return {"TrainingJobArn": arn}

    def describe(self, call: Call, request: Request) -> dict[str, Any]:
        return _described(_found(call, request["TrainingJobName"]))

    def list(self, call: Call, request: Request) -> dict[str, Any]:
        if request.get("WarmPoolStatusEquals") or request.get("TrainingPlanArnEquals"):
            return {"TrainingJobSummaries": []}  # there are neither warm pools nor plans
        records = call.records.iterate(KIND, state=request.get("StatusEquals"))
        keys = {"Status": lambda record: f"{record.state} {moment(record.created)}"}
        shown, token = page(records, request, keys=keys)
        return {"TrainingJobSummaries": [_summary(record) for record in shown], "NextToken": token}

    def stop(self, call: Call, request: Request) -> dict[str, Any]:
        """Ask the supervisor to stop the job. A job that uploads its model already ends Completed."""
        while True:
            record = _found(call, request["TrainingJobName"])
            if record.state in FINAL:
                raise ValidationFault(f"The request was rejected because the training job is in status {record.state}.")
            body: dict[str, Any] = {**record.body, "transitions": [dict(each) for each in record.body["transitions"]]}
            if (body["secondary"], "stop") not in TABLE:
                return {}
            try:
                call.records.update(record, body, advance(body, "stop", call.now))
            except Conflict:
                continue
            return {}

    def _check(self, request: Request) -> Any:
        unknown = sorted(member for member in request if member not in _TAKEN and request[member])
        if unknown:
            raise ValidationFault(f"{unknown[0]} is not supported by this enclave; leave it out")
        for member in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
            if not request.get(member):
                raise ValidationFault(f"{member} is missing; this enclave has no defaults for it")
        for outer, inner, what in _REFUSED_INSIDE:
            if request[outer].get(inner):
                raise ValidationFault(f"{outer}.{inner} is not supported by this enclave, which has no {what}")
        if (request.get("RemoteDebugConfig") or {}).get("EnableRemoteDebug"):
            raise ValidationFault("RemoteDebugConfig.EnableRemoteDebug: sandboxes cannot be entered")
        algorithm, resources = request["AlgorithmSpecification"], request["ResourceConfig"]
        if not algorithm.get("TrainingImage"):
            raise ValidationFault("AlgorithmSpecification.TrainingImage is missing; it names an environment")
        _check_mode("AlgorithmSpecification.TrainingInputMode", algorithm["TrainingInputMode"])
        problem = metrics.check(algorithm.get("MetricDefinitions") or [])
        if problem:
            raise ValidationFault(problem)
        if not resources.get("InstanceType") or not resources.get("VolumeSizeInGB"):
            raise ValidationFault("ResourceConfig needs InstanceType, InstanceCount and VolumeSizeInGB")
        size_of(resources["InstanceType"], self.capacity)
        if not 1 <= int(resources.get("InstanceCount") or 0) <= MAX_INSTANCES:
            raise ValidationFault(f"ResourceConfig.InstanceCount must be 1 to {MAX_INSTANCES}")
        if int(request["StoppingCondition"].get("MaxRuntimeInSeconds") or 86400) > _MAX_RUNTIME_S:
            raise ValidationFault(f"StoppingCondition.MaxRuntimeInSeconds is more than {_MAX_RUNTIME_S}")
        split_uri(request["OutputDataConfig"]["S3OutputPath"])
        if request.get("CheckpointConfig"):
            split_uri(request["CheckpointConfig"]["S3Uri"])
            checkpoint_folders(Path(), request["CheckpointConfig"], 1)
        _check_channels(request.get("InputDataConfig") or [])
        return self.environments.resolve(algorithm["TrainingImage"])

    def _check_role(self, call: Call, role_arn: str, job_arn: str) -> None:
        call.authorize("iam:PassRole", role_arn, {"iam:PassedToService": "sagemaker.amazonaws.com"})
        session: Session = call.session
        self.roles.service_session(
            role_arn,
            label=session.label,
            service="sagemaker.amazonaws.com",
            session_name="SageMaker",
            human=session.human or session.principal_arn,
            account=session.account,
            source_arn=job_arn,
        )


def _check_channels(channels: list[Mapping[str, Any]]) -> None:
    names = [channel["ChannelName"] for channel in channels]
    if len(set(names)) != len(names):
        raise ValidationFault("two channels of InputDataConfig have the same name")
    for channel in channels:
        where = f"channel {channel['ChannelName']!r}"
        if channel["ChannelName"] in (".", ".."):
            raise ValidationFault(f"{where}: not a name for a folder")
        source = channel["DataSource"].get("S3DataSource")
        if not source or any(value for member, value in channel["DataSource"].items() if member != "S3DataSource"):
            raise ValidationFault(f"{where}: only S3DataSource is supported (no file systems, no data sets)")
        if source["S3DataType"] != "S3Prefix":
            raise ValidationFault(f"{where}: S3DataType {source['S3DataType']} is not supported; use S3Prefix")
        for member in ("AttributeNames", "InstanceGroupNames", "HubAccessConfig", "ModelAccessConfig"):
            if source.get(member):
                raise ValidationFault(f"{where}: S3DataSource.{member} is not supported")
        if channel.get("CompressionType") not in (None, "None"):
            raise ValidationFault(f"{where}: CompressionType is for Pipe mode; files are given as they are")
        if channel.get("RecordWrapperType") not in (None, "None"):
            raise ValidationFault(f"{where}: RecordWrapperType is for Pipe mode; use None")
        if channel.get("ShuffleConfig"):
            raise ValidationFault(f"{where}: ShuffleConfig is for Pipe mode")
        if channel.get("InputMode"):
            _check_mode(f"{where}: InputMode", channel["InputMode"])
        split_uri(source["S3Uri"])


def _check_mode(where: str, mode: str) -> None:
    """File is copied before the start. FastFile promises the same files, fetched when read: a copy keeps it."""
    if mode not in ("File", "FastFile"):
        raise ValidationFault(f"{where} {mode} is not supported; use File (FastFile is served the same way)")


def _found(call: Call, name: str) -> Record:
    record = call.records.get(KIND, name)
    if record is None:
        raise NotFound("Requested resource not found.", code="ValidationException")  # as SageMaker does, for jobs only
    call.resources.append((record.body["arn"], "AWS::SageMaker::TrainingJob"))
    return record


def _taken(arn: str) -> Conflict:
    return Conflict(
        f"Training job names must be unique within an account and Region: {arn} exists.", code="ResourceInUse"
    )


def _described(record: Record) -> dict[str, Any]:
    body = record.body
    started, ended = _time(body.get("started")), _time(body.get("ended"))
    seconds = int((ended - started).total_seconds()) if started and ended else None
    shown: dict[str, Any] = {
        "TrainingJobName": record.name,
        "TrainingJobArn": body["arn"],
        "ModelArtifacts": {"S3ModelArtifacts": body.get("artifact", "")},
        "TrainingJobStatus": record.state,
        "SecondaryStatus": body["secondary"],
        "FailureReason": body.get("failure") if record.state == "Failed" else None,
        "CreationTime": record.created,
        "TrainingStartTime": started,
        "TrainingEndTime": ended,
        "LastModifiedTime": modified(record),
        "SecondaryStatusTransitions": [
            {
                "Status": each["status"],
                "StartTime": _time(each["start"]),
                "EndTime": _time(each.get("end")),
                "StatusMessage": each["message"],
            }
            for each in body["transitions"]
        ],
        "TrainingTimeInSeconds": seconds,
        "BillableTimeInSeconds": seconds,
        "EnableNetworkIsolation": False,
        "EnableInterContainerTrafficEncryption": False,
        "EnableManagedSpotTraining": False,
        **body["request"],
    }
    if body.get("metrics"):
        shown["FinalMetricDataList"] = [
            {"MetricName": each["name"], "Value": each["value"], "Timestamp": _time(each["at"])}
            for each in body["metrics"]
        ]
    return shown


def _summary(record: Record) -> dict[str, Any]:
    return {
        "TrainingJobName": record.name,
        "TrainingJobArn": record.body["arn"],
        "CreationTime": record.created,
        "TrainingEndTime": _time(record.body.get("ended")),
        "LastModifiedTime": modified(record),
        "TrainingJobStatus": record.state,
        "SecondaryStatus": record.body["secondary"],
    }


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
