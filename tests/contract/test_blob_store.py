"""What every blob store promises (ports.blobs): on a directory, on obstore's in-memory store as the remote kind, and
on a real S3: Ceph's radosgw from Debian (`make test-radosgw`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ceph_cluster import Radosgw

from honmaru.core.errors import StoreUnavailable
from honmaru.stores.blobs_obstore import ObstoreBlobStore


@pytest.fixture(params=["directory", "remote", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObstoreBlobStore]:
    if request.param == "s3":
        if os.environ.get("HONMARU_RADOSGW") != "1":
            pytest.skip("needs a Ceph cluster of its own: run `make test-radosgw`")
        gateway: Radosgw = request.getfixturevalue("radosgw")
        yield ObstoreBlobStore(gateway.location(), gateway.keys)
        return
    yield ObstoreBlobStore(tmp_path / "blobs" if request.param == "directory" else "memory:///")


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Radosgw]:
    with Radosgw(tmp_path_factory.mktemp("ceph")) as gateway:
        yield gateway


def test_what_was_written_is_read_back_at_any_place(blobs: ObstoreBlobStore) -> None:
    content = os.urandom(3 << 20)
    assert blobs.write("1/aa/x", [content[:7], b"", content[7:]]) == len(content)
    assert blobs.size("1/aa/x") == len(content)
    assert blobs.read("1/aa/x", 0, len(content)) == content
    assert blobs.read("1/aa/x", 1 << 20, 10) == content[1 << 20 : (1 << 20) + 10]
    assert blobs.read("1/aa/x", len(content) - 3, 10) == content[-3:]
    assert blobs.read("1/aa/x", len(content), 10) == b""
    assert blobs.read("1/aa/x", len(content) + 5, 10) == b""


def test_an_empty_blob(blobs: ObstoreBlobStore) -> None:
    assert blobs.write("1/aa/empty", []) == 0
    assert blobs.size("1/aa/empty") == 0 and blobs.read("1/aa/empty", 0, 1) == b""


def test_a_missing_path(blobs: ObstoreBlobStore) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.read("1/aa/none", 0, 1)
    with pytest.raises(FileNotFoundError):
        blobs.size("1/aa/none")
    blobs.delete("1/aa/none")


def test_delete_and_list(blobs: ObstoreBlobStore) -> None:
    for path in ("1/aa/x", "1/ab/y", "2/aa/z"):
        blobs.write(path, [b"."])
    assert sorted(blobs.paths("")) == ["1/aa/x", "1/ab/y", "2/aa/z"]
    assert sorted(blobs.paths("1/a")) == ["1/aa/x", "1/ab/y"]
    blobs.delete("1/aa/x")
    assert sorted(blobs.paths("1/")) == ["1/ab/y"]


def test_nothing_is_stored_when_the_chunks_fail(blobs: ObstoreBlobStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 100
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="went away"):
        blobs.write("1/aa/x", broken())
    assert list(blobs.paths("")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_leftovers_of_a_crash_are_deleted_and_never_listed(tmp_path: Path) -> None:
    first = ObstoreBlobStore(tmp_path)
    first.write("1/aa/x", [b"."])
    (tmp_path / ".incoming" / "half").write_bytes(b"half")
    assert list(first.paths("")) == ["1/aa/x"]
    ObstoreBlobStore(tmp_path)
    assert not (tmp_path / ".incoming" / "half").exists()


def test_files_are_private(tmp_path: Path) -> None:
    ObstoreBlobStore(tmp_path).write("1/aa/x", [b"."])
    assert (tmp_path / "1/aa/x").stat().st_mode & 0o077 == 0
    assert (tmp_path / "1").stat().st_mode & 0o077 == 0


def test_a_full_disk_is_store_unavailable(tmp_path: Path) -> None:
    store = ObstoreBlobStore(tmp_path)
    (tmp_path / "1").write_bytes(b"a file where a directory must be")
    with pytest.raises(StoreUnavailable):
        store.write("1/aa/x", [b"."])


def test_a_local_write_is_fsynced_file_and_directory(tmp_path: Path) -> None:
    """Durability cannot be seen from inside, so the calls are: fsync of the file, rename, fsync of the directory."""
    script = (
        "import os, sys\n"
        "calls = []\n"
        "real = os.fsync\n"
        "os.fsync = lambda fd: (calls.append(os.readlink(f'/proc/self/fd/{fd}')), real(fd))\n"
        "from honmaru.stores.blobs_obstore import ObstoreBlobStore\n"
        "ObstoreBlobStore(sys.argv[1]).write('1/aa/x', [b'.'])\n"
        "print(*calls, sep='\\n')\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    synced = run.stdout.split()
    assert synced[0].startswith(str(tmp_path / ".incoming"))
    assert synced[-1] == str(tmp_path / "1/aa")
    assert {str(tmp_path), str(tmp_path / "1")} <= set(synced)


# A real S3 only

needs_radosgw = pytest.mark.skipif(
    os.environ.get("HONMARU_RADOSGW") != "1", reason="needs a Ceph cluster of its own: run `make test-radosgw`"
)


@needs_radosgw
def test_a_large_blob_goes_in_parts_and_a_broken_one_leaves_none(radosgw: Radosgw) -> None:
    location = radosgw.location()
    bucket = location.split("/")[2]
    store = ObstoreBlobStore(location, radosgw.keys)
    content = os.urandom(40 << 20)
    assert store.write("1/aa/x", (content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20))) == 40 << 20
    assert store.read("1/aa/x", 0, len(content)) == content
    assert "-" in radosgw.client().head_object(Bucket=bucket, Key="some/prefix/1/aa/x")["ETag"]

    def broken() -> Iterator[bytes]:
        for at in range(20):
            yield content[at << 20 : (at + 1) << 20]
        raise RuntimeError("the client went away")

    with pytest.raises(RuntimeError, match="went away"):
        store.write("1/aa/y", broken())
    assert list(store.paths("")) == ["1/aa/x"]
    assert not radosgw.client().list_multipart_uploads(Bucket=bucket).get("Uploads"), "no part is left behind"


@needs_radosgw
def test_what_a_remote_store_refuses_is_store_unavailable(radosgw: Radosgw) -> None:
    wrong = ObstoreBlobStore(radosgw.location(), {**radosgw.keys, "secret_access_key": "wrong"})
    for attempt in (
        lambda: wrong.write("1/aa/x", [b"."]),
        lambda: wrong.read("1/aa/x", 0, 1),
        lambda: wrong.delete("1/aa/x"),
        lambda: list(wrong.paths("")),
    ):
        with pytest.raises(StoreUnavailable):
            attempt()


@needs_radosgw
def test_an_enclave_keeps_its_objects_in_it(radosgw: Radosgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live enclave whose blobs lie in Ceph: objects, ranges and parts through boto3, sealed in the bucket."""
    from honmaru.testing.enclaves import LiveEnclave

    location = radosgw.location()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", radosgw.keys["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", radosgw.keys["secret_access_key"])
    live = LiveEnclave(tmp_path / "enclave").up("--blobs", location)
    try:
        live.user("alice", "SECRET")
        s3 = live.client("s3", "alice", "SECRET")
        s3.create_bucket(Bucket="in-ceph", CreateBucketConfiguration={"LocationConstraint": live.region})
        content = os.urandom(3 << 20) + b"a marker that must not be in the clear"
        s3.put_object(Bucket="in-ceph", Key="k", Body=content)
        assert s3.get_object(Bucket="in-ceph", Key="k")["Body"].read() == content
        got = s3.get_object(Bucket="in-ceph", Key="k", Range="bytes=2000000-2000009")
        assert got["Body"].read() == content[2000000:2000010]
        s3.delete_object(Bucket="in-ceph", Key="k")
        s3.put_object(Bucket="in-ceph", Key="kept", Body=content)
    finally:
        live.down()
    inside = radosgw.client()
    bucket = location.split("/")[2]
    blobs = inside.list_objects_v2(Bucket=bucket)["Contents"]
    assert len(blobs) == 1, "the deleted object's blob is gone"
    sealed = inside.get_object(Bucket=bucket, Key=blobs[0]["Key"])["Body"].read()
    assert len(sealed) > len(content) and b"a marker" not in sealed
