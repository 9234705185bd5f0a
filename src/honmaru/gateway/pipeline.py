"""The part of a request's life that no wire can change: admit → label tags → authorize → dispatch → record.

Invariants:
- Nothing is dispatched that IAM did not allow, and nothing is answered whose ledger entry is not durable.
- A request is refused while the ledger cannot be written (no audit, no answer).
- Clients that send slowly hold no thread that other operations need, and who floods takes no more than a share of
  the turns: the next caller finds one free.
- Refusals leave an entry too: in the log of the session's label, or of the lowest label when nobody was authenticated.

Not here: bytes of any wire (gateway/aws and its siblings fill an Exchange and serialise its result).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from honmaru.api.models import Operation, ServiceModels
from honmaru.api.names import method_name
from honmaru.core.errors import (
    AccessDenied,
    ConfigurationFault,
    HonmaruError,
    LedgerUnavailable,
    NotImplementedYet,
)
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.label_tags import check_stated_labels
from honmaru.gateway.limits import Limits
from honmaru.gateway.news import News
from honmaru.gateway.permissions import Question, questions, target_problems
from honmaru.gateway.places import Places, holder_of
from honmaru.gateway.rates import Rates
from honmaru.gateway.reading import Budget
from honmaru.gateway.request_tags import request_tags
from honmaru.gateway.shared_rates import SharedRates
from honmaru.gateway.turns import Turns
from honmaru.gateway.workers import Landed, Workers
from honmaru.ports.runtime import Clock, Ids
from honmaru.security import idempotency
from honmaru.security.calls import Call, Provider
from honmaru.security.guard import Guard
from honmaru.security.identity.resources import Resources
from honmaru.security.ledger.entries import api_call


class AuditLog(Protocol):
    """What the gateway needs of the ledger."""

    @property
    def writable(self) -> bool: ...

    def append_to(self, label: Label, entry: Mapping[str, Any], waiting: Landed) -> None: ...


class Authority(Protocol):
    """What the gateway needs of the identity."""

    @property
    def account(self) -> str: ...

    def credential(self, access_key_id: str, session_token: str | None) -> Any: ...

    def bearer(self, token: str) -> Session: ...

    def nobody(self) -> Session: ...

    def note_use(self, session: Session, service: str) -> None: ...

    def require(self, session: Session, action: str, resource_arn: str, context: Mapping[str, Any]) -> str: ...

    @property
    def resources(self) -> Resources: ...


_T = TypeVar("_T")
_Method = Callable[[Call, Mapping[str, Any]], Any]


class _Bound:
    """A written operation: its method, whether it is asynchronous, and what it asks of IAM."""

    __slots__ = ("anywhere", "asynchronous", "context", "method", "payload", "prompt", "questions")

    def __init__(self, provider: Provider, operation: Operation, method: _Method) -> None:
        self.method = method
        self.asynchronous = inspect.iscoroutinefunction(method)
        self.questions: tuple[Question, ...] = questions(provider, operation)
        self.context = provider.context
        self.prompt = operation.name in provider.prompt
        self.anywhere = operation.name in provider.anywhere
        self.payload = _payload(operation)
        # An operation that asks IAM by itself must do so before anything is repeated: it cares for its tokens itself.
        asked_here = operation.name not in provider.unauthorized
        if asked_here and not self.asynchronous and idempotency.has_token(operation.input_shape["members"]):
            self.method = idempotency.repeatable(method, code=_mismatch_code(operation))


_MISMATCHES = ("IdempotentParameterMismatchException", "ConflictException")


def _mismatch_code(operation: Operation) -> str | None:
    """The modelled error for a client token that was used with other members."""
    modelled = {error["shape"] for error in operation.model.get("errors", ())}
    return next((code for code in _MISMATCHES if code in modelled), None)


class Pipeline:
    """See the module. One instance per enclave, shared by all wires."""

    def __init__(
        self,
        *,
        models: ServiceModels,
        providers: Sequence[Provider],
        identity: Authority,
        guard: Guard,
        ledger: AuditLog,
        clock: Clock,
        ids: Ids,
        region: str,
        limits: Limits,
        prompt_reads: bool = True,
        news: News | None = None,
        whole: bool = True,
        rates_memory: int | None = None,
    ) -> None:
        """`prompt_reads`: the record store is on this machine, so that reading one record is no reason to wait.
        `news`: what other processes changed; None where there are none. `whole`: this process carries out every
        operation, not only those that any process may. `rates_memory`: where the buckets lie that processes share.

        Raises ConfigurationFault that lists every mistake of the providers.
        """
        self.models = models
        self.identity = identity
        self.guard = guard
        self.ledger = ledger
        self.clock = clock
        self.ids = ids
        self.region = region
        self.limits = limits
        self._workers = Workers(limits.workers, "operation")
        self._turns = Turns(limits.workers, limits.workers_each, limits.queued, clock.monotonic)
        self._principal_rates, self._account_rates = (
            Rates(per_s, per_s * limits.burst_s)
            if rates_memory is None
            else SharedRates(per_s, per_s * limits.burst_s, rates_memory, table)
            for table, per_s in enumerate((limits.principal_requests_s, limits.account_requests_s))
        )
        self._prompt_reads = prompt_reads
        self._news = news
        self._whole = whole
        self.budget = Budget(limits.unverified_bytes)
        self._upload_pool = ThreadPoolExecutor(limits.uploads, thread_name_prefix="upload")
        self._uploads = Places(limits.uploads, limits.uploads_each)
        self._streams = Places(limits.streams, limits.streams_each)
        self._bound: dict[Operation, _Bound] = {}
        self._unsigned: set[Operation] = set()
        problems = []
        for provider in providers:
            service = models[provider.service]
            if provider.arn_services:
                identity.resources.own(provider)
            problems += target_problems(provider, service.operations)
            for operation in service.operations.values():
                method = getattr(provider, method_name(operation.name), None)
                if method is not None:
                    if operation.name in provider.unsigned:
                        self._unsigned.add(operation)
                    self._bound[operation] = _Bound(provider, operation, method)
        if problems:
            raise ConfigurationFault(problems)

    def admit(self, _exchange: Exchange) -> None:
        """Raises LedgerUnavailable while the ledger cannot be written."""
        if not self.ledger.writable:
            raise LedgerUnavailable("The audit ledger cannot be written. Requests are refused until it can.")

    def keep_up(self, _exchange: Exchange) -> Awaitable[None] | None:
        """Learns what other processes changed, where that was not asked a moment ago. Raises StoreUnavailable."""
        return None if self._news is None else self._news.fresh()

    def anywhere(self, operation: Operation) -> bool:
        """Whether every process of the enclave may carry out an operation."""
        bound = self._bound.get(operation)
        return bound is not None and bound.anywhere

    def needs_no_signature(self, operation: Operation) -> bool:
        """Whether what the operation carries is its own proof (an identity token).

        One that nobody has written answers that it is not implemented, instead of asking for a signature that its
        clients never make.
        """
        if operation in self._unsigned:
            return True
        return operation not in self._bound and operation.model.get("authtype") == "none"

    def check_label_tags(self, exchange: Exchange) -> None:
        """Raises ValidationFault when the request states another label than the session's."""
        if exchange.operation is not None and exchange.session is not None:
            check_stated_labels(exchange.operation.plan, exchange.members, exchange.session)

    def meter(self, exchange: Exchange) -> None:
        """Raises Throttled when the caller, or its account, makes more requests than it may. By label, so that no
        session learns from its own rate what another one does above it."""
        self.budget.free(exchange)
        session = exchange.session
        if session is None:  # an operation for which nobody signs: all of these share one holder's
            self._principal_rates.take(None, self.clock.monotonic())
            return
        holder = exchange.holder = holder_of(session)
        now = self.clock.monotonic()
        self._principal_rates.take(holder, now)
        self._account_rates.take((session.account, session.label), now)

    def take_turn(self, exchange: Exchange) -> Awaitable[None] | None:
        """Waits for a turn, which `give_turn_back` ends. Uploads wait for their clients, and have places instead.

        Raises Throttled when too many wait already.
        """
        if exchange.upload is not None and exchange.upload.waits:
            return None
        if self._turns.try_take(exchange.holder):
            exchange.turn = True
            return None
        return self._wait_for_turn(exchange)

    async def _wait_for_turn(self, exchange: Exchange) -> None:
        await self._turns.take(exchange.holder)
        exchange.turn = True

    async def unvouched_turn(self, exchange: Exchange) -> None:
        """A turn for the refusal of a request whose caller is not known: all of these share one holder's."""
        if not exchange.turn and exchange.session is None:
            await self._turns.take(None, bounded=False)
            exchange.holder, exchange.turn = None, True

    def give_turn_back(self, exchange: Exchange) -> None:
        """The request is done, or waits for something slow from here on. Idempotent."""
        self.budget.free(exchange)
        if exchange.turn:
            exchange.turn = False
            self._turns.give_back(exchange.holder)

    def authorize(self, exchange: Exchange) -> None:
        """Asks IAM everything that the operation asks. Raises AccessDenied, NotImplementedYet."""
        operation = _known(exchange.operation)
        session = _known(exchange.session)
        bound = self._bound.get(operation)
        if bound is None:
            raise NotImplementedYet(
                f"Operation {operation.name} of service {operation.service.name} is not implemented in this version "
                "of honmaru; nothing was done"
            )
        if not (self._whole or bound.anywhere):
            raise RuntimeError(f"{operation.name} is for the enclave's first process")
        self.identity.note_use(session, operation.service.name)
        context = bound.context(operation.name, exchange.members)
        tags = request_tags(exchange.members)
        if tags:
            context = {**tags, **context}
        for action, resource in bound.questions:
            arn = resource(session, exchange.members)
            if arn is None:
                continue
            for one in (arn,) if isinstance(arn, str) else arn:
                owner = self.identity.require(session, action, one, context)
                exchange.owner = exchange.owner or owner
        exchange.decision = "allow"

    async def dispatch(self, exchange: Exchange) -> None:
        """Runs the operation: asynchronous ones on the loop, all others in a worker thread. Raises what it raises."""
        operation = _known(exchange.operation)
        bound = self._bound[operation]
        members = exchange.members
        call = exchange.call = Call(
            session=_known(exchange.session),
            service=operation.service.name,
            operation=operation.name,
            request_id=exchange.request_id,
            now=exchange.at,
            guard=self.guard,
            headers=exchange.headers,
            query={name: values[0] for name, values in exchange.query.items()},
            authorizer=self.identity.require,
            owner=exchange.owner,
        )
        if bound.asynchronous:
            self.give_turn_back(exchange)
            with self.stream_slot(exchange):
                exchange.result = await _or_disconnect(exchange, bound.method(call, members))
        elif exchange.upload is not None and exchange.upload.waits:
            with self._uploads.taken(exchange.holder):
                work = functools.partial(bound.method, call, members)
                exchange.result = await asyncio.get_running_loop().run_in_executor(self._upload_pool, work)
        elif bound.prompt and self._prompt_reads:
            exchange.result = bound.method(call, members)
        elif bound.payload is None:
            exchange.result = await self._workers.run(functools.partial(bound.method, call, members))
        else:
            exchange.result, exchange.drawn = await self._workers.run(
                functools.partial(_drawn, bound.payload, bound.method, call, members)
            )

    async def in_worker(self, work: Callable[[], Any]) -> Any:
        """Runs blocking work in a worker thread."""
        return await self._workers.run(work)

    def stream_slot(self, exchange: Exchange) -> AbstractContextManager[None]:
        """A place among the concurrent streams, for a `with` block. Raises Throttled."""
        return self._streams.taken(holder_of(_known(exchange.session)))

    def event(
        self,
        exchange: Exchange,
        *,
        response_digest: str | None,
        details: Mapping[str, Any] | None = None,
        error: tuple[str, str] | None = None,
    ) -> dict[str, Any]:
        """The ledger entry of an exchange. `error` is (code, message)."""
        call = exchange.call
        service = exchange.service
        operation = exchange.operation
        wire = exchange.wire
        dialect = {"dialect": wire.dialect} if wire is not None and wire.dialect else {}
        return api_call(
            event_id=self.ids.uuid(),
            session=exchange.session,
            service=service.name if service else "unknown",
            event_source=service.event_source if service else "unknown.amazonaws.com",
            operation=exchange.operation_name,
            request_id=exchange.request_id,
            at=self.clock.now(),
            decision=exchange.decision,
            error_code=error[0] if error else None,
            error_message=error[1] if error else None,
            resources=call.resources if call else (),
            request_digest=exchange.request_digest,
            response_digest=response_digest,
            details={**(call.details if call else {}), **dialect, **(details or {})},
            source_ip=exchange.client,
            user_agent=exchange.headers.get("user-agent", ""),
            region=self.region,
            account=exchange.session.account if exchange.session else self.identity.account,
            read_only=operation.read_only if operation else True,
        )

    async def record(self, exchange: Exchange, entry: Mapping[str, Any]) -> None:
        """Appends an entry; returns once it is durable. Raises LedgerUnavailable."""
        label = exchange.session.label if exchange.session else BOTTOM
        durable = Landed(self._workers.landing())
        self.ledger.append_to(label, entry, durable)
        await durable.future

    def refused(self, exchange: Exchange, error: BaseException) -> None:
        """Notes on the exchange what kind of refusal an error is, for the entry."""
        exchange.error = error
        if isinstance(error, AccessDenied):
            exchange.decision = "deny"

    def close(self) -> None:
        """Waits for the running operations."""
        if self._news is not None:
            self._news.close()
        self._upload_pool.shutdown(wait=True)
        self._workers.close()


