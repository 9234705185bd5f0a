"""Preflights of CORS: a browser asks, without credentials, whether a page may ask S3 for something.

Invariants:
- A preflight sees what is at the lowest label. Only one that repeats a presigned URL, whose signature verifies for the
  method that is asked for, sees what the signer sees.
- A bucket that does not exist, one above the asker, one without rules and one whose rules do not match answer alike.
- A preflight changes nothing and leaves a ledger entry, like every request.

Source: Fetch §3.2.2 (CORS-preflight request); S3 user guide, "Testing CORS".
"""

from __future__ import annotations

from honmaru.api.plans import Answer
from honmaru.core.errors import AccessDenied, AuthenticationFailed, ValidationFault
from honmaru.core.labels import BOTTOM
from honmaru.gateway.aws import signatures
from honmaru.gateway.aws.wire import AwsWire
from honmaru.gateway.exchange import Exchange
from honmaru.gateway.pipeline import Pipeline
from honmaru.gateway.reading import presented, read_headers, read_query
from honmaru.ports.cors import CrossOriginRules
from honmaru.security.page_tokens import PageTokens

_METHODS = frozenset({"GET", "PUT", "HEAD", "POST", "DELETE"})


class PreflightWire(AwsWire):
    """See the module. Its requests have no operation: `decide` answers them."""

    def __init__(
        self, pipeline: Pipeline, *, region: str, partition: str, pages: PageTokens, rules: CrossOriginRules
    ) -> None:
        super().__init__(pipeline, region=region, partition=partition, pages=pages)
        self._rules = rules

    def owns(self, exchange: Exchange) -> bool:
        return exchange.method == "OPTIONS"

    def identify(self, exchange: Exchange) -> None:
        exchange.operation_name = "Preflight"
        exchange.service = self._pipeline.models["s3"]
        read_headers(exchange)
        read_query(exchange)
        exchange.host_path = self._router.bucket_path(exchange.raw_path, exchange.headers.get("host", ""))

    def claim(self, exchange: Exchange) -> None:
        """The signer of a presigned URL, where there is one that verifies; nobody else is refused here."""
        if "X-Amz-Signature" not in exchange.query:
            return
        try:
            claim = signatures.read_claim(exchange.headers, exchange.query)
            if claim is None or claim.service != "s3":
                return
            regions = self._regions["s3"]
            signatures.check_claim(claim, now=exchange.at, regions=regions, headers=exchange.headers)
            credential = self._pipeline.identity.credential(claim.access_key_id, claim.token)
            signatures.verify(
                claim,
                self._keys.key(credential.secret_access_key, claim.date, claim.region, claim.service),
                method=exchange.headers.get("access-control-request-method", ""),
                raw_path=exchange.raw_path,
                raw_query=exchange.raw_query,
                headers=exchange.headers,
                payload_hash=signatures.UNSIGNED_PAYLOAD,
            )
        except AuthenticationFailed:
            return
        exchange.session = presented(exchange, credential.session)

    async def decide(self, exchange: Exchange) -> None:
        """The answer, from the bucket's rules. Raises ValidationFault or AccessDenied (AccessForbidden)."""
        headers = exchange.headers
        origin, method = headers.get("origin"), headers.get("access-control-request-method")
        if not origin:
            raise ValidationFault("Insufficient information. Origin request header needed.", code="BadRequest")
        if method not in _METHODS:
            raise ValidationFault(
                f"Invalid Access-Control-Request-Method: {method[:64] if method else 'null'}", code="BadRequest"
            )
        asked = [name.strip() for name in headers.get("access-control-request-headers", "").split(",") if name.strip()]
        bucket = exchange.host_path[1:].partition("/")[0]
        label = exchange.session.label if exchange.session is not None else BOTTOM
        found = await self._pipeline.in_worker(lambda: self._rules.preflight(label, bucket, origin, method, asked))
        if not found:
            resource = "OBJECT" if "/" in exchange.host_path[1:].rstrip("/") else "BUCKET"
            raise AccessDenied(
                "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, "
                "request method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted "
                "by the resource's CORS spec.",
                code="AccessForbidden",
                members={"Method": method, "ResourceType": resource},
            )
        exchange.decision = "allow"
        exchange.answer = Answer(
            200, [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in found.items()]
        )
