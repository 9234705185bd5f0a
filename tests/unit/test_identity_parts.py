"""Parts of identity by themselves: one-time passwords, identity tokens, key ids, networks, accounts, revocation."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from honmaru.core.errors import AccessDenied, AuthenticationFailed, StoreUnavailable, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.calls import Provider, Resource
from honmaru.security.guard import Sight
from honmaru.security.identity import AssumeRole, Identity, entities, jwt, mfa
from honmaru.security.identity import organization as control
from honmaru.testing.keep import ACCOUNT, Keep, quick_directory

LONG = os.environ.get("HONMARU_LONG") == "1"
OTHER = "210987654321"
SEED = b"12345678901234567890"


class Desk:
    """An identity over a keep in memory, with users and roles laid down as an operator would."""

    def __init__(self, directory: Path) -> None:
        self.keep = Keep(directory)
        self.identity = Identity(
            self.keep.guard,
            partition="aws-iso",
            region="us-iso-east-1",
            account=ACCOUNT,
            clock=self.keep.clock,
            ids=self.keep.ids,
            keyring=self.keep.keyring,
        )

    def user(self, name: str, *statements: dict[str, Any], account: str = ACCOUNT, **tags: str) -> Session:
        trusted = self.identity.directories.of(account).trusted
        text = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        body = entities.user_body(self.keep.ids, path="/", tags=tags, attached=[])
        body["inline"] = {"own": text} if statements else {}
        trusted.create(account, BOTTOM, entities.USER, name, body)
        key = entities.key_body(self.keep.ids, user=name, user_id=body["id"], label=BOTTOM)
        key_id = entities.key_id(self.keep.ids, "AKIA", account)
        trusted.create(account, BOTTOM, entities.ACCESS_KEY, key_id, key, entities.ACTIVE)
        return self.identity.credential(key_id, None).session

    def role(self, name: str, trust: dict[str, Any], *statements: dict[str, Any], account: str = ACCOUNT) -> str:
        body = entities.role_body(
            self.keep.ids,
            path="/",
            tags={},
            trust=json.dumps({"Version": "2012-10-17", "Statement": trust}),
            description="",
            max_session_s=3600,
            boundary="",
        )
        body["inline"] = {"own": json.dumps({"Version": "2012-10-17", "Statement": list(statements)})}
        self.identity.directories.of(account).trusted.create(account, BOTTOM, entities.ROLE, name, body)
        return f"arn:aws-iso:iam::{account}:role/{name}"

    def member(self, account: str, status: str = "ACTIVE") -> None:
        body = {"status": status, "parent": "", "policies": {}, "delegated": {}, "email": "", "name": ""}
        trusted = self.keep.guard.trusted(control.SERVICE, control.KINDS)
        trusted.create(ACCOUNT, BOTTOM, control.ACCOUNT, account, body)

    def may(self, session: Session, action: str, resource: str = "*") -> bool:
        return self.identity.authorize(session, action, resource, {}).allowed


@pytest.fixture
def desk() -> Iterator[Desk]:
    with quick_directory() as directory:
        made = Desk(directory)
        yield made
        made.keep.close()


def allow(*actions: str, resource: str = "*") -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": resource}


# One-time passwords


@pytest.mark.parametrize(
    ("at", "code"),
    [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037")],
)
def test_codes_are_those_of_rfc_6238(at: int, code: str) -> None:
    assert mfa.matching_step(SEED, code, at, (0,)) == at // 30


def test_a_code_is_good_for_one_step_on_either_side_and_nothing_else_is_a_code() -> None:
    assert mfa.matching_step(SEED, "287082", 59 + 30) == 1
    assert mfa.matching_step(SEED, "287082", 59 + 60) is None
    for text in ("", "28708", "2870822", "२८७०८२", "28708a", "-87082"):
        assert mfa.matching_step(SEED, text, 59) is None


def test_a_code_is_spent_once_and_so_are_all_before_it(desk: Desk) -> None:
    secret = Label.parse("SECRET")
    spend = desk.identity.spend
    assert spend(ACCOUNT, BOTTOM, "device", 10)
    assert not spend(ACCOUNT, BOTTOM, "device", 10)
    assert not spend(ACCOUNT, BOTTOM, "device", 9)
    assert not spend(ACCOUNT, secret, "device", 10)
    assert spend(ACCOUNT, secret, "device", 11)
    assert spend(ACCOUNT, BOTTOM, "device", 11), "what was spent above is not known below"


def test_codes_are_not_guessed(desk: Desk) -> None:
    ann = desk.user("ann", allow("sts:*"))
    serial = f"arn:aws-iso:iam::{ACCOUNT}:mfa/ann"
    body = {"id": "MFAD1", "path": "/", "serial": serial, "seed": SEED.hex(), "tags": {}, "user": "ann"}
    body |= {"user_id": ann.principal_id}
    desk.identity.directory.trusted.create(ACCOUNT, BOTTOM, entities.MFA_DEVICE, "ann", body)

    def codes() -> tuple[str, str]:
        now = desk.keep.clock.now().timestamp()
        good = TOTP(SEED, 6, SHA1(), 30, enforce_key_length=False).generate(int(now)).decode()
        texts = [f"{number:06d}" for number in range(1000)]
        return good, next(t for t in texts if mfa.matching_step(SEED, t, now) is None)

    def take(code: str) -> None:
        desk.identity.session_token(ann, None, serial, code)

    good, bad = codes()
    for _ in range(9):
        with pytest.raises(AccessDenied):
            take(bad)
    take(good)  # what is right makes the wrong ones forgotten
    for _ in range(10):
        with pytest.raises(AccessDenied):
            take(bad)
    desk.keep.clock.seconds += 60
    good, _ = codes()
    with pytest.raises(AccessDenied):
        take(good)
    desk.keep.clock.seconds += 3600
    good, _ = codes()
    take(good)


# Identity tokens


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


KEYS = {"r": rsa.generate_private_key(65537, 2048), "e": ec.generate_private_key(ec.SECP256R1())}


def jwks() -> list[dict[str, str]]:
    modulus = KEYS["r"].public_key().public_numbers()
    point = KEYS["e"].public_key().public_numbers()
    return [
        {"kty": "RSA", "kid": "r", "n": b64(modulus.n.to_bytes(256)), "e": b64(modulus.e.to_bytes(3))},
        {"kty": "EC", "kid": "e", "crv": "P-256", "x": b64(point.x.to_bytes(32)), "y": b64(point.y.to_bytes(32))},
    ]


def token(algorithm: str, kid: str) -> str:
    signed = f"{b64(json.dumps({'alg': algorithm, 'kid': kid}).encode())}.{b64(b'{}')}"
    if algorithm == "ES256":
        r, s = decode_dss_signature(KEYS["e"].sign(signed.encode(), ec.ECDSA(SHA256())))  # type: ignore[union-attr,call-arg,arg-type]
        signature = r.to_bytes(32) + s.to_bytes(32)
    elif algorithm == "PS256":
        signature = KEYS["r"].sign(signed.encode(), padding.PSS(padding.MGF1(SHA256()), 32), SHA256())  # type: ignore[union-attr,call-arg,arg-type]
    else:
        signature = KEYS["r"].sign(signed.encode(), padding.PKCS1v15(), SHA256())  # type: ignore[union-attr,call-arg,arg-type]
    return f"{signed}.{b64(signature)}"


@pytest.mark.parametrize(("algorithm", "kid"), [("RS256", "r"), ("PS256", "r"), ("ES256", "e")])
def test_a_token_verifies_with_its_own_key_and_no_bit_of_it_can_change(algorithm: str, kid: str) -> None:
    text = token(algorithm, kid)
    jwt.verify(jwt.read(text), jwks())
    good = jwt.read(text)
    for position in range(0, len(good.signature), 7):
        changed = bytearray(good.signature)
        changed[position] ^= 1
        with pytest.raises(AuthenticationFailed):
            jwt.verify(replace(good, signature=bytes(changed)), jwks())
    with pytest.raises(AuthenticationFailed):
        jwt.verify(replace(good, signed=good.signed + b"A"), jwks())
    with pytest.raises(AuthenticationFailed):
        jwt.verify(good, [])


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS1", "ES256", "", "RS999"])
def test_an_algorithm_that_does_not_fit_the_key_is_refused(algorithm: str) -> None:
    signed, _, signature = token("RS256", "r").rpartition(".")
    head = b64(json.dumps({"alg": algorithm, "kid": "r"}).encode())
    with pytest.raises(AuthenticationFailed):
        jwt.verify(jwt.read(f"{head}.{signed.partition('.')[2]}.{signature}"), jwks())


def test_short_keys_and_encryption_keys_verify_nothing() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    numbers = weak.public_key().public_numbers()
    signed = f"{b64(json.dumps({'alg': 'RS256'}).encode())}.{b64(b'{}')}"
    text = f"{signed}.{b64(weak.sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"
    key = {"kty": "RSA", "n": b64(numbers.n.to_bytes(128)), "e": b64(numbers.e.to_bytes(3))}
    with pytest.raises(AuthenticationFailed):
        jwt.verify(jwt.read(text), [key])
    with pytest.raises(AuthenticationFailed):
        jwt.verify(jwt.read(token("RS256", "r")), [{**jwks()[0], "use": "enc"}])


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c", "....", "e30.e30.*", "W10.W10.AA", "x" * 30000, "e30.e30.e30.e30"]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(AuthenticationFailed):
        jwt.verify(jwt.read(text), jwks())


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iat": 100, "exp": 200}, None),
        ({"iat": 100, "exp": 150}, "ExpiredTokenException"),
        ({"iat": 1000, "exp": 2000}, "InvalidIdentityToken"),
        ({"iat": 100, "exp": 200, "nbf": 1000}, "InvalidIdentityToken"),
        ({"exp": 200}, "InvalidIdentityToken"),
        ({"iat": 100, "exp": True}, "InvalidIdentityToken"),
        ({"iat": 100, "exp": "200"}, "InvalidIdentityToken"),
    ],
)
def test_times_of_a_token(claims: dict[str, Any], code: str | None) -> None:
    if code is None:
        jwt.check_times(claims, 150)
        return
    with pytest.raises(AuthenticationFailed) as refusal:
        jwt.check_times(claims, 150)
    assert refusal.value.code == code


def test_an_issuer_is_asked_once_a_minute_however_many_tokens_come(desk: Desk) -> None:
    class Issuers:
        asked = 0

        def fetch(self, issuer: str, thumbprints: Any) -> list[Any]:
            self.asked += 1
            raise StoreUnavailable("nobody is there")

    issuers = desk.identity.issuer_keys = Issuers()
    body = {"id": "OIDC1", "clients": ["me"], "thumbprints": [], "tags": {}}
    desk.identity.directory.trusted.create(ACCOUNT, BOTTOM, entities.OIDC_PROVIDER, "issuer.example", body)
    claims = b64(json.dumps({"iss": "https://issuer.example"}).encode())
    text = f"{b64(json.dumps({'alg': 'RS256', 'kid': 'r'}).encode())}.{claims}.AAAA"
    role = f"arn:aws-iso:iam::{ACCOUNT}:role/any"
    for _ in range(50):
        with pytest.raises(AuthenticationFailed):
            desk.identity.assume_role_with_web_identity(AssumeRole(role, "web"), text)
    assert issuers.asked == 1
    desk.keep.clock.seconds += 61
    with pytest.raises(AuthenticationFailed):
        desk.identity.assume_role_with_web_identity(AssumeRole(role, "web"), text)
    assert issuers.asked == 2


class Published:
    """Issuers that publish the keys of this file."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fetch(self, issuer: str, thumbprints: Any) -> list[Any]:
        self.asked.append(issuer)
        return jwks()


