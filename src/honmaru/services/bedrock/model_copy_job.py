"""Model copy jobs: creating, finding, describing. The work itself is `jobs.model_copy`.

An enclave is one region: a model of another region comes in by a transfer, never by a copy job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.deployments import tags
from honmaru.deployments.catalog import custom_model_arn, find_custom_model
from honmaru.jobs.kept_sessions import kept_session
from honmaru.jobs.model_copy import IN_PROGRESS, KIND
from honmaru.ports.runtime import Ids
from honmaru.security import idempotency
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, GuardedChange


def arn(call: Call, job_id: str) -> str:
    return call.arn("bedrock", f"model-copy-job/{job_id}")


def create(call: Call, request: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """Make the job's record; the same clientRequestToken with the same request makes one job.

    Raises ValidationFault, NotFound (source model), Conflict (name taken, token used otherwise).
    Label: the job, and later the copy, carry the session's label.
    """
    if request.get("modelKmsKeyId"):
        raise ValidationFault("modelKmsKeyId is not supported: the enclave keeps the keys of models")
    source_arn = request["sourceModelArn"]
    region = source_arn.split(":")[3]
    if region != call.session.region:
        raise ValidationFault(
            f"sourceModelArn is of {region} and this enclave is {call.session.region}: a model of another region comes "
            "in by a transfer"
        )
    source = find_custom_model(call.records, source_arn)
    if source is None:
        raise NotFound(
            f"Could not find custom model {source_arn}; foundation models have no weights here to copy",
            code="ResourceNotFoundException",
        )

    def make() -> tuple[list[GuardedChange], dict[str, Any]]:
        name = request["targetModelName"]
        taken = find_custom_model(call.records, name)
        if taken is not None and taken.label == call.session.label:
            raise Conflict(f"a custom model named {name!r} exists; choose another name")
        job_id = ids.token("", 12).lower()
        body = {
            "id": job_id,
            "model_id": ids.token("", 12).lower(),
            "model_name": name,
            "source": source_arn,
            "source_name": source.body["name"],
            "session": kept_session(call.session),
            "model_tags": tags.checked(call.session, request.get("targetModelTags")),
            "tags": [],
        }
        call.resources.append((arn(call, job_id), "AWS::Bedrock::ModelCopyJob"))
        return [Creation(KIND, job_id, body, IN_PROGRESS)], {"jobArn": arn(call, job_id)}

    return idempotency.once(call, request, make)


def find(call: Call, identifier: str) -> Record:
    """By ARN. Raises NotFound."""
    prefix = arn(call, "")
    record = call.records.get(KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    if record is None:
        raise NotFound(f"Could not find model copy job {identifier}", code="ResourceNotFoundException")
    return record


def matches(call: Call, record: Record, request: Mapping[str, Any]) -> bool:
    """Whether a job passes the filters that only lists of copy jobs have."""
    return request.get("sourceAccountEquals") in (None, call.session.account) and request.get(
        "sourceModelArnEquals"
    ) in (None, record.body["source"])


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetModelCopyJob, and of its summary."""
    body = record.body
    return {
        "jobArn": arn(call, record.name),
        "status": record.state,
        "creationTime": record.created,
        "targetModelArn": custom_model_arn(call.session, body["model_id"]),
        "targetModelName": body["model_name"],
        "sourceAccountId": call.session.account,
        "sourceModelArn": body["source"],
        "sourceModelName": body["source_name"],
        "targetModelTags": body["model_tags"],
        "failureMessage": body.get("failure"),
    }
