"""`kill -9` of the process that looks after jobs, at any point: after a restart every job ends, exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from honmaru.testing.workshop import BUCKET, Workshop

LONG = bool(os.environ.get("HONMARU_LONG"))
SUPERVISE = """
import sys, time
from pathlib import Path
from honmaru.testing.workshop import Workshop
shop = Workshop(Path(sys.argv[1]))
shop.supervisor.start()
print("up", flush=True)
time.sleep(600)
"""
# Each run of the program adds a line; a checkpoint would be the way to go on, here we count.
COUNT = (
    "import time\n"
    "open('/opt/ml/model/runs', 'a').write('ran\\n')\n"
    "for i in range(12): print(f'line {i}', flush=True); time.sleep(0.1)\n"
)


def supervise(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def finals(shop: Workshop, name: str) -> list[str]:
    return [
        each["Status"]
        for each in shop.describe(name)["SecondaryStatusTransitions"]
        if each["Status"] in ("Completed", "Failed", "Stopped", "MaxRuntimeExceeded")
    ]


@pytest.mark.parametrize("round_number", range(40 if LONG else 1))
def test_a_killed_supervisor_leaves_a_job_that_ends_once(tmp_path: Path, round_number: int) -> None:
    moments = random.Random(round_number)
    shop = Workshop(tmp_path / "shop")
    shop.make_bucket()
    try:
        shop.train("counted", "python", "-c", COUNT)
        for _ in range(3):
            process = supervise(shop.directory)
            time.sleep(moments.uniform(0.0, 1.2))
            kill(process)
        process = supervise(shop.directory)
        job = shop.wait("counted")
        kill(process)
        assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
        assert finals(shop, "counted") == ["Completed"]
        assert [key for key in shop.keys("out/") if "model" in key] == ["out/counted/output/model.tar.gz"]
        assert runs(shop, "counted") == 1
        assert shop.log("counted").splitlines() == [f"line {i}" for i in range(12)]
        assert list((shop.directory / "scratch").iterdir()) == []
    finally:
        shop.close()


def test_the_sandbox_outlives_its_supervisor_and_is_adopted(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    shop.make_bucket()
    try:
        process = supervise(shop.directory)
        shop.train("adopted", "python", "-c", COUNT.replace("12", "25"))
        shop.wait("adopted", until=frozenset({"Training"}))
        kill(process)
        time.sleep(3.2)  # the job ends with nobody watching
        assert shop.describe("adopted")["SecondaryStatus"] == "Training"
        process = supervise(shop.directory)
        assert shop.wait("adopted")["TrainingJobStatus"] == "Completed"
        kill(process)
        assert runs(shop, "adopted") == 1
        assert shop.log("adopted").splitlines() == [f"line {i}" for i in range(25)]
    finally:
        shop.close()


def test_a_job_whose_sandbox_died_too_runs_again(tmp_path: Path) -> None:
    """As after a power cut: neither supervisor nor sandbox is left. Checkpoints come back from S3."""
    resume = (
        "import os, time\n"
        "p = '/opt/ml/checkpoints/step'; n = int(open(p).read()) if os.path.exists(p) else 0\n"
        "print('from', n, flush=True); open(p, 'w').write(str(n + 1)); time.sleep(0 if n else 60)\n"
    )
    shop = Workshop(tmp_path / "shop")
    shop.make_bucket()
    try:
        shop.put("ck/step", b"0")
        process = supervise(shop.directory)
        shop.train("again", "python", "-c", resume, CheckpointConfig={"S3Uri": f"s3://{BUCKET}/ck"})
        shop.wait("again", until=frozenset({"Training"}))
        kill(process)
        for folder in (shop.directory / "executor").iterdir():
            kill_runner(folder)
        shop.put("ck/step", b"1")
        process = supervise(shop.directory)
        job = shop.wait("again")
        kill(process)
        assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
        assert "Restarting" in [each["Status"] for each in job["SecondaryStatusTransitions"]]
        assert shop.log("again").splitlines()[-1] == "from 1"
        assert shop.object("ck/step") == b"2"
    finally:
        shop.close()


def kill_runner(folder: Path) -> None:
    from honmaru.executors.local import files

    status = files.load(folder / files.STATUS)
    assert status is not None
    os.kill(status["pid"], signal.SIGKILL)


def runs(shop: Workshop, name: str) -> int:
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(shop.object(f"out/{name}/output/model.tar.gz"))) as archive:
        member = archive.extractfile("runs")
        assert member is not None
        return member.read().count(b"ran")