def identity_token(desk: Desk, **claims: Any) -> str:
    now = desk.keep.clock.now().timestamp()
    full = {"iss": "https://issuer.example", "sub": "mallory", "aud": "me", "iat": now, "exp": now + 60, **claims}
    signed = ".".join(b64(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "r"}, full))
    return f"{signed}.{b64(KEYS['r'].sign(signed.encode(), padding.PKCS1v15(), SHA256()))}"  # type: ignore[attr-defined]


def federated(desk: Desk, label: Label = BOTTOM) -> tuple[Published, str]:
    """An issuer, its provider, and a role for alice alone."""
    issuers = desk.identity.issuer_keys = Published()
    body = {"id": "OIDC1", "clients": ["me"], "thumbprints": [], "tags": {"honmaru:clearance": "SECRET"}}
    desk.identity.directory.trusted.create(ACCOUNT, label, entities.OIDC_PROVIDER, "issuer.example", body)
    trust = {
        "Effect": "Allow",
        "Principal": {"Federated": f"arn:aws-iso:iam::{ACCOUNT}:oidc-provider/issuer.example"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {"issuer.example:sub": "alice"}},
    }
    return issuers, desk.role("web", trust, allow("s3:*"))


def test_a_claim_in_another_case_stands_in_for_no_other(desk: Desk) -> None:
    _, role = federated(desk)
    take = desk.identity.assume_role_with_web_identity
    assert take(AssumeRole(role, "web"), identity_token(desk, sub="alice"))[1].subject == "alice"
    for extra in ({"SUB": "alice"}, {"Sub": "alice", "sUb": "alice"}):
        with pytest.raises(AccessDenied):
            take(AssumeRole(role, "web"), identity_token(desk, **extra))


