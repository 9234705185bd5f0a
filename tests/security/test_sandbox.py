"""Hostile programs in the sandbox: each ends with a reason, and reaches nothing of the host or of other jobs."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from honmaru.executors.local import LocalExecutor, sandbox, seccomp
from honmaru.ports.executors import Environment, JobSpec, JobStatus, Phase


class Cell:
    """Runs one program in the sandbox and keeps its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executor = LocalExecutor(folder / "executor")
        self.count = 0

    def run(self, code: str, **more: object) -> tuple[JobStatus, str]:
        self.count += 1
        job_id = f"job-{self.count}"
        root = self.folder / "scratch" / job_id
        for name in ("input/data", "model", "output"):
            (root / "algo-1" / "ml" / name).mkdir(parents=True)
        (root / "algo-1" / "ml" / "input" / "data" / "given").write_text("given")
        environment = Environment("test", sys.prefix, "", "none")
        settings = {"memory_bytes": 512 << 20, "disk_bytes": 64 << 20, "time_limit_s": 30.0, "grace_s": 0.5, **more}
        self.executor.start(JobSpec(job_id, root, environment, ("python", "-c", code), {}, "SECRET", **settings))  # type: ignore[arg-type]
        deadline = time.monotonic() + 60
        while (status := self.executor.status(job_id)).phase is Phase.RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return status, self.executor.output(job_id, 1, 0).decode()


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    made = Cell(tmp_path)
    yield made
    for number in range(1, made.count + 1):
        made.executor.forget(f"job-{number}")


def test_a_crashing_script_leaves_its_traceback(cell: Cell) -> None:
    status, output = cell.run("raise ValueError('broken')")
    assert status.exit_codes == (1,)
    assert "ValueError: broken" in output


def test_a_script_that_eats_memory_is_ended(cell: Cell) -> None:
    status, _ = cell.run("kept = []\nwhile True: kept.append(bytearray(8 << 20))")
    assert status.reason == "out-of-memory" or "MemoryError" in _
    assert status.exit_codes != (0,)


def test_memory_in_tmpfs_counts_too(cell: Cell) -> None:
    status, output = cell.run(
        "import os\nfor d in ('/tmp', '/dev/shm'):\n f = open(d + '/x', 'wb')\n"
        " try:\n  while True: f.write(bytes(1 << 20)); f.flush()\n except OSError as e: print(e.errno, flush=True)",
        disk_bytes=2 << 30,
    )
    assert status.reason == "out-of-memory" or output.count("28") == 2


def test_a_script_that_writes_until_the_quota_is_ended(cell: Cell) -> None:
    status, _ = cell.run(
        "i = 0\nwhile True:\n i += 1\n with open(f'/opt/ml/model/{i}', 'wb') as f: f.write(bytes(4 << 20))"
    )
    assert status.reason == "disk-quota"


def test_a_flood_of_empty_files_reaches_the_quota(cell: Cell) -> None:
    status, _ = cell.run("i = 0\nwhile True:\n i += 1\n open(f'/opt/ml/model/{i}', 'wb').close()", disk_bytes=4 << 20)
    assert status.reason == "disk-quota"


def test_a_flood_of_output_reaches_the_quota(cell: Cell) -> None:
    status, _ = cell.run("while True: print('x' * 65536)", disk_bytes=16 << 20)
    assert status.reason == "disk-quota"


def test_one_large_file_is_stopped_by_its_size(cell: Cell) -> None:
    status, output = cell.run("f = open('/opt/ml/output/x', 'wb')\nwhile True: f.write(bytes(1 << 20))")
    assert status.reason == "disk-quota" or "File too large" in output


@pytest.mark.parametrize("loopback", [False, True])
def test_the_network_cannot_be_reached(cell: Cell, loopback: bool) -> None:
    code = """
import socket
four, six = socket.AF_INET, socket.AF_INET6
for family, address in ((four, ("192.0.2.1", 80)), (four, ("198.51.100.1", 53)), (six, ("2001:db8::1", 80))):
    try:
        with socket.socket(family) as s: s.settimeout(2); s.connect(address)
        print("REACHED", address)
    except OSError as e: print("refused", e.errno)
try: print("REACHED", socket.getaddrinfo("example.com", 80))
except OSError: print("refused")
for family in (socket.AF_PACKET, 40, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_RAW, 4)
        print("REACHED", family)
    except OSError: print("refused")
raise SystemExit(1)
"""
    status, output = cell.run(code, loopback=loopback)
    assert "REACHED" not in output
    assert output.count("refused") == 7
    assert status.exit_codes == (1,)


def test_a_service_of_the_host_cannot_be_reached_on_loopback(cell: Cell) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('REACHED')"
        status, output = cell.run(code, loopback=True)
    assert "REACHED" not in output
    assert status.exit_codes == (1,)


def test_a_fork_bomb_is_ended_and_the_host_keeps_working(cell: Cell) -> None:
    code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    status, _ = cell.run(code, processes=64)
    assert status.reason == "process-limit"
    survivors = [
        pid
        for pid in os.listdir("/proc")
        if pid.isdigit() and _reads(f"/proc/{pid}/cmdline").startswith(b"python\0-c\0import os\nwhile True")
    ]
    assert survivors == []


def test_too_many_threads_fail_inside_only(cell: Cell) -> None:
    code = """
import threading, time
for _ in range(500): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
"""
    status, output = cell.run(code, processes=64)
    assert status.exit_codes == (1,)
    assert "can't start new thread" in output


