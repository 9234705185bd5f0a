"""Simulation of policies: the same evaluator, asked without acting; and the counts of the account."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.identity import entities
from honmaru.security.policy import Decision, PolicySet, compile_policy, decide
from honmaru.services.iam.entities import Part
from honmaru.services.iam.permissions import ATTACHED_LIMIT
from honmaru.services.iam.policies import POLICY_LIMIT, VERSIONS_LIMIT
from honmaru.services.iam.users import KEYS_LIMIT

QUESTIONS_LIMIT = 10_000
"""Pairs of action and resource in one simulation."""
Request = Mapping[str, Any]
_READ: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "numeric": str,
    "boolean": str,
    "ip": str,
    "date": lambda text: datetime.fromisoformat(text) if "-" in text else text,
    "binary": lambda text: base64.b64decode(text, validate=True),
}


def _context(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    context: dict[str, Any] = {}
    for entry in entries:
        kind = entry.get("ContextKeyType") or "string"
        read = _READ[kind.removesuffix("List")]
        try:
            values = [read(text) for text in entry.get("ContextKeyValues") or []]
        except (ValueError, binascii.Error):
            raise ValidationFault(
                f"The values of the context key {entry.get('ContextKeyName')} are not of type {kind}",
                code="InvalidInput",
            ) from None
        several = kind.endswith("List") or len(values) != 1
        context[str(entry.get("ContextKeyName")).lower()] = values if several else values[0]
    return context


def _check_size(request: Request) -> None:
    """One call asks a bounded number of questions: they multiply. Raises ValidationFault."""
    count = len(request["ActionNames"]) * len(request.get("ResourceArns") or ["*"])
    if count > QUESTIONS_LIMIT:
        raise ValidationFault(
            f"{count} combinations of actions and resources were asked for; at most {QUESTIONS_LIMIT} are answered at "
            "once",
            code="InvalidInput",
        )


def _result(action: str, resource: str, decision: Decision) -> dict[str, Any]:
    return {
        "EvalActionName": action,
        "EvalResourceName": resource,
        "EvalDecision": decision.effect.value,
        "MatchedStatements": [
            {"SourcePolicyId": name, "SourcePolicyType": "IAM Policy"} for name, _ in decision.matched
        ],
        "MissingContextValues": [],
    }


class Simulation(Part):
    """Operations that tell what policies would say."""

    def simulate_principal_policy(self, call: Call, request: Request) -> dict[str, Any]:
        _check_size(request)
        context = _context(request.get("ContextEntries") or [])
        more = [
            compile_policy(text, f"PolicyInputList.{i}") for i, text in enumerate(request.get("PolicyInputList") or [])
        ]
        answers: list[dict[str, Any]] = []
        for action in request["ActionNames"]:
            for resource in request.get("ResourceArns") or ["*"]:
                decision = self.identity.simulate(
                    request["PolicySourceArn"], call.session.label, action, resource, context, more
                )
                answers.append(_result(action, resource, decision))
        return {"EvaluationResults": answers, "IsTruncated": False}

    def simulate_custom_policy(self, _call: Call, request: Request) -> dict[str, Any]:
        _check_size(request)
        context = _context(request.get("ContextEntries") or [])
        texts = request["PolicyInputList"]
        policies = PolicySet.union([compile_policy(text, f"PolicyInputList.{i}") for i, text in enumerate(texts)])
        answers = [
            _result(action, resource, decide(action, resource, context, identity=policies))
            for action in request["ActionNames"]
            for resource in request.get("ResourceArns") or ["*"]
        ]
        return {"EvaluationResults": answers, "IsTruncated": False}

    def get_account_summary(self, call: Call, _request: Request) -> dict[str, Any]:
        kinds = {"Users": entities.USER, "Groups": entities.GROUP, "Roles": entities.ROLE, "Policies": entities.POLICY}
        counts = {name: sum(1 for _ in call.records.iterate(kind)) for name, kind in kinds.items()}
        quotas = {
            "AccessKeysPerUserQuota": KEYS_LIMIT,
            "AttachedPoliciesPerUserQuota": ATTACHED_LIMIT,
            "AttachedPoliciesPerRoleQuota": ATTACHED_LIMIT,
            "PolicySizeQuota": POLICY_LIMIT,
            "VersionsPerPolicyQuota": VERSIONS_LIMIT,
        }
        return {"SummaryMap": counts | quotas}
