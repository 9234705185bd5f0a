"""`honmaru unseal`: bring what opens the root key of an enclave that waits for it."""

from __future__ import annotations

import argparse
import getpass
import sys

NAME = "unseal"
HELP = "open the root key of an enclave that was started sealed"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Reads a passphrase, one share, or a token's PIN from the terminal, or one line from standard input."
    )


def run(args: argparse.Namespace) -> int:
    from honmaru.app.operator import ask

    status = ask(args.data, "Status")
    if not status.get("sealed"):
        print("The enclave is not sealed.")
        return 0
    what = {"passphrase": "Passphrase", "shares": "Share", "token": f"PIN of {status.get('token')}"}[status["lock"]]
    answer = ask(args.data, "Unseal", secret=read_secret(what))
    if answer["sealed"]:
        print(f"{answer['given']} of {answer['threshold']} shares; run `honmaru unseal` again with the next one.")
    else:
        print("Unsealed.")
    return 0


def read_secret(what: str) -> str:
    """One line without echo from a terminal; one plain line from a pipe."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{what}: ")
    return sys.stdin.readline().rstrip("\n")
