"""Credentials, sessions and authorisation, in the words of security/identity/identity.py."""

from __future__ import annotations

import json
import timeit
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.clearances import Clearance
from honmaru.core.errors import AccessDenied, AuthenticationFailed, Conflict, HonmaruError, NotFound, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.identity import AssumeRole, Identity, TemporaryCredential, entities
from honmaru.security.identity.managed import MANAGED
from honmaru.security.policy import compile_policy
from honmaru.testing.keep import ACCOUNT, Keep

SECRET, SI = Label.parse("SECRET"), Label.parse("SECRET//SI")
TRUST_ACCOUNT = {"AWS": f"arn:aws-iso-b:iam::{ACCOUNT}:root"}


class Desk:
    """An identity over a keep, and shortcuts."""

    def __init__(self, directory: Path) -> None:
        self.keep = Keep(directory)
        self.identity = self.restart()
        self.identity.bootstrap()

    def restart(self) -> Identity:
        return Identity(
            self.keep.guard,
            partition="aws-iso-b",
            region="us-isob-east-1",
            account=ACCOUNT,
            clock=self.keep.clock,
            ids=self.keep.ids,
            keyring=self.keep.keyring,
        )

    def sign_in(self, user: str, marking: str = "UNCLASSIFIED") -> Session:
        key, secret = self.identity.access_key(user, Label.parse(marking))
        credential = self.identity.credential(key, None)
        assert credential.secret_access_key == secret
        return credential.session

    def role(
        self,
        name: str,
        principal: Any,
        *,
        tags: dict[str, str] | None = None,
        actions: Any = "sts:AssumeRole",
        **more: Any,
    ) -> str:
        trust = {"Statement": [{"Effect": "Allow", "Principal": principal, "Action": actions, **more}]}
        body = entities.role_body(
            self.keep.ids,
            path="/",
            tags=tags or {},
            trust=json.dumps(trust),
            description="",
            max_session_s=7200,
            boundary="",
        )
        body["attached"] = ["arn:aws-iso-b:iam::aws:policy/AmazonS3FullAccess"]
        self.identity.directory.trusted.create(ACCOUNT, BOTTOM, "role", name, body)
        return f"arn:aws-iso-b:iam::{ACCOUNT}:role/{name}"

    def edit(self, kind: str, name: str, state: str | None = None, **changes: Any) -> None:
        trusted = self.identity.directory.trusted
        (record,) = trusted.get(kind, name)
        trusted.update(record, {**record.body, **changes}, state)

    def use(self, made: TemporaryCredential) -> Session:
        return self.identity.credential(made.access_key_id, made.session_token).session


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.identity.create_user("ann", "SECRET//SI", ["AmazonS3FullAccess", "IAMFullAccess"])
    made.identity.create_user("bob", "UNCLASSIFIED", ["AdministratorAccess"])
    made.identity.create_user("gil", "SECRET nationality=GBR", ["AdministratorAccess"])
    yield made
    made.keep.close()


def test_bootstrap_makes_admin_once_and_survives_a_restart(desk: Desk) -> None:
    before = desk.identity.access_key("admin", BOTTOM)
    again = desk.restart()
    again.bootstrap()
    assert again.access_key("admin", BOTTOM) == before
    assert [user["name"] for user in again.users()] == ["admin", "ann", "bob", "gil"]
    session = again.credential(before[0], None).session
    assert session.label is BOTTOM and again.authorize(session, "s3:GetObject", "arn:aws-iso-b:s3:::b", {}).allowed


def test_a_key_opens_a_session_at_its_bound_label_only_for_the_cleared(desk: Desk) -> None:
    assert desk.sign_in("ann", "SECRET").label is SECRET
    assert desk.sign_in("ann", "SECRET//SI").label is SI
    assert desk.sign_in("ann").label is BOTTOM
    for user, marking in (
        ("bob", "SECRET"),
        ("bob", "CUI"),
        ("ann", "SECRET//TK"),
        ("gil", "SECRET"),
        ("ann", "TOP SECRET"),
    ):
        with pytest.raises(AccessDenied):
            desk.identity.access_key(user, Label.parse(marking))
        with pytest.raises(AccessDenied):
            desk.identity.bearer_key(user, Label.parse(marking))
    assert desk.sign_in("gil", "SECRET//REL TO USA, GBR").human.endswith("user/gil")
    with pytest.raises(NotFound):
        desk.identity.access_key("nobody", BOTTOM)
    with pytest.raises(Conflict):
        desk.identity.create_user("ann", "SECRET", [])
    for arguments in (("a b", "SECRET", []), ("eve", "SEKRET", []), ("eve", "SECRET", ["NoSuchPolicy"])):
        with pytest.raises(ValidationFault):
            desk.identity.create_user(*arguments)


