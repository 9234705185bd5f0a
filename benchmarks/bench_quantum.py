"""Quantum tasks through Amazon's SDK and a live enclave, beside the bare simulator in the same run.

Bell: from create to result, with the SDK's poll hint; every task is durable, labelled and in the ledger, and its result
was read from S3. Small circuits: a task each, with plain boto3 (16 at a time) and with the SDK's run_batch, which costs
the client itself more than the enclave (it builds an S3 resource for every result); and as one program set. Large: a
Fourier transform (two-qubit gates of every distance).

    python benchmarks/bench_quantum.py [--runs N] [--batch N] [--qubits N] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from honmaru.testing.enclaves import LiveEnclave

CLIENT = Path(__file__).with_name("quantum_client.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("runs", 40), ("batch", 100), ("qubits", 22), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    python = Path(sys.prefix).with_name(".venv-quantum") / "bin" / "python"
    if not python.exists():
        sys.stderr.write("the quantum environment is missing: run `make install-quantum`\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        enclave = LiveEnclave(Path(folder) / "data").up()
        try:
            environment = {**os.environ, **enclave.variables()}
            arguments = [str(each) for each in (chosen.runs, chosen.batch, chosen.qubits, chosen.repeats)]
            done = subprocess.run(
                [str(python), str(CLIENT), *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
        finally:
            enclave.down()
    figures = json.loads(done.stdout.splitlines()[-1])
    bare_rate = chosen.batch / figures["batch_bare_s"]
    rows = (
        ("Bell, create to result, p50 (aim <= 60 ms)", figures["bell_ms"], figures["bell_bare_ms"], "ms"),
        ("  of which create, p50", figures["bell_create_ms"], None, "ms"),
        (f"{chosen.batch} small circuits, a task each (aim >= 50)", chosen.batch / figures["plain_s"], bare_rate, "/s"),
        ("  the same through the SDK's run_batch", chosen.batch / figures["batch_s"], bare_rate, "/s"),
        (f"{chosen.batch} small circuits as a program set", chosen.batch / figures["program_set_s"], bare_rate, "/s"),
        (f"{chosen.qubits} qubits, {figures['gates']} gates", figures["large_s"], figures["large_bare_s"], "s"),
        ("  more than bare (aim <= 5)", (figures["large_s"] / figures["large_bare_s"] - 1) * 100, None, "%"),
    )
    print(f"{'':44}{'enclave':>10}{'bare':>10}")
    for name, ours, bare, unit in rows:
        print(f"{name:44}{ours:>10.2f}{'' if bare is None else f'{bare:.2f}':>10} {unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
