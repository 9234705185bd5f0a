"""Cross-origin resource sharing: the rules of a bucket, and what they say to a browser.

Invariants:
- The first rule that matches origin, method and every requested header answers; no rule, no header of CORS.
- A preflight has no credentials, so it sees what is at the lowest label only. A preflight of a presigned URL sees what
  the signer sees. What it cannot see answers like a bucket that allows nothing.

Source: W3C CORS / Fetch §3.2; S3 user guide, "Using cross-origin resource sharing".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.core.labels import Label
from honmaru.security.calls import Call
from honmaru.security.guard import Guard, Record
from honmaru.services.s3 import settings

METHODS = ("GET", "PUT", "HEAD", "POST", "DELETE")
_LIMIT = 100
_VERBS = ((("Get", "List"), "GET"), (("Head",), "HEAD"), (("Delete", "Abort"), "DELETE"))
_VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"CORSRules": settings.required(call, request, "cors")}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    settings.keep(call, request, "cors", None)
    return {}


def put(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    rules = request["CORSConfiguration"]["CORSRules"]
    check(rules)
    settings.keep(call, request, "cors", [dict(rule) for rule in rules])
    return {}


def check(rules: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValidationFault (MalformedXML, InvalidRequest) in S3's words."""
    if not 1 <= len(rules) <= _LIMIT:
        raise _malformed()
    for rule in rules:
        if not rule["AllowedMethods"] or not rule["AllowedOrigins"]:
            raise _malformed()
        if len(rule.get("ID", "")) > 255:
            raise _invalid("ID length should not exceed allowed limit of 255")
        for method in rule["AllowedMethods"]:
            if method not in METHODS:
                raise _invalid(f"Found unsupported HTTP method in CORS config. Unsupported method is {method[:64]}")
        for origin in rule["AllowedOrigins"]:
            if origin.count("*") > 1:
                raise _invalid(f'AllowedOrigin "{origin[:256]}" can not have more than one wildcard.')
        for header in rule.get("AllowedHeaders") or ():
            if header.count("*") > 1:
                raise _invalid(f'AllowedHeader "{header[:256]}" can not have more than one wildcard.')
        for header in rule.get("ExposeHeaders") or ():
            if "*" in header:
                raise _invalid(
                    f'ExposeHeader "{header[:256]}" contains wildcard. We currently do not support wildcard for '
                    "ExposeHeader."
                )
            if not header.isascii() or any(character <= " " or character in ":,;" for character in header):
                raise _invalid(f'ExposeHeader "{header[:256]}" contains invalid character.')
        if rule.get("MaxAgeSeconds", 0) < 0:
            raise _invalid("MaxAgeSeconds must not be negative.")


def headers_for(
    rules: Sequence[Mapping[str, Any]], origin: str, method: str, asked: Sequence[str] = (), *, preflight: bool = False
) -> dict[str, str]:
    """The headers of the first rule that allows the request; none when no rule does.

    Args:
        asked: Names in Access-Control-Request-Headers.
    """
    for rule in rules:
        allowed = next((pattern for pattern in rule["AllowedOrigins"] if _matches(origin, pattern)), None)
        if allowed is None or method not in rule["AllowedMethods"]:
            continue
        patterns = [pattern.lower() for pattern in rule.get("AllowedHeaders") or ()]
        if not all(any(_matches(name.lower(), pattern) for pattern in patterns) for name in asked):
            continue
        found = {
            "Access-Control-Allow-Origin": "*" if allowed == "*" else origin,
            "Access-Control-Allow-Methods": ", ".join(rule["AllowedMethods"]),
            "Vary": _VARY,
        }
        if allowed != "*":
            found["Access-Control-Allow-Credentials"] = "true"
        if preflight and asked:
            found["Access-Control-Allow-Headers"] = ", ".join(name.lower() for name in asked)
        if rule.get("ExposeHeaders"):
            found["Access-Control-Expose-Headers"] = ", ".join(rule["ExposeHeaders"])
        if rule.get("MaxAgeSeconds") is not None:
            found["Access-Control-Max-Age"] = str(rule["MaxAgeSeconds"])
        return found
    return {}


class CrossOrigin:
    """A `ports.cors.CrossOriginRules` for the gateway's preflights."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def preflight(self, label: Label, bucket: str, origin: str, method: str, asked: Sequence[str]) -> Mapping[str, str]:
        found = self._guard.sight(label, "s3").get("bucket", bucket)
        return {} if found is None else headers_for(rules_of(found), origin, method, asked, preflight=True)


def rules_of(bucket: Record) -> Sequence[Mapping[str, Any]]:
    return settings.stored(bucket, "cors") or ()


def answer(call: Call, bucket: Record | None) -> None:
    """Put the headers of CORS on the answer to a page of another origin."""
    origin = call.headers.get("origin")
    if origin is not None and bucket is not None:
        call.response_headers.update(headers_for(rules_of(bucket), origin, _method(call)))


def _method(call: Call) -> str:
    """The HTTP method of the call's operation."""
    if call.headers.get("content-type", "").startswith("multipart/form-data"):
        return "POST"
    if call.operation in ("CreateMultipartUpload", "CompleteMultipartUpload", "DeleteObjects"):
        return "POST"
    return next((method for verbs, method in _VERBS if call.operation.startswith(verbs)), "PUT")


def _matches(text: str, pattern: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return text == pattern
    return len(text) >= len(head) + len(tail) and text.startswith(head) and text.endswith(tail)


def _malformed() -> ValidationFault:
    return ValidationFault(
        "The XML you provided was not well-formed or did not validate against our published schema", code="MalformedXML"
    )


def _invalid(message: str) -> ValidationFault:
    return ValidationFault(message, code="InvalidRequest")