def test_files_of_the_host_are_absent(cell: Cell, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    package = Path(sandbox.__file__).parents[3]
    absent = [
        *(str(secret), "/etc/shadow", "/etc/hostname", "/etc/ssh", "/root/.ssh", "/root/.bashrc", "/var", "/run"),
        *("/sys", "/boot", "/srv", "/mnt", "/proc/sys/kernel/core_pattern.x", str(package / "security")),
        *("/opt/honmaru/honmaru/security", "/opt/honmaru/honmaru/executors", "/opt/ml/../../etc/shadow"),
    ]
    code = f"""
import os, json
found = [p for p in {absent!r} if os.path.exists(p)]
users = open("/etc/passwd").read().count(chr(10))
print(json.dumps([found, users, os.getuid(), sorted(os.listdir("/opt/honmaru/honmaru"))]))
"""
    status, output = cell.run(code)
    assert status.exit_codes == (0,)
    found, users, uid, parts = json.loads(output)
    assert found == []
    assert (users, uid) == (2, 1000)
    assert parts == ["__init__.py", "core", "workloads"]


def test_the_scratch_of_other_jobs_is_absent_and_input_is_read_only(cell: Cell) -> None:
    cell.run("open('/opt/ml/model/mine', 'w').write('of another job')")
    code = """
import os, json
seen = []
for folder, folders, names in os.walk("/"):
    folders[:] = [f for f in folders if f not in ("proc", "usr", "dev", "lib", "site-packages")]
    seen += [os.path.join(folder, name) for name in names]
print(json.dumps([p for p in seen if p.endswith("/mine") or "scratch" in p]))
assert open("/opt/ml/input/data/given").read() == "given"
for attempt in (lambda: open("/opt/ml/input/data/given", "w"), lambda: open("/opt/ml/input/new", "w"),
                lambda: os.unlink("/opt/ml/input/data/given"), lambda: open("/x", "w"), lambda: open("/usr/x", "w"),
                lambda: os.rename("/opt/ml/input", "/opt/ml/moved")):
    try: attempt(); print("WROTE")
    except OSError: pass
"""
    status, output = cell.run(code)
    assert status.exit_codes == (0,), output
    assert output.strip() == "[]"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86_64")
def test_system_calls_that_reach_further_are_refused(cell: Cell) -> None:
    calls = {"io_uring_setup": 425, "bpf": 321, "ptrace": 101, "keyctl": 250, "userfaultfd": 323, "mount": 165}
    calls |= {"unshare": 272, "setns": 308, "kexec_load": 246, "perf_event_open": 298, "open_by_handle_at": 304}
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {calls!r}.items():
    ctypes.set_errno(0); libc.syscall(number, 0, 0, 0, 0, 0); print(name, ctypes.get_errno())
ctypes.set_errno(0); print("clone", libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0), ctypes.get_errno())
ctypes.set_errno(0); libc.syscall(435, 0, 0); print("clone3", ctypes.get_errno())
ctypes.set_errno(0); libc.syscall(0x40000000 | 39); print("x32", ctypes.get_errno())
"""
    status, output = cell.run(code)
    found = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert {name: found[name] for name in calls} == dict.fromkeys(calls, "1")
    assert (found["clone"], found["clone3"], found["x32"]) == ("-1 1", "38", "38")
    assert status.exit_codes == (0,)


def test_setuid_programs_give_nothing(cell: Cell) -> None:
    status, output = cell.run("import os, subprocess; print(subprocess.run(['su', '-c', 'id'], input=b'').returncode)")
    assert output.strip().splitlines()[-1] != "0"
    assert status.exit_codes == (0,)


def test_variables_of_the_enclave_do_not_leak(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONMARU_TEST_SECRET", "secret")
    _, output = cell.run("import os; print(sorted(os.environ))")
    assert "HONMARU_TEST_SECRET" not in output


GOOD = """uid 1000
CapBnd:\t0000000000000000
CapEff:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
ns user user:[2]
ns pid pid:[2]
ns net net:[2]
nets lo
"""
OWN = {"user": "user:[1]", "pid": "pid:[1]", "net": "net:[1]"}


def test_a_report_of_standing_walls_is_accepted(tmp_path: Path) -> None:
    assert sandbox.examine(GOOD, _walls(tmp_path), OWN)["capabilities"] == "none"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("uid 1000", "uid 0"),
        ("CapEff:\t0000000000000000", "CapEff:\t0000000000200000"),
        ("CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ("Seccomp:\t2", "Seccomp:\t0"),
        ("Seccomp:\t2\n", ""),
        ("net:[2]", "net:[1]"),
        ("ns pid pid:[2]\n", ""),
        ("nets lo", "nets lo eth0"),
        ("nets lo\n", ""),
        ("nets lo\n", "nets lo\nwritable /usr\n"),
    ],
)
def test_a_missing_layer_is_found(tmp_path: Path, before: str, after: str) -> None:
    assert before in GOOD
    with pytest.raises(sandbox.Refused):
        sandbox.examine(GOOD.replace(before, after), _walls(tmp_path), OWN)


def test_an_unknown_architecture_has_no_filter() -> None:
    with pytest.raises(seccomp.NoFilter):
        seccomp.build("riscv64", loopback=False)
    assert len(seccomp.build("aarch64", loopback=True)) % 8 == 0


def _walls(folder: Path) -> sandbox.Walls:
    return sandbox.Walls("bwrap", 1, 1, folder, folder, folder, folder, False, {}, {}, 1 << 30)


def _reads(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
