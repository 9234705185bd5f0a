"""Simulation of policies: the same evaluator, asked without acting; and the condition keys that policies ask for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from honmaru.core.errors import NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.identity import entities
from honmaru.security.policy import (
    Caller,
    Decision,
    MalformedPolicy,
    PolicyKind,
    PolicySet,
    ResourcePolicy,
    compile_policy,
    decide,
)
from honmaru.security.policy.context_keys import context_keys
from honmaru.services.iam.entities import Part, page

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
_SOURCES = {"resource": "Resource Policy", "boundary": "Permissions Boundary Policy", "scp": "Organizations Policy"}


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


def _compiled(request: Request, member: str) -> list[PolicySet]:
    """Policies given as text. Raises ValidationFault in the words of the simulator."""
    try:
        return [compile_policy(text, f"{member}.{i}") for i, text in enumerate(request.get(member) or [], start=1)]
    except MalformedPolicy as fault:
        raise ValidationFault(fault.message, code="InvalidInput") from None


def _boundary(request: Request) -> PolicySet | None:
    given = _compiled(request, "PermissionsBoundaryPolicyInputList")
    return PolicySet.union(given) if given else None


def _resource_policy(request: Request) -> PolicySet | None:
    text = request.get("ResourcePolicy")
    return None if not text else compile_policy(text, "ResourcePolicy", PolicyKind.RESOURCE)


def _results(
    request: Request, texts: Iterable[str], context: Mapping[str, Any], ask: Callable[[str, str], Decision]
) -> dict[str, Any]:
    """One page of answers to every pair of action and resource."""
    wanted = sorted({key for text in texts for key in context_keys(text)}, key=str.lower)
    missing = [key for key in wanted if key.lower() not in context]
    answers = [
        _result(action, resource, ask(action, resource), missing)
        for action in request["ActionNames"]
        for resource in request.get("ResourceArns") or ["*"]
    ]
    numbered = [(f"{number:08d}", answer) for number, answer in enumerate(answers)]
    found, more = page(numbered, {"MaxItems": QUESTIONS_LIMIT, **request}, lambda entry: entry[0])
    return {"EvaluationResults": [answer for _, answer in found], **more}


def _result(action: str, resource: str, decision: Decision, missing: list[str]) -> dict[str, Any]:
    source = _SOURCES.get(decision.reason, "IAM Policy")
    answer: dict[str, Any] = {
        "EvalActionName": action,
        "EvalResourceName": resource,
        "EvalDecision": decision.effect.value,
        "MatchedStatements": [
            {"SourcePolicyId": name or "ResourcePolicy", "SourcePolicyType": source} for name, _ in decision.matched
        ],
        "MissingContextValues": missing,
    }
    if decision.asked("scp"):
        answer["OrganizationsDecisionDetail"] = {"AllowedByOrganizations": decision.reason != "scp"}
    if decision.asked("boundary"):
        answer["PermissionsBoundaryDecisionDetail"] = {"AllowedByPermissionsBoundary": decision.reason != "boundary"}
    return answer


class Simulation(Part):
    """Operations that tell what policies would say."""

    def simulate_principal_policy(self, call: Call, request: Request) -> dict[str, Any]:
        _check_size(request)
        context = _context(request.get("ContextEntries") or [])
        more, boundary, of_resource = (
            _compiled(request, "PolicyInputList"),
            _boundary(request),
            _resource_policy(request),
        )
        source = request["PolicySourceArn"]

        def ask(action: str, resource: str) -> Decision:
            return self.identity.simulate(
                source,
                call.session.label,
                action,
                resource,
                context,
                more,
                boundary=boundary,
                resource_policy=of_resource,
                caller=_caller(request.get("CallerArn")),
            )

        texts = [*(request.get("PolicyInputList") or []), *self._texts(call, source)]
        return _results(request, texts, context, ask)

    def simulate_custom_policy(self, _call: Call, request: Request) -> dict[str, Any]:
        _check_size(request)
        context = _context(request.get("ContextEntries") or [])
        policies = PolicySet.union(_compiled(request, "PolicyInputList"))
        boundary, of_resource = _boundary(request), _resource_policy(request)
        who = _caller(request.get("CallerArn"))
        if of_resource is not None and who is None:
            raise ValidationFault("CallerArn must be given with a ResourcePolicy", code="InvalidInput")
        side = ResourcePolicy(of_resource, who)

        def ask(action: str, resource: str) -> Decision:
            return decide(action, resource, context, identity=policies, boundary=boundary, of_resource=side)

        return _results(request, request["PolicyInputList"], context, ask)

    def get_context_keys_for_custom_policy(self, _call: Call, request: Request) -> dict[str, Any]:
        return {"ContextKeyNames": _keys(request["PolicyInputList"])}

    def get_context_keys_for_principal_policy(self, call: Call, request: Request) -> dict[str, Any]:
        texts = [*self._texts(call, request["PolicySourceArn"]), *(request.get("PolicyInputList") or [])]
        return {"ContextKeyNames": _keys(texts)}

    def _texts(self, call: Call, arn: str) -> list[str]:
        kind, _, rest = arn.rpartition(":")[2].partition("/")
        name = rest.rpartition("/")[2]
        found = call.records.get(kind, name) if kind in (entities.USER, entities.GROUP, entities.ROLE) else None
        if found is None:
            raise NotFound(f"The entity {arn} cannot be found.", code="NoSuchEntity")
        return self.identity.directories.of(call.account).policy_texts(kind, name, call.session.label)


def _keys(texts: Iterable[str]) -> list[str]:
    try:
        return sorted({key for text in texts for key in context_keys(text)})
    except MalformedPolicy as fault:
        raise ValidationFault(fault.message, code="InvalidInput") from None


def _caller(arn: str | None) -> Caller | None:
    """A user as the Principal element knows it. Raises ValidationFault for another ARN."""
    if not arn:
        return None
    parts = arn.split(":", 5)
    if len(parts) != 6 or not parts[5].startswith("user/"):
        raise ValidationFault("CallerArn must be the ARN of a user", code="InvalidInput")
    return Caller(arn, arn, parts[4], parts[1])
