"""Default encryption of a bucket.

Every object is sealed with a key of its own whatever this says; the setting chooses which key wraps that key: the
enclave's (AES256), or a key of KMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from honmaru.core.errors import NotImplementedYet, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import settings

AES256 = "AES256"
KMS = "aws:kms"
_DEFAULT: Mapping[str, Any] = {
    "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": AES256},
    "BucketKeyEnabled": False,
}


@dataclass(frozen=True, slots=True)
class Default:
    """What an object of a bucket is encrypted with when its request does not say."""

    algorithm: str
    key_id: str | None
    bucket_key: bool


def default_of(bucket: Record) -> Default:
    rule = settings.stored(bucket, "encryption") or _DEFAULT
    applied = rule["ApplyServerSideEncryptionByDefault"]
    return Default(applied["SSEAlgorithm"], applied.get("KMSMasterKeyID"), bool(rule.get("BucketKeyEnabled")))


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"ServerSideEncryptionConfiguration": {"Rules": [settings.required(call, request, "encryption", _DEFAULT)]}}


def put(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    rules = request["ServerSideEncryptionConfiguration"]["Rules"]
    if len(rules) != 1 or "ApplyServerSideEncryptionByDefault" not in rules[0]:
        raise ValidationFault(
            "The XML you provided was not well-formed or did not validate against our published schema",
            code="MalformedXML",
        )
    rule = rules[0]
    applied = rule["ApplyServerSideEncryptionByDefault"]
    algorithm, key = applied["SSEAlgorithm"], applied.get("KMSMasterKeyID")
    if algorithm not in (AES256, KMS):
        raise NotImplementedYet(f"SSEAlgorithm {algorithm} is not implemented by honmaru", code="NotImplemented")
    if key is not None and algorithm != KMS:
        raise ValidationFault(
            "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse",
            code="InvalidArgument",
        )
    blocked = (rule.get("BlockedEncryptionTypes") or {}).get("EncryptionType")
    kept: dict[str, Any] = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": algorithm, **({"KMSMasterKeyID": key} if key else {})},
        "BucketKeyEnabled": bool(rule.get("BucketKeyEnabled")),
    }
    if blocked:
        kept["BlockedEncryptionTypes"] = {"EncryptionType": list(blocked)}
    settings.keep(call, request, "encryption", kept)
    return {}


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Back to AES256, as S3 does since it encrypts everything."""
    settings.keep(call, request, "encryption", None)
    return {}
