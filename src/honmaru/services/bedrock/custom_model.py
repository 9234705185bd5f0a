"""Custom models: making one of files in S3, finding, describing, deleting.

A model that is being made, or could not be made, is the record of its making (`jobs.model_import.CREATION_KIND`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.deployments import tags
from honmaru.deployments.catalog import custom_model_arn, find_custom_model
from honmaru.jobs.model_approval import require_approved
from honmaru.jobs.model_import import COMPLETED, CREATION_KIND, FAILED, IN_PROGRESS
from honmaru.ports.buckets import split_uri
from honmaru.ports.models import CUSTOM_MODEL_KIND, CUSTOM_MODEL_NAME_KIND, ModelServers
from honmaru.ports.runtime import Ids
from honmaru.security import idempotency
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, GuardedChange, Removal
from honmaru.services.bedrock import model_customization_job, passed_role

_STATUS = {IN_PROGRESS: "Creating", FAILED: "Failed"}


def create(call: Call, request: Mapping[str, Any], roles: passed_role.Roles, ids: Ids) -> dict[str, Any]:
    """Begin to make a model of the files of a folder in S3; the same client token with the same request makes one.

    Raises ValidationFault, AccessDenied (role), Conflict (name taken, token used otherwise).
    Label: the model carries the session's label.
    """
    if request.get("modelKmsKeyArn"):
        raise ValidationFault("modelKmsKeyArn is not supported: the enclave keeps the keys of models")
    if request.get("customModelDataSource"):
        raise ValidationFault(
            "customModelDataSource is not supported: restricted model packages are AWS's own; name the model's files "
            "with modelSourceConfig.s3DataSource.s3Uri"
        )
    source = ((request.get("modelSourceConfig") or {}).get("s3DataSource") or {}).get("s3Uri")
    if not source or not request.get("roleArn"):
        raise ValidationFault("modelSourceConfig.s3DataSource.s3Uri and roleArn are required")
    split_uri(source)
    require_approved(call.records_of("sagemaker"), source)

    def make() -> tuple[list[GuardedChange], dict[str, Any]]:
        name = request["modelName"]
        taken = find_custom_model(call.records, name)
        if taken is not None and taken.label == call.session.label:
            raise Conflict(f"a custom model named {name!r} exists; choose another name")
        model_id = ids.token("", 12).lower()
        human = passed_role.check(call, roles, request["roleArn"], f"custom-model-{model_id}")
        body = {
            "id": model_id,
            "name": name,
            "job_name": name,
            "model_id": model_id,
            "model_name": name,
            "role_arn": request["roleArn"],
            "source_uri": source,
            "human": human,
            "tags": [],
            "model_tags": tags.checked(call.session, request.get("modelTags")),
        }
        made = custom_model_arn(call.session, model_id)
        call.resources.append((made, "AWS::Bedrock::CustomModel"))
        return [Creation(CREATION_KIND, model_id, body, IN_PROGRESS)], {"modelArn": made}

    return idempotency.once(call, request, make)


def find(call: Call, identifier: str) -> Record:
    """By ARN, id or name; also one that is being made, by ARN or id. Raises NotFound."""
    record = find_custom_model(call.records, identifier)
    if record is None:
        making = call.records.get(CREATION_KIND, identifier.removeprefix(custom_model_arn(call.session, "")))
        record = making if making is not None and making.state != COMPLETED else None
    if record is None:
        raise NotFound(f"Could not find custom model {identifier}", code="ResourceNotFoundException")
    return record


def listed(call: Call, request: Mapping[str, Any]) -> Iterator[Record]:
    """The records that pass the filters that only this list has."""
    making = (one for one in call.records.iterate(CREATION_KIND) if one.state != COMPLETED)
    bases = {request.get("baseModelArnEquals"), request.get("foundationModelArnEquals")} - {None}
    for record in chain(call.records.iterate(CUSTOM_MODEL_KIND), making):
        status = _STATUS.get(record.state, "Active")
        if request.get("modelStatus") in (None, status) and (not bases or bases == {record.body.get("base")}):
            if request.get("isOwned") in (None, True):  # nothing is shared between accounts
                yield record


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetCustomModel."""
    body = record.body
    common = {
        "modelArn": custom_model_arn(call.session, record.name),
        "modelName": body["name"],
        "customizationType": body.get("customization_type", "IMPORTED"),
        "creationTime": record.created,
        "modelStatus": _STATUS.get(record.state, "Active"),
        "failureMessage": body.get("failure"),
    }
    if common["customizationType"] == "IMPORTED":
        return common
    losses = body.get("validation_losses")
    return {
        **common,
        "jobName": body["job_name"],
        "jobArn": model_customization_job.arn(call, body["job_id"]),
        "baseModelArn": body["base"],
        "hyperParameters": body["hyperparameters"],
        "trainingDataConfig": {"s3Uri": body["training_uri"]},
        "validationDataConfig": {"validators": [{"s3Uri": uri} for uri in body["validation_uris"]]},
        "outputDataConfig": {"s3Uri": body["output_uri"]},
        "trainingMetrics": {"trainingLoss": body["training_loss"]} if "training_loss" in body else None,
        "validationMetrics": [{"validationLoss": loss} for loss in losses] if losses else None,
    }


def summarise(call: Call, record: Record) -> dict[str, Any]:
    described = describe(call, record)
    base = described.get("baseModelArn") or ""
    shown = ("modelArn", "modelName", "creationTime", "customizationType", "modelStatus")
    return {
        **{name: described[name] for name in shown},
        "baseModelArn": base,
        "baseModelName": base.rpartition("/")[2],
        "ownerAccountId": call.session.account,
    }


def delete(call: Call, record: Record, servers: ModelServers) -> None:
    """Delete the model's records and files, and stop its servers.

    Raises AccessDenied for a model at a lower label, Conflict for one that is being made.
    """
    if record.kind == CREATION_KIND:
        if record.state == IN_PROGRESS:
            raise Conflict(f"custom model {record.body['name']} is being made: delete it when that has ended")
        call.records.delete(record)
        return
    pointer = call.records.get(CUSTOM_MODEL_NAME_KIND, record.body["name"])
    changes = [Removal(record)]
    if pointer is not None and pointer.body["id"] == record.name:
        changes.append(Removal(pointer))
    call.records.apply(changes)
    servers.retire(custom_model_arn(call.session, record.name))
    for blob_id in record.body["files"].values():
        call.blobs.delete(blob_id)