def test_the_ceiling_binds_even_the_cleared(desk: Desk) -> None:
    desk.identity.create_user("top", "TOP SECRET", [])
    with pytest.raises(AccessDenied):
        desk.identity.access_key("top", Label.parse("TOP SECRET"))
    assert desk.sign_in("top", "SECRET").label is SECRET


def test_unknown_inactive_and_uncleared_credentials_are_refused_with_the_same_words(desk: Desk) -> None:
    key, _ = desk.identity.access_key("ann", SI)
    desk.identity.credential(key, None)
    messages = set()

    def refused(key_id: str, token: str | None = None) -> None:
        with pytest.raises(AuthenticationFailed) as refusal:
            desk.identity.credential(key_id, token)
        messages.add(refusal.value.message.rstrip("."))

    refused("AKIAAAAAAAAAAAAAAAAA")
    refused(key, "bm90IGEgdG9rZW4=")
    desk.edit("access-key", key, state="Inactive")
    refused(key)
    desk.edit("access-key", key, state="Active")
    assert desk.identity.credential(key, None).session.label is SI
    desk.edit("user", "ann", tags={entities.CLEARANCE_TAG: "SECRET"})
    refused(key)
    desk.edit("user", "ann", tags={entities.CLEARANCE_TAG: "SECRET//SI"})
    (ann,) = desk.identity.directory.trusted.get("user", "ann")
    desk.identity.directory.trusted.delete(ann)
    desk.identity.create_user("ann", "SECRET//SI", [])
    refused(key)  # a user made again is another principal
    assert len(messages) == 1


def test_a_revoked_key_ends_its_sessions_and_their_tokens_at_once(desk: Desk) -> None:
    role = desk.role("worker", TRUST_ACCOUNT)
    desk.edit("user", "ann", attached=["arn:aws-iso-b:iam::aws:policy/AdministratorAccess"])
    session = desk.sign_in("ann", "SECRET")
    made = [desk.identity.session_token(session, None), desk.identity.assume_role(session, AssumeRole(role, "work"))]
    made.append(desk.identity.assume_role(desk.use(made[0]), AssumeRole(role, "work2")))
    for one in made:
        assert desk.use(one).label is SECRET
    desk.edit("access-key", session.access_key_id, state="Inactive")
    for one in made:
        with pytest.raises(AuthenticationFailed):
            desk.use(one)
    desk.edit("access-key", session.access_key_id, state="Active")
    desk.edit("user", "ann", tags={})
    for one in made:
        with pytest.raises(AuthenticationFailed):
            desk.use(one)


def test_a_token_that_was_changed_or_moved_does_not_open(desk: Desk) -> None:
    session = desk.sign_in("ann", "SECRET")
    one, two = desk.identity.session_token(session, 900), desk.identity.session_token(session, 900)
    with pytest.raises(AuthenticationFailed):
        desk.identity.credential(one.access_key_id, two.session_token)
    with pytest.raises(AuthenticationFailed):
        desk.identity.credential(one.access_key_id, None)
    for i in (*range(0, len(one.session_token), 7), *range(-6, 0)):
        changed = (
            one.session_token[:i]
            + ("A" if one.session_token[i] != "A" else "B")
            + (one.session_token[i + 1 :] if i != -1 else "")
        )
        with pytest.raises(AuthenticationFailed):
            desk.identity.credential(one.access_key_id, changed)
    assert one.secret_access_key not in repr(one) and one.session_token not in repr(one)
    desk.keep.clock.seconds += 901
    with pytest.raises(AuthenticationFailed) as refusal:
        desk.use(one)
    assert refusal.value.code == "ExpiredToken"


def test_a_session_made_from_another_dominates_it(desk: Desk) -> None:
    role = desk.role("worker", TRUST_ACCOUNT)
    desk.edit("user", "ann", attached=["arn:aws-iso-b:iam::aws:policy/AdministratorAccess"])
    low, high = desk.sign_in("ann"), desk.sign_in("ann", "SECRET//SI")

    def assume(caller: Session, marking: str | None) -> Session:
        tags = {} if marking is None else {entities.LABEL_TAG: marking}
        return desk.use(desk.identity.assume_role(caller, AssumeRole(role, "work", tags=tags)))

    assert assume(low, None).label is BOTTOM
    assert assume(low, "SECRET").label is SECRET
    assert assume(low, "SECRET//SI").label is SI
    assert assume(high, None).label is SI
    assert assume(high, "SECRET//SI").label is SI
    for caller, marking in (
        (high, "SECRET"),
        (high, "UNCLASSIFIED"),
        (low, "SECRET//TK"),
        (low, "TOP SECRET"),
        (high, "SECRET//TK"),
    ):
        with pytest.raises(AccessDenied):
            assume(caller, marking)
    with pytest.raises(ValidationFault):
        assume(low, "SEKRET")
    with pytest.raises(AccessDenied):
        assume(assume(low, "SECRET"), "UNCLASSIFIED")


