"""Instance profiles: names under which a role is handed to an instance. They hold at most one role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound, QuotaExceeded
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.services.iam import roles
from honmaru.services.iam.entities import (
    Part,
    arn_of,
    create,
    find,
    listed_tags,
    page,
    tag_list,
    tagged,
    tags_of,
    untagged,
    update,
)

Request = Mapping[str, Any]
MUST_REMOVE = "Cannot delete entity, must remove roles from instance profile first."


def describe(call: Call, record: Record, *, full: bool = True) -> dict[str, Any]:
    """The InstanceProfile shape. A role that is gone, or above the session, is left out."""
    body = record.body
    held = [found for name in body["roles"] if (found := call.records.get(entities.ROLE, name)) is not None]
    return {
        "Path": body["path"],
        "InstanceProfileName": record.name,
        "InstanceProfileId": body["id"],
        "Arn": arn_of(call, record),
        "CreateDate": record.created,
        "Roles": [roles.describe(call, role, full=False) for role in held],
        "Tags": (tag_list(body["tags"]) or None) if full else None,
    }


class InstanceProfiles(Part):
    """Operations on instance profiles."""

    def create_instance_profile(self, call: Call, request: Request) -> dict[str, Any]:
        name, path = request["InstanceProfileName"], request.get("Path") or "/"
        entities.check_name(name, 128)
        entities.check_path(path)
        tags = tags_of(request)
        entities.check_tags(tags)
        body: dict[str, Any] = {"id": self.identity.ids.token("AIPA", 17), "path": path, "roles": [], "tags": tags}
        return {"InstanceProfile": describe(call, create(call, entities.INSTANCE_PROFILE, name, body))}

    def get_instance_profile(self, call: Call, request: Request) -> dict[str, Any]:
        return {"InstanceProfile": describe(call, _find(call, request))}

    def list_instance_profiles(self, call: Call, request: Request) -> dict[str, Any]:
        prefix = request.get("PathPrefix") or "/"
        found = (
            each for each in call.records.iterate(entities.INSTANCE_PROFILE) if each.body["path"].startswith(prefix)
        )
        profiles, more = page(found, request, lambda each: each.name)
        return {"InstanceProfiles": [describe(call, each, full=False) for each in profiles], **more}

    def list_instance_profiles_for_role(self, call: Call, request: Request) -> dict[str, Any]:
        role = find(call, entities.ROLE, request["RoleName"])
        found = (each for each in call.records.iterate(entities.INSTANCE_PROFILE) if role.name in each.body["roles"])
        profiles, more = page(found, request, lambda each: each.name)
        return {"InstanceProfiles": [describe(call, each, full=False) for each in profiles], **more}

    def delete_instance_profile(self, call: Call, request: Request) -> None:
        record = _find(call, request)
        if record.body["roles"]:
            raise Conflict(
                "Cannot delete entity, must remove roles from instance profile first.", code="DeleteConflict"
            )
        call.records.delete(record)

    def add_role_to_instance_profile(self, call: Call, request: Request) -> None:
        record, role = _find(call, request), find(call, entities.ROLE, request["RoleName"])
        call.authorize("iam:PassRole", arn_of(call, role), {"iam:PassedToService": "ec2.amazonaws.com"})
        if record.body["roles"]:
            raise QuotaExceeded("Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1", code="LimitExceeded")
        update(call, record, roles=[role.name])

    def remove_role_from_instance_profile(self, call: Call, request: Request) -> None:
        record, name = _find(call, request), request["RoleName"]
        if name not in record.body["roles"]:
            raise NotFound(f"Role {name} in Instance Profile {record.name} cannot be found.", code="NoSuchEntity")
        update(call, record, roles=[])

    def tag_instance_profile(self, call: Call, request: Request) -> None:
        tagged(call, self.identity, _find(call, request), request)

    def untag_instance_profile(self, call: Call, request: Request) -> None:
        untagged(call, _find(call, request), request["TagKeys"])

    def list_instance_profile_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(_find(call, request), request)


def _find(call: Call, request: Request) -> Record:
    return find(call, entities.INSTANCE_PROFILE, request["InstanceProfileName"])
