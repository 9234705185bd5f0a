"""`honmaru environment`: the software environments that jobs may name as image URI."""

from __future__ import annotations

import argparse

from honmaru.cli import after_the_verb

NAME = "environment"
HELP = "list the software environments that jobs may name"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list")
    verbs.add_parser("list", help="list environments", parents=[after_the_verb()])


def run(args: argparse.Namespace) -> int:
    from honmaru.app.operator import ask

    for environment in ask(args.data, "ListEnvironments")["environments"]:
        print(f"{environment['name']:<14} {environment['digest'][:19]}  {environment['description']}")
    return 0
