"""Retention and legal holds of one version, put and got. What they mean is in `retention`.

Setting either is writing: only at the version's own label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from honmaru.core.errors import Conflict
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import contents, retention, versions
from honmaru.services.s3.requests import check_key, conflicting, refuse_unwritten

_ATTEMPTS = 16


def get_retention(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return retention.get_retention(*_version(call, request))


def put_retention(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Raises AccessDenied when the present retention forbids it, or the version is below the session's label."""
    return _change(call, request, lambda bucket, version: retention.set_retention(call, request, bucket, version))


def get_hold(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return retention.get_hold(*_version(call, request))


def put_hold(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Raises AccessDenied for a version below the session's label."""
    return _change(call, request, lambda bucket, version: retention.set_hold(request, bucket, version))


def _version(call: Call, request: Mapping[str, Any]) -> tuple[Record, Record]:
    """(bucket, version) that a request names."""
    refuse_unwritten(request)
    check_key(request["Key"])
    versions.check_id(request.get("VersionId"))
    bucket = buckets.require(call.records, request)
    return bucket, contents.require(call, request["Bucket"], request["Key"], request.get("VersionId"))


def _change(
    call: Call, request: Mapping[str, Any], changed: Callable[[Record, Record], Mapping[str, Any]]
) -> dict[str, Any]:
    for _ in range(_ATTEMPTS):
        bucket, version = _version(call, request)
        try:
            call.records.update(version, changed(bucket, version))
        except Conflict:
            continue
        return {}
    raise conflicting()
