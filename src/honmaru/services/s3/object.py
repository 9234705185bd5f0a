"""Objects: put, get, head, copy, delete, attributes.

Invariants:
- PutObject keeps memory constant: bytes go from the wire through the checksums into the sealed blob in chunks.
- What GetObject streams is verified segment by segment before it leaves; a damaged object breaks the answer off.
- Every object is encrypted at rest: under the enclave's keys alone (AES256), or under a key of KMS too (`sse`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, RequestFault, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import checksums, contents, lifecycle, retention, sse, versions
from honmaru.services.s3.requests import (
    byte_range,
    check_key,
    check_read_conditions,
    copy_source,
    header_tags,
    precondition_failed,
    refuse_unwritten,
    storage_class,
)

_OVERRIDES = {
    "ResponseCacheControl": "CacheControl",
    "ResponseContentDisposition": "ContentDisposition",
    "ResponseContentEncoding": "ContentEncoding",
    "ResponseContentLanguage": "ContentLanguage",
    "ResponseContentType": "ContentType",
    "ResponseExpires": "Expires",
}
_METADATA_LIMIT = 2048
_DELETE_LIMIT = 1000
_COPY_LIMIT = 5 << 30


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
    locked = retention.stated(call, request)
    bucket = buckets.require(call.records, request)
    contents.check_early(call, bucket, request, locked)
    intake = checksums.intake(request, call.headers)
    record = keep(call, request, commits, bucket, intake, tags, request, locked)
    return {
        "Expiration": lifecycle.announced(bucket, record),
        "ETag": quoted(record.body["etag"]),
        "VersionId": written(record),
        **_checksum_members(record.body),
        **sse.described(record.body),
        "SSEKMSEncryptionContext": request.get("SSEKMSEncryptionContext"),
    }


def written(record: Record) -> str | None:
    """The version id that a write answers; None in a bucket that never had versioning."""
    return versions.id_of(record.body) if "version" in record.body or "order" in record.body else None


def keep(
    call: Call,
    request: Mapping[str, Any],
    commits: buckets.BucketCommits,
    bucket: Record,
    intake: checksums.Intake,
    tags: Mapping[str, str],
    described: Mapping[str, Any],
    locked: Mapping[str, Any],
) -> Record:
    """Write what `intake` takes in into a blob and make it the content of the request's key; all or nothing.

    Args:
        bucket: As it is when the upload begins, for its default encryption; it is looked at again when the object is
            stored.
        described: Members as a request has them: content type, headers and user metadata.
        locked: What `retention.stated` answered.
    """
    sealing = sse.for_write(call, commits.keys, request, bucket)
    ref = call.blobs.write(intake, sealing.seal)
    checksum = {"algorithm": intake.algorithm, "value": intake.checksum, "type": checksums.FULL_OBJECT}
    body = contents.body_of(described, etag=intake.md5.hex(), size=ref.size, checksum=checksum, now=call.now)
    body |= {"blob": ref.id, "tags": dict(tags), **locked, **storage_class(request), **sealing.kept}
    try:
        record = contents.store(call, commits, request, body)
    except BaseException:
        call.blobs.delete(ref.id)
        raise
    call.details["bytes"] = ref.size
    call.details["sha256"] = ref.sha256
    return record


def get(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    """Label: reads at or below the session's label."""
    bucket = _check_read(call, request)
    start, end, ranged = 0, 0, False

    def extent(record: Record) -> tuple[int, int]:
        nonlocal start, end, ranged
        (start, end), ranged = _extent(call, request, record)
        return start, end

    def seal(record: Record) -> bytes | None:
        return sse.for_read(call, commits.keys, record.body)

    record, chunks = contents.read(call.guard, call.acting, lambda: _find(call, request), extent, seal)
    call.details["bytes"] = end - start
    return {**_describe(call, request, bucket, record, start, end, ranged), "Body": chunks}


