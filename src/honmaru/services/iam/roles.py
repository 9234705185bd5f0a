"""Roles: what services and assumed sessions act as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.security.policy import PolicyKind, compile_policy
from honmaru.services.iam import permissions
from honmaru.services.iam.entities import (
    Part,
    arn_of,
    boundary,
    check_editable,
    check_grant,
    check_size,
    create,
    encoded,
    find,
    listed_tags,
    page,
    tag_list,
    tagged,
    tags_of,
    untagged,
    update,
)

TRUST_LIMIT = 2048
SESSION_S = 3600
Request = Mapping[str, Any]


def describe(call: Call, record: Record, *, full: bool = True) -> dict[str, Any]:
    """The Role shape; lists leave tags, boundary and last use out, as AWS does."""
    body = record.body
    return {
        "Path": body["path"],
        "RoleName": record.name,
        "RoleId": body["id"],
        "Arn": arn_of(call, record),
        "CreateDate": record.created,
        "AssumeRolePolicyDocument": encoded(body["trust"]),
        "Description": body["description"] or None,
        "MaxSessionDuration": body["max_session_s"],
        "PermissionsBoundary": boundary(body) if full else None,
        "Tags": (tag_list(body["tags"]) or None) if full else None,
    }


def _trust(text: str) -> str:
    compile_policy(text, "", PolicyKind.TRUST)
    check_size(text, TRUST_LIMIT, "ACLSizePerRole")
    return text


class Roles(Part):
    """Operations on roles."""

    def create_role(self, call: Call, request: Request) -> dict[str, Any]:
        name, path = request["RoleName"], request.get("Path") or "/"
        entities.check_name(name)
        entities.check_path(path)
        tags = tags_of(request)
        check_grant(call, self.identity, tags)
        limit = request.get("PermissionsBoundary") or ""
        if limit:
            permissions.require_policy(call, self.identity, limit)
        body = entities.role_body(
            self.identity.ids,
            path=path,
            tags=tags,
            trust=_trust(request["AssumeRolePolicyDocument"]),
            description=request.get("Description") or "",
            max_session_s=request.get("MaxSessionDuration") or SESSION_S,
            boundary=limit,
        )
        return {"Role": describe(call, create(call, entities.ROLE, name, body))}

    def get_role(self, call: Call, request: Request) -> dict[str, Any]:
        role = find(call, entities.ROLE, request["RoleName"])
        return {
            "Role": {
                **describe(call, role),
                "RoleLastUsed": self.identity.last_use_of_role(role, call.session.label),
            }
        }

    def list_roles(self, call: Call, request: Request) -> dict[str, Any]:
        prefix = request.get("PathPrefix") or "/"
        roles = (role for role in call.records.iterate(entities.ROLE) if role.body["path"].startswith(prefix))
        found, more = page(roles, request, lambda role: role.name)
        return {"Roles": [describe(call, role, full=False) for role in found], **more}

    def update_role(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, entities.ROLE, request["RoleName"])
        description = request.get("Description")
        update(
            call,
            record,
            description=record.body["description"] if description is None else description,
            max_session_s=request.get("MaxSessionDuration") or record.body["max_session_s"],
        )
        return {}

    def update_role_description(self, call: Call, request: Request) -> dict[str, Any]:
        record = find(call, entities.ROLE, request["RoleName"])
        return {"Role": describe(call, update(call, record, description=request["Description"]))}

    def update_assume_role_policy(self, call: Call, request: Request) -> None:
        update(call, find(call, entities.ROLE, request["RoleName"]), trust=_trust(request["PolicyDocument"]))

    def delete_role(self, call: Call, request: Request) -> None:
        record = find(call, entities.ROLE, request["RoleName"])
        check_editable(record)
        if any(record.name in each.body["roles"] for each in call.records.iterate(entities.INSTANCE_PROFILE)):
            raise Conflict(
                "Cannot delete entity, must remove roles from instance profile first.", code="DeleteConflict"
            )
        if record.body["attached"]:
            raise Conflict("Cannot delete entity, must detach all policies first.", code="DeleteConflict")
        if record.body["inline"]:
            raise Conflict("Cannot delete entity, must delete policies first.", code="DeleteConflict")
        call.records.delete(record)

    def tag_role(self, call: Call, request: Request) -> None:
        tagged(call, self.identity, find(call, entities.ROLE, request["RoleName"]), request)

    def untag_role(self, call: Call, request: Request) -> None:
        untagged(call, find(call, entities.ROLE, request["RoleName"]), request["TagKeys"])

    def list_role_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(find(call, entities.ROLE, request["RoleName"]), request)

    def put_role_policy(self, call: Call, request: Request) -> None:
        permissions.put_inline(call, entities.ROLE, request["RoleName"], request)

    def get_role_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.get_inline(call, entities.ROLE, request["RoleName"], request["PolicyName"])

    def delete_role_policy(self, call: Call, request: Request) -> None:
        permissions.delete_inline(call, entities.ROLE, request["RoleName"], request["PolicyName"])

    def list_role_policies(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.list_inline(call, entities.ROLE, request["RoleName"], request)

    def attach_role_policy(self, call: Call, request: Request) -> None:
        permissions.attach(call, self.identity, entities.ROLE, request["RoleName"], request["PolicyArn"])

    def detach_role_policy(self, call: Call, request: Request) -> None:
        permissions.detach(call, entities.ROLE, request["RoleName"], request["PolicyArn"])

    def list_attached_role_policies(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.list_attached(call, entities.ROLE, request["RoleName"], request)

    def put_role_permissions_boundary(self, call: Call, request: Request) -> None:
        permissions.set_boundary(
            call, self.identity, entities.ROLE, request["RoleName"], request["PermissionsBoundary"]
        )

    def delete_role_permissions_boundary(self, call: Call, request: Request) -> None:
        permissions.set_boundary(call, self.identity, entities.ROLE, request["RoleName"], "")
