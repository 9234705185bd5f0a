"""`honmaru user`: make and list the people and programs that may sign in."""

from __future__ import annotations

import argparse

from honmaru.cli import after_the_verb

NAME = "user"
HELP = "create and list users"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="create|list")
    create = verbs.add_parser("create", help="create a user", parents=[after_the_verb()])
    create.add_argument("name")
    create.add_argument(
        "--clearance", default="UNCLASSIFIED", help='highest marking, for example "SECRET" or "TOP SECRET//SI"'
    )
    create.add_argument(
        "--policy", action="append", default=[], metavar="NAME", help="managed policy, for example AmazonS3FullAccess"
    )
    verbs.add_parser("list", help="list users", parents=[after_the_verb()])


def run(args: argparse.Namespace) -> int:
    from honmaru.app.operator import ask

    if args.verb == "create":
        made = ask(args.data, "CreateUser", name=args.name, clearance=args.clearance, policies=args.policy)
        print(f"Created {made['user']}, cleared to {made['clearance']}.")
        print(
            f'  sign in: eval "$(honmaru env --user {made["user"]} --label LABEL)", LABEL within that and the ceiling'
        )
        return 0
    for user in ask(args.data, "ListUsers")["users"]:
        print(f"{user['name']:<24} {user['clearance']:<24} {', '.join(user['policies'])}")
    return 0
