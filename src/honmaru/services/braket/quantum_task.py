"""Quantum tasks: what CreateQuantumTask accepts, and how a task is shown.

Invariants:
- A task that is accepted was interpreted, fits its device's limits, may write its results, and is durable.
- The same clientToken with the same request is the same task.
- What a session is told about a task's place counts only tasks that its label dominates.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict, ValidationFault
from honmaru.jobs.kept_sessions import kept_session
from honmaru.jobs.quantum_devices import Device, Devices
from honmaru.jobs.quantum_spending import Spending
from honmaru.jobs.quantum_states import FINAL, after
from honmaru.jobs.quantum_task import KIND, QuantumTasks
from honmaru.jobs.quantum_workers import WorkerRefused
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.braket import job, spending_limit, tags
from honmaru.services.braket.device import permitted
from honmaru.services.braket.searching import search as search_records

_WAIT_S = 0.3
_FILTERS = ("quantumTaskArn", "deviceArn", "status", "createdAt", "endedAt", "jobArn")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that passed what can be checked without a worker."""

    device: Device
    task_id: str
    body: dict[str, Any]
    repeated: bool
    """The same request was made before: its task is there already."""


def prepare(call: Call, request: Mapping[str, Any], devices: Devices) -> Prepared:
    """Everything that can be checked before the program is interpreted.

    Raises AccessDenied, NotFound, NotReady or ValidationFault.
    """
    device = permitted(call, "braket:CreateQuantumTask", request["deviceArn"], devices)
    devices.require()
    job_arn = job.of_token(call, request.get("jobToken"))
    action = _checked_action(request, device)
    given_tags = tags.checked(call.session.label, request.get("tags"))
    if request.get("associations"):
        raise ValidationFault("associations: this enclave has no reservations; its devices are always available")
    _check_destination(call, request)
    task_id = _identity(call, request["clientToken"])
    arn = call.arn("braket", f"quantum-task/{task_id}")
    digest = hashlib.sha384(json.dumps(dict(request), sort_keys=True, default=str).encode()).hexdigest()
    body: dict[str, Any] = {
        "arn": arn,
        "device": device.name,
        "device_arn": request["deviceArn"],
        "device_parameters": _device_parameters(request),
        "action": request["action"],
        "action_type": action["braketSchemaHeader"]["name"],
        "programs": _counts(action),
        "shots": int(request["shots"]),
        "bucket": request["outputS3Bucket"],
        "directory": f"{request['outputS3KeyPrefix'].strip('/')}/{task_id}",
        "session": kept_session(call.session),
        "digest": digest,
        "job_arn": job_arn,
        "tags": given_tags,
    }
    known = call.records.get(KIND, task_id)
    if known is not None:
        _require_same(known, digest)
    return Prepared(device, task_id, body, known is not None)


def check(call: Call, prepared: Prepared, tasks: QuantumTasks) -> None:
    """Have the program interpreted in a worker. Raises ValidationFault when it is wrong."""
    try:
        tasks.check(call.session, prepared.device, prepared.body["action"], prepared.body["shots"])
    except WorkerRefused as refused:
        raise ValidationFault(refused.message) from None


def lay_down(
    call: Call, prepared: Prepared, devices: Devices, tasks: QuantumTasks, spending: Spending
) -> dict[str, Any]:
    """Reserve what the task costs, make it durable, queue it. Raises QuotaExceeded; then there is no task."""
    session, device, task_id = call.session, prepared.device, prepared.task_id
    left = spending.reserve(session, device.name, task_id, call.now, spending_limit.enforced(call, devices))
    body = {**prepared.body, "left_usd": None if left is None else str(left)}
    try:
        record = call.records.create(KIND, task_id, body, "QUEUED")
    except Conflict:  # the same request was made at the same time
        known = call.records.get(KIND, task_id)
        if known is None:
            raise
        _require_same(known, body["digest"])
        return {"quantumTaskArn": body["arn"]}
    except BaseException:
        spending.forget(session.account, session.label, device.name, task_id)
        raise
    tasks.submit(record)
    call.resources.append((body["arn"], "AWS::Braket::QuantumTask"))
    return {"quantumTaskArn": body["arn"]}


def find(call: Call, request: Mapping[str, Any]) -> tuple[Record, float]:
    """The task, and for how many seconds an answer may wait for its end, so that a client need not ask again.

    A client that asks every few milliseconds would take the cores that the simulation needs: so the answer about a
    task that has run for long waits longer, but never more than a second, and not at all once the task has ended.
    """
    record = tags.resource(call, request["quantumTaskArn"], KIND)
    if record.state == "QUEUED":
        return record, _WAIT_S
    if record.state != "RUNNING":
        return record, 0.0
    ran = (call.now - datetime.fromisoformat(record.body["started"])).total_seconds()
    return record, min(1.0, max(0.1, 0.3 * ran))


