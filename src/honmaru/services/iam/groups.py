"""Groups: policies for several users. Membership lies in the user's record, so it carries the user's label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.services.iam import permissions, users
from honmaru.services.iam.entities import Part, arn_of, create, find, page, update

Request = Mapping[str, Any]


def describe(call: Call, record: Record) -> dict[str, Any]:
    """The Group shape."""
    return {
        "Path": record.body["path"],
        "GroupName": record.name,
        "GroupId": record.body["id"],
        "Arn": arn_of(call, record),
        "CreateDate": record.created,
    }


def _members(call: Call, group: str) -> list[Record]:
    return [user for user in call.records.iterate(entities.USER) if group in user.body["groups"]]


class Groups(Part):
    """Operations on groups."""

    def create_group(self, call: Call, request: Request) -> dict[str, Any]:
        name, path = request["GroupName"], request.get("Path") or "/"
        entities.check_name(name, 128)
        entities.check_path(path)
        body = entities.group_body(self.identity.ids, path=path)
        return {"Group": describe(call, create(call, entities.GROUP, name, body))}

    def get_group(self, call: Call, request: Request) -> dict[str, Any]:
        group = find(call, entities.GROUP, request["GroupName"])
        found, more = page(_members(call, group.name), request, lambda user: user.name)
        return {
            "Group": describe(call, group),
            "Users": [users.describe(call, user, full=False) for user in found],
            **more,
        }

    def list_groups(self, call: Call, request: Request) -> dict[str, Any]:
        prefix = request.get("PathPrefix") or "/"
        groups = (group for group in call.records.iterate(entities.GROUP) if group.body["path"].startswith(prefix))
        found, more = page(groups, request, lambda group: group.name)
        return {"Groups": [describe(call, group) for group in found], **more}

    def list_groups_for_user(self, call: Call, request: Request) -> dict[str, Any]:
        names = sorted(find(call, entities.USER, request["UserName"]).body["groups"])
        groups = [group for name in names if (group := call.records.get(entities.GROUP, name)) is not None]
        found, more = page(groups, request, lambda group: group.name)
        return {"Groups": [describe(call, group) for group in found], **more}

    def update_group(self, call: Call, request: Request) -> None:
        group = find(call, entities.GROUP, request["GroupName"])
        if request.get("NewGroupName") not in (None, group.name):
            raise ValidationFault("A group's name cannot be changed: make a new group", code="ValidationError")
        path = request.get("NewPath") or group.body["path"]
        entities.check_path(path)
        update(call, group, path=path)

    def delete_group(self, call: Call, request: Request) -> None:
        group = find(call, entities.GROUP, request["GroupName"])
        if _members(call, group.name):
            raise Conflict("Cannot delete entity, must remove users from group first.", code="DeleteConflict")
        if group.body["attached"]:
            raise Conflict("Cannot delete entity, must detach all policies first.", code="DeleteConflict")
        if group.body["inline"]:
            raise Conflict("Cannot delete entity, must delete policies first.", code="DeleteConflict")
        call.records.delete(group)

    def add_user_to_group(self, call: Call, request: Request) -> None:
        group = find(call, entities.GROUP, request["GroupName"])
        user = find(call, entities.USER, request["UserName"])
        if group.name not in user.body["groups"]:
            update(call, user, groups=[*user.body["groups"], group.name])

    def remove_user_from_group(self, call: Call, request: Request) -> None:
        group = find(call, entities.GROUP, request["GroupName"])
        user = find(call, entities.USER, request["UserName"])
        update(call, user, groups=[name for name in user.body["groups"] if name != group.name])

    def put_group_policy(self, call: Call, request: Request) -> None:
        permissions.put_inline(call, entities.GROUP, request["GroupName"], request)

    def get_group_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.get_inline(call, entities.GROUP, request["GroupName"], request["PolicyName"])

    def delete_group_policy(self, call: Call, request: Request) -> None:
        permissions.delete_inline(call, entities.GROUP, request["GroupName"], request["PolicyName"])

    def list_group_policies(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.list_inline(call, entities.GROUP, request["GroupName"], request)

    def attach_group_policy(self, call: Call, request: Request) -> None:
        permissions.attach(call, self.identity, entities.GROUP, request["GroupName"], request["PolicyArn"])

    def detach_group_policy(self, call: Call, request: Request) -> None:
        permissions.detach(call, entities.GROUP, request["GroupName"], request["PolicyArn"])

    def list_attached_group_policies(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.list_attached(call, entities.GROUP, request["GroupName"], request)
