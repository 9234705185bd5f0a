"""Objects: put, get, head, copy, delete, attributes.

Invariants:
- PutObject keeps memory constant: bytes go from the wire through the checksums into the sealed blob in chunks.
- What GetObject streams is verified segment by segment before it leaves; a damaged object breaks the answer off.
- Every object is encrypted at rest, so AES256 is what every answer says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, RequestFault, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import checksums, contents
from honmaru.services.s3.requests import (
    byte_range,
    check_key,
    check_read_conditions,
    check_write_conditions,
    copy_source,
    header_tags,
    precondition_failed,
    refuse_unwritten,
)

_OVERRIDES = {
    "ResponseCacheControl": "CacheControl",
    "ResponseContentDisposition": "ContentDisposition",
    "ResponseContentEncoding": "ContentEncoding",
    "ResponseContentLanguage": "ContentLanguage",
    "ResponseContentType": "ContentType",
    "ResponseExpires": "Expires",
}
SEALED = {"ServerSideEncryption": "AES256"}
_METADATA_LIMIT = 2048
_DELETE_LIMIT = 1000


def quoted(etag: str) -> str:
    return f'"{etag}"'


def check_metadata(request: Mapping[str, Any]) -> None:
    """User metadata may take 2 KB. Raises ValidationFault (MetadataTooLarge)."""
    size = sum(len(name.encode()) + len(value.encode()) for name, value in (request.get("Metadata") or {}).items())
    if size > _METADATA_LIMIT:
        raise ValidationFault(
            "Your metadata headers exceed the maximum allowed metadata size",
            code="MetadataTooLarge",
            members={"Size": str(size), "MaxSizeAllowed": str(_METADATA_LIMIT)},
        )


def put(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    check_key(request["Key"])
    check_metadata(request)
    tags = header_tags(request, call.session)
    if tags:
        call.authorize("s3:PutObjectTagging", _arn(call, request["Bucket"], request["Key"]))
    buckets.require(call.records, request)
    if request.get("IfMatch") is not None or request.get("IfNoneMatch") is not None:
        seen = call.records.get("object", contents.name_of(request["Bucket"], request["Key"]))
        check_write_conditions(request, None if seen is None else seen.body["etag"])
    intake = checksums.intake(request, call.headers)
    record = keep(call, request, commits, intake, tags, request)
    return {
        "ETag": quoted(record.body["etag"]),
        **_checksum_members(record.body),
        **SEALED,
    }


def keep(
    call: Call,
    request: Mapping[str, Any],
    commits: buckets.BucketCommits,
    intake: checksums.Intake,
    tags: Mapping[str, str],
    described: Mapping[str, Any],
) -> Record:
    """Write what `intake` takes in into a blob and make it the content of the request's key; all or nothing."""
    ref = call.blobs.write(intake)
    checksum = {"algorithm": intake.algorithm, "value": intake.checksum, "type": checksums.FULL_OBJECT}
    body = contents.body_of(described, etag=intake.md5.hex(), size=ref.size, checksum=checksum, now=call.now)
    body |= {"blob": ref.id, "tags": dict(tags)}
    try:
        record = contents.store(call.session, call.guard, commits, request, body)
    except BaseException:
        call.blobs.delete(ref.id)
        raise
    call.details["bytes"] = ref.size
    call.details["sha256"] = ref.sha256
    return record


