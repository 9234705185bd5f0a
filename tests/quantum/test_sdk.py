"""Amazon's Braket SDK, PennyLane's plugin and Qiskit's provider, unmodified, against a live enclave.

The clients live in .venv-quantum, so each scenario of `sdk_scenarios.py` runs there. `make test-quantum` runs all of
them; without HONMARU_QUANTUM=1 they are skipped, because they take minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from honmaru.testing.enclaves import LiveEnclave

PYTHON = Path(sys.prefix).with_name(".venv-quantum") / "bin" / "python"
HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "variational_classifier.py"
SCENARIOS = (
    *("devices", "textbook_circuits", "result_types", "parameter_sweep", "noise", "batch", "program_set", "cancel"),
    *("bad_programs", "random_agreement", "large_controlled", "bookkeeping", "hybrid_job", "hybrid_job_failures"),
    *("pennylane_descent", "qiskit_bell"),
)

pytestmark = [
    pytest.mark.skipif(
        not PYTHON.exists(), reason="the quantum environment is not installed: run `make install-quantum`"
    ),
    pytest.mark.skipif(os.environ.get("HONMARU_QUANTUM") != "1", reason="takes minutes: run `make test-quantum`"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    live = LiveEnclave(Path(tmp_path_factory.mktemp("sdk"))).up()
    trust = {"Effect": "Allow", "Principal": {"Service": "braket.amazonaws.com"}, "Action": "sts:AssumeRole"}
    allow = {"Effect": "Allow", "Action": ["s3:*", "braket:*", "logs:*"], "Resource": "*"}
    iam, name = live.client("iam"), "AmazonBraketJobsExecutionRole"
    document = {"Version": "2012-10-17", "Statement": [trust]}
    iam.create_role(RoleName=name, Path="/service-role/", AssumeRolePolicyDocument=json.dumps(document))
    document = {"Version": "2012-10-17", "Statement": [allow]}
    iam.put_role_policy(RoleName=name, PolicyName="jobs", PolicyDocument=json.dumps(document))
    yield {**os.environ, **live.variables()}
    live.down()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(variables: dict[str, str], scenario: str) -> None:
    command = [str(PYTHON), str(HERE / "sdk_scenarios.py"), scenario]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=800, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SCENARIO ")]
    assert lines, done.stderr[-3000:]
    report = json.loads(lines[-1].removeprefix("SCENARIO "))
    sys.stdout.write(f"{scenario}: {report.get('figures')}\n")
    assert report["ok"], report["trace"]


def test_the_example_learns(variables: dict[str, str]) -> None:
    command = [str(PYTHON), str(EXAMPLE), "--steps", "12"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy = float(done.stdout.splitlines()[-1].rpartition(" ")[2])
    assert accuracy >= 0.85, done.stdout
