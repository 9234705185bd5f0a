"""What S3 requests have in common: keys, refusals of what is not written, tags, preconditions, ranges.

Invariants:
- A member that asks for something honmaru does not do is refused with NotImplemented or the code that AWS uses when
  a bucket does not offer it; it is never ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from honmaru.core.errors import Conflict, NotFound, NotImplementedYet, ValidationFault
from honmaru.core.labels import Label
from honmaru.core.sessions import Session

_UNWRITTEN = (
    "WriteOffsetBytes",
    "WebsiteRedirectLocation",
    "SSECustomerAlgorithm",
    "SSECustomerKey",
    "SSECustomerKeyMD5",
    "CopySourceSSECustomerAlgorithm",
    "CopySourceSSECustomerKey",
    "CopySourceSSECustomerKeyMD5",
    "ObjectLockEventHold",
    "ObjectLockEventHoldDurationDays",
    "ObjectLockEventHoldDurationYears",
    "AnnotationDirective",
    "MFA",
)
_OWNERS_ACLS = ("private", "bucket-owner-full-control", "bucket-owner-read")
LABEL_TAG = "honmaru:label"
STORAGE_CLASSES = ("STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR")
"""Those whose objects are read at once. They are kept and shown; honmaru stores all of them alike. The archives, whose
objects must be restored first, are refused."""


def storage_class(request: Mapping[str, Any]) -> dict[str, str]:
    """The member of a new object's body that keeps its storage class; the standard one needs none."""
    stated = request.get("StorageClass", "STANDARD")
    return {} if stated == "STANDARD" else {"class": stated}


def canonical_id(session: Session) -> str:
    """The 64 hex characters that S3 calls the owner's canonical user id."""
    return hashlib.sha256(f"{session.partition}:{session.account}".encode()).hexdigest()


def refuse_unwritten(request: Mapping[str, Any], further: Iterable[str] = ()) -> None:
    """Raises NotImplementedYet, or AWS's own refusal, when a request asks for what honmaru's S3 does not do."""
    for name in (*_UNWRITTEN, *further):
        if request.get(name):
            raise NotImplementedYet(f"{name} is not implemented by honmaru", code="NotImplemented")
    if request.get("ACL", "private") not in _OWNERS_ACLS or any(name.startswith("Grant") for name in request):
        raise ValidationFault("The bucket does not allow ACLs", code="AccessControlListNotSupported")
    if request.get("StorageClass", "STANDARD") not in STORAGE_CLASSES:
        raise ValidationFault("The storage class you specified is not valid", code="InvalidStorageClass")


