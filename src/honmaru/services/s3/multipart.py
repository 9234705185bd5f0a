"""Multipart uploads: create, upload part (or copy one), complete, abort, list.

An upload is a record of kind "upload" named `bucket/upload-id`; a part is a record of kind "part" named
`upload-id/number`. Completing moves the parts' blobs into the object's layout record: no byte is copied.

Invariants:
- An upload belongs to the label it was created at; at any other label it does not exist.
- Complete is one transaction: the object, its layout, the end of the upload and of its parts. Completing again with
  the same upload id answers the same, as long as that object is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice, pairwise
from typing import Any

from honmaru.core.errors import Conflict, NotFound, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, GuardedChange, NoneLeft, Record, Removal, Revision, StillThere
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import checksums, contents, lifecycle, retention, sse
from honmaru.services.s3.listing import encoder
from honmaru.services.s3.object import check_metadata, open_source, quoted, written
from honmaru.services.s3.requests import (
    ABORTED,
    byte_range,
    canonical_id,
    check_key,
    conflicting,
    header_tags,
    refuse_unwritten,
    storage_class,
)

_MIN_PART = 5 << 20
MAX_PARTS = 10_000
_ATTEMPTS = 16


def create(call: Call, request: Mapping[str, Any], upload_id: str, commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    check_key(request["Key"])
    check_metadata(request)
    tags = header_tags(request, call.session)
    if tags:
        call.authorize("s3:PutObjectTagging", f"arn:{call.session.partition}:s3:::{request['Bucket']}/{request['Key']}")
    stated = request.get("ChecksumAlgorithm")
    algorithm = stated or checksums.DEFAULT
    checksums.new(algorithm)
    kind = checksums.type_for(algorithm, request.get("ChecksumType"))
    described = contents.body_of(request, etag="", size=0, checksum={}, now=call.now)
    body = {
        "id": upload_id,
        "key": request["Key"],
        "initiated": call.now.isoformat(),
        "algorithm": algorithm,
        "stated": stated is not None,
        "checksum_type": kind,
        "object": described | {"tags": tags, **retention.stated(call, request), **storage_class(request)},
    }
    bucket = buckets.adopt(call.records, request)
    retention.of_new_version(bucket, body["object"], call.now)
    body["object"] |= sse.for_write(call, commits.keys, request, bucket).kept
    _begin(call, request, bucket, Creation("upload", f"{request['Bucket']}/{upload_id}", body))
    return {
        **lifecycle.abortion(bucket, request["Key"], call.now),
        "Bucket": request["Bucket"],
        "Key": request["Key"],
        "UploadId": upload_id,
        "ChecksumAlgorithm": stated,
        "ChecksumType": kind if stated else None,
        **sse.described(body["object"]),
        "SSEKMSEncryptionContext": request.get("SSEKMSEncryptionContext"),
    }


def _begin(call: Call, request: Mapping[str, Any], bucket: Record, upload: Creation) -> None:
    for _ in range(_ATTEMPTS):
        try:
            call.records.apply([upload], [StillThere(bucket)])
        except Conflict:
            bucket = buckets.adopt(call.records, request)  # raises when it was deleted meanwhile
            continue
        return
    raise conflicting()


def upload_part(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    upload = _upload(call, request)
    algorithm = upload.body["algorithm"]
    intake = checksums.intake(request, call.headers, algorithm)
    foreign = [name for name in intake.sent if name != algorithm]
    if foreign and upload.body["stated"]:
        raise ValidationFault(
            f"Checksum Type mismatch occurred, expected checksum Type: {algorithm.lower()}, "
            f"actual checksum Type: {foreign[0].lower()}",
            code="InvalidRequest",
        )
    part = _keep(call, upload, request["PartNumber"], intake, commits)
    return {
        "ETag": quoted(part["etag"]),
        checksums.member(algorithm): part["checksum"],
        **{checksums.member(name): value for name, value in intake.verified.items()},
        **sse.described(upload.body["object"]),
    }


def upload_part_copy(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    """Label: reads the source at or below the session's label; the part carries the session's label."""
    refuse_unwritten(request)
    upload = _upload(call, request)

    def extent(source: Record) -> tuple[int, int]:
        size = int(source.body["size"])
        stated = request.get("CopySourceRange")
        if stated is None:
            return 0, size
        found = byte_range(stated, size)
        if found is None or stated.endswith("-") or stated.startswith("bytes=-"):
            raise ValidationFault(
                "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the "
                "zero-based offsets of the first and last bytes to copy",
                code="InvalidArgument",
            )
        return found

    source, chunks = open_source(call, request, commits, extent)
    intake = checksums.Intake(chunks, upload.body["algorithm"])
    part = _keep(call, upload, request["PartNumber"], intake, commits)
    return {
        "CopySourceVersionId": written(source),
        "CopyPartResult": {
            "ETag": quoted(part["etag"]),
            "LastModified": datetime.fromisoformat(part["modified"]),
            checksums.member(upload.body["algorithm"]): part["checksum"],
        },
        **sse.described(upload.body["object"]),
    }


def _keep(
    call: Call, upload: Record, number: int, intake: checksums.Intake, commits: buckets.BucketCommits
) -> dict[str, Any]:
    if not 1 <= number <= MAX_PARTS:
        raise ValidationFault("Part number must be an integer between 1 and 10000, inclusive", code="InvalidArgument")
    ref = call.blobs.write(intake, sse.for_read(call, commits.keys, upload.body["object"]))
    body = {
        "blob": ref.id,
        "number": number,
        "size": ref.size,
        "etag": intake.md5.hex(),
        "checksum": intake.checksum,
        "modified": call.now.isoformat(),
    }
    try:
        replaced = _put_part(call, upload, number, body)
    except BaseException:
        call.blobs.delete(ref.id)
        raise
    if replaced is not None:
        call.blobs.delete(replaced)
    call.details["bytes"] = ref.size
    call.details["sha256"] = ref.sha256
    return body


def _put_part(call: Call, upload: Record, number: int, body: Mapping[str, Any]) -> str | None:
    """Store a part's record; returns the blob that it replaced. The upload must still be there when it is stored."""
    name = f"{upload.body['id']}/{number:05}"
    for _ in range(_ATTEMPTS):
        seen = call.records.get("part", name)
        change = Creation("part", name, body) if seen is None else Revision(seen, body)
        try:
            call.records.apply([change], [StillThere(upload)])
        except Conflict:
            if call.records.get("upload", upload.name) is None:
                raise _no_upload(upload.body["id"]) from None
            continue
        return None if seen is None else str(seen.body["blob"])
    raise conflicting()


