"""ListObjects and ListObjectsV2.

Invariants:
- Keys come in UTF-8 byte order, which is code-point order; a common prefix counts as one entry at its place.
- A page token states where to go on, nothing else; it is opaque to clients and checked when it comes back.
- Only what the session may see is listed or counted.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import quote

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import GuardedRecords, Record
from honmaru.services.s3 import bucket as buckets
from honmaru.services.s3 import versions
from honmaru.services.s3.object import modified, quoted
from honmaru.services.s3.requests import canonical_id, refuse_unwritten

_PAGE = 1000
LAST = "\U0010ffff"
_TOKEN = b"1:"
PROBE = 4
"""How many keys are fetched behind a group: mostly there is another group, of which one key is enough."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list: a common prefix (`record` None) or an object. `after` is where the list goes on."""

    text: str
    record: Record | None
    after: str


def walk(records: GuardedRecords, bucket: str, prefix: str, delimiter: str, after: str, page: int) -> Iterator[Entry]:
    """Every entry greater than `after`, in order. A group that ended at `after` exactly is not listed again.

    Groups are found by looking for the first key behind the one before, never by reading through them; so a page of
    groups costs as many looks as it has groups, however many keys they hold.
    """
    head = f"{bucket}/"
    done = after if delimiter and after.startswith(prefix) and after.endswith(delimiter) else None
    size = page
    while True:
        read = 0
        for record in records.iterate("object", prefix=head + prefix, after=head + after, state="", page=size):
            key = record.name[len(head) :]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                yield Entry(key, record, key)
                after = key
                read += 1
                if read == size < page:
                    size = page  # plain keys after all: fetch them by the page again
                    break
                continue
            group = key[: cut + len(delimiter)]
            after = group + LAST
            if group != done:
                yield Entry(group, None, after)
            done = group
            size = min(page, PROBE)
            break  # go on behind the whole group instead of reading through it
        else:
            return


def list_v2(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    after = request.get("StartAfter") or ""
    token = request.get("ContinuationToken")
    if token is not None:
        after = _opened(token)
    entries, more = _page(call, request, after)
    encode = encoder(request)
    return {
        **_common(call, request, entries, owners=bool(request.get("FetchOwner"))),
        "IsTruncated": more,
        "KeyCount": len(entries),
        "ContinuationToken": token,
        "NextContinuationToken": _token(entries[-1].after) if more else None,
        "StartAfter": encode(request.get("StartAfter")),
    }


def list_v1(call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
    marker = request.get("Marker") or ""
    entries, more = _page(call, request, marker)
    encode = encoder(request)
    return {
        **_common(call, request, entries, owners=True),
        "IsTruncated": more,
        "Marker": encode(marker),
        # S3 states the marker only beside a delimiter; without one the last key is the marker.
        "NextMarker": encode(entries[-1].text) if more and request.get("Delimiter") else None,
    }


def _page(call: Call, request: Mapping[str, Any], after: str) -> tuple[list[Entry], bool]:
    refuse_unwritten(request, ("OptionalObjectAttributes",))
    buckets.require(call.records, request)
    limit = limit_of(request)
    if limit == 0:
        return [], False
    found = walk(
        call.records,
        request["Bucket"],
        request.get("Prefix") or "",
        request.get("Delimiter") or "",
        after,
        min(limit + 1, 256),
    )
    entries = list(islice(found, limit + 1))
    return entries[:limit], len(entries) > limit


def limit_of(request: Mapping[str, Any]) -> int:
    """How many entries a page may have. Raises ValidationFault for a negative MaxKeys."""
    limit = request.get("MaxKeys")
    if limit is not None and limit < 0:
        raise ValidationFault("Argument maxKeys must be an integer between 0 and 2147483647", code="InvalidArgument")
    return _PAGE if limit is None else min(limit, _PAGE)


def _common(call: Call, request: Mapping[str, Any], entries: list[Entry], *, owners: bool) -> dict[str, Any]:
    encode = encoder(request)
    contents_ = [_shown(call, entry.record, encode, owners) for entry in entries if entry.record is not None]
    groups = [{"Prefix": encode(entry.text)} for entry in entries if entry.record is None]
    return {
        "Name": request["Bucket"],
        "Prefix": encode(request.get("Prefix") or ""),
        "Delimiter": encode(request.get("Delimiter")),
        "MaxKeys": limit_of(request),
        "EncodingType": request.get("EncodingType"),
        "Contents": contents_ or None,
        "CommonPrefixes": groups or None,
    }


def _shown(call: Call, record: Record, encode: Any, owners: bool) -> dict[str, Any]:
    shown = {
        "Key": encode(versions.key_of(record)),
        "LastModified": modified(record),
        "ETag": quoted(record.body["etag"]),
        "ChecksumAlgorithm": [record.body["checksum"]["algorithm"]],
        "ChecksumType": record.body["checksum"]["type"],
        "Size": record.body["size"],
        "StorageClass": record.body.get("class", "STANDARD"),
    }
    if owners:
        shown["Owner"] = owner_of(call)
    return shown


def owner_of(call: Call) -> dict[str, str]:
    """Who owns every object of the bucket: with BucketOwnerEnforced, the bucket's owner."""
    return {"ID": canonical_id(call.acting)}


def encoder(request: Mapping[str, Any]) -> Any:
    """Writes keys as the request's EncodingType wants them; empty texts stay as they are."""

    def encode(text: str | None) -> str | None:
        return quote(text, safe="/") if text and request.get("EncodingType") == "url" else text

    return encode


def _token(after: str) -> str:
    return base64.urlsafe_b64encode(_TOKEN + after.encode()).decode()


def _opened(token: str) -> str:
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
        if raw.startswith(_TOKEN):
            return raw.removeprefix(_TOKEN).decode()
    except (binascii.Error, ValueError):
        pass
    raise ValidationFault("The continuation token provided is incorrect", code="InvalidArgument")
