"""Sessions for who comes with a SAML assertion of a registered identity provider (AssumeRoleWithSAML).

Invariants:
- Nothing of a response is believed but the one assertion that a registered key of the provider signed, of the role's
  own account; it is read from the signed octets.
- An assertion opens one session: its ID is spent, durably, before credentials are made.
- The provider's word about labels is taken up to the clearance tag of its record, and who asks is nobody at the lowest
  label, as with identity tokens (`federation`).
- A session ends with the session at the identity provider (SessionNotOnOrAfter) and within SessionDuration.

Source: STS API reference AssumeRoleWithSAML; IAM user guide "SAML 2.0 federation"; SAML 2.0 profiles 4.1.4.5.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, AuthenticationFailed, Conflict, NotImplementedYet, Throttled
from honmaru.core.labels import BOTTOM
from honmaru.ports.assertions import AssertionVerifier
from honmaru.security.guard import Record
from honmaru.security.identity import entities, saml
from honmaru.security.identity.credentials import AssumeRole, TemporaryCredential
from honmaru.security.identity.directory import Principal
from honmaru.security.identity.sessions import (
    Sessions,
    account_of,
    check_session_tags,
    joined,
    packed_size,
    parsed_label,
)
from honmaru.security.policy import Caller, Effect

_ATTEMPTS = 20
_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")


@dataclass(frozen=True, slots=True)
class SamlIdentity:
    """What a verified assertion says of its bearer, as STS answers it."""

    provider_arn: str
    issuer: str
    audience: str
    subject: str
    subject_type: str
    name_qualifier: str


class SamlFederation(Sessions):
    """See the module."""

    assertions: AssertionVerifier | None

    def assume_role_with_saml(
        self, request: AssumeRole, principal_arn: str, response: str
    ) -> tuple[TemporaryCredential, SamlIdentity]:
        """Temporary credentials of a role that trusts the assertion's provider, at the label that its tags state.

        `response` is the SAML response in base64. Raises AuthenticationFailed (InvalidIdentityToken,
        ExpiredTokenException, IDPRejectedClaim), AccessDenied, ValidationFault, NotImplementedYet.
        """
        denied = AccessDenied("Not authorized to perform sts:AssumeRoleWithSAML")
        provider = self._saml_provider(principal_arn)
        if provider is None or request.role_arn.split(":", 5)[4:5] != [provider.account]:
            raise saml.invalid("the provider and the role are not in one account that knows the provider")
        assertion = self._asserted(provider, response)
        if {(request.role_arn, principal_arn), (principal_arn, request.role_arn)}.isdisjoint(assertion.roles):
            raise saml.invalid("it names no such pair of role and provider in its attribute Role")
        request = _stated(request, assertion)
        label = parsed_label(request.tags[entities.LABEL_TAG]) if entities.LABEL_TAG in request.tags else BOTTOM
        identity = _identity(provider, principal_arn, assertion)
        role = self.principal_by_arn(request.role_arn, BOTTOM)
        if role is None or role.kind != entities.ROLE or not self._lets_in(role, identity, assertion, request):
            raise denied
        chain = (
            (entities.SAML_PROVIDER, provider.name, provider.body["id"], provider.account),
            (entities.ROLE, role.name, role.id, account_of(role)),
        )
        if not self.chain_holds(chain, label, label):
            raise denied
        packed = packed_size(request)
        session = replace(
            self._role_session(role, label, request.session_name, f"{principal_arn}/{identity.subject}"),
            session_policy=self._session_policy(request, provider.account, BOTTOM),
            tags=request.tags,
            transitive_tags=request.transitive,
            source_identity=request.source_identity or "",
            chain=chain,
            federated_provider=principal_arn,
            networks=joined(role.networks, request.tags.get(entities.NETWORK_TAG, "")),
        )
        duration_s = self._length(role, request, assertion)
        self._redeem(provider, assertion)
        return self.issue(session, duration_s, packed), identity

    def _saml_provider(self, arn: str) -> Record | None:
        parts = arn.split(":", 5)
        if len(parts) != 6 or parts[:3] != ["arn", self.partition, "iam"] or not self.organization.known(parts[4]):
            return None
        kind, _, name = parts[5].partition("/")
        if kind != entities.SAML_PROVIDER or not name:
            return None
        return self.directories.of(parts[4]).visible(entities.SAML_PROVIDER, name, BOTTOM)

    def _asserted(self, provider: Record, response: str) -> saml.Assertion:
        """The assertion in a response, once its signature and everything in it but role and trust was checked."""
        if self.assertions is None:
            raise NotImplementedYet("this enclave reads no SAML responses")
        metadata, now = saml.read_metadata(provider.body["metadata"]), self.clock.now()
        if metadata.valid_until is not None and now >= saml.moment(metadata.valid_until):
            raise AuthenticationFailed("The metadata of the provider has expired", code="ExpiredTokenException")
        try:
            octets = base64.b64decode("".join(response.split()), validate=True)
        except (binascii.Error, ValueError):
            raise saml.invalid("not base64") from None
        signed = self.assertions.signed_assertion(octets, metadata.certificates, now)
        assertion = saml.read(
            signed,
            now,
            accepted=saml.audiences(self.partition),
            sent_to=saml.recipients(self.partition, self._ceiling.dns_suffix, self.region),
        )
        if assertion.issuer != metadata.entity:
            raise saml.invalid("Issuer not present in specified provider")
        return assertion

    def _lets_in(self, role: Principal, identity: SamlIdentity, assertion: saml.Assertion, request: AssumeRole) -> bool:
        """Whether the role's trust policy lets the bearer of an assertion in."""
        context: dict[str, Any] = {
            **assertion.keys,
            "saml:aud": assertion.recipient,
            "saml:iss": assertion.issuer,
            "saml:sub": assertion.subject,
            "saml:sub_type": assertion.subject_type or None,
            "saml:namequalifier": identity.name_qualifier,
            "saml:doc": f"{account_of(role)}/{identity.provider_arn.rpartition('/')[2]}",
            "aws:currenttime": self.clock.now(),
            "aws:federatedprovider": identity.provider_arn,
            "sts:rolesessionname": request.session_name,
            "sts:sourceidentity": request.source_identity,
            "sts:transitivetagkeys": sorted(request.transitive),
            "aws:tagkeys": sorted(request.tags),
            **{f"aws:requesttag/{key.lower()}": value for key, value in request.tags.items()},
        }
        needed = ["sts:AssumeRoleWithSAML"]
        if set(request.tags) - {entities.LABEL_TAG, entities.NETWORK_TAG} or request.transitive:
            needed.append("sts:TagSession")
        if request.source_identity is not None:
            needed.append("sts:SetSourceIdentity")
        trust, who = role.trust, Caller(federated=identity.provider_arn)
        if trust is None or any(trust.evaluate(a, "*", context, who).effect is not Effect.ALLOWED for a in needed):
            return False
        rcps = self.organization.controls(account_of(role), BOTTOM).rcps
        return all(level.evaluate(needed[0], role.arn, context).effect is Effect.ALLOWED for level in rcps)

    def _length(self, role: Principal, request: AssumeRole, assertion: saml.Assertion) -> int:
        """Seconds of the session: what was asked, within what the identity provider allows. Raises ValidationFault."""
        asked = request.duration_s if request.duration_s is not None else assertion.duration_s
        wanted = self._duration(None, role, asked)
        if assertion.duration_s is not None:
            wanted = min(wanted, assertion.duration_s)
        if assertion.session_ends is not None:
            wanted = min(wanted, int((assertion.session_ends - self.clock.now()).total_seconds()))
        return max(1, wanted)

    def _redeem(self, provider: Record, assertion: saml.Assertion) -> None:
        """Spend an assertion, durably. Raises AuthenticationFailed for one that was spent.

        The IDs lie in 256 records of the account, each of which drops what has ended when it is next written, so
        their size is bounded by the sign-ins of five minutes.
        """
        spent = hashlib.sha256(f"{provider.body['id']} {assertion.id}".encode()).hexdigest()
        name, now = f"saml:{spent[:2]}", self.clock.now()
        trusted = self.directories.of(provider.account).trusted
        for _ in range(_ATTEMPTS):
            found = next(
                (r for r in trusted.get(entities.USED, name, account=provider.account) if r.label == BOTTOM), None
            )
            kept = _unended(found.body["spent"] if found is not None else {}, now)
            if spent in kept:
                raise saml.invalid("it was used before")
            body = {"spent": {**kept, spent: assertion.ends.isoformat()}}
            try:
                if found is None:
                    trusted.create(provider.account, BOTTOM, entities.USED, name, body)
                else:
                    trusted.update(found, body)
            except Conflict:
                continue  # somebody signed in at the same moment
            return
        raise Throttled("Too many sign-ins at once; try again")