def test_an_unverified_token_learns_nothing_of_providers_and_roles_above(desk: Desk) -> None:
    secret = {"https://aws.amazon.com/tags": {"principal_tags": {"honmaru:label": ["SECRET"]}}}
    issuers, role = federated(desk, Label.parse("SECRET"))
    said = []
    for issuer in ("https://issuer.example", "https://nobody.example"):
        with pytest.raises(AuthenticationFailed) as refusal:
            token = identity_token(desk, sub="alice", iss=issuer, **secret)
            desk.identity.assume_role_with_web_identity(AssumeRole(role, "web"), token)
        said.append((refusal.value.code, refusal.value.message))
    assert said[0] == said[1] and issuers.asked == []


def test_a_transitive_tag_cannot_be_set_again_in_another_case(desk: Desk) -> None:
    ann = desk.user("ann", allow("sts:*"))
    anybody = {"Effect": "Allow", "Principal": "*", "Action": ["sts:AssumeRole", "sts:TagSession"]}
    first, second = desk.role("first", anybody, allow("sts:*")), desk.role("second", anybody, allow("sts:*"))
    asked = AssumeRole(first, "one", tags={"Project": "red"}, transitive=frozenset({"Project"}))
    session = desk.identity.assume_role(ann, asked).session
    for name in ("Project", "project", "PROJECT"):
        with pytest.raises(ValidationFault):
            again = AssumeRole(second, "two", tags={name: "blue"}, transitive=frozenset({name}))
            desk.identity.assume_role(session, again)
    assert desk.identity.assume_role(session, AssumeRole(second, "two")).session.tags == {"Project": "red"}


