"""Sessions out of sessions: AssumeRole, GetSessionToken, GetFederationToken, and the platform's own for a job.

Invariants:
- A session made from another dominates it: a subject never lowers itself. Lower work needs a key bound lower.
- A session's label is held by every principal of its chain (the user's clearance, the role's where it has one) and
  permitted by the ceiling.
- A session that nobody's key stands behind (what the code of a job signs with) is raised to nothing and grants no
  clearance: its role may be cleared for more than the person who started the job.
- One-time passwords are not guessed: after ten wrong ones a device is asked nothing more for the rest of the hour.
- `human` is set from the user behind the chain, never from what a caller states; networks only ever add up.

Source: STS API reference; IAM user guide "Passing session tags in STS", "Roles terms and concepts: role chaining".
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, QuotaExceeded, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session
from honmaru.security.identity import entities, mfa
from honmaru.security.identity.context import RequestContext
from honmaru.security.identity.credentials import AssumeRole, TemporaryCredential
from honmaru.security.identity.decisions import Decisions, caller_of
from honmaru.security.identity.directory import Principal
from honmaru.security.identity.part import Link, signed_in
from honmaru.security.identity.tokens import OpenedToken, seal_token
from honmaru.security.policy import (
    Caller,
    Decision,
    Effect,
    Naming,
    ResourcePolicy,
    compile_policy,
    decide,
)
from honmaru.security.policy.documents import merge_policies

_MIN_SESSION_S, _MAX_SESSION_S, _CHAINED_SESSION_S = 900, 129600, 3600
_PACKED_BYTES = 2048
_TAGS, _TAG_KEY, _TAG_VALUE = 50, 128, 256
_POLICY_ARNS = 10
_MISSES, _MISSES_WITHIN_S = 10, 3600.0
"""Wrong one-time passwords of a device that are looked at in an hour: a code has a million values."""
NOTHING = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","NotAction":"*","Resource":"*"}]}'
"""The session policy of a federated user without one: only resource policies that name the session allow."""
_HONMARU_TAGS = frozenset((entities.LABEL_TAG, entities.NETWORK_TAG))


class Sessions(Decisions):
    """See the module."""

    _missed: dict[tuple[str, Label], tuple[float, int]]

    def assume_role(self, caller: Session, request: AssumeRole) -> TemporaryCredential:
        """Temporary credentials of a role.

        Label: the session tag `honmaru:label`, else the caller's label. It must dominate the caller's label, be held
        by everybody in the chain and the role, and be permitted by the ceiling.
        Raises AccessDenied, also for a role that the caller cannot see; ValidationFault.
        """
        denied = AccessDenied(
            f"User: {caller.principal_arn} is not authorized to perform: sts:AssumeRole on resource: {request.role_arn}"
        )
        check_session_tags(request.tags)
        role = self.principal_by_arn(request.role_arn, caller.label)
        if role is None or role.kind != entities.ROLE or role.trust is None or caller.kind == "federated-user":
            raise denied
        mfa_s = self._verified_mfa(caller, request)
        if not self._trusted(replace(caller, mfa_s=mfa_s or caller.mfa_s), role, request, verified=bool(mfa_s)):
            raise denied
        label = self._assumed_label(caller, role, request)
        duration_s = self._duration(caller, role, request.duration_s)
        if caller.source_identity and request.source_identity not in (None, caller.source_identity):
            raise denied
        passed = {key: caller.tags[key] for key in sorted(caller.transitive_tags) if key in caller.tags}
        folded = {key.lower() for key in passed}  # as condition keys are: another case is the same tag
        if any(key.lower() in folded for key in request.tags):
            raise ValidationFault(
                "A session tag that is transitive in this session cannot be set again", code="ValidationError"
            )
        packed = packed_size(request)
        account = account_of(role)
        session = replace(
            self._role_session(role, label, request.session_name, caller.human),
            session_policy=self._session_policy(request, account, caller.label),
            tags={**request.tags, **passed},
            transitive_tags=frozenset(passed) | request.transitive,
            source_identity=request.source_identity or caller.source_identity,
            chain=(*caller.chain, (entities.ROLE, role.name, role.id, account)),
            mfa_s=mfa_s,
            networks=joined(caller.networks, role.networks, request.tags.get(entities.NETWORK_TAG, "")),
        )
        return self.issue(session, duration_s, packed)

    def session_token(
        self, caller: Session, duration_s: int | None, serial_number: str | None = None, token_code: str | None = None
    ) -> TemporaryCredential:
        """Temporary credentials of the calling user, at the label of the key. Raises AccessDenied, ValidationFault."""
        self._check_long_term(caller, "GetSessionToken")
        request = AssumeRole("", "", serial_number=serial_number, token_code=token_code)
        mfa_s = self._verified_mfa(caller, request)
        return self.issue(replace(caller, source_ip=None, user_agent="", mfa_s=mfa_s), self._long_duration(duration_s))

    def federation_token(self, caller: Session, request: AssumeRole) -> TemporaryCredential:
        """Temporary credentials of somebody whom the calling user vouches for, with at most the user's permissions.

        `session_name` names the federated user. Label: the caller's. Raises AccessDenied, ValidationFault.
        """
        self._check_long_term(caller, "GetFederationToken")
        check_session_tags(request.tags)
        name = request.session_name
        arn = f"arn:{self.partition}:sts::{caller.account}:federated-user/{name}"
        context = _stated_tags(request)
        needed = ["sts:GetFederationToken", *(["sts:TagSession"] if request.tags else [])]
        for action in needed:
            self.require(caller, action, arn, context)
        session = replace(
            caller,
            source_ip=None,
            user_agent="",
            kind="federated-user",
            principal_arn=arn,
            principal_id=f"{caller.account}:{name}",
            session_name=name,
            session_policy=self._session_policy(request, caller.account, caller.label) or NOTHING,
            tags=dict(request.tags),
            networks=joined(caller.networks, request.tags.get(entities.NETWORK_TAG, "")),
        )
        return self.issue(session, self._long_duration(request.duration_s), packed_size(request))

    def service_session(
        self,
        role_arn: str,
        *,
        label: Label,
        service: str,
        session_name: str,
        human: str,
        account: str,
        source_arn: str = "",
    ) -> Session:
        """A session of a role for the platform's own work on somebody's behalf (a training job, an import).

        `service` is "sagemaker" or "sagemaker.amazonaws.com"; the role's trust policy must allow it, and may ask for
        aws:SourceAccount and aws:SourceArn, which guard against the confused deputy.
        Raises ValidationFault when the role is not visible at `label`, does not trust the service, or is not cleared.
        """
        principal_name = service if "." in service else f"{service}.amazonaws.com"
        role = self.principal_by_arn(role_arn, label)
        if role is not None and (account_of(role) != account or role.kind != entities.ROLE or role.trust is None):
            role = None
        context = {
            "aws:principalisawsservice": True,
            "aws:principalservicename": principal_name,
            "aws:sourceaccount": account,
            "aws:sourcearn": source_arn or None,
            "aws:currenttime": self.clock.now(),
        }
        if role is None or role.trust is None or not self._trusts(role, Caller(service=principal_name), context):
            raise ValidationFault(
                f"Could not assume role {role_arn}. Please ensure that the role exists and allows principal "
                f"'{principal_name}' to assume the role."
            )
        if not self.holds(role, label):
            raise ValidationFault(
                f"Could not assume role {role_arn}: the role or this enclave is not cleared for {label.banner}. "
                f"Use a role whose {entities.CLEARANCE_TAG} tag covers it."
            )
        return replace(
            self._role_session(role, label, session_name, human),
            chain=((entities.ROLE, role.name, role.id, account),),
            networks="",  # it works inside the enclave, wherever people sign in from
        )

    def service_credential(self, session: Session, duration_s: int) -> TemporaryCredential:
        """Keys for a session that `service_session` made: what the code of a job signs its requests with.

        They open exactly that session, at its label, and end with the role behind it.
        """
        return self.issue(session, duration_s)

    def issue(self, session: Session, duration_s: int, packed: int = 0) -> TemporaryCredential:
        """Keys and token of a session that was decided on."""
        now = self.clock.now()
        access_key_id = entities.key_id(self.ids, "ASIA", session.account)
        session = replace(session, access_key_id=access_key_id, issued_s=now.timestamp())
        secret = entities.new_secret(self.ids)
        expires = (now + timedelta(seconds=duration_s)).replace(microsecond=0)
        token = seal_token(self._keyring, self.account, OpenedToken(secret, expires, session))
        return TemporaryCredential(access_key_id, secret, token, expires, session, packed)

    # Parts of these

    def _trusts(self, role: Principal, who: Caller, context: Mapping[str, Any]) -> bool:
        """Whether a role's trust policy lets one of the platform's services in."""
        if role.trust is None:
            return False
        return role.trust.evaluate("sts:AssumeRole", "*", context, who).effect is Effect.ALLOWED

    def _trusted(self, caller: Session, role: Principal, request: AssumeRole, *, verified: bool) -> bool:
        """The role's trust policy and the caller's own policies, as AWS combines them."""
        stated: dict[str, Any] = {
            "sts:externalid": request.external_id,
            "sts:rolesessionname": request.session_name,
            "sts:sourceidentity": request.source_identity,
            "sts:transitivetagkeys": sorted(request.transitive),
            **_stated_tags(request),
        }
        needed = ["sts:AssumeRole"]
        # Tags that state the session's label or network are honmaru's and need no sts:TagSession; every other tag does.
        if set(request.tags) - _HONMARU_TAGS or request.transitive:
            needed.append("sts:TagSession")
        if request.source_identity is not None:
            needed.append("sts:SetSourceIdentity")
        return all(self._may_assume(caller, role, action, stated, verified=verified).allowed for action in needed)

    def _may_assume(
        self, caller: Session, role: Principal, action: str, stated: Mapping[str, Any], *, verified: bool
    ) -> Decision:
        principal = self.principal_of(caller)
        owner = account_of(role)
        controls = self.organization.controls(caller.account, caller.label)

        def gather() -> dict[str, Any]:
            full = self._context(caller, principal, None, owner, controls, stated)
            full |= {f"aws:resourcetag/{key.lower()}": value for key, value in role.tags.items()}
            full |= {f"iam:resourcetag/{key.lower()}": value for key, value in role.tags.items()}
            if verified:
                full |= {"aws:multifactorauthpresent": True, "aws:multifactorauthage": 0}
            return full

        session_policy = None if caller.session_policy is None else compile_policy(caller.session_policy, "session")
        trust = ResourcePolicy(
            role.trust,
            caller_of(caller),
            same_account=owner == caller.account,
            governs=True,
            alone=Naming.PRINCIPAL,
        )
        exempt = principal is not None and principal.service_linked
        rcps = () if exempt else self.organization.controls(owner, caller.label).rcps
        return decide(
            action,
            role.arn,
            RequestContext(gather),
            identity=None if principal is None else principal.policies,
            boundary=None if principal is None else principal.boundary,
            session=session_policy,
            of_resource=trust,
            scps=() if exempt else controls.scps,
            rcps=rcps,
        )

    def _assumed_label(self, caller: Session, role: Principal, request: AssumeRole) -> Label:
        stated = request.tags.get(entities.LABEL_TAG)
        label = caller.label if stated is None else parsed_label(stated)
        if not label.dominates(caller.label):
            raise AccessDenied(
                f"This session is at {caller.label.banner} and cannot become one at {label.banner}: a session never "
                "lowers itself; sign in with a key bound to the lower label"
            )
        if label != caller.label and not signed_in(caller.chain):
            raise AccessDenied(
                f"This session is at {caller.label.banner} and nobody's key stands behind it, so it cannot become one "
                f"at {label.banner}: sign in with a key to raise a session"
            )
        if not (self.holds(role, label) and self.chain_holds(caller.chain, caller.label, label)):
            raise AccessDenied(
                f"A session at {label.banner} is refused: the clearance of {caller.principal_arn}, that of "
                f"{role.arn}, or the ceiling of this enclave does not cover it"
            )
        return label

    def _duration(self, caller: Session | None, role: Principal, stated: int | None) -> int:
        wanted = _CHAINED_SESSION_S if stated is None else stated
        if wanted < _MIN_SESSION_S:
            raise ValidationFault(f"DurationSeconds is {wanted}; expected at least 900", code="ValidationError")
        if wanted > role.max_session_s:
            raise ValidationFault(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
                code="ValidationError",
            )
        if caller is not None and caller.kind == "assumed-role" and wanted > _CHAINED_SESSION_S:
            raise ValidationFault(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
                code="ValidationError",
            )
        return wanted

    @staticmethod
    def _long_duration(stated: int | None) -> int:
        wanted = 43200 if stated is None else stated
        if not _MIN_SESSION_S <= wanted <= _MAX_SESSION_S:
            raise ValidationFault(
                f"DurationSeconds is {wanted}; expected {_MIN_SESSION_S} to {_MAX_SESSION_S}", code="ValidationError"
            )
        return wanted

    @staticmethod
    def _check_long_term(caller: Session, operation: str) -> None:
        if caller.kind != "user" or not caller.chain or caller.access_key_id != caller.chain[0][1]:
            raise AccessDenied(f"Cannot call {operation} with session credentials")

    def _session_policy(self, request: AssumeRole, account: str, label: Label) -> str | None:
        texts = [] if request.policy is None else [request.policy]
        if len(request.policy_arns) > _POLICY_ARNS:
            raise ValidationFault(
                f"{len(request.policy_arns)} PolicyArns were given; at most {_POLICY_ARNS} are allowed",
                code="ValidationError",
            )
        for policy_arn in request.policy_arns:
            text = self.directories.of(account).policy_text(policy_arn, label)
            if text is None:
                raise ValidationFault(
                    f"The policy {policy_arn} does not exist or is not attachable.", code="ValidationError"
                )
            texts.append(text)
        return merge_policies(texts) if texts else None

    def _role_session(self, role: Principal, label: Label, session_name: str, human: str) -> Session:
        account = account_of(role)
        return Session(
            account=account,
            partition=self.partition,
            region=self.region,
            principal_arn=f"arn:{self.partition}:sts::{account}:assumed-role/{role.name}/{session_name}",
            principal_id=f"{role.id}:{session_name}",
            kind="assumed-role",
            label=label,
            issuer_arn=role.arn,
            session_name=session_name,
            human=human,
            networks=role.networks,
        )

    # One-time passwords

    def _verified_mfa(self, caller: Session, request: AssumeRole) -> float:
        """The time, when the request carries a good one-time password; 0 when it carries none. Raises AccessDenied."""
        if request.serial_number is None and request.token_code is None:
            return 0.0
        failed = AccessDenied("MultiFactorAuthentication failed with invalid MFA one time pass code. ")
        if request.serial_number is None or request.token_code is None or caller.kind != "user":
            raise failed
        user = self.principal_of(caller)
        name = request.serial_number.rpartition("/")[2]
        for device in self.directories.of(caller.account).records(entities.MFA_DEVICE, name):
            body = device.body
            if (
                user is not None
                and body.get("user_id") == user.id
                and body["serial"] == request.serial_number
                and caller.label.dominates(device.label)
            ):
                guessed = (str(body["id"]), caller.label)
                if not self._may_try(guessed):
                    break
                step = mfa.matching_step(bytes.fromhex(body["seed"]), request.token_code, self.now_s())
                if step is not None and self.spend(caller.account, caller.label, body["id"], step):
                    self._missed.pop(guessed, None)
                    return self.now_s()
        raise failed

    def _may_try(self, guessed: tuple[str, Label]) -> bool:
        """Whether another code of a device is looked at, which counts as missed until it proves good.

        Counted for each label, so that no session learns from a device what was tried above.
        """
        now = self.clock.monotonic()
        since, count = self._missed.get(guessed, (now, 0))
        if now - since >= _MISSES_WITHIN_S:
            since, count = now, 0
        if count >= _MISSES:
            return False
        self._missed[guessed] = (since, count + 1)
        return True

    def spend(self, account: str, label: Label, device_id: str, step: int) -> bool:
        """Whether a one-time password's step was still unspent; it is spent now, durably, at `label`."""
        trusted = self.directories.of(account).trusted
        name = f"mfa:{device_id}"
        seen = [record for record in trusted.get(entities.USED, name, account=account) if label.dominates(record.label)]
        if any(record.body["step"] >= step for record in seen):
            return False
        own = next((record for record in seen if record.label == label), None)
        try:
            if own is None:
                trusted.create(account, label, entities.USED, name, {"step": step})
            else:
                trusted.update(own, {"step": step})
        except Conflict:
            return False  # somebody spent it at the same moment
        return True


