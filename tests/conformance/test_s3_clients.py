"""S3 through the clients that people have: AWS CLI v1, rclone, s3fs (both), DuckDB, all unmodified, over https.

Python's clients live in .venv-peers/s3-clients. `make test-clients` installs them and Debian's, and runs this;
without HONMARU_CLIENTS=1 it is skipped, because it takes minutes. Throughput is printed at the end of each test.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from honmaru.testing.enclaves import LiveEnclave

PEERS = Path(sys.prefix).with_name(".venv-peers") / "s3-clients" / "bin"
HERE = Path(__file__).parent / "clients"
FILES = 10_000
BIG = 200 << 20

pytestmark = [
    pytest.mark.skipif(
        not (PEERS / "aws").exists(), reason="the clients are not installed: run `scripts/install-peers s3-clients`"
    ),
    pytest.mark.skipif(os.environ.get("HONMARU_CLIENTS") != "1", reason="takes minutes: run `make test-clients`"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What `honmaru env` sets for alice at SECRET, and nothing of the developer's own."""
    live = LiveEnclave(tmp_path_factory.mktemp("enclave")).up()
    live.user("alice", "SECRET")
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    own = {"AWS_PAGER": "", "ENCLAVE_PID": str(live.pid)}
    yield {**inherited, **live.variables("alice", "SECRET"), **own}
    live.down()


class Aws:
    """The AWS CLI."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory

    def __call__(self, *words: str, fails: str = "", given: bytes | None = None) -> str:
        """Standard output; `fails` is what a failing command must say."""
        done = subprocess.run(
            [PEERS / "aws", *words],
            env=self._environment,
            cwd=self._directory,
            input=given,
            capture_output=True,
            timeout=1200,
            check=False,
        )
        said = done.stderr.decode()
        assert (done.returncode != 0) == bool(fails) and fails in said, (words, done.returncode, said[-2000:])
        return done.stdout.decode()

    def json(self, *words: str) -> dict:  # type: ignore[type-arg]
        return json.loads(self("s3api", *words, "--output", "json") or "{}")


@pytest.fixture
def aws(environment: dict[str, str], tmp_path: Path) -> Aws:
    return Aws(environment, tmp_path)


Timed = Callable[[str, int, str], AbstractContextManager[None]]


@pytest.fixture
def timed(capsys: pytest.CaptureFixture[str], environment: dict[str, str]) -> Timed:
    """Prints how long a block took, and how much of it was the enclave's own processor time: clients take most."""
    stat = Path("/proc", environment["ENCLAVE_PID"], "stat")

    def cpu_s() -> float:
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def measure(what: str, count: int, unit: str) -> Iterator[None]:
        begun, used = time.monotonic(), cpu_s()
        yield
        seconds, own = time.monotonic() - begun, cpu_s() - used
        rate = f"{count / seconds:.0f} {unit}/s; the enclave's CPU {1000 * own / count:.2f} ms each"
        with capsys.disabled():
            print(f"\n    {what}: {count} {unit} in {seconds:.1f} s, {rate}", end="")

    return measure


def make_tree(root: Path, files: int) -> None:
    chance = random.Random(7)
    for number in range(files):
        place = root / f"{number % 100:02}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file-{number:05}.dat").write_bytes(chance.randbytes(chance.randrange(4096)))
    odd = root / "odd é" / "a b+c%2F"
    odd.mkdir(parents=True)
    (odd / "x&y=z?#.txt").write_bytes(b"odd")
    (odd / "empty").write_bytes(b"")


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_sync_of_ten_thousand_files(aws: Aws, tmp_path: Path, timed: Timed) -> None:
    tree = tmp_path / "tree"
    make_tree(tree, FILES)
    aws("s3", "mb", "s3://synced")
    with timed("aws s3 sync, up", FILES + 2, "files"):
        aws("s3", "sync", "tree", "s3://synced/t", "--only-show-errors")
    with timed("aws s3 sync, nothing to do", FILES + 2, "files"):
        assert aws("s3", "sync", "tree", "s3://synced/t", "--no-progress") == ""
    gone = sorted(tree.rglob("file-*"))[:5]
    for path in gone:
        path.unlink()
    changed = sorted(tree.rglob("file-*"))[:3]
    for path in changed:
        path.write_bytes(path.read_bytes() + b"changed")
    said = aws("s3", "sync", "tree", "s3://synced/t", "--delete", "--no-progress").splitlines()
    assert sorted(line.split(":")[0] for line in said) == ["delete"] * 5 + ["upload"] * 3
    with timed("aws s3 sync, down", FILES - 3, "files"):
        aws("s3", "sync", "s3://synced/t", "back", "--only-show-errors")
    assert digests(tmp_path / "back") == digests(tree)
    listed = aws.json("list-objects-v2", "--bucket", "synced", "--query", "{n: length(Contents)}")
    assert listed["n"] == FILES - 3, "the paginator sees them all"
    with timed("aws s3 rm --recursive", FILES - 3, "files"):
        aws("s3", "rm", "s3://synced", "--recursive", "--only-show-errors")
    aws("s3", "rb", "s3://synced")


