"""Which questions an operation asks of IAM: providers' targets compiled to ARN writers, checked at start.

Invariants:
- An operation without a target asks `<service>:<Operation>` on "*": never nothing, unless its provider lists it in
  `unauthorized`.
- A member fills its place in an ARN as it is. Only a template that is exactly one member lets an ARN from the
  request be the whole resource; such an ARN must be of this partition and region. One of another account is a question
  to that account's resource policy, which the identity decides.
- A list in a template (`{AlarmNames[]}`) asks one question for each of its members: all of them must be allowed.
- A template that names a member which the operation does not have stops the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from honmaru.api.models import Operation
from honmaru.core.errors import ValidationFault
from honmaru.core.sessions import Session
from honmaru.security.calls import Provider, Target

Question = tuple[str, Callable[[Session, Mapping[str, Any]], str | list[str] | None]]
"""(action, resource ARN or ARNs of a request; None where the request is not asked this)."""

_FIELD = re.compile(r"\{(\w+)(?:\[\]|=[^{}]*)?\}")
_DEFAULT = re.compile(r"\{\w+=([^{}]*)\}|\{\w+\}")
_LIST = re.compile(r"\{(\w+)\[\]\}")
_OWN = {"partition", "region", "account"}


def questions(provider: Provider, operation: Operation) -> tuple[Question, ...]:
    """What to ask IAM before the operation runs; empty when any authenticated principal may call it."""
    if operation.name in provider.unauthorized:
        return ()
    declared = provider.targets.get(operation.name)
    if declared is None:
        return ((f"{operation.service.iam_prefix}:{operation.name}", lambda _session, _members: "*"),)
    targets = (declared,) if isinstance(declared, Target) else tuple(declared)
    return tuple((target.action, _conditional(target)) for target in targets)


def _conditional(target: Target) -> Callable[[Session, Mapping[str, Any]], str | list[str] | None]:
    write, given, unless = _writer(target.resource), target.given, target.unless
    if not given and not unless:
        return write

    def ask(session: Session, members: Mapping[str, Any]) -> str | list[str] | None:
        if (given and members.get(given) is None) or (unless and members.get(unless) is not None):
            return None
        return write(session, members)

    return ask


def target_problems(provider: Provider, operation_of: Mapping[str, Operation]) -> list[str]:
    """What is wrong with a provider's targets, each with its repair."""
    problems = []
    for name, declared in provider.targets.items():
        operation = operation_of.get(name)
        if operation is None:
            problems.append(f"{provider.service} has no operation {name}: correct the targets of its provider")
            continue
        for target in (declared,) if isinstance(declared, Target) else declared:
            for field in [*_FIELD.findall(target.resource), *filter(None, (target.given, target.unless))]:
                if field not in _OWN and field not in operation.input_shape["members"]:
                    problems.append(f"{provider.service}:{name} has no member {field}: correct its target")
    return problems


def _writer(template: str) -> Callable[[Session, Mapping[str, Any]], str | list[str]]:
    listed = _LIST.search(template)
    if listed is None:
        return _single(template)
    member = listed[1]
    one = _single(_LIST.sub(f"{{{member}}}", template))

    def each(session: Session, members: Mapping[str, Any]) -> list[str]:
        return [one(session, {**members, member: value}) for value in dict.fromkeys(members.get(member) or ("*",))]

    return each


def _single(template: str) -> Callable[[Session, Mapping[str, Any]], str]:
    parts = _FIELD.split(template)  # literal, field, literal, field, …, literal
    if parts == [template]:
        return lambda _session, _members: template
    if len(parts) == 3 and not parts[0] and not parts[2] and parts[1] not in _OWN:
        return _whole(parts[1])
    literals = parts[0::2]
    fields = parts[1::2]
    defaults = [default or "*" for default in _DEFAULT.findall(template)]

    def write(session: Session, members: Mapping[str, Any]) -> str:
        out = [literals[0]]
        for field, default, literal in zip(fields, defaults, literals[1:], strict=True):
            if field in _OWN:
                out.append(getattr(session, field))
            else:
                value = members.get(field)
                out.append(default if value is None else str(value))
            out.append(literal)
        return "".join(out)

    return write


def _whole(member: str) -> Callable[[Session, Mapping[str, Any]], str]:
    def write(session: Session, members: Mapping[str, Any]) -> str:
        value = str(members.get(member, "*"))
        if value.startswith("arn:"):
            check_arn(value, session)
        return value

    return write


def check_arn(arn: str, session: Session) -> None:
    """Raises ValidationFault for an ARN of another partition or region."""
    parts = arn.split(":", 5)
    if len(parts) != 6:
        raise ValidationFault(
            f"Invalid ARN: '{arn}' does not have the form arn:partition:service:region:account:resource"
        )
    _, partition, _, region, _, _ = parts
    if partition != session.partition:
        raise ValidationFault(f"Invalid ARN: '{arn}' is of partition '{partition}'; this is '{session.partition}'")
    if region not in ("", session.region):
        raise ValidationFault(f"Invalid ARN: '{arn}' is of region '{region}'; this is '{session.region}'")
