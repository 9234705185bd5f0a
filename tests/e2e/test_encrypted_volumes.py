"""VolumeKmsKeyId: scratch that lies on the disk under a key of KMS only, or a clear refusal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from honmaru.core.errors import ExecutorLost
from honmaru.executors.local import FscryptVolumes
from honmaru.testing.enclaves import LiveEnclave

CANARY = b"in-the-clear-" + b"0123456789" * 8
SCRIPT = (  # an entry of ContainerEntrypoint is one line of at most 256 characters
    "import os,time;t='in-the-clear-'+'0123456789'*8;"
    "[open('/opt/ml/'+p,'w').write(t*1000) for p in ('checkpoints/kept','output/data/made','model/weights')];"
    "[time.sleep(.1) for _ in iter(lambda:os.path.exists('/opt/ml/checkpoints/go'),True)]"
)


@pytest.fixture(scope="module")
def encrypting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(mount point, image) of an ext4 file system with native encryption; skipped where none can be mounted."""
    folder = tmp_path_factory.mktemp("fscrypt")
    image, point = folder / "image", folder / "mounted"
    point.mkdir()
    image.touch()
    os.truncate(image, 3 << 30)
    make = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if make is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root and e2fsprogs")
    subprocess.run([make, "-q", "-O", "encrypt", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=False).returncode:
        pytest.skip("this machine mounts no images")
    yield point, image
    subprocess.run(["umount", str(point)], check=True)


def on_disk(image: Path, text: bytes) -> bool:
    """Whether the image's own blocks hold a text anywhere; its holes are passed over."""
    os.sync()
    with image.open("rb") as stream:
        size, at = stream.seek(0, os.SEEK_END), 0
        while at < size:
            try:
                begin = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError:
                return False
            at = os.lseek(stream.fileno(), begin, os.SEEK_HOLE)
            stream.seek(begin)
            if text in stream.read(at - begin):
                return True
    return False


@pytest.mark.long
def test_a_volume_opens_under_its_key_only(encrypting: tuple[Path, Path]) -> None:
    point, image = encrypting
    volumes, folder = FscryptVolumes(), point / "volume"
    assert volumes.supported(point)
    volumes.create(folder, os.urandom(32))
    (folder / "a name in the clear").write_bytes(CANARY)
    (point / "plain").write_bytes(b"seen-" + CANARY[::-1])
    assert on_disk(image, b"seen-" + CANARY[::-1])  # the sweep finds what is there
    assert not on_disk(image, CANARY) and not on_disk(image, b"a name in the clear")
    held = volumes.held(folder)
    assert held and not volumes.held(point)
    volumes.release(point, held)
    assert os.listdir(folder) != ["a name in the clear"]
    with pytest.raises(OSError):
        (folder / os.listdir(folder)[0]).read_bytes()
    shutil.rmtree(folder)
    with pytest.raises(ExecutorLost):
        volumes.create(folder, b"short")


@pytest.mark.long
def test_a_job_works_on_a_volume_under_a_key_of_kms(encrypting: tuple[Path, Path]) -> None:
    point, image = encrypting
    enclave = LiveEnclave(point / "enclave").up()
    try:
        key = enclave.client("kms").create_key()["KeyMetadata"]["KeyId"]
        site = Site(enclave)
        site.begin("sealed", key)
        root = site.scratch()
        made = root / "algo-1/ml/checkpoints/kept"
        site.wait(lambda: made.exists() and made.stat().st_size == len(CANARY) * 1000)
        assert made.read_bytes().startswith(CANARY)
        assert FscryptVolumes().held(root) and not on_disk(image, CANARY)
        (root / "algo-1/ml/checkpoints/go").touch()
        assert site.end("sealed")["TrainingJobStatus"] == "Completed"
        assert not root.exists() and not on_disk(image, CANARY)
        enclave.client("kms").disable_key(KeyId=key)
        site.begin("refused", key)
        ended = site.end("refused")
        assert ended["TrainingJobStatus"] == "Failed" and "disabled" in ended["FailureReason"], ended
        uses = [
            event["EventName"]
            for event in enclave.client("cloudtrail").lookup_events(
                LookupAttributes=[{"AttributeKey": "EventSource", "AttributeValue": "kms.amazonaws.com"}]
            )["Events"]
        ]
        assert uses.count("GenerateDataKey") >= 2
    finally:
        enclave.down()


def test_where_nothing_encrypts_the_member_is_refused(enclave: LiveEnclave) -> None:
    if FscryptVolumes().supported(enclave.data):
        pytest.skip("the file system of the tests encrypts")
    kms, site = enclave.client("kms"), Site(enclave)
    with pytest.raises(ClientError, match=r"VolumeKmsKeyId.*does not encrypt"):
        site.begin("plain", kms.create_key()["KeyMetadata"]["KeyId"])
    with pytest.raises(ClientError, match="VolumeKmsKeyId names no key"):
        site.begin("plain", "00000000-0000-4000-8000-000000000000")


class Site:
    """A role, a bucket and jobs of one enclave."""

    def __init__(self, enclave: LiveEnclave) -> None:
        self.enclave, self.sagemaker = enclave, enclave.client("sagemaker")
        trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        iam, self.s3 = enclave.client("iam"), enclave.client("s3")
        iam.create_role(
            RoleName="volumes", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": trust})
        )
        everything = {"Effect": "Allow", "Action": ["s3:*", "kms:*"], "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": everything})
        iam.put_role_policy(RoleName="volumes", PolicyName="own", PolicyDocument=document)
        self.role = f"arn:{enclave.facts['partition']}:iam::{enclave.account}:role/volumes"
        self.s3.create_bucket(Bucket="volume-jobs", CreateBucketConfiguration={"LocationConstraint": enclave.region})

    def begin(self, name: str, key: str) -> None:
        self.sagemaker.create_training_job(
            TrainingJobName=name,
            RoleArn=self.role,
            AlgorithmSpecification={
                "TrainingImage": "pytorch",
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["python", "-c", SCRIPT],
            },
            OutputDataConfig={"S3OutputPath": "s3://volume-jobs/out"},
            ResourceConfig={
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
                "VolumeKmsKeyId": key,
            },
            StoppingCondition={"MaxRuntimeInSeconds": 300},
            EnableNetworkIsolation=True,
        )

    def wait(self, there: Any) -> None:
        deadline = time.monotonic() + 90
        while not there():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def scratch(self) -> Path:
        """The root of the only job that runs."""
        scratch: Path = self.enclave.data / "scratch"
        self.wait(lambda: scratch.exists() and any(scratch.glob("tj-*")))
        return next(scratch.glob("tj-*"))

    def end(self, name: str) -> dict[str, Any]:
        done = ("Completed", "Failed", "Stopped")

        def job() -> dict[str, Any]:
            told: dict[str, Any] = self.sagemaker.describe_training_job(TrainingJobName=name)
            return told

        self.wait(lambda: job()["TrainingJobStatus"] in done)
        return job()
