"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from honmaru.testing.enclaves import LiveEnclave

# No test may find the developer's own AWS settings or proxies.
for _name in [n for n in os.environ if n.startswith(("AWS_", "HONMARU_DATA")) or n.lower().endswith("_proxy")]:
    del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


# Two busy cores make generation slow now and then; that says nothing about the code.
settings.register_profile("honmaru", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("honmaru")


@pytest.fixture(scope="session")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEnclave]:
    """A running Secret enclave over https with `alice` (SECRET), `bob` (SECRET) and `carol` (UNCLASSIFIED)."""
    live = LiveEnclave(Path(tmp_path_factory.mktemp("enclave"))).up()
    for name, clearance in (("alice", "SECRET"), ("bob", "SECRET"), ("carol", "UNCLASSIFIED")):
        live.user(name, clearance)
    yield live
    live.down()
