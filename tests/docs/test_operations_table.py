"""docs/operations.md says what the providers carry out."""

from __future__ import annotations

import runpy
from pathlib import Path

import botocore.session

from honmaru.api.models import ServiceModels
from honmaru.api.names import method_name

ROOT = Path(__file__).parent.parent.parent


def test_committed_table_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "coverage_table.py"))
    assert (ROOT / "docs" / "operations.md").read_text() == script["generate"](), "run `make docs`"


def test_method_names_are_boto3s(tmp_path):
    for service in ServiceModels(tmp_path):
        for operation in service.operations:
            assert method_name(operation) == botocore.xform_name(operation)
