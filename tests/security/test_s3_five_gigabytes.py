"""Objects of 5 GB through a live enclave over TLS: in parts, in one PutObject, and back in one GetObject, all of it at
constant memory of the enclave. 5 GiB with HONMARU_LONG=1, little by default. `pytest -s` shows the figures.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from honmaru.testing.enclaves import LiveEnclave

MIB = 1 << 20
SIZE = 5 << 30 if os.environ.get("HONMARU_LONG") == "1" else 64 * MIB
PART = 64 * MIB if os.environ.get("HONMARU_LONG") == "1" else 16 * MIB
BLOCK = os.urandom(MIB)
GROWTH_MIB = 64


class Content:
    """A file of SIZE bytes that is nowhere: each MiB is the same block behind its own number."""

    def __init__(self, start: int = 0, end: int = SIZE) -> None:
        self._start, self._end, self._at = start, end, start

    def read(self, size: int | None = -1) -> bytes:
        number, inside = divmod(self._at, MIB)
        left = self._end - self._at
        size = min(left, MIB - inside, left if size is None or size < 0 else size)
        piece = (number.to_bytes(8, "big") + BLOCK[8:])[inside : inside + size]
        self._at += len(piece)
        return piece

    def seek(self, place: int, whence: int = 0) -> int:
        self._at = {0: self._start, 1: self._at, 2: self._end}[whence] + place
        return self.tell()

    def tell(self) -> int:
        return self._at - self._start

    def __len__(self) -> int:
        return self._end - self._start


class Whole(Content):
    """Reads on until it has what was asked for, as a file on disk does."""

    def read(self, size: int | None = -1) -> bytes:
        pieces: list[bytes] = []
        left = self._end - self._at if size is None or size < 0 else size
        while left and (piece := super().read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


def memory_mib(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


@contextmanager
def growth(enclave: LiveEnclave, what: str) -> Iterator[None]:
    """Prints the time and rate of a transfer, and fails when the enclave's peak grows by more than GROWTH_MIB."""
    Path(f"/proc/{enclave.pid}/clear_refs").write_text("5")  # the peak is counted from here
    before, began = memory_mib(enclave.pid, "VmRSS"), time.perf_counter()
    yield
    took = time.perf_counter() - began
    peak = memory_mib(enclave.pid, "VmHWM")
    print(
        f"{what:<12} {SIZE / MIB:6.0f} MiB in {took:6.1f} s, {SIZE / MIB / took:6.0f} MiB/s; "
        f"memory {before:.0f} MiB before, {peak:.0f} MiB at the peak"
    )
    assert peak < before + GROWTH_MIB


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    enclave = LiveEnclave(tmp_path_factory.mktemp("large")).up()
    enclave.user("alice", "SECRET")
    yield enclave
    enclave.down()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_large_objects_pass_at_constant_memory(live: LiveEnclave) -> None:
    s3: Any = live.client("s3", "alice", "SECRET", read_timeout=900)
    place = {"Bucket": "large", "Key": "k"}
    s3.create_bucket(Bucket="large", CreateBucketConfiguration={"LocationConstraint": live.region})
    s3.put_object(**place, Body=BLOCK * 8)
    s3.get_object(**place)["Body"].read()
    expected = hashlib.sha256()
    content = Content()
    while piece := content.read():
        expected.update(piece)
    with growth(live, "in parts"):
        upload = {**place, "UploadId": s3.create_multipart_upload(**place)["UploadId"]}
        parts = []
        for number, start in enumerate(range(0, SIZE, PART), 1):
            part = s3.upload_part(**upload, PartNumber=number, Body=Whole(start, min(SIZE, start + PART)))
            parts.append({"PartNumber": number, "ETag": part["ETag"]})
        s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    _read_back(live, s3, place, expected.hexdigest(), "get of parts")
    with growth(live, "in one put"):
        s3.put_object(**place, Body=Whole())
    _read_back(live, s3, place, expected.hexdigest(), "get of one")
    with growth(live, "copy"):
        s3.copy_object(Bucket="large", Key="copy", CopySource=place)
    assert s3.head_object(Bucket="large", Key="copy")["ContentLength"] == SIZE


def _read_back(enclave: LiveEnclave, s3: Any, place: dict[str, str], expected: str, what: str) -> None:
    digest = hashlib.sha256()
    with growth(enclave, what):
        for chunk in s3.get_object(**place)["Body"].iter_chunks(4 * MIB):
            digest.update(chunk)
    assert digest.hexdigest() == expected
