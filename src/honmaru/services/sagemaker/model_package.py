"""Model packages: immutable versions of a model, and their approval by a second person.

Invariants:
- What a version is (its containers, artifact, source) never changes; only approval and customer metadata do. The
  ETag that the artifact has at registration is pinned in the record.
- Approved is reached only through UpdateModelPackage by a person other than the one who created the version, whatever
  policies say; nobody creates a version Approved. Who, when and why is kept in the record and put in the ledger.
- Version numbers of a group count up and are never used again.

Source: SageMaker API reference, CreateModelPackage, UpdateModelPackage; SP 800-53 AC-5 (separation of duties).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, ValidationFault
from honmaru.ports.buckets import Buckets, split_uri
from honmaru.security import idempotency
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.guard.records import Creation, GuardedChange, Revision
from honmaru.services.sagemaker import model_package_group, tags
from honmaru.services.sagemaker.listing import Request, modified, page
from honmaru.services.sagemaker.people import person
from honmaru.services.sagemaker.tags import MODEL_PACKAGE, MODEL_PACKAGE_GROUP

PENDING, APPROVED, REJECTED = "PendingManualApproval", "Approved", "Rejected"

_KEPT = (
    *("ModelPackageDescription", "InferenceSpecification", "SourceAlgorithmSpecification", "MetadataProperties"),
    *("ModelMetrics", "Domain", "Task", "SamplePayloadUrl", "DriftCheckBaselines", "SkipModelValidation"),
    *("AdditionalInferenceSpecifications", "SourceUri", "ModelCard", "ModelLifeCycle", "ModelPackageRegistrationType"),
)
_TAKEN = frozenset(
    {*_KEPT, "ModelPackageName", "ModelPackageGroupName", "Tags", "ModelApprovalStatus", "ClientToken"}
    | {"CustomerMetadataProperties", "CertifyForMarketplace"}
)
_CHANGEABLE = frozenset(
    {"ModelPackageArn", "ModelApprovalStatus", "ApprovalDescription", "ClientToken"}
    | {"CustomerMetadataProperties", "CustomerMetadataPropertiesToRemove"}
)


def create(call: Call, request: Request, buckets: Buckets) -> dict[str, Any]:
    """Register a version of a group, or a package without one. Raises ValidationFault, NotFound or Conflict."""
    unknown = sorted(member for member in request if member not in _TAKEN and request[member])
    if unknown or request.get("CertifyForMarketplace"):
        raise ValidationFault(
            f"{[*unknown, 'CertifyForMarketplace'][0]} is not supported by this enclave; leave it out"
        )
    if not request.get("InferenceSpecification") and not request.get("SourceUri"):
        raise ValidationFault("a model package needs an InferenceSpecification or a SourceUri")
    group, name = request.get("ModelPackageGroupName"), request.get("ModelPackageName")
    if bool(group) == bool(name):
        raise ValidationFault("give either ModelPackageGroupName (a version) or ModelPackageName, not both")
    status = request.get("ModelApprovalStatus") or (PENDING if group else None)
    if status == APPROVED:
        raise ValidationFault(
            "a model package cannot be created Approved: another person approves it with UpdateModelPackage"
        )
    if status and not group:
        raise ValidationFault("ModelApprovalStatus is for versions of a group")
    body: dict[str, Any] = {
        "request": {member: request[member] for member in _KEPT if request.get(member) is not None},
        "metadata": dict(request.get("CustomerMetadataProperties") or {}),
        "ModelApprovalStatus": status,
        "approvals": [],
        "creator": call.session.principal_arn,
        "creator_person": person(call.session),
        "modified": call.now.isoformat(),
        "tags": tags.from_request(request.get("Tags")),
        "artifacts": _artifacts(call, request, buckets),
    }
    if not group:
        return _create_unversioned(call, request, str(name), body)
    while True:
        try:
            return _create_version(call, request, model_package_group.found(call, group), body)
        except Conflict:  # another version was registered at the same time
            idempotency.earlier(call, request, code="ConflictException")  # …or the token says something else


def describe(call: Call, request: Request) -> dict[str, Any]:
    return _described(_found(call, request["ModelPackageName"]))


def list_all(call: Call, request: Request) -> dict[str, Any]:
    kind = request.get("ModelPackageType") or ("Versioned" if request.get("ModelPackageGroupName") else "Unversioned")
    prefix = ""
    if request.get("ModelPackageGroupName"):
        prefix = f"{model_package_group.found(call, request['ModelPackageGroupName']).name}/"
    wanted = request.get("ModelApprovalStatus")
    records = (
        record
        for record in call.records.iterate(MODEL_PACKAGE, prefix=prefix)
        if (kind == "Both" or ("/" in record.name) == (kind == "Versioned"))
        and (not wanted or record.body["ModelApprovalStatus"] == wanted)
    )
    shown, token = page(records, request, keys={})
    members = (
        *("ModelPackageName", "ModelPackageGroupName", "ModelPackageVersion", "ModelPackageArn", "CreationTime"),
        *("ModelPackageDescription", "ModelPackageStatus", "ModelApprovalStatus", "ModelPackageRegistrationType"),
    )
    described = [_described(record) for record in shown]
    return {
        "ModelPackageSummaryList": [{member: each.get(member) for member in members} for each in described],
        "NextToken": token,
    }


def update(call: Call, request: Request) -> dict[str, Any]:
    """Change approval or customer metadata. Raises AccessDenied when the creator approves, else ValidationFault."""
    frozen = sorted(member for member in request if member not in _CHANGEABLE and request[member])
    if frozen:
        raise ValidationFault(f"{frozen[0]}: a registered version is immutable; register a new version instead")
    record = _found(call, request["ModelPackageArn"])
    body: dict[str, Any] = {**record.body, "modified": call.now.isoformat()}
    body["modifier"] = call.session.principal_arn
    metadata = {**body["metadata"], **(request.get("CustomerMetadataProperties") or {})}
    removed = request.get("CustomerMetadataPropertiesToRemove") or []
    body["metadata"] = {key: value for key, value in metadata.items() if key not in removed}
    status = request.get("ModelApprovalStatus")
    if status and "/" not in record.name:
        raise ValidationFault("ModelApprovalStatus is for versions of a group")
    if status:
        _decide(call, record, body, status, request.get("ApprovalDescription") or "")
    call.records.update(record, body, "Completed")
    return {"ModelPackageArn": body["arn"]}


def delete(call: Call, request: Request) -> dict[str, Any]:
    call.records.delete(_found(call, request["ModelPackageName"]))
    return {}


def _decide(call: Call, record: Record, body: dict[str, Any], status: str, why: str) -> None:
    who = person(call.session)
    decision = {
        "status": status,
        "before": record.body["ModelApprovalStatus"],
        "who": call.session.principal_arn,
        "person": who,
        "creator": record.body["creator_person"],
        "when": call.now.isoformat(),
        "why": why,
    }
    call.details["approval"] = decision
    if status == APPROVED:
        creator = record.body["creator_person"]
        if who is None or creator is None or who == creator:
            raise AccessDenied(
                f"User: {call.session.principal_arn} may not approve {body['arn']}: approval needs another person than "
                f"the one who created the version ({creator or 'unknown'}), whatever policies allow"
            )
    body["ModelApprovalStatus"] = status
    body["ApprovalDescription"] = why
    body["approvals"] = [*body["approvals"], decision]


def _create_unversioned(call: Call, request: Request, name: str, body: dict[str, Any]) -> dict[str, Any]:
    body["arn"] = call.arn("sagemaker", f"model-package/{name}")
    try:
        answer = _once(call, request, body, [Creation(MODEL_PACKAGE, name, body, "Completed")])
    except Conflict as conflict:
        if conflict.code is not None:
            raise
        raise Conflict(f"Model package already exists: {body['arn']}", code="ConflictException") from None
    return answer


def _once(call: Call, request: Request, body: dict[str, Any], changes: list[GuardedChange]) -> dict[str, Any]:
    answer = idempotency.once(
        call, request, lambda: (changes, {"ModelPackageArn": body["arn"]}), code="ConflictException"
    )
    call.resources.append((answer["ModelPackageArn"], "AWS::SageMaker::ModelPackage"))
    return answer


def _create_version(call: Call, request: Request, group: Record, body: dict[str, Any]) -> dict[str, Any]:
    known = call.records.iterate(MODEL_PACKAGE, prefix=f"{group.name}/")
    highest = max((int(record.name.rpartition("/")[2]) for record in known), default=0)
    version = max(highest, int(group.body["versions"])) + 1
    body["arn"] = call.arn("sagemaker", f"model-package/{group.name}/{version}")
    counted = {**group.body, "versions": version}
    own = group.label == call.session.label
    count = Revision(group, counted) if own else Creation(MODEL_PACKAGE_GROUP, group.name, counted, group.state)
    made = Creation(MODEL_PACKAGE, f"{group.name}/{version}", body, "Completed")
    return _once(call, request, body, [count, made])


def _artifacts(call: Call, request: Request, buckets: Buckets) -> dict[str, str]:
    """ETag by URL of every artifact, as the caller sees it now. Raises ValidationFault when one is not there."""
    found: dict[str, str] = {}
    for container in (request.get("InferenceSpecification") or {}).get("Containers") or []:
        url = container.get("ModelDataUrl")
        if url:
            bucket, key = split_uri(url)
            etags = {stored.key: stored.etag for stored in buckets.list(call.session, bucket, key)}
            if key not in etags:
                raise ValidationFault(f"Could not find model data at {url}.")
            found[url] = etags[key].strip('"')
    return found


def _found(call: Call, name_or_arn: str) -> Record:
    arn = name_or_arn if name_or_arn.startswith("arn:") else call.arn("sagemaker", f"model-package/{name_or_arn}")
    name = re.sub(r"^arn:[^/]*:model-package/", "", arn)
    record = call.records.get(MODEL_PACKAGE, name)
    if record is None or record.body["arn"] != arn:
        raise NotFound(f"ModelPackage {arn} does not exist.", code="ValidationException")
    call.resources.append((arn, "AWS::SageMaker::ModelPackage"))
    return record


def _described(record: Record) -> dict[str, Any]:
    body = record.body
    group, _, version = record.name.rpartition("/")
    shown: dict[str, Any] = {
        **body["request"],
        "ModelPackageName": record.name,
        "ModelPackageArn": body["arn"],
        "CreationTime": record.created,
        "LastModifiedTime": modified(record),
        "ModelPackageStatus": record.state,
        "ModelPackageStatusDetails": {"ValidationStatuses": [], "ImageScanStatuses": []},
        "ModelApprovalStatus": body["ModelApprovalStatus"],
        "ApprovalDescription": body.get("ApprovalDescription"),
        "CreatedBy": {"IamIdentity": {"Arn": body["creator"]}},
        "CertifyForMarketplace": False,
        "CustomerMetadataProperties": body["metadata"] or None,
    }
    if group:
        shown |= {"ModelPackageGroupName": group, "ModelPackageVersion": int(version)}
    if body.get("modifier"):
        shown["LastModifiedBy"] = {"IamIdentity": {"Arn": body["modifier"]}}
    if shown.get("InferenceSpecification"):
        shown["InferenceSpecification"] = _with_etags(shown["InferenceSpecification"], body["artifacts"])
    return shown


def _with_etags(specification: Mapping[str, Any], etags: Mapping[str, str]) -> dict[str, Any]:
    containers = [
        {**container, "ModelDataETag": etags[container["ModelDataUrl"]]}
        if container.get("ModelDataUrl") in etags
        else container
        for container in specification["Containers"]
    ]
    return {**specification, "Containers": containers}
