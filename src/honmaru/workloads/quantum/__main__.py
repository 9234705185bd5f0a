"""The command line of the quantum worker, as the enclave starts it inside the sandbox."""

from __future__ import annotations

import argparse

from honmaru.workloads.quantum.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m honmaru.workloads.quantum", description=__doc__)
    parser.add_argument("--socket", required=True, help="path of the UNIX socket to listen on")
    serve(parser.parse_args().socket)


if __name__ == "__main__":
    main()
