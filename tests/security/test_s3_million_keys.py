"""Lists over 10^6 keys and 10^6 versions: a page costs the same wherever it begins, and groups are not read through.

Rows are laid straight into the store, sealed as the guard seals them, at two labels; 10^6 with HONMARU_LONG=1, few by
default. `pytest -s` shows the figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from botocore import xform_name

from honmaru.ports.records import Create
from honmaru.services.s3 import versions
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import ACCOUNT, Keep, quick_directory, session

COUNT = 1_000_000 if os.environ.get("HONMARU_LONG") == "1" else 6_000
FOLDERS = 2000 if os.environ.get("HONMARU_LONG") == "1" else 1200
LOW, HIGH = session("UNCLASSIFIED"), session("SECRET")
BODY = {
    "etag": "0" * 32,
    "size": 1,
    "modified": "2030-01-01T00:00:00+00:00",
    "type": "binary/octet-stream",
    "headers": {},
    "metadata": {},
    "checksum": {"algorithm": "CRC64NVME", "value": "AAAAAAAAAAA=", "type": "FULL_OBJECT"},
    "blob": "blob-0123456789abcdef-0123456789abcdef0123456789abcdef",
    "tags": {},
}


def key_of(number: int) -> str:
    return f"folder-{number % FOLDERS:06}/{number:09}"


def row(keep: Keep, kind: str, name: str, body: dict[str, Any], label: str) -> Create:
    identity = [ACCOUNT, "s3", kind, name, label, "", 1]
    sealed = keep.keyring.seal(ACCOUNT, label, orjson.dumps(body), orjson.dumps(identity))
    return Create(ACCOUNT, "s3", kind, name, label, sealed, "", keep.clock.now())


def rows(keep: Keep) -> Iterator[Create]:
    """Half of COUNT keys with one older version each: every tenth at the higher label; and one key with 10 % more."""
    labels = (LOW.label.canonical, HIGH.label.canonical)
    for number in range(COUNT // 2):
        label = labels[number % 10 == 0]
        current, older = (f"{index:014x}{number:018x}" for index in (1, 2))
        yield row(keep, "object", f"many/{key_of(number)}", {**BODY, "version": current}, label)
        name = versions.name_of("many", key_of(number), older)
        yield row(keep, "version", name, {**BODY, "version": older}, label)
    yield row(keep, "object", "many/zzz", {**BODY, "version": "0" * 32}, labels[0])
    for number in range(COUNT // 10):
        older = f"{number + 1:032x}"
        yield row(keep, "version", versions.name_of("many", "zzz", older), {**BODY, "version": older}, labels[0])


@pytest.fixture(scope="module")
def keep() -> Iterator[Keep]:
    with quick_directory() as directory:
        made = Keep(directory)
        S3(made.ids, BucketCommits()).create_bucket(made.call(LOW, "CreateBucket"), {"Bucket": "many"})
        batch: list[Create] = []
        for one in rows(made):
            batch.append(one)
            if len(batch) == 5000:
                made.store.apply(batch)
                batch = []
        made.store.apply(batch)
        yield made
        made.close()


def timed(keep: Keep, operation: str, **request: Any) -> tuple[float, dict[str, Any]]:
    """(the least of five times in ms, the answer)."""
    s3 = S3(keep.ids, BucketCommits())
    least, answer = float("inf"), {}
    for _ in range(5):
        began = time.perf_counter()
        answer = dict(getattr(s3, xform_name(operation))(keep.call(HIGH, operation), {"Bucket": "many", **request}))
        least = min(least, time.perf_counter() - began)
    return 1000 * least, answer


PLACES = {"start": "", "middle": f"folder-{FOLDERS // 2:06}/", "end": f"folder-{FOLDERS - 5:06}/"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_page_costs_the_same_everywhere(keep: Keep) -> None:
    figures: dict[str, float] = {}
    for name, after in PLACES.items():
        figures[f"keys {name}"], page = timed(keep, "ListObjectsV2", StartAfter=after, MaxKeys=1000)
        assert page["KeyCount"] == min(1000, page["KeyCount"]) > 0
        figures[f"versions {name}"], page = timed(keep, "ListObjectVersions", KeyMarker=after, MaxKeys=1000)
        assert len(page["Versions"]) == 1000 or name == "end"
    figures["folders"], page = timed(keep, "ListObjectsV2", Delimiter="/", MaxKeys=1000)
    assert len(page["CommonPrefixes"]) == 1000 and page["IsTruncated"]
    figures["folders of versions"], page = timed(keep, "ListObjectVersions", Delimiter="/", MaxKeys=1000)
    assert len(page["CommonPrefixes"]) == 1000 and page["IsTruncated"]
    marker = f"{COUNT // 20:032x}"
    figures["versions of one key"], page = timed(
        keep, "ListObjectVersions", KeyMarker="zzz", VersionIdMarker=marker, MaxKeys=1000
    )
    assert page["Versions"][0]["VersionId"] == f"{COUNT // 20 + 1:032x}"
    figures["one key"], page = timed(keep, "ListObjectsV2", Prefix=key_of(COUNT // 4), MaxKeys=1)
    assert page["KeyCount"] == 1
    began = time.perf_counter()
    assert keep.guard.sweep_blobs(alone=True) == 0
    print(f"{COUNT:>9} rows  the sweep for orphan blobs {time.perf_counter() - began:8.1f} s")
    for name, milliseconds in figures.items():
        print(f"{COUNT:>9} rows  {name:<20} {milliseconds:8.1f} ms")
    assert figures["keys middle"] < 3 * figures["keys start"] + 5
    assert figures["versions middle"] < 3 * figures["versions start"] + 5
    assert max(figures.values()) < 1000
