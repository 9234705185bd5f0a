"""What the enclave's process asks of the system and of the interpreter; in a process of its own, for it stays so."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

CODE = """
import gc, json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from honmaru.app import process
process.make_room()
process.settle()
print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE)[0], gc.get_freeze_count(), sys.getswitchinterval()]))
"""


def test_room_for_connections_and_short_pauses() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=30)
    files, frozen, switch_s = json.loads(done.stdout)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert files == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
    assert frozen > 1000
    assert switch_s < 0.005
