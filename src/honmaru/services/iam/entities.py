"""What users, roles and policies have in common: finding, paging, tags, and the errors as IAM words them.

Invariants:
- A name that is visible is taken; a name that only exists above the session is free (polyinstantiation).
- A clearance tag is set only by callers whose whole chain covers that clearance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from honmaru.core.clearances import Clearance
from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import Identity, entities

WORDS = {
    entities.USER: "user",
    entities.GROUP: "group",
    entities.ROLE: "role",
    entities.POLICY: "policy",
    entities.INSTANCE_PROFILE: "Instance Profile",
    entities.SAML_PROVIDER: "SAML provider",
    entities.OIDC_PROVIDER: "OpenIDConnect provider",
}
Item = TypeVar("Item")


class Part:
    """Base of the parts of the provider: what all of them hold."""

    identity: Identity


def find(call: Call, kind: str, name: str) -> Record:
    """The visible record, noted as a resource of the call. Raises NotFound as IAM words it."""
    record = call.records.get(kind, name)
    if record is None:
        raise NotFound(f"The {WORDS[kind]} with name {name} cannot be found.", code="NoSuchEntity")
    call.resources.append((arn_of(call, record), _type(kind)))
    return record


def _type(kind: str) -> str:
    return f"AWS::IAM::{kind.title().replace('-', '')}"


def arn_of(call: Call, record: Record) -> str:
    """The ARN of a user, group, role, policy, instance profile or identity provider."""
    return entities.arn(call.session.partition, call.account, record.kind, record.body.get("path", "/"), record.name)


def create(call: Call, kind: str, name: str, body: Mapping[str, Any]) -> Record:
    """Make a record at the session's label. Raises Conflict when the name is visible."""
    taken = Conflict(f"{WORDS[kind].capitalize()} with name {name} already exists.", code="EntityAlreadyExists")
    if call.records.get(kind, name) is not None:
        raise taken
    try:
        record = call.records.create(kind, name, body)
    except Conflict:
        raise taken from None
    call.resources.append((arn_of(call, record), _type(kind)))
    return record


def check_editable(record: Record) -> None:
    """Raises AccessDenied for a role that is linked to a service."""
    if record.kind == entities.ROLE and record.body["path"].startswith(entities.SERVICE_LINKED_PATH):
        raise AccessDenied(
            f"Cannot perform the operation on the protected role '{record.name}' - this role is only modifiable by AWS",
            code="UnmodifiableEntity",
        )


def update(call: Call, record: Record, **changes: Any) -> Record:
    """Replace parts of a record's body. Raises AccessDenied for a record at a lower label, Conflict when stale."""
    if not changes.keys() <= {"tags", "description"}:
        check_editable(record)
    try:
        return call.records.update(record, {**record.body, **changes})
    except Conflict:
        raise Conflict(
            f"{record.name} was changed by another request; try again.", code="ConcurrentModification"
        ) from None


def page(
    records: Iterable[Item], request: Mapping[str, Any], name: Callable[[Item], str]
) -> tuple[list[Item], dict[str, Any]]:
    """One page by `Marker` and `MaxItems`: the items, and IsTruncated and Marker of the answer."""
    limit = request.get("MaxItems") or 100
    after = request.get("Marker") or ""
    found: list[Item] = []
    for record in records:
        if name(record) <= after:
            continue
        if len(found) == limit:
            return found, {"IsTruncated": True, "Marker": name(found[-1])}
        found.append(record)
    return found, {"IsTruncated": False}


def tags_of(request: Mapping[str, Any]) -> dict[str, str]:
    """The Tags member as a mapping. Raises ValidationFault for repeated keys."""
    listed = request.get("Tags") or []
    tags = {tag["Key"]: tag["Value"] for tag in listed}
    if len(tags) != len(listed):
        raise ValidationFault("Duplicate tag keys found. Tag keys must be unique.", code="InvalidInput")
    return tags


def check_grant(call: Call, identity: Identity, tags: Mapping[str, str]) -> None:
    """Raises unless the tags are sound and the caller covers the clearance that they grant."""
    entities.check_tags(tags)
    text = tags.get(entities.CLEARANCE_TAG)
    if text is not None and not identity.may_grant(call.session, Clearance.parse(text)):
        raise AccessDenied(
            f"{call.session.principal_arn} cannot grant the clearance {text!r}: nobody grants more than they hold"
        )


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as IAM answers them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def tagged(call: Call, identity: Identity, record: Record, request: Mapping[str, Any]) -> None:
    """Add or replace tags."""
    given = tags_of(request)
    check_grant(call, identity, given)
    tags = {**record.body["tags"], **given}
    entities.check_tags(tags)
    update(call, record, tags=tags)


def untagged(call: Call, record: Record, keys: Sequence[str]) -> None:
    """Remove tags; missing ones are no error."""
    update(call, record, tags={key: value for key, value in record.body["tags"].items() if key not in keys})


def listed_tags(record: Record, request: Mapping[str, Any]) -> dict[str, Any]:
    """One page of an entity's tags."""
    tags, more = page(tag_list(record.body["tags"]), request, lambda tag: tag["Key"])
    return {"Tags": tags, **more}


def boundary(body: Mapping[str, Any]) -> dict[str, str] | None:
    """The PermissionsBoundary member."""
    arn = body.get("boundary")
    return {"PermissionsBoundaryType": "Policy", "PermissionsBoundaryArn": arn} if arn else None


def encoded(document: str) -> str:
    """A policy document as IAM answers it: URL-encoded (RFC 3986)."""
    return quote(document, safe="")


def check_size(document: str, limit: int, what: str) -> None:
    """AWS counts characters without white space. Raises QuotaExceeded."""
    if sum(not character.isspace() for character in document) > limit:
        raise QuotaExceeded(f"Maximum policy size of {limit} bytes exceeded for {what}", code="LimitExceeded")
