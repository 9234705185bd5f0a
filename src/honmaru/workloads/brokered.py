"""Runs a job's program with the broker at hand: python -m honmaru.workloads.brokered DIRECTORY -- PROGRAM ARGUMENT...

The program is a child; signals are passed on to it, and its exit status is this one's.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from honmaru.workloads.broker import environment


def run(command: list[str], folder: Path, extra: dict[str, str] | None = None, cwd: Path | None = None) -> int:
    """The exit status of `command`, 128 and the signal's number when a signal ended it."""
    child = subprocess.Popen(command, cwd=cwd, env={**environment(folder), **(extra or {})})

    def pass_on(number: int, _frame: Any) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    status = child.wait()
    return status if status >= 0 else 128 - status


def main() -> int:
    folder, _, *command = sys.argv[1:]
    try:
        return run(command, Path(folder))
    except OSError as fault:
        sys.stderr.write(f"{command[0]}: {fault.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
