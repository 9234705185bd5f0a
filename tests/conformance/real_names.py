"""Runs inside a private network: an enclave under AWS's real host names, then a client program against it.

real_names.py DATA REGION HOSTS PYTHON SCENARIO SECONDS      prints what the scenario prints; exits as it exits
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from honmaru.testing.enclaves import LiveEnclave


def main(data: str, region: str, hosts: str, python: str, scenario: str, seconds: str) -> int:
    enclave = LiveEnclave(Path(data), region)
    enclave.port = 443
    enclave.up("--real-hostnames")
    try:
        lines = subprocess.run(
            [sys.executable, "-m", "honmaru", "hosts", "--data", data, "--bucket", "made-by-hand"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        Path(hosts).write_text(f"127.0.0.1 localhost\n{lines}")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
        variables |= enclave.variables()
        home = tempfile.mkdtemp()
        try:
            done = subprocess.run(
                [python, scenario],
                env={**variables, "HOME": home, "ACCOUNT": enclave.account, "ENDPOINTS": json.dumps(lines.split())},
                check=False,
                timeout=float(seconds),
            )
            return done.returncode
        finally:
            shutil.rmtree(home)
    finally:
        enclave.down()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
