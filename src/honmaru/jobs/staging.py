"""Laying out /opt/ml for a job: channels from S3, configuration files, submitted code, earlier checkpoints.

Layout per instance under `<root>/algo-N/ml`, as SageMaker documents it:

    input/config/{hyperparameters,inputdataconfig,resourceconfig}.json   input/data/<channel>/...
    input/submit/sourcedir.tar.gz   (honmaru's place for `sagemaker_submit_directory`, there is no network inside)
    model/   output/data/   checkpoints/   code/

Invariants:
- Everything is read from S3 as the job's session: its role's policies and its label decide.
- Nothing is unpacked or interpreted here: archives are opened inside the sandbox only.
- Staging the same job again gives the same tree.

Source: Amazon SageMaker developer guide, "How Amazon SageMaker provides training information".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.core.sessions import Session
from honmaru.jobs import trees
from honmaru.ports.buckets import Buckets, StoredObject, split_uri

SUBMIT_DIRECTORY = "sagemaker_submit_directory"
CHECKPOINTS = "/opt/ml/checkpoints"

Folder = tuple[Path, str]
"""(a directory of ours, a path below it that a job may have changed)."""


def private_folder(path: Path) -> None:
    """An empty directory for nobody else."""
    path.mkdir(mode=0o700, parents=True)


@dataclass(frozen=True, slots=True)
class Staging:
    """Stages one job.

    Args:
        root: The job's scratch directory; emptied first.
        request: CreateTrainingJob's members.
        instance_type: What resourceconfig.json shall name.
        keep_going: Called between objects; raises to break off.
        lay_root: Makes the empty root.
    """

    buckets: Buckets
    session: Session
    root: Path
    request: Mapping[str, Any]
    instances: int
    volume_bytes: int
    keep_going: Callable[[], None]
    lay_root: Callable[[Path], None] = private_folder

    def run(self) -> None:
        """Raises ValidationFault, NotFound or AccessDenied with a message fit for FailureReason."""
        if self.root.exists():
            shutil.rmtree(self.root)
        self.lay_root(self.root)
        for number in range(1, self.instances + 1):
            for folder in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
                (self._ml(number) / folder).mkdir(parents=True)
            self._write_configuration(number)
        left = self.volume_bytes
        for channel in self.request.get("InputDataConfig") or []:
            left -= self._stage_channel(channel, left)
        left -= self._stage_submission(left)
        self._restore_checkpoints(left)

    def _ml(self, number: int) -> Path:
        return self.root / f"algo-{number}" / "ml"

    def _write_configuration(self, number: int) -> None:
        request = self.request
        hosts = [f"algo-{each}" for each in range(1, self.instances + 1)]
        instance_type = request["ResourceConfig"]["InstanceType"]
        channels = {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"],
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get("S3DataDistributionType")
                or "FullyReplicated",
                "RecordWrapperType": channel.get("RecordWrapperType") or "None",
                **({"ContentType": channel["ContentType"]} if channel.get("ContentType") else {}),
            }
            for channel in request.get("InputDataConfig") or []
        }
        documents = {
            "hyperparameters.json": dict(request.get("HyperParameters") or {}),
            "inputdataconfig.json": channels,
            "resourceconfig.json": {
                "current_host": hosts[number - 1],
                "current_instance_type": instance_type,
                "current_group_name": "homogeneousCluster",
                "hosts": hosts,
                "instance_groups": [
                    {"instance_group_name": "homogeneousCluster", "instance_type": instance_type, "hosts": hosts}
                ],
                "network_interface_name": "lo",
            },
        }
        for name, document in documents.items():
            (self._ml(number) / "input" / "config" / name).write_text(json.dumps(document))

    def _stage_channel(self, channel: Mapping[str, Any], left: int) -> int:
        source = channel["DataSource"]["S3DataSource"]
        name = channel["ChannelName"]
        objects = self._objects(source["S3Uri"])
        if not objects:
            raise ValidationFault(
                f'Data download failed: no S3 objects found under S3 URL "{source["S3Uri"]}" of channel {name!r}'
            )
        sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
        staged = 0
        for position, (path, stored) in enumerate(objects):
            self.keep_going()
            numbers = [position % self.instances + 1] if sharded else list(range(1, self.instances + 1))
            first = trees.place(self._ml(numbers[0]) / "input" / "data" / name, path)
            content = self.buckets.read(self.session, stored.bucket, stored.key)
            staged += trees.write(first, content, left - staged)
            for number in numbers[1:]:  # the same file: inputs are read-only inside
                os.link(first, trees.place(self._ml(number) / "input" / "data" / name, path))
        for number in range(1, self.instances + 1):
            (self._ml(number) / "input" / "data" / name).mkdir(exist_ok=True)
        return staged

    def _objects(self, uri: str) -> list[tuple[str, StoredObject]]:
        """(path inside the channel, object) for an S3Prefix: the prefix is a key, a folder or a beginning of names."""
        bucket, prefix = split_uri(uri)
        found: list[tuple[str, StoredObject]] = []
        for stored in self.buckets.list(self.session, bucket, prefix):
            if stored.key.endswith("/"):
                continue
            rest = stored.key[len(prefix) :]
            if not prefix.endswith("/") and not rest.startswith("/"):
                rest = stored.key[prefix.rfind("/") + 1 :]
            found.append((rest.removeprefix("/"), stored))
        return found

    def _stage_submission(self, left: int) -> int:
        uri = unquoted((self.request.get("HyperParameters") or {}).get(SUBMIT_DIRECTORY, ""))
        if not uri.startswith("s3://"):
            return 0  # a path inside the container: a channel brought the code
        bucket, key = split_uri(uri)
        staged = 0
        for number in range(1, self.instances + 1):
            target = trees.place(self._ml(number) / "input" / "submit", "sourcedir.tar.gz")
            staged = trees.write(target, self.buckets.read(self.session, bucket, key), left)
        return staged

    def _restore_checkpoints(self, left: int) -> None:
        configuration = self.request.get("CheckpointConfig")
        if not configuration:
            return
        folders = checkpoint_folders(self.root, configuration, self.instances)
        for root, name in folders:
            (root / name).mkdir(parents=True, exist_ok=True)
        bucket, prefix = split_uri(configuration["S3Uri"])
        prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        for stored in self.buckets.list(self.session, bucket, prefix):
            self.keep_going()
            path = stored.key[len(prefix) :]
            if path and not path.endswith("/"):
                for root, name in folders:
                    content = self.buckets.read(self.session, bucket, stored.key)
                    left -= trees.write(trees.place(root / name, path), content, left)


class CheckpointSync:
    """Copies new and changed files of the checkpoint folders to S3, as the job's session.

    Folders whose files are together larger than `limit` bytes are not copied at all: files with holes take no space
    here and would there. The job's runner ends such a job for its quota.
    """

    def __init__(self, buckets: Buckets, session: Session, folders: Sequence[Folder], uri: str, *, limit: int) -> None:
        self._limit = limit
        self._buckets = buckets
        self._session = session
        self._folders = folders
        self._bucket, prefix = split_uri(uri)
        self._prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        self._seen: dict[tuple[Path, str], tuple[int, int]] = {}
        self._copied: dict[tuple[Path, str], tuple[int, int]] = {}

    def run(self, *, final: bool) -> int:
        """Copy what changed; unless `final`, only files that did not change since the last look. Returns how many."""
        count = 0
        everything = list(self._found())
        if sum(found.size for found in everything) > self._limit:
            return 0
        for found in everything:
            key, version = (found.root, found.name), (found.size, found.modified_ns)
            settled = final or self._seen.get(key) == version
            self._seen[key] = version
            if settled and self._copied.get(key) != version:
                try:
                    content = trees.chunks(found)
                    self._buckets.write(self._session, self._bucket, f"{self._prefix}{found.name}", content)
                except FileNotFoundError:
                    continue
                self._copied[key] = version
                count += 1
        return count

    def _found(self) -> Iterator[trees.Found]:
        for root, name in self._folders:
            yield from trees.files(root, name)


def checkpoint_folders(root: Path, configuration: Mapping[str, Any], instances: int) -> list[Folder]:
    """Where the checkpoints of each instance lie on this machine. Raises ValidationFault for a LocalPath elsewhere."""
    local = str(configuration.get("LocalPath") or CHECKPOINTS).rstrip("/")
    inside = local.removeprefix("/opt/ml/")
    parts = inside.split("/")
    taken = ("input", "output", "model", "code")
    if inside == local or not all(map(trees.is_part, parts)) or parts[0] in taken:
        raise ValidationFault(f"CheckpointConfig.LocalPath {local!r} must be a folder of its own below /opt/ml/")
    return [(root / f"algo-{number}" / "ml", inside) for number in range(1, instances + 1)]


def unquoted(value: str) -> str:
    """A hyperparameter as the SDK meant it: JSON strings lose their quotes, everything else stays."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            decoded = json.loads(value)
        except ValueError:
            return value
        return decoded if isinstance(decoded, str) else value
    return value
