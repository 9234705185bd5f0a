"""One model server: a sandboxed process, its socket, and its life from start to stop.

Invariants:
- The model's files exist in plain form only inside the job's scratch, from start until the server is stopped.
- A server that ended, for whatever reason, is forgotten with its scratch; nothing of it serves again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from honmaru.core.errors import EngineFailed, HonmaruError, IntegrityFault, NotReady
from honmaru.core.model_files import is_plain_name
from honmaru.core.sessions import Session
from honmaru.deployments.client import Pool, ServerGone, ServerRefused, UnixPlace
from honmaru.deployments.engines import Engine
from honmaru.deployments.placement import Grant, Placement, Wish
from honmaru.ports.executors import Environment, Executor, JobSpec, Phase
from honmaru.ports.models import EMBEDDED_FEATURES, ModelArtifact
from honmaru.ports.server_identities import IDENTITY_INSIDE, ServerIdentities
from honmaru.security.guard import Guard

SOCKET = "s"
SOCKET_FOLDER_INSIDE = "/run/model"
# Not below /opt/ml/input: the engine opens its GGUF file for writing, so its copy must lie where it may write.
_PLAIN_FOLDER_INSIDE = "/opt/ml/model"


class Environments(Protocol):
    """What deployments need of the registry of environments."""

    def named(self, name: str) -> Environment: ...


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one server may use. The memory comes on top of three times the size of the model's files."""

    cpu: float = 2.0
    memory_bytes: int = 4 << 30
    start_s: float = 180.0
    requests: int = 64
    """Requests at once; one more is throttled."""