_Drawn = tuple[Any, tuple[bytes, str] | None]


def _payload(operation: Operation) -> str | None:
    """The member of the answer that a service may give in pieces; None when there is none."""
    member: str | None = operation.output_shape.get("payload") if operation.output is not None else None
    if member is None:
        return None
    shape = operation.service.shapes[operation.output_shape["members"][member]["shape"]]
    return member if shape["type"] == "blob" else None


def _drawn(payload: str, method: _Method, call: Call, members: Mapping[str, Any]) -> _Drawn:
    """What the operation answers, with a short body in pieces drawn to its end, and the digest of a drawn body."""
    result = method(call, members)
    pieces = (result or {}).get(payload)
    length = (result or {}).get("ContentLength")
    if length is None or length > _WHOLE or not isinstance(pieces, Iterator):
        return result, None
    body = b"".join(pieces)
    if len(body) != length:
        raise RuntimeError("a service sent another length than it stated")
    return {**result, payload: body}, (body, f"sha384:{hashlib.sha384(body).hexdigest()}")


_WHOLE = 1 << 20
"""Bytes of a body up to which its pieces are drawn before it is answered."""


class ClientGone(HonmaruError):
    """The client closed the connection while its operation ran; the operation was cancelled."""


async def _or_disconnect(exchange: Exchange, work: Awaitable[Any]) -> Any:
    """The result of `work`, cancelled when the client closes the connection first (raises ClientGone)."""
    if exchange.upload is not None:
        return await work
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone(exchange))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone("The client closed the connection")
    finally:
        for other in (task, watch):
            if not other.done():
                other.cancel()


async def gone(exchange: Exchange) -> None:
    """Returns when the client has closed the connection."""
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


def _known(value: _T | None) -> _T:
    if value is None:
        raise RuntimeError("a handler ran before the one that it depends on")
    return value
