"""Batch inference jobs: creating, finding, describing, stopping. The work itself is `jobs.batch_inference`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.deployments import tags
from honmaru.deployments.catalog import find_artifact
from honmaru.jobs.batch_inference import IN_PROGRESS, KIND, STOPPING, SUBMITTED
from honmaru.ports.buckets import split_uri
from honmaru.ports.models import FoundationModels
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation
from honmaru.services.bedrock import passed_role

NAME_KIND = "model-invocation-job-name"
"""Keeps a job's name taken; body {"id"}. Made together with the job."""


def arn(call: Call, job_id: str) -> str:
    return call.arn("bedrock", f"model-invocation-job/{job_id}")


def create(
    call: Call, request: Mapping[str, Any], roles: passed_role.Roles, ids: Ids, foundation: FoundationModels
) -> str:
    """Make the job's records; returns its ARN. The same clientRequestToken with the same request makes one job.

    Raises ValidationFault, NotFound (model), AccessDenied (role), or Conflict (name taken).
    Label: the job, and later its output, carry the session's label.
    """
    if request.get("vpcConfig"):
        raise ValidationFault("vpcConfig is not supported: a batch has no network")
    source = (request["inputDataConfig"].get("s3InputDataConfig") or {}).get("s3Uri")
    target = request["outputDataConfig"].get("s3OutputDataConfig") or {}
    if not source or not target.get("s3Uri"):
        raise ValidationFault("inputDataConfig.s3InputDataConfig and outputDataConfig.s3OutputDataConfig are required")
    split_uri(source)
    split_uri(target["s3Uri"])
    job_tags = tags.checked(call.session, request.get("tags"))
    present = _named(call, request["jobName"])
    if present is not None and present.label == call.session.label:
        if request.get("clientRequestToken") and present.body["request"] == _identity(request):
            return arn(call, present.name)
        raise Conflict(f"a model invocation job named {request['jobName']!r} exists; choose another name")
    model = find_artifact(call.guard, call.session, request["modelId"], foundation)
    if model is None:
        raise NotFound(
            f"Could not resolve the model from the model identifier {request['modelId']!r}",
            code="ResourceNotFoundException",
        )
    call.authorize("bedrock:InvokeModel", model.arn)
    job_id = ids.token("", 12).lower()
    human = passed_role.check(call, roles, request["roleArn"], f"batch-{job_id}")
    hours = int(request.get("timeoutDurationInHours") or 24)
    body = {
        "id": job_id,
        "job_name": request["jobName"],
        "model_id": model.arn,
        "role_arn": request["roleArn"],
        "input_uri": source,
        "output_uri": target["s3Uri"],
        "kms_key": target.get("s3EncryptionKeyId") or "",
        "invocation_type": request.get("modelInvocationType") or "InvokeModel",
        "hours": hours,
        "expires": (call.now + timedelta(hours=hours)).isoformat(),
        "human": human,
        "request": _identity(request),
        "tags": job_tags,
    }
    call.records.apply(
        [Creation(NAME_KIND, request["jobName"], {"id": job_id}), Creation(KIND, job_id, body, SUBMITTED)]
    )
    return arn(call, job_id)


def _identity(request: Mapping[str, Any]) -> dict[str, Any]:
    members = ("clientRequestToken", "jobName", "modelId", "roleArn", "inputDataConfig", "outputDataConfig")
    return {name: request[name] for name in members if name in request}


def _named(call: Call, name: str) -> Record | None:
    pointer = call.records.get(NAME_KIND, name)
    return call.records.get(KIND, str(pointer.body["id"])) if pointer is not None else None


def find(call: Call, identifier: str) -> Record:
    """By ARN or id. Raises NotFound."""
    prefix = arn(call, "")
    name = identifier.removeprefix(prefix)
    record = None if name.startswith("arn:") else call.records.get(KIND, name)
    if record is None:
        raise NotFound(f"Could not find model invocation job {identifier}", code="ResourceNotFoundException")
    return record


def stop(call: Call, record: Record) -> None:
    """Ask the job to stop; what was answered by then is still written. Raises Conflict for one that has ended."""
    if record.state == STOPPING:
        return
    if record.state not in (SUBMITTED, IN_PROGRESS):
        raise Conflict(f"model invocation job {record.body['job_name']} is {record.state} and cannot be stopped")
    call.records.update(record, dict(record.body), STOPPING)


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetModelInvocationJob, and of its summary."""
    body = record.body
    ended = body.get("ended")
    good, bad = int(body.get("good", 0)), int(body.get("bad", 0))
    return {
        "jobArn": arn(call, record.name),
        "jobName": body["job_name"],
        "modelId": body["model_id"],
        "clientRequestToken": body["request"].get("clientRequestToken"),
        "roleArn": body["role_arn"],
        "status": record.state,
        "message": body.get("message"),
        "submitTime": record.created,
        "lastModifiedTime": record.updated,
        "endTime": datetime.fromisoformat(ended) if ended else None,
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": body["input_uri"], "s3InputFormat": "JSONL"}},
        "outputDataConfig": {
            "s3OutputDataConfig": {"s3Uri": body["output_uri"], "s3EncryptionKeyId": body.get("kms_key") or None}
        },
        "timeoutDurationInHours": body["hours"],
        "jobExpirationTime": datetime.fromisoformat(body["expires"]),
        "modelInvocationType": body["invocation_type"],
        "totalRecordCount": int(body.get("total", 0)),
        "processedRecordCount": good + bad,
        "successRecordCount": good,
        "errorRecordCount": bad,
    }
