"""The runner: one small detached process per job that owns its sandboxes and outlives the enclave.

    python -m honmaru.executors.local.runner DIRECTORY LOCK

DIRECTORY holds the spec. The runner prints one line, `ready` or `refused: why`, once the walls are proven and the job
is about to run, and goes on in the background. LOCK is the descriptor of the job's lock, which the executor took and
the runner inherits and holds for its whole life: there is no moment at which a job has a runner and its lock is free,
and a free lock with a status of "running" means that the job died with its runner.

Invariants:
- The walls of every instance are probed and examined before any program of the job starts.
- The status "running" is durable before the job starts; the final status is durable before the lock is given up, and
  the job's files are on the disk before the final status.
- One instance that fails, a limit that is passed, or a stop request ends all instances.
- What a job leaves when it ends by itself is within its quota too, or the end is "disk-quota".
- If the runner dies, its sandboxes die (bwrap --die-with-parent).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from honmaru.executors.local import files, limits, sandbox, seccomp
from honmaru.executors.local.cgroups import Group
from honmaru.executors.local.sandbox import Refused, Walls

_GANG_GRACE_S = 10.0
_FORKS_REFUSED = 1000
"""Refused forks after which a job is taken for a fork bomb and ended."""
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


@dataclass(slots=True)
class Instance:
    """One running sandbox."""

    number: int
    walls: Walls
    group: Group
    child: subprocess.Popen[bytes] | None = None
    first_pid: int = 0
    """Host pid of the sandbox's pid 1; killing it kills everything inside."""
    pid_namespace: str = ""
    output: int = -1
    """Descriptor of the output file."""
    exit_code: int | None = None


@dataclass(slots=True)
class Job:
    folder: Path
    spec: dict[str, Any]
    instances: list[Instance]
    isolation: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    kill_at: float | None = None
    """When to SIGKILL what is left (monotonic)."""


def main(folder: Path, lock: int) -> int:
    """Prepare and announce in the foreground, run in the background. Returns the exit status."""
    os.set_inheritable(lock, False)  # sandboxes must not hold it
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        with os.fdopen(read_end) as announcement:
            line = announcement.readline().strip() or "refused: the runner ended early"
        sys.stdout.write(line + "\n")
        return 0 if line == "ready" else 1
    os.close(read_end)
    os.setsid()
    _detach(folder)
    with os.fdopen(write_end, "w") as announcement:
        job: Job | None = None
        try:
            job = _prepare(folder)
        except (Refused, seccomp.NoFilter, OSError) as fault:
            announcement.write(f"refused: {fault}\n".replace("\n", " ").strip() + "\n")
            return 1
        _store_running(job)
        announcement.write("ready\n")
    _run(job)
    return 0


def _store_running(job: Job) -> None:
    """Make it durable that the job starts now and may have had effects from here on."""
    started = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    files.store(
        job.folder / files.STATUS,
        {
            "phase": "running",
            "pid": os.getpid(),
            "pid_started": started,
            "isolation": job.isolation,
            "groups": [str(place) for instance in job.instances for place in instance.group.folders.values()],
        },
    )


