"""ListObjectVersions: every version and delete marker that a session sees, by key, newest first.

Invariants:
- Only versions at or below the session's label are listed or counted. Of several visible versions "null" of a key the
  one at the session's own label is listed, else a maximal one; versions with ids are all listed.
- One version of a key is the latest: the one that a read without a version id finds, or the marker it meets.
- A page costs what it shows: a common prefix is skipped as a whole, and lists never read an object's layout.
- The markers state a place, not a record: what was deleted between two pages neither stops a list nor repeats it.

`walk` is also what lifecycle reads: a version's record was created when it stopped being the current one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import versions
from honmaru.services.s3.listing import LAST, PROBE, encoder, limit_of, owner_of
from honmaru.services.s3.object import modified, quoted
from honmaru.services.s3.requests import refuse_unwritten

_HEAD, _NULL, _OLDER = range(3)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a list: a version, or a common prefix (`record` None). `latest`: it is the key's current version."""

    key: str
    record: Record | None
    latest: bool = False


def walk(
    records: GuardedRecords,
    bucket: str,
    prefix: str = "",
    delimiter: str = "",
    after: str = "",
    version: str | None = None,
    page: int = 256,
) -> Iterator[Line]:
    """Every line behind a place, in order.

    Args:
        after, version: Behind all versions of this key; or, with a version id, behind that version of it.
    """
    if version is not None:
        yield from _rest_of(records, bucket, prefix, delimiter, after, version, page)
    done = after if delimiter and after.startswith(prefix) and after.endswith(delimiter) else None
    size = page
    while True:
        read = 0
        for key, rows in groupby(_rows(records, bucket, prefix, after, size), key=lambda row: row[0]):
            group = _group(key, prefix, delimiter)
            if group is None:
                yield from _lines(key, rows)
                after = key
                read += 1
                if read == size < page:
                    size = page  # plain keys after all: fetch them by the page again
                    break
                continue
            after = group + LAST
            if group != done:
                yield Line(group, None)
            done = group
            size = min(page, PROBE)
            break  # go on behind the whole group instead of reading through it
        else:
            return


_Row = tuple[str, int, Record]


def _rows(records: GuardedRecords, bucket: str, prefix: str, after: str, page: int) -> Iterator[_Row]:
    """(key, kind, record) of every visible record behind a key: heads, then versions "null", then those with ids."""
    head = f"{bucket}/"
    plain = {"prefix": head + prefix, "after": head + after}
    older = {"prefix": head + versions.escaped(prefix), "after": versions.behind(bucket, after) if after else ""}
    return heapq.merge(
        ((versions.key_of(record), _HEAD, record) for record in _instances(records, "object", plain, page)),
        ((versions.key_of(record), _NULL, record) for record in _instances(records, "null-version", plain, page)),
        ((versions.key_of(record), _OLDER, record) for record in _instances(records, "version", older, page)),
        key=lambda row: row[:2],
    )


def _instances(records: GuardedRecords, kind: str, where: Mapping[str, str], page: int) -> Iterator[Record]:
    return records.iterate_instances(kind, prefix=where["prefix"], after=where["after"], page=page)


def _group(key: str, prefix: str, delimiter: str) -> str | None:
    cut = key.find(delimiter, len(prefix)) if delimiter else -1
    return None if cut < 0 else key[: cut + len(delimiter)]


def _lines(key: str, rows: Iterator[_Row]) -> Iterator[Line]:
    """The versions of one key, from its rows (heads first, older ones already newest first)."""
    heads: list[Record] = []
    nulls: list[Record] = []
    first: list[_Row] = []
    for row in rows:
        if row[1] == _OLDER:
            first.append(row)
            break
        (heads if row[1] == _HEAD else nulls).append(row[2])
    latest = versions.seen(heads)
    null = versions.seen([head for head in heads if "version" not in head.body] + nulls)
    if latest is not None and "version" not in latest.body:
        null = latest
    near = [head for head in heads if "version" in head.body] + ([null] if null is not None else [])
    near.sort(key=_order)
    older = (record for chain in (first, rows) for _, _, record in chain)
    for record in heapq.merge(near, older, key=_order):
        yield Line(key, record, record is latest)


