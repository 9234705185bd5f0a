"""`honmaru restore`: an enclave from its backup, checked to the last byte before anything is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from honmaru.cli.unseal import read_secret

NAME = "restore"
HELP = "lay the enclave of a backup out in an empty directory"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="FILE", help="the backup")
    parser.add_argument(
        "--signer", default="", metavar="HEX", help="begin of the ledger key's fingerprint that must fit"
    )
    parser.add_argument("--verify", action="store_true", help="check the backup only, and write nothing")


def run(args: argparse.Namespace) -> int:
    from honmaru.app.backup import restore, verify

    passphrase = read_secret("Passphrase of the backup")
    if args.verify:
        manifest = verify(args.source, passphrase)
    else:
        manifest = restore(args.source, args.data.absolute(), passphrase, signer=args.signer)
    done = "is whole" if args.verify else f"is restored in {args.data}"
    print(f"The enclave of {manifest.region}, account {manifest.account}, as of {manifest.made}, {done}.")
    print(f"  {manifest.entries} files, {manifest.size} bytes, signed by {manifest.signer[:16]}")
    return 0
