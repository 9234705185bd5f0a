"""Stored objects: what their records say, how they are read, replaced and removed.

An object is a record of kind "object" named `bucket/key` (older versions of it: see `versions`). Its bytes are one
blob, or, for a multipart object, the blobs listed by a record of kind "layout" named by its upload id (kept apart so
that lists stay cheap).

Invariants:
- An object's bytes are deleted only after no record refers to them; a reader that has begun keeps them to its end.
- A replacement is a compare-and-swap at the session's label: concurrent writers leave one of them whole, never a mix.
- Blobs that a record names and that are missing are an IntegrityFault, never an empty answer.
- Conditions are checked against the very state that the write replaces: of concurrent writers that all ask for
  If-None-Match, or for one and the same entity tag, one wins.
- Every version made or deleted passes `events`, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, IntegrityFault, NotFound
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.security.guard import Guard, GuardedChange, GuardedCondition, GuardedRecords, Record, StillThere
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import retention, versions
from honmaru.services.s3.events import ObjectEvent, created, removed
from honmaru.services.s3.requests import check_write_conditions, conflicting

_ATTEMPTS = 16
HEADER_MEMBERS = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "Expires")


def name_of(bucket: str, key: str) -> str:
    return f"{bucket}/{key}"


def missing(bucket: str, key: str) -> NotFound:
    return NotFound("The specified key does not exist.", code="NoSuchKey", members={"Key": key, "BucketName": bucket})


def require(call: Call, bucket: str, key: str, version_id: str | None = None) -> Record:
    """The visible object, or the version with the id.

    Raises NotFound (NoSuchKey, NoSuchVersion), or AccessDenied for who may not list the bucket, as S3 does; Conflict
    (MethodNotAllowed) for the id of a delete marker.
    """
    record = versions.find(call.records, bucket, key, version_id)
    if record is not None and not versions.is_marker(record):
        return record
    if version_id is None:
        call.authorize("s3:ListBucket", f"arn:{call.session.partition}:s3:::{bucket}")
    if record is not None:
        call.response_headers["x-amz-delete-marker"] = "true"
        call.response_headers["x-amz-version-id"] = versions.id_of(record.body)
    if version_id is None:
        raise missing(bucket, key)
    if record is None:
        raise missing_version(key, version_id)
    modified = datetime.fromisoformat(record.body["modified"])
    call.response_headers["Last-Modified"] = modified.strftime("%a, %d %b %Y %H:%M:%S GMT")
    call.response_headers["Allow"] = "DELETE"
    raise Conflict(
        "The specified method is not allowed against this resource.",
        code="MethodNotAllowed",
        members={"Method": "GET", "ResourceType": "DeleteMarker"},
    )


def missing_version(key: str, version_id: str) -> NotFound:
    return NotFound(
        "The specified version does not exist.", code="NoSuchVersion", members={"Key": key, "VersionId": version_id}
    )


def body_of(
    request: Mapping[str, Any], *, etag: str, size: int, checksum: Mapping[str, str], now: datetime
) -> dict[str, Any]:
    """The record body of a new object, without its bytes ("blob" or "layout") and tags."""
    expires = request.get("Expires")
    headers = {name: request[name] for name in HEADER_MEMBERS if request.get(name) is not None}
    if isinstance(expires, datetime):
        headers["Expires"] = expires.isoformat()
    return {
        "etag": etag,
        "size": size,
        "modified": now.isoformat(),
        "type": request.get("ContentType") or "binary/octet-stream",
        "headers": headers,
        "metadata": dict(request.get("Metadata") or {}),
        "checksum": dict(checksum),
    }


def store(
    call: Call,
    commits: buckets.BucketCommits,
    request: Mapping[str, Any],
    body: Mapping[str, Any],
    further: Sequence[GuardedChange] = (),
    conditions: Sequence[GuardedCondition] = (),
    attempts: int = _ATTEMPTS,
) -> Record:
    """Make `body` the content of the request's bucket and key, atomically with `further` changes under `conditions`.

    In a bucket with versioning the present version stays as an older one; the answer's body holds the new id.

    Raises:
        Conflict, NotFound: the request's If-Match or If-None-Match fails; or (OperationAborted) after `attempts`
            other writers still come first.
        ValidationFault: the body holds retention or a hold, and the bucket has no object lock.
        And what `buckets.adopt` raises.
    Label: writes at the session's label, making the bucket there when only a lower one exists.
    """
    records = call.records
    name = name_of(request["Bucket"], request["Key"])
    for _ in range(attempts):
        with commits.turn(call.acting, name):
            bucket = buckets.adopt(records, request)
            seen = records.get("object", name)
            check_write_conditions(request, _etag(seen))
            head = own(seen, records)
            status = versions.status_of(bucket)
            stamped = {**body, **retention.of_new_version(bucket, body, call.now)}
            stamped |= versions.stamp(call, status, name, head)
            changes, blobs = versions.succession(records, bucket, name, head, stamped)
            event = ObjectEvent(
                created(call.operation),
                bucket,
                request["Key"],
                versions.id_of(stamped) if status else None,
                stamped["size"],
                stamped["etag"],
                versions.order_of(stamped),
            )
            changes += [*further, *commits.events.changes(call, event)]
            try:
                stored = records.apply(changes, [StillThere(bucket), *conditions])[0]
            except Conflict:
                continue
        for blob in blobs:
            call.blobs.delete(blob)
        return stored
    raise conflicting()


def check_early(call: Call, bucket: Record, request: Mapping[str, Any], locked: Mapping[str, Any]) -> None:
    """Raises what `store` would raise about conditions and object lock, before the bytes are read."""
    retention.of_new_version(bucket, locked, call.now)
    match = request.get("IfMatch")
    if match is None and request.get("IfNoneMatch") is None:
        return
    if match is not None and match.strip() != "*":  # whether a tag is the object's is told to who may read it
        call.authorize("s3:GetObject", f"arn:{call.session.partition}:s3:::{request['Bucket']}/{request['Key']}")
    check_write_conditions(request, _etag(versions.find(call.records, request["Bucket"], request["Key"])))


def own(seen: Record | None, records: GuardedRecords) -> Record | None:
    """The record that a session sees, if it is at the session's own label."""
    return seen if seen is not None and seen.label == records.session.label else None


