"""A whole enclave from its backup: equal answers, ledger and objects; a changed backup restores nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from honmaru.app import backup
from honmaru.app.backup_format import BackupReader, BackupWriter
from honmaru.app.operator import ask
from honmaru.core.errors import ConfigurationFault, HonmaruError, IntegrityFault
from honmaru.security.crypto import locks
from honmaru.security.ledger.checkpoints import Signer
from honmaru.testing.enclaves import LiveEnclave

PASSPHRASE = "a long passphrase"
LONG = bool(os.environ.get("HONMARU_LONG"))


def honmaru(*arguments: str, stdin: str = f"{PASSPHRASE}\n") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "honmaru", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


class Busy:
    """Writes and deletes objects until it is told to stop."""

    def __init__(self, s3: Any) -> None:
        self.s3, self.leaving, self.errors = s3, threading.Event(), []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        number = 0
        while not self.leaving.is_set():
            try:
                self.s3.put_object(Bucket="kept", Key=f"busy/{number % 7}", Body=os.urandom(20_000))
                self.s3.delete_object(Bucket="kept", Key=f"busy/{(number + 3) % 7}")
            except Exception as error:
                self.errors.append(error)
            number += 1

    def stop(self) -> None:
        self.leaving.set()
        self.thread.join(30)


def answers(enclave: LiveEnclave) -> dict[str, Any]:
    """What clients are answered, without what differs from call to call."""
    found: dict[str, Any] = {}
    for label in ("UNCLASSIFIED", "SECRET"):
        s3, kms, iam = (enclave.client(service, "admin", label) for service in ("s3", "kms", "iam"))
        for bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
            listed = s3.list_objects_v2(Bucket=bucket, Prefix="still/").get("Contents", [])
            found[f"{label} {bucket}"] = [
                (one["Key"], one["ETag"], s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()) for one in listed
            ]
        keys = [one["KeyId"] for one in kms.list_keys()["Keys"]]
        found[f"{label} keys"] = [kms.describe_key(KeyId=key)["KeyMetadata"] for key in sorted(keys)]
        found[f"{label} users"] = [user["Arn"] for user in iam.list_users()["Users"]]
    return found


def entries(data: Path) -> dict[str, list[str]]:
    """Ids of the ledger's entries, by log."""
    from honmaru.security.ledger.tiles import unpack

    found = {}
    for log in sorted((data / "ledger").iterdir()):
        bundles = sorted((log / "tile" / "entries").rglob("*"), key=lambda path: path.as_posix())
        found[log.name] = [
            json.loads(entry)["eventID"] for path in bundles if path.is_file() for entry in unpack(path.read_bytes())
        ]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveEnclave, Path]]:
    directory = tmp_path_factory.mktemp("backup")
    enclave = LiveEnclave(directory / "data").up()
    low = enclave.client("s3")
    low.create_bucket(Bucket="kept", CreateBucketConfiguration={"LocationConstraint": "us-isob-east-1"})
    low.put_object(Bucket="kept", Key="still/low", Body=b"low")
    high, kms = enclave.client("s3", "admin", "SECRET"), enclave.client("kms", "admin", "SECRET")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    big = os.urandom(3 << 20)
    high.put_object(Bucket="kept", Key="still/big", Body=big, ServerSideEncryption="aws:kms", SSEKMSKeyId=key)
    enclave.user("carol", "SECRET")
    yield enclave, directory
    enclave.down()


def test_a_backup_of_a_running_enclave_restores_to_its_equal(site: tuple[LiveEnclave, Path]) -> None:
    enclave, directory = site
    busy = Busy(enclave.client("s3", "admin", "SECRET"))
    try:
        made = honmaru("backup", "--to", str(directory / "one.hmb"), "--data", str(enclave.data))
    finally:
        busy.stop()
    assert made.returncode == 0 and not busy.errors, (made.stderr, busy.errors[:1])
    assert not list(enclave.data.glob("backup.stage*"))
    content = (directory / "one.hmb").read_bytes()
    assert b"still/big" not in content and b"records" not in content
    before = answers(enclave)
    with pytest.raises(HonmaruError, match="exists already"):
        ask(enclave.data, "BackUp", to=str(directory / "one.hmb"), passphrase=PASSPHRASE)

    lookup = [{"AttributeKey": "EventName", "AttributeValue": "BackUp"}]
    said = enclave.client("cloudtrail").lookup_events(LookupAttributes=lookup)["Events"]
    assert len(said) == 2 and PASSPHRASE not in json.dumps(said, default=str)

    restored = directory / "restored"
    done = honmaru("restore", "--from", str(directory / "one.hmb"), "--data", str(restored))
    assert done.returncode == 0 and enclave.account in done.stdout, done.stderr
    verified = honmaru("ledger", "verify", str(restored / "ledger"))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    kept = entries(restored)
    enclave.down()
    other = LiveEnclave(restored).up()
    try:
        assert answers(other) == before
        busy_objects = other.client("s3", "admin", "SECRET").list_objects_v2(Bucket="kept", Prefix="busy/")
        for one in busy_objects.get("Contents", []):  # each record of that instant has its blob
            other.client("s3", "admin", "SECRET").get_object(Bucket="kept", Key=one["Key"])["Body"].read()
    finally:
        other.down()
    # The restored ledger is a prefix of the original's, log for log, and goes on from there.
    original, grown = entries(enclave.data), entries(restored)
    assert set(kept) <= set(original)
    for log, ids in kept.items():
        assert original[log][: len(ids)] == ids and grown[log][: len(ids)] == ids


