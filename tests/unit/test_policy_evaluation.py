"""Policies: hand-made cases, strictness of documents, and a naive reference evaluator against the compiled one."""

from __future__ import annotations

import json
import os
import random
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from honmaru.security.policy import (
    Caller,
    Effect,
    MalformedPolicy,
    Naming,
    PolicyKind,
    PolicySet,
    compile_policy,
    decide,
)

LONG = os.environ.get("HONMARU_LONG") == "1"
A, D, I = Effect.ALLOWED, Effect.EXPLICIT_DENY, Effect.IMPLICIT_DENY  # noqa: E741


def policy(*statements: dict[str, Any], version: str = "2012-10-17") -> PolicySet:
    return compile_policy(json.dumps({"Version": version, "Statement": list(statements)}))


def allow(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def ask(p: PolicySet, action: str, resource: str, **context: Any) -> Effect:
    return p.evaluate(action, resource, {k.replace("__", ":").lower(): v for k, v in context.items()}).effect


B = "arn:aws-iso-b:s3:::bucket"


@pytest.mark.parametrize(
    ("statements", "action", "resource", "expected"),
    [
        ([allow()], "s3:GetObject", B, A),
        ([allow("s3:*")], "S3:GetObject", B, A),
        ([allow("s3:get*")], "s3:GetObject", B, A),
        ([allow("s3:get*")], "s3:PutObject", B, I),
        ([allow("s3:GetObjec?")], "s3:GetObject", B, A),
        ([allow("s3:*", B + "/*")], "s3:GetObject", B + "/a/b", A),
        ([allow("s3:*", B + "/*")], "s3:GetObject", B, I),
        ([allow("s3:*", "arn:aws-iso-b:s3:::buck*")], "s3:GetObject", B, A),
        ([allow("s3:*", "arn:aws:s3:::*")], "s3:GetObject", B, I),
        ([allow("s3:*", "arn:*:s3:::*")], "s3:ListAllMyBuckets", "*", I),
        ([allow(), {"Effect": "Deny", "Action": "s3:*", "Resource": B + "/*"}], "s3:GetObject", B + "/x", D),
        ([{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}], "iam:CreateUser", "*", I),
        ([{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}], "s3:ListAllMyBuckets", "*", A),
        ([{"Effect": "Allow", "Action": "s3:*", "NotResource": B}], "s3:GetObject", B, I),
        ([{"Effect": "Allow", "Action": "s3:*", "NotResource": B}], "s3:GetObject", B + "2", A),
    ],
)
def test_actions_and_resources(statements: list[dict[str, Any]], action: str, resource: str, expected: Effect) -> None:
    assert ask(policy(*statements), action, resource) is expected


@pytest.mark.parametrize(
    ("condition", "context", "expected"),
    [
        ({"StringEquals": {"a:k": ["x", "y"]}}, {"a__k": "y"}, A),
        ({"StringEquals": {"A:K": "x"}}, {"a__k": "x"}, A),
        ({"StringEquals": {"a:k": "x"}}, {"a__k": "X"}, I),
        ({"StringEqualsIgnoreCase": {"a:k": "x"}}, {"a__k": "X"}, A),
        ({"StringEquals": {"a:k": "x*"}}, {"a__k": "xy"}, I),
        ({"StringLike": {"a:k": "x*"}}, {"a__k": "xy"}, A),
        ({"StringNotLike": {"a:k": "x*"}}, {"a__k": "xy"}, I),
        ({"StringNotEquals": {"a:k": ["x", "y"]}}, {"a__k": "y"}, I),
        ({"StringNotEquals": {"a:k": "x"}}, {}, A),
        ({"StringEquals": {"a:k": "x"}}, {}, I),
        ({"StringEqualsIfExists": {"a:k": "x"}}, {}, A),
        ({"StringEqualsIfExists": {"a:k": "x"}}, {"a__k": "z"}, I),
        ({"NumericLessThan": {"a:k": "10"}}, {"a__k": 9.5}, A),
        ({"NumericLessThanEquals": {"a:k": 10}}, {"a__k": 10}, A),
        ({"NumericGreaterThan": {"a:k": "10"}}, {"a__k": "9"}, I),
        ({"NumericEquals": {"a:k": "10"}}, {"a__k": "garbage"}, I),
        ({"DateLessThan": {"a:k": "2026-01-01T00:00:00Z"}}, {"a__k": datetime(2025, 12, 31, tzinfo=UTC)}, A),
        ({"DateGreaterThan": {"a:k": "1700000000"}}, {"a__k": "2023-11-14T22:13:19Z"}, I),
        ({"Bool": {"a:k": "true"}}, {"a__k": True}, A),
        ({"Bool": {"a:k": True}}, {"a__k": False}, I),
        ({"BinaryEquals": {"a:k": "aGk="}}, {"a__k": b"hi"}, A),
        ({"IpAddress": {"a:k": "10.0.0.0/8"}}, {"a__k": "10.1.2.3"}, A),
        ({"IpAddress": {"a:k": "10.0.0.0/8"}}, {"a__k": "::ffff:10.1.2.3"}, A),
        ({"NotIpAddress": {"a:k": ["10.0.0.0/8", "::1"]}}, {"a__k": "::1"}, I),
        ({"ArnLike": {"a:k": "arn:*:iam::*:role/x*"}}, {"a__k": "arn:aws:iam::123456789012:role/xy"}, A),
        ({"ArnNotEquals": {"a:k": "arn:*:iam::*:role/x*"}}, {"a__k": "arn:aws:iam::123456789012:role/xy"}, I),
        ({"ArnLike": {"a:k": "arn:aws:iam:*:role/x"}}, {"a__k": "x"}, "malformed"),
        ({"Null": {"a:k": "true"}}, {}, A),
        ({"Null": {"a:k": "false"}}, {}, I),
        ({"Null": {"a:k": "false"}}, {"a__k": ""}, A),
        ({"ForAllValues:StringEquals": {"a:k": ["x", "y"]}}, {"a__k": ["x", "y"]}, A),
        ({"ForAllValues:StringEquals": {"a:k": ["x", "y"]}}, {"a__k": ["x", "z"]}, I),
        ({"ForAllValues:StringEquals": {"a:k": ["x", "y"]}}, {}, A),
        ({"ForAnyValue:StringEquals": {"a:k": ["x", "y"]}}, {"a__k": ["z", "x"]}, A),
        ({"ForAnyValue:StringEquals": {"a:k": ["x", "y"]}}, {}, I),
        ({"ForAnyValue:StringNotEquals": {"a:k": "x"}}, {"a__k": ["x", "z"]}, A),
        ({"ForAnyValue:StringNotEquals": {"a:k": "x"}}, {}, I),
        ({"StringEquals": {"a:k": "x"}, "Bool": {"a:b": "true"}}, {"a__k": "x", "a__b": False}, I),
        ({"StringEquals": {"a:k": "${a:v}"}}, {"a__k": "q", "a__v": "q"}, A),
        ({"StringEquals": {"a:k": "${a:v}"}}, {"a__k": "${a:v}"}, I),
        ({"StringEquals": {"a:k": "${a:v, 'w'}"}}, {"a__k": "w"}, A),
        ({"StringLike": {"a:k": "a${*}"}}, {"a__k": "ab"}, I),
        ({"StringLike": {"a:k": "${a:v}"}}, {"a__k": "anything", "a__v": "*"}, I),
    ],
)
def test_conditions(condition: dict[str, Any], context: dict[str, Any], expected: Any) -> None:
    if expected == "malformed":
        with pytest.raises(MalformedPolicy):
            policy(allow(Condition=condition))
    else:
        assert ask(policy(allow(Condition=condition)), "s3:GetObject", B, **context) is expected


def test_variables_in_resources() -> None:
    home = policy(allow("s3:*", B + "/home/${aws:username}/*"))
    assert ask(home, "s3:GetObject", B + "/home/ann/x", aws__username="ann") is A
    assert ask(home, "s3:GetObject", B + "/home/bob/x", aws__username="ann") is I
    assert ask(home, "s3:GetObject", B + "/home/ann/x") is I
    assert ask(home, "s3:GetObject", B + "/home/ann/x", aws__username="*") is I
    old = policy(allow("s3:*", B + "/${aws:username}"), version="2008-10-17")
    assert ask(old, "s3:GetObject", B + "/ann", aws__username="ann") is I
    unresolved = policy({"Effect": "Allow", "Action": "*", "NotResource": B + "/${aws:username}"})
    assert ask(unresolved, "s3:GetObject", B + "/x") is I


def test_decision_order() -> None:
    everything, nothing = policy(allow()), policy(allow("sts:*"))
    deny = policy({"Sid": "No", "Effect": "Deny", "Action": "*", "Resource": "*"})
    assert decide("s3:GetObject", B, {}, identity=everything).allowed
    refused = decide("s3:GetObject", B, {}, identity=everything, session=nothing)
    assert (refused.effect, refused.reason) == (I, "session")
    refused = decide("s3:GetObject", B, {}, identity=everything, boundary=nothing)
    assert (refused.effect, refused.reason) == (I, "boundary")
    refused = decide("s3:GetObject", B, {}, identity=nothing, session=deny)
    assert (refused.effect, refused.reason, refused.matched) == (D, "session", (("", "No"),))


def test_trust_policies() -> None:
    def trust(principal: Any, **more: Any) -> PolicySet:
        statement = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": principal, **more}
        return compile_policy(json.dumps({"Statement": statement}), "", PolicyKind.TRUST)

    ann = Caller("arn:aws:iam::111122223333:user/ann", "arn:aws:iam::111122223333:user/ann", "111122223333", "aws")
    sagemaker = Caller(service="sagemaker.amazonaws.com")

    def says(p: PolicySet, caller: Caller) -> bool:
        return p.evaluate("sts:AssumeRole", "*", {}, caller).effect is A

    assert says(trust({"AWS": "111122223333"}), ann)
    assert says(trust({"AWS": "arn:aws:iam::111122223333:root"}), ann)
    assert says(trust({"AWS": ann.arn}), ann)
    assert not says(trust({"AWS": "arn:aws:iam::111122223333:user/bob"}), ann)
    assert not says(trust({"AWS": "999922223333"}), ann)
    assert says(trust({"Service": "sagemaker.amazonaws.com"}), sagemaker)
    assert not says(trust({"AWS": "*"}), sagemaker)
    assert not says(trust({"Service": "sagemaker.amazonaws.com"}), ann)

    def naming(principal: Any) -> Naming:
        return trust(principal).evaluate("sts:AssumeRole", "*", {}, ann).naming

    assert naming({"AWS": ann.arn}) is Naming.SESSION
    assert naming({"AWS": "*"}) is Naming.EVERYBODY
    assert naming({"AWS": ["111122223333"]}) is Naming.ACCOUNT


S = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"Statement": []}',
        '{"Statement": [1]}',
        "[" * 100000,
        '{"Statement": {"Effect": "Allow", "Effect": "Deny", "Action": "s3:*", "Resource": "*"}}',
        '{"Version": "2020-01-01", "Statement": ' + json.dumps(S) + "}",
        '{"Extra": 1, "Statement": ' + json.dumps(S) + "}",
        '{"Statement": ' + json.dumps(S) + ', "Id": NaN}',
        *(
            json.dumps({"Version": "2012-10-17", "Statement": s})
            for s in (
                {"Action": "s3:*", "Resource": "*"},
                {**S, "Effect": "allow"},
                {**S, "NotAction": "iam:*"},
                {**S, "Action": []},
                {**S, "Action": "s3"},
                {**S, "Action": 5},
                {**S, "Action": "s3:Get Object"},
                {**S, "Resource": "bucket"},
                {**S, "Resource": "arn:aws:s3"},
                {**S, "Resource": []},
                {**S, "Resource": "arn:aws:s3:::${}"},
                {**S, "NotResource": "*"},
                {"Effect": "Allow", "Action": "s3:*"},
                {**S, "Principal": "*"},
                {**S, "Foo": 1},
                {**S, "Sid": "a-b"},
                [{**S, "Sid": "a"}, {**S, "Sid": "a"}],
                {**S, "Condition": []},
                {**S, "Condition": {"StringEqual": {"a:k": "x"}}},
                {**S, "Condition": {"StringEquals": {"k": "x"}}},
                {**S, "Condition": {"NumericEquals": {"a:k": "x"}}},
                {**S, "Condition": {"DateEquals": {"a:k": "soon"}}},
                {**S, "Condition": {"Bool": {"a:k": "maybe"}}},
                {**S, "Condition": {"IpAddress": {"a:k": "10.0.0.0/99"}}},
                {**S, "Condition": {"NullIfExists": {"a:k": "true"}}},
                {**S, "Condition": {"StringEquals": {"a:k": [None]}}},
                {**S, "Condition": {"BinaryEquals": {"a:k": "%%"}}},
                {**S, "Condition": {"StringEquals": {"a:k": "${"}}, "X": 1},
            )
        ),
    ],
)
def test_malformed_documents_are_refused(text: str) -> None:
    with pytest.raises(MalformedPolicy) as refusal:
        compile_policy(text)
    assert refusal.value.code == "MalformedPolicyDocument"


