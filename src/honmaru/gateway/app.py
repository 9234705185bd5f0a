"""The gateway as an ASGI application. Its `handlers`, read top to bottom, are the life of a request.

Invariants:
- The answer, and of a stream its first byte, leaves after the request's ledger entry is durable; the end of a stream
  leaves after a second entry that states how it ended.
- Every path ends in an entry, refusals and failures too. When the entry cannot be written the answer is a modelled
  503 and carries nothing of the result.
- An exception outside the error tree is logged here with its request id, and the caller learns nothing of it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import re
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from honmaru.api.models import SERVICES, ServiceModels
from honmaru.core.errors import LedgerUnavailable, NotImplementedYet, RequestFault
from honmaru.core.labels import Label
from honmaru.gateway.anthropic import AnthropicWire
from honmaru.gateway.aws.faults import code_and_status, message_of
from honmaru.gateway.aws.post import PostWire
from honmaru.gateway.aws.preflight import PreflightWire
from honmaru.gateway.aws.wire import AwsWire
from honmaru.gateway.exchange import Exchange, Receive, Scope, Send
from honmaru.gateway.limits import Limits
from honmaru.gateway.links import Forwarder
from honmaru.gateway.meters import RequestMeter
from honmaru.gateway.news import News
from honmaru.gateway.openai import OpenAiWire
from honmaru.gateway.pipeline import AuditLog, Authority, ClientGone, Pipeline, gone
from honmaru.gateway.scrape import ScrapeWire
from honmaru.gateway.spans import Tracer
from honmaru.gateway.streams import Pieces
from honmaru.gateway.wires import Handler, Wire
from honmaru.ports.cors import CrossOriginRules
from honmaru.ports.runtime import Clock, Ids
from honmaru.security.calls import Provider
from honmaru.security.guard import Guard
from honmaru.security.page_tokens import PageTokens

__all__ = ["Gateway", "Limits"]

_LOG = logging.getLogger("honmaru.gateway")
_BARE_FORM = re.compile(rb"Action=([A-Za-z]{1,128})&Version=[0-9-]{10}")
"""A form that can be read in one way only. What has members beside its action is read by who carries it out."""


class _HandedOver(Exception):
    """The request was answered by the enclave's first process."""