def test_the_clearance_of_the_role_and_of_everybody_in_the_chain_binds(desk: Desk) -> None:
    narrow = desk.role("narrow", TRUST_ACCOUNT, tags={entities.CLEARANCE_TAG: "UNCLASSIFIED"})
    wide = desk.role("wide", TRUST_ACCOUNT)
    desk.edit("role", "narrow", attached=["arn:aws-iso-b:iam::aws:policy/AdministratorAccess"])
    desk.edit("user", "ann", attached=["arn:aws-iso-b:iam::aws:policy/AdministratorAccess"])
    ann, bob = desk.sign_in("ann"), desk.sign_in("bob")
    secret = {entities.LABEL_TAG: "SECRET"}
    with pytest.raises(AccessDenied):
        desk.identity.assume_role(ann, AssumeRole(narrow, "work", tags=secret))
    with pytest.raises(AccessDenied):
        desk.identity.assume_role(bob, AssumeRole(wide, "work", tags=secret))
    through = desk.use(desk.identity.assume_role(ann, AssumeRole(narrow, "work")))
    with pytest.raises(AccessDenied):
        desk.identity.assume_role(through, AssumeRole(wide, "work", tags=secret))
    cleared = Clearance.parse("SECRET//SI")
    assert not desk.identity.may_grant(through, cleared)
    assert not desk.identity.may_grant(bob, cleared)
    assert desk.identity.may_grant(ann, cleared)


def test_the_human_behind_a_chain_is_carried_and_cannot_be_stated(desk: Desk) -> None:
    one = desk.role("one", TRUST_ACCOUNT, actions=["sts:AssumeRole", "sts:SetSourceIdentity"])
    two = desk.role("two", TRUST_ACCOUNT, actions=["sts:AssumeRole", "sts:SetSourceIdentity"])
    desk.edit("role", "one", attached=["arn:aws-iso-b:iam::aws:policy/AdministratorAccess"])
    bob = desk.sign_in("bob")
    first = desk.use(desk.identity.assume_role(bob, AssumeRole(one, "ann", source_identity="ann")))
    second = desk.use(desk.identity.assume_role(first, AssumeRole(two, "x1")))
    assert first.human == second.human == bob.human == f"arn:aws-iso-b:iam::{ACCOUNT}:user/bob"
    assert second.source_identity == "ann"
    with pytest.raises(AccessDenied):
        desk.identity.assume_role(first, AssumeRole(two, "x1", source_identity="gil"))


def test_who_may_assume_a_role(desk: Desk) -> None:
    ann = desk.sign_in("ann")  # no sts permission of her own
    named = desk.role("named", {"AWS": ann.principal_arn})
    account = desk.role("account", TRUST_ACCOUNT)
    outside = desk.role("outside", TRUST_ACCOUNT, Condition={"StringEquals": {"sts:ExternalId": "x-7"}})
    service = desk.role("service", {"Service": "sagemaker.amazonaws.com"})
    bob = desk.sign_in("bob")
    assert desk.use(desk.identity.assume_role(ann, AssumeRole(named, "work"))).issuer_arn == named
    assert desk.identity.assume_role(bob, AssumeRole(account, "work"))
    assert desk.identity.assume_role(bob, AssumeRole(outside, "work", external_id="x-7"))
    refused = [
        (ann, AssumeRole(account, "work")),
        (bob, AssumeRole(named, "work")),
        (bob, AssumeRole(outside, "work")),
        (bob, AssumeRole(outside, "work", external_id="x-8")),
        (bob, AssumeRole(service, "work")),
        (bob, AssumeRole(account + "x", "work")),
        (bob, AssumeRole(account.replace("aws-iso-b", "aws"), "work")),
        (bob, AssumeRole(account, "work", tags={"team": "a"})),
        (bob, AssumeRole(account, "work", source_identity="bob")),
    ]
    for caller, request in refused:
        with pytest.raises(AccessDenied) as refusal:
            desk.identity.assume_role(caller, request)
        assert refusal.value.message.endswith(
            f"is not authorized to perform: sts:AssumeRole on resource: {request.role_arn}"
        )
    for duration_s in (899, 7201):
        with pytest.raises(ValidationFault):
            desk.identity.assume_role(bob, AssumeRole(account, "work", duration_s=duration_s))