def test_two_hundred_megabytes_in_parts(aws: Aws, tmp_path: Path, timed: Timed) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        for _ in range(BIG >> 20):
            file.write(os.urandom(1 << 20))
    aws("s3", "mb", "s3://parts")
    with timed("aws s3 cp, up, in parts of 8 MiB", BIG >> 20, "MiB"):
        aws("s3", "cp", "big", "s3://parts/big", "--only-show-errors")
    head = aws.json("head-object", "--bucket", "parts", "--key", "big", "--checksum-mode", "ENABLED")
    assert head["ContentLength"] == BIG and head["ETag"].endswith('-25"')
    with timed("aws s3 cp, down", BIG >> 20, "MiB"):
        aws("s3", "cp", "s3://parts/big", "back", "--only-show-errors")
    assert hashlib.sha256(big.read_bytes()).digest() == hashlib.sha256((tmp_path / "back").read_bytes()).digest()
    with timed("aws s3 cp, copied in parts inside", BIG >> 20, "MiB"):
        aws("s3", "cp", "s3://parts/big", "s3://parts/copy", "--only-show-errors")
    part = aws.json("get-object", "--bucket", "parts", "--key", "copy", "--part-number", "2", "part")
    assert part["ContentLength"] == 8 << 20 and part["PartsCount"] == 25
    assert (tmp_path / "part").read_bytes() == big.read_bytes()[8 << 20 : 16 << 20]
    aws("s3", "rb", "s3://parts", "--force")


def test_streams_moves_and_presigned_urls(aws: Aws, environment: dict[str, str]) -> None:
    aws("s3", "mb", "s3://various")
    aws("s3", "cp", "-", "s3://various/stream é+", given=b"through a pipe")
    assert aws("s3", "cp", "s3://various/stream é+", "-") == "through a pipe"
    aws("s3", "mv", "s3://various/stream é+", "s3://various/moved/here")
    assert "PRE moved/" in aws("s3", "ls", "s3://various")
    assert "14 moved/here" in aws("s3", "ls", "s3://various", "--recursive")
    url = aws("s3", "presign", "s3://various/moved/here").strip()
    context = ssl.create_default_context(cafile=environment["AWS_CA_BUNDLE"])
    with urllib.request.urlopen(url, context=context) as answer:
        assert answer.read() == b"through a pipe"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(url.replace("here", "there"), context=context)
    assert refusal.value.code == 403
    aws("s3", "cp", "s3://various/none", "-", fails="404")
    aws("s3", "rb", "s3://various", fails="BucketNotEmpty")
    aws("s3", "rb", "s3://various", "--force")