@pytest.mark.parametrize(
    "statement",
    [
        S,
        {**S, "Principal": "*"},
        {"Effect": "Allow", "Action": "sts:AssumeRole"},
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "bob"}},
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "arn:aws:iam::111122223333:user/*"}},
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "*"}},
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {}},
    ],
)
def test_malformed_trust_policies_are_refused(statement: dict[str, Any]) -> None:
    with pytest.raises(MalformedPolicy):
        compile_policy(json.dumps({"Statement": statement}), "", PolicyKind.TRUST)


# A naive evaluator: a direct reading of the user guide, no index, no compilation, its own wildcard matching.


def wild(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(wild(pattern[1:], text[i:]) for i in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and wild(pattern[1:], text[1:])


def naive_value(op: str, wanted: str, given: str) -> bool:
    if op == "StringEquals":
        return wanted == given
    if op == "StringLike":
        return wild(wanted, given)
    if op == "NumericLessThan":
        return float(given) < float(wanted)
    raise AssertionError(op)


def naive_condition(name: str, wanted: list[str], given: list[str] | None) -> bool:
    quantifier, _, op = name.rpartition(":")
    exists = op.endswith("IfExists")
    op = op.removesuffix("IfExists")
    negated = "Not" in op
    op = op.replace("Not", "")
    if not given:
        if exists or quantifier == "ForAllValues":
            return True
        return negated and quantifier != "ForAnyValue"

    def one(value: str) -> bool:
        hit = False
        for w in wanted:
            hit = hit or naive_value(op, w, value)
        return hit

    hits = [one(v) for v in given]
    if quantifier == "ForAllValues":
        return all((not h) if negated else h for h in hits)
    if quantifier == "ForAnyValue":
        return any((not h) if negated else h for h in hits)
    return (not any(hits)) if negated else any(hits)


def naive(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, Any]) -> Effect:
    def concerned(s: dict[str, Any]) -> bool:
        actions = [a.lower() for a in s.get("Action", s.get("NotAction"))]
        hit = any(wild(a, action.lower()) for a in actions)
        if hit != ("Action" in s):
            return False
        hit = False
        for r in s.get("Resource", s.get("NotResource")):
            if r == "*":
                hit = True
            elif resource.count(":") >= 5:
                hit = hit or all(wild(a, b) for a, b in zip(r.split(":", 5), resource.split(":", 5), strict=True))
        if hit != ("Resource" in s):
            return False
        for op, keys in s.get("Condition", {}).items():
            for key, values in keys.items():
                given = context.get(key.lower())
                if not naive_condition(op, values, given if isinstance(given, list) or given is None else [given]):
                    return False
        return True

    matching = [s["Effect"] for s in statements if concerned(s)]
    return D if "Deny" in matching else A if "Allow" in matching else I


def random_statement(r: random.Random) -> dict[str, Any]:
    actions = ["*", "s3:*", "s3:Get*", "s3:GetObject", "s3:?etObject", "iam:PassRole", "*:Get*", "s3:*Object*"]
    resources = [
        "*",
        "arn:aws:s3:::b*",
        "arn:aws:s3:::b/*",
        "arn:aws:s3:::b/a?c*d",
        "arn:*:s3:::*",
        "arn:aws:iam::1:role/*x*",
    ]
    statement: dict[str, Any] = {"Effect": r.choice(["Allow", "Allow", "Deny"])}
    statement[r.choice(["Action", "Action", "NotAction"])] = r.sample(actions, r.randint(1, 2))
    statement[r.choice(["Resource", "Resource", "NotResource"])] = r.sample(resources, r.randint(1, 2))
    for _ in range(r.choice([0, 0, 1, 2])):
        base = r.choice(["StringEquals", "StringLike", "NumericLessThan", "StringNotEquals", "StringNotLike"])
        values = ["1", "5", "9"] if base.startswith("Num") else ["a", "b*", "?", "1"]
        op = r.choice(["", "", "ForAllValues:", "ForAnyValue:"]) + base + r.choice(["", "", "IfExists"])
        statement.setdefault("Condition", {})[op] = {
            r.choice(["t:n"] if base.startswith("Num") else ["t:a", "T:B"]): r.sample(values, r.randint(1, 2))
        }
    return statement


def test_compiled_evaluator_agrees_with_a_naive_reading() -> None:
    r = random.Random(20261123)
    seen: dict[Effect, int] = {}
    for _ in range(100_000 if LONG else 3000):
        statements = [random_statement(r) for _ in range(r.randint(1, 4))]
        compiled = policy(*statements)
        for _ in range(10):
            action = r.choice(["s3:GetObject", "s3:PutObjectAcl", "iam:PassRole", "S3:getobject"])
            resource = r.choice(
                ["*", "arn:aws:s3:::b", "arn:aws:s3:::b/abcd", "arn:aws:s3:::b/axcxd", "arn:aws:iam::1:role/xx"]
            )
            context: dict[str, Any] = {}
            for key in ("t:a", "t:b"):
                if r.random() < 0.7:
                    context[key] = r.choice(["a", "bb", "1", ["a", "bb"], []])
            if r.random() < 0.7:
                context["t:n"] = r.choice(["0", "4", ["2", "7"]])
            expected = naive(statements, action, resource, context)
            seen[expected] = seen.get(expected, 0) + 1
            assert compiled.evaluate(action, resource, context).effect is expected, (
                statements,
                action,
                resource,
                context,
            )
    assert min(seen[A], seen[D], seen[I]) > 100


def test_wildcards_cannot_blow_up_and_thousand_statements_are_fast() -> None:
    bomb = policy(allow("s3:" + "*a" * 60, "arn:aws:s3:::" + "*?a" * 200))
    start = time.perf_counter()
    ask(bomb, "s3:" + "a" * 5000 + "b", "arn:aws:s3:::" + "a" * 5000 + "b")
    assert time.perf_counter() - start < 0.5
    many = policy(*(allow(f"svc{i}:Get*", f"arn:aws:s3:::b{i}/*") for i in range(1000)), allow("s3:*", "*"))
    many.evaluate("s3:GetObject", B, {})
    start = time.perf_counter()
    for _ in range(1000):
        many.evaluate("s3:GetObject", B, {})
    assert (time.perf_counter() - start) / 1000 < 250e-6
