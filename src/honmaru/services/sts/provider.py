"""STS's operations. The decisions about sessions are the identity's; here they are read and answered.

`AssumeRole` and its kin are open to every caller at the door, because the role's trust policy and the caller's own
policies are combined by `Identity`; who comes with a token or an assertion of an identity provider signs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from honmaru.core.errors import ValidationFault
from honmaru.core.sessions import Session
from honmaru.security.calls import Call, Provider
from honmaru.security.identity import AssumeRole, Identity, TemporaryCredential, entities

_SESSION_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_FEDERATED_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,32}")
Request = Mapping[str, Any]


def _credentials(made: TemporaryCredential) -> dict[str, Any]:
    return {
        "AccessKeyId": made.access_key_id,
        "SecretAccessKey": made.secret_access_key,
        "SessionToken": made.session_token,
        "Expiration": made.expires,
    }


def _tags(request: Request) -> dict[str, str]:
    listed = request.get("Tags") or []
    tags = {tag["Key"]: tag["Value"] for tag in listed}
    if len({key.lower() for key in tags}) != len(listed):
        raise ValidationFault("Duplicate tag keys found. Tag keys must be unique.", code="ValidationError")
    return tags


def _policy_arns(request: Request) -> list[str]:
    return [entry["arn"] for entry in request.get("PolicyArns") or () if entry.get("arn")]


def _refuse_token_size(request: Request) -> None:
    if request.get("MinimumSessionTokenSize"):
        raise ValidationFault("MinimumSessionTokenSize is not supported: leave it out", code="ValidationError")


def _asked(request: Request, name: str, pattern: re.Pattern[str], member: str) -> AssumeRole:
    """What a request for a session says. Raises ValidationFault for a bad name."""
    _refuse_token_size(request)
    if not pattern.fullmatch(name):
        raise ValidationFault(
            f"{member} is {name[:80]!r}; expected it to match {pattern.pattern}", code="ValidationError"
        )
    return AssumeRole(
        role_arn=request.get("RoleArn") or "",
        session_name=name,
        duration_s=request.get("DurationSeconds"),
        tags=_tags(request),
        transitive=frozenset(request.get("TransitiveTagKeys") or ()),
        policy=request.get("Policy"),
        policy_arns=_policy_arns(request),
        external_id=request.get("ExternalId"),
        source_identity=request.get("SourceIdentity"),
        serial_number=request.get("SerialNumber"),
        token_code=request.get("TokenCode"),
    )


def _noted(call: Call, session: Session) -> None:
    call.resources.append((session.issuer_arn, "AWS::IAM::Role"))
    call.details["label"] = session.label.canonical


def _assumed(made: TemporaryCredential) -> dict[str, Any]:
    session = made.session
    return {
        "Credentials": _credentials(made),
        "AssumedRoleUser": {"AssumedRoleId": session.principal_id, "Arn": session.principal_arn},
        "PackedPolicySize": made.packed or None,
        "SourceIdentity": session.source_identity or None,
    }


class Sts(Provider):
    """The STS service of one enclave."""

    service: ClassVar[str] = "sts"
    prompt: ClassVar[frozenset[str]] = frozenset(("GetCallerIdentity",))
    anywhere: ClassVar[frozenset[str]] = frozenset(("GetCallerIdentity",))
    unauthorized: ClassVar[frozenset[str]] = frozenset(
        (
            *("GetCallerIdentity", "AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity"),
            *("GetSessionToken", "GetFederationToken"),
        )
    )
    unsigned: ClassVar[frozenset[str]] = frozenset(("AssumeRoleWithSAML", "AssumeRoleWithWebIdentity"))

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def get_caller_identity(self, call: Call, _request: Request) -> dict[str, Any]:
        session = call.session
        return {"UserId": session.principal_id, "Account": session.account, "Arn": session.principal_arn}

    def assume_role(self, call: Call, request: Request) -> dict[str, Any]:
        asked = _asked(request, request["RoleSessionName"], _SESSION_NAME, "RoleSessionName")
        made = self.identity.assume_role(call.session, asked)
        _noted(call, made.session)
        return _assumed(made)

    def assume_role_with_web_identity(self, call: Call, request: Request) -> dict[str, Any]:
        asked = _asked(request, request["RoleSessionName"], _SESSION_NAME, "RoleSessionName")
        made, identity = self.identity.assume_role_with_web_identity(asked, request["WebIdentityToken"])
        _noted(call, made.session)
        call.details["identity"] = {"provider": identity.provider_arn, "subject": identity.subject}
        return {
            **_assumed(made),
            "SubjectFromWebIdentityToken": identity.subject,
            "Provider": identity.provider_arn,
            "Audience": identity.audience,
        }

    def assume_role_with_saml(self, call: Call, request: Request) -> dict[str, Any]:
        _refuse_token_size(request)
        asked = AssumeRole(
            role_arn=request["RoleArn"],
            session_name="",  # the assertion's
            duration_s=request.get("DurationSeconds"),
            policy=request.get("Policy"),
            policy_arns=_policy_arns(request),
        )
        made, identity = self.identity.assume_role_with_saml(asked, request["PrincipalArn"], request["SAMLAssertion"])
        _noted(call, made.session)
        call.details["identity"] = {"provider": identity.provider_arn, "subject": identity.subject}
        return {
            **_assumed(made),
            "Subject": identity.subject,
            "SubjectType": identity.subject_type or None,
            "Issuer": identity.issuer,
            "Audience": identity.audience,
            "NameQualifier": identity.name_qualifier,
        }

    def get_session_token(self, call: Call, request: Request) -> dict[str, Any]:
        _refuse_token_size(request)
        made = self.identity.session_token(
            call.session, request.get("DurationSeconds"), request.get("SerialNumber"), request.get("TokenCode")
        )
        return {"Credentials": _credentials(made)}

    def get_federation_token(self, call: Call, request: Request) -> dict[str, Any]:
        asked = _asked(request, request["Name"], _FEDERATED_NAME, "Name")
        made = self.identity.federation_token(call.session, asked)
        session = made.session
        return {
            "Credentials": _credentials(made),
            "FederatedUser": {"FederatedUserId": session.principal_id, "Arn": session.principal_arn},
            "PackedPolicySize": made.packed or None,
        }

    def decode_authorization_message(self, call: Call, request: Request) -> dict[str, Any]:
        return {"DecodedMessage": self.identity.decode_message(call.session, request["EncodedMessage"])}

    def get_access_key_info(self, call: Call, request: Request) -> dict[str, Any]:
        key_id = request["AccessKeyId"]
        known = call.records_of(entities.SERVICE).get(entities.ACCESS_KEY, key_id)
        if known is None and key_id != call.session.access_key_id:
            raise ValidationFault(f"{key_id} is not an access key of this account", code="ValidationError")
        return {"Account": call.session.account}