class Server:
    """A running (or starting) model server: the embedded one, or the command of a declared engine.

    All methods but `ending` and `destroy` belong to the event loop.
    """

    def __init__(
        self,
        guard: Guard,
        executor: Executor,
        environment: Environment,
        folder: Path,
        limits: ServerLimits,
        engine: Engine | None = None,
        placement: Placement | None = None,
        identities: ServerIdentities | None = None,
    ) -> None:
        self._guard, self._executor, self._environment = guard, executor, environment
        self._folder, self._engine = folder, engine
        self._placement = placement
        self._grant: Grant | None = None
        self._limits = limits if engine is None else _limits(engine)
        self._health = "/health" if engine is None else engine.health
        self.job_id = folder.name
        self.root = "/v1" if engine is None else engine.root
        self._identities = identities
        self.pool = Pool(UnixPlace(self.sockets, SOCKET, identities, self.job_id))

    @property
    def sockets(self) -> Path:
        return self._folder / "socket"

    async def start(self, session: Session, model: ModelArtifact) -> None:
        """Lay out the model, start the sandbox and wait until the server answers. Raises EngineFailed."""
        try:
            await asyncio.to_thread(self._launch, session, model)
            await self._wait_until_healthy()
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self.destroy))
            raise

    def _launch(self, session: Session, model: ModelArtifact) -> None:
        root = self._folder / "scratch"
        for path in (self._folder, self.sockets, root):
            path.mkdir(mode=0o700, parents=True)
        size = self._lay_out(session, model, root / "algo-1" / "ml")
        self._grant = self._placed(session, model, size)
        spec = JobSpec(
            job_id=self.job_id,
            root=root,
            environment=self._environment,
            argv=self._argv(model),
            variables={
                **({} if self._engine is None else self._engine.variables),
                **({} if self._grant is None else self._grant.variables),
            },
            label=session.label.banner,
            cpu=self._limits.cpu,
            memory_bytes=self._limits.memory_bytes + 3 * size,
            disk_bytes=(1 << 30) + 2 * size,
            time_limit_s=10 * 365 * 86400.0,
            sockets={str(self.sockets): SOCKET_FOLDER_INSIDE, **self._identity(session)},
            loopback=self._engine is not None,
            devices=() if self._grant is None else self._grant.nodes,
        )
        self._executor.start(spec)

    def _placed(self, session: Session, model: ModelArtifact, size: int) -> Grant | None:
        """The accelerators of this server. Raises NotReady when a declared engine cannot have those it needs."""
        if self._placement is None:
            return None
        account, label = session.account, session.label.canonical
        if self._engine is not None:
            wish = self._engine.accelerators
            return None if wish is None else self._placement.take(account, label, wish)
        if model.features not in (EMBEDDED_FEATURES["transformers"], EMBEDDED_FEATURES["embedding"]):
            return None  # OpenVINO runs on the CPU
        with contextlib.suppress(NotReady):
            return self._placement.take(account, label, Wish(1, memory_bytes=(2 << 30) + 2 * size))
        return None

    def _identity(self, session: Session) -> Mapping[str, str]:
        """The mount from which the server gets its identity."""
        if self._identities is None:
            return {}
        return {str(self._identities.open(self.job_id, session)): IDENTITY_INSIDE}

    def _argv(self, model: ModelArtifact) -> tuple[str, ...]:
        python, socket = f"{self._environment.prefix}/bin/python", f"{SOCKET_FOLDER_INSIDE}/{SOCKET}"
        named = () if self._identities is None else ("--identity", IDENTITY_INSIDE)
        if self._engine is not None:
            bridge = (python, "-m", "honmaru.workloads.bridge", "--socket", socket, "--port", str(self._engine.port))
            bridge = (*bridge, *named)
            return (*bridge, "--", *self._engine.command)
        threads = str(max(1, int(self._limits.cpu)))
        return (
            python, "-m", self._environment.entry_module, "--model", _PLAIN_FOLDER_INSIDE, "--socket", socket,
            "--name", model.name, "--threads", threads, *named,
        )  # fmt: skip

    def _lay_out(self, session: Session, model: ModelArtifact, ml: Path) -> int:
        for name in ("input/config", "input/data", "model", "output", "checkpoints"):
            (ml / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        size = 0
        if self._engine is not None:
            if self._engine.files is not None:
                shutil.copytree(self._engine.files, ml / "model", dirs_exist_ok=True)
                size = sum(path.stat().st_size for path in (ml / "model").rglob("*"))
            return size
        blobs = self._guard.blobs(session)
        for name, blob_id in _checked(model.files).items():
            with (ml / "model" / name).open("xb") as stream:
                for chunk in blobs.read(blob_id):
                    size += stream.write(chunk)
        return size

    async def _wait_until_healthy(self) -> None:
        waited, pause = 0.0, 0.02
        while waited < self._limits.start_s:
            try:
                async with await self.pool.call("GET", self._health, head_s=5) as reply:
                    if reply.status < 500:
                        await reply.text()
                        return
            except (ServerGone, ServerRefused):
                pass
            ended = await asyncio.to_thread(self.ending)
            if ended:
                raise EngineFailed(f"the model server ended while it started: {ended}")
            await asyncio.sleep(pause)
            waited += pause
            pause = min(0.25, pause * 1.3)
        raise EngineFailed(f"the model server was not ready within {self._limits.start_s:.0f} s")

    def ending(self) -> str:
        """Why the process ended, with the end of its output; "" while it runs. Blocking."""
        try:
            status = self._executor.status(self.job_id)
        except HonmaruError as fault:
            return fault.message
        if status.phase is Phase.RUNNING:
            return ""
        tail = self._executor.output(self.job_id, 1, 0)[-800:].decode("utf-8", "replace").strip()
        return f"{status.reason or status.phase.value} {list(status.exit_codes)}: {tail}"

    def destroy(self) -> None:
        """Stop the process and delete everything of it. Blocking; idempotent; safe in any thread."""
        discard(self._executor, self._folder, self._identities)
        if self._placement is not None and self._grant is not None:
            self._placement.release(self._grant)


def _limits(engine: Engine) -> ServerLimits:
    return ServerLimits(engine.cpu, engine.memory_bytes, engine.start_s, engine.requests)


def discard(executor: Executor, folder: Path, identities: ServerIdentities | None) -> None:
    """End the server whose folder this is, also one of an earlier enclave, and delete its files and its identity."""
    executor.forget(folder.name)
    if identities is not None:
        identities.close(folder.name)
    shutil.rmtree(folder, ignore_errors=True)


def _checked(files: Mapping[str, str]) -> Mapping[str, str]:
    for name in files:
        if not is_plain_name(name):
            raise IntegrityFault(f"the stored model names a file {name[:100]!r}")
    return files
