"""Buckets: their names, life and the settings whose answers are true of every honmaru bucket.

Invariants:
- A bucket is a record at a label. Who writes into a bucket whose visible record is lower makes a record of the same
  name at the session's label first (`adopt`), so deleting the lower one neither loses nor reveals higher objects.
- Deleting a bucket counts only objects at or below the session's label.
- An object's or upload's commit holds only while the bucket of its label is there, a bucket's deletion only while
  neither is: conditions of the store, so they hold over all processes. Locks here only spare writers of a key retries.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from honmaru.core.errors import AccessDenied, Conflict, NotFound, NotImplementedYet, ValidationFault
from honmaru.core.sessions import Session
from honmaru.ports.keys import Keys
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedChange, GuardedRecords, NoneLeft, Record, Removal
from honmaru.services.s3 import retention, versions
from honmaru.services.s3.events import ObjectEvents
from honmaru.services.s3.requests import canonical_id, conflicting, refuse_unwritten

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
_LIMIT = 10_000
_ATTEMPTS = 16
_TURNS = 256


class BucketCommits:
    """What all that changes objects shares: the listeners that are asked about every change, and turns for one key."""

    def __init__(self, keys: Keys[Call] | None = None) -> None:
        self.events = ObjectEvents()
        self.keys = keys
        """The key service, for SSE-KMS; without it such requests are refused."""
        self._locks = [threading.Lock() for _ in range(_TURNS)]

    def turn(self, session: Session, name: str) -> threading.Lock:
        """To be held while a key is changed: writers of one key at one label come one after the other, so none of them
        runs out of attempts. Others are hardly ever slowed."""
        return self._locks[hash((session.account, session.label.canonical, name)) % _TURNS]


def check_name(name: str) -> None:
    """Raises ValidationFault (InvalidBucketName) for a name that S3's naming rules forbid."""
    bad = (
        not _NAME.fullmatch(name)
        or ".." in name
        or ".-" in name
        or "-." in name
        or _ADDRESS.fullmatch(name)
        or name.startswith(_PREFIXES)
        or name.endswith(_SUFFIXES)
    )
    if bad:
        raise ValidationFault(
            "The specified bucket is not valid.", code="InvalidBucketName", members={"BucketName": name}
        )


def require(records: GuardedRecords, request: Mapping[str, Any]) -> Record:
    """The visible bucket that a request names. Raises NotFound (NoSuchBucket) or AccessDenied (another owner)."""
    name = request["Bucket"]
    record = records.get("bucket", name)
    if record is None:
        raise NotFound("The specified bucket does not exist", code="NoSuchBucket", members={"BucketName": name})
    owner = request.get("ExpectedBucketOwner")
    if owner is not None and owner != records.session.account:
        raise AccessDenied("Access Denied")
    return record


def adopt(records: GuardedRecords, request: Mapping[str, Any]) -> Record:
    """The bucket at the session's label, made from the visible lower one when needed. Raises as `require`."""
    record = require(records, request)
    if record.label == records.session.label:
        return record
    try:
        return records.create("bucket", record.name, {**record.body, "tags": {}})
    except Conflict:
        return require(records, request)


