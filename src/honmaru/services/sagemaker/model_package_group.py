"""Model package groups: the names under which versions of a model are registered.

Invariants:
- A group is deleted only when no version of it is visible at the session's label or below.
- A session that registers into a group of a lower label makes an instance of the group at its own label first, so a
  deletion below never takes the group from under the versions above.
"""

from __future__ import annotations

from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.sagemaker import tags
from honmaru.services.sagemaker.listing import Request, page
from honmaru.services.sagemaker.tags import MODEL_PACKAGE, MODEL_PACKAGE_GROUP


def create(call: Call, request: Request) -> dict[str, Any]:
    if request.get("ManagedConfiguration"):
        raise ValidationFault("ManagedConfiguration is not supported by this enclave; leave it out")
    name = request["ModelPackageGroupName"]
    arn = call.arn("sagemaker", f"model-package-group/{name}")
    body = {
        "arn": arn,
        "description": request.get("ModelPackageGroupDescription"),
        "creator": call.session.principal_arn,
        "modified": call.now.isoformat(),
        "versions": 0,
        "tags": tags.from_request(request.get("Tags")),
    }
    try:
        call.records.create(MODEL_PACKAGE_GROUP, name, body, "Completed")
    except Conflict:
        raise ValidationFault(f"Model Package Group already exists: {arn}") from None
    call.resources.append((arn, "AWS::SageMaker::ModelPackageGroup"))
    return {"ModelPackageGroupArn": arn}


def describe(call: Call, request: Request) -> dict[str, Any]:
    record = found(call, request["ModelPackageGroupName"])
    return {
        **_summary(record),
        "CreatedBy": {"IamIdentity": {"Arn": record.body["creator"]}},
    }


def list_all(call: Call, request: Request) -> dict[str, Any]:
    if request.get("CrossAccountFilterOption") == "CrossAccount":
        return {"ModelPackageGroupSummaryList": []}
    shown, token = page(call.records.iterate(MODEL_PACKAGE_GROUP), request, keys={})
    return {"ModelPackageGroupSummaryList": [_summary(record) for record in shown], "NextToken": token}


def delete(call: Call, request: Request) -> dict[str, Any]:
    record = found(call, request["ModelPackageGroupName"])
    if call.records.list(MODEL_PACKAGE, prefix=f"{record.name}/", limit=1):
        raise Conflict(
            f"Model Package Group cannot be deleted as it still contains model packages: {record.body['arn']}",
            code="ConflictException",
        )
    call.records.delete(record)
    return {}


def found(call: Call, name_or_arn: str) -> Record:
    """The visible group of a name or ARN. Raises NotFound."""
    arn = name_or_arn if name_or_arn.startswith("arn:") else call.arn("sagemaker", f"model-package-group/{name_or_arn}")
    name = arn.rpartition("/")[2]
    record = call.records.get(MODEL_PACKAGE_GROUP, name)
    if record is None or record.body["arn"] != arn:
        raise NotFound(f"ModelPackageGroup {arn} does not exist.", code="ValidationException")
    call.resources.append((arn, "AWS::SageMaker::ModelPackageGroup"))
    return record


def _summary(record: Record) -> dict[str, Any]:
    return {
        "ModelPackageGroupName": record.name,
        "ModelPackageGroupArn": record.body["arn"],
        "ModelPackageGroupDescription": record.body.get("description"),
        "CreationTime": record.created,
        "ModelPackageGroupStatus": record.state,
    }
