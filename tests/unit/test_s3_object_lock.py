"""Object lock: what retention and legal holds forbid, to whom, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore import xform_name

from honmaru.core.errors import AccessDenied, HonmaruError
from honmaru.core.sessions import Session
from honmaru.security.calls import Call
from honmaru.services.s3 import retention
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, Upload, quick_directory, session

U, S = (session(marking) for marking in ("UNCLASSIFIED", "SECRET"))
CHECKED = {"ChecksumAlgorithm": "CRC32", "ContentMD5": "CY9rzUYh03PK3k6DJie09g=="}
CONTENT = b"test"
_PAST, _LATER = (datetime(year, 1, 1, tzinfo=UTC) for year in (1999, 2040))
BYPASS = "s3:BypassGovernanceRetention"


@dataclass
class Client:
    keep: Keep
    s3: S3
    who: Session
    asked: list[str] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    last: Call | None = None

    def __call__(self, operation: str, /, **request: Any) -> Any:
        self.last = self.keep.call(self.who, operation, authorizer=self._authorize)
        return getattr(self.s3, xform_name(operation))(self.last, {"Bucket": "bucket", **request})

    def _authorize(self, _: Session, action: str, resource: str, context: Mapping[str, Any]) -> None:
        self.asked.append(action)
        if action in self.denied:
            raise AccessDenied("Access Denied")

    def put(self, **request: Any) -> str:
        return str(self("PutObject", Key="k", Body=Upload(CONTENT), **CHECKED, **request)["VersionId"])

    def delete(self, version: str, **request: Any) -> Any:
        return self("DeleteObject", Key="k", VersionId=version, **request)

    def retain(self, mode: str | None, until: datetime | None, **request: Any) -> Any:
        wanted = {"Mode": mode, "RetainUntilDate": until} if mode or until else {}
        return self("PutObjectRetention", Key="k", Retention=wanted, **request)

    def configure(self, **retention: Any) -> Any:
        rule = {"Rule": {"DefaultRetention": retention}} if retention else {}
        return self("PutObjectLockConfiguration", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", **rule})

    def day(self, number: float) -> datetime:
        return self.keep.clock.now() + timedelta(days=number)


@pytest.fixture
def client() -> Iterator[Client]:
    with quick_directory() as directory:
        keep = Keep(directory)
        made = Client(keep, S3(keep.ids, BucketCommits()), S)
        made("CreateBucket", ObjectLockEnabledForBucket=True)
        yield made
        keep.close()


def refused(code: str, attempt: Callable[[], object]) -> HonmaruError:
    with pytest.raises(HonmaruError) as fault:
        attempt()
    assert fault.value.code == code, fault.value
    return fault.value


def protected(attempt: Callable[[], object]) -> None:
    fault = refused("AccessDenied", attempt)
    assert fault.message == "Access Denied because object protected by object lock."


def test_a_bucket_made_with_lock_keeps_versions_for_good(client: Client) -> None:
    assert client.asked == ["s3:PutBucketVersioning", "s3:PutBucketObjectLockConfiguration"]
    assert client("GetBucketVersioning")["Status"] == "Enabled"
    assert client("GetObjectLockConfiguration")["ObjectLockConfiguration"]["ObjectLockEnabled"] == "Enabled"
    suspend = {"VersioningConfiguration": {"Status": "Suspended"}}
    assert (
        "cannot be changed" in refused("InvalidBucketState", lambda: client("PutBucketVersioning", **suspend)).message
    )


def test_lock_of_a_bucket_made_without(client: Client) -> None:
    plain = {"Bucket": "plain"}
    client("CreateBucket", **plain)
    refused("ObjectLockConfigurationNotFoundError", lambda: client("GetObjectLockConfiguration", **plain))
    enable = {**plain, "ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}
    refused("InvalidBucketState", lambda: client("PutObjectLockConfiguration", **enable))
    body = {"Key": "k", "Body": Upload(CONTENT), **CHECKED}
    for stated in (
        {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": client.day(1)},
        {"ObjectLockLegalHoldStatus": "ON"},
    ):
        refused("InvalidRequest", lambda stated=stated: client("PutObject", **plain, **body, **stated))
    client("PutObject", **plain, **body)
    for operation in ("GetObjectRetention", "GetObjectLegalHold", "PutObjectRetention", "PutObjectLegalHold"):
        fault = refused("InvalidRequest", lambda operation=operation: client(operation, **plain, Key="k"))
        assert fault.message == "Bucket is missing Object Lock Configuration"
    client("PutBucketVersioning", **plain, VersioningConfiguration={"Status": "Enabled"})
    client("PutObjectLockConfiguration", **enable)
    assert client("GetObjectLockConfiguration", **plain)["ObjectLockConfiguration"]["Rule"] is None


@pytest.mark.parametrize(
    ("retention", "code"),
    [
        ({"Mode": "GOVERNANCE"}, "MalformedXML"),
        ({"Mode": "GOVERNANCE", "Days": 1, "Years": 1}, "MalformedXML"),
        ({"Mode": "OTHER", "Days": 1}, "MalformedXML"),
        ({"Mode": "GOVERNANCE", "Days": 0}, "InvalidArgument"),
        ({"Mode": "COMPLIANCE", "Years": -1}, "InvalidArgument"),
        ({"Mode": "COMPLIANCE", "Years": 101}, "InvalidArgument"),
        ({"Mode": "COMPLIANCE", "Days": 36501}, "InvalidArgument"),
    ],
)
def test_default_retention_that_cannot_be(client: Client, retention: Any, code: str) -> None:
    refused(code, lambda: client.configure(**retention))
    assert client("GetObjectLockConfiguration")["ObjectLockConfiguration"]["Rule"] is None


def test_default_retention_is_given_to_what_states_none(client: Client) -> None:
    client.configure(Mode="COMPLIANCE", Days=2)
    rule = client("GetObjectLockConfiguration")["ObjectLockConfiguration"]["Rule"]
    assert rule == {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 2}}
    version = client.put()
    kept = client("GetObjectRetention", Key="k", VersionId=version)["Retention"]
    assert kept == {"Mode": "COMPLIANCE", "RetainUntilDate": client.day(2)}
    own = client.put(ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=client.day(1))
    assert client("HeadObject", Key="k", VersionId=own)["ObjectLockMode"] == "GOVERNANCE"
    client("CopyObject", Key="k", CopySource="bucket/k", MetadataDirective="REPLACE")
    assert client("HeadObject", Key="k")["ObjectLockMode"] == "COMPLIANCE"
    upload = client("CreateMultipartUpload", Key="k")["UploadId"]
    part = client("UploadPart", Key="k", UploadId=upload, PartNumber=1, Body=Upload(CONTENT))
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    done = client("CompleteMultipartUpload", Key="k", UploadId=upload, MultipartUpload=parts)
    protected(lambda: client.delete(done["VersionId"]))
    protected(lambda: client.delete(version))
    client.keep.clock.seconds += 2 * 86400
    client.delete(version)
    client.configure()
    later = client.put()
    client.delete(later)


def test_governance_gives_way_to_who_may_and_says_so(client: Client) -> None:
    version = client.put(ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=client.day(1))
    assert client.asked[-1] == "s3:PutObjectRetention"
    protected(lambda: client.delete(version))
    answer = client("DeleteObjects", Delete={"Objects": [{"Key": "k", "VersionId": version}]})
    assert answer["Errors"][0]["Code"] == "AccessDenied" and answer["Errors"][0]["VersionId"] == version
    client.denied = {BYPASS}
    with pytest.raises(AccessDenied):
        client.delete(version, BypassGovernanceRetention=True)
    client.denied = set()
    marker = client("DeleteObject", Key="k")  # a marker takes nothing away
    assert marker["DeleteMarker"] is True
    client.delete(version, BypassGovernanceRetention=True)
    assert client.asked[-1] == BYPASS
    refused("NoSuchVersion", lambda: client("HeadObject", Key="k", VersionId=version))


def test_compliance_gives_way_to_nobody(client: Client) -> None:
    version = client.put(ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=client.day(1))
    protected(lambda: client.delete(version, BypassGovernanceRetention=True))
    for mode, day in (("COMPLIANCE", 0.5), ("GOVERNANCE", 2), (None, None)):
        until = None if day is None else client.day(day)
        protected(lambda mode=mode, until=until: client.retain(mode, until, BypassGovernanceRetention=True))
    client.retain("COMPLIANCE", client.day(3))
    client.keep.clock.seconds += 2 * 86400
    protected(lambda: client.delete(version))
    client.keep.clock.seconds += 86400
    client.delete(version)


def test_retention_in_governance_may_be_extended_and_only_bypassed_to_shorten(client: Client) -> None:
    client.put()
    fault = refused("NoSuchObjectLockConfiguration", lambda: client("GetObjectRetention", Key="k"))
    assert fault.message == "The specified object does not have a ObjectLock configuration"
    client.retain("GOVERNANCE", client.day(1))
    client.retain("GOVERNANCE", client.day(2))
    for mode, day in (("GOVERNANCE", 1), ("COMPLIANCE", 2), (None, None)):
        until = None if day is None else client.day(day)
        protected(lambda mode=mode, until=until: client.retain(mode, until))
    client.retain("COMPLIANCE", client.day(2), BypassGovernanceRetention=True)
    assert client("GetObjectRetention", Key="k")["Retention"]["Mode"] == "COMPLIANCE"
    refused("MalformedXML", lambda: client.retain("COMPLIANCE", None))
    refused("MalformedXML", lambda: client.retain("OTHER", client.day(9)))
    refused("InvalidArgument", lambda: client.retain("COMPLIANCE", client.day(-1)))
    client.keep.clock.seconds += 3 * 86400
    client.retain(None, None)
    refused("NoSuchObjectLockConfiguration", lambda: client("GetObjectRetention", Key="k"))


def test_a_legal_hold_stays_until_it_is_lifted(client: Client) -> None:
    version = client.put(ObjectLockLegalHoldStatus="ON")
    assert client.asked[-1] == "s3:PutObjectLegalHold"
    assert client("GetObjectLegalHold", Key="k") == {"LegalHold": {"Status": "ON"}}
    protected(lambda: client.delete(version, BypassGovernanceRetention=True))
    client.put()
    protected(lambda: client.delete(version))
    client("PutObjectLegalHold", Key="k", VersionId=version, LegalHold={"Status": "OFF"})
    assert client("GetObjectLegalHold", Key="k", VersionId=version) == {"LegalHold": {"Status": "OFF"}}
    refused("MalformedXML", lambda: client("PutObjectLegalHold", Key="k", LegalHold={"Status": "MAYBE"}))
    refused("NoSuchObjectLockConfiguration", lambda: client("GetObjectLegalHold", Key="k"))
    client.delete(version)


def test_retention_and_holds_are_told_to_who_may_know(client: Client) -> None:
    client.put(ObjectLockLegalHoldStatus="ON", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=client.day(1))
    told = client("HeadObject", Key="k")
    assert (told["ObjectLockMode"], told["ObjectLockLegalHoldStatus"]) == ("GOVERNANCE", "ON")
    assert told["ObjectLockRetainUntilDate"] == client.day(1)
    client.denied = {"s3:GetObjectRetention", "s3:GetObjectLegalHold"}
    assert not [name for name in client("HeadObject", Key="k") if name.startswith("ObjectLock")]


@pytest.mark.parametrize(
    ("stated", "code"),
    [
        ({"ObjectLockMode": "GOVERNANCE"}, "InvalidArgument"),
        ({"ObjectLockRetainUntilDate": _LATER}, "InvalidArgument"),
        ({"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": _PAST}, "InvalidArgument"),
        ({"ObjectLockMode": "X", "ObjectLockRetainUntilDate": _LATER}, "InvalidArgument"),
        ({"ObjectLockLegalHoldStatus": "on"}, "InvalidArgument"),
    ],
)
def test_what_a_write_cannot_ask_for(client: Client, stated: Any, code: str) -> None:
    refused(code, lambda: client.put(**stated))
    assert not list(client.keep.blob_store.paths(""))


def test_a_locked_put_needs_a_checksum(client: Client) -> None:
    refused(
        "InvalidRequest",
        lambda: client("PutObject", Key="k", Body=Upload(CONTENT), ObjectLockLegalHoldStatus="ON"),
    )


def test_only_a_versions_own_label_changes_its_lock(client: Client) -> None:
    low = Client(client.keep, client.s3, U)
    low("CreateBucket", Bucket="shared", ObjectLockEnabledForBucket=True)
    low("PutObject", Bucket="shared", Key="k", Body=Upload(CONTENT))
    for attempt in (
        lambda: client("PutObjectLegalHold", Bucket="shared", Key="k", LegalHold={"Status": "ON"}),
        lambda: client.retain("GOVERNANCE", client.day(1), Bucket="shared"),
        lambda: client(
            "PutObjectLockConfiguration", Bucket="shared", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}
        ),
    ):
        with pytest.raises(AccessDenied, match="UNCLASSIFIED"):
            attempt()
    client("PutObject", Bucket="shared", Key="h", Body=Upload(CONTENT), **CHECKED, ObjectLockLegalHoldStatus="ON")
    refused("NoSuchKey", lambda: low("GetObjectLegalHold", Bucket="shared", Key="h"))


def test_without_its_one_check_lock_would_be_worth_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage of what the tests above hold."""
    version = client.put(ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=client.day(1))
    monkeypatch.setattr(retention, "check_removable", lambda *_: None)
    client.delete(version)
    refused("NoSuchVersion", lambda: client("HeadObject", Key="k", VersionId=version))