class Gateway:
    """The ASGI application of one enclave.

    Args:
        providers: The services; each declares its botocore name.
        identity: Authenticates and decides (security.identity.Identity).
        partition: Name of the partition, for the region that its global services are signed for.
        cache: Directory for stripped service models.
        cross_origin: What buckets allow pages of other origins.
        pages: Seals the page tokens of every list.
        prompt_reads: See `Pipeline`.
        meter: Counts requests; one of its own when left out.
        tracer: Tells what happened in each request; None for nobody.
        news: What other processes of the enclave changed; None where there are none.
        forwarder: Of a worker process: the way of what it may not carry out itself. None for the first process.
        rates_memory: What processes share to count requests (`shared_rates.shared_memory`); None for one process.
    Raises:
        ConfigurationFault: A provider and the service model disagree; every disagreement is listed.
    """

    def __init__(
        self,
        *,
        providers: Sequence[Provider],
        identity: Authority,
        guard: Guard,
        ledger: AuditLog,
        clock: Clock,
        ids: Ids,
        region: str,
        partition: str,
        limits: Limits,
        cache: Path,
        pages: PageTokens,
        cross_origin: CrossOriginRules,
        prompt_reads: bool = True,
        meter: RequestMeter | None = None,
        tracer: Tracer | None = None,
        news: News | None = None,
        forwarder: Forwarder | None = None,
        rates_memory: int | None = None,
    ) -> None:
        self.models = ServiceModels(cache, SERVICES)
        self.limits = limits
        self._clock = clock
        self._ids = ids
        pipeline = self.pipeline = Pipeline(
            models=self.models,
            providers=providers,
            identity=identity,
            guard=guard,
            ledger=ledger,
            clock=clock,
            ids=ids,
            region=region,
            limits=limits,
            prompt_reads=prompt_reads,
            news=news,
            whole=forwarder is None,
            rates_memory=rates_memory,
        )
        self._forwarder = forwarder
        self._preflights = PreflightWire(pipeline, region=region, partition=partition, pages=pages, rules=cross_origin)
        self.meter = meter or RequestMeter(identity.account)
        self._tracer = tracer
        self._scrapes = ScrapeWire(pipeline, self.meter)
        self.wires: tuple[Wire, ...] = (
            self._preflights,
            self._scrapes,
            AnthropicWire(pipeline),
            OpenAiWire(pipeline),
            PostWire(pipeline, region=region, partition=partition, pages=pages),
            AwsWire(pipeline, region=region, partition=partition, pages=pages),
        )
        self._lives: dict[Wire, tuple[Handler, ...]] = {wire: self.handlers(wire) for wire in self.wires}

    def handlers(self, wire: Wire) -> tuple[Handler, ...]:
        """The life of a request that came over `wire`."""
        pipeline = self.pipeline
        keep_up = pipeline.keep_up
        if self._forwarder is not None and wire is not self.wires[-1]:
            return (self._hand_over,)
        if wire is self._preflights:  # a browser asks whether it may ask: no operation, nothing is changed
            decide = self._preflights.decide
            return (wire.identify, pipeline.admit, keep_up, wire.claim, decide, self.record, self.send)
        if wire is self._scrapes:  # Prometheus asks for numbers: no operation, nothing is changed
            scrape = self._scrapes
            life = (wire.identify, pipeline.admit, keep_up, wire.claim, pipeline.meter, scrape.show)
            return (*life, self.record, self.send)
        return (
            wire.identify,  # which service, protocol, operation?
            *(() if self._forwarder is None else (self._hand_over_what_is_not_ours,)),
            pipeline.admit,  # no audit, no answer
            keep_up,  # what did other processes change?
            wire.claim,  # who says so? scope, clock, key, signature over the headers
            wire.receive,  # the body, or the stream that will read it
            wire.verify,  # the body is what was signed
            pipeline.meter,  # does the caller ask more often than it may?
            pipeline.take_turn,  # whose turn is it?
            wire.parse,  # members, checked against the service model
            pipeline.check_label_tags,  # does the caller expect this label?
            keep_up,  # the body may have been long in coming
            pipeline.authorize,  # IAM: may this principal do this on this resource?
            pipeline.dispatch,  # the operation itself, behind the guard
            wire.serialise,  # members → wire
            self.record,  # the ledger entry is durable
            self.send,  # only now does anything leave
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Serves http only; `GET /healthz` without credentials answers "ok" and nothing else."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        if scope["raw_path"] == b"/healthz" and _is_plain(scope):
            await _plain(send, 200, b"ok\n")
            return
        pipeline = self.pipeline
        exchange = Exchange(scope, receive, send, self._ids.uuid(), self._clock.now())
        scope["honmaru.exchange"] = exchange
        exchange.budget = pipeline.budget
        wire = exchange.wire = self._wire(exchange)
        begun = self._clock.monotonic()
        handed_over = False
        trace = None if self._tracer is None else self._tracer.begin(exchange)
        try:
            if trace is not None:
                await trace.walk(self._lives[wire])
                return
            for handler in self._lives[wire]:
                pending = handler(exchange)
                if pending is not None:
                    await pending
        except _HandedOver:
            handed_over = True
        except Exception as error:
            if exchange.started:
                _LOG.error("request %s failed while it was answered: %s", exchange.request_id, type(error).__name__)
                raise
            await self._refuse(exchange, wire, error)
        finally:
            pipeline.give_turn_back(exchange)
            if not handed_over:  # whoever answered it counts it
                self.meter.observe(exchange, self._clock.monotonic() - begun)
            if trace is not None and not handed_over:
                trace.end()
            # What leads back to the exchange, or is large, must not wait for the collector of cycles.
            exchange.upload, exchange.members, exchange.error = None, {}, None
            exchange.body, exchange.drawn = b"", None

    def _wire(self, exchange: Exchange) -> Wire:
        """The first wire that owns the request; for most that is the last one, which a look at two headers tells."""
        if exchange.method != "OPTIONS":
            signed = False
            for name, value in exchange.scope["headers"]:
                if name == b"authorization":
                    # Anthropic's dialect is signed for a service of its own
                    signed = value[:4] == b"AWS4" and b"/bedrock-mantle/" not in value
                elif name == b"content-type" and value[:9].lower() == b"multipart":
                    signed = False
                    break
            if signed:
                return self.wires[-1]
        return next(wire for wire in self.wires if wire.owns(exchange))

    # In a worker process

    def _hand_over_what_is_not_ours(self, exchange: Exchange) -> Awaitable[None] | None:
        """Has the first process answer what only it may carry out, before anything of it was decided here."""
        operation, service = exchange.operation, exchange.service
        if operation is not None:
            return None if self.pipeline.anywhere(operation) else self._hand_over(exchange)
        if exchange.routing_fault is not None:
            return None  # nobody carries it out; the refusal is the same everywhere
        if service is None or exchange.protocol != "query":
            return self._hand_over(exchange)
        ready = exchange.scope.get("honmaru.body")
        body = None if ready is None else ready()
        action = None if body is None else _BARE_FORM.fullmatch(body)
        named = None if action is None else service.operations.get(action[1].decode("ascii"))
        if named is None or not self.pipeline.anywhere(named):
            return self._hand_over(exchange, body)
        exchange.scope["honmaru.body"] = functools.partial(next, iter((body,)), None)
        return None

    async def _hand_over(self, exchange: Exchange, body: bytes | None = None) -> None:
        """Has the first process answer the request. Always raises."""
        if self._forwarder is None:
            raise RuntimeError("the first process has nobody to hand a request to")
        await self._forwarder.forward(exchange, body)
        raise _HandedOver

    def close(self) -> None:
        """Waits for the running operations, then ends the worker threads."""
        self.pipeline.close()

    # The end of a good request

    async def record(self, exchange: Exchange) -> None:
        """The entry of the request; of a stream: that it begins."""
        answer, operation = exchange.answer, exchange.operation
        if answer is None:
            raise RuntimeError("record ran before serialise")
        upload = exchange.upload
        if upload is not None and answer.events is None:
            if not upload.finished:
                raise RuntimeError(f"{operation} answered before it had read its upload to the end")
            exchange.request_digest = f"sha256:{upload.digest}"
        details: Mapping[str, Any] = {}
        if answer.chunks is not None or answer.events is not None:
            translation = exchange.translation
            if operation is None:
                raise RuntimeError("a stream without an operation")
            framing = operation.plan.event_writer if translation is None else translation.framing
            pieces = exchange.pieces = Pieces(self.pipeline, framing, answer)
            body = await pieces.whole(answer.length)
            if body is None:
                details = {"stream": "begins"}
            else:
                answer.body = body
                exchange.pieces = None
        digest = None
        if exchange.drawn is not None and exchange.drawn[0] is answer.body:
            digest = exchange.drawn[1]
        elif exchange.pieces is None:
            digest = f"sha384:{hashlib.sha384(answer.body).hexdigest()}"
        await self.pipeline.record(exchange, self.pipeline.event(exchange, response_digest=digest, details=details))

    async def send(self, exchange: Exchange) -> None:
        """Status, headers, body."""
        answer = exchange.answer
        if answer is None:
            raise RuntimeError("send ran before serialise")
        headers = self._headers(exchange, answer.headers)
        if exchange.pieces is not None:
            self.pipeline.give_turn_back(exchange)
            with self.pipeline.stream_slot(exchange):
                await self._send_pieces(exchange, exchange.pieces, answer.status, headers)
            return
        bodiless = answer.status in (204, 304)
        if not bodiless and not any(name == b"content-length" for name, _ in headers):
            headers.append((b"content-length", str(len(answer.body)).encode()))
        body = b"" if exchange.method == "HEAD" or bodiless else answer.body
        await _whole(exchange, answer.status, headers, body)

    @staticmethod
    def _headers(exchange: Exchange, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        if exchange.wire is not None:
            headers += exchange.wire.identity(exchange)
        if exchange.session is not None:
            headers.append(_label_header(exchange.session.label))
        return headers

    async def _send_pieces(
        self, exchange: Exchange, pieces: Pieces, status: int, headers: list[tuple[bytes, bytes]]
    ) -> None:
        """Sends a stream. Its completion entry is durable before its end leaves."""
        task = _current_task()
        watch = asyncio.ensure_future(gone(exchange)) if exchange.upload is None else None
        drawing = True
        if watch is not None:
            watch.add_done_callback(lambda _: task.cancel() if drawing else None)
        failure: Exception | None = None
        client_gone = False
        try:
            await self._put(exchange, {"type": "http.response.start", "status": status, "headers": headers})
            exchange.started = True
            while (piece := await pieces.draw()) is not None:
                await self._put(exchange, {"type": "http.response.body", "body": piece, "more_body": True})
        except asyncio.CancelledError:
            if watch is None or not watch.done() or task.uncancel() > 0:
                raise
            client_gone = True
        except Exception as error:
            failure = error
        finally:
            drawing = False
            if watch is not None and not watch.done():
                watch.cancel()
            await pieces.close()
        await self._end_pieces(exchange, pieces, failure, client_gone=client_gone)

    async def _put(self, exchange: Exchange, message: dict[str, Any]) -> None:
        """Sends one message. Raises TimeoutError when the client takes nothing."""
        async with asyncio.timeout(self.limits.idle_s):
            await exchange.send(message)

    async def _end_pieces(
        self, exchange: Exchange, pieces: Pieces, failure: Exception | None, *, client_gone: bool
    ) -> None:
        error = None
        last = b""
        if failure is not None:
            self._log_unexpected(exchange, failure)
            code, _ = code_and_status(failure, exchange.service, exchange.protocol)
            error = (code, message_of(failure))
            if pieces.events is not None:
                last = pieces.events.fault(code, message_of(failure))
        outcome = "client gone" if client_gone else "failed" if failure else "complete"
        details = {"stream": outcome, "pieces": pieces.count, "bytes": pieces.size}
        entry = self.pipeline.event(exchange, response_digest=pieces.digest, details=details, error=error)
        await self.pipeline.record(exchange, entry)
        if client_gone:
            return
        if failure is not None and pieces.events is None:
            raise failure  # the server closes the connection: the client must not take this for the end
        await self._put(exchange, {"type": "http.response.body", "body": last})

    # The end of every other request

    async def _refuse(self, exchange: Exchange, wire: Wire, error: Exception) -> None:
        self._log_unexpected(exchange, error)
        await self.pipeline.unvouched_turn(exchange)
        if exchange.pieces is not None:
            await exchange.pieces.close()
        self.pipeline.refused(exchange, error)
        try:
            code, _ = code_and_status(error, exchange.service, exchange.protocol)
            if not isinstance(error, LedgerUnavailable):
                entry = self.pipeline.event(exchange, response_digest=None, error=(code, message_of(error)))
                await self.pipeline.record(exchange, entry)
        except LedgerUnavailable as unavailable:
            error = unavailable
        status, headers, body = wire.fault(exchange, error)
        headers = self._headers(exchange, headers)
        if exchange.method == "HEAD" or status == 304:
            body = b""
        if status != 304:
            headers.append((b"content-length", str(len(body)).encode()))
        if _unread(exchange):
            headers.append((b"connection", b"close"))
        await _whole(exchange, status, headers, body)

    @staticmethod
    def _log_unexpected(exchange: Exchange, error: Exception) -> None:
        """Logs what is ours to fix: kinds and places only, because values may be above this log's label."""
        if isinstance(error, RequestFault | NotImplementedYet | ClientGone):
            return
        name = exchange.service.name if exchange.service else "unknown"
        frames = "".join(traceback.format_tb(error.__traceback__))
        _LOG.error(
            "request %s (%s:%s) failed: %s\n%s",
            exchange.request_id,
            name,
            exchange.operation.name if exchange.operation else "unknown",
            type(error).__name__,
            frames,
        )


@lru_cache(4096)
def _label_header(label: Label) -> tuple[bytes, bytes]:
    return b"x-honmaru-label", label.banner.encode("ascii", "replace")


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("the gateway runs inside a task")
    return task


def _unread(exchange: Exchange) -> bool:
    """True when bytes of the request may still be on their way."""
    if exchange.upload is not None:
        return not exchange.upload.finished
    has_body = exchange.headers.get("content-length", "0") != "0" or "transfer-encoding" in exchange.headers
    return has_body and exchange.request_digest is None


async def _whole(exchange: Exchange, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Sends an answer that is complete: at once where the server can (`gateway.http`), else as ASGI has it."""
    exchange.started = True
    at_once = exchange.scope.get("honmaru.answer")
    if at_once is not None:
        at_once(status, headers, body)
        return
    await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})


def _is_plain(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return scope["method"] == "GET" and b"authorization" not in names and not scope["query_string"]


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
