"""AWS Signature Version 4: header form and presigned query form.

Invariants:
- `host` and every `x-amz-*` header of a request are signed, or the request is refused: nothing that changes what is
  asked can be added on the way.
- The path is canonicalised as it arrived. Dot segments and doubled slashes are never normalised away, so two paths
  that are routed differently never share a signature.
- Signatures are compared in constant time. The day key is derived once per (secret, day, region, service).
- SHA-1 signatures (SigV2) are refused by policy with an error that says what to do.

Not here: payload forms (`payloads`), who the key belongs to (security.identity).
Source: "Signature Version 4 signing process", AWS General Reference; botocore.auth.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from urllib.parse import quote

from honmaru.core.errors import AuthenticationFailed

CLOCK_SKEW = timedelta(minutes=5)
MAX_PRESIGNED_S = 7 * 24 * 3600
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
ALGORITHM = "AWS4-HMAC-SHA256"

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=([^,\s]+)\s*,\s*SignedHeaders=([a-z0-9!#$&'*+.^_`|~;-]+)\s*,\s*Signature=([0-9a-f]{64})"
)
_SCOPE = re.compile(r"([A-Za-z0-9]{16,128})/([0-9]{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request")
_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_SPACES = re.compile(r" {2,}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.~-]*")
_REMEMBERED = 512
"""Longest text that a cache may keep: what strangers send is bounded in number and in size."""


class SignatureFault(AuthenticationFailed):
    """Why a signature is refused; `reason` selects the error code of each protocol (see `faults`)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signer, before anything is verified. `expires_s` is set for presigned ones."""

    access_key_id: str
    date: str
    region: str
    service: str
    at: datetime
    timestamp: str
    signed_headers: tuple[str, ...]
    signature: str
    token: str | None
    expires_s: int | None

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer`."""
    value = headers.get("authorization", "")
    return value[7:].strip() if value[:7].lower() == "bearer " else None


def read_claim(headers: Mapping[str, str], query: Mapping[str, list[str]]) -> Claim | None:
    """The claim of a request; None when it is not signed at all. Raises SignatureFault when it is malformed."""
    authorization = headers.get("authorization")
    if authorization is not None:
        if "X-Amz-Signature" in query:
            raise SignatureFault("malformed", "Only one auth mechanism allowed; found a header and query parameters")
        return _header_claim(authorization, headers)
    if "X-Amz-Algorithm" in query or "X-Amz-Signature" in query:
        return _query_claim(query)
    if "AWSAccessKeyId" in query and "Signature" in query:
        raise SignatureFault("legacy", LEGACY)
    return None


LEGACY = (
    "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256. "
    "(Signature Version 2 relies on SHA-1. boto3: Config(signature_version='s3v4').)"
)


def _header_claim(authorization: str, headers: Mapping[str, str]) -> Claim:
    if authorization.startswith("AWS "):
        raise SignatureFault("legacy", LEGACY)
    match = _AUTHORIZATION.fullmatch(authorization.strip())
    if match is None:
        raise SignatureFault(
            "malformed",
            "Authorization header must be 'AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…'",
        )
    timestamp = headers.get("x-amz-date")
    if timestamp is None:
        raise SignatureFault("malformed", "Authorization header requires the header 'X-Amz-Date'")
    return _claim(match[1], timestamp, match[2], match[3], headers.get("x-amz-security-token"), None)


def _query_claim(query: Mapping[str, list[str]]) -> Claim:
    def one(name: str) -> str:
        values = query.get(name)
        if values is None or len(values) != 1:
            raise SignatureFault("query", f"Query-string authentication requires one '{name}' parameter")
        return values[0]

    if one("X-Amz-Algorithm") != ALGORITHM:
        raise SignatureFault("query", f"X-Amz-Algorithm only supports {ALGORITHM}")
    lifetime = one("X-Amz-Expires")
    if not re.fullmatch(r"[0-9]{1,6}", lifetime) or not 1 <= int(lifetime) <= MAX_PRESIGNED_S:
        raise SignatureFault("query", f"X-Amz-Expires must be between 1 and {MAX_PRESIGNED_S} seconds")
    signature = one("X-Amz-Signature")
    if not re.fullmatch(r"[0-9a-f]{64}", signature):
        raise SignatureFault("query", "X-Amz-Signature must be 64 lower-case hexadecimal digits")
    token = one("X-Amz-Security-Token") if "X-Amz-Security-Token" in query else None
    return _claim(
        one("X-Amz-Credential"), one("X-Amz-Date"), one("X-Amz-SignedHeaders"), signature, token, int(lifetime)
    )


def _claim(
    credential: str, timestamp: str, signed: str, signature: str, token: str | None, expires_s: int | None
) -> Claim:
    reason = "malformed" if expires_s is None else "query"
    scope = _scope(credential) if len(credential) < _REMEMBERED else _SCOPE.fullmatch(credential)
    if scope is None:
        raise SignatureFault(reason, "Credential must be ACCESS-KEY-ID/YYYYMMDD/REGION/SERVICE/aws4_request")
    if not _DATE.fullmatch(timestamp):
        raise SignatureFault(reason, "X-Amz-Date must be in the ISO 8601 format YYYYMMDDTHHMMSSZ")
    at = _time(timestamp)
    if at is None:
        raise SignatureFault(reason, "X-Amz-Date is not a date")
    names = _names(signed) if len(signed) < _REMEMBERED else _names.__wrapped__(signed)
    if names is None:
        raise SignatureFault(reason, "SignedHeaders must be distinct and in order")
    return Claim(scope[1], scope[2], scope[3], scope[4], at, timestamp, names, signature, token, expires_s)


# A client's requests of one second differ in their signature only: the rest of the claim is read once.


