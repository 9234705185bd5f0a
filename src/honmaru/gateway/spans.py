"""Spans of requests for OpenTelemetry: one for the request, one for each handler that it went through.

Invariants:
- Off by default; a request then pays one comparison.
- A span holds names, codes and sizes, never content; it goes to the sink at the label of the request's session, or at
  the lowest label when nobody was authenticated.
- A caller's `traceparent` is taken over when it is well-formed, so its trace goes on here; it decides nothing else.

Source: W3C Trace Context; OpenTelemetry semantic conventions for HTTP and RPC servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from honmaru.core.labels import BOTTOM
from honmaru.gateway.aws.faults import code_and_status
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.wires import Handler
from honmaru.ports.runtime import Clock, Ids
from honmaru.ports.traces import Span, SpanSink

_PARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_ZERO = re.compile(r"0+")


class Tracer:
    """Walks requests through their handlers and tells the sink."""

    def __init__(self, sink: SpanSink, clock: Clock, ids: Ids) -> None:
        self._sink = sink
        self._clock = clock
        self._ids = ids

    def begin(self, exchange: Exchange) -> Trace:
        return Trace(self, exchange)


class Trace:
    """The spans of one request."""

    def __init__(self, tracer: Tracer, exchange: Exchange) -> None:
        self._tracer = tracer
        self._exchange = exchange
        self._at_ns = round(exchange.at.timestamp() * 1_000_000_000)
        self._begun = tracer._clock.monotonic()
        self._steps: list[tuple[str, float, float]] = []

    async def walk(self, handlers: Iterable[Handler]) -> None:
        """Each handler in turn, timed. Raises what they raise."""
        now = self._tracer._clock.monotonic
        for handler in handlers:
            start = now()
            try:
                pending = handler(self._exchange)
                if pending is not None:
                    await pending
            finally:
                self._steps.append((getattr(handler, "__name__", "handler"), start, now()))

    def end(self) -> None:
        """Hand the spans over. Call once, when the request has been answered or refused."""
        exchange, tracer = self._exchange, self._tracer
        trace_id, parent = self._parent()
        root = tracer._ids.secret(8).hex()
        session, service = exchange.session, exchange.service
        name = f"{service.name if service is not None else 'unknown'}.{exchange.operation_name}"
        code = "" if exchange.error is None else code_and_status(exchange.error, service, exchange.protocol)[0]
        attributes: dict[str, str | int | bool] = {
            "http.request.method": exchange.method,
            "rpc.system": "aws-api",
            "rpc.service": service.name if service is not None else "unknown",
            "rpc.method": exchange.operation_name,
            "honmaru.request_id": exchange.request_id,
            "honmaru.decision": exchange.decision,
        }
        if exchange.answer is not None and not code:
            attributes["http.response.status_code"] = exchange.answer.status
        if code:
            attributes["error.type"] = code
        if session is not None:
            attributes["cloud.account.id"] = session.account
        spans = [
            Span(trace_id, root, parent, name, self._at_ns, self._ns(tracer._clock.monotonic()), 2, attributes, code)
        ]
        failed = self._steps[-1] if code and self._steps else None
        spans += [
            Span(
                trace_id,
                tracer._ids.secret(8).hex(),
                root,
                step[0],
                self._ns(step[1]),
                self._ns(step[2]),
                error=code if step is failed else "",
            )
            for step in self._steps
        ]
        tracer._sink.add(session.label if session is not None else BOTTOM, spans)

    def _ns(self, moment: float) -> int:
        return self._at_ns + max(0, round((moment - self._begun) * 1_000_000_000))

    def _parent(self) -> tuple[str, str]:
        """(trace id, parent's span id) of the caller's header, else a new trace id."""
        for name, value in self._exchange.scope["headers"]:
            if name == b"traceparent":
                match = _PARENT.fullmatch(value)
                if match is not None:
                    trace, parent = match[1].decode(), match[2].decode()
                    if not _ZERO.fullmatch(trace) and not _ZERO.fullmatch(parent):
                        return trace, parent
        return self._tracer._ids.secret(16).hex(), ""
