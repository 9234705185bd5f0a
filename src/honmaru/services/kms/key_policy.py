"""Key policies, and what a key brings to every decision about it: its policy with its grants as further statements.

Invariants:
- Access to a key starts from its policy alone: IAM policies count only where the policy allows the account's root.
- A grant is an Allow statement for its grantee, limited to its operations and encryption context; an explicit deny of
  any policy wins over it.
- A policy that would lock its own author out is refused unless the author says that it is meant.

Source: AWS KMS developer guide, "Key policies", "Default key policy", "Grants"; PutKeyPolicy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from honmaru.core.errors import NotFound, ValidationFault
from honmaru.security.calls import Call, Resource
from honmaru.security.guard import Record, Sight
from honmaru.security.policy import Caller, Effect, PolicyKind, compile_policy
from honmaru.services.kms.keys import ALIAS, GRANT, KEY, lists, permitted, require_kept, require_own, revise

DEFAULT_NAME = "default"
POLICY_LIMIT = 32768
WITH_CONTEXT = (
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
)
"""Operations whose grants an encryption context limits."""
_SIZE_KEY = "honmaru:EncryptionContextSize"
Request = Mapping[str, Any]


def default(partition: str, account: str) -> str:
    """The policy of a key that was made without one: the account's IAM decides."""
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Id": "key-default-1",
            "Statement": [
                {
                    "Sid": "Enable IAM User Permissions",
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
                    "Action": "kms:*",
                    "Resource": "*",
                }
            ],
        },
        indent=2,
    )


def managed(partition: str, account: str, region: str, service: str) -> str:
    """The policy of a platform's key: everybody of the account, through its service only; details to IAM."""
    uses = [
        "kms:Encrypt",
        "kms:Decrypt",
        "kms:ReEncrypt*",
        "kms:GenerateDataKey*",
        "kms:CreateGrant",
        "kms:DescribeKey",
    ]
    through = {"kms:CallerAccount": account, "kms:ViaService": f"{service}.{region}.amazonaws.com"}
    reads = ["kms:Describe*", "kms:Get*", "kms:List*"]
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Id": f"auto-{service}-1",
            "Statement": [
                {
                    "Sid": f"Allow access through {service} for all principals in the account",
                    "Effect": "Allow",
                    "Principal": {"AWS": "*"},
                    "Action": uses,
                    "Resource": "*",
                    "Condition": {"StringEquals": through},
                },
                {
                    "Sid": "Allow direct access to key metadata to the account",
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
                    "Action": reads,
                    "Resource": "*",
                },
            ],
        },
        indent=2,
    )


def check(call: Call, arn: str, policy: str, *, bypass: bool) -> None:
    """Raises MalformedPolicyDocumentException for what is no key policy, or would lock its author out."""
    if len(policy.encode()) > POLICY_LIMIT:
        raise ValidationFault(f"a key policy has at most {POLICY_LIMIT} bytes", code="LimitExceededException")
    try:
        compiled = compile_policy(policy, "key", PolicyKind.RESOURCE)
    except ValidationFault as fault:
        raise malformed(fault.message) from None
    if bypass:
        return
    session = call.session
    caller = Caller(session.principal_arn, session.issuer_arn, session.account, session.partition)
    outcome = compiled.evaluate("kms:PutKeyPolicy", arn, {"kms:calleraccount": session.account}, caller)
    if outcome.effect is not Effect.ALLOWED:
        raise malformed("The new key policy will not allow you to update the key policy in the future.")


def malformed(message: str) -> ValidationFault:
    return ValidationFault(message, code="MalformedPolicyDocumentException")


def resource(sight: Sight, place: str) -> Resource | None:
    """The facts of a key's ARN. Label: reads at or below the sight's label."""
    kind, _, key_id = place.partition("/")
    if kind != "key":
        return None
    key = sight.get(KEY, key_id)
    if key is None:
        return None
    found = sight.iterate(GRANT, prefix=f"{key_id}/", account=key.account)
    grants = [statement for grant in found for statement in _statements(grant)]
    policy = key.body["policy"]
    if grants:
        document = json.loads(policy)
        stated = document["Statement"]
        document["Statement"] = [*(stated if isinstance(stated, list) else [stated]), *grants]
        policy = json.dumps(document)
    body = key.body
    aliases = [one.name for one in sight.iterate(ALIAS, account=key.account) if one.body["key"] == key_id]
    context = {
        "kms:KeySpec": body["spec"],
        "kms:KeyUsage": body["usage"],
        "kms:KeyOrigin": body["origin"],
        "kms:MultiRegion": False,
        "kms:ResourceAliases": aliases or None,
    }
    return Resource(key.account, key.label, policy, tags=body["tags"], context=context, governs=True)


