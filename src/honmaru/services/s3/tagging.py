"""Tags of objects and buckets. Writing tags is writing: only at the session's own label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import contents
from honmaru.services.s3.requests import check_key, refuse_unwritten, set_tags

_ATTEMPTS = 16


def get_object(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"TagSet": _tag_set(_object(call, request))}


def put_object(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    tags = set_tags(request, call.session, 10)
    _change(call, request, tags, of_object=True)
    return {}


def delete_object(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    _change(call, request, {}, of_object=True)
    return {}


def get_bucket(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = buckets.require(call.records, request)
    if not record.body["tags"]:
        raise NotFound("The TagSet does not exist", code="NoSuchTagSet", members={"BucketName": record.name})
    return {"TagSet": _tag_set(record)}


def put_bucket(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    tags = set_tags(request, call.session, 50)
    _change(call, request, tags, of_object=False)
    return {}


def delete_bucket(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    _change(call, request, {}, of_object=False)
    return {}


def _object(call: Call, request: Mapping[str, Any]) -> Record:
    refuse_unwritten(request)
    check_key(request["Key"])
    buckets.require(call.records, request)
    return contents.require(call, request["Bucket"], request["Key"])


def _change(call: Call, request: Mapping[str, Any], tags: Mapping[str, str], *, of_object: bool) -> None:
    """Replace the tags by compare-and-swap. Raises AccessDenied for a record below the session's label."""
    for _ in range(_ATTEMPTS):
        record = _object(call, request) if of_object else buckets.require(call.records, request)
        try:
            call.records.update(record, {**record.body, "tags": dict(tags)})
        except Conflict:
            continue
        return
    raise Conflict("A conflicting operation is in progress against this resource. Try again.", code="OperationAborted")


def _tag_set(record: Record) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in record.body["tags"].items()]
