"""Custom models: finding, describing, deleting."""

from __future__ import annotations

from typing import Any

from honmaru.core.errors import NotFound
from honmaru.deployments.catalog import custom_model_arn, find_custom_model
from honmaru.ports.models import CUSTOM_MODEL_NAME_KIND, ModelServers
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Removal
from honmaru.services.bedrock import model_customization_job


def find(call: Call, identifier: str) -> Record:
    """By ARN, id or name. Raises NotFound."""
    record = find_custom_model(call.records, identifier)
    if record is None:
        raise NotFound(f"Could not find custom model {identifier}", code="ResourceNotFoundException")
    return record


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetCustomModel."""
    body = record.body
    losses = body.get("validation_losses")
    return {
        "modelArn": custom_model_arn(call.session, record.name),
        "modelName": body["name"],
        "jobName": body["job_name"],
        "jobArn": model_customization_job.arn(call, body["job_id"]),
        "baseModelArn": body["base"],
        "customizationType": body["customization_type"],
        "hyperParameters": body["hyperparameters"],
        "trainingDataConfig": {"s3Uri": body["training_uri"]},
        "validationDataConfig": {"validators": [{"s3Uri": uri} for uri in body["validation_uris"]]},
        "outputDataConfig": {"s3Uri": body["output_uri"]},
        "trainingMetrics": {"trainingLoss": body["training_loss"]} if "training_loss" in body else None,
        "validationMetrics": [{"validationLoss": loss} for loss in losses] if losses else None,
        "creationTime": record.created,
        "modelStatus": "Active",
    }


def summarise(call: Call, record: Record) -> dict[str, Any]:
    described = describe(call, record)
    shown = ("modelArn", "modelName", "creationTime", "baseModelArn", "customizationType", "modelStatus")
    return {
        **{name: described[name] for name in shown},
        "baseModelName": record.body["base"].rpartition("/")[2],
        "ownerAccountId": call.session.account,
    }


def delete(call: Call, record: Record, servers: ModelServers) -> None:
    """Delete the model's records and files, and stop its servers. Raises AccessDenied for a model at a lower label."""
    pointer = call.records.get(CUSTOM_MODEL_NAME_KIND, record.body["name"])
    changes = [Removal(record)]
    if pointer is not None and pointer.body["id"] == record.name:
        changes.append(Removal(pointer))
    call.records.apply(changes)
    servers.retire(custom_model_arn(call.session, record.name))
    for blob_id in record.body["files"].values():
        call.blobs.delete(blob_id)
