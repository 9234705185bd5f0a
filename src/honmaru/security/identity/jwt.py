"""Signed JSON web tokens of OpenID Connect issuers: read strictly, verified with the issuer's own keys. Pure.

Invariants:
- Only asymmetric signatures count: RS, PS and ES with SHA-256 or longer. `none` and HMAC are refused whatever keys say.
- The algorithm must fit the key: a key for one is never tried for another.
- A token without issuer, audience, subject, expiry or time of issue is no identity token.

Source: RFC 7515, 7517, 7518, 7519; OpenID Connect Core 1.0, 2 and 3.1.3.7; RFC 8725 (best current practices).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from honmaru.core.errors import AuthenticationFailed

TOKEN_LIMIT = 20000
LEEWAY_S = 300
_HASHES: Mapping[str, HashAlgorithm] = {"256": SHA256(), "384": SHA384(), "512": SHA512()}
_CURVES: Mapping[str, tuple[str, ec.EllipticCurve, int]] = {
    "ES256": ("P-256", ec.SECP256R1(), 32),
    "ES384": ("P-384", ec.SECP384R1(), 48),
    "ES512": ("P-521", ec.SECP521R1(), 66),
}
_LEAST_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it was written; nothing of it may be believed before `verify`."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes


def invalid(message: str) -> AuthenticationFailed:
    """AWS's refusal of a token."""
    return AuthenticationFailed(message, code="InvalidIdentityToken")


def read(text: str) -> Token:
    """Compact serialisation → Token. Raises AuthenticationFailed (InvalidIdentityToken)."""
    parts = text.split(".")
    if len(text) > TOKEN_LIMIT or len(parts) != 3:
        raise invalid("The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)")
    try:
        header, claims = (json.loads(_octets(part)) for part in parts[:2])
        signature = _octets(parts[2])
    except (ValueError, RecursionError):
        raise invalid("The ID Token provided is not a valid JWT.") from None
    if not isinstance(header, dict) or not isinstance(claims, dict) or "crit" in header:
        raise invalid("The ID Token provided is not a valid JWT.")
    return Token(header, claims, f"{parts[0]}.{parts[1]}".encode(), signature)


def verify(token: Token, keys: Sequence[Mapping[str, Any]]) -> None:
    """Raises AuthenticationFailed unless one of the issuer's keys (RFC 7517) made the signature."""
    algorithm, kid = token.header.get("alg"), token.header.get("kid")
    fitting = [key for key in keys if kid is None or key.get("kid") == kid]
    if any(_made(token, str(algorithm), key) for key in fitting if key.get("alg") in (None, algorithm)):
        return
    raise invalid("Couldn't retrieve verification key from your identity provider, or the signature is not its own")


def check_times(claims: Mapping[str, Any], now_s: float) -> None:
    """Raises AuthenticationFailed: ExpiredTokenException, or InvalidIdentityToken for one from the future."""
    times = [claims.get(name) for name in ("exp", "iat")]
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in times):
        raise invalid("Missing a required claim: exp, iat")
    expires, issued = (float(each) for each in times if each is not None)
    if now_s >= expires:
        raise AuthenticationFailed("Token expired: current date/time is after the expiry", code="ExpiredTokenException")
    if max(issued, float(claims.get("nbf") or 0)) > now_s + LEEWAY_S:
        raise invalid("The token was issued in the future")


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as fault:
        raise ValueError(str(fault)) from None


def _number(key: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_octets(str(key[name])))


def _made(token: Token, algorithm: str, key: Mapping[str, Any]) -> bool:
    """Whether this key made the signature with this algorithm."""
    family, digest = algorithm[:2], _HASHES.get(algorithm[2:])
    if digest is None or key.get("use", "sig") != "sig":
        return False
    try:
        if family in ("RS", "PS") and key.get("kty") == "RSA":
            public = rsa.RSAPublicNumbers(_number(key, "e"), _number(key, "n")).public_key()
            if public.key_size < _LEAST_RSA_BITS:
                return False
            scheme = padding.PKCS1v15() if family == "RS" else padding.PSS(padding.MGF1(digest), digest.digest_size)
            public.verify(token.signature, token.signed, scheme, digest)
            return True
        if algorithm in _CURVES and key.get("kty") == "EC":
            name, curve, size = _CURVES[algorithm]
            if key.get("crv") != name or len(token.signature) != 2 * size:
                return False
            point = ec.EllipticCurvePublicNumbers(_number(key, "x"), _number(key, "y"), curve).public_key()
            r, s = (int.from_bytes(token.signature[at : at + size]) for at in (0, size))
            point.verify(encode_dss_signature(r, s), token.signed, ec.ECDSA(digest))
            return True
    except (InvalidSignature, KeyError, ValueError, TypeError):
        return False
    return False
