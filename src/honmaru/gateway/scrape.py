"""`GET /metrics` for Prometheus, with a bearer key: what the key's session may know of the enclave's numbers.

Invariants:
- Nothing is answered without a bearer key; the key's label and account decide what is shown (`meters`).
- IAM is asked for cloudwatch:GetMetricData, and the request leaves a ledger entry, as every request.
- A bucket of the name `metrics` is not shadowed: S3's requests are signed, or carry no bearer key.
"""

from __future__ import annotations

from honmaru.api.plans import Answer
from honmaru.core import errors
from honmaru.gateway.aws.faults import code_and_status, message_of
from honmaru.gateway.aws.signatures import SignatureFault, bearer_token
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.meters import CONTENT_TYPE, Reader, RequestMeter
from honmaru.gateway.pipeline import Pipeline
from honmaru.gateway.reading import presented, read_headers, read_query
from honmaru.gateway.wires import Headers

_PATH = "/metrics"


class ScrapeWire:
    """See the module. Its requests have no operation: `show` answers them."""

    dialect = "prometheus"

    def __init__(self, pipeline: Pipeline, meter: RequestMeter) -> None:
        self._pipeline = pipeline
        self._meter = meter

    def owns(self, exchange: Exchange) -> bool:
        return (
            exchange.raw_path == _PATH
            and exchange.method == "GET"
            and any(name == b"authorization" and value[:7].lower() == b"bearer " for name, value in _headers(exchange))
        )

    def identify(self, exchange: Exchange) -> None:
        exchange.protocol = "json"
        exchange.operation_name = "GetPrometheusMetrics"
        exchange.service = self._pipeline.models["cloudwatch"]
        read_headers(exchange)
        read_query(exchange)

    def claim(self, exchange: Exchange) -> None:
        """The session of the bearer key. Raises AuthenticationFailed."""
        token = bearer_token(exchange.headers)
        if not token:
            raise SignatureFault("missing", "Send a key that `honmaru env` prints, as Authorization: Bearer")
        exchange.session = presented(exchange, self._pipeline.identity.bearer(token))

    async def receive(self, exchange: Exchange) -> None:
        """There is no body."""

    def verify(self, exchange: Exchange) -> None:
        """There is nothing that is signed."""

    def parse(self, exchange: Exchange) -> None:
        """There are no members."""

    async def show(self, exchange: Exchange) -> None:
        """The numbers that the session may see. Raises AccessDenied."""
        session = exchange.session
        if session is None:
            raise RuntimeError("show ran before claim")
        self._pipeline.identity.require(session, "cloudwatch:GetMetricData", "*", {})
        exchange.decision = "allow"
        reader = Reader(session.account, session.label)
        text = await self._pipeline.in_worker(lambda: self._meter.text(reader))
        exchange.answer = Answer(200, [(b"content-type", CONTENT_TYPE.encode())], text.encode())

    def serialise(self, exchange: Exchange) -> None:
        """`show` has answered."""

    def identity(self, exchange: Exchange) -> Headers:
        return [(b"x-amzn-requestid", exchange.request_id.encode())]

    def fault(self, exchange: Exchange, error: BaseException) -> tuple[int, Headers, bytes]:
        code, status = code_and_status(error, exchange.service, exchange.protocol)
        if isinstance(error, errors.Refused):
            status = 401 if isinstance(error, errors.AuthenticationFailed) else 403
        return status, [(b"content-type", b"text/plain")], f"{code}: {message_of(error)}\n".encode()


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = exchange.scope["headers"]
    return found