def test_session_policies_narrow_and_tags_reach_conditions(desk: Desk) -> None:
    role = desk.role("worker", TRUST_ACCOUNT, actions=["sts:AssumeRole", "sts:TagSession"])
    policy = json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:Get*", "Resource": "*"}]}
    )
    bob = desk.sign_in("bob")
    session = desk.use(desk.identity.assume_role(bob, AssumeRole(role, "work", policy=policy, tags={"team": "red"})))
    target = "arn:aws-iso-b:s3:::b/k"
    assert desk.identity.authorize(session, "s3:GetObject", target, {}).allowed
    with pytest.raises(AccessDenied) as refusal:
        desk.identity.require(session, "s3:PutObject", target, {})
    assert refusal.value.message == (
        f"User: arn:aws-iso-b:sts::{ACCOUNT}:assumed-role/worker/work is not authorized to perform: s3:PutObject on "
        f"resource: {target} because no session policy allows the s3:PutObject action"
    )
    condition = {"StringEquals": {"aws:PrincipalTag/team": "red"}}
    statement = {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition}
    desk.edit("role", "worker", inline={"no": json.dumps({"Version": "2012-10-17", "Statement": statement})})
    assert desk.identity.authorize(session, "s3:GetObject", target, {}).effect.value == "explicitDeny"
    with pytest.raises(HonmaruError):
        desk.identity.assume_role(bob, AssumeRole(role, "work", policy="{"))
    by_arn = AssumeRole(role, "work", policy_arns=["arn:aws-iso-b:iam::aws:policy/AmazonS3ReadOnlyAccess"])
    desk.edit("role", "worker", inline={})
    narrow = desk.use(desk.identity.assume_role(bob, by_arn))
    assert desk.identity.authorize(narrow, "s3:GetObject", target, {}).allowed
    assert not desk.identity.authorize(narrow, "s3:PutObject", target, {}).allowed


def test_authorisation_words_changes_boundaries_and_partitions(desk: Desk) -> None:
    ann = desk.sign_in("ann", "SECRET")
    target = "arn:aws-iso-b:s3:::b/k"
    assert desk.identity.authorize(ann, "s3:GetObject", target, {}).allowed
    assert not desk.identity.authorize(ann, "s3:GetObject", "arn:aws:s3:::b/k", {}).allowed
    with pytest.raises(AccessDenied) as refusal:
        desk.identity.require(ann, "sagemaker:ListModels", "*", {})
    assert refusal.value.message == (
        f"User: arn:aws-iso-b:iam::{ACCOUNT}:user/ann is not authorized to perform: sagemaker:ListModels on resource: "
        "* because no identity-based policy allows the sagemaker:ListModels action"
    )
    desk.edit("user", "ann", boundary="arn:aws-iso-b:iam::aws:policy/IAMFullAccess")
    refused = desk.identity.authorize(ann, "s3:GetObject", target, {})
    assert (refused.allowed, refused.reason) == (False, "boundary")
    desk.edit("user", "ann", boundary="", attached=[])
    assert not desk.identity.authorize(ann, "s3:GetObject", target, {}).allowed
    condition = {
        "IpAddress": {"aws:SourceIp": "10.0.0.0/8"},
        "StringEquals": {"honmaru:SessionLabel": "SECRET//NOFORN"},
    }
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*", "Condition": condition}
    desk.edit("user", "ann", inline={"p": json.dumps({"Version": "2012-10-17", "Statement": statement})})
    assert desk.identity.authorize(replace(ann, source_ip="10.1.1.1"), "s3:GetObject", target, {}).allowed
    assert not desk.identity.authorize(replace(ann, source_ip="11.1.1.1"), "s3:GetObject", target, {}).allowed
    forged = {"aws:SourceIp": "10.1.1.1"}
    assert not desk.identity.authorize(replace(ann, source_ip="11.1.1.1"), "s3:GetObject", target, forged).allowed