def _order(record: Record) -> str:
    return versions.order_of(record.body)


def _rest_of(
    records: GuardedRecords, bucket: str, prefix: str, delimiter: str, key: str, version: str, page: int
) -> Iterator[Line]:
    """The versions of a key behind one of them. A version "null" that has gone is taken as the newest."""
    if not key.startswith(prefix) or _group(key, prefix, delimiter) is not None:
        return
    name = f"{bucket}/{key}"
    place = version
    if version == versions.NULL:
        null = versions.find(records, bucket, key, version)
        place = "" if null is None else _order(null)
    rows: list[_Row] = [(key, _HEAD, record) for record in records.instances("object", name)]
    rows += [(key, _NULL, record) for record in records.instances("null-version", name)]
    older = records.iterate_instances(
        "version", prefix=versions.name_of(bucket, key), after=versions.name_of(bucket, key, place), page=page
    )
    for line in _lines(key, (row for chain in (rows, ((key, _OLDER, one) for one in older)) for row in chain)):
        if line.record is not None and _order(line.record) > place:
            yield line


def list_versions(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    """Label: shows what is at or below the session's label."""
    refuse_unwritten(request, ("OptionalObjectAttributes",))
    bucket = buckets.require(call.records, request)
    key_marker, version_marker = request.get("KeyMarker") or "", request.get("VersionIdMarker")
    if version_marker is not None and not key_marker:
        raise ValidationFault(
            "A version-id marker cannot be specified without a key marker.",
            code="InvalidArgument",
            members={"ArgumentName": "version-id-marker", "ArgumentValue": version_marker},
        )
    versions.check_id(version_marker or None)
    limit = limit_of(request)
    prefix, delimiter = request.get("Prefix") or "", request.get("Delimiter") or ""
    found = walk(call.records, bucket.name, prefix, delimiter, key_marker, version_marker or None, min(limit + 1, 256))
    lines = list(islice(found, limit + 1)) if limit else []
    shown, more = lines[:limit], len(lines) > limit
    encode = encoder(request)
    last = shown[-1] if more else None
    records = [line for line in shown if line.record is not None]
    return {
        "Name": bucket.name,
        "Prefix": encode(prefix),
        "Delimiter": encode(delimiter) or None,
        "KeyMarker": encode(key_marker),
        "VersionIdMarker": version_marker or "",
        "NextKeyMarker": encode(last.key) if last else None,
        "NextVersionIdMarker": versions.id_of(last.record.body) if last and last.record else None,
        "MaxKeys": limit,
        "IsTruncated": more,
        "EncodingType": request.get("EncodingType"),
        "Versions": [_version(call, line, encode) for line in records if line.record and not _marks(line)] or None,
        "DeleteMarkers": [_marker(call, line, encode) for line in records if _marks(line)] or None,
        "CommonPrefixes": [{"Prefix": encode(line.key)} for line in shown if line.record is None] or None,
    }


def _marks(line: Line) -> bool:
    return line.record is not None and versions.is_marker(line.record)


def _marker(call: Call, line: Line, encode: Any) -> dict[str, Any]:
    record = line.record
    if record is None:
        raise ValueError("a common prefix is no version")
    return {
        "Key": encode(line.key),
        "VersionId": versions.id_of(record.body),
        "IsLatest": line.latest,
        "LastModified": modified(record),
        "Owner": owner_of(call),
    }


def _version(call: Call, line: Line, encode: Any) -> dict[str, Any]:
    shown = _marker(call, line, encode)
    body: Mapping[str, Any] = line.record.body if line.record else {}
    return {
        **shown,
        "ETag": quoted(body["etag"]),
        "ChecksumAlgorithm": [body["checksum"]["algorithm"]],
        "ChecksumType": body["checksum"]["type"],
        "Size": body["size"],
        "StorageClass": body.get("class", "STANDARD"),
    }