def test_versions_and_object_lock(aws: Aws) -> None:
    bucket = ("--bucket", "kept")
    aws("s3api", "create-bucket", *bucket, "--object-lock-enabled-for-bucket", *_place())
    assert aws.json("get-bucket-versioning", *bucket)["Status"] == "Enabled"
    for content in (b"one", b"two"):
        aws("s3", "cp", "-", "s3://kept/k", given=content)
    aws("s3", "rm", "s3://kept/k")
    aws("s3", "cp", "s3://kept/k", "-", fails="404")
    found = aws.json("list-object-versions", *bucket)
    assert len(found["Versions"]) == 2 and len(found["DeleteMarkers"]) == 1
    marker, first = found["DeleteMarkers"][0]["VersionId"], found["Versions"][1]["VersionId"]
    aws("s3api", "delete-object", *bucket, "--key", "k", "--version-id", marker)
    assert aws("s3", "cp", "s3://kept/k", "-") == "two"
    aws("s3api", "get-object", *bucket, "--key", "k", "--version-id", first, "old")
    held = (*bucket, "--key", "k", "--version-id", first)
    aws("s3api", "put-object-legal-hold", *held, "--legal-hold", "Status=ON")
    aws("s3api", "delete-object", *held, fails="AccessDenied")
    aws("s3api", "put-object-legal-hold", *held, "--legal-hold", "Status=OFF")
    until = "Mode=GOVERNANCE,RetainUntilDate=2099-01-01T00:00:00Z"
    aws("s3api", "put-object-retention", *held, "--retention", until)
    assert aws.json("get-object-retention", *held)["Retention"]["Mode"] == "GOVERNANCE"
    aws("s3api", "delete-object", *held, fails="AccessDenied")
    aws("s3api", "delete-object", *held, "--bypass-governance-retention")
    assert len(aws.json("list-object-versions", *bucket)["Versions"]) == 1


