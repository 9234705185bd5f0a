"""Executors run a JobSpec: one or more sandboxed instances that see files under /opt/ml and nothing else.

Invariants, which the conformance suite checks on every executor:
- `start` with the same `job_id` twice runs the job once: the second call adopts the first.
- A started job survives the death of the enclave; `status` after a restart tells the truth (running, exited, lost).
- A job that ended stays ended; its exit codes and outputs stay readable until `forget`.
- If any layer of the sandbox that the executor promises cannot be set up, `start` raises and nothing ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Environment:
    """A software environment that jobs may name as image URI. `digest` identifies its exact content."""

    name: str
    prefix: str
    """Directory of the Python environment (sys.prefix), mounted read-only at the same path."""
    digest: str
    entry_module: str
    """Module run with `python -m` as the container's entry point, for example honmaru.workloads.script."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run. `root` is the job's scratch directory; each instance has `root/algo-N/ml` mounted as /opt/ml.

    The caller lays out `ml/input` before `start` (read-only inside) and reads `ml/model`, `ml/output`, `ml/checkpoints`
    afterwards. `label` is the marking, for the record; `cpu` in cores, `memory_bytes` and `disk_bytes` per instance.
    """

    job_id: str
    root: Path
    environment: Environment
    argv: tuple[str, ...]
    variables: Mapping[str, str]
    label: str
    instances: int = 1
    cpu: float = 2.0
    memory_bytes: int = 8 << 30
    disk_bytes: int = 10 << 30
    processes: int = 512
    devices: tuple[str, ...] = ()
    """Nodes of accelerators (/dev/nvidia0) that the instances may use; see `ports.accelerators`."""
    time_limit_s: float = 86400.0
    sockets: Mapping[str, str] = field(default_factory=dict)
    """Host directory → path inside, mounted writable, for UNIX sockets (brokers, model servers)."""
    loopback: bool = False
    """Allow TCP on loopback inside one instance too (torch.distributed); instances of a gang always have it."""
    writable: tuple[str, ...] = ()
    """Folders below `ml/input` (as "input/data/code") that are writable all the same; they count as disk used."""
    grace_s: float = 10.0
    """Between SIGTERM and SIGKILL when the time limit is reached."""


class Phase(Enum):
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """`exit_codes` by instance when EXITED. `reason` names what the sandbox did: "", "time-limit", "out-of-memory",
    "disk-quota", "stopped", "process-limit". `isolation` is the profile that was achieved, for the ledger."""

    phase: Phase
    exit_codes: tuple[int, ...] = ()
    reason: str = ""
    isolation: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    def start(self, spec: JobSpec) -> None: ...

    def status(self, job_id: str) -> JobStatus: ...

    def output(self, job_id: str, instance: int, offset: int) -> bytes:
        """Bytes of an instance's merged stdout and stderr from `offset` on (at most 1 MiB a call)."""
        ...

    def stop(self, job_id: str, grace_s: float) -> None:
        """SIGTERM to every instance, SIGKILL after the grace. Returns at once; follow with `status`."""
        ...

    def forget(self, job_id: str) -> None:
        """Delete the job's scratch and its traces in the executor. Idempotent."""
        ...
