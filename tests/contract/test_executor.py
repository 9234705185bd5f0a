"""The conformance suite of executors: the invariants of `ports.executors`, on every implementation."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from honmaru.core.errors import ExecutorLost, NotFound, ValidationFault
from honmaru.executors.local import LocalExecutor, files
from honmaru.ports.executors import Environment, Executor, JobSpec, JobStatus, Phase

MAKERS: dict[str, Callable[[Path], Executor]] = {"local": lambda folder: LocalExecutor(folder / "executor")}


class Bench:
    """An executor and the jobs that a test starts on it."""

    def __init__(self, make: Callable[[Path], Executor], folder: Path) -> None:
        self.make, self.folder = make, folder
        self.executor = make(folder)
        self.started: list[str] = []

    def spec(self, job_id: str, code: str, *, instances: int = 1, **more: object) -> JobSpec:
        root = self.folder / "scratch" / job_id
        for number in range(1, instances + 1):
            for name in ("input", "model", "output"):
                (root / f"algo-{number}" / "ml" / name).mkdir(parents=True, exist_ok=True)
        environment = Environment("test", sys.prefix, "", "none")
        self.started.append(job_id)
        return JobSpec(job_id, root, environment, ("python", "-c", code), {}, "SECRET", instances=instances, **more)  # type: ignore[arg-type]

    def ended(self, job_id: str) -> JobStatus:
        deadline = time.monotonic() + 30
        while (status := self.executor.status(job_id)).phase is Phase.RUNNING:
            assert time.monotonic() < deadline, f"{job_id} does not end"
            time.sleep(0.02)
        return status

    def model(self, job_id: str, name: str, instance: int = 1) -> str:
        return (self.folder / "scratch" / job_id / f"algo-{instance}" / "ml" / "model" / name).read_text()


@pytest.fixture(params=sorted(MAKERS))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(MAKERS[request.param], tmp_path)
    yield made
    for job_id in made.started:
        made.executor.forget(job_id)


def test_a_job_runs_and_its_results_stay_readable(bench: Bench) -> None:
    code = (
        "import sys; print('out'); print('err', file=sys.stderr); open('/opt/ml/model/m','w').write('x'); sys.exit(3)"
    )
    bench.executor.start(bench.spec("plain", code))
    status = bench.ended("plain")
    assert (status.exit_codes, status.reason) == ((3,), "")
    assert bench.executor.output("plain", 1, 0) == b"out\nerr\n"
    assert bench.executor.output("plain", 1, 4) == b"err\n"
    assert bench.executor.output("plain", 1, 8) == b""
    assert bench.model("plain", "m") == "x"
    assert bench.make(bench.folder).status("plain") == status


def test_the_same_job_id_runs_once(bench: Bench) -> None:
    code = "import time; open('/opt/ml/model/m','a').write('x'); time.sleep(0.5)"
    spec = bench.spec("once", code)
    bench.executor.start(spec)
    bench.executor.start(spec)
    bench.make(bench.folder).start(spec)
    bench.ended("once")
    bench.executor.start(spec)
    assert bench.ended("once").exit_codes == (0,)
    assert bench.model("once", "m") == "x"


def test_isolation_is_reported(bench: Bench) -> None:
    bench.executor.start(bench.spec("walls", "pass"))
    isolation = bench.ended("walls").isolation
    assert {"sandbox", "namespaces", "network", "filesystem", "capabilities", "seccomp", "memory", "processes"} <= set(
        isolation
    )
    assert isolation["capabilities"] == "none"


def test_an_unknown_job_is_not_found_and_forget_is_idempotent(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.executor.status("never")
    bench.executor.forget("never")
    spec = bench.spec("gone", "pass")
    bench.executor.start(spec)
    bench.executor.forget("gone")
    bench.executor.forget("gone")
    assert not spec.root.exists()
    with pytest.raises(NotFound):
        bench.executor.status("gone")


def test_forget_ends_a_running_job_and_unlocks_what_it_locked(bench: Bench) -> None:
    code = "import os, time; os.makedirs('/opt/ml/model/a/b'); os.chmod('/opt/ml/model/a', 0); time.sleep(60)"
    spec = bench.spec("busy", code)
    bench.executor.start(spec)
    time.sleep(0.3)
    bench.executor.forget("busy")
    assert not spec.root.exists()


def test_stop_lets_the_job_finish_within_the_grace(bench: Bench) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n open('/opt/ml/model/m','w').write('saved'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    bench.executor.start(bench.spec("polite", code))
    while b"ready" not in bench.executor.output("polite", 1, 0):
        time.sleep(0.02)
    bench.executor.stop("polite", 20)
    status = bench.ended("polite")
    assert (status.exit_codes, status.reason) == ((0,), "stopped")
    assert bench.model("polite", "m") == "saved"


def test_stop_kills_what_does_not_listen(bench: Bench) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('r', flush=True); time.sleep(60)"
    bench.executor.start(bench.spec("deaf", code))
    while not bench.executor.output("deaf", 1, 0):
        time.sleep(0.02)
    bench.executor.stop("deaf", 0.3)
    assert bench.ended("deaf").exit_codes == (137,)


def test_the_time_limit_ends_a_job(bench: Bench) -> None:
    bench.executor.start(bench.spec("slow", "import time; time.sleep(60)", time_limit_s=0.5))
    status = bench.ended("slow")
    assert status.reason == "time-limit"
    assert status.exit_codes[0] != 0


def test_instances_share_a_network_and_nothing_else(bench: Bench) -> None:
    code = """
