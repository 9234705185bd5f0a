"""Async invocations: starting, finding, describing. The work itself is `jobs.async_invocation`.

Invariants:
- What the model cannot do, and what the caller may not write, is refused at the start, not later in the job.
- The same clientRequestToken with the same request is one invocation.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.core.conversation import invocation, native
from honmaru.core.errors import AccessDenied, NotFound, ValidationFault
from honmaru.deployments import tags
from honmaru.jobs.async_invocation import IN_PROGRESS, KIND, output_place
from honmaru.jobs.kept_sessions import kept_session
from honmaru.ports.models import MODEL_SERVICE, ModelArtifact
from honmaru.ports.runtime import Ids
from honmaru.security import idempotency
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.security.guard.records import Creation, GuardedChange

Request = Mapping[str, Any]


def arn(call: Call, job_id: str) -> str:
    return call.arn("bedrock", f"async-invoke/{job_id}")


def records(call: Call) -> GuardedRecords:
    """The records of Bedrock's control plane, whose tagging reaches async invocations too."""
    return call.records_of(MODEL_SERVICE)


def start(call: Call, request: Request, model: ModelArtifact, ids: Ids) -> dict[str, Any]:
    """Make the job's record. Raises ValidationFault, AccessDenied (the place of the answer), Conflict (token).

    Label: the job and its answer carry the session's label.
    """
    target = request["outputDataConfig"].get("s3OutputDataConfig")
    if not target:
        raise ValidationFault("outputDataConfig.s3OutputDataConfig is required")
    given = native.written(request["modelInput"])
    _check(given, model)
    bucket, key = output_place(target["s3Uri"], "*")
    owner = call.authorize("s3:PutObject", f"arn:{call.session.partition}:s3:::{bucket}/{key}")
    if target.get("bucketOwner") not in (None, owner):
        raise AccessDenied(f"bucket {bucket} does not belong to account {target['bucketOwner']}")

    def make() -> tuple[list[GuardedChange], dict[str, Any]]:
        job_id = ids.token("", 12).lower()
        body = {
            "id": job_id,
            "model_id": model.arn,
            "output_uri": target["s3Uri"],
            "bucket_owner": target.get("bucketOwner"),
            "kms_key": target.get("kmsKeyId") or "",
            "input": call.blobs.write([given]).id,
            "token": request.get("clientRequestToken"),
            "session": kept_session(call.session),
            "tags": tags.checked(call.session, request.get("tags")),
        }
        call.resources.append((arn(call, job_id), "AWS::Bedrock::AsyncInvoke"))
        return [Creation(KIND, job_id, body, IN_PROGRESS)], {"invocationArn": arn(call, job_id)}

    return idempotency.once(call, request, make, records=records(call))


def _check(given: bytes, model: ModelArtifact) -> None:
    """Raises ValidationFault for a body that the model cannot answer."""
    embeds = invocation.only_embeds(model.features)
    asked = native.read(given, model.name, model.families, embeds=embeds)
    if invocation.embedding(asked, model.name, model.features) is None:
        invocation.wanted(asked, model.name, model.features, instruct=model.instruct)


def find(call: Call, identifier: str) -> Record:
    """By ARN. Raises NotFound, under the code that the operation's model has for it."""
    prefix = arn(call, "")
    record = records(call).get(KIND, identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    if record is None:
        raise NotFound(f"Could not find async invocation {identifier}", code="ValidationException")
    return record


def describe(call: Call, record: Record) -> dict[str, Any]:
    """Members of GetAsyncInvoke, and of its summary."""
    body = record.body
    ended = body.get("ended")
    target = {"s3Uri": body["output_uri"], "kmsKeyId": body["kms_key"] or None, "bucketOwner": body["bucket_owner"]}
    return {
        "invocationArn": arn(call, record.name),
        "modelArn": body["model_id"],
        "clientRequestToken": body["token"],
        "status": record.state,
        "failureMessage": body.get("failure"),
        "submitTime": record.created,
        "lastModifiedTime": record.updated,
        "endTime": datetime.fromisoformat(ended) if ended else None,
        "outputDataConfig": {"s3OutputDataConfig": target},
    }
