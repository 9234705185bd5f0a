"""The CBOM is valid against CycloneDX's own schema, as CycloneDX's own library checks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[2] / ".venv-peers" / "cbom" / "bin" / "python"
CHECK = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(0 if fault is None else str(fault)[:2000])
"""


def test_the_cbom_is_valid() -> None:
    if not PYTHON.exists():
        pytest.skip("needs CycloneDX's library: make test-keys")
    command = [sys.executable, "-m", "honmaru", "crypto", "inventory", "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def valid(text: str) -> bool:
        return subprocess.run([str(PYTHON), "-c", CHECK], input=text, text=True, check=False).returncode == 0

    assert valid(made)
    assert not valid(made.replace('"cryptographic-asset"', '"cryptographic-thing"'))
