"""Block Public Access of a bucket.

Every bucket begins with all four settings on, as AWS makes buckets since April 2023. Nobody reaches honmaru without
credentials, so what is left to block is policies that would allow everybody (`bucket_policy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import settings

_NAMES = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_DEFAULT = dict.fromkeys(_NAMES, True)


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"PublicAccessBlockConfiguration": settings.required(call, request, "public_access", _DEFAULT)}


def put(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the document leaves out are off, as in S3."""
    stated = request["PublicAccessBlockConfiguration"]
    if not any(name in stated for name in _NAMES):
        raise ValidationFault(
            "Must specify at least one configuration.", code="InvalidRequest", members={"BucketName": request["Bucket"]}
        )
    settings.keep(call, request, "public_access", {name: bool(stated.get(name)) for name in _NAMES})
    return {}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    settings.keep(call, request, "public_access", False)
    return {}


def blocks(bucket: Record, name: str) -> bool:
    """Whether one of the four is on for a bucket."""
    value = settings.stored(bucket, "public_access")
    return bool((_DEFAULT if value is None else value or {}).get(name, False))
