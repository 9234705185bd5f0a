"""The entry of a hybrid job inside the sandbox: a way to the enclave on loopback, and the user's code.

    python -m honmaru.workloads.quantum.job --broker DIRECTORY

There is no network inside. The UNIX sockets in DIRECTORY lead to the enclave; this process offers them on loopback,
where unmodified SDKs look (`honmaru.workloads.broker`). The user's code runs as a child.

Source: contract of Amazon Braket's job containers (entry point `module` or `module:function`), re-made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from honmaru.workloads.archives import BadArchive, unpack
from honmaru.workloads.brokered import run
from honmaru.workloads.quantum.server import use_compiled_code

ROOT = Path("/opt/ml")
_CALL = (
    "import importlib, sys; module, _, function = sys.argv[1].partition(':'); "
    "getattr(importlib.import_module(module), function)()"
)


def code() -> Path:
    """The user's code, unpacked. Raises BadArchive."""
    target = ROOT / "code"
    staged = ROOT / "input" / "submit" / "sourcedir.tar.gz"
    if os.environ.get("AMZN_BRAKET_SCRIPT_COMPRESSION_TYPE") == "NONE":
        name = os.environ["AMZN_BRAKET_SCRIPT_S3_URI"].rpartition("/")[2]
        shutil.copyfile(staged, target / name)
    else:
        unpack(staged, target)
    return target


def command(entry: str) -> list[str]:
    """The user's program: a module to run, or a function of one to call."""
    return [sys.executable, "-c", _CALL, entry] if ":" in entry else [sys.executable, "-m", entry]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m honmaru.workloads.quantum.job", description=__doc__)
    parser.add_argument("--broker", required=True, type=Path, help="directory of the broker's UNIX sockets")
    broker = parser.parse_args().broker
    use_compiled_code(Path(sys.prefix))
    try:
        folder = code()
    except BadArchive as bad:
        (ROOT / "output" / "failure").write_text(f"the submitted archive is refused: {bad}")
        return 1
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    return run(command(os.environ["AMZN_BRAKET_SCRIPT_ENTRY_POINT"]), broker, {"PYTHONPATH": path}, folder)


if __name__ == "__main__":
    sys.exit(main())
