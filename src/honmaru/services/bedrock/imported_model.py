"""Imported models: finding, describing, deleting."""

from __future__ import annotations

from typing import Any

from honmaru.core.errors import NotFound
from honmaru.deployments.catalog import find_model, model_arn
from honmaru.ports.models import MODEL_NAME_KIND, ModelServers
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Removal


def find(call: Call, identifier: str) -> Record:
    """By ARN, id or name. Raises NotFound, with one wording for what is missing and what is above the session."""
    record = find_model(call.records, identifier)
    if record is None:
        raise NotFound(f"Could not find imported model {identifier}", code="ResourceNotFoundException")
    return record


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetImportedModel."""
    body = record.body
    return {
        "modelArn": model_arn(call.session, record.name),
        "modelName": body["name"],
        "jobName": body["job_name"],
        "jobArn": call.arn("bedrock", f"model-import-job/{body['job_id']}"),
        "modelDataSource": {"s3DataSource": {"s3Uri": body["source"]}},
        "creationTime": record.created,
        "modelArchitecture": body["architecture"],
        "instructSupported": body["instruct"],
    }


def summarise(call: Call, record: Record) -> dict[str, Any]:
    shown = ("modelArn", "modelName", "creationTime", "instructSupported", "modelArchitecture")
    described = describe(call, record)
    return {name: described[name] for name in shown}


def delete(call: Call, record: Record, servers: ModelServers) -> None:
    """Delete the model's records and files, and stop its servers. Raises AccessDenied for a model at a lower label."""
    pointer = call.records.get(MODEL_NAME_KIND, record.body["name"])
    changes = [Removal(record)]
    if pointer is not None and pointer.body["id"] == record.name:
        changes.append(Removal(pointer))
    call.records.apply(changes)
    servers.retire(model_arn(call.session, record.name))
    for blob_id in record.body["files"].values():
        call.blobs.delete(blob_id)