def context_facts(context: Mapping[str, str] | None, *, exact: bool = True) -> dict[str, Any]:
    """Condition keys of an encryption context: AWS's own, and the exact ones that grants are tested with.

    AWS's keys fold case and cannot hold every character, a grant's constraint does neither. `exact` False is for the
    constraint of a grant to be made that fixes a subset only.
    """
    pairs = context or {}
    facts: dict[str, Any] = {f"kms:EncryptionContext:{key}": value for key, value in pairs.items()}
    facts |= {_pair_key(key, value): "yes" for key, value in pairs.items()}
    facts["kms:EncryptionContextKeys"] = list(pairs) or None
    facts[_SIZE_KEY] = len(pairs) if exact else -1
    return facts


def _pair_key(key: str, value: str) -> str:
    coded = b"".join(len(part).to_bytes(4, "big") + part for part in (key.encode(), value.encode()))
    return f"honmaru:EncryptionContextPair/{hashlib.sha384(coded).hexdigest()}"


def _statements(grant: Record) -> Iterator[dict[str, Any]]:
    """A grant as Allow statements: operations that carry a context, CreateGrant, and the rest."""
    body = grant.body
    operations = body["operations"]
    condition = _condition(body["constraints"])
    narrower = {**condition, "ForAllValues:StringEquals": {"kms:GrantOperations": operations}}
    rest = [operation for operation in operations if operation not in (*WITH_CONTEXT, "CreateGrant")]
    bound = [operation for operation in operations if operation in WITH_CONTEXT]
    delegated = [operation for operation in operations if operation == "CreateGrant"]
    for number, (allowed, tests) in enumerate(((bound, condition), (delegated, narrower), (rest, {}))):
        if allowed:
            yield {
                "Sid": f"grant{number}{grant.name.rpartition('/')[2]}",
                "Effect": "Allow",
                "Principal": {"AWS": body["grantee"]},
                "Action": [f"kms:{operation}" for operation in allowed],
                "Resource": "*",
                **({"Condition": tests} if tests else {}),
            }


def _condition(constraints: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    equals = constraints.get("EncryptionContextEquals")
    pairs = equals if equals is not None else constraints.get("EncryptionContextSubset") or {}
    condition: dict[str, Any] = {}
    if pairs:
        condition["StringEquals"] = {_pair_key(key, value): "yes" for key, value in pairs.items()}
    if equals is not None:
        condition["NumericEquals"] = {_SIZE_KEY: str(len(equals))}
    return condition


def get(call: Call, request: Request) -> dict[str, Any]:
    _, key = permitted(call, request["KeyId"], "GetKeyPolicy")
    _check_name(request)
    return {"Policy": key.body["policy"], "PolicyName": DEFAULT_NAME}


def put(call: Call, request: Request) -> None:
    bypass = bool(request.get("BypassPolicyLockoutSafetyCheck"))
    context = {"kms:BypassPolicyLockoutSafetyCheck": bypass}
    inside, key = permitted(call, request["KeyId"], "PutKeyPolicy", context)
    _check_name(request)
    require_own(key)
    require_kept(key)
    check(call, key.body["arn"], request["Policy"], bypass=bypass)
    revise(inside, key, lambda body: {**body, "policy": request["Policy"]})


def names(call: Call, request: Request) -> dict[str, Any]:
    permitted(call, request["KeyId"], "ListKeyPolicies")
    return lists("PolicyNames", [DEFAULT_NAME], None)


def _check_name(request: Request) -> None:
    if (request.get("PolicyName") or DEFAULT_NAME) != DEFAULT_NAME:
        raise NotFound("No such policy exists", code="NotFoundException")
