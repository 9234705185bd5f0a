"""Sessions for who comes with an identity token of a registered OpenID Connect issuer (AssumeRoleWithWebIdentity).

Invariants:
- Nothing of a token is believed before its signature verifies with a key of the issuer that it names, and that issuer
  is a provider of the role's own account, for an audience that the provider lists.
- The issuer's word about labels is taken up to the clearance tag of its provider, which only somebody who holds that
  clearance can set; without one it opens sessions at the lowest label only.
- Who asks is nobody, at the lowest label: provider, role and session policies are those that are seen there, so an
  unverified token learns nothing of what lies above, and the ledger's lowest log names nothing that does.
- An issuer is asked for its keys at most once a minute, whoever brings how many tokens.

Source: STS API reference AssumeRoleWithWebIdentity; IAM user guide "OIDC federation"; RFC 8725.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from honmaru.core.errors import AccessDenied, AuthenticationFailed, StoreUnavailable, ValidationFault
from honmaru.core.labels import BOTTOM
from honmaru.ports.issuers import IssuerKeys
from honmaru.security.guard import Record
from honmaru.security.identity import entities, jwt
from honmaru.security.identity.credentials import AssumeRole, TemporaryCredential, WebIdentity
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

_ASK_EVERY_S = 60.0
_TAGS_CLAIM = "https://aws.amazon.com/tags"


class Federation(Sessions):
    """See the module."""

    issuer_keys: IssuerKeys | None
    _published: dict[str, tuple[float, list[Mapping[str, Any]]]]

    def assume_role_with_web_identity(
        self, request: AssumeRole, token_text: str
    ) -> tuple[TemporaryCredential, WebIdentity]:
        """Temporary credentials of a role that trusts the token's issuer, at the label that the token's tags state.

        Raises AuthenticationFailed (InvalidIdentityToken, ExpiredTokenException, IDPCommunicationError), AccessDenied,
        ValidationFault.
        """
        token = jwt.read(token_text)
        tags, transitive = _session_tags(token.claims)
        request = replace(request, tags=tags, transitive=transitive)
        check_session_tags(tags)
        stated = tags.get(entities.LABEL_TAG)
        label = BOTTOM if stated is None else parsed_label(stated)
        denied = AccessDenied("Not authorized to perform sts:AssumeRoleWithWebIdentity")
        parts = request.role_arn.split(":", 5)
        account = parts[4] if len(parts) == 6 else ""
        provider = self._provider(account, str(token.claims.get("iss", "")))
        if provider is None:
            raise jwt.invalid("No OpenIDConnect provider found in your account for the issuer of the token")
        identity = self._verified(provider, token)
        role = self.principal_by_arn(request.role_arn, BOTTOM)
        if role is None or role.kind != entities.ROLE or not self._admits(role, identity, token, request):
            raise denied
        chain = (
            (entities.OIDC_PROVIDER, provider.name, provider.body["id"], account),
            (entities.ROLE, role.name, role.id, account_of(role)),
        )
        if not self.chain_holds(chain, label, label):
            raise denied
        packed = packed_size(request)
        duration_s = self._duration(None, role, request.duration_s)
        session = replace(
            self._role_session(role, label, request.session_name, f"{identity.provider_arn}/{identity.subject}"),
            session_policy=self._session_policy(request, account, BOTTOM),
            tags=tags,
            transitive_tags=transitive,
            source_identity=request.source_identity or "",
            chain=chain,
            federated_provider=identity.provider_arn,
            networks=joined(role.networks, tags.get(entities.NETWORK_TAG, "")),
        )
        return self.issue(session, duration_s, packed), identity

    def _provider(self, account: str, issuer: str) -> Record | None:
        if not issuer.startswith("https://") or not self.organization.known(account):
            return None
        return self.directories.of(account).visible(entities.OIDC_PROVIDER, issuer.removeprefix("https://"), BOTTOM)

    def _verified(self, provider: Record, token: jwt.Token) -> WebIdentity:
        """Who the token is about, once everything about it was checked."""
        claims, body = token.claims, provider.body
        issuer = f"https://{provider.name}"
        try:
            jwt.verify(token, self._keys_of(provider, issuer, fresh=False))
        except AuthenticationFailed:
            # The issuer may have new keys.
            jwt.verify(token, self._keys_of(provider, issuer, fresh=True))
        jwt.check_times(claims, self.now_s())
        audiences = claims.get("aud")
        listed = [audiences] if isinstance(audiences, str) else audiences if isinstance(audiences, list) else []
        authorized = claims.get("azp")
        audience = authorized if isinstance(authorized, str) else next((str(each) for each in listed), "")
        if audience not in body["clients"]:
            raise jwt.invalid("Incorrect token audience")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 1 <= len(subject) <= 255:
            raise jwt.invalid("Missing a required claim: sub")
        arn = f"arn:{self.partition}:iam::{provider.account}:oidc-provider/{provider.name}"
        return WebIdentity(arn, issuer, audience, subject)

    def _keys_of(self, provider: Record, issuer: str, *, fresh: bool) -> list[Mapping[str, Any]]:
        now = self.clock.monotonic()
        key = f"{provider.account}/{provider.body['id']}/{provider.version}"
        asked, keys = self._published.get(key, (now - _ASK_EVERY_S, []))
        if (fresh or not keys) and now - asked >= _ASK_EVERY_S:
            self._published[key] = (now, keys)
            try:
                if self.issuer_keys is None:
                    raise StoreUnavailable("this enclave asks no issuers")
                keys = self.issuer_keys.fetch(issuer, provider.body["thumbprints"])
            except StoreUnavailable:
                if not keys:
                    raise AuthenticationFailed(
                        "Couldn't retrieve verification key from your identity provider", code="IDPCommunicationError"
                    ) from None
            self._published[key] = (now, keys)
        return keys

    def _admits(self, role: Principal, identity: WebIdentity, token: jwt.Token, request: AssumeRole) -> bool:
        """Whether the role's trust policy lets the token's bearer in."""
        if role.trust is None:
            return False
        who = Caller(federated=identity.provider_arn)
        prefix = identity.issuer.removeprefix("https://").lower()
        context: dict[str, Any] = {
            **{f"{prefix}:{name}": value for name, value in _plain(token.claims)},
            f"{prefix}:aud": identity.audience,
            f"{prefix}:sub": identity.subject,
            f"{prefix}:amr": token.claims.get("amr"),
            "aws:currenttime": self.clock.now(),
            "aws:federatedprovider": identity.provider_arn,
            "sts:rolesessionname": request.session_name,
            "sts:transitivetagkeys": sorted(request.transitive),
            "aws:tagkeys": sorted(request.tags),
            **{f"aws:requesttag/{key.lower()}": value for key, value in request.tags.items()},
        }
        needed = ["sts:AssumeRoleWithWebIdentity"]
        if set(request.tags) - {entities.LABEL_TAG, entities.NETWORK_TAG} or request.transitive:
            needed.append("sts:TagSession")
        trust = role.trust
        if not all(trust.evaluate(action, "*", context, who).effect is Effect.ALLOWED for action in needed):
            return False
        rcps = self.organization.controls(account_of(role), BOTTOM).rcps
        return all(level.evaluate(needed[0], role.arn, context).effect is Effect.ALLOWED for level in rcps)


def _plain(claims: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Claims as condition keys, which fold case: of two that differ in case alone neither counts."""
    folded = Counter(name.lower() for name in claims)
    return [
        (name.lower(), value) for name, value in claims.items() if isinstance(value, str) and folded[name.lower()] == 1
    ]


def _session_tags(claims: Mapping[str, Any]) -> tuple[dict[str, str], frozenset[str]]:
    """The session tags in a token, and which of them are transitive. Raises AuthenticationFailed for other shapes."""
    stated = claims.get(_TAGS_CLAIM)
    if stated is None:
        return {}, frozenset()
    tags: dict[str, str] = {}
    listed = stated.get("principal_tags", {}) if isinstance(stated, dict) else None
    transitive = stated.get("transitive_tag_keys", []) if isinstance(stated, dict) else None
    if not isinstance(listed, dict) or not isinstance(transitive, list):
        raise jwt.invalid(f"The claim {_TAGS_CLAIM} is malformed")
    for key, value in listed.items():
        values = value if isinstance(value, list) else [value]
        if len(values) != 1 or not isinstance(values[0], str):
            raise ValidationFault(f"The session tag {key[:128]!r} must have one value", code="ValidationError")
        tags[key] = values[0]
    return tags, frozenset(str(key) for key in transitive)
