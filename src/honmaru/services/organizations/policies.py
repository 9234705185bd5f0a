"""Service and resource control policies, and what they are attached to.

Invariants:
- What is attached binds from the moment that the operation answers (`security.identity.organization`).
- Every root, unit and account keeps at least one policy of each kind; the full-access ones are nobody's to change.
- Tag, backup and other policies, which nothing here would enforce, are refused and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.security.identity import organization as control
from honmaru.security.policy import MalformedPolicy, PolicyKind, compile_policy
from honmaru.services.organizations.places import (
    Part,
    Request,
    arn,
    check_tags,
    constraint,
    invalid,
    kind_of,
    listed,
    organization,
    page,
    parent,
    records_of,
    tags_of,
    target,
    target_arn,
    update,
)
from honmaru.services.organizations.tree import root_shape

CONTENT_LIMIT = 10240
ATTACHED_LIMIT = 10
_KINDS = {control.SCP: PolicyKind.SCP, control.RCP: PolicyKind.RCP}
_FULL = {name: kind for kind, name in control.FULL_ACCESS.items()}
_FULL_CONTENT = {
    control.SCP: '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}',
    control.RCP: (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}'
    ),
}


def _summary(call: Call, records: GuardedRecords, name: str) -> dict[str, Any]:
    """The PolicySummary shape of the platform's or the organisation's own policy. Raises NotFound."""
    if name in _FULL:
        kind = _FULL[name]
        return {
            "Id": name,
            "Arn": f"arn:{call.session.partition}:organizations::aws:policy/{kind.lower()}/{name}",
            "Name": name.removeprefix("p-"),
            "Description": "Allows access to every operation",
            "Type": kind,
            "AwsManaged": True,
        }
    record = _policy(records, name)
    body = record.body
    place = f"policy/{organization(records).body['id']}/{body['type'].lower()}/{record.name}"
    return {
        "Id": record.name,
        "Arn": arn(call, records, place),
        "Name": body["name"],
        "Description": body["description"],
        "Type": body["type"],
        "AwsManaged": False,
    }


def _policy(records: GuardedRecords, name: str) -> Record:
    if name in _FULL:
        raise ValidationFault(
            "The policy is managed by the platform.",
            code="InvalidInputException",
            members={"Reason": "IMMUTABLE_POLICY"},
        )
    found = records.get(control.POLICY, name)
    if found is None:
        raise NotFound("You specified a policy that doesn't exist.", code="PolicyNotFoundException")
    return found


def _shape(call: Call, records: GuardedRecords, name: str) -> dict[str, Any]:
    content = _FULL_CONTENT[_FULL[name]] if name in _FULL else _policy(records, name).body["content"]
    return {"Policy": {"PolicySummary": _summary(call, records, name), "Content": content}}


def _check_type(kind: str) -> str:
    if kind not in _KINDS:
        raise invalid(
            f"Policies of type {kind} are not enforced by this enclave: use {' or '.join(_KINDS)}.",
            "INVALID_ENUM_POLICY_TYPE",
        )
    return kind


def _check_content(kind: str, content: str) -> None:
    if len(content) > CONTENT_LIMIT:
        raise constraint(f"A policy has at most {CONTENT_LIMIT} characters.", "POLICY_CONTENT_LIMIT_EXCEEDED")
    try:
        compile_policy(content, "", _KINDS[kind])
    except MalformedPolicy as fault:
        raise ValidationFault(
            f"The provided policy document does not meet the requirements: {fault.message}",
            code="MalformedPolicyDocumentException",
        ) from None


def _targets(records: GuardedRecords, kind: str, policy: str) -> Iterator[Record]:
    for place in (control.UNIT, control.ACCOUNT):
        for record in records.iterate(place):
            if policy in record.body["policies"].get(kind, ()):
                yield record


def _check_free(records: GuardedRecords, name: str) -> None:
    if any(each.body["name"] == name for each in records.iterate(control.POLICY)):
        raise Conflict("A policy with the same name already exists.", code="DuplicatePolicyException")


class Policies(Part):
    """Operations on policies and their attachments."""

    def create_policy(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity, write=True)
        organization(records)
        kind = _check_type(request["Type"])
        _check_content(kind, request["Content"])
        _check_free(records, request["Name"])
        name = f"p-{self.identity.ids.token('', 8).lower()}"
        body = {
            "name": request["Name"],
            "description": request["Description"],
            "type": kind,
            "content": request["Content"],
            "tags": tags_of(request),
        }
        records.create(control.POLICY, name, body)
        return _shape(call, records, name)

    def describe_policy(self, call: Call, request: Request) -> dict[str, Any]:
        return _shape(call, records_of(call, self.identity), request["PolicyId"])

    def update_policy(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity, write=True)
        record = _policy(records, request["PolicyId"])
        changes = {
            key: request[member]
            for key, member in (("name", "Name"), ("description", "Description"), ("content", "Content"))
            if request.get(member) is not None
        }
        if "content" in changes:
            _check_content(record.body["type"], changes["content"])
        if changes.get("name", record.body["name"]) != record.body["name"]:
            _check_free(records, changes["name"])
        update(records, record, **changes)
        return _shape(call, records, record.name)

    def delete_policy(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record = _policy(records, request["PolicyId"])
        if any(_targets(records, record.body["type"], record.name)):
            raise Conflict(
                "The policy is attached to one or more entities. You must detach it first.", code="PolicyInUseException"
            )
        records.delete(record)

    def list_policies(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        kind = request["Filter"]
        own = [each.name for each in records.iterate(control.POLICY) if each.body["type"] == kind]
        names = [*own, *([control.FULL_ACCESS[kind]] if kind in _KINDS else [])]
        found, token = page(listed(names, str), request, str)
        return {"Policies": [_summary(call, records, name) for name in found], "NextToken": token}

    def list_policies_for_target(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        names = target(records, request["TargetId"]).body["policies"].get(request["Filter"], [])
        found, token = page(listed(names, str), request, str)
        return {"Policies": [_summary(call, records, name) for name in found], "NextToken": token}

    def list_targets_for_policy(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        name = request["PolicyId"]
        kind = _FULL[name] if name in _FULL else _policy(records, name).body["type"]
        found, token = page(listed(_targets(records, kind, name), lambda each: each.name), request, lambda e: e.name)
        return {
            "Targets": [
                {
                    "TargetId": each.name,
                    "Arn": target_arn(call, records, each),
                    "Name": each.body["name"],
                    "Type": kind_of(each),
                }
                for each in found
            ],
            "NextToken": token,
        }

    def attach_policy(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        name = request["PolicyId"]
        kind = _FULL[name] if name in _FULL else _policy(records, name).body["type"]
        if kind not in organization(records).body["enabled"]:
            raise Conflict(
                f"Policies of type {kind} are not enabled in the organization's root: call EnablePolicyType.",
                code="PolicyTypeNotEnabledException",
            )
        record = target(records, request["TargetId"])
        attached = record.body["policies"].get(kind, [])
        if name in attached:
            raise Conflict("The policy is already attached to the target.", code="DuplicatePolicyAttachmentException")
        if len(attached) >= ATTACHED_LIMIT:
            raise constraint(
                f"At most {ATTACHED_LIMIT} policies are attached to a target.",
                "MAX_POLICY_TYPE_ATTACHMENT_LIMIT_EXCEEDED",
            )
        update(records, record, policies={**record.body["policies"], kind: [*attached, name]})

    def detach_policy(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        name = request["PolicyId"]
        kind = _FULL[name] if name in _FULL else _policy(records, name).body["type"]
        record = target(records, request["TargetId"])
        attached = record.body["policies"].get(kind, [])
        if name not in attached:
            raise NotFound("The policy isn't attached to the specified target.", code="PolicyNotAttachedException")
        if name == control.FULL_ACCESS[control.RCP]:
            raise invalid("RCPFullAWSAccess cannot be detached.", "NON_DETACHABLE_POLICY")
        if len(attached) == 1:
            raise constraint(
                "You cannot remove the last policy attached to the specified target. You must attach another first.",
                "MIN_POLICY_TYPE_ATTACHMENT_LIMIT_EXCEEDED",
            )
        rest = [other for other in attached if other != name]
        update(records, record, policies={**record.body["policies"], kind: rest})

    def enable_policy_type(self, call: Call, request: Request) -> dict[str, Any]:
        return self._switch(call, request, enable=True)

    def disable_policy_type(self, call: Call, request: Request) -> dict[str, Any]:
        return self._switch(call, request, enable=False)

    def _switch(self, call: Call, request: Request, *, enable: bool) -> dict[str, Any]:
        records = records_of(call, self.identity, write=True)
        kind = _check_type(request["PolicyType"])
        found = organization(records)
        if request["RootId"] != found.body["root"]:
            raise NotFound("You specified a root that doesn't exist.", code="RootNotFoundException")
        enabled = found.body["enabled"]
        if enable and kind in enabled:
            raise Conflict("The policy type is already enabled.", code="PolicyTypeAlreadyEnabledException")
        if not enable and kind not in enabled:
            raise Conflict("The policy type is not enabled.", code="PolicyTypeNotEnabledException")
        update(records, found, enabled=[*enabled, kind] if enable else [each for each in enabled if each != kind])
        return {"Root": root_shape(call, records, parent(records, found.body["root"]))}

    # Tags of everything in the organisation

    def tag_resource(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record = self._tagged(records, request["ResourceId"])
        tags = {**record.body["tags"], **tags_of(request)}
        check_tags(tags)
        update(records, record, tags=tags)

    def untag_resource(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record = self._tagged(records, request["ResourceId"])
        gone = set(request["TagKeys"])
        update(records, record, tags={key: value for key, value in record.body["tags"].items() if key not in gone})

    def list_tags_for_resource(self, call: Call, request: Request) -> dict[str, Any]:
        record = self._tagged(records_of(call, self.identity), request["ResourceId"])
        return {"Tags": [{"Key": key, "Value": value} for key, value in sorted(record.body["tags"].items())]}

    @staticmethod
    def _tagged(records: GuardedRecords, name: str) -> Record:
        return _policy(records, name) if name.startswith("p-") else target(records, name)
