"""Service-specific credentials: the keys of Bedrock, which its clients send as a bearer token.

Invariants:
- A key is bound to the label of the session that makes it, and opens nothing that its makers are not cleared for.
- The secret is shown once, when it is made or made anew. A key that is inactive, gone or over its age opens nothing.
- A user has at most two at a label. Credentials of other services are refused by name: there are no such services here.

Source: IAM API reference, CreateServiceSpecificCredential; Amazon Bedrock user guide, "API keys".
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from honmaru.core.clearances import Clearance, may_hold
from honmaru.core.errors import AccessDenied, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities
from honmaru.security.identity.signin import bearer_token
from honmaru.services.iam.entities import Part, page, update
from honmaru.services.iam.users import subject

BEDROCK = "bedrock.amazonaws.com"
KEYS_LIMIT = 2
Request = Mapping[str, Any]


class ServiceCredentials(Part):
    """Operations on service-specific credentials."""

    def create_service_specific_credential(self, call: Call, request: Request) -> dict[str, Any]:
        user = subject(call, request, "iam:CreateServiceSpecificCredential")
        _check_service(request["ServiceName"])
        label = call.session.label
        tag = user.body["tags"].get(entities.CLEARANCE_TAG)
        if not may_hold(Clearance() if tag is None else Clearance.parse(tag), label):
            raise AccessDenied(
                f"A key made in this session is bound to {label.banner}, and {user.name} is not cleared for it"
            )
        bound = [key for key in bearer_keys_of(call, user) if key.body["label"] == label.canonical]
        if len(bound) >= KEYS_LIMIT:
            raise QuotaExceeded(
                f"Cannot exceed quota for ServiceSpecificCredentialsPerUser: {KEYS_LIMIT}", code="LimitExceeded"
            )
        days = request.get("CredentialAgeDays")
        body = entities.key_body(
            self.identity.ids,
            user=user.name,
            user_id=user.body["id"],
            label=label,
            limits=self.identity.clearances_behind(call.session),
        ) | {"expires": None if days is None else (call.now + timedelta(days=int(days))).isoformat()}
        name = entities.key_id(self.identity.ids, "BKIA", call.account)
        record = call.records.create(entities.BEARER_KEY, name, body, entities.ACTIVE)
        return {"ServiceSpecificCredential": _with_secret(record)}

    def list_service_specific_credentials(self, call: Call, request: Request) -> dict[str, Any]:
        if request.get("AllUsers"):
            call.authorize("iam:ListServiceSpecificCredentials", call.arn("iam", "user/*", region=False))
            keys = list(call.records.iterate(entities.BEARER_KEY))
        else:
            keys = bearer_keys_of(call, subject(call, request, "iam:ListServiceSpecificCredentials"))
        if request.get("ServiceName"):
            _check_service(request["ServiceName"])
        found, more = page(keys, request, lambda key: key.name)
        return {"ServiceSpecificCredentials": [_described(key) for key in found], **more}

    def update_service_specific_credential(self, call: Call, request: Request) -> None:
        key = _found(call, request, "iam:UpdateServiceSpecificCredential")
        if request["Status"] not in (entities.ACTIVE, entities.INACTIVE):
            raise ValidationFault("Status must be Active or Inactive", code="ValidationError")
        call.records.update(key, key.body, request["Status"])

    def reset_service_specific_credential(self, call: Call, request: Request) -> dict[str, Any]:
        key = _found(call, request, "iam:ResetServiceSpecificCredential")
        limits = list(dict.fromkeys([*key.body.get("limits", ()), *self.identity.clearances_behind(call.session)]))
        update(call, key, secret=entities.new_secret(self.identity.ids), limits=limits)
        return {"ServiceSpecificCredential": _with_secret(_found(call, request, "iam:ResetServiceSpecificCredential"))}

    def delete_service_specific_credential(self, call: Call, request: Request) -> None:
        call.records.delete(_found(call, request, "iam:DeleteServiceSpecificCredential"))


def bearer_keys_of(call: Call, user: Record) -> list[Record]:
    """The visible keys of a user, the local operator's own (`honmaru env`) too, as with access keys."""
    return [key for key in call.records.iterate(entities.BEARER_KEY) if key.body["user_id"] == user.body["id"]]


def _found(call: Call, request: Request, action: str) -> Record:
    user = subject(call, request, action)
    name = request["ServiceSpecificCredentialId"]
    found = next((key for key in bearer_keys_of(call, user) if key.name == name), None)
    if found is None:
        raise NotFound(f"The service specific credential {name} does not exist.", code="NoSuchEntity")
    return found


def _check_service(name: str) -> None:
    if name != BEDROCK:
        raise ValidationFault(f"The service {name[:100]} is not supported: use {BEDROCK}", code="NotSupportedService")


def _described(key: Record) -> dict[str, Any]:
    expires = key.body.get("expires")
    return {
        "UserName": key.body["user"],
        "ServiceName": BEDROCK,
        "ServiceSpecificCredentialId": key.name,
        "ServiceCredentialAlias": f"BedrockAPIKey-{key.name}",
        "Status": key.state,
        "CreateDate": key.created,
        "ExpirationDate": None if expires is None else datetime.fromisoformat(expires),
    }


def _with_secret(key: Record) -> dict[str, Any]:
    return {**_described(key), "ServiceCredentialSecret": bearer_token(key.name, key.body["secret"])}
