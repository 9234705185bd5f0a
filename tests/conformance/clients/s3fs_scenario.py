"""s3fs (fsspec), unmodified: files, streams, versions. Runs in .venv-peers/s3-clients."""

import os
import ssl
import tempfile
import urllib.request
from pathlib import Path

import s3fs

plain = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])


def files() -> None:
    fs = s3fs.S3FileSystem()
    fs.mkdir("fs-files")
    assert "fs-files" in fs.ls("")
    with fs.open("fs-files/a/b é+.txt", "wb") as file:
        file.write(b"hello")
    assert fs.cat("fs-files/a/b é+.txt") == b"hello"
    assert fs.info("fs-files/a/b é+.txt")["size"] == 5 and not fs.exists("fs-files/none")
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name, "tree")
        for number in range(40):
            place = tree / f"{number % 4}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"f{number}").write_bytes(os.urandom(number * 50))
        fs.put(f"{tree}/", "fs-files/tree/", recursive=True)
        assert len(fs.find("fs-files/tree")) == 40
        assert fs.glob("fs-files/tree/**/f1?")[0] == "fs-files/tree/0/f12"
        fs.get("fs-files/tree/", f"{name}/back/", recursive=True)
        for path in tree.rglob("f*"):
            assert (Path(name, "back") / path.relative_to(tree)).read_bytes() == path.read_bytes()
    fs.cp("fs-files/a/b é+.txt", "fs-files/c")
    fs.mv("fs-files/c", "fs-files/d")
    assert fs.ls("fs-files") == ["fs-files/a", "fs-files/d", "fs-files/tree"]
    fs.setxattr("fs-files/d", copy_kwargs={"ContentType": "text/plain"}, mykey="v")
    assert fs.getxattr("fs-files/d", "mykey") == "v"
    fs.put_tags("fs-files/d", {"t": "1"})
    assert fs.get_tags("fs-files/d") == {"t": "1"}
    with urllib.request.urlopen(fs.sign("fs-files/d"), context=plain) as answer:
        assert answer.read() == b"hello"
    with fs.open("fs-files/d", "ab") as file:
        file.write(b" more")
    assert fs.cat("fs-files/d") == b"hello more"
    fs.rm("fs-files", recursive=True)
    assert "fs-files" not in fs.ls("")


def streams() -> None:
    fs = s3fs.S3FileSystem()
    fs.mkdir("fs-streams")
    content = os.urandom(23_000_000)
    with fs.open("fs-streams/big", "wb", block_size=5 << 20) as file:
        for at in range(0, len(content), 1_000_000):
            file.write(content[at : at + 1_000_000])
    assert "-" in fs.info("fs-streams/big")["ETag"], "it went in parts"
    with fs.open("fs-streams/big", "rb") as file:
        file.seek(17_000_000)
        assert file.read(1000) == content[17_000_000:17_001_000]
    assert fs.cat("fs-streams/big") == content
    assert fs.cat_file("fs-streams/big", start=5, end=10) == content[5:10]
    fs.rm("fs-streams", recursive=True)


def versions() -> None:
    fs = s3fs.S3FileSystem(version_aware=True)
    fs.mkdir("fs-versions")
    fs.make_bucket_versioned("fs-versions")
    for content in (b"1", b"2"):
        with fs.open("fs-versions/k", "wb") as file:
            file.write(content)
    found = fs.object_version_info("fs-versions/k")
    assert [one["IsLatest"] for one in found] == [True, False]
    assert fs.cat("fs-versions/k") == b"2"
    with fs.open("fs-versions/k", version_id=found[1]["VersionId"]) as file:
        assert file.read() == b"1"


files()
streams()
versions()
print("s3fs", s3fs.__version__)