def test_settings_of_buckets(aws: Aws, tmp_path: Path) -> None:
    bucket = ("--bucket", "set")
    aws("s3api", "create-bucket", *bucket, *_place())
    rules = {"Rules": [{"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 3}}]}
    aws("s3api", "put-bucket-lifecycle-configuration", *bucket, "--lifecycle-configuration", json.dumps(rules))
    assert aws.json("get-bucket-lifecycle-configuration", *bucket)["Rules"] == rules["Rules"]
    cors = {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"], "MaxAgeSeconds": 5}]}
    aws("s3api", "put-bucket-cors", *bucket, "--cors-configuration", json.dumps(cors))
    assert aws.json("get-bucket-cors", *bucket) == cors
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": "arn:aws-iso-b:s3:::set/*"}
    aws("s3api", "put-bucket-policy", *bucket, "--policy", json.dumps({"Version": "2012-10-17", "Statement": deny}))
    aws("s3", "cp", "-", "s3://set/k", given=b"x")
    aws("s3", "rm", "s3://set/k", fails="AccessDenied")
    aws("s3api", "delete-bucket-policy", *bucket)
    aws("s3", "rm", "s3://set/k")
    aws("s3api", "put-bucket-policy", *bucket, "--policy", "{", fails="MalformedPolicy")


def _place() -> tuple[str, str]:
    return "--create-bucket-configuration", "LocationConstraint=us-isob-east-1"


def test_rclone(environment: dict[str, str], tmp_path: Path, timed: Timed) -> None:
    program = shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed: apt-get install rclone")
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": environment["AWS_ENDPOINT_URL"],
        "REGION": environment["AWS_REGION"],
        "LOCATION_CONSTRAINT": environment["AWS_REGION"],
        "ACCESS_KEY_ID": environment["AWS_ACCESS_KEY_ID"],
        "SECRET_ACCESS_KEY": environment["AWS_SECRET_ACCESS_KEY"],
    }
    given = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    given |= {f"RCLONE_CONFIG_H_{name}": value for name, value in settings.items()}
    given |= {"RCLONE_CONFIG": "/dev/null", "RCLONE_CA_CERT": environment["AWS_CA_BUNDLE"]}

    def rclone(*words: str, text: bytes | None = None) -> str:
        done = subprocess.run(
            [program, *words], env=given, cwd=tmp_path, input=text, capture_output=True, timeout=600, check=False
        )
        assert done.returncode == 0, (words, done.stderr.decode()[-2000:])
        return done.stdout.decode() + done.stderr.decode()

    tree = tmp_path / "tree"
    make_tree(tree, 1000)
    rclone("mkdir", "h:rclone")
    with timed("rclone copy, up", 1002, "files"):
        rclone("copy", "tree", "h:rclone/t")
    rclone("check", "tree", "h:rclone/t")
    rclone("check", "--download", "tree", "h:rclone/t")
    assert "There was nothing to transfer" in rclone("sync", "-v", "tree", "h:rclone/t")
    next(tree.rglob("file-*")).unlink()
    assert "Deleted: " in rclone("sync", "-v", "tree", "h:rclone/t").replace("Deleted:  ", "Deleted: ")
    (tmp_path / "big").write_bytes(os.urandom(40 << 20))
    with timed("rclone copy, up, in parts of 5 MiB", 40, "MiB"):
        rclone("copy", "big", "h:rclone", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M")
    rclone("check", "--download", ".", "h:rclone", "--include", "/big")
    rclone("moveto", "h:rclone/big", "h:rclone/moved/big")
    assert json.loads(rclone("lsjson", "h:rclone/moved"))[0]["Size"] == 40 << 20
    rclone("rcat", "h:rclone/rcat é", text=b"hello")
    assert rclone("cat", "h:rclone/rcat é") == "hello"
    rclone("copy", "h:rclone/t", "back")
    assert digests(tmp_path / "back") == digests(tree)
    rclone("purge", "h:rclone")


def test_a_bucket_mounted_as_a_file_system(environment: dict[str, str], aws: Aws, tmp_path: Path) -> None:
    """s3fs, the FUSE one: files, directories, links, modes, appending, renaming, cutting off."""
    program = shutil.which("s3fs")
    if program is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("s3fs is not installed (apt-get install s3fs), or there is no /dev/fuse")
    aws("s3", "mb", "s3://mounted")
    mount, passwords = tmp_path / "mount", tmp_path / "passwords"
    mount.mkdir()
    passwords.write_text(f"{environment['AWS_ACCESS_KEY_ID']}:{environment['AWS_SECRET_ACCESS_KEY']}")
    passwords.chmod(0o600)
    options = f"passwd_file={passwords},url={environment['AWS_ENDPOINT_URL']},endpoint={environment['AWS_REGION']}"
    given = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    subprocess.run(
        [program, "mounted", mount, "-o", f"{options},use_path_request_style,sigv4,multipart_size=5"],
        env={**given, "CURL_CA_BUNDLE": environment["AWS_CA_BUNDLE"]},
        check=True,
        timeout=60,
    )
    try:
        _wait_for(lambda: os.path.ismount(mount))
        tree = tmp_path / "tree"
        make_tree(tree, 30)
        shutil.copytree(tree, mount / "d")
        assert digests(mount / "d") == digests(tree)
        (mount / "d").rename(mount / "e")
        assert digests(mount / "e") == digests(tree) and not (mount / "d").exists()
        big = os.urandom(12_000_000)
        (mount / "big").write_bytes(big)
        assert (mount / "big").read_bytes() == big
        note = mount / "note"
        note.write_text("hello")
        with note.open("a") as file:
            file.write(" more")
        note.chmod(0o600)
        (mount / "link").symlink_to("note")
        assert (mount / "link").read_text() == "hello more" and note.stat().st_mode & 0o777 == 0o600
        with note.open("r+") as file:  # by path, s3fs 1.90 uploads zeros without having read the file
            file.truncate(4)
        assert note.read_text() == "hell"
        shutil.rmtree(mount / "e")
        assert sorted(os.listdir(mount)) == ["big", "link", "note"]
    finally:
        subprocess.run(["fusermount", "-u", mount], check=True, timeout=60)
    assert aws("s3", "cp", "s3://mounted/note", "-") == "hell"


def _wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(100):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happened for ten seconds")


def test_s3fs(environment: dict[str, str]) -> None:
    assert "s3fs" in _scenario(environment, "s3fs_scenario.py")


def test_duckdb(environment: dict[str, str], aws: Aws, tmp_path: Path) -> None:
    aws("s3", "mb", "s3://duckdb")
    assert "duckdb" in _scenario(environment, "duckdb_scenario.py", "duckdb", str(tmp_path / "extensions"))


def _scenario(environment: dict[str, str], name: str, *words: str) -> str:
    done = subprocess.run(
        [PEERS / "python", HERE / name, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