@lru_cache(4096)
def _scope(credential: str) -> re.Match[str] | None:
    return _SCOPE.fullmatch(credential)


@lru_cache(256)
def _time(timestamp: str) -> datetime | None:
    try:
        return datetime.fromisoformat(timestamp)
    except ValueError:
        return None


@lru_cache(1024)
def _names(signed: str) -> tuple[str, ...] | None:
    """The names of SignedHeaders; None unless they are distinct and in order."""
    names = tuple(signed.split(";"))
    return names if list(names) == sorted(set(names)) else None


def form_claim(credential: str, timestamp: str, signature: str, token: str | None) -> Claim:
    """The claim of a browser form, whose policy is what is signed and says itself how long. Raises SignatureFault."""
    if not re.fullmatch(r"[0-9a-f]{64}", signature):
        raise SignatureFault("query", "X-Amz-Signature must be 64 lower-case hexadecimal digits")
    return _claim(credential, timestamp, "host", signature, token, MAX_PRESIGNED_S)


def check_claim(claim: Claim, *, now: datetime, regions: frozenset[str], headers: Mapping[str, str]) -> None:
    """What can be refused without a secret: scope, clock, and headers left unsigned. Raises SignatureFault."""
    if claim.region not in regions:
        expected = "' or '".join(sorted(regions))
        raise SignatureFault("scope", f"The region '{claim.region}' is wrong; expecting '{expected}'")
    if claim.date != claim.timestamp[:8]:
        raise SignatureFault("scope", f"Date in Credential scope '{claim.date}' does not match X-Amz-Date")
    if claim.expires_s is None:
        if abs(now - claim.at) > CLOCK_SKEW:
            raise SignatureFault(
                "skew",
                f"The difference between the request time {claim.timestamp} and the current time "
                f"{now:%Y%m%dT%H%M%SZ} is larger than {CLOCK_SKEW.seconds} seconds",
            )
    elif claim.at - now > CLOCK_SKEW:
        raise SignatureFault("skew", f"Request is not valid yet: it is dated {claim.timestamp}")
    elif now - claim.at > timedelta(seconds=claim.expires_s):
        raise SignatureFault("expired", f"Request has expired: it was valid {claim.expires_s} seconds")
    signed = claim.signed_headers
    if "host" not in signed:
        raise SignatureFault("headers", "The header 'host' must be signed")
    for name in headers:
        if name.startswith("x-amz-") and name not in signed:
            raise SignatureFault("headers", f"There were headers present in the request which were not signed: {name}")
    for name in signed:
        if name not in headers:
            raise SignatureFault("headers", f"The signed header '{name[:64]}' is missing")


def canonical_request(
    claim: Claim, *, method: str, raw_path: str, raw_query: str, headers: Mapping[str, str], payload_hash: str
) -> str:
    """The text whose hash is signed. S3 encodes the path once, every other service twice."""
    path = raw_path
    if _PLAIN_PATH.fullmatch(raw_path) is None:
        path = quote(raw_path, safe="/%~-._" if claim.service == "s3" else "/~-._", encoding="latin-1")
    lines = [method, path or "/", canonical_query(raw_query, presigned=claim.expires_s is not None)]
    for name in claim.signed_headers:
        value = headers[name].strip(" \t")
        lines.append(f"{name}:{_SPACES.sub(' ', value) if '  ' in value else value}")
    lines.append("")
    lines.append(";".join(claim.signed_headers))
    lines.append(payload_hash)
    return "\n".join(lines)


def canonical_query(raw: str, *, presigned: bool) -> str:
    """Pairs in order of encoded name and value, without the signature itself."""
    if not raw:
        return ""
    pairs = []
    for part in raw.split("&"):
        name, _, value = part.partition("=")
        if presigned and name == "X-Amz-Signature":
            continue
        pairs.append((_encoded(name), _encoded(value)))
    pairs.sort()
    return "&".join(f"{name}={value}" for name, value in pairs)


def _encoded(part: str) -> str:
    """What is reserved and stands raw is encoded; `+` is the space that forms make of it."""
    if part.isalnum():
        return part
    return quote(part.replace("+", "%20"), safe="%~-._", encoding="latin-1")


def string_to_sign(claim: Claim, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    return f"{ALGORITHM}\n{claim.timestamp}\n{claim.scope}\n{digest}"


class SigningKeys:
    """Derived day keys, the most recent ones kept in memory."""

    def __init__(self, limit: int = 1024) -> None:
        self._keys: dict[tuple[str, str, str, str], bytes] = {}
        self._limit = limit

    def key(self, secret: str, date: str, region: str, service: str) -> bytes:
        """HMAC chain of SigV4. `secret` is part of the cache's key, so a rotated secret never meets an old key."""
        identity = (secret, date, region, service)
        found = self._keys.get(identity)
        if found is None:
            found = hmac.digest(f"AWS4{secret}".encode(), date.encode(), "sha256")
            for part in (region, service, "aws4_request"):
                found = hmac.digest(found, part.encode(), "sha256")
            if len(self._keys) >= self._limit:
                self._keys.clear()
            self._keys[identity] = found
        return found


def sign(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode("latin-1"), "sha256").hex()


def verify(
    claim: Claim,
    key: bytes,
    *,
    method: str,
    raw_path: str,
    raw_query: str,
    headers: Mapping[str, str],
    payload_hash: str,
) -> None:
    """Raises SignatureFault unless the claim's signature is that of exactly this request."""
    canonical = canonical_request(
        claim, method=method, raw_path=raw_path, raw_query=raw_query, headers=headers, payload_hash=payload_hash
    )
    if not hmac.compare_digest(sign(key, string_to_sign(claim, canonical)), claim.signature):
        raise SignatureFault(
            "mismatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method. Consult the service documentation for details.",
        )