# Key ids, networks


@pytest.mark.parametrize("account", ["000000000000", "123456789012", "999999999999"])
def test_a_key_id_tells_its_account(desk: Desk, account: str) -> None:
    made = {entities.key_id(desk.keep.ids, "AKIA", account) for _ in range(100)}
    assert len(made) == 100 and all(len(each) == 20 for each in made)
    assert {entities.account_of_key(each) for each in made} == {account}
    for strange in ("", "AKIA", "AKIA!!!!", "éééééééééééé"):
        assert len(entities.account_of_key(strange)) >= 12


@pytest.mark.parametrize(
    ("address", "networks", "inside"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("11.1.2.3", "10.0.0.0/8 11.0.0.0/8", True),
        ("10.1.2.3", "10.0.0.0/8;10.1.0.0/16", True),
        ("10.2.2.3", "10.0.0.0/8;10.1.0.0/16", False),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("2001:db8::1", "2001:db8::/32", True),
        (None, "10.0.0.0/8", False),
        ("somewhere", "10.0.0.0/8", False),
        ("10.1.2.3", "nonsense", False),
    ],
)
def test_networks(address: str | None, networks: str, inside: bool) -> None:
    assert entities.within(address, networks) is inside


def test_a_network_tag_holds_networks() -> None:
    entities.check_networks("10.0.0.0/8 2001:db8::/32")
    for text in ("", "here", "10.0.0.0/99"):
        with pytest.raises(ValidationFault):
            entities.check_networks(text)


def test_networks_of_a_chain_add_up_and_jobs_have_none(desk: Desk) -> None:
    ann = desk.user("ann", allow("sts:*"), **{"honmaru:network": "10.0.0.0/8"})
    anybody = {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}
    role = desk.role("work", anybody, allow("sts:*"))
    narrow = AssumeRole(role, "one", tags={"honmaru:network": "10.1.0.0/16"})
    made = desk.identity.assume_role(ann, narrow).session
    assert made.networks == "10.0.0.0/8;10.1.0.0/16"
    again = replace(narrow, role_arn=desk.role("next", anybody, allow("s3:*")), tags={})
    chained = desk.identity.assume_role(replace(made), again)
    assert chained.session.networks == "10.0.0.0/8;10.1.0.0/16"
    assert desk.identity.credential(chained.access_key_id, chained.session_token).session.networks == made.networks


# Accounts


