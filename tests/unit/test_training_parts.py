"""The parts that training jobs are made of: state table, trees, archives, script mode, metrics, instance types."""

from __future__ import annotations

import io
import json
import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.errors import ConfigurationFault, Conflict, ValidationFault
from honmaru.executors.local import cgroups
from honmaru.jobs import metrics, trees
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity, size_of
from honmaru.jobs.training_states import FINAL, PRIMARY, TABLE, advance, begin
from honmaru.workloads.archives import BadArchive, unpack
from honmaru.workloads.script import BadSubmission, arguments, command, describe, fetch_code, variables

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@given(st.lists(st.sampled_from(sorted({event for _, event in TABLE})), max_size=12))
def test_only_the_tables_transitions_happen_and_final_is_final(events: list[str]) -> None:
    body: dict[str, Any] = {}
    state = begin(body, NOW)
    for event in events:
        before = json.dumps(body)
        if (body["secondary"], event) in TABLE:
            assert state not in FINAL
            state = advance(body, event, NOW)
            assert state == PRIMARY[body["secondary"]]
        else:
            with pytest.raises(Conflict):
                advance(body, event, NOW)
            assert json.dumps(body) == before
    assert [each["status"] for each in body["transitions"]][-1] == body["secondary"]


def test_every_status_that_is_not_final_can_end() -> None:
    for status in PRIMARY:
        assert (PRIMARY[status] in FINAL) == (not any(source == status for source, _ in TABLE))


def test_trees_pass_over_everything_but_plain_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "plain").write_text("x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    assert [found.name for found in trees.files(tmp_path)] == ["d/plain"]
    assert trees.text(tmp_path, "link", 10) is None
    assert trees.text(tmp_path, "folder/passwd", 10) is None
    assert trees.text(tmp_path, "pipe", 10) is None
    assert list(trees.files(tmp_path / "folder")) == []


def test_a_file_exchanged_for_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    found = next(trees.files(tmp_path))
    (tmp_path / "f").unlink()
    (tmp_path / "f").symlink_to("/etc/passwd")
    with pytest.raises(FileNotFoundError):
        b"".join(trees.chunks(found))


def test_a_file_that_shrinks_or_grows_leaves_the_archive_readable(tmp_path: Path) -> None:
    for name in ("grows", "shrinks", "stays"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    members = list(trees.files(tmp_path))
    (tmp_path / "grows").write_bytes(b"y" * 5000)
    (tmp_path / "shrinks").write_bytes(b"z" * 10)
    with tarfile.open(fileobj=io.BytesIO(b"".join(trees.archive(members)))) as tar:
        sizes = {member.name: len(tar.extractfile(member).read()) for member in tar}  # type: ignore[union-attr]
    assert sizes == {"grows": 1000, "shrinks": 1000, "stays": 1000}


@given(st.text(max_size=40))
def test_no_name_leaves_its_root(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = Path("/nonexistent-root") if "\0" in name else tmp_path_factory.getbasetemp() / "place"
    try:
        target = trees.place(root, name)
    except (ValidationFault, UnicodeEncodeError):
        return
    assert root in target.parents
    assert ".." not in target.parts


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "a/b", "../a", "/a", "./a", "a//b", "a/../b", "..", ".", "b\\c", "long" * 300]),
            st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
            st.binary(max_size=20),
        ),
        max_size=5,
    )
)
def test_no_archive_writes_outside_its_target(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, "/etc/passwd", 0o6777
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(content))
    target = folder / "in" / "target"
    target.mkdir(parents=True)
    try:
        unpack(folder / "a.tar.gz", target)
    except BadArchive:
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["a.tar.gz", "in"]
    assert [path.name for path in (folder / "in").iterdir()] == ["target"]
    for path in target.rglob("*"):
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o7000 == 0