@pytest.mark.long
@pytest.mark.skipif(not LONG, reason="set HONMARU_LONG=1")
def test_a_backup_of_an_enclave_that_is_down(site: tuple[LiveEnclave, Path]) -> None:
    enclave, directory = site
    enclave.down()
    made = honmaru("backup", "--to", str(directory / "cold.hmb"), "--data", str(enclave.data))
    assert made.returncode == 0, made.stderr
    restored = directory / "cold"
    assert honmaru("restore", "--from", str(directory / "cold.hmb"), "--data", str(restored)).returncode == 0
    assert entries(restored) == entries(enclave.data)
    enclave.up()


def test_a_changed_backup_restores_nothing(site: tuple[LiveEnclave, Path]) -> None:
    _, directory = site
    content = (directory / "one.hmb").read_bytes()
    broken = directory / "broken.hmb"
    places = range(0, len(content), len(content) // (400 if LONG else 3))
    changed = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (*places, len(content) - 1)]
    segment = (1 << 20) + 16
    head = len(content) % segment
    cut = [content[:-1], content[: len(content) - head], content + b"\0", content[:100], b""]
    swapped = content[: -2 * segment] + content[-segment:] + content[-2 * segment : -segment]
    for variant in (*changed, *cut, swapped) if LONG else (*changed[1:], *cut[:2]):
        broken.write_bytes(variant)
        with pytest.raises(HonmaruError):
            backup.restore(broken, directory / "never", PASSPHRASE)
        assert not (directory / "never").exists() and not list(directory.glob(".never*"))
    with pytest.raises(IntegrityFault):
        backup.verify(directory / "one.hmb", "another passphrase")
    with pytest.raises(ConfigurationFault, match="signed by"):
        backup.restore(directory / "one.hmb", directory / "never", PASSPHRASE, signer="00")
    (directory / "full").mkdir()
    (directory / "full" / "x").touch()
    with pytest.raises(ConfigurationFault, match="not empty"):
        backup.restore(directory / "one.hmb", directory / "full", PASSPHRASE)


@pytest.fixture
def _quick_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_MEMORY_KIB", 1024)


def written(files: dict[str, bytes], signer: Signer) -> bytes:
    out = io.BytesIO()
    writer = BackupWriter(out, PASSPHRASE, os.urandom)
    for path, content in files.items():
        writer.add(path, io.BytesIO(content), len(content))
    writer.finish(signer, region="r", account="a", made="t", version="v")
    return out.getvalue()


@pytest.mark.usefixtures("_quick_argon2")
def test_only_the_enclaves_own_key_signs_and_paths_stay_inside() -> None:
    signer = Signer(os.urandom(32))
    line = signer.verifier.line("honmaru/x").encode()

    def read(content: bytes) -> list[str]:
        reader = BackupReader(io.BytesIO(content), PASSPHRASE)
        paths = []
        for entry in reader.entries():
            paths.append(entry.path)
            list(entry.chunks)
        return paths

    files = {"enclave.json": b"{}", "ledger/u/public-key": line, "ledger/s/public-key": line}
    assert read(written(files, signer)) == list(files)
    with pytest.raises(IntegrityFault, match="not signed"):
        read(written(files, Signer(os.urandom(32))))
    with pytest.raises(IntegrityFault, match="no ledger"):
        read(written({"enclave.json": b"{}"}, signer))
    other = Signer(os.urandom(32)).verifier.line("honmaru/x").encode()
    with pytest.raises(IntegrityFault, match="not signed"):
        read(written({**files, "ledger/t/public-key": other}, signer))
    for path in ("../x", "/etc/passwd", "keys/../../x", "keys/.hidden", "run/operator.sock", "keys//x", "keys/"):
        with pytest.raises(IntegrityFault, match="no place"):
            written({path: b""}, signer)


class Void(io.RawIOBase):
    """A file of zeros that is read, and one that swallows what is written."""

    def __init__(self, size: int = 0) -> None:
        self.left = size
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)

    def write(self, content: Any) -> int:
        self.size += len(content)
        return len(content)


@pytest.mark.usefixtures("_quick_argon2")
def test_memory_stays_constant_however_large_a_file_is() -> None:
    size = 64 << 20
    out: Any = Void()
    source: Any = Void(size)
    writer = BackupWriter(out, PASSPHRASE, os.urandom)
    tracemalloc.start()
    writer.add("blobs/large", source, size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out.size > size - (2 << 20) and peak < 8 << 20
