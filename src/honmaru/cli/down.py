"""`honmaru down`: stop the enclave and wait until it has stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from honmaru.app.run_files import running_pid

NAME = "down"
HELP = "stop the enclave"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="give up after (default 30)")


def run(args: argparse.Namespace) -> int:
    pid = running_pid(args.data)
    if pid is None:
        print(f"No enclave runs in {args.data}.")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + args.timeout
    while running_pid(args.data) == pid:
        if time.monotonic() > deadline:
            print(f"honmaru: pid {pid} has not stopped after {args.timeout:.0f} s", file=sys.stderr)
            return 1
        time.sleep(0.05)
    print("Stopped.")
    return 0