def check_key(key: str) -> None:
    """Raises ValidationFault for a key that S3 or the record store cannot hold."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValidationFault("The key is not valid UTF-8", code="InvalidArgument") from None
    if size > 1024:
        raise ValidationFault(
            "Your key is too long", code="KeyTooLongError", members={"Size": str(size), "MaxSizeAllowed": "1024"}
        )
    if not key or "\0" in key:
        raise ValidationFault("The key is empty or holds a NUL character", code="InvalidArgument")


def tags_of(pairs: Iterable[tuple[str, str]], session: Session, limit: int) -> dict[str, str]:
    """Tags by key. Raises ValidationFault for too many, doubled, over-long or reserved tags, or a wrong label."""
    tags: dict[str, str] = {}
    for key, value in pairs:
        if key in tags:
            raise ValidationFault("Cannot provide multiple Tags with the same key", code="InvalidTag")
        if not 1 <= len(key) <= 128 or len(value) > 256 or key.startswith("aws:"):
            raise ValidationFault(
                "The TagKey you have provided is invalid" if len(value) <= 256 else "The TagValue is invalid",
                code="InvalidTag",
            )
        tags[key] = value
    if len(tags) > limit:
        raise ValidationFault(f"Object tags cannot be greater than {limit}", code="BadRequest")
    stated = tags.get(LABEL_TAG)
    if stated is not None and Label.parse(stated) != session.label:
        raise ValidationFault(
            f"tag {LABEL_TAG} states {stated!r}, and this session writes at {session.label.banner!r}: "
            "sign in at the label you want, or leave the tag out",
            code="InvalidTag",
        )
    return tags


def header_tags(request: Mapping[str, Any], session: Session) -> dict[str, str]:
    """Tags of the x-amz-tagging header (URL query form)."""
    return tags_of(parse_qsl(request.get("Tagging") or "", keep_blank_values=True), session, 10)


def set_tags(request: Mapping[str, Any], session: Session, limit: int) -> dict[str, str]:
    """Tags of a Put...Tagging document."""
    tag_set = (request.get("Tagging") or {}).get("TagSet") or ()
    return tags_of([(tag["Key"], tag["Value"]) for tag in tag_set], session, limit)


def copy_source(request: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """(bucket, key, version id or None) of the x-amz-copy-source header. Raises ValidationFault."""
    # A "?" may be part of an unescaped key: only what AWS's clients write behind it is a version id.
    source, mark, version_id = str(request["CopySource"]).rpartition("?versionId=")
    if not mark:
        source, version_id = version_id, ""
    bucket, _, key = unquote(source).removeprefix("/").partition("/")
    if not bucket or not key or bucket.startswith("arn:"):
        raise ValidationFault(
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey", code="InvalidArgument"
        )
    return bucket, key, unquote(version_id) if mark else None


def check_read_conditions(
    request: Mapping[str, Any], etag: str, modified: datetime, *, prefix: str = "", copying: bool = False
) -> None:
    """If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since, in the order of RFC 9110 §13.2.2.

    Raises Conflict (PreconditionFailed) or ValidationFault (NotModified; PreconditionFailed when copying).
    """
    since = modified.replace(microsecond=0)
    match, none_match = request.get(f"{prefix}IfMatch"), request.get(f"{prefix}IfNoneMatch")
    unmodified, changed = request.get(f"{prefix}IfUnmodifiedSince"), request.get(f"{prefix}IfModifiedSince")
    if match is not None:
        if not _matches(match, etag):
            raise precondition_failed("If-Match")
    elif unmodified is not None and since > unmodified.astimezone(UTC):
        raise precondition_failed("If-Unmodified-Since")
    stale = _matches(none_match, etag) if none_match is not None else changed is not None and since <= changed
    if stale:
        if copying:
            raise precondition_failed("If-None-Match" if none_match is not None else "If-Modified-Since")
        raise ValidationFault("Not Modified", code="NotModified")


def check_write_conditions(request: Mapping[str, Any], etag: str | None) -> None:
    """If-None-Match: * and If-Match of a write, against the visible object's entity tag (None: there is none)."""
    none_match, match = request.get("IfNoneMatch"), request.get("IfMatch")
    if none_match is not None:
        if none_match.strip() != "*":
            raise NotImplementedYet(
                "A header you provided implies functionality that is not implemented", code="NotImplemented"
            )
        if etag is not None:
            raise precondition_failed("If-None-Match")
    if match is not None:
        if etag is None:
            raise NotFound(
                "The specified key does not exist.", code="NoSuchKey", members={"Key": request.get("Key", "")}
            )
        if not _matches(match, etag):
            raise precondition_failed("If-Match")


ABORTED = "OperationAborted"


def conflicting() -> Conflict:
    """Too many concurrent changes of one and the same thing."""
    return Conflict(
        "A conflicting conditional operation is currently in progress against this resource. Try again.",
        code=ABORTED,
    )


def precondition_failed(condition: str) -> Conflict:
    return Conflict(
        "At least one of the pre-conditions you specified did not hold",
        code="PreconditionFailed",
        members={"Condition": condition},
    )


def _matches(stated: str, etag: str) -> bool:
    stated = stated.strip()
    return stated == "*" or etag in {part.strip().removeprefix("W/").strip('"') for part in stated.split(",")}


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of a Range header on an object of `size` bytes; None when there is none that S3 heeds.

    Raises ValidationFault (InvalidRange) when no byte of it exists.
    """
    if header is None or not header.startswith("bytes=") or "," in header:
        return None
    first, dash, last = header.removeprefix("bytes=").strip().partition("-")
    if not dash or not (first or last) or not (first + last).isascii() or not (first + last).isdigit():
        return None
    if first:
        start, end = int(first), int(last) + 1 if last else size
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size
        if int(last) == 0:
            start = size
    if start >= size:
        raise ValidationFault(
            "The requested range is not satisfiable",
            code="InvalidRange",
            members={"RangeRequested": header, "ActualObjectSize": str(size)},
        )
    return start, min(end, size)