import os, socket, time
me = os.environ["HONMARU_INSTANCE"]
assert socket.gethostname() == me
open("/opt/ml/model/me", "w").write(me + " " + ",".join(sorted(os.listdir("/opt/ml/model"))))
if me == "algo-1":
    server = socket.create_server(("algo-1", 7000)); other, _ = server.accept(); print(other.recv(5).decode())
else:
    for _ in range(100):
        try: socket.create_connection(("algo-1", 7000)).send(b"hello"); break
        except OSError: time.sleep(0.05)
"""
    bench.executor.start(bench.spec("gang", code, instances=2))
    assert bench.ended("gang").exit_codes == (0, 0)
    assert bench.executor.output("gang", 1, 0) == b"hello\n"
    assert bench.model("gang", "me", 2) == "algo-2 me"


def test_one_failing_instance_ends_the_others(bench: Bench) -> None:
    code = "import os, sys, time; sys.exit(4) if os.environ['HONMARU_INSTANCE'] == 'algo-2' else time.sleep(60)"
    bench.executor.start(bench.spec("broken", code, instances=2))
    codes = bench.ended("broken").exit_codes
    assert codes[1] == 4
    assert codes[0] != 0


def test_when_the_sandbox_cannot_be_set_up_nothing_runs(bench: Bench) -> None:
    walls_missing = LocalExecutor(bench.folder / "other", bwrap="/bin/false")
    with pytest.raises(ExecutorLost, match="nothing was run"):
        walls_missing.start(bench.spec("open", "open('/opt/ml/model/m','w')"))
    assert not (bench.folder / "scratch" / "open" / "algo-1" / "ml" / "model" / "m").exists()
    with pytest.raises(NotFound):
        walls_missing.status("open")
    with pytest.raises(ExecutorLost, match="not installed"):
        LocalExecutor(bench.folder / "third", bwrap="no-such-program").start(bench.spec("open", "pass"))


def test_what_the_executor_does_not_have_is_refused(bench: Bench) -> None:
    with pytest.raises(ValidationFault, match="no device of an accelerator"):
        bench.executor.start(bench.spec("gpu", "pass", devices=("/dev/mem",)))
    with pytest.raises(ValidationFault, match="job id"):
        bench.executor.status("../../etc")


def test_a_job_whose_runner_died_is_lost_and_does_not_run_again(bench: Bench) -> None:
    spec = bench.spec("lost", "import time; open('/opt/ml/model/m','a').write('x'); time.sleep(60)")
    bench.executor.start(spec)
    while not (spec.root / "algo-1" / "ml" / "model" / "m").exists():
        time.sleep(0.02)
    runner = files.load(bench.folder / "executor" / "lost" / files.STATUS)
    assert runner is not None
    os.kill(runner["pid"], signal.SIGKILL)
    while bench.executor.status("lost").phase is Phase.RUNNING:
        time.sleep(0.02)
    assert bench.executor.status("lost").phase is Phase.LOST
    bench.executor.start(spec)
    assert bench.executor.status("lost").phase is Phase.LOST
    assert bench.model("lost", "m") == "x"
    bench.executor.forget("lost")
    assert [group for group in runner["groups"] if Path(group).exists()] == []
