"""`honmaru quickstart`: the main job on real text, with plain boto3, from nothing to a governed, answering model."""

from __future__ import annotations

import argparse
from pathlib import Path

from honmaru.app.settings import DEFAULT_PORT
from honmaru.core.errors import PlatformFault

NAME = "quickstart"
HELP = "train, approve, import and ask a model on real text; leaves the enclave running"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=Path, metavar="PATH", help="your own UTF-8 text (default: Python's documentation)"
    )
    parser.add_argument("--seconds", type=int, default=120, metavar="S", help="training time (default 120)")
    parser.add_argument("--region", default="us-isob-east-1", help="default us-isob-east-1, a Secret enclave")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default {DEFAULT_PORT}; taken if free")


def run(args: argparse.Namespace) -> int:
    from botocore.exceptions import BotoCoreError, ClientError

    from honmaru.cli._main_job import MainJob

    try:
        MainJob(args.data.absolute(), args.region, args.port, args.corpus, args.seconds).run()
    except (BotoCoreError, ClientError) as fault:
        raise PlatformFault(f"{fault}; see {args.data / 'log' / 'enclave.log'}") from fault
    return 0
