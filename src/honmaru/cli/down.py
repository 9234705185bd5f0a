"""`honmaru down`: stop the enclave and wait until it has stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from honmaru.app.run_files import running_pid, running_sandboxes

NAME = "down"
HELP = "stop the enclave"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", action="store_true", help="stop running jobs too; without it they go on in their sandboxes"
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="give up after (default 30)")


def run(args: argparse.Namespace) -> int:
    deadline = time.monotonic() + args.timeout
    pid = running_pid(args.data)
    if pid is None:
        print(f"No enclave runs in {args.data}.")
    else:
        os.kill(pid, signal.SIGTERM)
        while running_pid(args.data) == pid:
            if time.monotonic() > deadline:
                print(f"honmaru: pid {pid} has not stopped after {args.timeout:.0f} s", file=sys.stderr)
                return 1
            time.sleep(0.05)
        print("Stopped.")
    jobs = running_sandboxes(args.data, stop=args.jobs)
    if jobs and not args.jobs:
        print(f"{len(jobs)} running jobs go on in their sandboxes; the next start takes them up again.")
        print("  stop them too: honmaru down --jobs")
        return 0
    while running_sandboxes(args.data):
        if time.monotonic() > deadline:
            print("honmaru: some jobs have not stopped yet; they are killed after their grace", file=sys.stderr)
            return 1
        time.sleep(0.1)
    return 0
