"""Tags of SageMaker resources, kept in the body of the resource's record.

Invariants:
- At most 50 tags on a resource; a tag named `honmaru:label` can only say the label that the resource has.
- Only a session at the resource's own label changes its tags (the guard's rule).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.errors import NotFound, QuotaExceeded, ValidationFault
from honmaru.core.labels import Label
from honmaru.jobs.training import KIND as TRAINING_JOB
from honmaru.security.calls import Call
from honmaru.security.guard import Record

LABEL_TAG = "honmaru:label"
MAX_TAGS = 50
MODEL_PACKAGE_GROUP, MODEL_PACKAGE = "model-package-group", "model-package"
KINDS = frozenset({TRAINING_JOB, MODEL_PACKAGE_GROUP, MODEL_PACKAGE})
_ARN = re.compile(
    r"arn:(?P<partition>[^:]+):sagemaker:(?P<region>[^:]*):(?P<account>\d{12}):(?P<kind>[a-z-]+)/(?P<name>.+)"
)


def from_request(tags: Sequence[Mapping[str, str]] | None) -> dict[str, str]:
    """Tags of a create call. Raises QuotaExceeded or ValidationFault (the same key twice)."""
    found = {tag["Key"]: tag["Value"] for tag in tags or []}
    if len(found) != len(tags or []):
        raise ValidationFault("the same tag key is given more than once")
    if len(found) > MAX_TAGS:
        raise QuotaExceeded(f"{len(found)} tags given; a resource has at most {MAX_TAGS}", code="ResourceLimitExceeded")
    return found


def add(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = _resource(call, request["ResourceArn"])
    given = from_request(request["Tags"])
    if LABEL_TAG in given and Label.parse(given[LABEL_TAG]) != record.label:
        raise ValidationFault(
            f"the tag {LABEL_TAG} says {given[LABEL_TAG]!r}, but the resource is {record.label.banner}; "
            "labels never change"
        )
    merged = {**record.body.get("tags", {}), **given}
    if len(merged) > MAX_TAGS:
        raise QuotaExceeded(f"a resource has at most {MAX_TAGS} tags", code="ResourceLimitExceeded")
    call.records.update(record, {**record.body, "tags": merged})
    return {"Tags": _shown(merged)}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = _resource(call, request["ResourceArn"])
    kept = {key: value for key, value in record.body.get("tags", {}).items() if key not in request["TagKeys"]}
    call.records.update(record, {**record.body, "tags": kept})
    return {}


def show(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"Tags": _shown(_resource(call, request["ResourceArn"]).body.get("tags", {}))}


def _resource(call: Call, arn: str) -> Record:
    match = _ARN.fullmatch(arn)
    session = call.session
    ours = match and (match["partition"], match["region"], match["account"]) == (
        session.partition,
        session.region,
        session.account,
    )
    record = call.records.get(match["kind"], match["name"]) if match and ours and match["kind"] in KINDS else None
    if record is None:
        raise NotFound(f"Resource {arn} does not exist.", code="ResourceNotFound")
    call.resources.append((arn, "AWS::SageMaker::Resource"))
    return record


def _shown(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": tags[key]} for key in sorted(tags)]
