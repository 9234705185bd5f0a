"""`honmaru status`: is the enclave running, where, and in what state."""

from __future__ import annotations

import argparse
import json

from honmaru.app.run_files import running_pid

NAME = "status"
HELP = "show whether the enclave runs, and where"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if running_pid(args.data) is None:
        facts: dict[str, object] = {"running": False, "data": str(args.data)}
    else:
        from honmaru.app.operator import ask

        facts = {"running": True, **ask(args.data, "Status")}
    if args.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:<10} {value}")
    return 0 if facts["running"] else 1
