"""Lifecycle of S3: which rules may be put, what they say, and the runner that carries them out at each label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name

from honmaru.core.errors import HonmaruError
from honmaru.core.sessions import Session
from honmaru.services.s3 import lifecycle
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.lifecycle_runner import LifecycleRunner
from honmaru.services.s3.notification import Outbox, bus_of
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, Upload, quick_directory, session

U, S = (session(marking) for marking in ("UNCLASSIFIED", "SECRET"))
DAY = 86400
BUS = bus_of("aws-iso", "us-iso-east-1", U.account)


@dataclass
class Bench:
    keep: Keep
    s3: S3
    runner: LifecycleRunner

    def __call__(self, who: Session, operation: str, **request: Any) -> Any:
        return getattr(self.s3, xform_name(operation))(self.keep.call(who, operation), {"Bucket": "bucket", **request})

    def put(self, who: Session, key: str, content: bytes = b"x", **request: Any) -> Any:
        return self(who, "PutObject", Key=key, Body=Upload(content), **request)

    def rules(self, who: Session, *rules: Mapping[str, Any]) -> None:
        every = [{"Status": "Enabled", "Filter": {}, **rule} for rule in rules]
        self(who, "PutBucketLifecycleConfiguration", LifecycleConfiguration={"Rules": every})

    def after(self, days: float) -> Mapping[str, int]:
        """Let days pass, run, and say what was done."""
        self.keep.clock.seconds += days * DAY
        return {what: count for what, count in self.runner.run().items() if count}

    def keys(self, who: Session) -> list[str]:
        return [one["Key"] for one in self(who, "ListObjectsV2")["Contents"] or ()]

    def versions(self, who: Session) -> list[tuple[str, str]]:
        page = self(who, "ListObjectVersions")
        lines = [(one["Key"], "object") for one in page.get("Versions") or ()]
        return sorted(lines + [(one["Key"], "marker") for one in page.get("DeleteMarkers") or ()])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with quick_directory() as directory:
        keep = Keep(Path(directory))
        commits = BucketCommits()
        s3 = S3(keep.ids, commits)
        runner = LifecycleRunner(keep.guard, keep.clock, keep.ids, commits, partition="aws-iso", region="us-iso-east-1")
        made = Bench(keep, s3, runner)
        made(U, "CreateBucket")
        yield made
        keep.close()


def refused(code: str, attempt: Callable[[], object]) -> HonmaruError:
    with pytest.raises(HonmaruError) as fault:
        attempt()
    assert fault.value.code == code, (fault.value.code, fault.value)
    return fault.value


# What may be put

DAYS = {"Expiration": {"Days": 1}}
TAG = {"Key": "k", "Value": "v"}


@pytest.mark.parametrize(
    ("rules", "code", "words"),
    [
        ([], "MalformedXML", ""),
        ([{**DAYS, "Filter": {}}] * 1001, "MalformedXML", ""),
        ([DAYS], "MalformedXML", ""),
        ([{**DAYS, "Prefix": "", "Filter": {}}], "MalformedXML", ""),
        ([{**DAYS, "Prefix": "a"}, {**DAYS, "Filter": {}}], "InvalidRequest", "Base level prefix"),
        ([{**DAYS, "Filter": {}, "ID": "a"}] * 2, "InvalidArgument", "Rule ID must be unique"),
        ([{**DAYS, "Filter": {}, "ID": "a" * 256}], "InvalidArgument", "ID length should not exceed"),
        ([{"Filter": {}}], "InvalidRequest", "At least one action"),
        ([{**DAYS, "Filter": {"Prefix": "a", "Tag": TAG}}], "MalformedXML", ""),
        ([{**DAYS, "Filter": {"And": {"Prefix": "a"}}}], "MalformedXML", ""),
        ([{**DAYS, "Filter": {"And": {"Tags": [TAG, TAG]}}}], "InvalidRequest", "Duplicate Tag Keys"),
        (
            [{**DAYS, "Filter": {"And": {"ObjectSizeGreaterThan": 5, "ObjectSizeLessThan": 5}}}],
            "InvalidRequest",
            "greater than 'ObjectSizeGreaterThan'",
        ),
        ([{"Filter": {}, "Expiration": {}}], "MalformedXML", ""),
        ([{"Filter": {}, "Expiration": {"Days": 1, "ExpiredObjectDeleteMarker": True}}], "MalformedXML", ""),
        ([{"Filter": {}, "Expiration": {"Days": 0}}], "InvalidArgument", "'Days' for Expiration action must be"),
        (
            [{"Filter": {}, "Expiration": {"Date": datetime(2031, 1, 1, 1, tzinfo=UTC)}}],
            "InvalidArgument",
            "'Date' must be at midnight GMT",
        ),
        ([{"Filter": {"Tag": TAG}, "Expiration": {"ExpiredObjectDeleteMarker": True}}], "InvalidRequest", "with Tags"),
        ([{"Filter": {}, "NoncurrentVersionExpiration": {"NewerNoncurrentVersions": 1}}], "MalformedXML", ""),
        ([{"Filter": {}, "NoncurrentVersionExpiration": {"NoncurrentDays": -1}}], "InvalidArgument", "NoncurrentDays"),
        (
            [{"Filter": {}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 101}}],
            "InvalidArgument",
            "NewerNoncurrentVersions",
        ),
        ([{"Filter": {}, "AbortIncompleteMultipartUpload": {}}], "MalformedXML", ""),
        (
            [{"Filter": {"Tag": TAG}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}],
            "InvalidRequest",
            "cannot be specified with Tags",
        ),
        ([{"Filter": {}, "Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}], "NotImplemented", "Transitions"),
    ],
)
def test_what_is_refused(bench: Bench, rules: list[dict[str, Any]], code: str, words: str) -> None:
    every = [{"Status": "Enabled", **rule} for rule in rules]
    attempt = {"LifecycleConfiguration": {"Rules": every}}
    fault = refused(code, lambda: bench(U, "PutBucketLifecycleConfiguration", **attempt))
    assert words in fault.message
    refused("NoSuchLifecycleConfiguration", lambda: bench(U, "GetBucketLifecycleConfiguration"))


def test_what_was_put_is_shown_and_deleted(bench: Bench) -> None:
    rule = {
        "ID": "r",
        "Status": "Enabled",
        "Filter": {"Prefix": "a/"},
        "Expiration": {"Date": datetime(2031, 1, 1, tzinfo=UTC)},
    }
    bench(U, "PutBucketLifecycleConfiguration", LifecycleConfiguration={"Rules": [rule, {**rule, "ID": ""}]})
    shown = bench(U, "GetBucketLifecycleConfiguration")["Rules"]
    assert shown[0] == rule and shown[1]["ID"], "a rule without a name gets one"
    bench(U, "DeleteBucketLifecycle")
    refused("NoSuchLifecycleConfiguration", lambda: bench(U, "GetBucketLifecycleConfiguration"))


# What rules say


def test_days_end_at_the_next_midnight() -> None:
    noon = datetime(2030, 1, 15, 10, 30, tzinfo=UTC)
    assert lifecycle.due(noon, 3) == datetime(2030, 1, 19, tzinfo=UTC)
    assert lifecycle.due(datetime(2030, 1, 15, tzinfo=UTC), 3) == datetime(2030, 1, 18, tzinfo=UTC)
    assert lifecycle.due(noon.astimezone(), 3) == datetime(2030, 1, 19, tzinfo=UTC)


# The runner


def test_objects_expire_by_days_prefix_tag_and_size(bench: Bench) -> None:
    bench.rules(
        U,
        {"ID": "a", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 2}},
        {"ID": "b", "Filter": {"And": {"Tags": [TAG], "ObjectSizeGreaterThan": 2}}, "Expiration": {"Days": 1}},
        {"ID": "c", "Status": "Disabled", "Expiration": {"Days": 1}},
    )
    bench.put(U, "logs/1")
    bench.put(U, "keep")
    bench.put(U, "tagged", b"xyz", Tagging="k=v")
    bench.put(U, "tagged-small", b"xy", Tagging="k=v")
    assert bench.after(0.9) == {}
    assert bench.after(0.2) == {"objects expired": 1}
    assert bench.keys(U) == ["keep", "logs/1", "tagged-small"]
    assert bench.after(0.95) == {"objects expired": 1}
    assert bench.keys(U) == ["keep", "tagged-small"]


def test_objects_expire_at_a_date_and_an_object_written_again_stays(bench: Bench) -> None:
    bench.rules(U, {"Filter": {"Prefix": "d/"}, "Expiration": {"Date": datetime(2030, 1, 3, tzinfo=UTC)}})
    bench.put(U, "d/1")
    assert bench.after(1.5) == {}
    assert bench.after(0.5) == {"objects expired": 1}
    bench.rules(U, {"Expiration": {"Days": 1}})
    bench.put(U, "again")
    bench.keep.clock.seconds += DAY / 2
    bench.put(U, "again", b"newer")
    assert bench.after(0.5) == {} and bench.keys(U) == ["again"]
    assert bench.after(1) == {"objects expired": 1}


def test_versions_expire_to_markers_and_older_ones_go(bench: Bench) -> None:
    bench(U, "PutBucketVersioning", VersioningConfiguration={"Status": "Enabled"})
    bench.rules(
        U,
        {"ID": "now", "Expiration": {"Days": 10}},
        {"ID": "old", "NoncurrentVersionExpiration": {"NoncurrentDays": 2, "NewerNoncurrentVersions": 1}},
    )
    for content in (b"1", b"2", b"3"):
        bench.put(U, "k", content)
        bench.keep.clock.seconds += 60
    assert bench.after(1) == {}
    assert bench.after(2) == {"older versions removed": 1}, "one noncurrent version is kept whatever its age"
    assert bench.versions(U) == [("k", "object"), ("k", "object")]
    assert bench.after(8) == {"objects expired": 1}
    assert bench.versions(U) == [("k", "marker"), ("k", "object"), ("k", "object")]
    assert bench.after(3) == {"older versions removed": 1}
    bench.rules(
        U,
        {"ID": "all", "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
        {"Expiration": {"ExpiredObjectDeleteMarker": True}},
    )
    assert bench.after(1) == {"older versions removed": 1, "delete markers removed": 1}
    assert bench.versions(U) == []


def test_what_object_lock_keeps_is_kept(bench: Bench) -> None:
    bench(U, "CreateBucket", Bucket="locked", ObjectLockEnabledForBucket=True)
    put = bench.put(U, "k", Bucket="locked")
    bench(U, "PutObjectLegalHold", Bucket="locked", Key="k", LegalHold={"Status": "ON"})
    bench.put(U, "k", Bucket="locked")
    rule = {"Status": "Enabled", "Filter": {}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}}
    bench(U, "PutBucketLifecycleConfiguration", Bucket="locked", LifecycleConfiguration={"Rules": [rule]})
    assert bench.after(3) == {}
    request = {"Bucket": "locked", "Key": "k", "VersionId": put["VersionId"]}
    bench(U, "PutObjectLegalHold", **request, LegalHold={"Status": "OFF"})
    assert bench.after(1) == {"older versions removed": 1}


def test_stale_uploads_are_aborted_and_their_space_is_freed(bench: Bench) -> None:
    stale = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
    bench.rules(U, {"ID": "stale", "Filter": {"Prefix": "up/"}, **stale})
    for key in ("up/1", "else"):
        made = bench(U, "CreateMultipartUpload", Key=key)
        upload = made["UploadId"]
        announced = (datetime(2030, 1, 3, tzinfo=UTC), "stale") if key == "up/1" else (None, None)
        for shown in (made, bench(U, "ListParts", Key=key, UploadId=upload)):
            assert (shown.get("AbortDate"), shown.get("AbortRuleId")) == announced
        bench(U, "UploadPart", Key=key, UploadId=upload, PartNumber=1, Body=Upload(b"part"))
    assert len(list(bench.keep.blob_store.paths(""))) == 2
    assert bench.after(1.5) == {}
    assert bench.after(1) == {"uploads aborted": 1}
    assert [one["Key"] for one in bench(U, "ListMultipartUploads")["Uploads"]] == ["else"]
    assert len(list(bench.keep.blob_store.paths(""))) == 1


def test_a_rule_acts_at_its_own_label_only(bench: Bench) -> None:
    """The higher instance begins with the lower one's rules; each then acts on what lies at its own label."""
    bench.rules(U, {"Expiration": {"Days": 1}})
    bench.put(U, "low")
    bench.put(U, "both")
    bench.put(S, "both")
    bench(S, "DeleteBucketLifecycle")
    assert bench.after(2) == {"objects expired": 2}
    assert bench.keys(U) == [] and bench.keys(S) == ["both"]
    bench.rules(S, {"Expiration": {"Days": 1}})
    bench(U, "DeleteBucketLifecycle")
    bench.put(U, "low")
    assert bench.after(2) == {"objects expired": 1}, "what a rule above sees below it stays"
    assert bench.keys(U) == ["low"] and bench.keys(S) == ["low"]