def test_a_key_opens_its_own_account_while_that_is_open(desk: Desk) -> None:
    desk.member(OTHER)
    bob = desk.user("bob", allow("s3:*"), account=OTHER)
    assert bob.account == OTHER and bob.principal_arn == f"arn:aws-iso:iam::{OTHER}:user/bob"
    (record,) = desk.keep.guard.trusted(control.SERVICE, control.KINDS).get(control.ACCOUNT, OTHER)
    trusted = desk.keep.guard.trusted(control.SERVICE, control.KINDS)
    trusted.update(record, {**record.body, "status": "SUSPENDED"})
    with pytest.raises(AuthenticationFailed):
        desk.identity.credential(bob.access_key_id, None)


def test_a_role_of_another_account_needs_both_sides(desk: Desk) -> None:
    desk.member(OTHER)
    opened = {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "sts:AssumeRole"}
    role = desk.role("theirs", opened, allow("s3:*"), account=OTHER)
    poor, rich = desk.user("poor"), desk.user("rich", allow("sts:AssumeRole"))
    with pytest.raises(AccessDenied):
        desk.identity.assume_role(poor, AssumeRole(role, "one"))
    made = desk.identity.assume_role(rich, AssumeRole(role, "one"))
    assert made.session.account == OTHER and made.session.human == rich.principal_arn
    assert desk.may(made.session, "s3:GetObject", "arn:aws-iso:s3:::b/k")
    assert desk.identity.credential(made.access_key_id, made.session_token).session.account == OTHER
    (user,) = desk.identity.directory.trusted.get(entities.USER, "rich")
    desk.identity.directory.trusted.delete(user)
    with pytest.raises(AuthenticationFailed):
        desk.identity.credential(made.access_key_id, made.session_token)


def test_a_change_in_one_account_leaves_the_others_caches_alone(desk: Desk) -> None:
    desk.member(OTHER)
    ann, bob = desk.user("ann", allow("s3:*")), desk.user("bob", allow("s3:*"), account=OTHER)
    assert desk.may(ann, "s3:ListAllMyBuckets") and desk.may(bob, "s3:ListAllMyBuckets")
    reads: list[str] = []
    rows = desk.keep.store.get

    def counted(account: Any, service: str, kind: str, name: str, labels: Any) -> Any:
        reads.append(kind)
        return rows(account, service, kind, name, labels)

    desk.keep.store.get = counted  # type: ignore[method-assign]
    desk.user("another", account=OTHER)
    reads.clear()
    assert desk.may(ann, "s3:ListAllMyBuckets")
    assert reads == []
    assert desk.may(bob, "s3:ListAllMyBuckets")
    assert reads != []


# Temporary credentials of users


def test_temporary_credentials_of_users_do_not_reach_iam_without_a_one_time_password(desk: Desk) -> None:
    ann = desk.user("ann", allow("*"))
    made = desk.identity.session_token(ann, None).session
    assert desk.may(made, "s3:ListAllMyBuckets") and not desk.may(made, "iam:ListUsers")
    assert desk.may(replace(made, mfa_s=made.issued_s), "iam:ListUsers")
    wide = AssumeRole("", "guest", policy=json.dumps({"Version": "2012-10-17", "Statement": allow("*")}))
    guest = desk.identity.federation_token(ann, wide).session
    assert desk.may(guest, "s3:ListAllMyBuckets") and not desk.may(guest, "iam:ListUsers")
    with pytest.raises(AccessDenied):
        desk.identity.federation_token(guest, wide)


def test_last_uses_are_written_at_the_label_of_the_key(desk: Desk) -> None:
    ann = desk.user("ann")
    (key,) = desk.identity.directory.trusted.get(entities.ACCESS_KEY, ann.access_key_id)
    assert desk.identity.last_use(key, BOTTOM)["ServiceName"] == "N/A"
    desk.identity.note_use(ann, "s3")
    assert desk.identity.last_use(key, BOTTOM)["ServiceName"] == "s3"
    desk.identity.write_uses()
    desk.identity._uses.clear()
    assert desk.identity.last_use(key, BOTTOM)["ServiceName"] == "s3"


# Resources


class Shelf(Provider):
    """A service whose boxes bear policies."""

    service = "s3"
    arn_services = ("s3",)
    resource_kinds = frozenset({"bucket"})
    asked = 0

    def resource_place(self, resource: str) -> str:
        return resource.partition("/")[0]

    def resource(self, sight: Sight, place: str) -> Resource | None:
        self.asked += 1
        record = sight.get("bucket", place)
        return None if record is None else Resource(record.account, record.label, policy=record.body["policy"])


