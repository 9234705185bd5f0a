"""Policies of a user, group or role: inline, attached, and the permissions boundary. The same rules for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import NotFound, QuotaExceeded
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import Identity, entities
from honmaru.security.policy import compile_policy
from honmaru.services.iam.entities import check_size, encoded, find, page, update

INLINE_LIMITS = {entities.USER: 2048, entities.GROUP: 5120, entities.ROLE: 10240}
ATTACHED_LIMIT = 20


def put_inline(call: Call, kind: str, name: str, request: Mapping[str, Any]) -> None:
    """Add or replace an inline policy."""
    record = find(call, kind, name)
    text = request["PolicyDocument"]
    compile_policy(text)
    inline = {**record.body["inline"], request["PolicyName"]: text}
    check_size("".join(inline.values()), INLINE_LIMITS[kind], f"{kind} {name}")
    update(call, record, inline=inline)


def _inline(record: Record, policy: str) -> str:
    text = record.body["inline"].get(policy)
    if text is None:
        raise NotFound(f"The {record.kind} policy with name {policy} cannot be found.", code="NoSuchEntity")
    return str(text)


def get_inline(call: Call, kind: str, name: str, policy: str) -> dict[str, Any]:
    """An inline policy, its document URL-encoded."""
    text = _inline(find(call, kind, name), policy)
    return {f"{kind.title()}Name": name, "PolicyName": policy, "PolicyDocument": encoded(text)}


def delete_inline(call: Call, kind: str, name: str, policy: str) -> None:
    """Remove an inline policy."""
    record = find(call, kind, name)
    _inline(record, policy)
    update(call, record, inline={key: text for key, text in record.body["inline"].items() if key != policy})


def list_inline(call: Call, kind: str, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Names of inline policies, one page."""
    names, more = page(sorted(find(call, kind, name).body["inline"]), request, str)
    return {"PolicyNames": names, **more}


def require_policy(call: Call, identity: Identity, arn: str) -> None:
    """Raises NotFound unless a managed policy of that ARN is visible."""
    if identity.directories.of(call.account).policy_text(arn, call.session.label) is None:
        raise NotFound(f"Policy {arn} does not exist or is not attachable.", code="NoSuchEntity")


def attach(call: Call, identity: Identity, kind: str, name: str, arn: str) -> None:
    """Attach a managed policy; attaching it twice is no error."""
    record = find(call, kind, name)
    require_policy(call, identity, arn)
    attached = record.body["attached"]
    if arn in attached:
        return
    if len(attached) >= ATTACHED_LIMIT:
        raise QuotaExceeded(
            f"Cannot exceed quota for PoliciesPer{kind.title()}: {ATTACHED_LIMIT}", code="LimitExceeded"
        )
    update(call, record, attached=[*attached, arn])


def detach(call: Call, kind: str, name: str, arn: str) -> None:
    """Detach a managed policy."""
    record = find(call, kind, name)
    if arn not in record.body["attached"]:
        raise NotFound(f"Policy {arn} was not found.", code="NoSuchEntity")
    update(call, record, attached=[other for other in record.body["attached"] if other != arn])


def list_attached(call: Call, kind: str, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Attached managed policies, one page."""
    prefix = request.get("PathPrefix") or "/"
    arns = [arn for arn in sorted(find(call, kind, name).body["attached"]) if _path(arn).startswith(prefix)]
    found, more = page(arns, request, str)
    return {"AttachedPolicies": [{"PolicyName": arn.rpartition("/")[2], "PolicyArn": arn} for arn in found], **more}


def _path(arn: str) -> str:
    return arn.partition(":policy")[2].rpartition("/")[0] + "/"


def set_boundary(call: Call, identity: Identity, kind: str, name: str, arn: str) -> None:
    """Set the permissions boundary; "" removes it."""
    record = find(call, kind, name)
    if arn:
        require_policy(call, identity, arn)
    elif not record.body["boundary"]:
        raise NotFound(f"The {kind} {name} has no permissions boundary.", code="NoSuchEntity")
    update(call, record, boundary=arn)
