"""Customisation jobs: creating, finding, describing, stopping. The work itself is `jobs.model_customization`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.deployments import tags
from honmaru.deployments.catalog import custom_model_arn, find_artifact, find_custom_model
from honmaru.jobs.model_customization import COMPLETED, IN_PROGRESS, KIND, STOPPING
from honmaru.ports.buckets import split_uri
from honmaru.ports.models import FoundationModels
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation
from honmaru.services.bedrock import passed_role

NAME_KIND = "model-customization-job-name"
"""Keeps a job's name taken; body {"id"}. Made together with the job."""
_KINDS = ("FINE_TUNING", "CONTINUED_PRE_TRAINING")


def arn(call: Call, job_id: str) -> str:
    return call.arn("bedrock", f"model-customization-job/honmaru.imported/{job_id}")


def create(
    call: Call, request: Mapping[str, Any], roles: passed_role.Roles, ids: Ids, foundation: FoundationModels
) -> str:
    """Make the job's records; returns its ARN. The same clientRequestToken with the same request makes one job.

    Raises ValidationFault, NotFound (base model), AccessDenied (role), or Conflict (name taken).
    Label: the job, and later the model, carry the session's label.
    """
    for member in ("vpcConfig", "customModelKmsKeyId", "customizationConfig"):
        if request.get(member):
            raise ValidationFault(f"{member} is not supported: training has no network, and the enclave keeps the keys")
    kind = request.get("customizationType") or "FINE_TUNING"
    if kind not in _KINDS:
        raise ValidationFault(f"customizationType {kind} is not supported; supported are {', '.join(_KINDS)}")
    training = request["trainingDataConfig"].get("s3Uri")
    if not training:
        raise ValidationFault("trainingDataConfig.s3Uri is required")
    validation = [one["s3Uri"] for one in (request.get("validationDataConfig") or {}).get("validators") or ()]
    for uri in (training, *validation, request["outputDataConfig"]["s3Uri"]):
        split_uri(uri)
    job_tags = tags.checked(call.session, request.get("jobTags"))
    model_tags = tags.checked(call.session, request.get("customModelTags"))
    present = _named(call, request["jobName"])
    if present is not None and present.label == call.session.label:
        if request.get("clientRequestToken") and present.body["request"] == _identity(request):
            return arn(call, present.name)
        raise Conflict(f"a model customization job named {request['jobName']!r} exists; choose another name")
    taken = find_custom_model(call.records, request["customModelName"])
    if taken is not None and taken.label == call.session.label:
        raise Conflict(f"a custom model named {request['customModelName']!r} exists; choose another name")
    base = find_artifact(call.guard, call.session, request["baseModelIdentifier"], foundation)
    if base is None:
        raise NotFound(
            f"Could not find the base model {request['baseModelIdentifier']}", code="ResourceNotFoundException"
        )
    if not base.files or "embeddings" in base.features:
        raise ValidationFault(
            f"model {base.name} cannot be customised: its weights are not in this enclave, or it embeds"
        )
    job_id = ids.token("", 12).lower()
    human = passed_role.check(call, roles, request["roleArn"], f"customize-{job_id}")
    body = {
        "id": job_id,
        "job_name": request["jobName"],
        "model_id": ids.token("", 12).lower(),
        "model_name": request["customModelName"],
        "role_arn": request["roleArn"],
        "base": base.arn,
        "customization_type": kind,
        "hyperparameters": dict(request.get("hyperParameters") or {}),
        "training_uri": training,
        "validation_uris": validation,
        "output_uri": request["outputDataConfig"]["s3Uri"],
        "human": human,
        "request": _identity(request),
        "tags": job_tags,
        "model_tags": model_tags,
    }
    call.records.apply(
        [Creation(NAME_KIND, request["jobName"], {"id": job_id}), Creation(KIND, job_id, body, IN_PROGRESS)]
    )
    return arn(call, job_id)


def _identity(request: Mapping[str, Any]) -> dict[str, Any]:
    members = (
        "clientRequestToken", "jobName", "customModelName", "roleArn", "baseModelIdentifier", "trainingDataConfig",
        "hyperParameters",
    )  # fmt: skip
    return {name: request[name] for name in members if name in request}


def _named(call: Call, name: str) -> Record | None:
    pointer = call.records.get(NAME_KIND, name)
    return call.records.get(KIND, str(pointer.body["id"])) if pointer is not None else None


def find(call: Call, identifier: str) -> Record:
    """By ARN, id or name. Raises NotFound."""
    prefix = arn(call, "")
    if identifier.startswith("arn:"):
        record = call.records.get(KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    else:
        record = _named(call, identifier) or call.records.get(KIND, identifier)
    if record is None:
        raise NotFound(f"Could not find model customization job {identifier}", code="ResourceNotFoundException")
    return record


def stop(call: Call, record: Record) -> None:
    """Ask the job to stop. Raises Conflict for one that has ended."""
    if record.state == STOPPING:
        return
    if record.state != IN_PROGRESS:
        raise Conflict(f"model customization job {record.body['job_name']} is {record.state} and cannot be stopped")
    call.records.update(record, dict(record.body), STOPPING)


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetModelCustomizationJob."""
    body = record.body
    ended = body.get("ended")
    losses = body.get("validation_losses")
    return {
        "jobArn": arn(call, record.name),
        "jobName": body["job_name"],
        "outputModelName": body["model_name"],
        "outputModelArn": custom_model_arn(call.session, body["model_id"]) if record.state == COMPLETED else None,
        "clientRequestToken": body["request"].get("clientRequestToken"),
        "roleArn": body["role_arn"],
        "status": record.state,
        "failureMessage": body.get("failure"),
        "creationTime": record.created,
        "lastModifiedTime": record.updated,
        "endTime": datetime.fromisoformat(ended) if ended else None,
        "baseModelArn": body["base"],
        "hyperParameters": body["hyperparameters"],
        "trainingDataConfig": {"s3Uri": body["training_uri"]},
        "validationDataConfig": {"validators": [{"s3Uri": uri} for uri in body["validation_uris"]]},
        "outputDataConfig": {"s3Uri": body["output_uri"]},
        "customizationType": body["customization_type"],
        "trainingMetrics": {"trainingLoss": body["training_loss"]} if "training_loss" in body else None,
        "validationMetrics": [{"validationLoss": loss} for loss in losses] if losses else None,
    }


def summarise(call: Call, record: Record) -> dict[str, Any]:
    described = describe(call, record)
    shown = (
        "jobArn", "baseModelArn", "jobName", "status", "lastModifiedTime", "creationTime", "endTime",
        "customizationType",
    )  # fmt: skip
    return {
        **{name: described[name] for name in shown},
        "customModelArn": described["outputModelArn"],
        "customModelName": described["outputModelName"],
    }
