"""Policy documents: strict reading of IAM's JSON, worded as AWS words its refusals.

Invariants:
- Whatever the language does not have is refused, never ignored: unknown elements, operators, duplicate keys, wrong
  types, values that an operator cannot compare.
- Identity and session policies have resources and no principal; trust policies have a principal and no resource;
  resource policies have both. A resource control policy only denies, and to everybody.

Source: IAM user guide, "IAM JSON policy elements reference", "Grammar of the IAM JSON policy language".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from honmaru.core.errors import ValidationFault
from honmaru.security.policy import conditions
from honmaru.security.policy.patterns import compile_arn

DOCUMENT_LIMIT = 131072
_VERSIONS = ("2012-10-17", "2008-10-17")
_SID = re.compile(r"[A-Za-z0-9]{0,128}")
_ACTION = re.compile(r"\*|[A-Za-z0-9*?-]+:[A-Za-z0-9*?]+")
_PRINCIPAL_TYPES = ("AWS", "Service", "Federated", "CanonicalUser")
_ACCOUNT = re.compile(r"[0-9]{12}")
_UNIQUE_ID = re.compile(r"A(IDA|ROA)[A-Z0-9]{12,}")
_SERVICE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")


class MalformedPolicy(ValidationFault):
    """The document is not a policy. Its wire code is MalformedPolicyDocument."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="MalformedPolicyDocument")


class PolicyKind(Enum):
    IDENTITY = "identity"
    TRUST = "trust"
    RESOURCE = "resource"
    SCP = "scp"
    RCP = "rcp"


