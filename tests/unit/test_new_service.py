"""`make new-service`: what it lays down passes the checks, is registered, and answers unmodified boto3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The product's sources, in a tree that the test may change."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "scripts").mkdir()
    (tree / "tests/unit").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/new_service.py", tree / "scripts")
    shutil.copy(ROOT / "tests/conftest.py", tree / "tests")
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def run(tree, *command, check=True):
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=220)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def new_service(tree, *arguments, **more):
    return run(tree, sys.executable, "scripts/new_service.py", *arguments, **more)


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("HONMARU_LONG"), reason="runs ruff and pytest on a copy: make test-long")
def test_a_new_service_answers_and_passes_the_checks(copy):
    said = new_service(copy, "sqs").stdout
    assert "src/honmaru/services/sqs/queues.py" in said
    assert '    "sqs",\n' in (copy / "src/honmaru/api/models.py").read_text()
    enclave = (copy / "src/honmaru/app/enclave.py").read_text()
    assert "from honmaru.services.sqs import Sqs\n" in enclave
    assert enclave.count("            Sqs(),\n") == 1
    assert '"honmaru.services.sqs",' in (copy / "pyproject.toml").read_text()
    made = ["src/honmaru/services/sqs", "tests/unit", "src/honmaru/app/enclave.py"]
    run(copy, sys.executable, "-m", "ruff", "check", *made)
    run(copy, sys.executable, "-m", "ruff", "format", "--check", *made)
    run(copy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_sqs_service.py")


def test_what_cannot_be_laid_down_is_refused_whole(copy):
    before = sorted(copy.rglob("*.py"))
    for arguments, why in (
        (["sts"], "is carried already"),
        (["nosuch"], "botocore knows no service"),
        (["ec2"], "which honmaru does not"),
        (["sagemaker-runtime"], "no operation to begin with"),
        (["sns", "--operation", "Publish"], "is no operation of sns that lists"),
    ):
        done = new_service(copy, *arguments, check=False)
        assert done.returncode == 1
        assert why in done.stderr
    assert sorted(copy.rglob("*.py")) == before


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("HONMARU_LONG"), reason="type-checks the whole tree: make test-long")
@pytest.mark.parametrize(
    "service", ["sns", "secretsmanager", "dynamodb", "eks", "guardduty", "bedrock-agent", "acm-pca"]
)
def test_every_protocol_passes_all_checks(copy, service):
    new_service(copy, service)
    package = service.replace("-", "_")
    run(copy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/unit/test_{package}_service.py")
    run(copy, sys.executable, "-m", "mypy", "--strict", f"src/honmaru/services/{package}")
    run(copy, str(Path(sys.executable).with_name("lint-imports")))