def _etag(seen: Record | None) -> str | None:
    """What conditions are checked against: a key whose current version is a delete marker has no object."""
    return None if seen is None or versions.is_marker(seen) else str(seen.body["etag"])


@dataclass(frozen=True, slots=True)
class Removed:
    """What a deletion did: the version id and whether it is a delete marker (made, or deleted), where versioned."""

    version_id: str | None = None
    marker: bool = False


def remove(
    call: Call, commits: buckets.BucketCommits, request: Mapping[str, Any], check: Callable[[Record | None], None]
) -> Removed:
    """Delete what a request with Bucket, Key and perhaps VersionId names; what is not there is no error.

    Without a version id, in a bucket with versioning, a delete marker becomes the current version.

    Args:
        check: Is shown the visible current version (None: there is no object) and raises to refuse.
    Raises:
        AccessDenied: what would be deleted is below the session's label, or object lock protects it.
        ValidationFault: the version id cannot be one.
    """
    records = call.records
    version_id = request.get("VersionId")
    versions.check_id(version_id)
    for _ in range(_ATTEMPTS):
        with commits.turn(call.acting, name_of(request["Bucket"], request["Key"])):
            bucket = buckets.require(records, request)
            check(versions.find(records, request["Bucket"], request["Key"]))
            if version_id is None and versions.status_of(bucket) is not None:
                bucket = buckets.adopt(records, request)
                changes, blobs, removed = _cover(call, commits, request, bucket)
            else:
                found = versions.find(records, request["Bucket"], request["Key"], version_id)
                if found is None:
                    return Removed(version_id)
                changes, blobs, removed = _destroy(call, commits, request, bucket, found)
            # A version is only ever made, as a marker is here, in a bucket that is there.
            conditions = [StillThere(bucket)] if bucket.label == records.session.label else []
            try:
                records.apply(changes, conditions)
            except Conflict:
                continue
        for blob in blobs:
            call.blobs.delete(blob)
        return removed
    raise conflicting()


