"""Tags of objects and buckets. Writing tags is writing: only at the session's own label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound
from honmaru.security.calls import Call
from honmaru.security.guard import Record, Revision
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import contents, versions
from honmaru.services.s3.events import ObjectEvent
from honmaru.services.s3.requests import check_key, conflicting, refuse_unwritten, set_tags

_ATTEMPTS = 16


def get_object(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    bucket, record = _object(call, request)
    return {"TagSet": _tag_set(record), "VersionId": versions.shown(bucket, record)}


def put_object(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    return _change_object(call, request, commits, set_tags(request, call.session, 10), "ObjectTagging:Put")


def delete_object(call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits) -> dict[str, Any]:
    return _change_object(call, request, commits, {}, "ObjectTagging:Delete")


def get_bucket(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = buckets.require(call.records, request)
    if not record.body["tags"]:
        raise NotFound("The TagSet does not exist", code="NoSuchTagSet", members={"BucketName": record.name})
    return {"TagSet": _tag_set(record)}


def put_bucket(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    tags = set_tags(request, call.session, 50)
    _change_bucket(call, request, tags)
    return {}


def delete_bucket(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    _change_bucket(call, request, {})
    return {}


def _object(call: Call, request: Mapping[str, Any]) -> tuple[Record, Record]:
    """(bucket, version) that a request names."""
    refuse_unwritten(request)
    check_key(request["Key"])
    versions.check_id(request.get("VersionId"))
    bucket = buckets.require(call.records, request)
    return bucket, contents.require(call, request["Bucket"], request["Key"], request.get("VersionId"))


def _change_object(
    call: Call, request: Mapping[str, Any], commits: buckets.BucketCommits, tags: Mapping[str, str], what: str
) -> dict[str, Any]:
    """Replace a version's tags by compare-and-swap. Raises AccessDenied for one below the session's label."""
    for _ in range(_ATTEMPTS):
        bucket, record = _object(call, request)
        version, body = versions.shown(bucket, record), record.body
        event = ObjectEvent(what, bucket, request["Key"], version, body["size"], body["etag"], versions.order_of(body))
        changes = [Revision(record, {**body, "tags": dict(tags)}), *commits.events.changes(call, event)]
        try:
            call.records.apply(changes)
        except Conflict:
            continue
        return {"VersionId": version}
    raise conflicting()


def _change_bucket(call: Call, request: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Replace a bucket's tags by compare-and-swap. Raises AccessDenied for one below the session's label."""
    for _ in range(_ATTEMPTS):
        record = buckets.require(call.records, request)
        try:
            call.records.update(record, {**record.body, "tags": dict(tags)})
        except Conflict:
            continue
        return
    raise conflicting()


def _tag_set(record: Record) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in record.body["tags"].items()]
