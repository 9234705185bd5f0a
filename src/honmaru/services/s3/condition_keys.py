"""Condition keys of S3: what each request brings to a decision, and which keys a bucket policy may ask about.

Invariant: a bucket policy that asks about a key which honmaru never supplies is refused when it is put. Accepted, such
a Deny would silently deny nothing.

Source: Service Authorization Reference, "Condition keys for Amazon S3".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

_MEMBERS: Mapping[str, str] = {
    "s3:prefix": "Prefix",
    "s3:delimiter": "Delimiter",
    "s3:max-keys": "MaxKeys",
    "s3:x-amz-copy-source": "CopySource",
    "s3:x-amz-metadata-directive": "MetadataDirective",
    "s3:x-amz-server-side-encryption": "ServerSideEncryption",
    "s3:x-amz-server-side-encryption-aws-kms-key-id": "SSEKMSKeyId",
    "s3:x-amz-server-side-encryption-customer-algorithm": "SSECustomerAlgorithm",
    "s3:x-amz-acl": "ACL",
    "s3:x-amz-grant-full-control": "GrantFullControl",
    "s3:x-amz-grant-read": "GrantRead",
    "s3:x-amz-grant-read-acp": "GrantReadACP",
    "s3:x-amz-grant-write": "GrantWrite",
    "s3:x-amz-grant-write-acp": "GrantWriteACP",
    "s3:x-amz-storage-class": "StorageClass",
    "s3:x-amz-website-redirect-location": "WebsiteRedirectLocation",
    "s3:if-none-match": "IfNoneMatch",
    "s3:if-match": "IfMatch",
    "s3:versionid": "VersionId",
    "s3:object-lock-mode": "ObjectLockMode",
    "s3:object-lock-retain-until-date": "ObjectLockRetainUntilDate",
    "s3:object-lock-legal-hold": "ObjectLockLegalHoldStatus",
}
_FURTHER = frozenset({"s3:locationconstraint", "s3:requestobjecttagkeys", "s3:resourceaccount", "s3:signatureversion"})
_FAMILY = "s3:requestobjecttag/"
_LISTS = ("ListObjects", "ListObjectsV2", "ListObjectVersions")


def of_request(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a request. Tags that it writes are also aws:RequestTag and aws:TagKeys, as everywhere."""
    found = {key: request[member] for key, member in _MEMBERS.items() if request.get(member) is not None}
    found["s3:signatureversion"] = "AWS4-HMAC-SHA256"  # no other is accepted
    if operation in _LISTS:
        found.setdefault("s3:prefix", "")
    place = (request.get("CreateBucketConfiguration") or {}).get("LocationConstraint")
    if place is not None:
        found["s3:locationconstraint"] = place
    tags = _tags(request)
    if tags:
        found["aws:TagKeys"] = list(tags)
        found |= {f"aws:RequestTag/{key}": value for key, value in tags.items()}
        if "Key" in request:
            found["s3:requestobjecttagkeys"] = list(tags)
            found |= {f"{_FAMILY}{key}": value for key, value in tags.items()}
    return found


def unsupplied(keys: Iterable[str]) -> str | None:
    """The first of these keys of S3's that honmaru never supplies; None when there is none."""
    for key in keys:
        name = key.lower()
        if name.startswith("s3:") and not (name in _MEMBERS or name in _FURTHER or name.startswith(_FAMILY)):
            return key
    return None


def _tags(request: Mapping[str, Any]) -> dict[str, str]:
    """Tags of the x-amz-tagging header, of a Put...Tagging document, or of a bucket that is made."""
    stated = request.get("Tagging")
    if isinstance(stated, str):
        return dict(parse_qsl(stated, keep_blank_values=True))
    pairs = (stated or {}).get("TagSet") or (request.get("CreateBucketConfiguration") or {}).get("Tags") or ()
    return {tag["Key"]: tag["Value"] for tag in pairs if "Key" in tag and "Value" in tag}