def get(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Label: reads at or below the session's label."""
    _check_read(call, request)
    start, end, ranged = 0, 0, False

    def extent(record: Record) -> tuple[int, int]:
        nonlocal start, end, ranged
        (start, end), ranged = _extent(call, request, record)
        return start, end

    record, chunks = contents.read(call.guard, call.session, lambda: _find(call, request), extent)
    call.details["bytes"] = end - start
    return {**_describe(call, request, record, start, end, ranged), "Body": chunks}


def head(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    _check_read(call, request)
    record = _find(call, request)
    (start, end), ranged = _extent(call, request, record)
    return _describe(call, request, record, start, end, ranged)


def _check_read(call: Call, request: Mapping[str, Any]) -> None:
    refuse_unwritten(request)
    check_key(request["Key"])
    buckets.require(call.records, request)


def _find(call: Call, request: Mapping[str, Any]) -> Record:
    """The object, if the request's conditions hold for it; a 304 carries its validators."""
    record = contents.require(call, request["Bucket"], request["Key"])
    try:
        check_read_conditions(request, record.body["etag"], modified(record))
    except ValidationFault:
        call.response_headers["ETag"] = quoted(record.body["etag"])
        call.response_headers["Last-Modified"] = modified(record).strftime("%a, %d %b %Y %H:%M:%S GMT")
        raise
    return record


def _extent(call: Call, request: Mapping[str, Any], record: Record) -> tuple[tuple[int, int], bool]:
    size = record.body["size"]
    number = request.get("PartNumber")
    if number is None:
        found = byte_range(request.get("Range"), size)
        return found or (0, size), found is not None
    if request.get("Range") is not None:
        raise ValidationFault("Cannot specify both Range header and partNumber query parameter", code="InvalidRequest")
    offset = 0
    for part in contents.parts_of(call.records, record):
        if part["number"] == number:
            return (offset, offset + part["size"]), True
        offset += part["size"]
    raise ValidationFault("The requested partnumber is not satisfiable", code="InvalidPartNumber")


def _describe(
    call: Call, request: Mapping[str, Any], record: Record, start: int, end: int, ranged: bool
) -> dict[str, Any]:
    body = record.body
    answer: dict[str, Any] = {
        "AcceptRanges": "bytes",
        "LastModified": modified(record),
        "ContentLength": end - start,
        "ETag": quoted(body["etag"]),
        "ContentType": body["type"],
        "Metadata": dict(body["metadata"]),
        **body["headers"],
        **SEALED,
    }
    if "Expires" in body["headers"]:
        answer["Expires"] = _expires(body["headers"]["Expires"])
    if body["tags"]:
        answer["TagCount"] = len(body["tags"])
    if ranged:
        answer["ContentRange"] = f"bytes {start}-{end - 1}/{body['size']}"
        call.status = 206
    elif request.get("ChecksumMode") == "ENABLED":
        answer |= _checksum_members(body)
    if request.get("PartNumber") is not None and "layout" in body:
        answer["PartsCount"] = int(body["etag"].rpartition("-")[2])
    for member, target in _OVERRIDES.items():
        if request.get(member) is not None:
            answer[target] = request[member]
    return answer


def copy(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    """Label: reads the source at or below the session's label; the copy carries the session's label."""
    refuse_unwritten(request)
    check_key(request["Key"])
    check_metadata(request)
    bucket, key = copy_source(request)
    replacing = request.get("MetadataDirective") == "REPLACE"
    if (bucket, key) == (request["Bucket"], request["Key"]) and not replacing:
        raise ValidationFault(
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
            code="InvalidRequest",
        )
    buckets.require(call.records, request)
    source, chunks = open_source(call, request, bucket, key, lambda record: (0, record.body["size"]))
    if request.get("TaggingDirective") == "REPLACE":
        tags: Mapping[str, str] = header_tags(request, call.session)
    else:
        tags = source.body["tags"]
        if tags:
            call.authorize("s3:GetObjectTagging", _arn(call, bucket, key))
    if tags:
        call.authorize("s3:PutObjectTagging", _arn(call, request["Bucket"], request["Key"]))
    kept = source.body["checksum"]
    algorithm = request.get("ChecksumAlgorithm") or kept["algorithm"]
    intake = checksums.Intake(chunks, algorithm)
    described = request if replacing else _as_request(source)
    record = keep(call, request, commits, intake, tags, described)
    return {
        "CopyObjectResult": {
            "ETag": quoted(record.body["etag"]),
            "LastModified": modified(record),
            **_checksum_members(record.body),
        },
        **SEALED,
    }


def open_source(
    call: Call, request: Mapping[str, Any], bucket: str, key: str, extent: Callable[[Record], tuple[int, int]]
) -> tuple[Record, Iterator[bytes]]:
    """The source of a copy, authorised and opened. Raises AccessDenied, NotFound or Conflict (preconditions)."""
    call.authorize("s3:GetObject", _arn(call, bucket, key))
    call.resources.append((_arn(call, bucket, key), "AWS::S3::Object"))
    buckets.require(call.records, {"Bucket": bucket, "ExpectedBucketOwner": request.get("ExpectedSourceBucketOwner")})

    def find() -> Record:
        record = contents.require(call, bucket, key)
        check_read_conditions(request, record.body["etag"], modified(record), prefix="CopySource", copying=True)
        return record

    return contents.read(call.guard, call.session, find, extent)


def delete(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    check_key(request["Key"])
    buckets.require(call.records, request)
    contents.remove(call, commits, request["Bucket"], request["Key"], lambda record: _check_delete(request, record))
    return {}


def _check_delete(request: Mapping[str, Any], record: Record) -> None:
    """If-Match and its two companions for directory buckets, in DeleteObject and in each member of DeleteObjects."""
    match = request.get("IfMatch", request.get("ETag"))
    if match is not None and match.strip('"') not in ("*", record.body["etag"]):
        raise precondition_failed("If-Match")
    at = request.get("IfMatchLastModifiedTime", request.get("LastModifiedTime"))
    if at is not None and at != modified(record).replace(microsecond=0):
        raise precondition_failed("x-amz-if-match-last-modified-time")
    size = request.get("IfMatchSize", request.get("Size"))
    if size is not None and size != record.body["size"]:
        raise precondition_failed("x-amz-if-match-size")


def delete_several(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    buckets.require(call.records, request)
    objects = request["Delete"].get("Objects") or ()
    if not 1 <= len(objects) <= _DELETE_LIMIT:
        raise ValidationFault(
            "The XML you provided was not well-formed or did not validate against our published schema",
            code="MalformedXML",
        )
    deleted: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for wanted in objects:
        try:
            _delete_one(call, commits, request["Bucket"], wanted)
        except RequestFault as fault:
            code = "AccessDenied" if isinstance(fault, AccessDenied) else fault.code or "InvalidRequest"
            errors.append({"Key": wanted["Key"], "Code": code, "Message": fault.message})
        else:
            deleted.append({"Key": wanted["Key"]})
    return {"Deleted": None if request["Delete"].get("Quiet") else deleted, "Errors": errors or None}


def _delete_one(call: Call, commits: buckets.BucketCommits, bucket: str, wanted: Mapping[str, Any]) -> None:
    check_key(wanted["Key"])
    refuse_unwritten({"VersionId": wanted.get("VersionId")})
    call.authorize("s3:DeleteObject", _arn(call, bucket, wanted["Key"]))
    call.resources.append((_arn(call, bucket, wanted["Key"]), "AWS::S3::Object"))
    contents.remove(call, commits, bucket, wanted["Key"], lambda record: _check_delete(wanted, record))


def attributes(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unwritten(request)
    check_key(request["Key"])
    buckets.require(call.records, request)
    record = contents.require(call, request["Bucket"], request["Key"])
    body = record.body
    wanted = request["ObjectAttributes"]
    answer: dict[str, Any] = {"LastModified": modified(record)}
    if "ETag" in wanted:
        answer["ETag"] = body["etag"]
    if "Checksum" in wanted:
        answer["Checksum"] = _checksum_members(body)
    if "StorageClass" in wanted:
        answer["StorageClass"] = "STANDARD"
    if "ObjectSize" in wanted:
        answer["ObjectSize"] = body["size"]
    if "ObjectParts" in wanted and "layout" in body:
        answer["ObjectParts"] = _object_parts(call, request, record)
    return answer


def _object_parts(call: Call, request: Mapping[str, Any], record: Record) -> dict[str, Any]:
    parts = contents.parts_of(call.records, record)
    limit, marker = request.get("MaxParts", 1000), int(request.get("PartNumberMarker") or 0)
    rest = [part for part in parts if part["number"] > marker]
    shown = rest[:limit]
    name = checksums.member(record.body["checksum"]["algorithm"])
    return {
        "TotalPartsCount": len(parts),
        "PartNumberMarker": str(marker),
        "NextPartNumberMarker": str(shown[-1]["number"]) if shown else "0",
        "MaxParts": limit,
        "IsTruncated": len(rest) > len(shown),
        "Parts": [{"PartNumber": part["number"], "Size": part["size"], name: part["checksum"]} for part in shown],
    }


def modified(record: Record) -> datetime:
    """When the object's content was written (tags written later do not count)."""
    return datetime.fromisoformat(record.body["modified"])


def _checksum_members(body: Mapping[str, Any]) -> dict[str, str]:
    kept = body["checksum"]
    return {checksums.member(kept["algorithm"]): kept["value"], "ChecksumType": kept["type"]}


def _as_request(record: Record) -> dict[str, Any]:
    body = record.body
    return {"ContentType": body["type"], "Metadata": body["metadata"], **body["headers"]}


def _expires(value: str) -> datetime | str:
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return value


def _arn(call: Call, bucket: str, key: str) -> str:
    return f"arn:{call.session.partition}:s3:::{bucket}/{key}"
