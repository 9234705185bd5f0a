"""What SSE-KMS seals opens under its key only, and is gone with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.errors import AccessDenied, HonmaruError, IntegrityFault
from honmaru.services.kms import Custodian, Kms, KmsKeys, Vault
from honmaru.services.s3.bucket import BucketCommits
from honmaru.services.s3.provider import S3
from honmaru.testing.keep import Keep, Upload, quick_directory, session

LONG = bool(os.environ.get("HONMARU_LONG"))
WHO = session("SECRET")
CONTENT = b"sealed twice" * 100


class Site:
    def __init__(self, directory: Path) -> None:
        self.keep = Keep(directory)
        self.vault = Vault(self.keep.keyring, self.keep.ids)
        self.kms = Kms(self.vault, self.keep.ledger)
        self.s3 = S3(self.keep.ids, BucketCommits(KmsKeys(self.vault)))
        self("s3", "create_bucket", Bucket="bucket")
        self.key = self("kms", "create_key")["KeyMetadata"]["KeyId"]

    def __call__(self, service: str, operation: str, **request: Any) -> Any:
        call = self.keep.call(WHO, operation, service=service)
        return getattr(self.s3 if service == "s3" else self.kms, operation)(call, request)

    def put(self, name: str, **members: Any) -> None:
        sealed = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.key, **members}
        self("s3", "put_object", Bucket="bucket", Key=name, Body=Upload(CONTENT), **sealed)

    def get(self, name: str) -> bytes:
        return b"".join(self("s3", "get_object", Bucket="bucket", Key=name)["Body"])


@pytest.fixture
def site() -> Iterator[Site]:
    with quick_directory() as directory:
        made = Site(directory)
        yield made
        made.keep.close()


def test_a_changed_bit_of_a_wrapped_data_key_is_found(site: Site) -> None:
    site.put("o")
    records = site.keep.guard.records(WHO, "s3")
    record = records.get("object", "bucket/o")
    assert record is not None and site.get("o") == CONTENT
    wrapped = bytes.fromhex(record.body["sse"]["wrapped"])
    for bit in range(0, len(wrapped) * 8, 1 if LONG else 101):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        sse = {**record.body["sse"], "wrapped": changed.hex()}
        record = records.update(record, {**record.body, "sse": sse})
        with pytest.raises(HonmaruError):
            site.get("o")
    other = {**record.body["sse"], "wrapped": wrapped.hex(), "context": {"aws:s3:arn": "another"}}
    record = records.update(record, {**record.body, "sse": other})
    with pytest.raises(IntegrityFault):
        site.get("o")


def test_a_blob_does_not_open_without_its_data_key(site: Site) -> None:
    site.put("o")
    site.put("p")
    records, blobs = site.keep.guard.records(WHO, "s3"), site.keep.guard.blobs(WHO)
    one, other = records.get("object", "bucket/o"), records.get("object", "bucket/p")
    assert one is not None and other is not None
    with pytest.raises(AccessDenied):
        blobs.read(one.body["blob"])
    with pytest.raises(IntegrityFault):
        list(blobs.read(one.body["blob"], seal=os.urandom(32)))
    # Another object's data key, of the same key and session, opens nothing either.
    records.update(one, {**one.body, "sse": other.body["sse"]})
    with pytest.raises(IntegrityFault):
        site.get("o")


def test_destroying_a_key_shreds_what_it_sealed_and_says_so(site: Site) -> None:
    site.put("o")
    site.put("shared", BucketKeyEnabled=True)
    site("s3", "put_object", Bucket="bucket", Key="plain", Body=Upload(CONTENT))
    row = site.keep.store.list(None, "kms", "material", [WHO.label.canonical])[0]
    database = site.keep.directory / "records.db"
    site("kms", "schedule_key_deletion", KeyId=site.key, PendingWindowInDays=7)
    site.keep.clock.seconds += 7 * 86400
    for name in ("o", "shared"):
        with pytest.raises(HonmaruError) as error:
            site.get(name)
        assert error.value.code == "KMS.NotFoundException"
    keep = site.keep
    custodian = Custodian(
        keep.guard, site.vault, keep.ledger, keep.clock, keep.ids, partition="aws-iso", region="us-iso-east-1"
    )
    assert custodian.step() == 1
    for name in ("o", "shared"):
        with pytest.raises(HonmaruError):
            site.get(name)
    assert site.get("plain") == CONTENT
    entries = [entry for log in keep.ledger.entries.values() for entry in log]
    assert [entry["resources"][0]["ARN"].endswith(site.key) for entry in entries if entry["eventName"] == "DeleteKey"]
    keep.close()  # folds the write-ahead log into the database: nothing of the wrapped material is left on disk
    assert bytes(row.body) not in database.read_bytes() and not database.with_name("records.db-wal").exists()


def test_a_bucket_takes_its_keys_along(site: Site) -> None:
    site.put("shared", BucketKeyEnabled=True)
    records = site.keep.guard.records(WHO, "s3")
    assert len(list(records.iterate("bucket-key"))) == 1
    site("s3", "delete_object", Bucket="bucket", Key="shared")
    site("s3", "delete_bucket", Bucket="bucket")
    assert not list(records.iterate("bucket-key"))


def test_a_guest_makes_no_key_in_the_account_whose_bucket_it_writes_to(site: Site) -> None:
    host = "210987654321"
    keys, facts = KmsKeys(site.vault), {"aws:s3:arn": "arn:aws-iso-b:s3:::theirs/k"}
    call = site.keep.call(WHO, "put_object").within(host)
    made = keys.data_key(call, "", facts, "s3")
    assert made.arn.split(":")[4] == WHO.account
    assert keys.open(site.keep.call(WHO, "get_object"), made.wrapped, facts, "s3") == made.plain
    theirs = site.keep.guard.records(replace(WHO, account=host), "kms")
    assert [*theirs.iterate("alias")] == [*theirs.iterate("key")] == []
