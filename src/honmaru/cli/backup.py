"""`honmaru backup`: the whole enclave in one file, sealed and signed, while it runs or is down."""

from __future__ import annotations

import argparse
from pathlib import Path

from honmaru.cli.unseal import read_secret

NAME = "backup"
HELP = "write the whole enclave to one file, sealed under a passphrase and signed"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new file")
    parser.epilog = "Reads the passphrase from the terminal, or one line from standard input. Whoever has both has all."


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from honmaru.app.run_files import running_pid, take_lock

    passphrase, target, data = read_secret("Passphrase of the backup"), args.to.absolute(), args.data.absolute()
    if running_pid(data) is not None:
        from honmaru.app.operator import ask

        facts = ask(data, "BackUp", timeout_s=86400.0, to=str(target), passphrase=passphrase)
    else:
        from honmaru.app.backup import back_up

        with take_lock(data):
            facts = asdict(back_up(data, target, passphrase))
    print(f"{target}: {facts['entries']} files, {facts['size']} bytes, signed by {facts['signer'][:16]}")
    return 0
