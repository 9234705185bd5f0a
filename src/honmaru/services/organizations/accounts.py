"""Accounts of the organisation.

Invariants:
- An account is usable when CreateAccount answers: its number, its place, and a role that the management account may
  assume in it are durable. There is no half-made account that a client could see.
- A closed account opens no session any more, from the moment that CloseAccount answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import Conflict, NotFound
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, GuardedRecords, Record
from honmaru.security.identity import entities
from honmaru.security.identity import organization as control
from honmaru.security.identity.managed import managed_arn
from honmaru.services.organizations.places import (
    EMAIL,
    STATUS,
    Part,
    Request,
    arn,
    constraint,
    invalid,
    new_policies,
    organization,
    page,
    parent,
    records_of,
    tags_of,
    update,
)
from honmaru.services.organizations.tree import accounts

ROLE = "OrganizationAccountAccessRole"
_EMAIL = re.compile(r"[^\s@]{1,64}@[^\s@]{1,250}\.[^\s@]{2,}")
_TRIES = 8


def shape(call: Call, records: GuardedRecords, record: Record) -> dict[str, Any]:
    """The Account shape."""
    body = record.body
    return {
        "Id": record.name,
        "Arn": arn(call, records, f"account/{organization(records).body['id']}/{record.name}"),
        "Email": body["email"],
        "Name": body["name"],
        "Status": body["status"],
        "State": "ACTIVE" if body["status"] == "ACTIVE" else "CLOSED",
        "JoinedMethod": body["joined_method"],
        "JoinedTimestamp": datetime.fromisoformat(body["joined"]),
    }


def account(records: GuardedRecords, name: str) -> Record:
    """An account by number. Raises NotFound."""
    found = records.get(control.ACCOUNT, name)
    if found is None:
        raise NotFound("You specified an account that doesn't exist.", code="AccountNotFoundException")
    return found


class Accounts(Part):
    """Operations on accounts."""

    def create_account(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity, write=True)
        found = organization(records)
        role, email = request.get("RoleName") or ROLE, request["Email"]
        entities.check_name(role)
        tags = tags_of(request)
        status: dict[str, Any] = {"name": request["AccountName"], "asked": call.now.isoformat()}
        name = f"car-{self.identity.ids.token('', 32).lower()}"
        taken = records.get(EMAIL, email.lower()) is not None
        if taken or not _EMAIL.fullmatch(email):
            status |= {"failure": "EMAIL_ALREADY_EXISTS" if taken else "INVALID_EMAIL"}
            return {"CreateAccountStatus": _status(records.create(STATUS, name, status, "FAILED"))}
        number = self._lay_down(call, role)
        body = {
            "name": request["AccountName"],
            "email": email,
            "status": "ACTIVE",
            "joined": call.now.isoformat(),
            "joined_method": "CREATED",
            "parent": found.body["root"],
            "policies": new_policies(),
            "tags": tags,
            "delegated": {},
        }
        made = records.apply(
            [
                Creation(control.ACCOUNT, number, body),
                Creation(EMAIL, email.lower(), {"account": number}),
                Creation(STATUS, name, {**status, "account": number}, "SUCCEEDED"),
            ]
        )
        call.resources.append(
            (arn(call, records, f"account/{found.body['id']}/{number}"), "AWS::Organizations::Account")
        )
        return {"CreateAccountStatus": _status(made[2])}

    def _lay_down(self, call: Call, role: str) -> str:
        """A new account number whose first record is the role that the management account may assume."""
        identity, session = self.identity, call.session
        management = identity.organization.management
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:{session.partition}:iam::{management}:root"},
                    "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
                }
            ],
        }
        body = entities.role_body(
            identity.ids, path="/", tags={}, trust=json.dumps(trust), description="", max_session_s=3600, boundary=""
        )
        body["attached"] = [managed_arn(session.partition, "AdministratorAccess")]
        for _ in range(_TRIES):
            number = str(100_000_000_000 + int.from_bytes(identity.ids.secret(8)) % 900_000_000_000)
            if number == management or identity.organization.known(number):
                continue
            try:
                identity.directories.of(number).trusted.create(number, session.label, entities.ROLE, role, body)
            except Conflict:
                continue
            return number
        raise Conflict("No free account number was found; try again.", code="ConcurrentModificationException")

    def describe_create_account_status(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        found = records.get(STATUS, request["CreateAccountRequestId"])
        if found is None:
            raise NotFound("You specified a request that doesn't exist.", code="CreateAccountStatusNotFoundException")
        return {"CreateAccountStatus": _status(found)}

    def list_create_account_status(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        wanted = set(request.get("States") or ("IN_PROGRESS", "SUCCEEDED", "FAILED"))
        found, token = page(
            lambda after: (each for each in records.iterate(STATUS, after=after) if each.state in wanted),
            request,
            lambda each: each.name,
        )
        return {"CreateAccountStatuses": [_status(each) for each in found], "NextToken": token}

    def describe_account(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        return {"Account": shape(call, records, account(records, request["AccountId"]))}

    def list_accounts(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        organization(records)
        found, token = page(
            lambda after: records.iterate(control.ACCOUNT, after=after, page=32), request, lambda each: each.name
        )
        return {"Accounts": [shape(call, records, each) for each in found], "NextToken": token}

    def list_accounts_for_parent(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        above = parent(records, request["ParentId"])
        found, token = page(lambda after: accounts(records, above.name, after), request, lambda each: each.name)
        return {"Accounts": [shape(call, records, each) for each in found], "NextToken": token}

    def move_account(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record = account(records, request["AccountId"])
        if record.body["parent"] != request["SourceParentId"]:
            raise NotFound("The source parent is not the account's.", code="SourceParentNotFoundException")
        if records.get(control.UNIT, request["DestinationParentId"]) is None:
            raise NotFound("You specified a parent that doesn't exist.", code="DestinationParentNotFoundException")
        if request["SourceParentId"] == request["DestinationParentId"]:
            raise Conflict("The account is already in the specified parent.", code="DuplicateAccountException")
        update(records, record, parent=request["DestinationParentId"])

    def close_account(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record = account(records, request["AccountId"])
        if record.name == records.session.account:
            raise constraint("The management account cannot be closed.", "CANNOT_CLOSE_MANAGEMENT_ACCOUNT")
        if record.body["status"] != "ACTIVE":
            raise Conflict("The account is already closed.", code="AccountAlreadyClosedException")
        update(records, record, status="SUSPENDED")

    # Delegated administrators

    def register_delegated_administrator(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record, service = account(records, request["AccountId"]), request["ServicePrincipal"]
        if record.name == records.session.account:
            raise constraint(
                "The management account cannot be a delegated administrator.",
                "CANNOT_REGISTER_MASTER_AS_DELEGATED_ADMINISTRATOR",
            )
        if record.body["status"] != "ACTIVE":
            raise constraint("The account is closed.", "CANNOT_REGISTER_SUSPENDED_ACCOUNT_AS_DELEGATED_ADMINISTRATOR")
        if service in record.body["delegated"]:
            raise Conflict(
                "The account is already a delegated administrator of the service.",
                code="AccountAlreadyRegisteredException",
            )
        update(records, record, delegated={**record.body["delegated"], service: call.now.isoformat()})

    def deregister_delegated_administrator(self, call: Call, request: Request) -> None:
        records = records_of(call, self.identity, write=True)
        record, service = account(records, request["AccountId"]), request["ServicePrincipal"]
        if service not in record.body["delegated"]:
            raise invalid("The account is no delegated administrator of the service.", "INVALID_PATTERN")
        update(records, record, delegated=_without(record.body["delegated"], service))

    def list_delegated_administrators(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        service = request.get("ServicePrincipal")
        found, token = page(
            lambda after: (
                each
                for each in records.iterate(control.ACCOUNT, after=after)
                if (service in each.body["delegated"] if service else each.body["delegated"])
            ),
            request,
            lambda each: each.name,
        )
        return {
            "DelegatedAdministrators": [
                {**shape(call, records, each), "DelegationEnabledDate": _since(each, service)} for each in found
            ],
            "NextToken": token,
        }

    def list_delegated_services_for_account(self, call: Call, request: Request) -> dict[str, Any]:
        records = records_of(call, self.identity)
        delegated = account(records, request["AccountId"]).body["delegated"]
        if not delegated:
            raise Conflict("The account is no delegated administrator.", code="AccountNotRegisteredException")
        return {
            "DelegatedServices": [
                {"ServicePrincipal": name, "DelegationEnabledDate": datetime.fromisoformat(at)}
                for name, at in sorted(delegated.items())
            ]
        }


def _without(delegated: Mapping[str, str], service: str) -> dict[str, str]:
    return {name: at for name, at in delegated.items() if name != service}


def _since(record: Record, service: str | None) -> datetime:
    delegated = record.body["delegated"]
    return datetime.fromisoformat(delegated[service] if service else min(delegated.values()))


def _status(record: Record) -> dict[str, Any]:
    body = record.body
    return {
        "Id": record.name,
        "AccountName": body["name"],
        "State": record.state,
        "RequestedTimestamp": datetime.fromisoformat(body["asked"]),
        "CompletedTimestamp": datetime.fromisoformat(body["asked"]),
        "AccountId": body.get("account"),
        "FailureReason": body.get("failure"),
    }