def head(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    bucket = _check_read(call, request)
    record = _find(call, request)
    (start, end), ranged = _extent(call, request, record)
    return _describe(call, request, bucket, record, start, end, ranged)


def _check_read(call: Call, request: Mapping[str, Any]) -> Record:
    refuse_unwritten(request)
    check_key(request["Key"])
    versions.check_id(request.get("VersionId"))
    return buckets.require(call.records, request)


def _find(call: Call, request: Mapping[str, Any]) -> Record:
    """The object, if the request's conditions hold for it; a 304 carries its validators."""
    record = contents.require(call, request["Bucket"], request["Key"], request.get("VersionId"))
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
    call: Call, request: Mapping[str, Any], bucket: Record, record: Record, start: int, end: int, ranged: bool
) -> dict[str, Any]:
    body = record.body
    answer: dict[str, Any] = {
        "AcceptRanges": "bytes",
        "LastModified": modified(record),
        "ContentLength": end - start,
        "ETag": quoted(body["etag"]),
        "ContentType": body["type"],
        "VersionId": versions.shown(bucket, record),
        "Expiration": lifecycle.announced(bucket, record),
        "Metadata": dict(body["metadata"]),
        **body["headers"],
        **sse.described(body),
    }
    answer |= retention.described(call, request, body)
    if "class" in body:  # S3 leaves the standard one unsaid
        answer["StorageClass"] = body["class"]
    if "Expires" in body["headers"]:
        answer["Expires"] = _expires(body["headers"]["Expires"])
    if body["tags"]:
        answer["TagCount"] = len(body["tags"])
    checking = request.get("ChecksumMode") == "ENABLED"
    if ranged and end > start:
        answer["ContentRange"] = f"bytes {start}-{end - 1}/{body['size']}"
        call.status = 206
    elif checking:
        answer |= _checksum_members(body)
    if request.get("PartNumber") is not None and "layout" in body:
        answer["PartsCount"] = int(body["etag"].rpartition("-")[2])
        if checking and body["checksum"]["type"] == checksums.COMPOSITE:
            answer |= _part_checksum(call, record, request["PartNumber"])
    for member, target in _OVERRIDES.items():
        if request.get(member) is not None:
            answer[target] = request[member]
    return answer