_WITHOUT_PRINCIPAL = (PolicyKind.IDENTITY, PolicyKind.SCP)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, checked. `negated_*` tell NotAction, NotResource, NotPrincipal from their plain forms."""

    sid: str
    allow: bool
    actions: tuple[str, ...]
    negated_actions: bool
    resources: tuple[str, ...]
    negated_resources: bool
    principals: Mapping[str, tuple[str, ...]]
    negated_principals: bool
    condition: Mapping[str, Mapping[str, tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Document:
    version: str
    statements: tuple[Statement, ...]

    @property
    def variables(self) -> bool:
        """Policy variables exist from version 2012-10-17 on; before, `${...}` is plain text."""
        return self.version == _VERSIONS[0]


def read_policy(text: str, kind: PolicyKind) -> Document:
    """JSON text → Document. Raises MalformedPolicy for anything that is not exactly a policy of this kind."""
    if len(text) > DOCUMENT_LIMIT:
        _refuse(f"The policy is longer than {DOCUMENT_LIMIT} characters.")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise MalformedPolicy("This policy contains invalid Json") from None
    return check_policy(value, kind)


def check_policy(value: Any, kind: PolicyKind) -> Document:
    """As `read_policy`, from the parsed JSON value."""
    if not isinstance(value, dict):
        _refuse("Syntax errors in policy.")
    _only(value, ("Version", "Id", "Statement"))
    version = value.get("Version", _VERSIONS[1])
    if version not in _VERSIONS:
        _refuse("Syntax errors in policy. The Version must be 2012-10-17 or 2008-10-17.")
    if "Id" in value and not isinstance(value["Id"], str):
        _refuse("Syntax errors in policy. Id must be a string.")
    given = value.get("Statement")
    statements = [given] if isinstance(given, dict) else given
    if not isinstance(statements, list) or not statements:
        _refuse("Syntax errors in policy. A policy needs at least one Statement.")
    variables = version == _VERSIONS[0]
    read = tuple(_statement(statement, kind, variables) for statement in statements)
    sids = [s.sid for s in read if s.sid]
    if len(set(sids)) != len(sids):
        _refuse("Statement IDs (SID) in a single policy must be unique.")
    return Document(version, read)


def _refuse(message: str) -> NoReturn:
    raise MalformedPolicy(message)


def _no_constant(name: str) -> NoReturn:
    _refuse(f"Syntax errors in policy. {name} is not JSON.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("Syntax errors in policy. An element is repeated.")
    return found


def _only(value: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for key in value:
        if key not in allowed:
            _refuse(f"Syntax errors in policy. {key[:64]!r} is not one of {', '.join(allowed)}.")


def _texts(value: Any, what: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        _refuse(f"Syntax errors in policy. {what} must be a string or a list of strings.")
    return tuple(values)


def _either(statement: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    """The value of `Name` or `NotName`, and whether it was the negated one; (None, False) when neither is there."""
    if name in statement and "Not" + name in statement:
        _refuse(f"Syntax errors in policy. {name} and Not{name} exclude each other.")
    return (statement["Not" + name], True) if "Not" + name in statement else (statement.get(name), False)


def _statement(value: Any, kind: PolicyKind, variables: bool) -> Statement:
    if not isinstance(value, dict):
        _refuse("Syntax errors in policy. A Statement must be an object.")
    _only(
        value,
        ("Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "NotPrincipal", "Condition"),
    )
    sid = value.get("Sid", "")
    # Resource policies are their services' affair, and those allow free text: KMS's own default Sid has spaces.
    if not isinstance(sid, str) or (kind is not PolicyKind.RESOURCE and not _SID.fullmatch(sid)):
        _refuse("Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression "
                "[0-9A-Za-z]*")  # fmt: skip
    if value.get("Effect") not in ("Allow", "Deny"):
        _refuse("Syntax errors in policy. Effect must be Allow or Deny.")
    if kind is PolicyKind.RCP and value["Effect"] == "Allow":
        _refuse("The Effect of a resource control policy must be Deny.")
    given, negated_actions = _either(value, "Action")
    if given is None:
        _refuse("Policy statement must contain actions.")
    actions = _texts(given, "Action")
    if not actions:
        _refuse("Policy statement must contain actions.")
    for action in actions:
        if not _ACTION.fullmatch(action):
            _refuse("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
    resources, negated_resources = _resources(value, kind, variables)
    principals, negated_principals = _principals(value, kind)
    return Statement(
        sid=sid,
        allow=value["Effect"] == "Allow",
        actions=actions,
        negated_actions=negated_actions,
        resources=resources,
        negated_resources=negated_resources,
        principals=principals,
        negated_principals=negated_principals,
        condition=_condition(value.get("Condition", {}), variables),
    )


def _resources(value: Mapping[str, Any], kind: PolicyKind, variables: bool) -> tuple[tuple[str, ...], bool]:
    given, negated = _either(value, "Resource")
    if kind is PolicyKind.TRUST:
        if given is not None:
            _refuse("Has prohibited field Resource")
        return ("*",), False
    if given is None:
        _refuse("Policy statement must contain resources.")
    resources = _texts(given, "Resource")
    if not resources:
        _refuse("Policy statement must contain resources.")
    for resource in resources:
        try:
            compile_arn(resource, variables=variables)
        except ValueError:
            _refuse(f'Resource {resource[:256]} must be in ARN format or "*".')
    return resources, negated


def _principals(value: Mapping[str, Any], kind: PolicyKind) -> tuple[Mapping[str, tuple[str, ...]], bool]:
    given, negated = _either(value, "Principal")
    if kind in _WITHOUT_PRINCIPAL:
        if given is not None:
            _refuse("Policy document should not specify a principal.")
        return {}, False
    if given is None:
        _refuse("Missing required field Principal")
    if kind is PolicyKind.RCP and (negated or given != "*"):
        _refuse('The Principal of a resource control policy must be "*".')
    if given == "*":
        return {"AWS": ("*",)}, negated
    if not isinstance(given, dict) or not given:
        _refuse("Syntax errors in policy. Principal must be an object.")
    _only(given, _PRINCIPAL_TYPES)
    principals = {name: _texts(listed, "Principal") for name, listed in given.items()}
    for name, listed in principals.items():
        for principal in listed:
            if not _is_principal(name, principal):
                _refuse(f'Invalid principal in policy: "{name}":"{principal[:256]}"')
    return principals, negated


def _is_principal(name: str, principal: str) -> bool:
    if name == "Service":
        return bool(_SERVICE.fullmatch(principal))
    if name != "AWS":
        return bool(principal)
    if principal == "*" or _ACCOUNT.fullmatch(principal) or _UNIQUE_ID.fullmatch(principal):
        return True
    parts = principal.split(":", 5)
    return (
        len(parts) == 6
        and parts[0] == "arn"
        and parts[2] in ("iam", "sts")
        and bool(_ACCOUNT.fullmatch(parts[4]))
        and "*" not in principal
        and parts[5].split("/", 1)[0] in ("root", "user", "role", "assumed-role", "federated-user")
    )


def _condition(value: Any, variables: bool) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
    if not isinstance(value, dict):
        _refuse("Syntax errors in policy. Condition must be an object.")
    checked: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name, keys in value.items():
        operator = conditions.operator(name)
        if operator is None:
            _refuse(f"Invalid Condition type : {name[:64]}.")
        if not isinstance(keys, dict):
            _refuse(f"Syntax errors in policy. {name} must be an object.")
        checked[name] = {}
        for key, given in keys.items():
            if not conditions.KEY.fullmatch(key):
                _refuse("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
            values = given if isinstance(given, list) else [given]
            if not all(isinstance(v, (str, int, float)) for v in values):
                _refuse(f"Syntax errors in policy. The values of {key[:64]} must be strings, numbers or booleans.")
            try:
                conditions.compile_values(operator, values, variables=variables)
            except ValueError as fault:
                _refuse(f"Syntax errors in policy. {fault}.")
            checked[name][key] = tuple(values)
    return checked


def merge_policies(texts: Sequence[str]) -> str:
    """Several session policies as one document: what any of them allows, less what any denies.

    Raises MalformedPolicy. All must have one version, because policy variables depend on it.
    """
    documents = [json.loads(text) for text in texts if read_policy(text, PolicyKind.IDENTITY)]
    versions = {document.get("Version", _VERSIONS[1]) for document in documents}
    if len(versions) != 1:
        _refuse("Session policies of different versions cannot be combined.")
    statements: list[Any] = []
    for document in documents:
        given = document["Statement"]
        for statement in [given] if isinstance(given, dict) else given:
            # Sids may repeat between documents, not within one.
            statements.append({key: value for key, value in statement.items() if key != "Sid" or len(texts) == 1})
    return json.dumps({"Version": versions.pop(), "Statement": statements}, separators=(",", ":"))
