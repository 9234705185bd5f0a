"""`kill -9` of a live enclave during mixed S3 writes by boto3: nothing acknowledged is lost, nothing half is shown.

Clients at two labels put, copy, delete and upload in parts, in a bucket with versions and in one without, each in key
spaces of its own; the enclave is killed at random moments and started again. After each start, what a client was told
is there with its bytes, what it was not told about is there whole or not at all, and on disk there are exactly the
blobs of what lists show: the space of what was cut short is free. A few writes by default, 1,000 with HONMARU_LONG=1.
The sabotage takes an acknowledged object's blob away: the same comparison must find that.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from honmaru.testing.enclaves import LiveEnclave

WRITES = 1000 if os.environ.get("HONMARU_LONG") == "1" else 30
KILLS = 12 if os.environ.get("HONMARU_LONG") == "1" else 1
WORKERS = (("SECRET", 1), ("SECRET", 2), ("UNCLASSIFIED", 3))
MIB = 1 << 20
GONE = "-"


@dataclass
class Worker:
    """One client, and what each of its keys may hold: one state once acknowledged, or also the one that was tried."""

    enclave: LiveEnclave
    label: str
    number: int
    chance: random.Random
    allowed: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    """(key, version id) → digest of every acknowledged version that was not deleted by its id."""
    loosened: set[tuple[str, str]] = field(default_factory=set)
    """Versions whose deletion was tried and not acknowledged: they may be there or not."""
    acknowledged: int = 0

    @property
    def s3(self) -> Any:
        return self.enclave.client("s3", "alice", self.label, read_timeout=20)

    def write(self) -> None:
        """One random write. Raises what boto3 raises when the enclave dies under it."""
        bucket = self.chance.choice(("plain", "versioned"))
        key = f"{self.number}/{self.chance.randrange(6)}"
        place, verb = {"Bucket": bucket, "Key": key}, self.chance.randrange(10)
        content = self.chance.randbytes(self.chance.choice((0, 100, 70_000, 1_300_000)))
        s3 = self.s3
        if verb < 2:
            self._try(bucket, key, GONE)
            self._did(bucket, key, GONE, s3.delete_object(**place))
        elif verb < 3 and bucket == "versioned" and self.versions:
            key, version = self.chance.choice(sorted(self.versions))
            self.loosened.add((key, version))
            self._settle(key)
            s3.delete_object(Bucket=bucket, Key=key, VersionId=version)
            self.loosened.discard((key, version))
            del self.versions[key, version]
            self.acknowledged += 1
        elif verb < 5:
            source = f"{self.number}/source"
            digest = hashlib.sha256(content).hexdigest()
            self._try("plain", source, digest)
            s3.put_object(Bucket="plain", Key=source, Body=content)
            self.allowed["plain", source] = {digest}
            self._try(bucket, key, digest)
            self._did(bucket, key, digest, s3.copy_object(**place, CopySource={"Bucket": "plain", "Key": source}))
        elif verb < 7:
            parts = [content * 5 + bytes(5 * MIB), content]
            digest = hashlib.sha256(b"".join(parts)).hexdigest()
            upload = s3.create_multipart_upload(**place)["UploadId"]
            named = {**place, "UploadId": upload}
            done = [
                {"PartNumber": number, "ETag": s3.upload_part(**named, PartNumber=number, Body=part)["ETag"]}
                for number, part in enumerate(parts, 1)
            ]
            self._try(bucket, key, digest)
            self._did(bucket, key, digest, s3.complete_multipart_upload(**named, MultipartUpload={"Parts": done}))
        else:
            digest = hashlib.sha256(content).hexdigest()
            self._try(bucket, key, digest)
            self._did(bucket, key, digest, s3.put_object(**place, Body=content))

    def _try(self, bucket: str, key: str, digest: str) -> None:
        self.allowed.setdefault((bucket, key), {GONE}).add(digest)

    def _did(self, bucket: str, key: str, digest: str, answer: Any) -> None:
        self.allowed[bucket, key] = {digest}
        self.acknowledged += 1
        if bucket == "versioned" and digest != GONE:
            self.versions[key, answer["VersionId"]] = digest

    def _settle(self, key: str) -> None:
        """Deleting a version may bring back any older one: what the key holds is compared by its versions only."""
        known = {digest for (name, _), digest in self.versions.items() if name == key}
        self.allowed[("versioned", key)] = self.allowed.get(("versioned", key), {GONE}) | known | {GONE}

    def losses(self) -> Iterator[str]:
        """What is not as it was acknowledged; afterwards the comparison goes on from what is there."""
        for (bucket, key), digests in self.allowed.items():
            found = self._digest(bucket, key)
            if found not in digests:
                yield f"{self.label} {bucket}/{key} holds {found}, expected one of {sorted(digests)}"
            self.allowed[bucket, key] = {found}
        for (key, version), digest in list(self.versions.items()):
            found = self._digest("versioned", key, VersionId=version)
            if found == GONE and (key, version) in self.loosened:
                del self.versions[key, version]
            elif found != digest:
                yield f"{self.label} {key} version {version} holds {found}, expected {digest}"
        self.loosened.clear()

    def _digest(self, bucket: str, key: str, **version: str) -> str:
        try:
            return hashlib.sha256(self.s3.get_object(Bucket=bucket, Key=key, **version)["Body"].read()).hexdigest()
        except ClientError as fault:
            if fault.response["Error"]["Code"] in ("NoSuchKey", "NoSuchVersion"):
                return GONE
            return f"error {fault.response['Error']['Code']}"


def _run_until_killed(workers: list[Worker], enclave: LiveEnclave, wanted: int, chance: random.Random) -> None:
    goal = sum(worker.acknowledged for worker in workers) + wanted

    def work(worker: Worker) -> None:
        try:
            while sum(one.acknowledged for one in workers) < goal:
                worker.write()
        except (BotoCoreError, ClientError):
            return  # the enclave died under this write: it was not acknowledged

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    at = goal - chance.randrange(1, max(2, wanted // 2))
    while sum(worker.acknowledged for worker in workers) < at and any(thread.is_alive() for thread in threads):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.03))
    enclave.kill()
    for thread in threads:
        thread.join()


def _blobs_shown(workers: list[Worker]) -> int:
    """How many blobs the lists account for: at each label its own versions and the parts of its open uploads.

    The low worker's client sees low only; the high one's shows both, so low objects are counted once by key.
    """
    high = next(worker for worker in workers if worker.label == "SECRET").s3
    blobs = 0
    for bucket in ("plain", "versioned"):
        for page in high.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for one in page.get("Versions", ()):
                tag = one["ETag"].strip('"')
                blobs += int(tag.partition("-")[2] or 1)
        for label in ("SECRET", "UNCLASSIFIED"):
            client = next(worker for worker in workers if worker.label == label).s3
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
                for upload in page.get("Uploads", ()):
                    named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    blobs += len(client.list_parts(**named).get("Parts", ()))
    return blobs


def _blobs_on_disk(enclave: LiveEnclave) -> int:
    return sum(1 for path in (enclave.data / "blobs").rglob("*") if path.is_file())


def _left_behind(enclave: LiveEnclave, workers: list[Worker]) -> str | None:
    """The sweep runs beside the first requests, so what it has to free may take a moment."""
    shown = _blobs_shown(workers)
    until = time.monotonic() + 20
    while (on_disk := _blobs_on_disk(enclave)) != shown:
        if time.monotonic() > until:
            return f"{on_disk} blobs on disk, {shown} of them belong to something"
        time.sleep(0.05)
    return None


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveEnclave, list[Worker]]]:
    live = LiveEnclave(tmp_path_factory.mktemp("killed"), http=True).up()
    live.user("alice", "SECRET")
    low = live.client("s3", "alice", "UNCLASSIFIED")
    for bucket in ("plain", "versioned"):
        low.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": live.region})
    low.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    yield live, [Worker(live, label, number, random.Random(number)) for label, number in WORKERS]
    live.down()


@pytest.mark.timeout(3600)
def test_mixed_writes_survive_kill_minus_nine(killed: tuple[LiveEnclave, list[Worker]]) -> None:
    enclave, workers = killed
    chance = random.Random(2031)
    for _ in range(KILLS):
        _run_until_killed(workers, enclave, -(-WRITES // KILLS), chance)
        enclave.up()
        assert [loss for worker in workers for loss in worker.losses()] == []
        assert _left_behind(enclave, workers) is None
    assert sum(worker.acknowledged for worker in workers) >= WRITES // 2


def test_the_comparison_finds_an_acknowledged_object_that_is_lost(
    killed: tuple[LiveEnclave, list[Worker]], tmp_path: Path
) -> None:
    enclave, workers = killed
    worker = workers[0]
    before = {path for path in (enclave.data / "blobs").rglob("*") if path.is_file()}
    worker.s3.put_object(Bucket="plain", Key="1/0", Body=b"x" * 100)
    worker.allowed["plain", "1/0"] = {hashlib.sha256(b"x" * 100).hexdigest()}
    (blob,) = {path for path in (enclave.data / "blobs").rglob("*") if path.is_file()} - before
    blob.rename(tmp_path / "taken")
    assert any("plain/1/0" in loss for loss in worker.losses())
    assert _blobs_on_disk(enclave) != _blobs_shown(workers)
