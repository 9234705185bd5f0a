"""Stored objects: what their records say, how they are read, replaced and removed.

An object is a record of kind "object" named `bucket/key`. Its bytes are one blob, or, for a multipart object, the
blobs listed by a record of kind "layout" named by its upload id (kept apart so that lists stay cheap).

Invariants:
- An object's bytes are deleted only after no record refers to them; a reader that has begun keeps them to its end.
- A replacement is a compare-and-swap at the session's label: concurrent writers leave one of them whole, never a mix.
- Blobs that a record names and that are missing are an IntegrityFault, never an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, IntegrityFault, NotFound
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, Guard, GuardedChange, GuardedRecords, Record, Removal, Revision
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3.requests import check_write_conditions

_ATTEMPTS = 16
HEADER_MEMBERS = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "Expires")


def name_of(bucket: str, key: str) -> str:
    return f"{bucket}/{key}"


def key_of(record: Record) -> str:
    return record.name.partition("/")[2]


def missing(bucket: str, key: str) -> NotFound:
    return NotFound("The specified key does not exist.", code="NoSuchKey", members={"Key": key, "BucketName": bucket})


def require(call: Call, bucket: str, key: str) -> Record:
    """The visible object. Raises NotFound (NoSuchKey), or AccessDenied for who may not list the bucket, as S3 does."""
    record = call.records.get("object", name_of(bucket, key))
    if record is None:
        call.authorize("s3:ListBucket", f"arn:{call.session.partition}:s3:::{bucket}")
        raise missing(bucket, key)
    return record


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
    call_session: Session,
    guard: Guard,
    commits: buckets.BucketCommits,
    request: Mapping[str, Any],
    body: Mapping[str, Any],
    further: Callable[[], Sequence[GuardedChange]] = tuple,
) -> Record:
    """Make `body` the content of the request's bucket and key, atomically with `further` changes.

    Raises what `buckets.adopt` raises, and Conflict or NotFound when the request's If-Match or If-None-Match fails.
    Label: writes at the session's label, making the bucket there when only a lower one exists.
    """
    records = guard.records(call_session, "s3")
    name = name_of(request["Bucket"], request["Key"])
    for _ in range(_ATTEMPTS):
        with commits.steady(call_session):
            buckets.adopt(records, request)
            seen = records.get("object", name)
            check_write_conditions(request, None if seen is None else seen.body["etag"])
            changes, blobs = _replace(records, seen, name, body)
            changes += further()
            try:
                stored = records.apply(changes)[0]
            except Conflict:
                continue
        for blob in blobs:
            guard.blobs(call_session).delete(blob)
        return stored
    raise Conflict(
        "A conflicting conditional operation is currently in progress against this resource. Try again.",
        code="OperationAborted",
    )


def _replace(
    records: GuardedRecords, seen: Record | None, name: str, body: Mapping[str, Any]
) -> tuple[list[GuardedChange], list[str]]:
    if seen is None or seen.label != records.session.label:
        return [Creation("object", name, body)], []
    layout, blobs = blobs_of(records, seen)
    return [Revision(seen, body), *([Removal(layout)] if layout else [])], blobs


def blobs_of(records: GuardedRecords, record: Record) -> tuple[Record | None, list[str]]:
    """The layout record of a multipart object, if it is one, and the ids of all its blobs."""
    if "layout" not in record.body:
        return None, [record.body["blob"]]
    layout = records.get("layout", record.body["layout"])
    return layout, [] if layout is None else [part["blob"] for part in layout.body["parts"]]


def remove(call: Call, commits: buckets.BucketCommits, bucket: str, key: str, check: Callable[[Record], None]) -> None:
    """Delete the visible object; a missing one is no error.

    Raises AccessDenied for an object below the session's label, and what `check` raises.
    """
    records = call.records
    for _ in range(_ATTEMPTS):
        record = records.get("object", name_of(bucket, key))
        if record is None:
            return
        check(record)
        if record.label != records.session.label:
            raise AccessDenied(
                f"{key!r} is at {record.label.banner} and this session is at {records.session.label.banner}: "
                f"sign in at {record.label.banner} to delete it"
            )
        layout, blobs = blobs_of(records, record)
        try:
            with commits.steady(call.session):
                records.apply([Removal(record), *([Removal(layout)] if layout else [])])
        except Conflict:
            continue
        for blob in blobs:
            call.blobs.delete(blob)
        return
    raise Conflict("A conflicting operation is in progress against this resource. Try again.", code="OperationAborted")


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
) -> tuple[Record, Iterator[bytes]]:
    """The visible object and its plain bytes in the extent (start, end), as one consistent state.

    `find` is asked again when the object was replaced between reading its record and opening its bytes.

    Raises:
        NotFound: what `find` raises.
        IntegrityFault: the record is stable and its bytes are missing.
    """
    records, blobs = guard.records(session, "s3"), guard.blobs(session)
    before: Record | None = None
    for _ in range(_ATTEMPTS):
        record = find()
        if before is not None and record.version == before.version and record.label == before.label:
            break
        start, end = extent(record)
        try:
            return record, blobs.join(_pieces(parts_of(records, record), start, end))
        except NotFound:
            before = record
    raise IntegrityFault("an object's stored bytes are missing; restore them from a backup")


def _pieces(parts: Sequence[Mapping[str, Any]], start: int, end: int) -> list[tuple[str, int, int]]:
    pieces: list[tuple[str, int, int]] = []
    offset = 0
    for part in parts:
        first, last = max(start, offset), min(end, offset + part["size"])
        if first < last:
            pieces.append((part["blob"], first - offset, last - first))
        offset += part["size"]
    return pieces