def _detach(folder: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(folder / files.RUNNER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.close(nothing)
    os.close(log)


def _prepare(folder: Path) -> Job:
    spec = files.load(folder / files.SPEC)
    if spec is None:
        raise Refused(f"{folder} holds no spec")
    machine = sandbox.own_namespaces()
    job = Job(folder, spec, [])
    for number in range(1, spec["instances"] + 1):
        etc = folder / f"etc-{number}"
        sandbox.write_etc(etc, spec["instances"])
        walls = Walls(
            bwrap=spec["bwrap"],
            instance=number,
            hosts=spec["instances"],
            etc=etc,
            ml=Path(spec["root"]) / f"algo-{number}" / "ml",
            prefix=Path(spec["prefix"]),
            package=Path(spec["package"]),
            loopback=spec["loopback"],
            variables={**spec["variables"], "HONMARU_INSTANCE": f"algo-{number}"},
            sockets=spec["sockets"],
            memory_bytes=spec["memory_bytes"],
            writable=tuple(spec["writable"]),
            devices=tuple(spec.get("devices", ())),
        )
        # Control groups are the whole machine's: another enclave may have a job of the same id.
        group = Group.make(
            f"honmaru-{zlib.crc32(os.fsencode(folder)):08x}-{spec['job_id']}-{number}",
            memory_bytes=spec["memory_bytes"],
            processes=spec["processes"],
            cpu=spec["cpu"],
        )
        job.instances.append(Instance(number, walls, group))
    try:
        if len(job.instances) > 1:
            _own_network()
        for instance in job.instances:
            job.isolation = _probe(job, instance, machine)
    except BaseException:
        for instance in job.instances:
            instance.group.remove()
        raise
    return job


def _own_network() -> None:
    """Give this process a user and a network namespace of its own, with loopback up, for all instances to share."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
        raise Refused(f"no shared network namespace: {os.strerror(ctypes.get_errno())}")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up_and_running = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(any_socket, 0x8914, up_and_running)  # SIOCSIFFLAGS


def _probe(job: Job, instance: Instance, machine: dict[str, str]) -> dict[str, str]:
    child = _spawn(job, instance, sandbox.PROBE, stderr=subprocess.PIPE)
    report, complaint = child.communicate(timeout=30)
    if child.returncode != 0:
        raise Refused(f"bubblewrap: {complaint.decode(errors='replace').strip() or child.returncode}")
    achieved = instance.group.achieved
    fallback = {"memory": "rlimit and watch", "processes": "rlimit and watch", "cpu": "none"}
    return {
        **sandbox.examine(report.decode(), instance.walls, machine),
        **{name: achieved.get(name, instead) for name, instead in fallback.items()},
        "disk": "file size limit and watch",
        "time": "watch",
    }


def _spawn(job: Job, instance: Instance, argv: tuple[str, ...], *, stderr: int) -> subprocess.Popen[bytes]:
    spec, achieved = job.spec, instance.group.achieved
    program = seccomp.build(os.uname().machine, loopback=instance.walls.loopback)
    filter_file = os.memfd_create("seccomp", 0)
    os.write(filter_file, program)
    os.lseek(filter_file, 0, os.SEEK_SET)
    read_end, write_end = os.pipe()
    per_process = limits.Limits(
        disk_bytes=spec["disk_bytes"],
        data_bytes=None if "memory" in achieved else spec["memory_bytes"],
        processes=None if "processes" in achieved else spec["processes"],
    )

    def enter() -> None:
        instance.group.enter()
        limits.apply(per_process)

    line = sandbox.command(instance.walls, filter_file, argv)
    line[1:1] = ["--info-fd", str(write_end)]
    child = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={},
        pass_fds=(filter_file, write_end),
        preexec_fn=enter,
    )
    os.close(filter_file)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        described = answer.read()
    facts = json.loads(described) if described.strip() else {}
    instance.first_pid = int(facts.get("child-pid", 0))
    instance.pid_namespace = f"pid:[{facts.get('pid-namespace', 0)}]"
    return child


def _run(job: Job) -> None:
    spec = job.spec
    deadline = time.monotonic() + spec["time_limit_s"]
    ready = selectors.DefaultSelector()
    for instance in job.instances:
        instance.child = _spawn(job, instance, tuple(spec["argv"]), stderr=subprocess.STDOUT)
        instance.output = os.open(files.output_file(job.folder, instance.number), _APPEND, 0o600)
        if instance.child.stdout is not None:
            ready.register(instance.child.stdout, selectors.EVENT_READ, instance)
    measure_at, floor = 0.0, 0
    while any(instance.exit_code is None for instance in job.instances):
        for key, _ in ready.select(0.1):
            chunk = os.read(key.fd, 1 << 16)
            if chunk:
                os.write(key.data.output, chunk)
            else:
                ready.unregister(key.fileobj)
        if not ready.get_map():
            time.sleep(0.01)
        _reap(job)
        now = time.monotonic()
        if now > deadline:
            _end(job, "time-limit", float(spec["grace_s"]))
        stop = files.load(job.folder / files.STOP)
        if stop is not None:
            _end(job, "stopped", float(stop["grace_s"]))
        if now > measure_at or _free_bytes(job) < floor:
            _measure(job)
            # A job with very many files must not have the whole pause for writing: look again when that much is gone.
            floor = _free_bytes(job) - int(spec["disk_bytes"])
            # Walking a large tree takes a while; look again after ten times that, so it stays below a tenth.
            measure_at = time.monotonic() + max(0.25, 10 * (time.monotonic() - now))
        if job.kill_at is not None and now > job.kill_at:
            _signal_all(job, signal.SIGKILL)
    if not job.reason and any(_used_bytes(job, instance) > spec["disk_bytes"] for instance in job.instances):
        job.reason = "disk-quota"
    _finish(job, ready)


def _reap(job: Job) -> None:
    for instance in job.instances:
        if instance.exit_code is None and instance.child is not None:
            instance.exit_code = instance.child.poll()
            if instance.exit_code not in (None, 0):
                out_of_memory = any(each.group.out_of_memory() for each in job.instances)
                forks = any(each.group.refused_forks() for each in job.instances)
                _end(job, "out-of-memory" if out_of_memory else "process-limit" if forks else "", _GANG_GRACE_S)


def _measure(job: Job) -> None:
    spec = job.spec
    for instance in job.instances:
        if _used_bytes(job, instance) > spec["disk_bytes"]:
            _end(job, "disk-quota", 0.0)
        achieved = instance.group.achieved
        if "memory" not in achieved or "processes" not in achieved:
            inside = limits.members(instance.pid_namespace)
            if "memory" not in achieved and limits.resident_bytes(inside) > spec["memory_bytes"]:
                _end(job, "out-of-memory", 0.0)
            if "processes" not in achieved and len(inside) > spec["processes"]:
                _end(job, "process-limit", 0.0)
        if instance.group.refused_forks() > _FORKS_REFUSED:
            _end(job, "process-limit", 0.0)


def _used_bytes(job: Job, instance: Instance) -> int:
    """What an instance occupies on the host's disk: wherever it may write, and its output."""
    ml = instance.walls.ml
    writable = [ml, *(ml / below for below in job.spec["writable"]), *map(Path, job.spec["sockets"])]
    used = limits.disk_usage(writable, frozenset({ml / "input"}))
    return used + files.output_file(job.folder, instance.number).stat().st_size


def _free_bytes(job: Job) -> int:
    found = os.statvfs(job.spec["root"])
    return found.f_bavail * found.f_frsize


def _end(job: Job, reason: str, grace_s: float) -> None:
    """Begin to end all instances, once; a later call can only shorten the grace."""
    kill_at = time.monotonic() + grace_s
    if job.kill_at is None:
        job.reason = reason
        job.kill_at = kill_at
        _signal_all(job, signal.SIGTERM)
    elif grace_s == 0.0:
        job.kill_at = min(job.kill_at, kill_at)
        job.reason = job.reason or reason


def _signal_all(job: Job, number: signal.Signals) -> None:
    for instance in job.instances:
        if instance.exit_code is not None or instance.child is None:
            continue
        targets = [instance.first_pid] if number == signal.SIGKILL else _payload(instance)
        for pid in filter(None, targets):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == signal.SIGKILL:
            instance.child.kill()


def _payload(instance: Instance) -> list[int]:
    """The program itself: the children of the sandbox's pid 1, which is bubblewrap's reaper."""
    try:
        children = Path(f"/proc/{instance.first_pid}/task/{instance.first_pid}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in children.split()]


def _finish(job: Job, ready: selectors.BaseSelector) -> None:
    for key in list(ready.get_map().values()):
        while chunk := os.read(key.fd, 1 << 16):
            os.write(key.data.output, chunk)
    for instance in job.instances:
        os.fsync(instance.output)
        instance.group.remove()
    root = os.open(job.spec["root"], os.O_RDONLY | os.O_DIRECTORY)
    ctypes.CDLL(None).syncfs(root)
    codes = [_shell_code(instance.exit_code) for instance in job.instances]
    files.store(
        job.folder / files.STATUS,
        {"phase": "exited", "exit_codes": codes, "reason": job.reason, "isolation": job.isolation},
    )


def _shell_code(code: int | None) -> int:
    """A death by signal N as 128+N, as bubblewrap reports it for the program inside."""
    return 0 if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
