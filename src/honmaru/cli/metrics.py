"""`honmaru metrics`: the enclave's numbers for Prometheus, over the operator's channel."""

from __future__ import annotations

import argparse

NAME = "metrics"
HELP = "print the enclave's numbers as Prometheus reads them"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label", default="", help="show what is at or below this label (default: UNCLASSIFIED, the lowest)"
    )


def run(args: argparse.Namespace) -> int:
    from honmaru.app.operator import ask

    print(ask(args.data, "GetMetrics", label=args.label)["text"], end="")
    return 0
