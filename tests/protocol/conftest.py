from __future__ import annotations

import pytest

from honmaru.api.models import ServiceModels


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return ServiceModels(tmp_path_factory.mktemp("models"))
