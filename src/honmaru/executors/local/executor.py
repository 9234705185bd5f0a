"""The local executor: every job in a bubblewrap sandbox on this machine, owned by a runner that survives the enclave.

Invariants are those of `ports.executors`; this module keeps one folder per job with the files that its runner writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import honmaru
from honmaru.core.errors import ExecutorLost, NotFound, ValidationFault
from honmaru.executors.local import files
from honmaru.ports.executors import JobSpec, JobStatus, Phase

_PAGE_BYTES = 1 << 20
_DEVICE = re.compile(r"/dev/(nvidia\d+|nvidiactl|nvidia-uvm|neuron\d+)")
_START_TIMEOUT_S = 60.0


class LocalExecutor:
    """Args:
    directory: Where job folders live (0700).
    bwrap: Path of the bubblewrap program.
    python: Interpreter that runs the runner; the enclave's own.
    """

    def __init__(self, directory: Path, *, bwrap: str = "bwrap", python: str = sys.executable) -> None:
        self._directory = directory
        self._bwrap = bwrap
        self._python = python
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, spec: JobSpec) -> None:
        """Start the job, or adopt the one of that id. On return it runs, or has run, behind proven walls.

        Raises:
            ExecutorLost: a layer of the sandbox cannot be set up; nothing ran.
            ValidationFault: the spec asks for what this executor cannot give.
        """
        strange = [node for node in spec.devices if not _DEVICE.fullmatch(node)]
        if strange:
            raise ValidationFault(f"{strange[0]!r} is no device of an accelerator")
        if any(not below.startswith("input/") or ".." in below.split("/") for below in spec.writable):
            raise ValidationFault(f"writable folders must lie below input/, not {spec.writable}")
        if spec.instances < 1 or not spec.argv:
            raise ValidationFault("a job needs at least one instance and a command")
        folder = self._folder(spec.job_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        bwrap = shutil.which(self._bwrap)
        if bwrap is None:
            raise ExecutorLost(f"{self._bwrap!r} is not installed: install bubblewrap; nothing was run")
        lock = self._lock_for_start(folder)
        if lock is None:
            return
        try:
            self._run_runner(spec, folder, lock, bwrap)
        finally:
            os.close(lock)

    def _lock_for_start(self, folder: Path) -> int | None:
        """The job's lock, or None when it has run or runs. Waits for another's start to come out either way."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        lock = os.open(folder / files.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            held = _try_lock(lock, fcntl.LOCK_EX)
            if files.load(folder / files.STATUS) is not None:
                os.close(lock)
                return None
            if held:
                return lock
            if time.monotonic() > deadline:
                os.close(lock)
                raise ExecutorLost(f"another start of job {folder.name} does not come to an end")
            time.sleep(0.02)

    def _run_runner(self, spec: JobSpec, folder: Path, lock: int, bwrap: str) -> None:
        files.store(folder / files.SPEC, _document(spec, bwrap))
        command = [self._python, "-m", "honmaru.executors.local.runner", str(folder), str(lock)]
        try:
            answer = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_TIMEOUT_S,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except subprocess.TimeoutExpired as late:
            raise ExecutorLost(f"the runner of job {spec.job_id} did not answer") from late
        said = answer.stdout.decode(errors="replace").strip()
        if answer.returncode != 0:
            detail = said.removeprefix("refused:").strip() or answer.stderr.decode(errors="replace").strip()[-500:]
            raise ExecutorLost(f"the sandbox cannot be set up, nothing was run: {detail}")

    def status(self, job_id: str) -> JobStatus:
        """Raises NotFound for a job that was never started here (or was forgotten)."""
        folder = self._folder(job_id)
        deadline = time.monotonic() + _START_TIMEOUT_S
        alive = self._alive(folder)
        while (status := files.load(folder / files.STATUS)) is None and alive and time.monotonic() < deadline:
            time.sleep(0.02)  # it is being started: by an enclave that died meanwhile, or by another thread
            alive = self._alive(folder)
        if status is None:
            raise NotFound(f"no job {job_id} was started here")
        if status["phase"] != "exited" and not alive:  # it may have begun or ended since the lock was looked at
            alive = self._alive(folder)
            status = files.load(folder / files.STATUS) or status
        if status["phase"] == "exited":
            return JobStatus(Phase.EXITED, tuple(status["exit_codes"]), status["reason"], status["isolation"])
        return JobStatus(Phase.RUNNING if alive else Phase.LOST, (), "", status["isolation"])

    def output(self, job_id: str, instance: int, offset: int) -> bytes:
        """At most 1 MiB of an instance's output from `offset`; empty at its present end. `instance` 1 is the first."""
        try:
            with files.output_file(self._folder(job_id), instance).open("rb") as stream:
                stream.seek(offset)
                return stream.read(_PAGE_BYTES)
        except FileNotFoundError:
            return b""

    def stop(self, job_id: str, grace_s: float) -> None:
        folder = self._folder(job_id)
        if not folder.exists():
            raise NotFound(f"no job {job_id} was started here")
        if files.load(folder / files.STOP) is None:
            files.store(folder / files.STOP, {"grace_s": grace_s})

    def forget(self, job_id: str) -> None:
        """Delete the job's scratch and traces; a job that still runs is ended first."""
        folder = self._folder(job_id)
        spec = files.load(folder / files.SPEC)
        if spec is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        if self._alive(folder):
            files.store(folder / files.STOP, {"grace_s": 0.0})
            with (folder / files.LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_groups((files.load(folder / files.STATUS) or {}).get("groups", []))
        _remove_tree(Path(spec["root"]))
        _remove_tree(folder)

    def running(self) -> list[str]:
        """Ids of the jobs whose sandboxes run now, also those that an earlier enclave process started."""
        return sorted(folder.name for folder in self._directory.iterdir() if self._alive(folder))

    def _alive(self, folder: Path) -> bool:
        """Whether a runner holds the job's lock."""
        try:
            lock = os.open(folder / files.LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _folder(self, job_id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", job_id):
            raise ValidationFault(f"{job_id!r} is not a job id: use letters, digits and dashes, at most 63")
        return self._directory / job_id


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _document(spec: JobSpec, bwrap: str) -> dict[str, object]:
    return {
        "job_id": spec.job_id,
        "root": str(spec.root),
        "prefix": spec.environment.prefix,
        "digest": spec.environment.digest,
        "package": str(Path(honmaru.__file__).parent),
        "bwrap": bwrap,
        "argv": list(spec.argv),
        "variables": dict(spec.variables),
        "label": spec.label,
        "instances": spec.instances,
        "cpu": spec.cpu,
        "memory_bytes": spec.memory_bytes,
        "disk_bytes": spec.disk_bytes,
        "processes": spec.processes,
        "time_limit_s": spec.time_limit_s,
        "sockets": dict(spec.sockets),
        "writable": list(spec.writable),
        "devices": list(spec.devices),
        "grace_s": spec.grace_s,
        "loopback": spec.loopback or spec.instances > 1,
    }


def _remove_groups(groups: list[str]) -> None:
    """Delete control groups that a runner left because it died; its processes may take a moment to go."""
    deadline = time.monotonic() + 1.0
    for group in map(Path, groups):
        while group.exists():
            try:
                group.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.02)


def _remove_tree(folder: Path) -> None:
    """Delete a tree in which a job may have made directories without permissions, or nested without end.

    Follows no links, and neither recurses nor names long paths: what lies in a directory of the root is moved up into
    the root, until there are no directories.
    """
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        moved = 0
        while names := _names(root):
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=root)
                    continue
                os.chmod(name, 0o700, dir_fd=root)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
                try:
                    moved = _empty(inner, root, moved)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=root)
    finally:
        os.close(root)
    folder.rmdir()


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _empty(inner: int, root: int, moved: int) -> int:
    """Delete the files of a directory and move its directories to the root under new names, counted by `moved`."""
    for name in _names(inner):
        if not stat.S_ISDIR(os.stat(name, dir_fd=inner, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=inner)
            continue
        os.chmod(name, 0o700, dir_fd=inner)  # moving a directory writes its ".."
        while True:
            moved += 1
            try:
                os.rename(name, f".{moved}", src_dir_fd=inner, dst_dir_fd=root)
                break
            except OSError as fault:
                if fault.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
    return moved