_Deletion = tuple[list[GuardedChange], list[str], Removed]


def _cover(call: Call, commits: buckets.BucketCommits, request: Mapping[str, Any], bucket: Record) -> _Deletion:
    """A delete marker at the session's label: it hides what lies below, and takes nothing away from anybody there."""
    records = call.records
    name = name_of(request["Bucket"], request["Key"])
    head = own(records.get("object", name), records)
    body = {"modified": call.now.isoformat(), **versions.stamp(call, versions.status_of(bucket), name, head)}
    changes, blobs = versions.succession(records, bucket, name, head, body, versions.MARKER)
    marker = versions.id_of(body)
    event = ObjectEvent(
        removed(call.operation, marker=True), bucket, request["Key"], marker, None, None, versions.order_of(body)
    )
    return changes + commits.events.changes(call, event), blobs, Removed(marker, True)


def _destroy(
    call: Call, commits: buckets.BucketCommits, request: Mapping[str, Any], bucket: Record, found: Record
) -> _Deletion:
    """A version for good."""
    here = call.records.session.label
    if found.label != here:
        raise AccessDenied(
            f"{request['Key']!r} is at {found.label.banner} and this session is at {here.banner}: "
            f"sign in at {found.label.banner} to delete it"
        )
    retention.check_removable(found, call, request)
    changes, blobs = versions.removal(call.records, bucket.name, found)
    version_id = versions.id_of(found.body) if versions.status_of(bucket) else None
    event = ObjectEvent(
        removed(call.operation, marker=False),
        bucket,
        request["Key"],
        version_id,
        None,
        None,
        versions.order_of(found.body),
    )
    changes += commits.events.changes(call, event)
    return changes, blobs, Removed(request.get("VersionId"), versions.is_marker(found))


def parts_of(records: GuardedRecords, record: Record) -> list[dict[str, Any]]:
    """The parts of a multipart object; one part for any other."""
    if "layout" not in record.body:
        return [{"number": 1, "size": record.body["size"], "blob": record.body["blob"]}]
    layout = records.get("layout", record.body["layout"])
    if layout is None:
        raise NotFound("the object was replaced meanwhile")
    return list(layout.body["parts"])


def read(
    guard: Guard,
    session: Session,
    find: Callable[[], Record],
    extent: Callable[[Record], tuple[int, int]],
    seal: Callable[[Record], bytes | None],
) -> tuple[Record, Iterator[bytes]]:
    """The visible object and its plain bytes in the extent (start, end), as one consistent state.

    `find` is asked again when the object was replaced between reading its record and opening its bytes. `seal` is asked
    for what opens its blobs beside the keyring (`sse.for_read`).

    Raises:
        NotFound: what `find` raises.
        IntegrityFault: the record is stable and its bytes are missing.
    """
    records, blobs = guard.records(session, "s3"), guard.blobs(session)
    before: Record | None = None
    for _ in range(_ATTEMPTS):
        record = find()
        if before is not None and _same(record, before):
            break
        start, end = extent(record)
        try:
            return record, blobs.join(_pieces(parts_of(records, record), start, end), seal(record))
        except NotFound:
            before = record
    raise IntegrityFault("an object's stored bytes are missing; restore them from a backup")


def _same(record: Record, before: Record) -> bool:
    """Whether nothing happened to an object between two looks."""
    return (record.kind, record.version, record.label) == (before.kind, before.version, before.label)


def _pieces(parts: Sequence[Mapping[str, Any]], start: int, end: int) -> list[tuple[str, int, int]]:
    pieces: list[tuple[str, int, int]] = []
    offset = 0
    for part in parts:
        first, last = max(start, offset), min(end, offset + part["size"])
        if first < last:
            pieces.append((part["blob"], first - offset, last - first))
        offset += part["size"]
    return pieces
