"""S3 over every record store, by writers that share the store and nothing else, as those of several processes do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore import xform_name

from honmaru.core.errors import HonmaruError
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, SeededIds, Upload, quick_directory, session

WHO = session("SECRET")
LABEL = WHO.label.canonical


@pytest.fixture
def keeps(store_url: str) -> Iterator[list[Keep]]:
    with quick_directory() as directory:
        made = [Keep(directory, url=store_url, ids=SeededIds(f"{number}")) for number in range(4)]
        yield made
        for keep in made:
            keep.close()


def caller(keep: Keep) -> Callable[..., Any]:
    s3 = S3(keep.ids, BucketCommits())

    def call(operation: str, **request: Any) -> Any:
        made = keep.call(WHO, operation)
        return getattr(s3, xform_name(operation))(made, {"Bucket": "bucket", **request})

    return call


def at_once(*works: Callable[[], object]) -> list[str | None]:
    """The error code of each work, None where it succeeded."""
    start = threading.Barrier(len(works))
    codes: list[str | None] = [None] * len(works)

    def attempt(number: int) -> None:
        start.wait()
        try:
            works[number]()
        except HonmaruError as fault:
            codes[number] = fault.code or type(fault).__name__

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes


def test_one_of_many_conditional_writers_wins(keeps: list[Keep]) -> None:
    calls = [caller(keep) for keep in keeps]
    calls[0]("CreateBucket")
    for number in range(5):
        key = f"k{number}"
        codes = at_once(
            *(
                lambda call=call, key=key: call("PutObject", Key=key, Body=Upload(b"x"), IfNoneMatch="*")
                for call in calls
            )
        )
        assert sorted(map(str, codes)) == ["None"] + ["PreconditionFailed"] * 3, codes


def test_concurrent_versions_all_stay(keeps: list[Keep]) -> None:
    calls = [caller(keep) for keep in keeps]
    calls[0]("CreateBucket")
    calls[0]("PutBucketVersioning", VersioningConfiguration={"Status": "Enabled"})
    made: list[str] = []

    def write(call: Callable[..., Any]) -> None:
        for _ in range(5):
            made.append(call("PutObject", Key="k", Body=Upload(b"x"))["VersionId"])

    assert at_once(*(lambda call=call: write(call) for call in calls)) == [None] * 4
    shown = calls[0]("ListObjectVersions")["Versions"]
    assert [one["VersionId"] for one in shown] == sorted(made) and shown[0]["IsLatest"] and len(set(made)) == 20
    for version in made:
        calls[1]("DeleteObject", Key="k", VersionId=version)
    assert calls[2]("ListObjectVersions")["Versions"] is None and not list(keeps[0].blob_store.paths(""))


def test_a_bucket_is_not_deleted_under_an_object(keeps: list[Keep]) -> None:
    one, two = caller(keeps[0]), caller(keeps[1])
    for _ in range(12):
        one("CreateBucket")
        codes = at_once(lambda: one("DeleteBucket"), lambda: two("PutObject", Key="k", Body=Upload(b"x")))
        assert codes in ([None, "NoSuchBucket"], ["BucketNotEmpty", None]), codes
        if codes[1] is None:
            two("DeleteObject", Key="k")
            one("DeleteBucket")
        assert not keeps[2].store.list(WHO.account, "s3", "object", [LABEL])
    assert not list(keeps[0].blob_store.paths(""))
