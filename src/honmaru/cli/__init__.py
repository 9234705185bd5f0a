"""Faces on the command line: one verb a module, with NAME, HELP, `configure(parser)` and `run(args) -> int`."""

from __future__ import annotations

import argparse
from pathlib import Path


def after_the_verb() -> argparse.ArgumentParser:
    """Parent for sub-verbs, so that `honmaru user list --data DIR` means the same as `honmaru user --data DIR list`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="the data directory")
    return shared