def copy(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    """Label: reads the source at or below the session's label; the copy carries the session's label."""
    refuse_unwritten(request)
    check_key(request["Key"])
    check_metadata(request)
    bucket, key, version_id = copy_source(request)
    replacing = request.get("MetadataDirective") == "REPLACE"
    if (bucket, key, version_id) == (request["Bucket"], request["Key"], None) and not (
        replacing or request.get("StorageClass") or request.get("ServerSideEncryption")
    ):
        raise ValidationFault(
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
            code="InvalidRequest",
        )
    locked = retention.stated(call, request)
    target = buckets.require(call.records, request)
    contents.check_early(call, target, request, locked)
    source, chunks = open_source(call, request, commits, _whole)
    if request.get("TaggingDirective") == "REPLACE":
        tags: Mapping[str, str] = header_tags(request, call.session)
    else:
        tags = source.body["tags"]
        if tags:
            action = "s3:GetObjectTagging" if version_id is None else "s3:GetObjectVersionTagging"
            call.authorize(action, _arn(call, bucket, key))
    if tags:
        call.authorize("s3:PutObjectTagging", _arn(call, request["Bucket"], request["Key"]))
    kept = source.body["checksum"]
    algorithm = request.get("ChecksumAlgorithm") or kept["algorithm"]
    intake = checksums.Intake(chunks, algorithm)
    described = request if replacing else _as_request(source)
    record = keep(call, request, commits, target, intake, tags, described, locked)
    return {
        "VersionId": written(record),
        "CopySourceVersionId": written(source),
        "CopyObjectResult": {
            "ETag": quoted(record.body["etag"]),
            "LastModified": modified(record),
            **_checksum_members(record.body),
        },
        **sse.described(record.body),
        "SSEKMSEncryptionContext": request.get("SSEKMSEncryptionContext"),
    }


def _whole(source: Record) -> tuple[int, int]:
    """The extent of a copy. Raises ValidationFault for an object that only a multipart upload can copy."""
    size = int(source.body["size"])
    if size > _COPY_LIMIT:
        raise ValidationFault(
            f"The specified copy source is larger than the maximum allowable size for a copy source: {_COPY_LIMIT}",
            code="InvalidRequest",
        )
    return 0, size


def open_source(
    call: Call,
    request: Mapping[str, Any],
    commits: buckets.BucketCommits,
    extent: Callable[[Record], tuple[int, int]],
) -> tuple[Record, Iterator[bytes]]:
    """The source of a copy, authorised and opened. Raises AccessDenied, NotFound or Conflict (preconditions)."""
    bucket, key, version_id = copy_source(request)
    versions.check_id(version_id)
    action = "s3:GetObject" if version_id is None else "s3:GetObjectVersion"
    there = call.within(call.authorize(action, _arn(call, bucket, key)))
    call.resources.append((_arn(call, bucket, key), "AWS::S3::Object"))
    buckets.require(there.records, {"Bucket": bucket, "ExpectedBucketOwner": request.get("ExpectedSourceBucketOwner")})

    def find() -> Record:
        found = versions.find(there.records, bucket, key, version_id)
        if version_id is not None and found is not None and versions.is_marker(found):
            raise ValidationFault(
                "The source of a copy request may not specifically refer to a delete marker by version id.",
                code="InvalidRequest",
            )
        record = contents.require(there, bucket, key, version_id)
        check_read_conditions(request, record.body["etag"], modified(record), prefix="CopySource", copying=True)
        return record

    def seal(record: Record) -> bytes | None:
        return sse.for_read(there, commits.keys, record.body)

    return contents.read(there.guard, there.acting, find, extent, seal)


def delete(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    check_key(request["Key"])
    buckets.require(call.records, request)
    _authorize_condition(call, request, request["Bucket"], request["Key"])
    removed = contents.remove(call, commits, request, lambda record: _check_delete(request, record))
    return {"VersionId": removed.version_id, "DeleteMarker": removed.marker or None}


def _authorize_condition(call: Call, request: Mapping[str, Any], bucket: str, key: str) -> None:
    """Who states an entity tag learns whether it is the object's, so must be allowed to read it."""
    match = request.get("IfMatch", request.get("ETag"))
    if match is not None and match.strip() != "*":
        call.authorize("s3:GetObject", _arn(call, bucket, key))


def _check_delete(request: Mapping[str, Any], record: Record | None) -> None:
    """If-Match and its two companions for directory buckets, in DeleteObject and in each member of DeleteObjects."""
    match = request.get("IfMatch", request.get("ETag"))
    if record is None or versions.is_marker(record):
        if match is not None and record is None:
            raise contents.missing(request.get("Bucket", ""), request["Key"])
        if match is not None:
            raise precondition_failed("If-Match")
        return
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
    seen = call.sight().get("bucket", request["Bucket"])  # each key is authorised by itself, so the door asked nothing
    buckets.require(call.within(seen.account).records if seen else call.records, request)
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
            removed = _delete_one(call, commits, request, wanted)
        except RequestFault as fault:
            code = "AccessDenied" if isinstance(fault, AccessDenied) else fault.code or "InvalidRequest"
            errors.append(
                {"Key": wanted["Key"], "VersionId": wanted.get("VersionId"), "Code": code, "Message": fault.message}
            )
        else:
            deleted.append(
                {
                    "Key": wanted["Key"],
                    "VersionId": wanted.get("VersionId"),
                    "DeleteMarker": removed.marker or None,
                    "DeleteMarkerVersionId": removed.version_id if removed.marker else None,
                }
            )
    return {"Deleted": None if request["Delete"].get("Quiet") else deleted, "Errors": errors or None}


def _delete_one(
    call: Call, commits: buckets.BucketCommits, request: Mapping[str, Any], wanted: Mapping[str, Any]
) -> contents.Removed:
    bucket, key = request["Bucket"], wanted["Key"]
    check_key(key)
    action = "s3:DeleteObject" if wanted.get("VersionId") is None else "s3:DeleteObjectVersion"
    here = call.within(call.authorize(action, _arn(call, bucket, key)))
    _authorize_condition(call, wanted, bucket, key)
    call.resources.append((_arn(call, bucket, key), "AWS::S3::Object"))
    one = {name: value for name, value in request.items() if name != "Delete"} | dict(wanted)
    return contents.remove(here, commits, one, lambda record: _check_delete(one, record))


def attributes(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    bucket = _check_read(call, request)
    record = contents.require(call, request["Bucket"], request["Key"], request.get("VersionId"))
    body = record.body
    wanted = request["ObjectAttributes"]
    answer: dict[str, Any] = {"LastModified": modified(record), "VersionId": versions.shown(bucket, record)}
    if "ETag" in wanted:
        answer["ETag"] = body["etag"]
    if "Checksum" in wanted:
        answer["Checksum"] = _checksum_members(body)
    if "StorageClass" in wanted:
        answer["StorageClass"] = body.get("class", "STANDARD")
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


def _part_checksum(call: Call, record: Record, number: int) -> dict[str, str]:
    """The checksum of one part; nothing when the object was replaced since its record was read."""
    layout = call.records.get("layout", record.body["layout"])
    found = next((part for part in layout.body["parts"] if part["number"] == number), None) if layout else None
    return {checksums.member(record.body["checksum"]["algorithm"]): found["checksum"]} if found else {}


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
