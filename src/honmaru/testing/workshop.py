"""A platform without a gateway, for tests of jobs: real guard, stores, S3, logs, supervisor and sandboxes.

IAM is a double that allows everything and knows every role, except what `denied` names. The clock is the real one:
jobs are processes that take real time.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from honmaru.app.runtime import SystemClock, SystemIds
from honmaru.core.errors import AccessDenied, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.executors.local import LocalExecutor
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity
from honmaru.jobs.supervisor import Supervisor
from honmaru.jobs.training import Training
from honmaru.security.calls import Call
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard import Guard
from honmaru.services.cloudwatch import MetricStore
from honmaru.services.logs import Logs, LogStore
from honmaru.services.s3.access import S3Buckets
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.services.sagemaker import SageMaker
from honmaru.stores.blobs_obstore import ObstoreBlobStore
from honmaru.stores.records_sql import SqlRecordStore
from honmaru.testing.keep import ACCOUNT, MemoryLog, session

ROLE = f"arn:aws-iso:iam::{ACCOUNT}:role/jobs"
BUCKET = "work"
MARKING = "SECRET"


class OpenIdentity:
    """Allows every action but those in `denied`; every role but `missing` ones may be assumed."""

    def __init__(self) -> None:
        self.denied: set[str] = set()
        self.missing: set[str] = set()
        self.asked: list[tuple[str, str, Mapping[str, Any]]] = []

    def require(self, who: Session, action: str, resource: str, context: Mapping[str, Any]) -> None:
        self.asked.append((action, resource, dict(context)))
        if action in self.denied:
            raise AccessDenied(f"User: {who.principal_arn} is not authorized to perform: {action} on {resource}")

    def service_session(
        self,
        role_arn: str,
        *,
        label: Label,
        service: str,
        session_name: str,
        human: str,
        account: str,
        source_arn: str = "",  # noqa: ARG002
    ) -> Session:
        if role_arn in self.missing:
            raise ValidationFault(f"Could not assume role {role_arn}. Please ensure that the role exists.")
        name = role_arn.rpartition("/")[2]
        arn = f"arn:aws-iso:sts::{account}:assumed-role/{name}/{session_name}"
        return Session(
            account, "aws-iso", "us-iso-east-1", arn, f"AROA:{service}", "assumed-role", label, role_arn, human=human
        )


class Workshop:
    """Everything that jobs need, over one directory. A second one over the same directory is a restart."""

    def __init__(self, directory: Path, *, running: int = 2) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self.clock, self.ids = SystemClock(), SystemIds()
        self.ledger = MemoryLog()
        self.store = SqlRecordStore(f"sqlite:///{directory}/records.db")
        blobs = ObstoreBlobStore(directory / "blobs")
        keyring = Keyring(directory / "keys", self.ids.secret)
        self.guard = Guard(self.store, blobs, keyring, self.ledger, self.clock, self.ids)
        self.identity = OpenIdentity()
        commits = BucketCommits()
        self.buckets = S3Buckets(self.guard, self.identity, self.ledger, self.clock, self.ids, commits)
        self.s3 = S3(self.ids, commits)
        self.metrics = MetricStore(self.guard, self.ids)
        self.log_store = LogStore(self.guard, self.clock, self.ids)
        self.logs = Logs(self.log_store, self.clock)
        self.executor = LocalExecutor(directory / "executor")
        capacity = Capacity(cores=os.cpu_count() or 1, memory_bytes=3 << 29)
        environments = Environments(directory / "environments.json", sys.prefix)
        self.training = Training(
            self.identity,
            self.buckets,
            self.log_store,
            self.ledger,
            environments,
            self.executor,
            self.clock,
            self.ids,
            directory / "scratch",
            capacity,
            running,
            self.metrics,
        )
        self.supervisor = Supervisor(
            [self.training], self.guard, clock=self.clock, ids=self.ids, owner="workshop", poll_s=0.2
        )
        self.sagemaker = SageMaker(self.identity, self.buckets, environments, self.supervisor.wake, capacity, self.ids)

    def call(self, service: str = "sagemaker", *, marking: str = MARKING, name: str = "tester") -> Call:
        """A call as the gateway would hand it to a provider."""
        return Call(
            session=session(marking, name=name),
            service=service,
            operation="Test",
            request_id=self.ids.uuid(),
            now=self.clock.now(),
            guard=self.guard,
            headers={},
            query={},
            authorizer=self.identity.require,
        )

    def make_bucket(self) -> None:
        self.s3.create_bucket(self.call("s3"), {"Bucket": BUCKET})

    def put(self, key: str, content: bytes) -> None:
        self.buckets.write(session(MARKING), BUCKET, key, [content])

    def object(self, key: str) -> bytes:
        return b"".join(self.buckets.read(session(MARKING), BUCKET, key))

    def keys(self, prefix: str = "") -> list[str]:
        return [stored.key for stored in self.buckets.list(session(MARKING), BUCKET, prefix)]

    def train(self, name: str, *command: str, **members: Any) -> None:
        """Create a training job that runs a command in the `pytorch` environment (or script mode without one)."""
        request: dict[str, Any] = {
            "TrainingJobName": name,
            "RoleArn": ROLE,
            "AlgorithmSpecification": {"TrainingImage": "pytorch", "TrainingInputMode": "File"},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        }
        if command:
            request["AlgorithmSpecification"]["ContainerEntrypoint"] = list(command)
        for member, value in members.items():
            request[member] = {**request[member], **value} if isinstance(request.get(member), dict) else value
        self.sagemaker.create_training_job(self.call(), request)

    def describe(self, name: str) -> dict[str, Any]:
        return self.sagemaker.describe_training_job(self.call(), {"TrainingJobName": name})

    def wait(
        self, name: str, *, until: frozenset[str] = frozenset({"Completed", "Failed", "Stopped"})
    ) -> dict[str, Any]:
        """The description once the job's status, primary or secondary, is one of `until` (at most a minute)."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            job = self.describe(name)
            if job["TrainingJobStatus"] in until or job["SecondaryStatus"] in until:
                return job
            time.sleep(0.1)
        raise TimeoutError(f"{name} is still {job['SecondaryStatus']}")

    def log(self, name: str) -> str:
        """Everything the job printed."""
        request = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamNamePrefix": f"{name}/"}
        events = self.logs.filter_log_events(self.call("logs"), request)["events"]
        return "\n".join(event["message"] for event in events)

    def close(self) -> None:
        """Stop everything, running sandboxes too."""
        self.supervisor.stop()
        for folder in (self.directory / "executor").iterdir():
            self.executor.forget(folder.name)
        shutil.rmtree(self.directory / "scratch", ignore_errors=True)
        self.store.close()
