"""Tags of Braket resources ({key: value}), and finding a resource by its ARN.

Invariants:
- A tag named `honmaru:label` can only say the label that the resource has.
- An ARN of another account, region or partition names nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import NotFound, ValidationFault
from honmaru.core.labels import Label
from honmaru.security.calls import Call
from honmaru.security.guard import Record

LABEL_TAG = "honmaru:label"
MAX_TAGS = 50
KINDS = {
    "quantum-task": "AWS::Braket::QuantumTask",
    "job": "AWS::Braket::Job",
    "spending-limit": "AWS::Braket::SpendingLimit",
}
_ARN = re.compile(r"arn:([^:]+):braket:([^:]*):(\d{12}):(quantum-task|job|spending-limit)/(.+)")


def checked(label: Label, tags: Mapping[str, str] | None) -> dict[str, str]:
    """Tags of a create call. Raises ValidationFault for too many or another label than the session's."""
    given = dict(tags or {})
    if len(given) > MAX_TAGS:
        raise ValidationFault(f"{len(given)} tags given; a resource has at most {MAX_TAGS}")
    if LABEL_TAG in given and Label.parse(given[LABEL_TAG]) != label:
        raise ValidationFault(
            f"the tag {LABEL_TAG} says {given[LABEL_TAG]!r} and this is at {label.banner}: what a session makes "
            "carries the session's label, and labels never change"
        )
    return given


def resource(call: Call, arn: str, kind: str | None = None) -> Record:
    """The visible resource of an ARN. Raises NotFound."""
    match = _ARN.fullmatch(arn)
    session = call.session
    record = None
    if match and match.groups()[:3] == (session.partition, session.region, session.account):
        record = call.records.get(match[4], match[5]) if kind in (None, match[4]) else None
    if match is None or record is None:
        raise NotFound(f"Resource {arn} is not found", code="ResourceNotFoundException")
    call.resources.append((arn, KINDS[match[4]]))
    return record


def add(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = resource(call, request["resourceArn"])
    merged = checked(record.label, {**record.body["tags"], **request["tags"]})
    call.records.update(record, {**record.body, "tags": merged})
    return {}


def remove(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = resource(call, request["resourceArn"])
    kept = {key: value for key, value in record.body["tags"].items() if key not in request["tagKeys"]}
    call.records.update(record, {**record.body, "tags": kept})
    return {}
