"""Two hundred named cases of AWS's published evaluation rules: what a reader of the user guide would look up.

Each row is `name | policies | request | expected`. Expected is A (allowed), or the kind of policy that refuses with D
(explicit deny) or I (no policy of the kind allows): `D:scp`, `I:identity`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from honmaru.security.policy import Caller, Decision, Effect, PolicyKind, ResourcePolicy, compile_policy, decide
from honmaru.security.policy.statements import Naming

ME, THEM = "111111111111", "222222222222"
USER = f"arn:aws:iam::{ME}:user/ann"
ROLE = f"arn:aws:iam::{ME}:role/work"
SESSION = f"arn:aws:sts::{ME}:assumed-role/work/one"
FEDERATED = f"arn:aws:sts::{ME}:federated-user/guest"
ROOT = f"arn:aws:iam::{ME}:root"
ann = Caller(USER, USER, ME, "aws", unique_id="AIDAANNANNANNANNANN")
work = Caller(SESSION, ROLE, ME, "aws", unique_id="AROAWORKWORKWORKWORK")
guest = Caller(FEDERATED, USER, ME, "aws", unique_id="AIDAANNANNANNANNANN")
service = Caller(service="sagemaker.amazonaws.com")
oidc = Caller(federated=f"arn:aws:iam::{ME}:oidc-provider/issuer.example")
OBJECT = "arn:aws:s3:::bucket/home/ann/x"
BUCKET = "arn:aws:s3:::bucket"
KEY = f"arn:aws:kms:us-gov-west-1:{ME}:key/1"
GET = "s3:GetObject"
EVERYTHING: list[dict[str, Any]] = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def allow(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Deny", "Action": action, "Resource": resource, **more}


def to(principal: Any, action: Any = "*", resource: Any = "*", effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Principal": principal, "Action": action, "Resource": resource, **more}


def trust(principal: Any, action: Any = "sts:AssumeRole", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": principal, "Action": action, **more}


def when(operator: str, key: str, *values: Any) -> dict[str, Any]:
    return {"Condition": {operator: {key: list(values)}}}


def read(statements: list[dict[str, Any]], kind: PolicyKind, version: str) -> Any:
    return compile_policy(json.dumps({"Version": version, "Statement": statements}), "", kind)


def ask(
    action: str = GET,
    resource: str = OBJECT,
    *,
    identity: Any = (),
    boundary: Any = None,
    session: Any = None,
    scps: Any = (),
    rcps: Any = (),
    of: Any = None,
    trusts: Any = None,
    caller: Caller = ann,
    across: bool = False,
    governs: bool = False,
    confined: bool = False,
    context: dict[str, Any] | None = None,
    version: str = "2012-10-17",
) -> Decision:
    def own(statements: Any) -> Any:
        return None if statements is None else read(list(statements), PolicyKind.IDENTITY, version)

    nothing = [{"Effect": "Allow", "NotAction": "*", "Resource": "*"}]
    side = ResourcePolicy(caller=caller, same_account=not across)
    if of is not None:
        policies = read(of, PolicyKind.RESOURCE, version)
        side = ResourcePolicy(policies, caller, same_account=not across, governs=governs, confined=confined)
    if trusts is not None:
        policies = read(trusts, PolicyKind.TRUST, version)
        side = ResourcePolicy(policies, caller, same_account=not across, governs=True, alone=Naming.PRINCIPAL)
    named = caller.service or caller.federated
    return decide(
        action,
        resource,
        {key.lower(): value for key, value in (context or {}).items()},
        identity=None if named else own(identity or nothing),
        boundary=own(boundary),
        session=own(session),
        of_resource=side,
        scps=[own(level) for level in scps],
        rcps=[own(level) for level in rcps],
    )


def told(decision: Decision) -> str:
    if decision.effect is Effect.ALLOWED:
        return "A"
    return f"{'D' if decision.effect is Effect.EXPLICIT_DENY else 'I'}:{decision.reason}"


CASES: dict[str, tuple[dict[str, Any], str]] = {}


def case(name: str, expected: str, /, **asked: Any) -> None:
    assert name not in CASES, name
    CASES[name] = (asked, expected)


# Identity policies: actions, resources, deny

case("nothing allows", "I:identity")
case("star allows", "A", identity=EVERYTHING)
case("deny beats allow", "D:identity", identity=[*EVERYTHING, deny(GET)])
case("order of statements does not matter", "D:identity", identity=[deny(GET), *EVERYTHING])
case("deny of another action", "A", identity=[*EVERYTHING, deny("s3:PutObject")])
case("deny of another resource", "A", identity=[*EVERYTHING, deny(GET, BUCKET)])
case("deny alone allows nothing else", "I:identity", identity=[deny("s3:PutObject")])
case("action in another case", "A", identity=[allow("S3:gEtObJeCt")])
case("action prefix", "A", identity=[allow("s3:Get*")])
case("action suffix", "A", identity=[allow("s3:*Object")])
case("action question mark", "A", identity=[allow("s3:GetObjec?")])
case("question mark is one character", "I:identity", identity=[allow("s3:GetObject?")])
case("action of another service", "I:identity", identity=[allow("s3-object-lambda:*")])
case("service wildcard", "A", identity=[allow("*:GetObject")])
case("several actions", "A", identity=[allow(["s3:PutObject", GET])])
case("not action allows the rest", "A", identity=[{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}])
case("not action leaves out", "I:identity", identity=[{"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}])
case(
    "not action with deny denies the rest",
    "D:identity",
    identity=[*EVERYTHING, {"Effect": "Deny", "NotAction": "iam:*", "Resource": "*"}],
)
case(
    "not action with deny spares",
    "A",
    identity=[*EVERYTHING, {"Effect": "Deny", "NotAction": ["s3:*"], "Resource": "*"}],
)
case(
    "not action with deny allows nothing",
    "I:identity",
    identity=[{"Effect": "Deny", "NotAction": "s3:*", "Resource": "*"}],
)
case("not action list", "I:identity", identity=[{"Effect": "Allow", "NotAction": ["iam:*", "s3:*"], "Resource": "*"}])
case("resource exact", "A", identity=[allow(GET, OBJECT)])
case("resource in another case", "I:identity", identity=[allow(GET, "arn:aws:s3:::BUCKET/*")])
case("resource star behind slash", "A", identity=[allow(GET, "arn:aws:s3:::bucket/*")])
case("star crosses slashes", "A", identity=[allow(GET, "arn:aws:s3:::bucket/h*x")])
case("bucket is not its objects", "I:identity", identity=[allow(GET, BUCKET)])
case(
    "objects are not their bucket",
    "I:identity",
    action="s3:ListBucket",
    resource=BUCKET,
    identity=[allow("s3:*", "arn:aws:s3:::bucket/*")],
)
case("prefix reaches other buckets", "A", identity=[allow(GET, "arn:aws:s3:::buck*")])
case("resource question mark", "A", identity=[allow(GET, "arn:aws:s3:::bucke?/home/ann/?")])
case("another partition", "I:identity", identity=[allow(GET, "arn:aws-us-gov:s3:::bucket/*")])
case("partition wildcard", "A", identity=[allow(GET, "arn:*:s3:::bucket/*")])
case("account wildcard", "A", action="kms:Decrypt", resource=KEY, identity=[allow("kms:*", "arn:aws:kms:*:*:key/1")])
case(
    "region that differs",
    "I:identity",
    action="kms:Decrypt",
    resource=KEY,
    identity=[allow("kms:*", f"arn:aws:kms:us-gov-east-1:{ME}:key/1")],
)
case(
    "star in the last part matches colons",
    "A",
    action="logs:Get",
    resource="arn:aws:logs:r:1:log-group:g:log-stream:s",
    identity=[allow("logs:*", "arn:aws:logs:r:1:log-group:*")],
)
case(
    "star in the account does not reach the resource",
    "I:identity",
    action="iam:GetRole",
    resource=f"arn:aws:iam::{ME}:role/x",
    identity=[allow("iam:*", "arn:aws:iam::*:user/x")],
)
case(
    "path of a user",
    "A",
    action="iam:GetUser",
    resource=f"arn:aws:iam::{ME}:user/teams/red/ann",
    identity=[allow("iam:*", f"arn:aws:iam::{ME}:user/teams/red/*")],
)
case(
    "path is part of the name",
    "I:identity",
    action="iam:GetUser",
    resource=f"arn:aws:iam::{ME}:user/teams/red/ann",
    identity=[allow("iam:*", f"arn:aws:iam::{ME}:user/ann")],
)
case("several resources", "A", identity=[allow(GET, [BUCKET, "arn:aws:s3:::bucket/*"])])
case("not resource leaves out", "I:identity", identity=[{"Effect": "Allow", "Action": GET, "NotResource": OBJECT}])
case("not resource allows the rest", "A", identity=[{"Effect": "Allow", "Action": GET, "NotResource": BUCKET}])
case(
    "not resource with deny",
    "D:identity",
    identity=[*EVERYTHING, {"Effect": "Deny", "Action": "s3:*", "NotResource": ["arn:aws:s3:::other/*"]}],
)
case(
    "not resource with deny spares",
    "A",
    identity=[*EVERYTHING, {"Effect": "Deny", "Action": "s3:*", "NotResource": ["arn:aws:s3:::bucket/*"]}],
)
case(
    "operations without a resource ask for star",
    "A",
    action="s3:ListAllMyBuckets",
    resource="*",
    identity=[allow("s3:List*")],
)
case(
    "an arn pattern does not match star",
    "I:identity",
    action="s3:ListAllMyBuckets",
    resource="*",
    identity=[allow("s3:*", "arn:aws:s3:::*")],
)

# Variables

case(
    "variable in a resource",
    "A",
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username}/*")],
    context={"aws:username": "ann"},
)
case(
    "variable of another",
    "I:identity",
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username}/*")],
    context={"aws:username": "bob"},
)
case("missing variable", "I:identity", identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username}/*")])
case("default of a variable", "A", identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username, 'ann'}/*")])
case(
    "default is not used when there is a value",
    "I:identity",
    context={"aws:username": "bob"},
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username, 'ann'}/*")],
)
case(
    "a value is no pattern",
    "I:identity",
    context={"aws:username": "*"},
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username}/*")],
)
case(
    "a value with a slash is literal",
    "A",
    context={"aws:username": "home/ann"},
    identity=[allow(GET, "arn:aws:s3:::bucket/${aws:username}/*")],
)
case("escaped star", "I:identity", identity=[allow(GET, "arn:aws:s3:::bucket/${*}")])
case(
    "escaped star matches a star",
    "A",
    resource="arn:aws:s3:::bucket/*",
    identity=[allow(GET, "arn:aws:s3:::bucket/${*}")],
)
case("escaped question mark", "A", resource="arn:aws:s3:::bucket/?", identity=[allow(GET, "arn:aws:s3:::bucket/${?}")])
case("escaped dollar", "A", resource="arn:aws:s3:::bucket/$x", identity=[allow(GET, "arn:aws:s3:::bucket/${$}x")])
case(
    "variables need the newer version",
    "I:identity",
    version="2008-10-17",
    context={"aws:username": "ann"},
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username}/*")],
)
case(
    "older version takes it as text",
    "A",
    version="2008-10-17",
    resource="arn:aws:s3:::bucket/${aws:username}",
    identity=[allow(GET, "arn:aws:s3:::bucket/${aws:username}")],
)
case(
    "principal tag in a resource",
    "A",
    context={"aws:PrincipalTag/home": "ann"},
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:PrincipalTag/home}/*")],
)
case(
    "variable in a condition",
    "A",
    identity=[allow(GET, **when("StringEquals", "s3:prefix", "${aws:username}"))],
    context={"aws:username": "ann", "s3:prefix": "ann"},
)
case(
    "variable with several values matches nothing",
    "I:identity",
    context={"aws:username": ["ann", "bob"]},
    identity=[allow(GET, "arn:aws:s3:::bucket/home/${aws:username}/*")],
)
case(
    "missing variable in not resource of an allow",
    "I:identity",
    identity=[{"Effect": "Allow", "Action": GET, "NotResource": "arn:aws:s3:::bucket/${aws:username}"}],
)
case(
    "missing variable in not resource of a deny",
    "D:identity",
    identity=[*EVERYTHING, {"Effect": "Deny", "Action": GET, "NotResource": "arn:aws:s3:::bucket/${aws:username}"}],
)
case(
    "tag equals tag",
    "A",
    context={"aws:ResourceTag/team": "red", "aws:PrincipalTag/team": "red"},
    identity=[allow(GET, **when("StringEquals", "aws:ResourceTag/team", "${aws:PrincipalTag/team}"))],
)
case(
    "tag differs from tag",
    "I:identity",
    context={"aws:ResourceTag/team": "blue", "aws:PrincipalTag/team": "red"},
    identity=[allow(GET, **when("StringEquals", "aws:ResourceTag/team", "${aws:PrincipalTag/team}"))],
)
case(
    "no tag equals no tag is not equal",
    "I:identity",
    identity=[allow(GET, **when("StringEquals", "aws:ResourceTag/team", "${aws:PrincipalTag/team}"))],
)

# Condition operators: (operator, values, given, holds)

OPERATORS: list[tuple[str, str, list[Any], Any, bool]] = [
    ("string equals", "StringEquals", ["red"], "red", True),
    ("string equals case", "StringEquals", ["red"], "Red", False),
    ("string equals one of several", "StringEquals", ["blue", "red"], "red", True),
    ("string equals missing", "StringEquals", ["red"], None, False),
    ("string equals is no pattern", "StringEquals", ["r*"], "red", False),
    ("string not equals", "StringNotEquals", ["red"], "blue", True),
    ("string not equals one of several", "StringNotEquals", ["blue", "red"], "red", False),
    ("string not equals missing", "StringNotEquals", ["red"], None, True),
    ("ignore case", "StringEqualsIgnoreCase", ["RED"], "red", True),
    ("not ignore case", "StringNotEqualsIgnoreCase", ["RED"], "red", False),
    ("string like", "StringLike", ["r?d"], "red", True),
    ("string like star is empty too", "StringLike", ["red*"], "red", True),
    ("string like case", "StringLike", ["R*"], "red", False),
    ("string not like", "StringNotLike", ["r*"], "red", False),
    ("string not like missing", "StringNotLike", ["r*"], None, True),
    ("if exists present", "StringEqualsIfExists", ["red"], "blue", False),
    ("if exists missing", "StringEqualsIfExists", ["red"], None, True),
    ("like if exists missing", "StringLikeIfExists", ["red"], None, True),
    ("not equals if exists missing", "StringNotEqualsIfExists", ["red"], None, True),
    ("numeric equals", "NumericEquals", ["10"], "10.0", True),
    ("numeric not equals", "NumericNotEquals", ["10"], 10, False),
    ("numeric less", "NumericLessThan", ["10"], "9.99", True),
    ("numeric less is strict", "NumericLessThan", ["10"], 10, False),
    ("numeric less or equal", "NumericLessThanEquals", [10], 10, True),
    ("numeric greater", "NumericGreaterThan", ["10"], "9", False),
    ("numeric greater or equal", "NumericGreaterThanEquals", ["10"], "10", True),
    ("numeric missing", "NumericLessThan", ["10"], None, False),
    ("numeric of text", "NumericLessThan", ["10"], "many", False),
    ("date less", "DateLessThan", ["2026-06-02T00:00:00Z"], NOON, True),
    ("date greater", "DateGreaterThan", ["2026-06-02T00:00:00Z"], NOON, False),
    ("date of another zone", "DateLessThan", ["2026-06-01T14:00:00+01:00"], NOON, True),
    ("date as epoch", "DateGreaterThan", ["1700000000"], NOON, True),
    ("date equals", "DateEquals", ["2026-06-01T12:00:00Z"], NOON, True),
    ("date not equals", "DateNotEquals", ["2026-06-01T12:00:00Z"], NOON, False),
    ("date less or equal", "DateLessThanEquals", ["2026-06-01T12:00:00Z"], NOON, True),
    ("date greater or equal missing", "DateGreaterThanEquals", ["2026-06-01T12:00:00Z"], None, False),
    ("bool true", "Bool", ["true"], True, True),
    ("bool text", "Bool", ["true"], "True", True),
    ("bool false", "Bool", ["false"], True, False),
    ("bool missing", "Bool", ["true"], None, False),
    ("bool false missing", "Bool", ["false"], None, False),
    ("bool if exists missing", "BoolIfExists", ["true"], None, True),
    ("binary equals", "BinaryEquals", ["aGk="], b"hi", True),
    ("address in a network", "IpAddress", ["10.0.0.0/8"], "10.1.2.3", True),
    ("address outside", "IpAddress", ["10.0.0.0/8"], "11.1.2.3", False),
    ("address in one of several", "IpAddress", ["10.0.0.0/8", "192.0.2.1"], "192.0.2.1", True),
    ("not address", "NotIpAddress", ["10.0.0.0/8"], "10.1.2.3", False),
    ("not address missing", "NotIpAddress", ["10.0.0.0/8"], None, True),
    ("address of version six", "IpAddress", ["2001:db8::/32"], "2001:db8::1", True),
    ("mapped address", "IpAddress", ["10.0.0.0/8"], "::ffff:10.0.0.1", True),
    ("arn like", "ArnLike", ["arn:aws:iam::*:role/w*"], ROLE, True),
    ("arn equals takes patterns", "ArnEquals", ["arn:aws:iam::*:role/w*"], ROLE, True),
    ("arn not like", "ArnNotLike", ["arn:aws:iam::*:role/w*"], ROLE, False),
    ("arn star stays in its part", "ArnLike", ["arn:aws:*:*:*:work"], ROLE, False),
    ("arn not equals missing", "ArnNotEquals", ["arn:aws:iam::*:role/w*"], None, True),
    ("null of a missing key", "Null", ["true"], None, True),
    ("null of a present key", "Null", ["true"], "x", False),
    ("not null", "Null", ["false"], "x", True),
    ("not null of a missing key", "Null", ["false"], None, False),
    ("null of an empty list", "Null", ["true"], [], True),
    ("for all values", "ForAllValues:StringEquals", ["a", "b"], ["a", "b"], True),
    ("for all values one differs", "ForAllValues:StringEquals", ["a", "b"], ["a", "c"], False),
    ("for all values of an empty list", "ForAllValues:StringEquals", ["a"], [], True),
    ("for all values of a missing key", "ForAllValues:StringEquals", ["a"], None, True),
    ("for all values like", "ForAllValues:StringLike", ["a*"], ["ab", "ac"], True),
    ("for all values not equals", "ForAllValues:StringNotEquals", ["a"], ["b", "c"], True),
    ("for all values not equals one is", "ForAllValues:StringNotEquals", ["a"], ["a", "c"], False),
    ("for any value", "ForAnyValue:StringEquals", ["a", "b"], ["c", "b"], True),
    ("for any value none", "ForAnyValue:StringEquals", ["a"], ["c", "b"], False),
    ("for any value of an empty list", "ForAnyValue:StringEquals", ["a"], [], False),
    ("for any value of a missing key", "ForAnyValue:StringEquals", ["a"], None, False),
    ("for any value not equals", "ForAnyValue:StringNotEquals", ["a"], ["a", "b"], True),
    ("for any value if exists missing", "ForAnyValue:StringEqualsIfExists", ["a"], None, True),
    ("several values without a prefix", "StringEquals", ["a"], ["b", "a"], True),
    ("several values negated without a prefix", "StringNotEquals", ["a"], ["b", "a"], False),
]
for title, operator, values, given, holds in OPERATORS:
    asked = {"identity": [allow(GET, **when(operator, "x:key", *values))], "context": {"X:Key": given}}
    case(f"condition: {title}", "A" if holds else "I:identity", **asked)
case(
    "condition: keys in any case",
    "A",
    identity=[allow(GET, **when("StringEquals", "AWS:SourceVPC", "v"))],
    context={"aws:sourcevpc": "v"},
)
case(
    "condition: all keys must hold",
    "I:identity",
    context={"x:a": "1", "x:b": "2"},
    identity=[allow(GET, Condition={"StringEquals": {"x:a": "1", "x:b": "1"}})],
)
case(
    "condition: all operators must hold",
    "I:identity",
    context={"x:a": "1", "x:b": "2"},
    identity=[allow(GET, Condition={"StringEquals": {"x:a": "1"}, "StringLike": {"x:b": "3*"}})],
)
case(
    "condition: empty for all values with deny",
    "D:identity",
    identity=[*EVERYTHING, deny(GET, **when("ForAllValues:StringEquals", "aws:TagKeys", "a"))],
)
case(
    "condition: for all values guarded by null",
    "I:identity",
    identity=[
        allow(GET, Condition={"ForAllValues:StringEquals": {"aws:TagKeys": ["a"]}, "Null": {"aws:TagKeys": "false"}})
    ],
)
case(
    "condition: deny without mfa, key missing",
    "A",
    identity=[*EVERYTHING, deny(**when("Bool", "aws:MultiFactorAuthPresent", "false"))],
)
case(
    "condition: deny without mfa, if exists",
    "D:identity",
    identity=[*EVERYTHING, deny(**when("BoolIfExists", "aws:MultiFactorAuthPresent", "false"))],
)
case(
    "condition: mfa present",
    "A",
    context={"aws:MultiFactorAuthPresent": True},
    identity=[*EVERYTHING, deny(**when("BoolIfExists", "aws:MultiFactorAuthPresent", "false"))],
)
case(
    "condition: older sessions",
    "D:identity",
    context={"aws:TokenIssueTime": NOON},
    identity=[*EVERYTHING, deny(**when("DateLessThan", "aws:TokenIssueTime", "2026-06-01T13:00:00Z"))],
)
case(
    "condition: newer sessions",
    "A",
    context={"aws:TokenIssueTime": NOON},
    identity=[*EVERYTHING, deny(**when("DateLessThan", "aws:TokenIssueTime", "2026-06-01T11:00:00Z"))],
)
case(
    "condition: without tls",
    "D:identity",
    context={"aws:SecureTransport": False},
    identity=[*EVERYTHING, deny(**when("Bool", "aws:SecureTransport", "false"))],
)

# Boundaries and session policies

case("boundary allows", "A", identity=EVERYTHING, boundary=[allow("s3:*")])
case("boundary does not allow", "I:boundary", identity=EVERYTHING, boundary=[allow("kms:*")])
case("boundary grants nothing", "I:identity", boundary=EVERYTHING)
case("boundary denies", "D:boundary", identity=EVERYTHING, boundary=[*EVERYTHING, deny(GET)])
case("session policy allows", "A", identity=EVERYTHING, session=[allow("s3:*")], caller=work)
case("session policy does not allow", "I:session", identity=EVERYTHING, session=[allow("kms:*")], caller=work)
case("session policy grants nothing", "I:identity", session=EVERYTHING, caller=work)
case("session policy denies", "D:session", identity=EVERYTHING, session=[*EVERYTHING, deny()], caller=work)
case(
    "boundary and session policy both",
    "I:boundary",
    identity=EVERYTHING,
    boundary=[allow("kms:*")],
    session=[allow("kms:*")],
    caller=work,
)
case(
    "intersection of three",
    "A",
    identity=[allow(["s3:*", "kms:*"])],
    boundary=[allow(["s3:*", "sns:*"])],
    session=[allow(["s3:*", "sqs:*"])],
    caller=work,
)

# Resource policies within the account

case("bucket policy names the user", "A", of=[to({"AWS": USER})])
case("bucket policy names another user", "I:identity", of=[to({"AWS": f"arn:aws:iam::{ME}:user/bob"})])
case("bucket policy names the account", "I:identity", of=[to({"AWS": ME})])
case("bucket policy names the root", "I:identity", of=[to({"AWS": ROOT})])
case("bucket policy names the account and identity allows", "A", identity=[allow(GET)], of=[to({"AWS": ME})])
case("bucket policy of nobody and identity allows", "A", identity=[allow(GET)], of=[to({"AWS": THEM})])
case("bucket policy names everybody", "A", of=[to("*")])
case("bucket policy star in a mapping", "A", of=[to({"AWS": "*"})])
case("bucket policy denies everybody", "D:resource", identity=EVERYTHING, of=[to("*", effect="Deny")])
case("bucket policy denies the account", "D:resource", identity=EVERYTHING, of=[to({"AWS": ME}, effect="Deny")])
case(
    "bucket policy denies the role, asked by its session",
    "D:resource",
    identity=EVERYTHING,
    caller=work,
    of=[to({"AWS": ROLE}, effect="Deny")],
)
case(
    "bucket policy denies another session",
    "A",
    identity=EVERYTHING,
    caller=work,
    of=[to({"AWS": SESSION.replace("one", "two")}, effect="Deny")],
)
case("user named, boundary does not limit", "A", boundary=[allow("kms:*")], of=[to({"AWS": USER})])
case("user named, boundary denies", "D:boundary", boundary=[deny()], of=[to({"AWS": USER})])
case("everybody named, boundary limits", "I:boundary", boundary=[allow("kms:*")], of=[to("*")])
case("role named, boundary limits", "I:boundary", caller=work, boundary=[allow("kms:*")], of=[to({"AWS": ROLE})])
case("role named, session policy limits", "I:session", caller=work, session=[allow("kms:*")], of=[to({"AWS": ROLE})])
case("session named, boundary does not limit", "A", caller=work, boundary=[allow("kms:*")], of=[to({"AWS": SESSION})])
case(
    "session named, session policy does not limit",
    "A",
    caller=work,
    session=[allow("kms:*")],
    of=[to({"AWS": SESSION})],
)
case("role named, nothing limits", "A", caller=work, of=[to({"AWS": ROLE})])
case("role named by its id", "A", caller=work, of=[to({"AWS": work.unique_id})])
case("federated user named", "A", caller=guest, session=[allow("kms:*")], of=[to({"AWS": FEDERATED})])
case("user of a federated user named", "I:session", caller=guest, session=[allow("kms:*")], of=[to({"AWS": USER})])
case(
    "condition of a bucket policy", "I:identity", of=[to({"AWS": USER}, **when("Bool", "aws:SecureTransport", "true"))]
)
case("resource of a bucket policy", "I:identity", of=[to({"AWS": USER}, GET, "arn:aws:s3:::bucket/other/*")])
case(
    "not principal with deny spares who is listed whole",
    "A",
    identity=EVERYTHING,
    of=[{"Effect": "Deny", "NotPrincipal": {"AWS": [USER, ROOT]}, "Action": "*", "Resource": "*"}],
)
case(
    "not principal with deny needs the account too",
    "D:resource",
    identity=EVERYTHING,
    of=[{"Effect": "Deny", "NotPrincipal": {"AWS": USER}, "Action": "*", "Resource": "*"}],
)
case(
    "not principal with deny needs role and session",
    "D:resource",
    identity=EVERYTHING,
    caller=work,
    of=[{"Effect": "Deny", "NotPrincipal": {"AWS": [ROOT, ROLE]}, "Action": "*", "Resource": "*"}],
)
case(
    "not principal with deny spares a session listed whole",
    "A",
    identity=EVERYTHING,
    caller=work,
    of=[{"Effect": "Deny", "NotPrincipal": {"AWS": [ROOT, ROLE, SESSION]}, "Action": "*", "Resource": "*"}],
)
case(
    "not principal with allow",
    "A",
    of=[{"Effect": "Allow", "NotPrincipal": {"AWS": THEM}, "Action": "*", "Resource": "*"}],
)
case(
    "not principal with allow leaves out",
    "I:identity",
    of=[{"Effect": "Allow", "NotPrincipal": {"AWS": USER}, "Action": "*", "Resource": "*"}],
)
case("service named", "A", caller=service, of=[to({"Service": "sagemaker.amazonaws.com"})])
case("another service named", "I:resource", caller=service, of=[to({"Service": "bedrock.amazonaws.com"})])
case("star is no service", "I:resource", caller=service, of=[to({"AWS": "*"})])
case("service is no account", "I:identity", of=[to({"Service": "sagemaker.amazonaws.com"})])

# Confused deputy

case(
    "deputy for the right account",
    "A",
    caller=service,
    context={"aws:SourceAccount": ME},
    trusts=[trust({"Service": "sagemaker.amazonaws.com"}, **when("StringEquals", "aws:SourceAccount", ME))],
    action="sts:AssumeRole",
    resource=ROLE,
)
case(
    "deputy for another account",
    "I:resource",
    caller=service,
    context={"aws:SourceAccount": THEM},
    trusts=[trust({"Service": "sagemaker.amazonaws.com"}, **when("StringEquals", "aws:SourceAccount", ME))],
    action="sts:AssumeRole",
    resource=ROLE,
)
case(
    "deputy that does not say for whom",
    "I:resource",
    caller=service,
    trusts=[trust({"Service": "sagemaker.amazonaws.com"}, **when("StringEquals", "aws:SourceAccount", ME))],
    action="sts:AssumeRole",
    resource=ROLE,
)
case(
    "deputy for one job",
    "A",
    caller=service,
    context={"aws:SourceArn": f"arn:aws:sagemaker:r:{ME}:training-job/a"},
    trusts=[
        trust(
            {"Service": "sagemaker.amazonaws.com"},
            **when("ArnLike", "aws:SourceArn", f"arn:aws:sagemaker:*:{ME}:training-job/*"),
        )
    ],
    action="sts:AssumeRole",
    resource=ROLE,
)
case(
    "deputy with the external id",
    "A",
    across=True,
    identity=EVERYTHING,
    context={"sts:ExternalId": "x"},
    trusts=[trust({"AWS": ME}, **when("StringEquals", "sts:ExternalId", "x"))],
    action="sts:AssumeRole",
    resource=f"arn:aws:iam::{THEM}:role/r",
)
case(
    "deputy without the external id",
    "I:resource",
    across=True,
    identity=EVERYTHING,
    trusts=[trust({"AWS": ME}, **when("StringEquals", "sts:ExternalId", "x"))],
    action="sts:AssumeRole",
    resource=f"arn:aws:iam::{THEM}:role/r",
)

# Across accounts

THEIRS = "arn:aws:s3:::theirs/x"
case("across: no bucket policy", "I:resource", across=True, resource=THEIRS, identity=EVERYTHING)
case(
    "across: both sides allow the account", "A", across=True, resource=THEIRS, identity=EVERYTHING, of=[to({"AWS": ME})]
)
case(
    "across: both sides allow the user", "A", across=True, resource=THEIRS, identity=EVERYTHING, of=[to({"AWS": USER})]
)
case("across: bucket policy alone", "I:identity", across=True, resource=THEIRS, of=[to({"AWS": USER})])
case("across: everybody is not enough", "I:identity", across=True, resource=THEIRS, of=[to("*")])
case("across: everybody and identity", "A", across=True, resource=THEIRS, identity=[allow(GET)], of=[to("*")])
case("across: identity alone", "I:resource", across=True, resource=THEIRS, identity=EVERYTHING, of=[to({"AWS": THEM})])
case(
    "across: the session named needs its role's policies",
    "I:identity",
    across=True,
    resource=THEIRS,
    caller=work,
    of=[to({"AWS": SESSION})],
)
case(
    "across: boundary limits",
    "I:boundary",
    across=True,
    resource=THEIRS,
    identity=EVERYTHING,
    boundary=[allow("kms:*")],
    of=[to({"AWS": USER})],
)
case(
    "across: session policy limits",
    "I:session",
    across=True,
    resource=THEIRS,
    identity=EVERYTHING,
    caller=work,
    session=[allow("kms:*")],
    of=[to({"AWS": SESSION})],
)
case(
    "across: their deny",
    "D:resource",
    across=True,
    resource=THEIRS,
    identity=EVERYTHING,
    of=[to({"AWS": ME}), to({"AWS": USER}, effect="Deny")],
)
case(
    "across: public and confined",
    "I:resource",
    across=True,
    resource=THEIRS,
    identity=EVERYTHING,
    of=[to("*")],
    confined=True,
)
case("within: public and confined", "A", of=[to("*")], confined=True)
case(
    "across: confined still denies",
    "D:resource",
    across=True,
    resource=THEIRS,
    identity=EVERYTHING,
    confined=True,
    of=[to("*", effect="Deny")],
)

# Keys: the policy governs

DECRYPT = {"action": "kms:Decrypt", "resource": KEY, "governs": True}
case("key: identity alone", "I:resource", identity=EVERYTHING, of=[to({"AWS": THEM})], **DECRYPT)
case("key: delegated to the account", "A", identity=[allow("kms:*")], of=[to({"AWS": ROOT}, "kms:*")], **DECRYPT)
case("key: delegated, identity does not allow", "I:identity", of=[to({"AWS": ROOT}, "kms:*")], **DECRYPT)
case(
    "key: delegated for other actions",
    "I:resource",
    identity=EVERYTHING,
    of=[to({"AWS": ROOT}, "kms:Encrypt")],
    **DECRYPT,
)
case("key: user named", "A", of=[to({"AWS": USER}, "kms:*")], **DECRYPT)
case("key: role named", "A", caller=work, of=[to({"AWS": ROLE}, "kms:*")], **DECRYPT)
case(
    "key: role named, session policy limits",
    "I:session",
    caller=work,
    session=[allow("s3:*")],
    of=[to({"AWS": ROLE}, "kms:*")],
    **DECRYPT,
)
case("key: across, both sides", "A", across=True, identity=[allow("kms:*")], of=[to({"AWS": ROOT}, "kms:*")], **DECRYPT)
case("key: across, one side", "I:identity", across=True, of=[to({"AWS": USER}, "kms:*")], **DECRYPT)
case(
    "key: by way of a service",
    "A",
    of=[to("*", "kms:*", **when("StringEquals", "kms:ViaService", "s3.r"))],
    context={"kms:ViaService": "s3.r"},
    **DECRYPT,
)
case(
    "key: not by way of a service",
    "I:resource",
    identity=EVERYTHING,
    of=[to("*", "kms:*", **when("StringEquals", "kms:ViaService", "s3.r"))],
    **DECRYPT,
)
case(
    "key: encryption context",
    "A",
    context={"kms:EncryptionContext:team": "red"},
    of=[to({"AWS": USER}, "kms:*", **when("StringEquals", "kms:EncryptionContext:team", "red"))],
    **DECRYPT,
)
case(
    "key: deny in the key policy",
    "D:resource",
    identity=EVERYTHING,
    of=[to({"AWS": ROOT}, "kms:*"), to({"AWS": USER}, "kms:Decrypt", effect="Deny")],
    **DECRYPT,
)

# Trust policies

ASSUME = {"action": "sts:AssumeRole", "resource": ROLE}
case("trust: user named", "A", trusts=[trust({"AWS": USER})], **ASSUME)
case("trust: account named and identity", "A", identity=[allow("sts:*")], trusts=[trust({"AWS": ROOT})], **ASSUME)
case("trust: account named without identity", "I:identity", trusts=[trust({"AWS": ROOT})], **ASSUME)
case("trust: everybody without identity", "I:identity", trusts=[trust("*")], **ASSUME)
case("trust: everybody and identity", "A", identity=[allow("sts:*")], trusts=[trust("*")], **ASSUME)
case("trust: identity cannot do without", "I:resource", identity=EVERYTHING, trusts=[trust({"AWS": THEM})], **ASSUME)
case("trust: identity denies", "D:identity", identity=[deny("sts:*")], trusts=[trust({"AWS": USER})], **ASSUME)
case("trust: role chaining by the role", "A", caller=work, trusts=[trust({"AWS": ROLE})], **ASSUME)
case(
    "trust: tags need another permission",
    "I:resource",
    trusts=[trust({"AWS": USER})],
    action="sts:TagSession",
    resource=ROLE,
)
case("trust: across accounts", "A", across=True, identity=[allow("sts:*")], trusts=[trust({"AWS": ME})], **ASSUME)
case("trust: across accounts needs identity", "I:identity", across=True, trusts=[trust({"AWS": USER})], **ASSUME)
case(
    "trust: provider named",
    "A",
    caller=oidc,
    trusts=[trust({"Federated": oidc.federated}, "sts:*")],
    action="sts:AssumeRoleWithWebIdentity",
    resource=ROLE,
    context={"issuer.example:aud": "me"},
)
case(
    "trust: another provider named",
    "I:resource",
    caller=oidc,
    action="sts:AssumeRoleWithWebIdentity",
    resource=ROLE,
    trusts=[trust({"Federated": oidc.federated + "2"}, "sts:*")],
)
case(
    "trust: subject of the provider",
    "I:resource",
    caller=oidc,
    action="sts:AssumeRoleWithWebIdentity",
    resource=ROLE,
    trusts=[trust({"Federated": oidc.federated}, "sts:*", **when("StringEquals", "issuer.example:sub", "ann"))],
    context={"issuer.example:sub": "eve"},
)
case(
    "trust: star is no provider",
    "I:resource",
    caller=oidc,
    action="sts:AssumeRoleWithWebIdentity",
    resource=ROLE,
    trusts=[trust("*", "sts:*")],
)

# Organisations

case("scp allows", "A", identity=EVERYTHING, scps=[EVERYTHING, [allow("s3:*")]])
case("scp grants nothing", "I:identity", scps=[EVERYTHING])
case("scp does not allow", "I:scp", identity=EVERYTHING, scps=[EVERYTHING, [allow("kms:*")]])
case("every level must allow", "I:scp", identity=EVERYTHING, scps=[[allow("kms:*")], EVERYTHING])
case("scp denies at any level", "D:scp", identity=EVERYTHING, scps=[[*EVERYTHING, deny(GET)], EVERYTHING])
case("two policies at one level", "A", identity=EVERYTHING, scps=[[allow("kms:*"), allow("s3:*")]])
case("scp binds whom a bucket policy names", "I:scp", of=[to({"AWS": USER})], scps=[[allow("kms:*")]])
case(
    "scp with a condition",
    "D:scp",
    identity=EVERYTHING,
    context={"aws:RequestedRegion": "eu-west-1"},
    scps=[[*EVERYTHING, deny(**when("StringNotEquals", "aws:RequestedRegion", "us-gov-west-1"))]],
)
case(
    "scp with not action",
    "A",
    identity=EVERYTHING,
    context={"aws:RequestedRegion": "eu-west-1"},
    scps=[[*EVERYTHING, {"Effect": "Deny", "NotAction": "s3:*", "Resource": "*"}]],
)
case("rcp denies", "D:rcp", identity=EVERYTHING, rcps=[[*EVERYTHING, deny("s3:*")]])
case(
    "rcp of strangers",
    "D:rcp",
    across=True,
    identity=EVERYTHING,
    of=[to({"AWS": ME})],
    context={"aws:PrincipalOrgID": "o-other"},
    rcps=[[*EVERYTHING, deny("s3:*", **when("StringNotEqualsIfExists", "aws:PrincipalOrgID", "o-ours"))]],
)
case(
    "rcp of the own organisation",
    "A",
    across=True,
    identity=EVERYTHING,
    of=[to({"AWS": ME})],
    context={"aws:PrincipalOrgID": "o-ours"},
    rcps=[[*EVERYTHING, deny("s3:*", **when("StringNotEqualsIfExists", "aws:PrincipalOrgID", "o-ours"))]],
)
case("rcp is said before scp", "D:rcp", identity=EVERYTHING, rcps=[[deny()]], scps=[[deny()]])
case("an explicit deny is said before a missing allow", "D:identity", identity=[deny()], scps=[[allow("kms:*")]])
case(
    "bucket for the organisation",
    "A",
    across=True,
    identity=EVERYTHING,
    context={"aws:PrincipalOrgID": "o-ours"},
    of=[to("*", **when("StringEquals", "aws:PrincipalOrgID", "o-ours"))],
)
case(
    "bucket for a unit",
    "A",
    across=True,
    identity=EVERYTHING,
    context={"aws:PrincipalOrgPaths": ["o-1/r-1/ou-1/"]},
    of=[to("*", **when("ForAnyValue:StringLike", "aws:PrincipalOrgPaths", "o-1/r-1/ou-1/*"))],
)
case(
    "bucket for another unit",
    "I:resource",
    across=True,
    identity=EVERYTHING,
    context={"aws:PrincipalOrgPaths": ["o-1/r-1/ou-2/"]},
    of=[to("*", **when("ForAnyValue:StringLike", "aws:PrincipalOrgPaths", "o-1/r-1/ou-1/*"))],
)


@pytest.mark.parametrize(("asked", "expected"), list(CASES.values()), ids=list(CASES))
def test_case(asked: dict[str, Any], expected: str) -> None:
    assert told(ask(**asked)) == expected


def test_there_are_two_hundred_cases() -> None:
    assert len(CASES) >= 200
