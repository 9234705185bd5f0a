"""Operations that need no signature, because what they carry is the proof: STS's AssumeRoleWithWebIdentity and kin.

Invariants:
- Only an operation that its provider lists as `unsigned` gets a session without a signature, and that session is
  nobody's: at the lowest label, without policies.
- Before that is known at most 64 KiB of a form are read, of a request whose length is declared.

Source: AWS service models, trait `authtype: none`.
"""

from __future__ import annotations

from honmaru.api import query_codec
from honmaru.api.misreads import Misread
from honmaru.api.models import Operation
from honmaru.gateway.aws.routing import ServiceRouter
from honmaru.gateway.aws.signatures import SignatureFault
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.pipeline import Pipeline
from honmaru.gateway.reading import presented

_FORM_BYTES = 64 << 10


def check_possible(exchange: Exchange, pipeline: Pipeline) -> None:
    """Raises SignatureFault unless an unsigned request may yet turn out to need no signature."""
    operation = exchange.operation
    if operation is not None and pipeline.needs_no_signature(operation):
        return
    length = exchange.headers.get("content-length", "")
    form = exchange.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    if operation is None and form and exchange.method == "POST" and length.isascii() and length.isdigit():
        if int(length[:9]) <= _FORM_BYTES and exchange.raw_path == "/" and not exchange.raw_query:
            return
    raise missing()


def admit(exchange: Exchange, pipeline: Pipeline, router: ServiceRouter) -> None:
    """Nobody's session, for an operation that needs no signature. Raises SignatureFault for every other."""
    operation = exchange.operation or _of_form(exchange, router)
    if operation is None or not pipeline.needs_no_signature(operation):
        raise missing()
    exchange.service = operation.service
    exchange.protocol = "query" if exchange.operation is None else exchange.protocol
    exchange.operation, exchange.operation_name, exchange.routing_fault = operation, operation.name, None
    exchange.session = presented(exchange, pipeline.identity.nobody())


def _of_form(exchange: Exchange, router: ServiceRouter) -> Operation | None:
    try:
        fields = query_codec.fields(exchange.body)
    except Misread:
        return None
    service = router.by_version(fields.get("Version") or "")
    return None if service is None else service.operations.get(fields.get("Action") or "")


def missing() -> SignatureFault:
    """The refusal of a request that nobody signed."""
    return SignatureFault("missing", "Request is missing Authentication Token")
