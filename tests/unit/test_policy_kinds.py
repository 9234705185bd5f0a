"""Decisions over every kind of policy: a naive evaluator, written from AWS's published rules, against the compiled one.

The naive one reads documents as JSON, statement by statement, with no index, no compilation and no shared code.
Source: IAM user guide, "Policy evaluation logic" and the pages that it links.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from honmaru.security.policy import Caller, Effect, PolicyKind, PolicySet, ResourcePolicy, compile_policy, decide
from honmaru.security.policy.statements import Naming

LONG = os.environ.get("HONMARU_LONG") == "1"
A, D, I = Effect.ALLOWED, Effect.EXPLICIT_DENY, Effect.IMPLICIT_DENY  # noqa: E741
HERE, THERE = "111111111111", "222222222222"
USER = f"arn:aws:iam::{HERE}:user/ann"
ROLE = f"arn:aws:iam::{HERE}:role/work"
SESSION = f"arn:aws:sts::{HERE}:assumed-role/work/one"
FEDERATED = f"arn:aws:sts::{HERE}:federated-user/ann"
CALLERS = {
    "user": Caller(USER, USER, HERE, "aws", unique_id="AIDAEXAMPLEEXAMPLE"),
    "role": Caller(SESSION, ROLE, HERE, "aws", unique_id="AROAEXAMPLEEXAMPLE"),
    "federated": Caller(FEDERATED, USER, HERE, "aws", unique_id="AIDAEXAMPLEEXAMPLE"),
}
Statement = dict[str, Any]


# The naive evaluator


def wild(pattern: str, text: str) -> bool:
    """`*` and `?`, by trying everything."""
    reach = {0}
    for mark in pattern:
        if mark == "*":
            reach = set(range(min(reach, default=len(text) + 1), len(text) + 1))
        else:
            reach = {at + 1 for at in reach if at < len(text) and mark in ("?", text[at])}
    return len(text) in reach


def about(statement: Statement, action: str, resource: str, context: dict[str, Any]) -> bool:
    named = "Action" in statement
    if any(wild(each.lower(), action.lower()) for each in statement["Action" if named else "NotAction"]) != named:
        return False
    named = "Resource" in statement
    if any(wild(each, resource) for each in statement["Resource" if named else "NotResource"]) != named:
        return False
    for operator, keys in statement.get("Condition", {}).items():
        for key, wanted in keys.items():
            given = context.get(key.lower())
            if operator == "Null":
                if (given is None) != (wanted == ["true"]):
                    return False
            elif operator == "StringNotEquals":
                if given in wanted:
                    return False
            elif given not in wanted:
                return False
    return True


def layers(caller: Caller) -> list[str]:
    return sorted({f"arn:aws:iam::{caller.account}:root", caller.issuer_arn, caller.arn})


def named_as(statement: Statement, caller: Caller) -> str:
    """ "" (not named), "account", "all", "principal" or "session"."""
    if "NotPrincipal" in statement:
        listed = statement["NotPrincipal"]["AWS"]
        exempt = [layer in listed for layer in layers(caller)]
        spared = any(exempt) if statement["Effect"] == "Allow" else all(exempt)
        return "" if spared else "all"
    listed = ["*"] if statement["Principal"] == "*" else statement["Principal"].get("AWS", [])
    if caller.arn in listed:
        return "session"
    if caller.issuer_arn in listed or caller.unique_id in listed:
        return "principal"
    if "*" in listed:
        return "all"
    return "account" if caller.account in listed or f"arn:aws:iam::{caller.account}:root" in listed else ""


def naive(world: dict[str, Any]) -> Effect:
    action, resource, context, caller = world["action"], world["resource"], world["context"], world["caller"]

    def says(policy: list[Statement] | None, effect: str) -> list[Statement]:
        return [s for s in policy or () if s["Effect"] == effect and about(s, action, resource, context)]

    plain = [world["identity"], world["boundary"], world["session"], *world["scps"], *world["rcps"]]
    if any(says(policy, "Deny") for policy in plain):
        return D
    if any(named_as(s, caller) for s in says(world["of_resource"], "Deny")):
        return D
    if not all(says(level, "Allow") for level in [*world["rcps"], *world["scps"]]):
        return I
    granted = {named_as(s, caller) for s in says(world["of_resource"], "Allow")} - {""}
    same = world["same_account"]
    if world["confined"] and not same:
        granted = set()
    identity = bool(says(world["identity"], "Allow"))
    inside = all(says(limit, "Allow") for limit in (world["boundary"], world["session"]) if limit is not None)
    by_itself = {"session", "principal"} | (set() if world["trust"] else {"all"})
    if same:
        if "session" in granted:
            return A
        if granted & by_itself:
            return A if inside else I
        if world["governs"] and not granted:
            return I
        return A if identity and inside else I
    return A if granted and identity and inside else I


# Random worlds

ACTIONS = ["*", "s3:*", "s3:Get*", "s3:GetObject", "kms:*", "s3:Put*"]
RESOURCES = ["*", "arn:aws:s3:::b*", "arn:aws:s3:::b/k", "arn:aws:s3:::other/*", "arn:aws:s3:::b/?"]
PRINCIPALS = [
    "*",
    HERE,
    f"arn:aws:iam::{HERE}:root",
    USER,
    ROLE,
    SESSION,
    FEDERATED,
    THERE,
    f"arn:aws:iam::{THERE}:user/ann",
    "AROAEXAMPLEEXAMPLE",
    "AIDAEXAMPLEEXAMPLE",
]


def a_statement(r: random.Random, *, principal: bool = False, denies: float = 0.2) -> Statement:
    statement: Statement = {"Effect": "Deny" if r.random() < denies else "Allow"}
    statement["NotAction" if r.random() < 0.15 else "Action"] = r.sample(ACTIONS, r.randint(1, 2))
    statement["NotResource" if r.random() < 0.1 else "Resource"] = r.sample(RESOURCES, r.randint(1, 2))
    if r.random() < 0.3:
        statement["Condition"] = {
            r.choice(["StringEquals", "StringNotEquals"]): {"aws:PrincipalTag/team": r.sample(["red", "blue"], 1)}
        }
    elif r.random() < 0.1:
        statement["Condition"] = {"Null": {"aws:PrincipalTag/team": [r.choice(["true", "false"])]}}
    if principal:
        if r.random() < 0.15:
            statement["NotPrincipal"] = {"AWS": r.sample(PRINCIPALS[1:7], r.randint(1, 4))}
        elif r.random() < 0.1:
            statement["Principal"] = "*"
        else:
            statement["Principal"] = {"AWS": r.sample(PRINCIPALS, r.randint(1, 2))}
    return statement


def a_policy(r: random.Random, **more: Any) -> list[Statement]:
    return [a_statement(r, **more) for _ in range(r.randint(1, 3))]


def a_level(r: random.Random) -> list[Statement]:
    everything: Statement = {"Effect": "Allow", "Action": ["*"], "Resource": ["*"]}
    return [everything, *a_policy(r, denies=1)] if r.random() < 0.6 else a_policy(r)


def a_world(r: random.Random) -> dict[str, Any]:
    return {
        "identity": a_policy(r),
        "boundary": a_policy(r) if r.random() < 0.3 else None,
        "session": a_policy(r) if r.random() < 0.3 else None,
        "scps": [a_level(r) for _ in range(r.choice([0, 0, 1, 2]))],
        "rcps": [a_level(r) for _ in range(r.choice([0, 0, 0, 1]))],
        "of_resource": a_policy(r, principal=True) if r.random() < 0.7 else None,
        "same_account": r.random() < 0.6,
        "governs": r.random() < 0.3,
        "confined": r.random() < 0.1,
        "trust": False,
    }


def compiled(statements: list[Statement] | None, kind: PolicyKind = PolicyKind.IDENTITY) -> PolicySet | None:
    if statements is None:
        return None
    return compile_policy(json.dumps({"Version": "2012-10-17", "Statement": statements}), "", kind)


def asked(world: dict[str, Any], policies: dict[str, Any]) -> Effect:
    side = ResourcePolicy(
        policies["of_resource"],
        world["caller"],
        same_account=world["same_account"],
        governs=world["governs"],
        confined=world["confined"],
        alone=Naming.PRINCIPAL if world["trust"] else Naming.EVERYBODY,
    )
    return decide(
        world["action"],
        world["resource"],
        world["context"],
        identity=policies["identity"],
        boundary=policies["boundary"],
        session=policies["session"],
        of_resource=side,
        scps=policies["scps"],
        rcps=policies["rcps"],
    ).effect


def compiled_world(world: dict[str, Any]) -> dict[str, Any]:
    return {
        "of_resource": compiled(world["of_resource"], PolicyKind.RESOURCE),
        **{name: compiled(world[name]) for name in ("identity", "boundary", "session")},
        **{name: [compiled(level) for level in world[name]] for name in ("scps", "rcps")},
    }


def agree(seed: int, worlds: int, requests: int) -> dict[Effect, int]:
    r = random.Random(seed)
    seen = dict.fromkeys((A, D, I), 0)
    for _ in range(worlds):
        world = a_world(r)
        policies = compiled_world(world)
        for _ in range(requests):
            world["trust"] = world["governs"] and r.random() < 0.5
            world["caller"] = r.choice(list(CALLERS.values()))
            world["action"] = r.choice(["s3:GetObject", "s3:PutObject", "S3:GETOBJECT", "kms:Decrypt"])
            world["resource"] = r.choice(["arn:aws:s3:::b/k", "arn:aws:s3:::b/kk", "arn:aws:s3:::other/k"])
            team = r.choice([None, "red", "blue"])
            world["context"] = {} if team is None else {"aws:principaltag/team": team}
            expected = naive(world)
            seen[expected] += 1
            assert asked(world, policies) is expected, json.dumps(world, default=str, indent=1)
    return seen


def test_the_compiled_evaluator_agrees_with_the_published_rules_on_all_kinds_of_policies() -> None:
    seen = agree(20261124, 300, 20)
    assert min(seen.values()) > 150, seen


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_a_million_random_requests(seed: int) -> None:
    if not LONG:
        pytest.skip("set HONMARU_LONG=1")
    seen = agree(seed, 10_000, 25)
    assert sum(seen.values()) == 250_000


def test_the_comparison_finds_a_wrong_rule() -> None:
    """Sabotage: an evaluator that lets resource policies of other accounts suffice is caught."""
    r = random.Random(7)
    caught = 0
    for _ in range(300):
        world = a_world(r)
        world |= {"caller": CALLERS["role"], "action": "s3:GetObject", "resource": "arn:aws:s3:::b/k", "context": {}}
        caught += asked({**world, "same_account": True}, compiled_world(world)) is not naive(
            {**world, "same_account": False}
        )
    assert caught > 5
