"""Hybrid jobs: what CreateJob accepts, and how a job is shown.

Invariants:
- A member whose meaning this enclave cannot keep is refused by name, never ignored.
- The role is checked before the job exists: the caller may pass it, Braket may assume it, it is cleared.
- A job token is known to the job's sandbox alone; a task that names it belongs to the job.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict, ValidationFault
from honmaru.jobs.environments import Environments
from honmaru.jobs.hybrid_job import FINAL, KIND, PRINCIPAL, advance, note
from honmaru.jobs.instances import Capacity, size_of
from honmaru.jobs.output_keys import require_output_key
from honmaru.jobs.quantum_devices import ENVIRONMENT, Devices
from honmaru.jobs.training import Roles
from honmaru.ports.buckets import split_uri
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.braket import tags
from honmaru.services.braket.searching import search as search_records

_KEPT = (
    *("algorithmSpecification", "inputDataConfig", "outputDataConfig", "checkpointConfig", "jobName", "roleArn"),
    *("stoppingCondition", "instanceConfig", "hyperParameters", "deviceConfig"),
)
_FILTERS = ("jobName", "jobArn", "deviceArn", "status", "createdAt", "startedAt", "endedAt")
_IMAGES = re.compile(r".*/amazon-braket-base-jobs:.+")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?")
_MAX_INSTANCES = 5
Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Jobs:
    """The operations on hybrid jobs."""

    roles: Roles
    environments: Environments
    capacity: Capacity
    devices: Devices
    ids: Ids

    def create(self, call: Call, request: Request) -> dict[str, Any]:
        """Check everything that can be checked now, then lay the job down. Raises ValidationFault or AccessDenied."""
        self.devices.require()
        environment = self._check(request)
        require_output_key(call, request["outputDataConfig"].get("kmsKeyId"), "outputDataConfig.kmsKeyId")
        self._check_role(call, request["roleArn"])
        digest = hashlib.sha384(f"{call.session.label.canonical}\0{request['clientToken']}".encode()).hexdigest()
        name = f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"
        arn = call.arn("braket", f"job/{name}")
        kept = {member: request[member] for member in _KEPT if request.get(member) is not None}
        body: dict[str, Any] = {
            "request": kept,
            "arn": arn,
            "region": call.session.region,
            "device": request["deviceConfig"]["device"],
            "uid": self.ids.token("bj-", 20).lower(),
            "token": f"{name}:{self.ids.secret(24).hex()}",
            "attempt": 1,
            "environment": {"name": environment.name, "digest": environment.digest},
            "human": call.session.human or call.session.principal_arn,
            "tags": tags.checked(call.session.label, request.get("tags")),
        }
        note(body, call.now, ("QUEUED_FOR_EXECUTION", "Waiting for the supervisor"))
        try:
            call.records.create(KIND, name, body, "QUEUED")
        except Conflict:
            known = call.records.get(KIND, name)
            if known is None or known.body["request"] != kept:
                raise Conflict("clientToken was used for a job with other parameters; use a new one") from None
        call.resources.append((arn, tags.KINDS[KIND]))
        call.details["environment"] = body["environment"]
        return {"jobArn": arn}

    def describe(self, call: Call, request: Request) -> dict[str, Any]:
        record = tags.resource(call, request["jobArn"], KIND)
        body = record.body
        kept = body["request"]
        place = _place(call, record)
        message = f"Job is in {record.state} status. Braket does not show queue position for this status."
        return {
            **{member: value for member, value in _summary(record).items() if member != "device"},
            "roleArn": kept["roleArn"],
            "jobName": kept["jobName"],
            "failureReason": body.get("failure"),
            "hyperParameters": kept.get("hyperParameters") or {},
            "inputDataConfig": kept.get("inputDataConfig") or [],
            "outputDataConfig": kept["outputDataConfig"],
            "stoppingCondition": kept.get("stoppingCondition") or {"maxRuntimeInSeconds": 432_000},
            "checkpointConfig": kept.get("checkpointConfig"),
            "algorithmSpecification": kept["algorithmSpecification"],
            "instanceConfig": {"instanceCount": 1, **kept["instanceConfig"]},
            "deviceConfig": kept["deviceConfig"],
            "billableDuration": _duration_ms(record),
            "events": [
                {
                    "eventType": each["type"],
                    "timeOfEvent": datetime.fromisoformat(each["at"]),
                    "message": each["message"],
                }
                for each in body["events"]
            ],
            "queueInfo": {
                "queue": "JOBS_QUEUE",
                "position": "None" if place is None else ">15" if place > 15 else str(place),
                "message": message if place is None else None,
            },
            "associations": [],
        }

    def search(self, call: Call, request: Request) -> dict[str, Any]:
        shown, token = search_records(call.records.iterate(KIND), request, _facts, _FILTERS)
        return {"jobs": [_summary(record) for record in shown], "nextToken": token}

    def cancel(self, call: Call, request: Request) -> dict[str, Any]:
        while True:
            record = tags.resource(call, request["jobArn"], KIND)
            if record.state in FINAL:
                raise Conflict(f"hybrid job {record.name} is {record.state} and cannot be cancelled")
            if record.state != "CANCELLING":
                body = dict(record.body)
                state = advance(body, record.state, "cancel", call.now, ("CANCELLED", "Cancelling"))
                try:
                    call.records.update(record, body, state)
                except Conflict:
                    continue
            return {"jobArn": request["jobArn"], "cancellationStatus": "CANCELLING"}

    def _check(self, request: Request) -> Any:
        if request.get("associations"):
            raise ValidationFault("associations: this enclave has no reservations; its devices are always available")
        specification = request["algorithmSpecification"]
        script = specification.get("scriptModeConfig")
        if not script:
            raise ValidationFault("algorithmSpecification.scriptModeConfig is missing: images hold no code here")
        if not _ENTRY.fullmatch(script["entryPoint"]):
            raise ValidationFault(f"entryPoint {script['entryPoint']!r} is not module or module:function")
        for uri in (script["s3Uri"], request["outputDataConfig"]["s3Path"]):
            split_uri(uri)
        if request.get("checkpointConfig"):
            split_uri(request["checkpointConfig"]["s3Uri"])
        for channel in request.get("inputDataConfig") or []:
            split_uri(channel["dataSource"]["s3DataSource"]["s3Uri"])
            if channel["channelName"] in (".", ".."):
                raise ValidationFault(f"channel {channel['channelName']!r}: not a name for a folder")
        instances = request["instanceConfig"]
        size_of(instances["instanceType"], self.capacity)
        if not 1 <= int(instances.get("instanceCount") or 1) <= _MAX_INSTANCES:
            raise ValidationFault(f"instanceConfig.instanceCount must be 1 to {_MAX_INSTANCES}")
        device = request["deviceConfig"]["device"]
        if not device.startswith("local:"):
            self.devices.named(device)
        image = (specification.get("containerImage") or {}).get("uri")
        if image is None or _IMAGES.fullmatch(image):
            return self.environments.named(ENVIRONMENT)
        return self.environments.resolve(image)

    def _check_role(self, call: Call, role_arn: str) -> None:
        call.authorize("iam:PassRole", role_arn, {"iam:PassedToService": PRINCIPAL})
        session = call.session
        self.roles.service_session(
            role_arn,
            label=session.label,
            service=PRINCIPAL,
            session_name="Braket",
            human=session.human or session.principal_arn,
            account=session.account,
        )


def of_token(call: Call, token: str | None) -> str | None:
    """The ARN of the running job whose token this is. Raises ValidationFault for any other token."""
    if token is None:
        return None
    record = call.records.get(KIND, token.partition(":")[0])
    if (
        record is None
        or record.state in FINAL
        or record.label != call.session.label
        or not hmac.compare_digest(record.body["token"].encode(), token.encode())
    ):
        raise ValidationFault("jobToken is not the token of a job that runs")
    return str(record.body["arn"])


def _place(call: Call, record: Record) -> int | None:
    if record.state != "QUEUED":
        return None
    ahead = [each for each in call.records.iterate(KIND, state="QUEUED") if each.created < record.created]
    return len(ahead) + 1


def _moment(record: Record, name: str) -> datetime | None:
    text = record.body.get(name)
    return datetime.fromisoformat(text) if text else None


def _duration_ms(record: Record) -> int | None:
    started, ended = _moment(record, "started"), _moment(record, "ended")
    return int((ended - started).total_seconds() * 1000) if started and ended else None


def _facts(record: Record) -> dict[str, Any]:
    return {
        "jobName": record.body["request"]["jobName"],
        "jobArn": record.body["arn"],
        "deviceArn": record.body["device"],
        "status": record.state,
        "createdAt": record.created,
        "startedAt": _moment(record, "started"),
        "endedAt": _moment(record, "ended"),
    }


def _summary(record: Record) -> dict[str, Any]:
    facts = _facts(record)
    return {
        "status": facts["status"],
        "jobArn": facts["jobArn"],
        "jobName": facts["jobName"],
        "device": facts["deviceArn"],
        "createdAt": facts["createdAt"],
        "startedAt": facts["startedAt"],
        "endedAt": facts["endedAt"] if record.state in FINAL else None,
        "tags": dict(record.body["tags"]),
    }
