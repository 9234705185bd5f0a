"""The `honmaru` command: parse, call, print. Verbs are the modules of `honmaru.cli`, found by name.

Invariants:
- Nothing heavy is imported here or at the import of a verb: `honmaru --help` stays under 0.3 s.
- What the user did wrong ends as one line on standard error and exit code 1 (2 for a usage error), never a stack.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from honmaru import __version__, cli
from honmaru.core.errors import ConfigurationFault, HonmaruError


def default_data_directory() -> Path:
    """Where an enclave lives when `--data` is not given: $HONMARU_DATA, else the user's data directory (XDG)."""
    if chosen := os.environ.get("HONMARU_DATA"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "honmaru"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="honmaru",
        description="A self-hosted AI platform that speaks the AWS AI APIs, labels every byte and proves every call.",
    )
    parser.add_argument("--version", action="version", version=f"honmaru {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--data",
        type=Path,
        default=default_data_directory(),
        metavar="DIR",
        help="the enclave's data directory (default: $HONMARU_DATA or ~/.local/share/honmaru)",
    )
    shared.add_argument("--verbose", action="store_true", help="show the cause of an error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for info in pkgutil.iter_modules(cli.__path__):
        if info.name.startswith("_"):
            continue
        verb = importlib.import_module(f"honmaru.cli.{info.name}")
        verb_parser = verbs.add_parser(verb.NAME, help=verb.HELP, description=verb.HELP, parents=[shared])
        verb.configure(verb_parser)
        verb_parser.set_defaults(run=verb.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigurationFault as fault:
        for problem in fault.problems:
            print(f"honmaru: {problem}", file=sys.stderr)
    except HonmaruError as fault:
        print(f"honmaru: {fault.message}", file=sys.stderr)
        if args.verbose and fault.__cause__ is not None:
            print(f"  caused by {type(fault.__cause__).__name__}: {fault.__cause__}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
