"""`honmaru crypto`: which algorithms are in use, and a new root key."""

from __future__ import annotations

import argparse
import json

from honmaru.cli import after_the_verb

NAME = "crypto"
HELP = "print the cryptographic inventory, or rotate the root key"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="inventory|rotate")
    inventory = verbs.add_parser(
        "inventory", help="every algorithm in use, and whether CNSA 2.0 has it", parents=[after_the_verb()]
    )
    inventory.add_argument("--json", action="store_true", help="a CycloneDX 1.6 CBOM")
    verbs.add_parser("rotate", help="seal every key under a new root key", parents=[after_the_verb()])


def run(args: argparse.Namespace) -> int:
    if args.verb == "rotate":
        from honmaru.app.operator import ask

        print(f"{ask(args.data, 'RotateRootKey')['keys']} keys are sealed under a new root key.")
        return 0
    from honmaru.security.crypto.inventory import INVENTORY

    if args.json:
        from datetime import UTC, datetime

        from honmaru import __version__
        from honmaru.security.crypto.cbom import cbom

        print(json.dumps(cbom(__version__, datetime.now(UTC)), indent=2))
        return 0
    for algorithm in INVENTORY:
        suite = "CNSA 2.0" if algorithm.cnsa else "outside" if algorithm.security else "checksum"
        print(f"{suite:<9} {algorithm.name:<32} {algorithm.purpose}")
        if algorithm.reason:
            print(f"{'':<42} because {algorithm.reason}")
    print("These are algorithms, not validated modules: nothing here is FIPS validated.")
    return 0
