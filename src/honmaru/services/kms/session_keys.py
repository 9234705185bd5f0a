"""Keys for the platform's own work on somebody's behalf: a `ports.keys.SessionKeys`.

Invariants:
- Every use passes the same gates as a client's: the key's policy and IAM, as the session, by way of the service.
- Every use, refused ones too, leaves an entry that is durable before the key is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from honmaru.core.errors import HonmaruError
from honmaru.core.sessions import Session
from honmaru.ports.keys import DataKey
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.calls import Call
from honmaru.security.guard import Guard
from honmaru.security.guard.guard import EntryLog
from honmaru.security.ledger.entries import api_call
from honmaru.services.kms.access import KmsKeys

_Result = TypeVar("_Result")


class Authorizer(Protocol):
    """What this needs of `security.identity.Identity`."""

    def require(self, session: Session, action: str, resource: str, context: Mapping[str, Any]) -> object: ...


class KmsSessionKeys:
    """See the module. Thread-safe."""

    def __init__(
        self, keys: KmsKeys, guard: Guard, identity: Authorizer, ledger: EntryLog, clock: Clock, ids: Ids
    ) -> None:
        self._keys, self._guard, self._identity = keys, guard, identity
        self._ledger, self._clock, self._ids = ledger, clock, ids

    def data_key(self, session: Session, key: str, context: Mapping[str, str], service: str) -> DataKey:
        """See the port."""
        call = self._call(session, "GenerateDataKey")
        return self._recorded(call, lambda: self._keys.data_key(call, key, context, service))

    def open(self, session: Session, wrapped: bytes, context: Mapping[str, str], service: str) -> bytes:
        """See the port."""
        call = self._call(session, "Decrypt")
        return self._recorded(call, lambda: self._keys.open(call, wrapped, context, service))

    def _call(self, session: Session, operation: str) -> Call:
        return Call(
            session=session,
            service="kms",
            operation=operation,
            request_id=self._ids.uuid(),
            now=self._clock.now(),
            guard=self._guard,
            headers={},
            query={},
            authorizer=lambda *question: self._identity.require(*question),
        )

    def _recorded(self, call: Call, work: Callable[[], _Result]) -> _Result:
        try:
            result = work()
        except HonmaruError as fault:
            self._append(call, "Deny", (fault.code or type(fault).__name__, fault.message))
            raise
        self._append(call, "Allow", (None, None))
        return result

    def _append(self, call: Call, decision: str, error: tuple[str | None, str | None]) -> None:
        session = call.session
        entry = api_call(
            event_id=self._ids.uuid(),
            session=session,
            service="kms",
            event_source="kms.amazonaws.com",
            operation=call.operation,
            request_id=call.request_id,
            at=self._clock.now(),
            decision=decision,
            error_code=error[0],
            error_message=error[1],
            resources=call.resources,
            details=call.details,
            region=session.region,
            account=session.account,
            read_only=True,
        )
        self._ledger.append(session.label, entry).result()
