"""What an enclave's first start fixes, and what must be installed before one can start."""

from __future__ import annotations

import json
import shutil

from honmaru.app.runtime import SystemIds
from honmaru.app.settings import DEFAULT_REGION, Settings
from honmaru.core.errors import ConfigurationFault


def bubblewrap() -> str:
    """The sandbox's program. Raises ConfigurationFault."""
    path = shutil.which("bwrap")
    if path is None:
        raise ConfigurationFault(
            ["bubblewrap is not installed, so no job could be isolated: apt-get install bubblewrap"]
        )
    return path


def fixed_facts(settings: Settings, ids: SystemIds) -> tuple[str, str]:
    """Region and account of this data directory, chosen by its first start."""
    path = settings.data / "enclave.json"
    if path.exists():
        facts = json.loads(path.read_text())
        if settings.region not in (None, facts["region"]):
            raise ConfigurationFault(
                [
                    (
                        f"{settings.data} holds an enclave of {facts['region']}, not {settings.region}: "
                        "leave --region out, or name another directory with --data"
                    )
                ]
            )
        return facts["region"], facts["account"]
    account = str(100_000_000_000 + int.from_bytes(ids.secret(8)) % 900_000_000_000)
    facts = {"region": settings.region or DEFAULT_REGION, "account": account}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(facts))
    temporary.replace(path)
    return facts["region"], facts["account"]
