"""Grants: permissions on a key that are handed out and taken back one by one.

A grant is a record of kind "grant" named `key id/grant id` at the label of the session that made it. What it allows is
worked out by `key_policy`; here it is made, listed, retired and revoked.

Invariants:
- Who may make grants through a grant alone hands out no more than that grant allows (`key_policy`).
- A grant is visible, and holds, at its own label and above.

Source: AWS KMS developer guide, "Grants in AWS KMS"; API reference, CreateGrant, RetireGrant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import NotFound, QuotaExceeded, ValidationFault
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.kms import grant_tokens
from honmaru.services.kms.key_policy import WITH_CONTEXT, context_facts
from honmaru.services.kms.keys import (
    GRANT,
    KEY,
    key_arn,
    lists,
    moment,
    named,
    page,
    permitted,
    rehearse,
    require_usable,
    spec_of,
    unsupported,
)
from honmaru.services.kms.vault import Vault

Request = Mapping[str, Any]
_LIMIT = 5000
_TOKENS = 16
"""Of a grant that is asked for again and again by its name, so many of the latest tokens hold."""
_PRINCIPAL = re.compile(r"arn:[a-z-]+:(iam|sts)::[0-9]{12}:(root|(user|role|assumed-role|federated-user)/.+)")
_BY_USAGE = {
    "ENCRYPT_DECRYPT": {*WITH_CONTEXT},
    "SIGN_VERIFY": {"Sign", "Verify", "GetPublicKey"},
    "GENERATE_VERIFY_MAC": {"GenerateMac", "VerifyMac"},
    "KEY_AGREEMENT": {"DeriveSharedSecret", "GetPublicKey"},
    "ENCAPSULATE_DECAPSULATE": {"Encapsulate", "Decapsulate", "GetPublicKey"},
}
_ANY = {"CreateGrant", "RetireGrant", "DescribeKey"}


def create(call: Call, request: Request, vault: Vault) -> dict[str, Any]:
    grant_tokens.check(call, request)
    for member in ("GranteeServicePrincipal", "RetiringServicePrincipal"):
        if request.get(member):
            raise unsupported(f"{member} is not supported: no service of this enclave acts on its own behalf")
    grantee, retiring = request.get("GranteePrincipal"), request.get("RetiringPrincipal")
    if not grantee:
        raise ValidationFault("GranteePrincipal is required")
    for principal in (grantee, retiring):
        _check_principal(call.session, principal)
    operations = sorted(set(request["Operations"]))
    constraints = _constraints(request.get("Constraints") or {})
    asked = {
        "kms:GrantOperations": operations,
        "kms:GranteePrincipal": grantee,
        "kms:RetiringPrincipal": retiring,
        "kms:GrantIsForAWSResource": False,
        "kms:GrantConstraintType": next(iter(constraints), None),
        **_constraint_facts(constraints),
    }
    inside, key = permitted(call, request["KeyId"], "CreateGrant", asked)
    _check_operations(key, operations, constraints)
    require_usable(call, key)
    records = inside.records
    held = list(records.iterate(GRANT, prefix=f"{key.name}/"))
    body = {
        "name": request.get("Name") or "",
        "grantee": grantee,
        "retiring": retiring or "",
        "operations": operations,
        "constraints": constraints,
        "issuer": f"arn:{call.session.partition}:iam::{call.session.account}:root",
    }
    same = [one for one in held if body["name"] and all(one.body[part] == value for part, value in body.items())]
    if same:
        rehearse(request)
        # The same request again, as its name says: the same grant, with a further token.
        token, digest = grant_tokens.new(vault, key.name, _id(same[0]))
        if same[0].label == call.session.label:
            records.update(same[0], {**same[0].body, "tokens": [*same[0].body["tokens"], digest][-_TOKENS:]})
            return {"GrantToken": token, "GrantId": _id(same[0])}
    if len(held) >= _LIMIT:
        raise QuotaExceeded(f"a key has at most {_LIMIT} grants", code="LimitExceededException")
    rehearse(request)
    grant_id = vault.ids.secret(32).hex()
    token, digest = grant_tokens.new(vault, key.name, grant_id)
    records.create(GRANT, f"{key.name}/{grant_id}", {**body, "tokens": [digest], "created": call.now.isoformat()})
    return {"GrantToken": token, "GrantId": grant_id}


def _id(grant: Record) -> str:
    return grant.name.rpartition("/")[2]


def _check_principal(session: Session, principal: str | None) -> None:
    if not principal:
        return
    match = _PRINCIPAL.fullmatch(principal)
    if match is None or principal.split(":", 2)[1] != session.partition:
        raise ValidationFault(
            f"Principal {principal} is not the ARN of an account, user or role", code="InvalidArnException"
        )


def _constraints(given: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    if given.get("SourceArn"):
        raise unsupported("the grant constraint SourceArn is not supported")
    kept = {name: dict(value) for name, value in given.items() if value is not None}
    if len(kept) > 1:
        raise ValidationFault("a grant has EncryptionContextEquals or EncryptionContextSubset, not both")
    return kept


def _constraint_facts(constraints: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    equals = constraints.get("EncryptionContextEquals")
    pairs = equals if equals is not None else constraints.get("EncryptionContextSubset")
    return context_facts(pairs, exact=equals is not None)


def _check_operations(key: Record, operations: list[str], constraints: Mapping[str, Any]) -> None:
    usable = _BY_USAGE[key.body["usage"]] | _ANY
    if spec_of(key).asymmetric and key.body["usage"] == "ENCRYPT_DECRYPT":
        usable = {"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "GetPublicKey"} | _ANY
    wrong = [operation for operation in operations if operation not in usable]
    if not operations or wrong:
        raise ValidationFault(
            f"Operations {wrong} are not supported by a key with usage {key.body['usage']} and spec {key.body['spec']}"
        )
    if constraints and spec_of(key).family != "aes":
        raise ValidationFault("encryption context constraints are valid only for symmetric encryption keys")


def _described(grant: Record, arn: str) -> dict[str, Any]:
    body = grant.body
    return {
        "KeyId": arn,
        "GrantId": _id(grant),
        "Name": body["name"] or None,
        "CreationDate": moment(body["created"]),
        "GranteePrincipal": body["grantee"],
        "RetiringPrincipal": body["retiring"] or None,
        "IssuingAccount": body["issuer"],
        "Operations": list(body["operations"]),
        "Constraints": dict(body["constraints"]) or None,
    }


def list_all(call: Call, request: Request) -> dict[str, Any]:
    inside, key = permitted(call, request["KeyId"], "ListGrants")
    wanted, grantee = request.get("GrantId"), request.get("GranteePrincipal")
    grants = [
        grant
        for grant in inside.records.iterate(GRANT, prefix=f"{key.name}/")
        if wanted in (None, _id(grant)) and grantee in (None, grant.body["grantee"])
    ]
    if wanted is not None and not grants:
        raise ValidationFault(f"Invalid grant ID {wanted}", code="InvalidGrantIdException")
    start, end, marker = page(request, [grant.name for grant in grants], 50, 100)
    return lists("Grants", [_described(grant, key.body["arn"]) for grant in grants[start:end]], marker)


def list_retirable(call: Call, request: Request) -> dict[str, Any]:
    if request.get("RetiringServicePrincipal"):
        raise unsupported("RetiringServicePrincipal is not supported")
    retiring = request.get("RetiringPrincipal")
    if not retiring:
        raise ValidationFault("RetiringPrincipal is required")
    grants = [grant for grant in call.records.iterate(GRANT) if grant.body["retiring"] == retiring]
    start, end, marker = page(request, [grant.name for grant in grants], 50, 100)
    shown = [_described(grant, key_arn(call, grant.name.partition("/")[0])) for grant in grants[start:end]]
    return lists("Grants", shown, marker)


def retire(call: Call, request: Request) -> None:
    """By its retiring principal, by its grantee where it may, or by whom policies allow kms:RetireGrant."""
    grant, inside = _to_retire(call, request)
    session, body = call.session, grant.body
    me = (session.principal_arn, session.issuer_arn)
    mine = body["retiring"] in me or (body["grantee"] in me and "RetireGrant" in body["operations"])
    if not mine:
        arn = key_arn(call, grant.name.partition("/")[0], grant.account)
        call.authorize("kms:RetireGrant", arn, {"kms:CallerAccount": session.account})
    rehearse(request)
    inside.records.delete(grant)


def _to_retire(call: Call, request: Request) -> tuple[Record, Call]:
    if request.get("GrantToken"):
        grant = grant_tokens.grant_of(call, request["GrantToken"])
        return grant, call.within(grant.account)
    if not request.get("KeyId") or not request.get("GrantId"):
        raise ValidationFault("RetireGrant needs GrantToken, or KeyId and GrantId")
    name = named(call, request["KeyId"], aliases=False)
    grant_found = call.sight("kms").get(GRANT, f"{name.key_id}/{request['GrantId']}", account=name.account)
    if grant_found is None:
        if call.sight("kms").get(KEY, name.key_id, account=name.account) is None:
            raise NotFound(f"Key '{request['KeyId']}' does not exist", code="NotFoundException")
        raise NotFound(f"Grant ID {request['GrantId']} not found", code="NotFoundException")
    return grant_found, call.within(name.account)


def revoke(call: Call, request: Request) -> None:
    inside, key = permitted(call, request["KeyId"], "RevokeGrant")
    grant = inside.records.get(GRANT, f"{key.name}/{request['GrantId']}")
    if grant is None:
        raise NotFound(f"Grant ID {request['GrantId']} not found", code="NotFoundException")
    rehearse(request)
    inside.records.delete(grant)
