"""What a ledger entry says: CloudTrail's record shape, plus label, decision and digests under "honmaru".

Invariants:
- Entries hold names, decisions, counts and digests, never content.
- Every entry made here fits the ledger (`MAX_ENTRY_BYTES`): what is too long is cut or replaced by its count and
  SHA-384 digest, and says so.
Source: "CloudTrail record contents for management, data, and network activity events", version 1.11.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from honmaru.core.sessions import Session

MAX_ENTRY_BYTES = 65_000
"""An entry bundle stores lengths in 16 bits (C2SP tlog-tiles); the rest is room for index and time."""

API_CALL = "AwsApiCall"
STATE_CHANGE = "HonmaruStateChange"

_TEXT_LIMIT = 1024
_LIST_LIMIT = 16_384


def api_call(
    *,
    event_id: str,
    session: Session | None,
    service: str,
    event_source: str,
    operation: str,
    request_id: str,
    at: datetime,
    decision: str | Mapping[str, Any],
    error_code: str | None = None,
    error_message: str | None = None,
    resources: Sequence[tuple[str, str]] = (),
    request_digest: str | None = None,
    response_digest: str | None = None,
    details: Mapping[str, Any] | None = None,
    source_ip: str | None = None,
    user_agent: str = "",
    region: str,
    account: str,
    read_only: bool,
) -> dict[str, Any]:
    """One API call, answered or refused.

    `session` is None when nobody could be authenticated; `resources` are (ARN, AWS type) pairs; `at` is the time of
    the answer; `details` are further facts (counts, digests). Label: belongs into the log of `session.label`.
    """
    named, omitted = _resources(resources, account)
    honmaru: dict[str, Any] = {
        "label": session.label.canonical if session else None,
        "service": service,
        "decision": _bounded(dict(decision)) if isinstance(decision, Mapping) else _text(decision),
        "requestDigest": request_digest,
        "responseDigest": response_digest,
        "details": _bounded(dict(details or {})),
    }
    if session and session.human:
        honmaru["human"] = _text(session.human)
    if omitted:
        honmaru["resourcesOmitted"] = omitted
    entry: dict[str, Any] = {
        "eventVersion": "1.11",
        "eventID": event_id,
        "eventType": API_CALL,
        "eventTime": _seconds(at),
        "eventSource": _text(event_source),
        "eventName": _text(operation),
        "userIdentity": _identity(session),
        "awsRegion": region,
        "sourceIPAddress": source_ip or (session.source_ip if session else None) or event_source,
        "userAgent": _text(user_agent or (session.user_agent if session else "")),
        "requestParameters": None,
        "responseElements": None,
        "requestID": request_id,
        "readOnly": read_only,
        "resources": named,
        "managementEvent": True,
        "eventCategory": "Management",
        "recipientAccountId": account,
        "honmaru": honmaru,
    }
    if error_code is not None:
        entry["errorCode"] = _text(error_code)
    if error_message is not None:
        entry["errorMessage"] = _text(error_message)
    return entry


def state_change(
    *,
    event_id: str,
    at: datetime,
    account: str,
    service: str,
    kind: str,
    name: str,
    label: str,
    change: str,
    state: str,
    version: int,
    body_digest: str | None = None,
    principal_arn: str | None = None,
    region: str = "",
) -> dict[str, Any]:
    """One committed change of a record, from the guard's outbox.

    `change` is "create", "update" or "delete"; `state` and `version` are the record's after the change; `body_digest`
    is of the sealed body as stored. Label: belongs into the log of `label`, the record's.
    """
    return {
        "eventVersion": "1.11",
        "eventID": event_id,
        "eventType": STATE_CHANGE,
        "eventTime": _seconds(at),
        "eventSource": f"{service}.amazonaws.com",
        "eventName": f"{change.capitalize()}Record",
        "userIdentity": {"type": "Unknown"} if principal_arn is None else {"type": "Principal", "arn": principal_arn},
        "awsRegion": region,
        "readOnly": False,
        "managementEvent": True,
        "eventCategory": "Management",
        "recipientAccountId": account,
        "honmaru": {
            "label": label,
            "service": service,
            "kind": _text(kind),
            "name": _text(name, 4096),
            "change": change,
            "state": _text(state),
            "version": version,
            "bodyDigest": body_digest,
        },
    }


def _identity(session: Session | None) -> dict[str, Any]:
    """Who acts; not to be changed: the same session's entries share it."""
    if session is None:
        return {"type": "Unknown"}
    known = _IDENTITIES.get(id(session))
    if known is None or known[0] is not session:
        if len(_IDENTITIES) >= _IDENTITIES_LIMIT:
            _IDENTITIES.clear()
        known = _IDENTITIES[id(session)] = (session, _described(session))
    return known[1]


_TYPES = {
    "user": "IAMUser",
    "federated-user": "FederatedUser",
    "assumed-role": "AssumedRole",
    "service": "AWSService",
}
_IDENTITIES: dict[int, tuple[Session, dict[str, Any]]] = {}
_IDENTITIES_LIMIT = 1024


def _described(session: Session) -> dict[str, Any]:
    last = session.principal_arn.rpartition("/")[2]
    identity: dict[str, Any] = {
        "type": _TYPES.get(session.kind, "Unknown"),
        "principalId": session.principal_id,
        "arn": session.principal_arn,
        "accountId": session.account,
        "accessKeyId": session.access_key_id,
    }
    if session.kind == "user":
        identity["userName"] = last
    if session.kind in ("assumed-role", "federated-user", "service"):
        identity["sessionContext"] = {
            "sessionIssuer": {
                "type": "IAMUser" if session.kind == "federated-user" else "Role",
                "principalId": session.principal_id.partition(":")[0],
                "arn": session.issuer_arn,
                "accountId": session.account,
                "userName": session.issuer_arn.rpartition("/")[2],
            },
            "attributes": {"mfaAuthenticated": "true" if session.mfa_s else "false"},
        }
        if session.federated_provider:
            identity["sessionContext"]["webIdFederationData"] = {"federatedProvider": session.federated_provider}
        if session.human:
            identity["sessionContext"]["sourceIdentity"] = _text(session.human)
    return identity


def _resources(
    resources: Sequence[tuple[str, str]], account: str
) -> tuple[list[dict[str, str]], dict[str, Any] | None]:
    named: list[dict[str, str]] = []
    size = 0
    for position, (arn, kind) in enumerate(resources):
        size += len(arn) + len(kind) + 64
        if size > _LIST_LIMIT:
            rest = json.dumps([list(pair) for pair in resources[position:]]).encode()
            return named, {"count": len(resources) - position, "sha384": hashlib.sha384(rest).hexdigest()}
        named.append({"ARN": arn, "accountId": account, "type": kind})
    return named, None


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) <= _FEW and all(type(item) in _SMALL or len(str(item)) <= 256 for item in value.values()):
        return value
    text = json.dumps(value, default=str, sort_keys=True)
    if len(text) <= _LIST_LIMIT:
        return value
    return {"omittedBytes": len(text), "sha384": hashlib.sha384(text.encode()).hexdigest()}


_FEW = 16
_SMALL = frozenset((int, float, bool, type(None)))


def _text(value: str, limit: int = _TEXT_LIMIT) -> str:
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _seconds(at: datetime) -> str:
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(timespec="seconds")[:19] + "Z"
