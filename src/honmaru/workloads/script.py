"""Script mode: the entry point of the `pytorch` environment, so that an ordinary SageMaker script runs unmodified.

    python -m honmaru.workloads.script

It unpacks the submitted code to /opt/ml/code, describes the job in SM_* variables, turns hyperparameters into
arguments, and becomes the user's program (exec): signals and the exit status are the program's own. There is no
network, so requirements.txt is checked against what is installed, never installed.

Distribution: with `sagemaker_torch_distributed_enabled` (or `sagemaker_distribution` = "torchrun") the program runs
under torchrun over all instances; otherwise once per instance with MASTER_ADDR and MASTER_PORT set, as SageMaker's
PyTorch image does. What this enclave cannot give (MPI, parameter servers) is refused.

Source: contract of sagemaker-training-toolkit (ENVIRONMENT_VARIABLES.md), re-made; nothing of it is used.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from honmaru.workloads.archives import BadArchive, unpack

ROOT = Path("/opt/ml")
_PORT = "7777"
_REFUSED = {
    "sagemaker_mpi_enabled": "MPI",
    "sagemaker_parameter_server_enabled": "parameter servers",
    "sagemaker_multi_worker_mirrored_strategy_enabled": "TensorFlow multi-worker strategies",
}


_SIMPLE = (
    *("current_host", "current_instance_group", "current_instance_group_hosts", "current_instance_type"),
    *("distribution_instance_groups", "framework_module", "hosts", "input_config_dir", "input_data_config"),
    *("input_dir", "instance_groups", "is_hetero", "log_level", "model_dir", "module_dir", "module_name"),
    *("network_interface_name", "num_cpus", "num_gpus", "num_neurons", "output_data_dir", "output_dir"),
    *("output_intermediate_dir", "resource_config", "user_entry_point"),
)


class BadSubmission(Exception):
    """The job cannot run as submitted; the message becomes the FailureReason."""


@dataclass(frozen=True, slots=True)
class Described:
    """What the job's configuration files say."""

    hyperparameters: Mapping[str, Any]
    """The user's own."""
    framework: Mapping[str, Any]
    """Those named sagemaker_*."""
    channels: Mapping[str, Any]
    resources: Mapping[str, Any]

    @property
    def hosts(self) -> list[str]:
        return list(self.resources["hosts"])

    @property
    def host(self) -> str:
        return str(self.resources["current_host"])


def describe(root: Path) -> Described:
    """Read /opt/ml/input/config. Values of hyperparameters are JSON where they parse, else text."""
    folder = root / "input" / "config"
    given = {name: _decoded(value) for name, value in json.loads((folder / "hyperparameters.json").read_text()).items()}
    return Described(
        hyperparameters={name: value for name, value in given.items() if not name.startswith("sagemaker_")},
        framework={name: value for name, value in given.items() if name.startswith("sagemaker_")},
        channels=json.loads((folder / "inputdataconfig.json").read_text()),
        resources=json.loads((folder / "resourceconfig.json").read_text()),
    )


def arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """`--name value` for each, by name; mappings as k=v,k=v."""
    line: list[str] = []
    for name in sorted(hyperparameters):
        value = hyperparameters[name]
        if isinstance(value, Mapping):
            value = ",".join(f"{key}={inner}" for key, inner in sorted(value.items()))
        line += [f"--{name}" if len(name) > 1 else f"-{name}", str(value)]
    return line


def variables(job: Described, root: Path, program: str, *, cpus: int, gpus: int) -> dict[str, str]:
    """The SM_* variables (and MASTER_ADDR, MASTER_PORT) that SageMaker's images set."""
    data = root / "input" / "data"
    channels = {name: str(data / name) for name in sorted(job.channels)}
    facts: dict[str, Any] = {
        "additional_framework_parameters": dict(job.framework),
        "channel_input_dirs": channels,
        "current_host": job.host,
        "current_instance_group": job.resources["current_group_name"],
        "current_instance_group_hosts": job.hosts,
        "current_instance_type": job.resources["current_instance_type"],
        "distribution_hosts": job.hosts,
        "distribution_instance_groups": [],
        "framework_module": "honmaru.workloads.script",
        "hosts": job.hosts,
        "hyperparameters": dict(job.hyperparameters),
        "input_config_dir": str(root / "input" / "config"),
        "input_data_config": dict(job.channels),
        "input_dir": str(root / "input"),
        "instance_groups": [group["instance_group_name"] for group in job.resources["instance_groups"]],
        "is_hetero": False,
        "is_master": job.host == job.hosts[0],
        "job_name": os.environ.get("TRAINING_JOB_NAME", ""),
        "log_level": 20,
        "master_hostname": job.hosts[0],
        "model_dir": str(root / "model"),
        "module_dir": str(job.framework.get("sagemaker_submit_directory", root / "code")),
        "module_name": program.removesuffix(".py"),
        "network_interface_name": job.resources["network_interface_name"],
        "num_cpus": cpus,
        "num_gpus": gpus,
        "num_neurons": 0,
        "output_data_dir": str(root / "output" / "data"),
        "output_dir": str(root / "output"),
        "output_intermediate_dir": str(root / "output" / "intermediate"),
        "resource_config": dict(job.resources),
        "user_entry_point": program,
    }
    found = {f"SM_{name.upper()}": _text(facts[name]) for name in _SIMPLE}
    found["SM_CHANNELS"] = json.dumps(sorted(channels))
    found["SM_HPS"] = json.dumps(dict(job.hyperparameters))
    found["SM_FRAMEWORK_PARAMS"] = json.dumps(dict(job.framework))
    found["SM_USER_ARGS"] = json.dumps(arguments(job.hyperparameters))
    found["SM_TRAINING_ENV"] = json.dumps(facts)
    found |= {f"SM_CHANNEL_{name.upper()}": path for name, path in channels.items()}
    found |= {f"SM_HP_{name.upper()}": _text(value) for name, value in job.hyperparameters.items()}
    return {**found, "MASTER_ADDR": job.hosts[0], "MASTER_PORT": _PORT}


