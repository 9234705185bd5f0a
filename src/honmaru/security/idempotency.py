"""Client tokens: the same request, sent again with the same token, gets the same answer and does nothing again.

    answer = idempotency.earlier(call, request)          what the same request was answered before, if it was
    records.apply([..., idempotency.note(call, request, answer)])        with the change itself, in one transaction
    answer = idempotency.once(call, request, make)       both of it, and the race between two of them
    method = idempotency.repeatable(method)              around a whole operation: the gateway does so for every one
                                                         whose model has such a token

What names its resource (a job's name) may leave it at the last: sent again after a crash, it finds what it made. What
draws an id must use `once`, or a crash between the change and the note would make two.

Invariants:
- With `once` the note is committed together with what the operation makes: after `kill -9` there are both or neither,
  so a repeated request never does its work twice and never loses its answer.
- An answer that was given is in a durable note before it leaves.
- A token belongs to one account, operation and label: what another label did with it is neither seen nor disturbed.
- The same token with other members is refused as a Conflict and changes nothing.
- Nobody is told an answer without being asked of IAM again: the gateway repeats behind its own question, and an
  operation that asks by itself asks before it calls `once`.
- Notes older than KEPT_FOR are forgotten (`forget_old`); AWS keeps them for hours.

Source: "Idempotency", AWS SDKs' reference; smithy.api#idempotencyToken.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson

from honmaru.core.errors import Conflict, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Guard, GuardedRecords, Record
from honmaru.security.guard.records import Creation, GuardedChange

KIND = "client-token"
KEPT_FOR = timedelta(days=7)
FORGET_EVERY_S = 3600.0

_MEMBERS = ("clientToken", "ClientToken", "clientRequestToken", "ClientRequestToken", "idempotencyToken")
_TIME, _BYTES = " time", " bytes"
_MISMATCH = "{} was used before for a request with other parameters: use a new one"

Answer = dict[str, Any]
Make = Callable[[], tuple[Sequence[GuardedChange], Answer]]


def once(
    call: Call,
    request: Mapping[str, Any],
    make: Make,
    *,
    code: str | None = None,
    records: GuardedRecords | None = None,
) -> Answer:
    """What `make` answers, with its changes committed; or what the same request was answered before.

    A request without a token (the gateway fills in those that the model marks) is simply carried out.

    Args:
        make: Checks the request and returns the changes that carry it out and the answer, JSON values only. It is
            called at most once and must commit nothing by itself.
        code: The service's error code for a token that was used with other members.
        records: Where changes and note go; the call's own when None.
    Raises: what `make` raises; Conflict.
    Label: the note carries the session's label, as everything that the session makes.
    """
    records = records or call.records
    known = earlier(call, request, code=code, records=records)
    if known is not None:
        return known
    changes, answer = make()
    noted = [note(call, request, answer)] if _token(request)[1] else []
    try:
        records.apply([*changes, *noted])
    except Conflict:
        known = earlier(call, request, code=code, records=records)  # the same request, at the same time
        if known is None:
            raise
        return known
    return answer


def earlier(
    call: Call, request: Mapping[str, Any], *, code: str | None = None, records: GuardedRecords | None = None
) -> Answer | None:
    """The answer that this request got before with its token; None when the token is new, or there is none.

    Raises Conflict when the token was used for another request.
    """
    member, token = _token(request)
    record = _own(call, token, records or call.records) if token else None
    if record is None:
        return None
    if record.body["request"] != _digest(request, member):
        raise Conflict(_MISMATCH.format(member), code=code)
    answer: Answer = _given(record.body["answer"])
    return answer


def note(call: Call, request: Mapping[str, Any], answer: Answer) -> Creation:
    """What to commit together with the operation's own changes. The request must have a token."""
    member, token = _token(request)
    if not token:
        raise ValueError(f"{call.operation} was given no client token: the gateway fills in one that the model marks")
    return Creation(KIND, _name(call, token), {"request": _digest(request, member), "answer": _kept(answer)})


Method = Callable[[Call, Mapping[str, Any]], Any]


def repeatable(method: Method, *, code: str | None = None) -> Method:
    """An operation that answers a repeated request as it did before, and does it no second time.

    `code` is the error that the operation's model has for a token used with other members; without one it is a
    validation error. The ledger's entry of a repeated request says so.
    """

    def run(call: Call, request: Mapping[str, Any]) -> Any:
        try:
            known = earlier(call, request, code=code)
        except Conflict as mismatch:
            if code is None:
                raise ValidationFault(mismatch.message) from None
            raise
        if known is not None:
            call.details["repeated"] = True
            return known
        answer = method(call, request) or {}
        if _token(request)[1]:
            with contextlib.suppress(Conflict):  # the operation noted it itself, with its change
                call.records.apply([note(call, request, dict(answer))])
        return answer

    return run


def has_token(members: Collection[str]) -> bool:
    """True for an input with a client token."""
    return any(member in members for member in _MEMBERS)


def forget_old(guard: Guard, services: Collection[str], now: datetime) -> int:
    """Deletes the notes that are older than KEPT_FOR; returns how many. Run by the enclave itself, across labels."""
    count = 0
    for service in services:
        trusted = guard.trusted(service, {KIND})
        for record in trusted.list(KIND):
            if now - record.created > KEPT_FOR:
                try:
                    trusted.delete(record)
                except Conflict:  # another worker was first
                    continue
                count += 1
    return count


def _token(request: Mapping[str, Any]) -> tuple[str, str | None]:
    for member in _MEMBERS:
        if request.get(member):
            return member, str(request[member])
    return "", None


def _name(call: Call, token: str) -> str:
    return f"{call.operation}/{hashlib.sha384(token.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _own(call: Call, token: str, records: GuardedRecords) -> Record | None:
    label = call.session.label
    return next((found for found in records.instances(KIND, _name(call, token)) if found.label == label), None)


def _digest(request: Mapping[str, Any], member: str) -> str:
    """Of every member but the token, as the service sees them."""
    rest = {name: value for name, value in request.items() if name != member}
    option = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return hashlib.sha384(orjson.dumps(rest, default=_plain, option=option)).hexdigest()


def _kept(value: Any) -> Any:
    """An answer as JSON values; times and bytes are marked."""
    if isinstance(value, Mapping):
        return {name: _kept(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    if isinstance(value, datetime):
        return {_TIME: value.isoformat()}
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    return value


def _given(value: Any) -> Any:
    """The inverse of `_kept`."""
    if isinstance(value, list):
        return [_given(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_TIME}:
            return datetime.fromisoformat(value[_TIME])
        if value.keys() == {_BYTES}:
            return bytes.fromhex(value[_BYTES])
        return {name: _given(item) for name, item in value.items()}
    return value


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"a request with a client token cannot hold a {type(value).__name__}")