def test_archive_limits_count_what_is_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for number in range(10):
            entry = tarfile.TarInfo(str(number))
            entry.size = 1000
            tar.addfile(entry, io.BytesIO(bytes(1000)))
    assert unpack(tmp_path / "a.tar.gz", tmp_path / "all") == 10
    with pytest.raises(BadArchive, match="unpacks to more"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "bytes", max_bytes=9_999)
    with pytest.raises(BadArchive, match="entries"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "entries", max_entries=9)


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    configuration = tmp_path / "input" / "config"
    configuration.mkdir(parents=True)
    hyperparameters = {"lr": "0.1", "name": '"net"', "flag": "true", "sagemaker_program": '"train.py"', "n": "3"}
    resources = {
        "current_host": "algo-2",
        "current_instance_type": "ml.m5.large",
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1", "algo-2"],
        "instance_groups": [{"instance_group_name": "homogeneousCluster"}],
        "network_interface_name": "lo",
    }
    (configuration / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (configuration / "inputdataconfig.json").write_text(json.dumps({"training": {}, "test-set": {}}))
    (configuration / "resourceconfig.json").write_text(json.dumps(resources))
    return tmp_path


def test_script_mode_variables_and_arguments(ml: Path) -> None:
    job = describe(ml)
    assert arguments(job.hyperparameters) == ["--flag", "True", "--lr", "0.1", "-n", "3", "--name", "net"]
    found = variables(job, ml, "train.py", cpus=2, gpus=0)
    assert found["SM_CHANNELS"] == '["test-set", "training"]'
    assert found["SM_CHANNEL_TRAINING"] == str(ml / "input" / "data" / "training")
    assert found["SM_CHANNEL_TEST-SET"] == str(ml / "input" / "data" / "test-set")
    assert (found["SM_HP_LR"], found["SM_HP_NAME"], found["SM_HP_FLAG"]) == ("0.1", "net", "true")
    assert (found["SM_CURRENT_HOST"], found["SM_HOSTS"]) == ("algo-2", '["algo-1", "algo-2"]')
    assert (found["SM_NUM_GPUS"], found["SM_NUM_CPUS"], found["MASTER_ADDR"]) == ("0", "2", "algo-1")
    environment = json.loads(found["SM_TRAINING_ENV"])
    assert environment["hyperparameters"] == {"lr": 0.1, "name": "net", "flag": True, "n": 3}
    assert all(isinstance(value, str) for value in found.values())


def test_script_mode_commands(ml: Path) -> None:
    job = describe(ml)
    assert command(job, "train.py", gpus=0)[1:3] == ["train.py", "--flag"]
    job.framework["sagemaker_torch_distributed_enabled"] = True  # type: ignore[index]
    line = command(job, "train.py", gpus=0)
    assert line[1:9] == ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", "1"]
    job.framework["sagemaker_mpi_enabled"] = True  # type: ignore[index]
    with pytest.raises(BadSubmission, match="MPI"):
        command(job, "train.py", gpus=0)


def test_code_that_a_channel_brought_is_found(ml: Path) -> None:
    code = ml / "input" / "data" / "code"
    code.mkdir(parents=True)
    job = describe(ml)
    job.framework["sagemaker_submit_directory"] = str(code)  # type: ignore[index]
    assert fetch_code(job, ml) == code


def test_metrics_take_the_last_finite_match() -> None:
    definitions = [{"Name": "loss", "Regex": r"loss=(\S+)"}, {"Name": "bare", "Regex": r"\d+%"}]
    pages = [b"loss=3.5\nloss=nan\nlo", b"ss=1.25\nloss=oops\n\xff\n"]
    found = metrics.extract(definitions, pages)["loss"]
    assert (found.last[-1], found.since(found.count - 1), found.since(found.count)) == (1.25, [1.25], ())
    assert metrics.extract([], pages) == {}


def test_instance_types_are_bounded_by_the_machine() -> None:
    machine = Capacity(cores=4, memory_bytes=10 << 30)
    large = size_of("ml.m5.large", machine)
    assert (large.cores, large.memory_bytes) == (2, 8 << 30)
    huge = size_of("ml.r5.24xlarge", machine)
    assert (huge.cores, huge.nominal_cores, huge.memory_bytes) == (4, 96, int(8.5 * (1 << 30)))
    for refused in ("ml.p3.2xlarge", "ml.g5.xlarge", "ml.trn1.2xlarge", "local", "ml.m5.huge"):
        with pytest.raises(ValidationFault):
            size_of(refused, machine)


def test_environments(tmp_path: Path) -> None:
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").touch()
    file = tmp_path / "environments.json"
    known = Environments(file, str(prefix))
    for image in (
        "pytorch",
        "pytorch:latest",
        "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov/pytorch:2.0-cpu-py311",
    ):
        assert known.resolve(image).name == "pytorch"
    for image in ("tensorflow", "pytorch training", "../pytorch/", f"pytorch@sha256:{'0' * 64}"):
        with pytest.raises(ValidationFault):
            known.resolve(image)
    file.write_text(json.dumps({"pytorch": {}, "mine": {"prefix": "relative", "digest": "", "entry_module": "m"}}))
    with pytest.raises(ConfigurationFault) as found:
        Environments(file, str(prefix))
    assert len(found.value.problems) == 2


def test_version_2_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of a delegated tree; a plain directory stands in for the kernel's."""
    own = tmp_path / "user.slice" / "app"
    own.mkdir(parents=True)
    (tmp_path / "user.slice" / "cgroup.subtree_control").write_text("cpu memory pids")
    monkeypatch.setattr(cgroups, "_memberships", lambda _: {"": "/user.slice/app"})
    group = cgroups.Group.make("job", memory_bytes=1 << 20, processes=9, cpu=1.5, root=tmp_path)
    made = tmp_path / "user.slice" / "job"
    assert group.achieved == {"memory": "cgroup-v2", "processes": "cgroup-v2", "cpu": "cgroup-v2"}
    assert (made / "memory.max").read_text() == str(1 << 20)
    assert (made / "pids.max").read_text() == "9"
    assert (made / "cpu.max").read_text() == "150000 100000"
    (made / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (made / "pids.events").write_text("max 7\n")
    assert (group.out_of_memory(), group.refused_forks()) == (2, 7)
