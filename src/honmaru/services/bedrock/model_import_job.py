"""Model import jobs: creating, finding, describing. The work itself is `jobs.model_import`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.deployments import tags
from honmaru.deployments.catalog import find_model, model_arn
from honmaru.jobs.model_approval import require_approved
from honmaru.jobs.model_import import COMPLETED, IN_PROGRESS, KIND, PRINCIPAL
from honmaru.ports.buckets import split_uri
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.security.guard.records import Creation

NAME_KIND = "model-import-job-name"
"""Keeps a job's name taken; body {"id"}. Made together with the job."""


class Roles(Protocol):
    """What this needs of `security.identity.Identity`."""

    def service_session(
        self, role_arn: str, *, label: Label, service: str, session_name: str, human: str, account: str
    ) -> Session: ...


def arn(call: Call, job_id: str) -> str:
    return call.arn("bedrock", f"model-import-job/{job_id}")


def create(call: Call, request: Mapping[str, Any], roles: Roles, ids: Ids) -> str:
    """Make the job's records; returns its ARN. The same clientRequestToken with the same request makes one job.

    Raises ValidationFault, AccessDenied (role), or Conflict (job or model name taken).
    Label: the job, and later the model, carry the session's label.
    """
    for member in ("vpcConfig", "importedModelKmsKeyId"):
        if request.get(member):
            raise ValidationFault(
                f"{member} is not supported: an import has no network, and the enclave keeps the keys"
            )
    session, records = call.session, call.records
    source = (request["modelDataSource"].get("s3DataSource") or {}).get("s3Uri")
    if not source:
        raise ValidationFault("modelDataSource.s3DataSource.s3Uri is required")
    split_uri(source)
    job_tags = tags.checked(session, request.get("jobTags"))
    model_tags = tags.checked(session, request.get("importedModelTags"))
    call.authorize("iam:PassRole", request["roleArn"], {"iam:PassedToService": PRINCIPAL})
    human = session.human or session.principal_arn
    present = _named(records, request["jobName"])
    if present is not None and present.label == session.label:
        if request.get("clientRequestToken") and present.body["request"] == _identity(request):
            return arn(call, present.name)
        raise Conflict(f"a model import job named {request['jobName']!r} exists; choose another name")
    taken = find_model(records, request["importedModelName"])
    if taken is not None and taken.label == session.label:
        raise Conflict(f"an imported model named {request['importedModelName']!r} exists; choose another name")
    job_id = ids.token("", 12).lower()
    roles.service_session(
        request["roleArn"],
        label=session.label,
        service=PRINCIPAL,
        session_name=f"import-{job_id}",
        human=human,
        account=session.account,
    )
    require_approved(call.records_of("sagemaker"), source)
    body = {
        "id": job_id,
        "job_name": request["jobName"],
        "model_id": ids.token("", 12).lower(),
        "model_name": request["importedModelName"],
        "role_arn": request["roleArn"],
        "source_uri": source,
        "human": human,
        "request": _identity(request),
        "tags": job_tags,
        "model_tags": model_tags,
    }
    records.apply([Creation(NAME_KIND, request["jobName"], {"id": job_id}), Creation(KIND, job_id, body, IN_PROGRESS)])
    return arn(call, job_id)


def _identity(request: Mapping[str, Any]) -> dict[str, Any]:
    members = ("clientRequestToken", "jobName", "importedModelName", "roleArn", "modelDataSource")
    return {name: request[name] for name in members if name in request}


def _named(records: GuardedRecords, name: str) -> Record | None:
    pointer = records.get(NAME_KIND, name)
    return records.get(KIND, str(pointer.body["id"])) if pointer is not None else None


def find(call: Call, identifier: str) -> Record:
    """By ARN, id or name. Raises NotFound."""
    prefix = arn(call, "")
    if identifier.startswith("arn:"):
        record = call.records.get(KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    else:
        record = _named(call.records, identifier) or call.records.get(KIND, identifier)
    if record is None:
        raise NotFound(f"Could not find model import job {identifier}", code="ResourceNotFoundException")
    return record


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetModelImportJob; ListModelImportJobs shows a part of them."""
    body = record.body
    ended = body.get("ended")
    return {
        "jobArn": arn(call, record.name),
        "jobName": body["job_name"],
        "importedModelName": body["model_name"],
        "importedModelArn": model_arn(call.session, body["model_id"]) if record.state == COMPLETED else None,
        "roleArn": body["role_arn"],
        "modelDataSource": {"s3DataSource": {"s3Uri": body["source_uri"]}},
        "status": record.state,
        "failureMessage": body.get("failure"),
        "creationTime": record.created,
        "lastModifiedTime": record.updated,
        "endTime": datetime.fromisoformat(ended) if ended else None,
    }


def summarise(call: Call, record: Record) -> dict[str, Any]:
    shown = (
        "jobArn", "jobName", "status", "lastModifiedTime", "creationTime", "endTime", "importedModelArn",
        "importedModelName",
    )  # fmt: skip
    described = describe(call, record)
    return {name: described[name] for name in shown}
