"""Settings of a bucket: kept in the bucket's own record, one value a name, each file beside this one checks its own.

Invariants:
- A setting belongs to one instance of a bucket, at that instance's label: a session above reads it, and only a session
  at exactly that label changes it. Who writes into a lower bucket gets an instance that begins with its settings
  (`bucket.adopt`); from then on the two are apart.
- A change is a compare-and-swap of the bucket's record, durable on return: two writers leave one setting whole.
- Values are JSON; what a setting means is decided where it is enforced, from the same value that its Get shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import Conflict, NotFound
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.s3 import bucket as buckets

_ATTEMPTS = 16
_MISSING: Mapping[str, tuple[str, str]] = {
    # setting: the code and words of S3 where a bucket has none
    "policy": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "public_access": (
        "NoSuchPublicAccessBlockConfiguration",
        "The public access block configuration was not found",
    ),
    "ownership": ("OwnershipControlsNotFoundError", "The bucket ownership controls were not found"),
    "cors": ("NoSuchCORSConfiguration", "The CORS configuration does not exist"),
    "lifecycle": ("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
}


def stored(bucket: Record, name: str) -> Any:
    """The value of a setting of a bucket; None when it was never put, False when it was deleted from its default."""
    return (bucket.body.get("settings") or {}).get(name)


def required(call: Call, request: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value that a Get answers. Raises NotFound in the words that S3 has for this setting."""
    bucket = buckets.require(call.records, request)
    value = stored(bucket, name)
    if value is None:
        value = default
    if value is None or value is False:
        code, message = _MISSING[name]
        raise NotFound(message, code=code, members={"BucketName": bucket.name})
    return value


def keep(call: Call, request: Mapping[str, Any], name: str, value: Any) -> None:
    """Replace a setting; None removes it. Raises NotFound (bucket) or AccessDenied (the bucket is at a lower label)."""
    for _ in range(_ATTEMPTS):
        bucket = buckets.require(call.records, request)
        settings = dict(bucket.body.get("settings") or {})
        if value is None:
            settings.pop(name, None)
        else:
            settings[name] = value
        try:
            call.records.update(bucket, {**bucket.body, "settings": settings})
        except Conflict:
            continue
        return
    raise Conflict(
        "A conflicting conditional operation is currently in progress against this resource. Try again.",
        code="OperationAborted",
    )