def _unended(spent: Mapping[str, str], now: datetime) -> dict[str, str]:
    return {key: ends for key, ends in spent.items() if datetime.fromisoformat(ends) > now}


def _stated(request: AssumeRole, assertion: saml.Assertion) -> AssumeRole:
    """The request with what the assertion says of the session. Raises AuthenticationFailed, ValidationFault."""
    tags = dict(assertion.tags)
    if len({key.lower() for key in tags}) != len(tags):
        raise saml.invalid("two PrincipalTag attributes whose keys differ in case alone")
    if not assertion.transitive <= set(tags):
        raise saml.invalid("TransitiveTagKeys names a tag that it does not state")
    check_session_tags(tags)
    for name, value in (("RoleSessionName", assertion.session_name), ("SourceIdentity", assertion.source_identity)):
        if value is not None and not _NAME.fullmatch(value):
            raise saml.invalid(f"{name} must match {_NAME.pattern}")
    return replace(
        request,
        session_name=assertion.session_name,
        tags=tags,
        transitive=assertion.transitive,
        source_identity=assertion.source_identity,
    )


def _identity(provider: Record, arn: str, assertion: saml.Assertion) -> SamlIdentity:
    qualified = f"{assertion.issuer}{provider.account}/{provider.name}".encode()
    return SamlIdentity(
        provider_arn=arn,
        issuer=assertion.issuer,
        audience=assertion.recipient,
        subject=assertion.subject,
        subject_type=assertion.subject_type,
        name_qualifier=base64.b64encode(hashlib.sha1(qualified, usedforsecurity=False).digest()).decode(),
    )