def test_a_lower_session_cannot_put_a_rule_on_a_higher_bucket_nor_a_higher_one_on_a_lower(bench: Bench) -> None:
    bench(S, "CreateBucket", Bucket="high")
    rule = {"LifecycleConfiguration": {"Rules": [{"Status": "Enabled", "Filter": {}, **DAYS}]}}
    refused("NoSuchBucket", lambda: bench(U, "PutBucketLifecycleConfiguration", Bucket="high", **rule))
    with pytest.raises(HonmaruError, match="sign in at UNCLASSIFIED"):
        bench(S, "PutBucketLifecycleConfiguration", **rule)


def test_a_bucket_is_gone_through_once_a_day_and_when_it_changes(bench: Bench) -> None:
    bench.rules(U, {"Expiration": {"Days": 1}})
    bench.put(U, "k")
    assert bench.after(1.0) == {"objects expired": 1}
    bench.put(U, "past")
    bench.rules(U, {"Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}})
    assert bench.after(0) == {"objects expired": 1}


def test_expiry_tells_of_itself(bench: Bench) -> None:
    bench(U, "PutBucketNotificationConfiguration", NotificationConfiguration={"EventBridgeConfiguration": {}})
    bench.rules(U, {"Expiration": {"Days": 1}})
    bench.put(U, "k")
    bench.after(1)
    outbox = Outbox(bench.keep.guard)
    assert [event.detail["eventName"] for event in outbox.read(U, BUS)] == [
        "ObjectCreated:Put",
        "LifecycleExpiration:Delete",
    ]
    entries = [entry for entry in bench.keep.ledger.entries["U"] if "lifecycle.s3" in str(entry)]
    assert entries, "the ledger says who deleted"
    bench(U, "DeleteBucketLifecycle")
    assert bench.after(8) == {"events forgotten": 2}
    assert list(outbox.read(U, BUS)) == []


def test_the_header_that_announces_expiry(bench: Bench) -> None:
    bench.rules(U, {"ID": "a b", "Filter": {"Prefix": "x"}, "Expiration": {"Days": 1}})
    bucket = bench.keep.guard.records(U, "s3").get("bucket", "bucket")
    assert bucket is not None
    now = bench.keep.clock.now() + timedelta(hours=1)
    header = lifecycle.expiration_header(bucket, "x", 1, {}, now)
    assert header == 'expiry-date="Thu, 03 Jan 2030 00:00:00 GMT", rule-id="a%20b"'
    assert lifecycle.expiration_header(bucket, "y", 1, {}, now) is None
    announced = 'expiry-date="Wed, 02 Jan 2030 00:00:00 GMT", rule-id="a%20b"'
    assert bench.put(U, "x1")["Expiration"] == announced
    assert bench(U, "HeadObject", Key="x1")["Expiration"] == announced == bench(U, "GetObject", Key="x1")["Expiration"]
    assert bench.put(U, "y")["Expiration"] is None and bench(S, "HeadObject", Key="x1")["Expiration"] == announced


def test_a_rule_of_more_days_than_there_are_breaks_neither_its_bucket_nor_the_next(bench: Bench) -> None:
    bench.put(U, "a")
    far = {"Days": 2**31 - 1}
    bench.rules(
        U,
        {
            "Expiration": far,
            "NoncurrentVersionExpiration": {"NoncurrentDays": 2**31 - 1},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2**31 - 1},
        },
    )
    assert "9999" in bench.put(U, "b")["Expiration"]
    assert "9999" in bench(U, "HeadObject", Key="a")["Expiration"]
    assert bench(U, "CreateMultipartUpload", Key="u")["AbortDate"].year == 9999
    bench(S, "CreateBucket", Bucket="later")
    bench(
        S,
        "PutBucketLifecycleConfiguration",
        Bucket="later",
        LifecycleConfiguration={"Rules": [{"Status": "Enabled", "Filter": {}, **DAYS}]},
    )
    bench.put(S, "x", Bucket="later")
    assert bench.after(3) == {"objects expired": 1}
    assert bench.keys(U) == ["a", "b"]


def test_a_bucket_that_fails_holds_no_other_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put(U, "a")
    bench.rules(U, DAYS)
    whole = LifecycleRunner._of_bucket

    def broken(runner: LifecycleRunner, bucket: Any, *more: Any) -> Any:
        if bucket.name == "a-first":
            raise ZeroDivisionError
        return whole(runner, bucket, *more)

    bench(U, "CreateBucket", Bucket="a-first")
    bench(
        U,
        "PutBucketLifecycleConfiguration",
        Bucket="a-first",
        LifecycleConfiguration={"Rules": [{"Status": "Enabled", "Filter": {}, **DAYS}]},
    )
    monkeypatch.setattr(LifecycleRunner, "_of_bucket", broken)
    assert bench.after(3) == {"objects expired": 1}
