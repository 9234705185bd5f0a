"""Versions of a key: where they are kept, their ids, and what becomes of one that is displaced or deleted.

Records, each at the label of the session that wrote the version:
- kind "object", named `bucket/key`: the head, the current version of a key at a label. Its state is "" for an object
  and MARKER for a delete marker, so that lists of objects pass markers by.
- kind "version", named `bucket/escaped key`, SEPARATOR, version id: a version with an id that is no longer current.
- kind "null-version", named `bucket/key`: the version "null" (written before versioning was enabled, or while it was
  suspended) once it is no longer current.
A bucket that never had versioning has heads only, and its records are what they were before versioning existed.

Invariants:
- Each label has a stack of versions of its own: writing or deleting at a label never moves what lies at another.
- A stack that has a version has a head, and the head is its newest version.
- Version ids sort newest first within a stack, whatever the clock does, and are unique within a key at all labels.
- Version records sort by (key, newest first): a key's own come before those of every longer key.
- A version that is displaced keeps its body as it is: blobs, checksums, tags, retention.

Source: Amazon S3 User Guide, "How S3 Versioning works", "Working with delete markers".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from honmaru.core.errors import NotImplementedYet, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Creation, GuardedChange, GuardedRecords, Record, Removal, Revision
from honmaru.services.s3 import retention

MARKER = "marker"
NULL = "null"
ENABLED = "Enabled"
SUSPENDED = "Suspended"
_SEPARATOR = "\x01\x01"
_LAST = "\U0010ffff"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST = (1 << 56) - 1
_DIGITS = 14
_ID_LENGTH = 32


def status_of(bucket: Record) -> str | None:
    """ "Enabled", "Suspended", or None for a bucket that never had versioning."""
    status: str | None = bucket.body.get("versioning")
    return status


def with_status(request: Mapping[str, Any], bucket: Record) -> dict[str, Any]:
    """The bucket's body after a PutBucketVersioning. Raises ValidationFault, Conflict (InvalidBucketState)."""
    configuration = request.get("VersioningConfiguration") or {}
    status = configuration.get("Status")
    if configuration.get("MFADelete") == ENABLED:
        raise NotImplementedYet("MFADelete is not implemented by honmaru", code="NotImplemented")
    if status not in (ENABLED, SUSPENDED):
        raise ValidationFault(
            "The Versioning element must be specified", code="IllegalVersioningConfigurationException"
        )
    if status == SUSPENDED:
        retention.check_versioning_may_stop(bucket)
    return {**bucket.body, "versioning": status}


# Names and ids


def name_of(bucket: str, key: str, version_id: str = "") -> str:
    """The name of a version's record; without an id, the beginning of the names of all versions of the key."""
    return f"{bucket}/{escaped(key)}{_SEPARATOR}{version_id}"


def key_of(record: Record) -> str:
    """The key that a record of any of the three kinds is about."""
    path = record.name.partition("/")[2]
    if record.kind != "version":
        return path
    return path.rpartition(_SEPARATOR)[0].replace("\x01\x02", "\x01")


def escaped(key: str) -> str:
    """The key in version names: it keeps order and prefixes, and never holds the separator."""
    return key.replace("\x01", "\x01\x02")


def behind(bucket: str, key: str) -> str:
    """A name behind every version of the key and before those of every later key."""
    return name_of(bucket, key, _LAST)


def id_of(body: Mapping[str, Any]) -> str:
    """A version's id as clients see it."""
    return str(body.get("version", NULL))


def order_of(body: Mapping[str, Any]) -> str:
    """What versions of one key are sorted by, newest first: the id, or for "null" what the id would have been."""
    order = body.get("version") or body.get("order")
    return str(order) if order else _inverted(_micros(datetime.fromisoformat(body["modified"])))


def check_id(version_id: str | None) -> None:
    """Raises ValidationFault (InvalidArgument) for what cannot be a version id."""
    if version_id is None or version_id == NULL:
        return
    if len(version_id) != _ID_LENGTH or not version_id.isascii() or not version_id.isalnum():
        raise ValidationFault(
            "Invalid version id specified",
            code="InvalidArgument",
            members={"ArgumentName": "versionId", "ArgumentValue": version_id},
        )


def is_marker(record: Record) -> bool:
    return record.state == MARKER


