"""Quantum tasks through Amazon's SDK and a live enclave, beside the bare simulator in the same run.

Bell: from create to result, with the SDK's poll hint; every task is durable, labelled and in the ledger, and its result
was read from S3. Batch: small circuits through run_batch. Large: a Fourier transform (two-qubit gates of every distance).

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
    rate, bare_rate = chosen.batch / figures["batch_s"], chosen.batch / figures["batch_bare_s"]
    more = (figures["large_s"] / figures["large_bare_s"] - 1) * 100
    print(f"{'':44}{'enclave':>12}{'bare':>12}")
    print(
        f"{'Bell, create to result, p50 (aim <= 60 ms)':44}{figures['bell_ms']:>9.1f} ms{figures['bell_bare_ms']:>9.1f} ms"
    )
    print(f"{'  of which create, p50':44}{figures['bell_create_ms']:>9.1f} ms")
    print(f"{f'batch of {chosen.batch} small circuits (aim >= 50/s)':44}{rate:>10.1f}/s{bare_rate:>10.1f}/s")
    large = f"{chosen.qubits} qubits, {figures['gates']} gates, median of {chosen.repeats}"
    print(f"{large:44}{figures['large_s']:>10.2f} s{figures['large_bare_s']:>10.2f} s")
    print(f"{'  more than bare (aim <= 5 %)':44}{more:>10.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