def describe(call: Call, record: Record, tasks: QuantumTasks) -> dict[str, Any]:
    """The task as it is."""
    if record.state not in FINAL:
        record = call.records.get(KIND, record.name) or record
    body = record.body
    status = tasks.status(record)
    return {
        **_summary(record, status),
        "failureReason": body.get("failure"),
        "deviceParameters": body["device_parameters"],
        "jobArn": body.get("job_arn"),
        "queueInfo": _queue(call, record, status, tasks),
        "associations": [],
        "numSuccessfulShots": body["shots"] if status == "COMPLETED" else None,
        "actionMetadata": {"actionType": body["action_type"], **body["programs"]},
        "tags": dict(body["tags"]),
    }


def search(call: Call, request: Mapping[str, Any], tasks: QuantumTasks) -> dict[str, Any]:
    def facts(record: Record) -> dict[str, Any]:
        body = record.body
        return {
            "quantumTaskArn": body["arn"],
            "deviceArn": body["device_arn"],
            "status": tasks.status(record),
            "createdAt": record.created,
            "endedAt": datetime.fromisoformat(body["ended"]) if body.get("ended") else None,
            "jobArn": body.get("job_arn"),
        }

    shown, token = search_records(call.records.iterate(KIND), request, facts, _FILTERS)
    return {"quantumTasks": [_summary(record, tasks.status(record)) for record in shown], "nextToken": token}


def cancel(call: Call, request: Mapping[str, Any], tasks: QuantumTasks) -> dict[str, Any]:
    """Stop a task. Raises Conflict when it has ended, AccessDenied when it is at a lower label."""
    while True:
        record = tags.resource(call, request["quantumTaskArn"], KIND)
        if record.state in ("CANCELLING", "CANCELLED"):
            break
        if record.state in FINAL:
            raise Conflict(f"quantum task {record.name} is {record.state} and cannot be cancelled")
        try:
            tasks.cancel(call.records.update(record, record.body, after(record.state, "cancel")))
            break
        except Conflict:
            continue
    record = call.records.get(KIND, record.name) or record
    status = "CANCELLED" if record.state == "CANCELLED" else "CANCELLING"
    return {"quantumTaskArn": request["quantumTaskArn"], "cancellationStatus": status}


def _checked_action(request: Mapping[str, Any], device: Device) -> Mapping[str, Any]:
    limits = device.limits
    text, shots = request["action"], int(request["shots"])
    if len(text.encode()) > limits.action_bytes:
        raise ValidationFault(f"action has {len(text.encode())} bytes; at most {limits.action_bytes} are taken")
    try:
        action = json.loads(text)
        name = action["braketSchemaHeader"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValidationFault("action is not a JSON document with a braketSchemaHeader") from None
    most = limits.program_set_shots if name.endswith("program_set") else limits.shots
    if not 0 <= shots <= most:
        raise ValidationFault(f"shots is {shots}; device {device.display_name} takes 0 to {most}")
    checked: Mapping[str, Any] = action
    return checked


def _device_parameters(request: Mapping[str, Any]) -> str:
    """What is shown as it came; the simulators have none that change a result."""
    text: str = request.get("deviceParameters") or "{}"
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise ValidationFault("deviceParameters is not a JSON object")
    return text


def _counts(action: Mapping[str, Any]) -> dict[str, int]:
    programs = action.get("programs")
    if not programs:
        return {"programCount": 1, "executableCount": 1}
    executables = [len(next(iter((each.get("inputs") or {"": [0]}).values()))) for each in programs]
    return {"programCount": len(programs), "executableCount": sum(executables)}


def _check_destination(call: Call, request: Mapping[str, Any]) -> None:
    bucket, prefix = request["outputS3Bucket"], request["outputS3KeyPrefix"].strip("/")
    call.authorize("s3:PutObject", f"arn:{call.session.partition}:s3:::{bucket}/{prefix}/results.json")
    if call.records_of("s3").get("bucket", bucket) is None:
        raise ValidationFault(f"outputS3Bucket {bucket!r} does not exist; create it first")


def _identity(call: Call, client_token: str) -> str:
    """The same for the same token of the same account and label, so that a repeated request makes one task."""
    text = f"{call.session.account}\0{call.session.label.canonical}\0{client_token}"
    return str(uuid.UUID(bytes=hashlib.sha384(text.encode()).digest()[:16], version=4))


def _require_same(known: Record, digest: str) -> None:
    if known.body["digest"] != digest:
        raise ValidationFault("clientToken was used for a task with other parameters; use a new one")


def _summary(record: Record, status: str) -> dict[str, Any]:
    body = record.body
    return {
        "quantumTaskArn": body["arn"],
        "status": status,
        "deviceArn": body["device_arn"],
        "shots": body["shots"],
        "outputS3Bucket": body["bucket"],
        "outputS3Directory": body["directory"],
        "createdAt": record.created,
        "endedAt": datetime.fromisoformat(body["ended"]) if body.get("ended") else None,
        "tags": dict(body["tags"]),
    }


def _queue(call: Call, record: Record, status: str, tasks: QuantumTasks) -> dict[str, Any]:
    place = tasks.position(record, call.session.label) if status == "QUEUED" else None
    shown = {
        "queue": "QUANTUM_TASKS_QUEUE",
        "position": "None" if place is None else ">2000" if place > 2000 else str(place),
        "queuePriority": "Priority" if record.body.get("job_arn") else "Normal",
    }
    if place is None:
        shown["message"] = f"Task is in {status} status. Braket does not show queue position for this status."
    return shown
