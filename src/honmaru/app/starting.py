"""How a process becomes the enclave of a data directory."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any

from honmaru.app import process, run_files
from honmaru.app.backup import forget_stage
from honmaru.app.enclave import Enclave
from honmaru.app.settings import Settings
from honmaru.app.unsealing import no_core_dumps, unseal


def run_enclave(settings: Settings, announce: Callable[[dict[str, Any]], None]) -> int:
    """Become the enclave of a data directory until SIGTERM or SIGINT. Raises ConfigurationFault before it answers."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.data.chmod(0o700)
    process.make_room()
    no_core_dumps()
    with run_files.take_lock(settings.data):
        forget_stage(settings.data)
        unsealed = unseal(settings.data, required=settings.sealed, announce=announce)
        enclave = Enclave(settings, unsealed)
        if unsealed is not None:
            enclave.note_unsealing(unsealed)
        process.settle()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: enclave.stopping.set())
        enclave.run(announce)
    return 0