def command(job: Described, program: str, *, gpus: int) -> list[str]:
    """The program's command line. Raises BadSubmission for a distribution that is not there."""
    for name, meaning in _REFUSED.items():
        if job.framework.get(name):
            raise BadSubmission(f"{meaning} ({name}) are not part of this environment; use torchrun")
    line = arguments(job.hyperparameters)
    distributed = job.framework.get("sagemaker_torch_distributed_enabled") or (
        job.framework.get("sagemaker_distribution") == "torchrun"
    )
    if distributed:
        processes = int(job.framework.get("sagemaker_processes_per_node") or max(gpus, 1))
        rank = job.hosts.index(job.host)
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        torchrun += ["--nnodes", str(len(job.hosts)), "--nproc_per_node", str(processes)]
        torchrun += ["--node_rank", str(rank), "--master_addr", job.hosts[0], "--master_port", _PORT]
        return [*torchrun, program, *line]
    if program.endswith(".py"):
        return [sys.executable, program, *line]
    return ["/bin/bash", program, *line] if program.endswith(".sh") else [f"./{program}", *line]


def fetch_code(job: Described, root: Path) -> Path:
    """Unpack or find the submitted code; returns its directory. Raises BadSubmission."""
    code = root / "code"
    staged = root / "input" / "submit" / "sourcedir.tar.gz"
    named = str(job.framework.get("sagemaker_submit_directory") or os.environ.get("SAGEMAKER_SUBMIT_DIRECTORY") or "")
    archive = staged if staged.exists() else Path(named) if named.endswith(".tar.gz") else None
    if archive is None:
        return Path(named) if named and Path(named).is_dir() else code
    try:
        unpack(archive, code)
    except BadArchive as bad:
        raise BadSubmission(f"the submitted archive is refused: {bad}") from bad
    return code


def check_requirements(code: Path) -> None:
    """Raises BadSubmission when requirements.txt asks for what is not installed (nothing can be downloaded)."""
    listed = code / "requirements.txt"
    if not listed.exists():
        return
    missing: list[str] = []
    for line in listed.read_text().splitlines():
        wanted = line.partition("#")[0].strip()
        name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", wanted)
        if not wanted or wanted.startswith("-") or name is None:
            continue
        try:
            installed = importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(wanted)
            continue
        exact = re.search(r"==\s*([^\s,;]+)", wanted)
        if exact and exact[1].rstrip(".*") != installed.partition("+")[0] and not exact[1].endswith("*"):
            missing.append(f"{wanted} (installed: {installed})")
    if missing:
        raise BadSubmission(
            f"requirements.txt asks for {', '.join(missing)}: not in this environment, and there is no network"
        )


def main() -> NoReturn:
    """Become the user's program, or write /opt/ml/output/failure and exit 1."""
    try:
        job = describe(ROOT)
        code = fetch_code(job, ROOT)
        program = str(job.framework.get("sagemaker_program") or os.environ.get("SAGEMAKER_PROGRAM") or "")
        if not program:
            raise BadSubmission("no script: set the hyperparameter sagemaker_program")
        if not (code / program).is_file() or ".." in Path(program).parts:
            raise BadSubmission(f"the script {program!r} is not in the submitted code")
        check_requirements(code)
        gpus = sum(1 for device in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", device.name))
        line = command(job, program, gpus=gpus)
        described = variables(job, ROOT, program, cpus=len(os.sched_getaffinity(0)), gpus=gpus)
    except BadSubmission as bad:
        (ROOT / "output" / "failure").write_text(str(bad))
        sys.stderr.write(f"{bad}\n")
        sys.exit(1)
    (ROOT / "output" / "intermediate").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **described}
    environment["PYTHONPATH"] = f"{code}:{environment.get('PYTHONPATH', '')}".rstrip(":")
    os.chdir(code)
    sys.stdout.write(f"Invoking script: {' '.join(line)}\n")
    sys.stdout.flush()
    os.execve(line[0], line, environment)  # noqa: S606  the user's program is what this is for


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    main()
