"""`honmaru seal`: put the root key of a stopped enclave under a passphrase, shares or a token."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from honmaru.cli.unseal import read_secret

if TYPE_CHECKING:
    from honmaru.security.crypto.locks import Lock, Locked

NAME = "seal"
HELP = "seal the root key under a passphrase, shares of several people, or a PKCS#11 token"


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--passphrase", action="store_true", help="ask for a passphrase")
    kinds.add_argument("--shares", metavar="M/N", help="make N shares, any M of which open it, for example 3/5")
    kinds.add_argument("--token", metavar="LABEL", help="wrap it by an AES key in the token of this label")
    parser.add_argument("--module", type=Path, metavar="FILE", help="the token's PKCS#11 library (with --token)")
    parser.add_argument(
        "--key", default="honmaru-root", metavar="LABEL", help="the AES key in the token; made if absent"
    )


def run(args: argparse.Namespace) -> int:
    import os

    from honmaru.app.run_files import take_lock
    from honmaru.app.unsealing import ring_of
    from honmaru.security.crypto.root_key import RootKey, sealed_lock
    from honmaru.security.crypto.secret_files import private_directory

    private_directory(args.data.absolute())
    with take_lock(args.data):
        ring = ring_of(args.data.absolute())
        present = sealed_lock(ring)
        unlocking = None if present is None else _present_key(present)
        root = RootKey(ring, os.urandom, unlocking)
        with root.held():
            root.load()
        made = _new_lock(args)
        root.seal(made.lock, made.key)
    for number, share in enumerate(made.shares, 1):
        print(f"share {number}: {share}")
    if made.shares:
        print(f"Give each to another person now; any {made.lock['threshold']} open the enclave, and nobody else can.")
    print("Sealed. Start it with `honmaru up --sealed`, then `honmaru unseal`.")
    return 0


def _present_key(lock: Lock) -> bytes:
    """What opens the present lock, asked from the operator."""
    from honmaru.security.crypto import locks

    kind = lock["kind"]
    if kind == locks.PASSPHRASE:
        return locks.by_passphrase(lock, read_secret("Present passphrase"))
    if kind == locks.TOKEN:
        return locks.by_token(lock, read_secret("PIN of the present token"))
    threshold = int(str(lock["threshold"]))
    return locks.by_shares(
        lock, [read_secret(f"Present share {number + 1} of {threshold}") for number in range(threshold)]
    )


def _new_lock(args: argparse.Namespace) -> Locked:
    import os

    from honmaru.core.errors import ConfigurationFault
    from honmaru.security.crypto import locks

    if args.passphrase:
        passphrase = read_secret("New passphrase")
        if read_secret("The same again") != passphrase:
            raise ConfigurationFault(["the two passphrases differ: nothing was changed"])
        return locks.with_passphrase(passphrase, os.urandom)
    if args.token:
        if args.module is None:
            raise ConfigurationFault(["--token needs --module, for example /usr/lib/softhsm/libsofthsm2.so"])
        return locks.with_token(str(args.module), args.token, args.key, read_secret(f"PIN of {args.token}"), os.urandom)
    threshold, _, count = args.shares.partition("/")
    if not threshold.isdigit() or not count.isdigit():
        raise ConfigurationFault([f"--shares {args.shares}: expected M/N, for example 3/5"])
    return locks.with_shares(int(threshold), int(count), os.urandom)