def stamp(call: Call, status: str | None, name: str, head: Record | None) -> dict[str, str]:
    """Members of the body of a new version: its id, or its place in the order where it is the version "null".

    Args:
        head: The present head at the session's label; the new version sorts before it.
    """
    if status is None:
        return {}
    micros = _micros(call.now)
    if head is not None:
        micros = max(micros, _NEWEST - int(order_of(head.body)[:_DIGITS], 16) + 1)
    unique = hashlib.sha256(f"{call.request_id}/{call.session.label.canonical}/{name}/{micros}".encode()).hexdigest()
    order = (_inverted(micros) + unique)[:_ID_LENGTH]
    return {"version": order} if status == ENABLED else {"order": order}


def _inverted(micros: int) -> str:
    return f"{_NEWEST - micros:0{_DIGITS}x}"


def _micros(at: datetime) -> int:
    delta = at - _EPOCH
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


# Finding


def find(records: GuardedRecords, bucket: str, key: str, version_id: str | None = None) -> Record | None:
    """The current version that the session sees (an object or a delete marker), or the one with the id; else None.

    Label: reads at or below the session's label. Ids of lower versions stay valid for a session that has an instance
    of its own; of several visible versions "null" it is the one at its own label, else a maximal one.
    """
    name = f"{bucket}/{key}"
    if version_id is None:
        return records.get("object", name)
    for _ in range(2):  # a version may move to the head between the two reads, never out of sight
        heads = [head for head in records.instances("object", name) if id_of(head.body) == version_id]
        if version_id == NULL:
            heads += records.instances("null-version", name)
        found = seen(heads) or (
            None if version_id == NULL else records.get("version", name_of(bucket, key, version_id))
        )
        if found is not None:
            return found
    return None


def seen(instances: Iterable[Record]) -> Record | None:
    """Which of several visible instances a session sees: the one at its own label, else a maximal one."""
    best: Record | None = None
    for record in sorted(instances, key=lambda record: record.label.canonical):
        if best is None or record.label.dominates(best.label):
            best = record
    return best


# Changing


def blobs_of(records: GuardedRecords, record: Record) -> tuple[Record | None, list[str]]:
    """The layout record of a multipart object, if it is one, and the ids of all its blobs; a marker has none."""
    if "layout" not in record.body:
        return None, [record.body["blob"]] if "blob" in record.body else []
    layout = records.get("layout", record.body["layout"])
    return layout, [] if layout is None else [part["blob"] for part in layout.body["parts"]]


def succession(
    records: GuardedRecords, bucket: Record, name: str, head: Record | None, body: Mapping[str, Any], state: str = ""
) -> tuple[list[GuardedChange], list[str]]:
    """The changes that make `body` the head of a key at the session's label, and the blobs that nothing names then.

    Args:
        bucket: The bucket at the session's label.
        head: The present head at the session's label.
    """
    if head is None:
        return [Creation("object", name, body, state)], []
    changes: list[GuardedChange] = [Revision(head, body, state)]
    doomed: list[Record] = []
    if "version" in head.body:
        key = key_of(head)
        changes.append(Creation("version", name_of(bucket.name, key, head.body["version"]), head.body, head.state))
        if "version" not in body:
            doomed += [old for old in records.instances("null-version", name) if old.label == head.label]
            changes += [Removal(old) for old in doomed]
    elif status_of(bucket) == ENABLED:
        changes.append(Creation("null-version", name, head.body, head.state))
    else:
        doomed.append(head)
    blobs: list[str] = []
    for record in doomed:
        retention.check_removable(record)
        layout, freed = blobs_of(records, record)
        changes += [Removal(layout)] if layout else []
        blobs += freed
    return changes, blobs


def removal(records: GuardedRecords, bucket: str, record: Record) -> tuple[list[GuardedChange], list[str]]:
    """The changes that delete one version for good, and its blobs; the next older version becomes the head."""
    layout, blobs = blobs_of(records, record)
    changes: list[GuardedChange] = [Removal(layout)] if layout else []
    heir = _newest_older(records, bucket, record) if record.kind == "object" else None
    if heir is None:
        return [Removal(record), *changes], blobs
    return [Revision(record, heir.body, heir.state), Removal(heir), *changes], blobs


def _newest_older(records: GuardedRecords, bucket: str, head: Record) -> Record | None:
    """The newest version behind the head, at the head's label."""
    key = key_of(head)
    found: list[Record] = [old for old in records.instances("null-version", head.name) if old.label == head.label]
    for version in records.iterate_instances("version", prefix=name_of(bucket, key), page=8):
        if version.label == head.label:
            found.append(version)
            break
    return min(found, key=lambda record: order_of(record.body), default=None)


def shown(bucket: Record, record: Record) -> str | None:
    """The id that an answer about a version states; None in a bucket where versioning was never enabled."""
    return id_of(record.body) if "version" in record.body or status_of(bucket) is not None else None