def test_what_is_high_does_not_change_what_a_low_session_may_do(desk: Desk) -> None:
    ann, low = desk.sign_in("ann", "SECRET"), desk.sign_in("ann")
    allow = json.dumps({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})
    arn = f"arn:aws-iso-b:iam::{ACCOUNT}:policy/shared"
    body = {"id": "ANPA1", "path": "/", "default": "v1", "versions": {"v1": {"text": allow, "created": ""}}}
    desk.edit("user", "ann", attached=[arn])
    desk.keep.guard.records(ann, "iam").create("policy", "shared", body)
    for session in (ann, low):
        assert not desk.identity.authorize(session, "s3:GetObject", "*", {}).allowed
    desk.keep.guard.records(low, "iam").create("policy", "shared", body)
    for session in (ann, low):
        assert desk.identity.authorize(session, "s3:GetObject", "*", {}).allowed
    # The same name at SECRET is another user, with another id; low keys stay with the low one.
    desk.keep.guard.records(ann, "iam").create(
        "user", "ann", entities.user_body(desk.keep.ids, path="/", tags={}, attached=[])
    )
    assert desk.sign_in("ann") == low
    assert desk.identity.authorize(low, "s3:GetObject", "*", {}).allowed


def test_service_sessions_need_the_roles_trust_and_clearance(desk: Desk) -> None:
    good = desk.role("job", {"Service": ["sagemaker.amazonaws.com"]})
    narrow = desk.role("narrow", {"Service": "sagemaker.amazonaws.com"}, tags={entities.CLEARANCE_TAG: "CUI"})
    other = desk.role("other", TRUST_ACCOUNT)

    def make(role: str, label: Label = SECRET, service: str = "sagemaker", account: str = ACCOUNT) -> Session:
        return desk.identity.service_session(
            role, label=label, service=service, session_name="job-1", human="h", account=account
        )

    session = make(good)
    assert (session.label, session.human, session.kind) == (SECRET, "h", "assumed-role")
    assert desk.identity.authorize(session, "s3:GetObject", "arn:aws-iso-b:s3:::b/k", {}).allowed
    assert not desk.identity.authorize(session, "iam:CreateUser", "*", {}).allowed
    assert make(good, service="sagemaker.amazonaws.com") == session
    for refused in (
        lambda: make(narrow),
        lambda: make(other),
        lambda: make(good + "x"),
        lambda: make(good, service="bedrock"),
        lambda: make(good, Label.parse("TOP SECRET")),
        lambda: make(good, account="999999999999"),
    ):
        with pytest.raises(ValidationFault):
            refused()


def test_bearer_keys(desk: Desk) -> None:
    token = desk.identity.bearer_key("ann", SECRET)
    assert desk.identity.bearer_key("ann", SECRET) == token
    assert desk.identity.bearer(token).label is SECRET
    for wrong in ("", "x", token[:-1], token + "A", token.removeprefix("honmaru-"), "honmaru--", "honmaru-é-é"):
        with pytest.raises(AuthenticationFailed):
            desk.identity.bearer(wrong)
    key_id = desk.identity.bearer(token).access_key_id
    now = desk.identity.clock.now()
    desk.edit("bearer-key", key_id, expires=(now + timedelta(seconds=60)).isoformat())
    assert desk.identity.bearer(token)
    desk.edit("bearer-key", key_id, expires=now.isoformat())
    with pytest.raises(AuthenticationFailed):
        desk.identity.bearer(token)
    desk.edit("bearer-key", key_id, expires=None)
    desk.edit("bearer-key", desk.identity.bearer(token).access_key_id, state="Inactive")
    with pytest.raises(AuthenticationFailed):
        desk.identity.bearer(token)


def test_session_tokens_are_for_long_term_keys_only(desk: Desk) -> None:
    session = desk.sign_in("ann", "SECRET")
    made = desk.identity.session_token(session, 900)
    assert desk.use(made).label is SECRET and desk.use(made).human == session.human
    with pytest.raises(AccessDenied):
        desk.identity.session_token(desk.use(made), 900)
    with pytest.raises(ValidationFault):
        desk.identity.session_token(session, 899)


@pytest.mark.parametrize("name", MANAGED)
def test_managed_policies_are_valid(name: str) -> None:
    compile_policy(MANAGED[name])


def test_the_hot_path_touches_no_database(desk: Desk) -> None:
    key, _ = desk.identity.access_key("ann", SECRET)
    session = desk.identity.credential(key, None).session
    desk.identity.authorize(session, "s3:GetObject", "arn:aws-iso-b:s3:::b/k", {})
    desk.keep.store.close()

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("the database was asked")

    desk.keep.store.get = closed  # type: ignore[method-assign,assignment]
    assert desk.identity.credential(key, None).session is session
    seconds = min(
        timeit.repeat(
            lambda: desk.identity.authorize(session, "s3:GetObject", "arn:aws-iso-b:s3:::b/k", {}), number=500, repeat=3
        )
    )
    assert seconds / 500 < 500e-6