def complete(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    refuse_unwritten(request)
    check_key(request["Key"])
    buckets.require(call.records, request)
    records = call.records
    done = _already(call, request)
    if done is not None:
        return _completed(request, done)
    contents.check_early(call, buckets.require(records, request), request, {})
    for _ in range(_ATTEMPTS):
        upload = _upload(call, request)
        within = f"{upload.body['id']}/"
        parts = {part.body["number"]: part for part in records.iterate("part", prefix=within)}
        chosen = _chosen(request, upload, parts)
        size = sum(part["size"] for part in chosen)
        if request.get("MpuObjectSize") is not None and int(request["MpuObjectSize"]) != size:
            raise ValidationFault("The provided 'x-amz-mp-object-size' header does not match", code="InvalidRequest")
        checksum = _checksum(request, upload, chosen)
        layout = Creation("layout", _layout_name(request), {"parts": chosen})
        body = {
            **upload.body["object"],
            "etag": checksums.etag_of([bytes.fromhex(part["etag"]) for part in chosen]),
            "size": size,
            "modified": call.now.isoformat(),
            "checksum": checksum,
            "layout": layout.name,
        }
        changes: list[GuardedChange] = [layout, Removal(upload), *(Removal(part) for part in parts.values())]
        try:
            record = contents.store(call, commits, request, body, changes, [NoneLeft("part", within)], attempts=1)
        except Conflict as fault:
            if fault.code != ABORTED:
                raise
            continue  # a part came in between, or another writer of the key: look again
        kept = {part["blob"] for part in chosen}
        for part in parts.values():
            if part.body["blob"] not in kept:
                call.blobs.delete(part.body["blob"])
        call.details["bytes"] = size
        return _completed(request, record)
    raise conflicting()


def _layout_name(request: Mapping[str, Any]) -> str:
    return f"{request['Bucket']}/{request['UploadId']}"


def _already(call: Call, request: Mapping[str, Any]) -> Record | None:
    record = call.records.get("object", contents.name_of(request["Bucket"], request["Key"]))
    same = record is not None and record.body.get("layout") == _layout_name(request)
    return record if same and record is not None and record.label == call.session.label else None


def _completed(request: Mapping[str, Any], record: Record) -> dict[str, Any]:
    kept = record.body["checksum"]
    return {
        "Location": f"/{request['Bucket']}/{request['Key']}",
        "Bucket": request["Bucket"],
        "Key": request["Key"],
        "VersionId": written(record),
        "ETag": quoted(record.body["etag"]),
        checksums.member(kept["algorithm"]): kept["value"],
        "ChecksumType": kept["type"],
        **sse.described(record.body),
    }


def _chosen(request: Mapping[str, Any], upload: Record, parts: Mapping[int, Record]) -> list[dict[str, Any]]:
    """The parts that the client lists, checked. Raises InvalidPart, InvalidPartOrder, EntityTooSmall, MalformedXML."""
    listed = (request.get("MultipartUpload") or {}).get("Parts") or ()
    if not listed:
        raise ValidationFault(
            "The XML you provided was not well-formed or did not validate against our published schema",
            code="MalformedXML",
        )
    numbers = [part.get("PartNumber", 0) for part in listed]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise ValidationFault(
            "The list of parts was not in ascending order. Parts must be ordered by part number.",
            code="InvalidPartOrder",
        )
    name = checksums.member(upload.body["algorithm"])
    chosen: list[dict[str, Any]] = []
    for stated in listed:
        number, etag = stated.get("PartNumber", 0), str(stated.get("ETag", "")).strip('"')
        part = parts.get(number)
        if (
            part is None
            or part.body["etag"] != etag
            or stated.get(name, part.body["checksum"]) != part.body["checksum"]
        ):
            raise ValidationFault(
                "One or more of the specified parts could not be found.  The part may not have been uploaded, or the "
                "specified entity tag may not match the part's entity tag.",
                code="InvalidPart",
                members={"UploadId": request["UploadId"], "PartNumber": str(number), "ETag": etag},
            )
        chosen.append(dict(part.body))
    for part_body in chosen[:-1]:
        if part_body["size"] < _MIN_PART:
            raise ValidationFault(
                "Your proposed upload is smaller than the minimum allowed size",
                code="EntityTooSmall",
                members={
                    "ProposedSize": str(part_body["size"]),
                    "MinSizeAllowed": str(_MIN_PART),
                    "PartNumber": str(part_body["number"]),
                    "ETag": part_body["etag"],
                },
            )
    return chosen


def _checksum(request: Mapping[str, Any], upload: Record, chosen: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    algorithm, kind = upload.body["algorithm"], upload.body["checksum_type"]
    if request.get("ChecksumType") not in (None, kind) and upload.body["stated"]:
        raise ValidationFault(
            f"The upload was created using the {kind} checksum mode. The complete request must use the same "
            "checksum mode.",
            code="InvalidRequest",
        )
    value = checksums.combined(algorithm, kind, [(part["checksum"], part["size"]) for part in chosen])
    stated = request.get(checksums.member(algorithm))
    if stated is not None and stated.partition("-")[0] != value.partition("-")[0]:
        raise ValidationFault(f"The {algorithm} you specified did not match the calculated checksum.", code="BadDigest")
    return {"algorithm": algorithm, "value": value, "type": kind}


def abort(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    for _ in range(_ATTEMPTS):
        upload = _upload(call, request)
        within = f"{upload.body['id']}/"
        parts = list(call.records.iterate("part", prefix=within))
        try:
            call.records.apply([Removal(upload), *(Removal(part) for part in parts)], [NoneLeft("part", within)])
        except Conflict:
            continue  # a part came in between
        for part in parts:
            call.blobs.delete(part.body["blob"])
        return {}
    raise conflicting()


def list_parts(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unwritten(request)
    upload = _upload(call, request)
    limit = min(request.get("MaxParts", 1000), 1000)
    marker = int(request.get("PartNumberMarker") or 0)
    head = f"{upload.body['id']}/"
    found = call.records.list("part", prefix=head, after=f"{head}{marker:05}", limit=limit + 1)
    shown = [part.body for part in found[:limit]]
    name = checksums.member(upload.body["algorithm"])
    owner = {"ID": canonical_id(call.session)}
    begun = datetime.fromisoformat(upload.body["initiated"])
    return {
        **lifecycle.abortion(buckets.require(call.records, request), request["Key"], begun),
        "Bucket": request["Bucket"],
        "Key": request["Key"],
        "UploadId": request["UploadId"],
        "PartNumberMarker": marker,
        "NextPartNumberMarker": shown[-1]["number"] if shown else 0,
        "MaxParts": limit,
        "IsTruncated": len(found) > limit,
        "Parts": [
            {
                "PartNumber": part["number"],
                "LastModified": datetime.fromisoformat(part["modified"]),
                "ETag": quoted(part["etag"]),
                "Size": part["size"],
                name: part["checksum"],
            }
            for part in shown
        ]
        or None,
        "Initiator": owner,
        "Owner": owner,
        "StorageClass": upload.body["object"].get("class", "STANDARD"),
        "ChecksumAlgorithm": upload.body["algorithm"] if upload.body["stated"] else None,
        "ChecksumType": upload.body["checksum_type"] if upload.body["stated"] else None,
    }


def list_uploads(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unwritten(request)
    bucket = buckets.require(call.records, request)
    prefix, delimiter = request.get("Prefix") or "", request.get("Delimiter") or ""
    marker = (request.get("KeyMarker") or "", request.get("UploadIdMarker") or "")
    limit = min(request.get("MaxUploads", 1000), 1000)
    uploads = sorted(
        (
            record.body
            for record in call.records.iterate("upload", prefix=f"{bucket.name}/")
            if record.label == call.session.label and record.body["key"].startswith(prefix)
        ),
        key=lambda body: (body["key"], body["initiated"], body["id"]),
    )
    entries: dict[tuple[str, str], Mapping[str, Any] | None] = {}
    for body in uploads:
        cut = body["key"].find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            entries[body["key"][: cut + len(delimiter)], ""] = None
        else:
            entries[body["key"], body["id"]] = body
    rest = {place: body for place, body in entries.items() if _behind(place, marker, entries)}
    shown = dict(islice(rest.items(), limit))
    more = len(rest) > len(shown)
    encode = encoder(request)
    owner = {"ID": canonical_id(call.session)}
    last = next(reversed(shown), ("", ""))
    return {
        "Bucket": bucket.name,
        "KeyMarker": encode(marker[0]),
        "UploadIdMarker": marker[1],
        "NextKeyMarker": encode(last[0]) if more else None,
        "NextUploadIdMarker": last[1] if more else None,
        "Prefix": encode(prefix),
        "Delimiter": encode(delimiter) or None,
        "MaxUploads": limit,
        "IsTruncated": more,
        "EncodingType": request.get("EncodingType"),
        "Uploads": [
            {
                "UploadId": body["id"],
                "Key": encode(body["key"]),
                "Initiated": datetime.fromisoformat(body["initiated"]),
                "StorageClass": body["object"].get("class", "STANDARD"),
                "Owner": owner,
                "Initiator": owner,
                "ChecksumAlgorithm": body["algorithm"] if body["stated"] else None,
                "ChecksumType": body["checksum_type"] if body["stated"] else None,
            }
            for body in shown.values()
            if body is not None
        ]
        or None,
        "CommonPrefixes": [{"Prefix": encode(key)} for (key, _), body in shown.items() if body is None] or None,
    }


def _behind(place: tuple[str, str], marker: tuple[str, str], entries: Mapping[tuple[str, str], object]) -> bool:
    """Whether an entry comes after the markers; uploads of one key are in the order of their start."""
    key, upload_id = place
    if key != marker[0] or not marker[1]:
        return key > marker[0]
    order = [other for other_key, other in entries if other_key == key]
    return marker[1] in order and order.index(upload_id) > order.index(marker[1])


def _upload(call: Call, request: Mapping[str, Any]) -> Record:
    """The upload at the session's label. Raises NotFound (NoSuchBucket, NoSuchUpload)."""
    check_key(request["Key"])
    buckets.require(call.records, request)
    upload = call.records.get("upload", f"{request['Bucket']}/{request['UploadId']}")
    if upload is None or upload.label != call.session.label or upload.body["key"] != request["Key"]:
        raise _no_upload(request["UploadId"])
    return upload


def _no_upload(upload_id: str) -> NotFound:
    return NotFound(
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or "
        "completed.",
        code="NoSuchUpload",
        members={"UploadId": upload_id},
    )
