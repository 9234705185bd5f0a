"""The authenticator and the policy decision point of an enclave.

Invariants:
- A session's label is held by every principal of its chain (the user's clearance, the role's where it has one) and
  permitted by the ceiling; this is checked when a credential is first used and again after every change of IAM.
- A session made from another dominates it: a subject never lowers itself. Lower work needs a key bound lower.
- A key that is inactive or gone, or a principal that is gone or no longer cleared, ends every session behind it at
  once: also those of session tokens (stricter than AWS).
- A key made over the API opens nothing, and is raised to nothing, that its maker was not cleared for: who may make
  keys for others (a matter of policy) does not thereby gain their clearance.
- A session that nobody's key stands behind (what the code of a job signs with) is raised to nothing and grants no
  clearance: its role may be cleared for more than the person who started the job.
- `human` is set from the user behind the chain, never from what a caller states.
- Unknown, inactive and uncleared credentials are refused with the same words.

Source: IAM user guide "Policy evaluation logic"; STS API reference; NIST SP 800-207 (policy decision point).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from honmaru.core.clearances import Clearance, ceiling_permits, may_hold
from honmaru.core.errors import AccessDenied, AuthenticationFailed, Conflict, NotFound, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.partitions import partition_of
from honmaru.core.sessions import Session
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.guard import Guard, Record
from honmaru.security.identity import entities
from honmaru.security.identity.credentials import AssumeRole, Credential, TemporaryCredential, refusal
from honmaru.security.identity.directory import Directory, Principal
from honmaru.security.identity.managed import managed_arn
from honmaru.security.identity.resources import Resources
from honmaru.security.identity.tokens import OpenedToken, open_token, seal_token
from honmaru.security.policy import Caller, Decision, Effect, PolicySet, compile_policy, decide
from honmaru.security.policy.documents import merge_policies

ADMIN = "admin"
_BEARER_PREFIX = "honmaru-"
_MIN_SESSION_S, _MAX_SESSION_S, _CHAINED_SESSION_S = 900, 129600, 3600


class Identity:
    """Credentials, sessions and authorisation of one enclave's account. Thread-safe; no database on the hot path."""

    def __init__(
        self,
        guard: Guard,
        *,
        partition: str,
        region: str,
        account: str,
        clock: Clock,
        ids: Ids,
        keyring: Keyring,
    ) -> None:
        self.partition = partition
        self.region = region
        self.account = account
        self.clock = clock
        self.ids = ids
        self._keyring = keyring
        self._ceiling = partition_of(region)
        self.directory = Directory(guard, partition=partition, account=account)
        self.resources = Resources(guard)

    # Who is it?

    def credential(self, access_key_id: str, session_token: str | None) -> Credential:
        """The secret and session of an access key, or of a temporary key with its token.

        Raises AuthenticationFailed: unknown, inactive, expired, or no longer cleared for its label.
        """
        if session_token is None:
            return self.directory.cached(("key", access_key_id), lambda: self._long_term(access_key_id))
        opened = self.directory.cached(
            ("token", access_key_id, session_token), lambda: self._temporary(access_key_id, session_token)
        )
        if self.clock.now() >= opened.expires:
            raise AuthenticationFailed("The security token included in the request is expired", code="ExpiredToken")
        return Credential(access_key_id, opened.secret, opened.session)

    def bearer(self, token: str) -> Session:
        """The session of a bearer key. Raises AuthenticationFailed."""
        key_id, _, secret = token.removeprefix(_BEARER_PREFIX).partition("-")
        if not token.startswith(_BEARER_PREFIX) or not key_id or not secret:
            raise _unknown()
        known = self.directory.cached(("bearer", key_id), lambda: self._key(entities.BEARER_KEY, key_id))
        if not hmac.compare_digest(known.secret_access_key.encode(), secret.encode()):
            raise _unknown()
        return known.session

    def _long_term(self, access_key_id: str) -> Credential:
        return self._key(entities.ACCESS_KEY, access_key_id)

    def _key(self, kind: str, key_id: str) -> Credential:
        records = self.directory.records(kind, key_id)
        if len(records) != 1 or records[0].state != entities.ACTIVE:
            raise _unknown()
        record = records[0]
        body = record.body
        label = Label.decode(body["label"])
        user = self.directory.principal(entities.USER, body["user"], label, body["user_id"])
        chain = ((kind, key_id, ""), (entities.USER, body["user"], body["user_id"]))
        if user is None or not label.dominates(record.label) or not self._chain_holds(chain, label, label):
            raise _unknown()
        return Credential(key_id, body["secret"], self._user_session(user, label, key_id, chain))

    def _user_session(
        self, user: Principal, label: Label, key_id: str, chain: tuple[tuple[str, str, str], ...]
    ) -> Session:
        return Session(
            account=self.account,
            partition=self.partition,
            region=self.region,
            principal_arn=user.arn,
            principal_id=user.id,
            kind="user",
            label=label,
            issuer_arn=user.arn,
            access_key_id=key_id,
            human=user.arn,
            chain=chain,
        )

    def _temporary(self, access_key_id: str, session_token: str) -> OpenedToken:
        opened = open_token(self._keyring, self.account, session_token)
        session = opened.session
        if not hmac.compare_digest(session.access_key_id.encode(), access_key_id.encode()):
            raise _unknown()
        if not self._chain_holds(session.chain, session.label, session.label):
            raise _unknown()
        return opened

    def _holds(self, principal: Principal, label: Label) -> bool:
        cleared = principal.clearance is None or may_hold(principal.clearance, label)
        return cleared and ceiling_permits(self._ceiling, label)

    def _chain_holds(self, chain: Sequence[tuple[str, str, str]], at: Label, label: Label) -> bool:
        """Whether everything behind a session at `at` remains, and is cleared for `label`."""
        for kind, name, unique_id in chain:
            if kind in (entities.ACCESS_KEY, entities.BEARER_KEY):
                keys = self.directory.records(kind, name)
                if len(keys) != 1 or keys[0].state != entities.ACTIVE:
                    return False
                if not all(may_hold(Clearance.parse(limit), label) for limit in keys[0].body.get("limits", ())):
                    return False
                continue
            principal = self.directory.principal(kind, name, at, unique_id)
            if principal is None or not self._holds(principal, label):
                return False
        return ceiling_permits(self._ceiling, label)

    # What may it do?

    def authorize(self, session: Session, action: str, resource_arn: str, context: Mapping[str, Any]) -> Decision:
        """What IAM says of one request. Never raises for a refusal; see `require`.

        `context` holds the request's condition keys; the session's own (aws:PrincipalArn, aws:SourceIp,
        honmaru:SessionLabel ...) are added here and win over it.
        """
        if resource_arn.startswith("arn:") and resource_arn.split(":", 2)[1] != self.partition:
            return Decision(Effect.EXPLICIT_DENY, "partition", (), "")
        principal = self._principal_of(session)
        if principal is None:
            return Decision(Effect.IMPLICIT_DENY, "identity", (), "")
        session_policy = None if session.session_policy is None else compile_policy(session.session_policy, "session")
        return decide(
            action,
            resource_arn,
            self._context(session, principal, context),
            identity=principal.policies,
            boundary=principal.boundary,
            session=session_policy,
        )

    def require(self, session: Session, action: str, resource_arn: str, context: Mapping[str, Any]) -> str:
        """The account of the resource, "" where none is known: the request acts in that account.

        Raises AccessDenied, worded as AWS words it, unless IAM allows the request.
        """
        decision = self.authorize(session, action, resource_arn, context)
        if not decision.allowed:
            raise AccessDenied(refusal(session, action, resource_arn, decision))
        resource = self.resources.find(resource_arn, session.label)
        return "" if resource is None else resource.account

    def _principal_of(self, session: Session) -> Principal | None:
        kind = {"user": entities.USER, "assumed-role": entities.ROLE}.get(session.kind)
        if kind is None:
            return None
        name = session.issuer_arn.rpartition("/")[2]
        return self.directory.principal(kind, name, session.label, session.principal_id.partition(":")[0])

    def _context(self, session: Session, principal: Principal | None, context: Mapping[str, Any]) -> dict[str, Any]:
        now = self.clock.now()
        full: dict[str, Any] = {key.lower(): value for key, value in context.items()}
        full |= {
            "aws:currenttime": now,
            "aws:epochtime": int(now.timestamp()),
            "aws:principalaccount": session.account,
            "aws:principalarn": session.issuer_arn,
            "aws:principaltype": "AssumedRole" if session.kind == "assumed-role" else "User",
            "aws:requestedregion": session.region,
            "aws:securetransport": session.secure_transport,
            "aws:sourceip": session.source_ip,
            "aws:useragent": session.user_agent or None,
            "aws:userid": session.principal_id,
            "aws:username": session.issuer_arn.rpartition("/")[2] if session.kind == "user" else None,
            "aws:sourceidentity": session.source_identity or None,
            "honmaru:sessionlabel": session.label.banner,
            "honmaru:sessionlevel": session.label.level,
        }
        tags = {**(principal.tags if principal else {}), **session.tags}
        full |= {f"aws:principaltag/{key.lower()}": value for key, value in tags.items()}
        return full

    def clearances_behind(self, session: Session) -> list[str]:
        """The clearances, as text, of everybody behind a session; a role without one adds none.

        A key that this session makes carries them as its limits. Someone who is gone counts as cleared for nothing.
        """
        texts: list[str] = []
        for kind, name, unique_id in session.chain:
            if kind in (entities.ACCESS_KEY, entities.BEARER_KEY):
                texts += [
                    text for record in self.directory.records(kind, name) for text in record.body.get("limits", ())
                ]
                continue
            principal = self.directory.principal(kind, name, session.label, unique_id)
            text = None if principal is None else principal.tags.get(entities.CLEARANCE_TAG)
            if text is not None:
                texts.append(text)
            elif principal is None or kind == entities.USER:
                texts.append("UNCLASSIFIED")
        if not _signed_in(session):
            texts.append("UNCLASSIFIED")
        return list(dict.fromkeys(texts))

    def may_grant(self, session: Session, clearance: Clearance) -> bool:
        """Whether everybody behind the session covers a clearance: nobody grants what they do not hold."""
        return all(Clearance.parse(text).covers(clearance) for text in self.clearances_behind(session))

    def simulate(
        self,
        principal_arn: str,
        at: Label,
        action: str,
        resource_arn: str,
        context: Mapping[str, Any],
        more: Sequence[PolicySet] = (),
    ) -> Decision:
        """What IAM would say of a request of a user or role, as a session at `at` sees its policies, with `more` added.

        Raises NotFound when there is no such principal at or below `at`.
        """
        principal = self.principal_by_arn(principal_arn, at)
        if principal is None:
            raise NotFound(f"The entity {principal_arn} cannot be found.", code="NoSuchEntity")
        lowered = {key.lower(): value for key, value in context.items()}
        lowered.setdefault("aws:principalarn", principal.arn)
        if principal.kind == entities.USER:
            lowered.setdefault("aws:username", principal.name)
        policies = PolicySet.union([principal.policies, *more]) if more else principal.policies
        return decide(action, resource_arn, lowered, identity=policies, boundary=principal.boundary)

    def principal_by_arn(self, principal_arn: str, at: Label) -> Principal | None:
        """The visible user or role of exactly that ARN."""
        resource = principal_arn.rpartition(":")[2]
        kind, _, rest = resource.partition("/")
        if kind not in (entities.USER, entities.ROLE) or not rest:
            return None
        principal = self.directory.principal(kind, rest.rpartition("/")[2], at)
        return principal if principal is not None and principal.arn == principal_arn else None

    # Sessions out of sessions

    def assume_role(self, caller: Session, request: AssumeRole) -> TemporaryCredential:
        """Temporary credentials of a role.

        Label: the session tag `honmaru:label`, else the caller's label. It must dominate the caller's label, be held
        by everybody in the chain and the role, and be permitted by the ceiling.
        Raises AccessDenied, also for a role that the caller cannot see; ValidationFault.
        """
        denied = AccessDenied(
            f"User: {caller.principal_arn} is not authorized to perform: sts:AssumeRole on resource: {request.role_arn}"
        )
        role = self.principal_by_arn(request.role_arn, caller.label)
        if role is None or role.kind != entities.ROLE or role.trust is None:
            raise denied
        if not self._trusted(caller, role, request):
            raise denied
        label = self._assumed_label(caller, role, request)
        duration_s = self._duration(caller, role, request.duration_s)
        if caller.source_identity and request.source_identity not in (None, caller.source_identity):
            raise denied
        passed = {key: caller.tags[key] for key in caller.transitive_tags if key in caller.tags}
        if any(key in passed for key in request.tags):
            raise ValidationFault(
                "A session tag that is transitive in this session cannot be set again", code="ValidationError"
            )
        session = replace(
            self._role_session(role, label, request.session_name, caller.human),
            session_policy=self._session_policy(request, label),
            tags={**request.tags, **passed},
            transitive_tags=frozenset(passed) | request.transitive,
            source_identity=request.source_identity or caller.source_identity,
            chain=(*caller.chain, (entities.ROLE, role.name, role.id)),
        )
        return self._issue(session, duration_s)

    def session_token(self, caller: Session, duration_s: int | None) -> TemporaryCredential:
        """Temporary credentials of the calling user, at the label of the key. Raises AccessDenied, ValidationFault."""
        if caller.kind != "user" or not caller.chain or caller.access_key_id != caller.chain[0][1]:
            raise AccessDenied("Cannot call GetSessionToken with session credentials")
        wanted = 43200 if duration_s is None else duration_s
        if not _MIN_SESSION_S <= wanted <= _MAX_SESSION_S:
            raise ValidationFault(
                f"DurationSeconds is {wanted}; expected {_MIN_SESSION_S} to {_MAX_SESSION_S}", code="ValidationError"
            )
        return self._issue(replace(caller, source_ip=None, user_agent=""), wanted)

    def service_session(
        self, role_arn: str, *, label: Label, service: str, session_name: str, human: str, account: str
    ) -> Session:
        """A session of a role for the platform's own work on somebody's behalf (a training job, an import).

        `service` is "sagemaker" or "sagemaker.amazonaws.com"; the role's trust policy must allow it.
        Raises ValidationFault when the role is not visible at `label`, does not trust the service, or is not cleared.
        """
        principal_name = service if "." in service else f"{service}.amazonaws.com"
        role = self.principal_by_arn(role_arn, label) if account == self.account else None
        trusted = (
            role is not None
            and role.trust is not None
            and role.trust.evaluate("sts:AssumeRole", "*", {}, Caller(service=principal_name)).effect is Effect.ALLOWED
        )
        if role is None or not trusted:
            raise ValidationFault(
                f"Could not assume role {role_arn}. Please ensure that the role exists and allows principal "
                f"'{principal_name}' to assume the role."
            )
        if not self._holds(role, label):
            raise ValidationFault(
                f"Could not assume role {role_arn}: the role or this enclave is not cleared for {label.banner}. "
                f"Use a role whose {entities.CLEARANCE_TAG} tag covers it."
            )
        return replace(
            self._role_session(role, label, session_name, human), chain=((entities.ROLE, role.name, role.id),)
        )

    def service_credential(self, session: Session, duration_s: int) -> TemporaryCredential:
        """Keys for a session that `service_session` made: what the code of a hybrid job signs its requests with.

        They open exactly that session, at its label, and end with the role behind it.
        """
        return self._issue(session, duration_s)

    def _trusted(self, caller: Session, role: Principal, request: AssumeRole) -> bool:
        """The role's trust policy and the caller's own policies, as AWS combines them within one account."""
        trust = role.trust
        if trust is None:
            return False
        who = Caller(caller.principal_arn, caller.issuer_arn, caller.account, caller.partition)
        stated: dict[str, Any] = {
            "sts:externalid": request.external_id,
            "sts:rolesessionname": request.session_name,
            "sts:sourceidentity": request.source_identity,
            "sts:transitivetagkeys": sorted(request.transitive),
            "aws:tagkeys": sorted(request.tags),
            **{f"aws:requesttag/{key.lower()}": value for key, value in request.tags.items()},
        }
        context = self._context(caller, self._principal_of(caller), stated)
        needed = ["sts:AssumeRole"]
        # The tag that states the session's label is honmaru's and needs no sts:TagSession; every other tag does.
        if set(request.tags) - {entities.LABEL_TAG} or request.transitive:
            needed.append("sts:TagSession")
        if request.source_identity is not None:
            needed.append("sts:SetSourceIdentity")
        for action in needed:
            if trust.evaluate(action, "*", context, who).effect is not Effect.ALLOWED:
                return False
            decision = self.authorize(caller, action, role.arn, stated)
            named = caller.session_policy is None and trust.allows_exactly(action, context, who)
            if not decision.allowed and (decision.effect is Effect.EXPLICIT_DENY or not named):
                return False
        return True

    def _assumed_label(self, caller: Session, role: Principal, request: AssumeRole) -> Label:
        stated = request.tags.get(entities.LABEL_TAG)
        try:
            label = caller.label if stated is None else Label.parse(stated)
        except ValidationFault as fault:
            raise ValidationFault(
                f"The session tag {entities.LABEL_TAG}: {fault.message}", code="ValidationError"
            ) from None
        if not label.dominates(caller.label):
            raise AccessDenied(
                f"This session is at {caller.label.banner} and cannot become one at {label.banner}: a session never "
                "lowers itself; sign in with a key bound to the lower label"
            )
        if label != caller.label and not _signed_in(caller):
            raise AccessDenied(
                f"This session is at {caller.label.banner} and nobody's key stands behind it, so it cannot become one "
                f"at {label.banner}: sign in with a key to raise a session"
            )
        if not (self._holds(role, label) and self._chain_holds(caller.chain, caller.label, label)):
            raise AccessDenied(
                f"A session at {label.banner} is refused: the clearance of {caller.principal_arn}, that of "
                f"{role.arn}, or the ceiling of this enclave does not cover it"
            )
        return label

    def _duration(self, caller: Session, role: Principal, stated: int | None) -> int:
        wanted = _CHAINED_SESSION_S if stated is None else stated
        if wanted < _MIN_SESSION_S:
            raise ValidationFault(f"DurationSeconds is {wanted}; expected at least 900", code="ValidationError")
        if wanted > role.max_session_s:
            raise ValidationFault(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
                code="ValidationError",
            )
        if caller.kind == "assumed-role" and wanted > _CHAINED_SESSION_S:
            raise ValidationFault(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
                code="ValidationError",
            )
        return wanted

    def _session_policy(self, request: AssumeRole, label: Label) -> str | None:
        texts = [] if request.policy is None else [request.policy]
        for policy_arn in request.policy_arns:
            text = self.directory.policy_text(policy_arn, label)
            if text is None:
                raise ValidationFault(
                    f"The policy {policy_arn} does not exist or is not attachable.", code="ValidationError"
                )
            texts.append(text)
        return merge_policies(texts) if texts else None

    def _role_session(self, role: Principal, label: Label, session_name: str, human: str) -> Session:
        return Session(
            account=self.account,
            partition=self.partition,
            region=self.region,
            principal_arn=f"arn:{self.partition}:sts::{self.account}:assumed-role/{role.name}/{session_name}",
            principal_id=f"{role.id}:{session_name}",
            kind="assumed-role",
            label=label,
            issuer_arn=role.arn,
            session_name=session_name,
            human=human,
        )

    def _issue(self, session: Session, duration_s: int) -> TemporaryCredential:
        session = replace(session, access_key_id=self.ids.token("ASIA", 16))
        secret = entities.new_secret(self.ids)
        expires = (self.clock.now() + timedelta(seconds=duration_s)).replace(microsecond=0)
        token = seal_token(self._keyring, self.account, OpenedToken(secret, expires, session))
        return TemporaryCredential(session.access_key_id, secret, token, expires, session)

    # The local operator

    def bootstrap(self) -> None:
        """Make `admin` and its key bound to BOTTOM on the first start. Idempotent."""
        if self.directory.visible(entities.USER, ADMIN, BOTTOM) is None:
            self.create_user(ADMIN, self._ceiling.ceiling, ["AdministratorAccess"])
        self.access_key(ADMIN, BOTTOM)

    def create_user(self, name: str, clearance: str, policies: Sequence[str]) -> None:
        """Make a user at BOTTOM. `policies` are names or ARNs of managed policies. Raises Conflict, ValidationFault."""
        entities.check_name(name)
        tags = {entities.CLEARANCE_TAG: clearance} if clearance else {}
        entities.check_tags(tags)
        attached: list[str] = []
        for policy in policies:
            policy_arn = policy if policy.startswith("arn:") else self._policy_arn(policy)
            if policy_arn is None or self.directory.policy_text(policy_arn, BOTTOM) is None:
                raise ValidationFault(f"there is no managed policy {policy!r}; for example AmazonS3FullAccess")
            attached.append(policy_arn)
        body = entities.user_body(self.ids, path="/", tags=tags, attached=attached)
        try:
            self.directory.trusted.create(self.account, BOTTOM, entities.USER, name, body)
        except Conflict:
            raise Conflict(f"User with name {name} already exists.", code="EntityAlreadyExists") from None

    def _policy_arn(self, name: str) -> str | None:
        found = managed_arn(self.partition, name)
        record = None if found else self.directory.visible(entities.POLICY, name, BOTTOM)
        if record is not None:
            found = entities.arn(self.partition, self.account, entities.POLICY, record.body["path"], name)
        return found

    def access_key(self, user: str, label: Label) -> tuple[str, str]:
        """(access key id, secret) of the operator's key of a user bound to a label; made when there is none yet.

        Raises NotFound; AccessDenied when the user or the enclave is not cleared for the label.
        """
        record = self._operator_key(entities.ACCESS_KEY, user, label, "AKIA")
        return record.name, record.body["secret"]

    def bearer_key(self, user: str, label: Label) -> str:
        """As `access_key`, a bearer token for Bedrock."""
        record = self._operator_key(entities.BEARER_KEY, user, label, "BKIA")
        return f"{_BEARER_PREFIX}{record.name}-{record.body['secret']}"

    def _operator_key(self, kind: str, user: str, label: Label, prefix: str) -> Record:
        principal = self.directory.principal(entities.USER, user, label)
        if principal is None:
            raise NotFound(f"The user with name {user} cannot be found.", code="NoSuchEntity")
        if not self._holds(principal, label):
            raise AccessDenied(
                f"{user} cannot sign in at {label.banner}: the clearance of the user, or the ceiling "
                f"{self._ceiling.ceiling} of this enclave, does not cover it"
            )
        for record in self.directory.trusted.list(kind, account=self.account, state=entities.ACTIVE):
            body = record.body
            if body["user_id"] == principal.id and body["label"] == label.canonical and body.get("operator"):
                return record
        body = entities.key_body(self.ids, user=user, user_id=principal.id, label=label) | {"operator": True}
        name = self.ids.token(prefix, 16)
        return self.directory.trusted.create(self.account, principal.label, kind, name, body, entities.ACTIVE)

    def users(self) -> list[dict[str, Any]]:
        """Every user, for the local operator: name, clearance, names of attached policies, label."""
        return [
            {
                "name": record.name,
                "clearance": record.body["tags"].get(entities.CLEARANCE_TAG, "UNCLASSIFIED"),
                "policies": [policy.rpartition("/")[2] for policy in record.body["attached"]],
                "label": record.label.banner,
            }
            for record in self.directory.trusted.list(entities.USER, account=self.account)
        ]


def _signed_in(session: Session) -> bool:
    """Whether somebody's key stands behind a session. Without one it works on behalf of a job."""
    return any(kind in (entities.ACCESS_KEY, entities.BEARER_KEY) for kind, _, _ in session.chain)


def _unknown() -> AuthenticationFailed:
    return AuthenticationFailed("The security token included in the request is invalid.")