def account_of(role: Principal) -> str:
    """The account of a role or user."""
    return role.arn.split(":", 5)[4]


def parsed_label(stated: str) -> Label:
    """The label in a session tag. Raises ValidationFault."""
    try:
        return Label.parse(stated)
    except ValidationFault as fault:
        raise ValidationFault(
            f"The session tag {entities.LABEL_TAG}: {fault.message}", code="ValidationError"
        ) from None


def joined(*networks: str) -> str:
    """Lists of networks, each of which must hold."""
    return ";".join(dict.fromkeys(each for listed in networks for each in listed.split(";") if each))


def check_session_tags(tags: Mapping[str, str]) -> None:
    """Raises ValidationFault for too many or too long tags, or a network tag that holds no networks."""
    if len(tags) > _TAGS:
        raise ValidationFault(
            f"{len(tags)} session tags were given; at most {_TAGS} are allowed", code="ValidationError"
        )
    for key, value in tags.items():
        if not 1 <= len(key) <= _TAG_KEY or len(value) > _TAG_VALUE:
            raise ValidationFault(f"The session tag {key[:128]!r} is too long", code="ValidationError")
        if key.lower().startswith("aws:"):
            raise ValidationFault("Tag keys beginning with aws: are reserved for system use", code="ValidationError")
    if entities.NETWORK_TAG in tags:
        entities.check_networks(tags[entities.NETWORK_TAG])


def packed_size(request: AssumeRole) -> int:
    """Percent of the room for session policies and tags that a request uses. Raises QuotaExceeded above 100.

    AWS does not publish its packing; here it is zlib's, in the 2,048 bytes that AWS gives to an inline policy.
    """
    parts = [request.policy or "", *request.policy_arns]
    parts += [f"{key}={value}" for key, value in sorted(request.tags.items())]
    if not any(parts):
        return 0
    percent = -(-len(zlib.compress("\n".join(parts).encode(), 9)) * 100 // _PACKED_BYTES)
    if percent > 100:
        raise QuotaExceeded(
            f"The total packed size of the session policies and session tags combined was too large: {percent}% of the "
            "allotted room",
            code="PackedPolicyTooLarge",
        )
    return percent


def _stated_tags(request: AssumeRole) -> dict[str, Any]:
    return {
        "aws:tagkeys": sorted(request.tags),
        **{f"aws:requesttag/{key.lower()}": value for key, value in request.tags.items()},
    }


__all__ = ["Link", "Sessions"]
