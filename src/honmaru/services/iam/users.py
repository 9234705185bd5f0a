"""Users and their access keys.

Invariants:
- A key made over the API is bound to the label of the session that made it, and its user must be cleared for that.
- It carries the clearances of its makers as limits, so making a key for somebody never lends their clearance.
- The secret of a key is answered once, when the key is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.clearances import Clearance, may_hold
from honmaru.core.errors import AccessDenied, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.services.iam import permissions
from honmaru.services.iam.entities import (
    Part,
    arn_of,
    boundary,
    check_grant,
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

KEYS_LIMIT = 2
Request = Mapping[str, Any]


def describe(call: Call, record: Record, *, full: bool = True) -> dict[str, Any]:
    """The User shape; lists leave tags and boundary out, as AWS does."""
    body = record.body
    return {
        "Path": body["path"],
        "UserName": record.name,
        "UserId": body["id"],
        "Arn": arn_of(call, record),
        "CreateDate": record.created,
        "PermissionsBoundary": boundary(body) if full else None,
        "Tags": (tag_list(body["tags"]) or None) if full else None,
    }


def subject(call: Call, request: Request, action: str) -> Record:
    """The named user, else the caller's; asks IAM, because the door cannot know an unnamed user's ARN."""
    name = request.get("UserName")
    session = call.session
    if not name:
        if session.kind != "user":
            raise ValidationFault(
                "Must specify userName when calling with non-User credentials", code="ValidationError"
            )
        name = session.issuer_arn.rpartition("/")[2]
    seen = call.records.get(entities.USER, name)
    call.authorize(action, arn_of(call, seen) if seen else call.arn("iam", f"user/{name}", region=False))
    return find(call, entities.USER, name)


class Users(Part):
    """Operations on users."""

    def create_user(self, call: Call, request: Request) -> dict[str, Any]:
        name, path = request["UserName"], request.get("Path") or "/"
        entities.check_name(name)
        entities.check_path(path)
        tags = tags_of(request)
        check_grant(call, self.identity, tags)
        limit = request.get("PermissionsBoundary") or ""
        if limit:
            permissions.require_policy(call, self.identity, limit)
        body = entities.user_body(self.identity.ids, path=path, tags=tags, attached=[], boundary=limit)
        return {"User": describe(call, create(call, entities.USER, name, body))}

    def get_user(self, call: Call, request: Request) -> dict[str, Any]:
        return {"User": describe(call, subject(call, request, "iam:GetUser"))}

    def list_users(self, call: Call, request: Request) -> dict[str, Any]:
        prefix = request.get("PathPrefix") or "/"
        users = (user for user in call.records.iterate(entities.USER) if user.body["path"].startswith(prefix))
        found, more = page(users, request, lambda user: user.name)
        return {"Users": [describe(call, user, full=False) for user in found], **more}

    def update_user(self, call: Call, request: Request) -> None:
        record = find(call, entities.USER, request["UserName"])
        if request.get("NewUserName") not in (None, record.name):
            raise ValidationFault("A user's name cannot be changed: make a new user", code="ValidationError")
        path = request.get("NewPath") or record.body["path"]
        entities.check_path(path)
        update(call, record, path=path)

    def delete_user(self, call: Call, request: Request) -> None:
        record = find(call, entities.USER, request["UserName"])
        if record.body["attached"]:
            raise Conflict("Cannot delete entity, must detach all policies first.", code="DeleteConflict")
        if record.body["inline"]:
            raise Conflict("Cannot delete entity, must delete policies first.", code="DeleteConflict")
        if record.body["groups"]:
            raise Conflict("Cannot delete entity, must remove users from group first.", code="DeleteConflict")
        if keys_of(call, record):
            raise Conflict("Cannot delete entity, must delete access keys first.", code="DeleteConflict")
        if any(key.body["user_id"] == record.body["id"] for key in call.records.iterate(entities.BEARER_KEY)):
            raise Conflict(
                "Cannot delete entity, must remove service specific credentials first.", code="DeleteConflict"
            )
        profile = call.records.get(entities.LOGIN_PROFILE, record.name)
        if profile is not None and profile.body["user_id"] == record.body["id"]:
            raise Conflict("Cannot delete entity, must delete login profile first.", code="DeleteConflict")
        if any(device.body["user_id"] == record.body["id"] for device in call.records.iterate(entities.MFA_DEVICE)):
            raise Conflict("Cannot delete entity, must delete MFA device first.", code="DeleteConflict")
        call.records.delete(record)

    def tag_user(self, call: Call, request: Request) -> None:
        tagged(call, self.identity, find(call, entities.USER, request["UserName"]), request)

    def untag_user(self, call: Call, request: Request) -> None:
        untagged(call, find(call, entities.USER, request["UserName"]), request["TagKeys"])

    def list_user_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(find(call, entities.USER, request["UserName"]), request)

    def put_user_policy(self, call: Call, request: Request) -> None:
        permissions.put_inline(call, entities.USER, request["UserName"], request)

    def get_user_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.get_inline(call, entities.USER, request["UserName"], request["PolicyName"])

    def delete_user_policy(self, call: Call, request: Request) -> None:
        permissions.delete_inline(call, entities.USER, request["UserName"], request["PolicyName"])

    def list_user_policies(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.list_inline(call, entities.USER, request["UserName"], request)

    def attach_user_policy(self, call: Call, request: Request) -> None:
        permissions.attach(call, self.identity, entities.USER, request["UserName"], request["PolicyArn"])

    def detach_user_policy(self, call: Call, request: Request) -> None:
        permissions.detach(call, entities.USER, request["UserName"], request["PolicyArn"])

    def list_attached_user_policies(self, call: Call, request: Request) -> dict[str, Any]:
        return permissions.list_attached(call, entities.USER, request["UserName"], request)

    def put_user_permissions_boundary(self, call: Call, request: Request) -> None:
        permissions.set_boundary(
            call, self.identity, entities.USER, request["UserName"], request["PermissionsBoundary"]
        )

    def delete_user_permissions_boundary(self, call: Call, request: Request) -> None:
        permissions.set_boundary(call, self.identity, entities.USER, request["UserName"], "")

    def create_access_key(self, call: Call, request: Request) -> dict[str, Any]:
        user = subject(call, request, "iam:CreateAccessKey")
        label = call.session.label
        tag = user.body["tags"].get(entities.CLEARANCE_TAG)
        if not may_hold(Clearance() if tag is None else Clearance.parse(tag), label):
            raise AccessDenied(
                f"A key made in this session is bound to {label.banner}, and {user.name} is not cleared for it"
            )
        bound = [key for key in keys_of(call, user) if key.body["label"] == label.canonical]
        if len(bound) >= KEYS_LIMIT:
            raise QuotaExceeded(f"Cannot exceed quota for AccessKeysPerUser: {KEYS_LIMIT}", code="LimitExceeded")
        body = entities.key_body(
            self.identity.ids,
            user=user.name,
            user_id=user.body["id"],
            label=label,
            limits=self.identity.clearances_behind(call.session),
        )
        name = entities.key_id(self.identity.ids, "AKIA", call.account)
        record = call.records.create(entities.ACCESS_KEY, name, body, entities.ACTIVE)
        return {"AccessKey": {**_key(record), "SecretAccessKey": body["secret"]}}

    def get_access_key_last_used(self, call: Call, request: Request) -> dict[str, Any]:
        key = call.records.get(entities.ACCESS_KEY, request["AccessKeyId"])
        if key is None:
            raise NotFound(f"The Access Key with id {request['AccessKeyId']} cannot be found.", code="NoSuchEntity")
        call.authorize("iam:GetAccessKeyLastUsed", call.arn("iam", f"user/{key.body['user']}", region=False))
        return {"UserName": key.body["user"], "AccessKeyLastUsed": self.identity.last_use(key, call.session.label)}

    def list_access_keys(self, call: Call, request: Request) -> dict[str, Any]:
        user = subject(call, request, "iam:ListAccessKeys")
        found, more = page(keys_of(call, user), request, lambda key: key.name)
        return {"AccessKeyMetadata": [_key(key) for key in found], **more}

    def update_access_key(self, call: Call, request: Request) -> None:
        key = self._access_key(call, request, "iam:UpdateAccessKey")
        call.records.update(key, key.body, request["Status"])

    def delete_access_key(self, call: Call, request: Request) -> None:
        call.records.delete(self._access_key(call, request, "iam:DeleteAccessKey"))

    def _access_key(self, call: Call, request: Request, action: str) -> Record:
        user = subject(call, request, action)
        key = call.records.get(entities.ACCESS_KEY, request["AccessKeyId"])
        if key is None or key.body["user_id"] != user.body["id"]:
            raise NotFound(f"The Access Key with id {request['AccessKeyId']} cannot be found.", code="NoSuchEntity")
        return key


def keys_of(call: Call, user: Record) -> list[Record]:
    """The visible access keys of a user."""
    return [key for key in call.records.iterate(entities.ACCESS_KEY) if key.body["user_id"] == user.body["id"]]


def _key(record: Record) -> dict[str, Any]:
    return {
        "UserName": record.body["user"],
        "AccessKeyId": record.name,
        "Status": record.state,
        "CreateDate": record.created,
    }
