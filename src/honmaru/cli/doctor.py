"""`honmaru doctor`: what this machine lacks, with the repair."""

from __future__ import annotations

import argparse
import json

NAME = "doctor"
HELP = "check this machine and name the repair for what is not right"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from honmaru.app.doctor import examine

    findings = examine(args.data)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.level:<5} {finding.subject:<13} {finding.seen}")
            if finding.repair:
                print(f"{'':<19} repair: {finding.repair}")
    return int(any(finding.level == "fail" for finding in findings))