def create(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unwritten(request, ("BucketNamespace",))
    if request.get("ObjectOwnership", "BucketOwnerEnforced") != "BucketOwnerEnforced":
        raise NotImplementedYet(
            f"ObjectOwnership {request['ObjectOwnership']} would enable access control lists, which honmaru does not "
            "implement; use BucketOwnerEnforced and bucket policies",
            code="NotImplemented",
        )
    name = request["Bucket"]
    check_name(name)
    configuration = request.get("CreateBucketConfiguration") or {}
    place = configuration.get("LocationConstraint")
    if place is not None and place != call.session.region:
        raise ValidationFault(
            f"The {place} location constraint is incompatible for the region specific endpoint this request was "
            "sent to.",
            code="IllegalLocationConstraintException",
        )
    refuse_unwritten(configuration, ("Location", "Bucket"))
    records = call.records
    seen = call.sight().get("bucket", name)
    if seen is not None and seen.account != call.session.account:
        raise Conflict(
            "The requested bucket name is not available. The bucket namespace is shared by all users of the system. "
            "Please select a different name and try again.",
            code="BucketAlreadyExists",
            members={"BucketName": name},
        )
    if records.get("bucket", name) is None:
        tags = {tag["Key"]: tag["Value"] for tag in configuration.get("Tags") or ()}
        body = {"created": call.now.isoformat(), "region": call.session.region, "tags": tags}
        if request.get("ObjectLockEnabledForBucket"):
            arn = f"arn:{call.session.partition}:s3:::{name}"
            call.authorize("s3:PutBucketVersioning", arn)
            call.authorize("s3:PutBucketObjectLockConfiguration", arn)
            body |= {"versioning": versions.ENABLED, "lock": {}}
        try:
            records.create("bucket", name, body)
        except Conflict:
            raise _owned(name) from None
    else:
        raise _owned(name)
    return {"Location": f"/{name}", "BucketArn": f"arn:{call.session.partition}:s3:::{name}"}


def _owned(name: str) -> Conflict:
    return Conflict(
        "Your previous request to create the named bucket succeeded and you already own it.",
        code="BucketAlreadyOwnedByYou",
        members={"BucketName": name},
    )


def delete(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    records = call.records
    for _ in range(_ATTEMPTS):
        record = require(records, request)
        inside = f"{record.name}/"
        if records.list("object", prefix=inside, limit=1):
            raise Conflict(
                "The bucket you tried to delete is not empty. You must delete all versions in the bucket."
                if versions.status_of(record)
                else "The bucket you tried to delete is not empty",
                code="BucketNotEmpty",
                members={"BucketName": record.name},
            )
        keys = records.iterate_instances("bucket-key", prefix=inside)
        changes: list[GuardedChange] = [Removal(record), *(Removal(key) for key in keys if key.label == record.label)]
        conditions = [NoneLeft("object", inside), NoneLeft("upload", inside)]
        blobs: list[str] = []
        for upload in records.iterate("upload", prefix=inside):
            if upload.label != record.label:
                continue
            changes.append(Removal(upload))
            conditions.append(NoneLeft("part", f"{upload.body['id']}/"))
            for part in records.iterate("part", prefix=f"{upload.body['id']}/"):
                changes.append(Removal(part))
                blobs.append(part.body["blob"])
        try:
            records.apply(changes, conditions)
        except Conflict:
            continue
        for blob in blobs:
            call.blobs.delete(blob)
        return {}
    raise conflicting()


def head(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    record = require(call.records, request)
    return {
        "BucketRegion": record.body["region"],
        "AccessPointAlias": False,
        "BucketArn": f"arn:{call.session.partition}:s3:::{record.name}",
    }


def location(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"LocationConstraint": require(call.records, request).body["region"]}


def list_all(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    limit = request.get("MaxBuckets") or _LIMIT
    prefix = request.get("Prefix") or ""
    region = request.get("BucketRegion")
    found = call.records.list("bucket", prefix=prefix, after=request.get("ContinuationToken") or "", limit=limit + 1)
    shown = [record for record in found[:limit] if region is None or record.body["region"] == region]
    return {
        "Buckets": [
            {
                "Name": record.name,
                "CreationDate": datetime.fromisoformat(record.body["created"]),
                "BucketRegion": record.body["region"],
            }
            for record in shown
        ],
        "Owner": {"ID": canonical_id(call.session)},
        "Prefix": request.get("Prefix"),
        "ContinuationToken": found[limit - 1].name if len(found) > limit else None,
    }


def get_versioning(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"Status": versions.status_of(require(call.records, request))}


def put_versioning(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unwritten(request)
    _change(call, request, lambda bucket: versions.with_status(request, bucket))
    return {}


def get_lock(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    return retention.get_configuration(require(call.records, request))


def put_lock(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    refuse_unwritten(request, ("Token",))
    _change(call, request, lambda bucket: retention.with_configuration(request, bucket))
    return {}


def _change(call: Call, request: Mapping[str, Any], changed: Callable[[Record], Mapping[str, Any]]) -> None:
    """Replace the bucket's body by compare-and-swap. Raises AccessDenied for a bucket below the session's label."""
    for _ in range(_ATTEMPTS):
        bucket = require(call.records, request)
        try:
            call.records.update(bucket, changed(bucket))
        except Conflict as fault:
            if fault.code is not None:
                raise
            continue
        return
    raise conflicting()


# Settings that no honmaru bucket can have otherwise; their Put operations are not written and answer 501.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "GetBucketLogging": {},
    "GetBucketAccelerateConfiguration": {},
    "GetBucketRequestPayment": {"Payer": "BucketOwner"},
}
_ABSENT: Mapping[str, tuple[str, str]] = {
    "GetBucketWebsite": (
        "NoSuchWebsiteConfiguration",
        "The specified bucket does not have a website configuration",
    ),
    "GetBucketReplication": (
        "ReplicationConfigurationNotFoundError",
        "The replication configuration was not found",
    ),
}


def setting(call: Call, request: Mapping[str, Any], operation: str) -> Mapping[str, Any]:
    """The answer to a read of a setting: the only value it can have, or that it does not exist."""
    record = require(call.records, request)
    if operation in _FIXED:
        return _FIXED[operation]
    code, message = _ABSENT[operation]
    raise NotFound(message, code=code, members={"BucketName": record.name})
