"""Files that a hostile job plants for the collector, and hostile places that a request names, lead nowhere outside."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from honmaru.core.errors import ValidationFault
from honmaru.executors.local import LocalExecutor
from honmaru.executors.local.executor import _remove_tree
from honmaru.executors.local.limits import disk_usage
from honmaru.jobs import trees
from honmaru.jobs.staging import CheckpointSync, checkpoint_folders
from honmaru.ports.executors import Environment, JobSpec, Phase
from honmaru.testing.workshop import BUCKET, Workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("files") / "shop")
    made.make_bucket()
    made.supervisor.start()
    yield made
    made.close()


@pytest.mark.parametrize(
    "local",
    ["/opt/ml//etc", "/opt/ml///etc", "/opt/ml/a//etc", "/opt/ml/./model", "/opt/ml/a/../../x", "/opt/ml/a\0b", "/etc"],
)
def test_a_checkpoint_folder_stays_below_opt_ml(tmp_path: Path, local: str) -> None:
    with pytest.raises(ValidationFault):
        checkpoint_folders(tmp_path, {"LocalPath": local}, 1)


def test_a_checkpoint_folder_of_several_parts(tmp_path: Path) -> None:
    assert checkpoint_folders(tmp_path, {"LocalPath": "/opt/ml/my/own/"}, 1) == [(tmp_path / "algo-1" / "ml", "my/own")]


def test_a_job_cannot_have_the_enclaves_files_written_or_read(shop: Workshop) -> None:
    """The restore before the start wrote, and the sync at the end read, wherever an absolute LocalPath led."""
    target = shop.directory / "keys"
    shop.put("planted/evil", b"overwritten")
    configuration = {"S3Uri": f"s3://{BUCKET}/planted", "LocalPath": f"/opt/ml/{target}"}
    with pytest.raises(ValidationFault):
        shop.train("restore", "true", CheckpointConfig=configuration)
    assert not (target / "evil").exists()


def test_a_link_in_place_of_a_parent_folder_leads_nowhere(shop: Workshop, tmp_path: Path) -> None:
    """The last part of the collected folder is real, an earlier one is a link to a directory of the host."""
    secret = tmp_path / "host" / "data"
    secret.mkdir(parents=True)
    (secret / "secret").write_text("of the host")
    plant = (
        f"import os, shutil; os.chdir('/opt/ml'); shutil.rmtree('output'); os.symlink('{tmp_path}/host', 'output'); "
        f"shutil.rmtree('x', True); os.symlink('{tmp_path}/host', 'x')"
    )
    configuration = {"S3Uri": f"s3://{BUCKET}/stolen", "LocalPath": "/opt/ml/x/data"}
    shop.train("links", "python", "-c", plant, CheckpointConfig=configuration)
    assert shop.wait("links")["TrainingJobStatus"] == "Completed"
    assert shop.keys("stolen") == []
    assert shop.keys("out/links/output/output.tar.gz") == []


def test_the_walk_finds_what_it_should(tmp_path: Path) -> None:
    """The sabotage of the test above: real folders in the same places are collected."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c" / "file").write_text("x")
    (tmp_path / "a" / "b" / "first").write_text("y")
    found = list(trees.files(tmp_path, "a/b"))
    assert [(each.folder, each.name) for each in found] == [("a/b", "first"), ("a/b", "c/file")]
    assert b"".join(trees.chunks(found[1])) == b"x"
    (tmp_path / "real").mkdir()
    (tmp_path / "a").rename(tmp_path / "real" / "a")
    (tmp_path / "a").symlink_to(tmp_path / "real" / "a")
    assert list(trees.files(tmp_path, "a/b")) == []
    with pytest.raises(FileNotFoundError):
        next(trees.chunks(found[1]))
    assert CheckpointSync(None, None, [(tmp_path, "a/b")], "s3://b/p", limit=1).run(final=True) == 0  # type: ignore[arg-type]


def nested(folder: Path, depth: int = 3000) -> None:
    """Folders in folders, far deeper than a path can name."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        following = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = following
    os.close(at)


def test_folders_nested_without_end(tmp_path: Path) -> None:
    """They are refused by the collector, exceed every quota, and can be deleted."""
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for folder in (tree / "closed" / "inner", tree / ".1", outside):
        folder.mkdir(parents=True)
    (outside / "kept").write_text("kept")
    (tree / "closed" / "link").symlink_to(outside)
    (tree / "closed").chmod(0)
    nested(tree)
    try:
        with pytest.raises(ValidationFault, match="nested deeper"):
            list(trees.files(tree))
        assert disk_usage([tree]) > 1 << 60
    finally:
        _remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"


def test_a_file_with_holes_counts_with_its_size(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as stream:
        stream.truncate(1 << 30)
    assert disk_usage([tmp_path]) == 1 << 30


def test_a_job_that_leaves_more_than_its_volume_fails(shop: Workshop) -> None:
    """Files with holes, made at the last moment: they would fill the store with zeros."""
    code = "\nfor i in range(4):\n with open(f'/opt/ml/checkpoints/{i}', 'wb') as f: f.truncate(1 << 29)"
    shop.train("holes", "python", "-c", code, CheckpointConfig={"S3Uri": f"s3://{BUCKET}/holes"})
    job = shop.wait("holes")
    assert job["TrainingJobStatus"] == "Failed"
    assert "VolumeSizeInGB" in job["FailureReason"]
    assert shop.keys("holes") == []


def test_a_socket_folder_is_no_way_around_the_quota(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path / "executor")
    root, sockets = tmp_path / "scratch", tmp_path / "sockets"
    for folder in (*(root / "algo-1" / "ml" / name for name in ("input", "model", "output")), sockets):
        folder.mkdir(parents=True)
    code = "import time\n[open(f'/run/way/{i}', 'wb').write(bytes(8 << 20)) for i in range(4)]\ntime.sleep(20)"
    spec = JobSpec(
        "flood", root, Environment("test", sys.prefix, "", "none"), ("python", "-c", code), {}, "SECRET",
        disk_bytes=16 << 20, sockets={str(sockets): "/run/way"},
    )  # fmt: skip
    executor.start(spec)
    deadline = time.monotonic() + 15
    while (status := executor.status("flood")).phase is Phase.RUNNING and time.monotonic() < deadline:
        time.sleep(0.05)
    executor.forget("flood")
    assert status.reason == "disk-quota"
