"""Another policy engine over the same statements and questions, in an environment of its own (.venv-peers/policy).

Reads one JSON object from stdin, {engine, statements, questions, rounds}, prints {answers, times_us}. A statement is
{allow, actions, pattern, via}: `via` is None, or what kms:ViaService must be. A question is {action, resource, via}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def cedar(statements: list[dict[str, Any]]) -> Callable[[dict[str, Any]], bool]:
    """Cedar policies, parsed once; the resource's ARN is compared with `like`."""
    import cedarpy

    texts = []
    for each in statements:
        actions = ", ".join(f'Action::"{action}"' for action in each["actions"])
        pattern = each["pattern"].replace('"', '\\"')
        wanted = f'context.arn like "{pattern}"'
        if each["via"] is not None:
            wanted += f' && context has via && context.via == "{each["via"]}"'
        effect = "permit" if each["allow"] else "forbid"
        texts.append(f'{effect}(principal == User::"ann", action in [{actions}], resource) when {{ {wanted} }};')
    policies = cedarpy.PolicySet.from_str("\n".join(texts))
    entities = cedarpy.Entities.from_json_str("[]")

    def ask(question: dict[str, Any]) -> bool:
        context = {"arn": question["resource"]}
        if question["via"] is not None:
            context["via"] = question["via"]
        request = {
            "principal": 'User::"ann"',
            "action": f'Action::"{question["action"]}"',
            "resource": 'Resource::"any"',
            "context": context,
        }
        return bool(cedarpy.is_authorized(request, policies, entities).allowed)

    return ask


def casbin_engine(statements: list[dict[str, Any]]) -> Callable[[dict[str, Any]], bool]:
    """Casbin with one line for each action of a statement, and deny-override."""
    import casbin

    model = casbin.Model()
    model.load_model_from_text(
        """
[request_definition]
r = sub, obj, act, via
[policy_definition]
p = sub, obj, act, via, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = r.sub == p.sub && r.act == p.act && keyMatch(r.obj, p.obj) && (p.via == "-" || p.via == r.via)
"""
    )
    enforcer = casbin.Enforcer(model)
    enforcer.add_policies(
        [
            ["ann", each["pattern"], action, each["via"] or "-", "allow" if each["allow"] else "deny"]
            for each in statements
            for action in each["actions"]
        ]
    )
    return lambda question: bool(
        enforcer.enforce("ann", question["resource"], question["action"], question["via"] or "none")
    )


ENGINES = {"cedarpy": cedar, "casbin": casbin_engine}


def main() -> None:
    job = json.load(sys.stdin)
    ask = ENGINES[job["engine"]](job["statements"])
    answers = [ask(question) for question in job["questions"]]
    times = []
    for _ in range(job["rounds"]):
        for question in job["questions"]:
            begun = time.perf_counter_ns()
            ask(question)
            times.append((time.perf_counter_ns() - begun) / 1000)
    json.dump({"answers": answers, "times_us": times}, sys.stdout)


if __name__ == "__main__":
    main()