def test_a_resource_policy_binds_from_the_moment_it_changes_and_is_read_once(desk: Desk) -> None:
    shelf = Shelf()
    desk.identity.resources.own(shelf)
    ann = desk.user("ann")
    named = {"Effect": "Allow", "Principal": {"AWS": ann.principal_arn}, "Action": "s3:*", "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": named})
    records = desk.keep.guard.records(ann, "s3")
    record = records.create("bucket", "box", {"policy": None})
    arn = "arn:aws-iso:s3:::box/k"
    assert not desk.may(ann, "s3:GetObject", arn)
    record = records.update(record, {"policy": text})
    assert desk.may(ann, "s3:GetObject", arn)
    before = shelf.asked
    for number in range(100):
        records.create("object", f"box/{number}", {})
        assert desk.may(ann, "s3:GetObject", f"{arn}{number}")
    assert shelf.asked == before
    records.delete(record)
    assert not desk.may(ann, "s3:GetObject", arn)


def test_an_arn_that_states_an_account_does_not_answer_for_one_that_states_none(desk: Desk) -> None:
    desk.identity.resources.own(Shelf())
    desk.member(OTHER)
    ann, bob = desk.user("ann", allow("s3:*")), desk.user("bob", allow("s3:*"), account=OTHER)
    opened = {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "s3:*", "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": opened})
    desk.keep.guard.records(bob, "s3").create("bucket", "box", {"policy": text})
    assert desk.identity.require(ann, "s3:GetObject", f"arn:aws-iso:s3::{ACCOUNT}:box/k", {}) == ""
    assert desk.identity.require(ann, "s3:GetObject", "arn:aws-iso:s3:::box/k", {}) == OTHER


def test_a_policy_above_the_session_has_no_say(desk: Desk) -> None:
    desk.identity.resources.own(Shelf())
    ann = desk.user("ann", allow("s3:*"))
    high = replace(ann, label=Label.parse("SECRET"))
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": deny})
    desk.keep.guard.records(high, "s3").create("bucket", "box", {"policy": text})
    assert desk.may(ann, "s3:GetObject", "arn:aws-iso:s3:::box/k")
    assert not desk.may(high, "s3:GetObject", "arn:aws-iso:s3:::box/k")


# Revocation


def test_revocation_takes_effect_at_once_a_thousand_times(desk: Desk) -> None:
    """Each way to take a permission or a sign-in away; the slowest of all trials is under a second."""
    anybody = {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}
    trusted = desk.identity.directory.trusted
    slowest = 0.0

    def gone(run: Any) -> bool:
        try:
            return not run()
        except AuthenticationFailed:
            return True

    for trial in range(1000 if LONG else 60):
        name = f"user{trial}"
        session = desk.user(name, allow("s3:*", "sts:*"))
        role = desk.role(f"role{trial}", anybody, allow("s3:*"))
        made = desk.identity.assume_role(session, AssumeRole(role, "one"))
        (user,), (key,) = trusted.get(entities.USER, name), trusted.get(entities.ACCESS_KEY, session.access_key_id)
        (bearer,) = trusted.get(entities.ROLE, f"role{trial}")

        def own(session: Session = session) -> bool:
            return desk.may(desk.identity.credential(session.access_key_id, None).session, "s3:ListAllMyBuckets")

        def assumed(made: Any = made) -> bool:
            opened = desk.identity.credential(made.access_key_id, made.session_token).session
            return desk.may(opened, "s3:ListAllMyBuckets")

        assert own() and assumed()
        begun = time.perf_counter()
        kind = trial % 5
        if kind == 0:
            trusted.update(key, key.body, entities.INACTIVE)
        elif kind == 1:
            trusted.delete(user)
        elif kind == 2:
            trusted.update(user, {**user.body, "inline": {}})
        elif kind == 3:
            trusted.delete(bearer)
        else:
            older = {"DateLessThan": {"aws:TokenIssueTime": "2031-01-01T00:00:00Z"}}
            deny = {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": older}
            text = json.dumps({"Version": "2012-10-17", "Statement": deny})
            inline = {**bearer.body["inline"], "AWSRevokeOlderSessions": text}
            trusted.update(bearer, {**bearer.body, "inline": inline})
        ends = {0: (own, assumed), 1: (own, assumed), 2: (own,), 3: (assumed,), 4: (assumed,)}[kind]
        assert all(gone(each) for each in ends), kind
        slowest = max(slowest, time.perf_counter() - begun)
    assert slowest < 1.0
