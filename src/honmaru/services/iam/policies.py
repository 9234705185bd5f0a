"""Managed policies: the account's own with versions, and AWS's well-known ones, which nobody changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.security.identity.managed import MANAGED, managed_document
from honmaru.security.policy import compile_policy
from honmaru.services.iam.entities import (
    Part,
    arn_of,
    check_size,
    create,
    encoded,
    listed_tags,
    page,
    tag_list,
    tagged,
    tags_of,
    untagged,
    update,
)

POLICY_LIMIT = 6144
VERSIONS_LIMIT = 5
MANAGED_SINCE = datetime(2025, 11, 24, tzinfo=UTC)
"""Date of honmaru's own documents under AWS's names."""
Request = Mapping[str, Any]


def _missing(arn: str) -> NotFound:
    return NotFound(f"Policy {arn} was not found.", code="NoSuchEntity")


def _own(call: Call, arn: str) -> Record:
    """The account's policy of that ARN. Raises AccessDenied for AWS's, NotFound."""
    if managed_document(arn, call.session.partition) is not None:
        raise AccessDenied(f"{arn} is managed by the platform and cannot be changed")
    record = call.records.get(entities.POLICY, arn.rpartition("/")[2])
    if record is None or arn_of(call, record) != arn:
        raise _missing(arn)
    call.resources.append((arn, "AWS::IAM::ManagedPolicy"))
    return record


def _attachments(call: Call) -> dict[str, int]:
    """Policy ARN → number of visible users, groups and roles that have it."""
    counts: dict[str, int] = {}
    for kind in (entities.USER, entities.GROUP, entities.ROLE):
        for record in call.records.iterate(kind):
            for arn in record.body["attached"]:
                counts[arn] = counts.get(arn, 0) + 1
    return counts


def _shape(call: Call, record: Record, counts: Mapping[str, int], *, full: bool = True) -> dict[str, Any]:
    body, arn = record.body, arn_of(call, record)
    return {
        "PolicyName": record.name,
        "PolicyId": body["id"],
        "Arn": arn,
        "Path": body["path"],
        "DefaultVersionId": body["default"],
        "AttachmentCount": counts.get(arn, 0),
        "IsAttachable": True,
        "Description": (body["description"] or None) if full else None,
        "CreateDate": record.created,
        "UpdateDate": record.updated,
        "Tags": (tag_list(body["tags"]) or None) if full else None,
    }


def _managed_shape(partition: str, name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    path, _, short = ("/" + name).rpartition("/")
    arn = f"arn:{partition}:iam::aws:policy/{name}"
    return {
        "PolicyName": short,
        "PolicyId": "ANPA" + short.upper().replace("_", "").replace("-", "")[:17].ljust(17, "A"),
        "Arn": arn,
        "Path": path + "/",
        "DefaultVersionId": "v1",
        "AttachmentCount": counts.get(arn, 0),
        "IsAttachable": True,
        "CreateDate": MANAGED_SINCE,
        "UpdateDate": MANAGED_SINCE,
    }


def _version(version: str, body: Mapping[str, Any], *, document: bool) -> dict[str, Any]:
    found = body["versions"][version]
    return {
        "VersionId": version,
        "IsDefaultVersion": version == body["default"],
        "CreateDate": datetime.fromisoformat(found["created"]),
        "Document": encoded(found["text"]) if document else None,
    }


def details(call: Call, *, local: bool, aws: bool) -> Iterator[dict[str, Any]]:
    """The ManagedPolicyDetail shapes of the account's policies, and of AWS's that are attached, by ARN."""
    counts = _attachments(call)
    shapes: list[dict[str, Any]] = []
    if aws:
        for name, text in MANAGED.items():
            shape = _managed_shape(call.session.partition, name, counts)
            if shape["AttachmentCount"]:
                shapes.append({**shape, "PolicyVersionList": [_managed_version(text)]})
    if local:
        for record in call.records.iterate(entities.POLICY):
            shape = _shape(call, record, counts)
            del shape["Tags"]
            versions = [_version(version, record.body, document=True) for version in record.body["versions"]]
            shapes.append({**shape, "PolicyVersionList": versions})
    yield from sorted(shapes, key=lambda shape: str(shape["Arn"]))


class Policies(Part):
    """Operations on managed policies."""

    def list_entities_for_policy(self, call: Call, request: Request) -> dict[str, Any]:
        arn, partition = request["PolicyArn"], call.session.partition
        if managed_document(arn, partition) is None:
            _own(call, arn)
        wanted = request.get("EntityFilter") or "All"
        usage, prefix = request.get("PolicyUsageFilter"), request.get("PathPrefix") or "/"
        found: list[tuple[str, str, Record]] = []
        for title, kind in (("Group", entities.GROUP), ("Role", entities.ROLE), ("User", entities.USER)):
            if wanted not in ("All", "LocalManagedPolicy", "AWSManagedPolicy", title):
                continue
            for record in call.records.iterate(kind):
                body = record.body
                uses = (usage != "PermissionsBoundary" and arn in body["attached"]) or (
                    usage != "PermissionsPolicy" and body.get("boundary") == arn
                )
                if uses and body["path"].startswith(prefix):
                    found.append((f"{title}/{record.name}", title, record))
        some, more = page(found, request, lambda entry: entry[0])
        return {
            f"Policy{title}s": [
                {f"{title}Name": record.name, f"{title}Id": record.body["id"]} for _, of, record in some if of == title
            ]
            for title in ("Group", "Role", "User")
        } | more

    def create_policy(self, call: Call, request: Request) -> dict[str, Any]:
        name, path, text = request["PolicyName"], request.get("Path") or "/", request["PolicyDocument"]
        entities.check_name(name, 128)
        entities.check_path(path)
        compile_policy(text)
        check_size(text, POLICY_LIMIT, name)
        tags = tags_of(request)
        entities.check_tags(tags)
        body = {
            "id": self.identity.ids.token("ANPA", 17),
            "path": path,
            "description": request.get("Description") or "",
            "tags": tags,
            "default": "v1",
            "next": 2,
            "versions": {"v1": {"text": text, "created": call.now.isoformat()}},
        }
        return {"Policy": _shape(call, create(call, entities.POLICY, name, body), {})}

    def get_policy(self, call: Call, request: Request) -> dict[str, Any]:
        arn, partition = request["PolicyArn"], call.session.partition
        if managed_document(arn, partition) is not None:
            name = arn.partition(":policy/")[2]
            return {"Policy": _managed_shape(partition, name, _attachments(call))}
        return {"Policy": _shape(call, _own(call, arn), _attachments(call))}

    def list_policies(self, call: Call, request: Request) -> dict[str, Any]:
        counts = _attachments(call)
        scope, prefix = request.get("Scope") or "All", request.get("PathPrefix") or "/"

        def every() -> Iterator[dict[str, Any]]:
            if scope != "Local":
                yield from (_managed_shape(call.session.partition, name, counts) for name in MANAGED)
            if scope != "AWS":
                yield from (_shape(call, r, counts, full=False) for r in call.records.iterate(entities.POLICY))

        wanted = [
            policy
            for policy in every()
            if policy["Path"].startswith(prefix) and (policy["AttachmentCount"] or not request.get("OnlyAttached"))
        ]
        found, more = page(sorted(wanted, key=lambda p: str(p["Arn"])), request, lambda p: str(p["Arn"]))
        return {"Policies": found, **more}

    def delete_policy(self, call: Call, request: Request) -> None:
        record = _own(call, request["PolicyArn"])
        if _attachments(call).get(request["PolicyArn"]):
            raise Conflict("Cannot delete a policy attached to entities.", code="DeleteConflict")
        if len(record.body["versions"]) > 1:
            raise Conflict(
                "This policy has more than one version. Before you delete a policy, you must delete the policy's "
                "versions. The default version is deleted with the policy.",
                code="DeleteConflict",
            )
        call.records.delete(record)

    def create_policy_version(self, call: Call, request: Request) -> dict[str, Any]:
        record, text = _own(call, request["PolicyArn"]), request["PolicyDocument"]
        compile_policy(text)
        check_size(text, POLICY_LIMIT, record.name)
        body = record.body
        if len(body["versions"]) >= VERSIONS_LIMIT:
            raise QuotaExceeded(
                "A managed policy can have up to 5 versions. Before you create a new version, you must delete an "
                "existing version.",
                code="LimitExceeded",
            )
        version = f"v{body['next']}"
        updated = update(
            call,
            record,
            next=body["next"] + 1,
            versions={**body["versions"], version: {"text": text, "created": call.now.isoformat()}},
            default=version if request.get("SetAsDefault") else body["default"],
        )
        return {"PolicyVersion": _version(version, updated.body, document=False)}

    def get_policy_version(self, call: Call, request: Request) -> dict[str, Any]:
        arn, version = request["PolicyArn"], request["VersionId"]
        text = managed_document(arn, call.session.partition)
        if text is not None and version == "v1":
            return {"PolicyVersion": _managed_version(text)}
        body = _own(call, arn).body if text is None else {"versions": {}}
        if version not in body["versions"]:
            raise NotFound(f"Policy {arn} version {version} does not exist or is not attachable.", code="NoSuchEntity")
        return {"PolicyVersion": _version(version, body, document=True)}

    def list_policy_versions(self, call: Call, request: Request) -> dict[str, Any]:
        arn = request["PolicyArn"]
        text = managed_document(arn, call.session.partition)
        if text is not None:
            return {"Versions": [{**_managed_version(text), "Document": None}], "IsTruncated": False}
        body = _own(call, arn).body
        found, more = page(sorted(body["versions"], key=lambda v: int(v[1:])), request, lambda v: v[1:].rjust(9, "0"))
        return {"Versions": [_version(version, body, document=False) for version in found], **more}

    def set_default_policy_version(self, call: Call, request: Request) -> None:
        record = self._with_version(call, request)
        update(call, record, default=request["VersionId"])

    def delete_policy_version(self, call: Call, request: Request) -> None:
        record, version = self._with_version(call, request), request["VersionId"]
        if version == record.body["default"]:
            raise Conflict("Cannot delete the default version of a policy.", code="DeleteConflict")
        update(call, record, versions={v: text for v, text in record.body["versions"].items() if v != version})

    def _with_version(self, call: Call, request: Request) -> Record:
        record = _own(call, request["PolicyArn"])
        if request["VersionId"] not in record.body["versions"]:
            raise NotFound(
                f"Policy {request['PolicyArn']} version {request['VersionId']} does not exist.", code="NoSuchEntity"
            )
        return record

    def tag_policy(self, call: Call, request: Request) -> None:
        if entities.CLEARANCE_TAG in tags_of(request):
            raise ValidationFault("A policy has no clearance", code="InvalidInput")
        tagged(call, self.identity, _own(call, request["PolicyArn"]), request)

    def untag_policy(self, call: Call, request: Request) -> None:
        untagged(call, _own(call, request["PolicyArn"]), request["TagKeys"])

    def list_policy_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(_own(call, request["PolicyArn"]), request)


def _managed_version(text: str) -> dict[str, Any]:
    return {"VersionId": "v1", "IsDefaultVersion": True, "CreateDate": MANAGED_SINCE, "Document": encoded(text)}
