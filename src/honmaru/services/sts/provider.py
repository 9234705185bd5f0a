"""STS's operations. The decisions about sessions are the identity's; here they are read and answered.

`AssumeRole` is open to every authenticated caller at the door, because the role's trust policy and the caller's own
policies are combined by `Identity.assume_role`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call, Provider
from honmaru.security.identity import AssumeRole, Identity, TemporaryCredential, entities

_SESSION_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")


def _credentials(made: TemporaryCredential) -> dict[str, Any]:
    return {
        "AccessKeyId": made.access_key_id,
        "SecretAccessKey": made.secret_access_key,
        "SessionToken": made.session_token,
        "Expiration": made.expires,
    }


def _tags(request: Mapping[str, Any]) -> dict[str, str]:
    listed = request.get("Tags") or []
    tags = {tag["Key"]: tag["Value"] for tag in listed}
    if len({key.lower() for key in tags}) != len(listed):
        raise ValidationFault("Duplicate tag keys found. Tag keys must be unique.", code="ValidationError")
    return tags


class Sts(Provider):
    """The STS service of one enclave."""

    service: ClassVar[str] = "sts"
    unauthorized: ClassVar[frozenset[str]] = frozenset(("GetCallerIdentity", "AssumeRole", "GetSessionToken"))

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def get_caller_identity(self, call: Call, _request: Mapping[str, Any]) -> dict[str, Any]:
        session = call.session
        return {"UserId": session.principal_id, "Account": session.account, "Arn": session.principal_arn}

    def assume_role(self, call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request["RoleSessionName"]
        if not _SESSION_NAME.fullmatch(name):
            raise ValidationFault(
                f"RoleSessionName is {name[:80]!r}; expected 2 to 64 of A-Z a-z 0-9 _+=,.@-", code="ValidationError"
            )
        made = self.identity.assume_role(
            call.session,
            AssumeRole(
                role_arn=request["RoleArn"],
                session_name=name,
                duration_s=request.get("DurationSeconds"),
                tags=_tags(request),
                transitive=frozenset(request.get("TransitiveTagKeys") or ()),
                policy=request.get("Policy"),
                policy_arns=[entry["arn"] for entry in request.get("PolicyArns") or () if entry.get("arn")],
                external_id=request.get("ExternalId"),
                source_identity=request.get("SourceIdentity"),
            ),
        )
        session = made.session
        call.resources.append((session.issuer_arn, "AWS::IAM::Role"))
        call.details["label"] = session.label.canonical
        return {
            "Credentials": _credentials(made),
            "AssumedRoleUser": {"AssumedRoleId": session.principal_id, "Arn": session.principal_arn},
            "SourceIdentity": session.source_identity or None,
        }

    def get_session_token(self, call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"Credentials": _credentials(self.identity.session_token(call.session, request.get("DurationSeconds")))}

    def get_access_key_info(self, call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
        key_id = request["AccessKeyId"]
        known = call.records_of(entities.SERVICE).get(entities.ACCESS_KEY, key_id)
        if known is None and key_id != call.session.access_key_id:
            raise ValidationFault(f"{key_id} is not an access key of this account", code="ValidationError")
        return {"Account": call.session.account}
