"""Exercising the simulator once, so that its compiled code is there before a task needs it.

    NUMBA_CACHE_DIR=DIRECTORY python -m honmaru.workloads.quantum.warm [PREFIX]

Run as a program (by `make install-quantum`) it also writes PREFIX/braket-devices.json: what the installed simulator
says of itself, from which the control plane states the devices' capabilities without importing the simulator.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from braket.default_simulator import DensityMatrixSimulator, StateVectorSimulator, linalg_utils
from braket.ir.openqasm import Program
from numba import types
from numba.core.dispatcher import Dispatcher

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
DEVICES_FILE = "braket-devices.json"
_QUBITS = 12
_SMALLEST, _LARGEST = 11, 26
"""Dimensions of a state that compiled kernels work on: qubits, or twice the qubits of a density matrix."""


def exercise() -> None:
    """Run every kernel on a circuit just large enough for the compiled ones, exact and with shots."""
    gates = [
        *("h q[0]", "rz(0.3) q[1]", "x q[2]", "s q[3]", "swap q[0], q[2]", "cphaseshift(0.4) q[0], q[1]"),
        *("xx(0.3) q[0], q[1]", "iswap q[1], q[2]", "cz q[2], q[3]", "ccnot q[0], q[1], q[2]", "zz(0.1) q[1], q[2]"),
        *("rx(0.2) q[4]", "ry(0.2) q[5]", "t q[6]", "v q[7]", "cswap q[0], q[1], q[2]", "cy q[0], q[1]"),
        "phaseshift(0.1) q[3]",
        *(f"cnot q[{each}], q[{each + 1}]" for each in range(_QUBITS - 1)),
    ]
    head = f"OPENQASM 3.0;\nqubit[{_QUBITS}] q;\n" + "".join(f"{gate};\n" for gate in gates)
    simulator = StateVectorSimulator()
    measured = head.replace("qubit", f"bit[{_QUBITS}] b;\nqubit", 1) + "b = measure q;\n"
    simulator.run(Program(source=measured), shots=10)
    simulator.run(Program(source=head + "#pragma braket result probability\n"), shots=0)
    simulator.run(Program(source=head + "#pragma braket result expectation z(q[0]) @ x(q[1])\n"), shots=0)
    noisy = "OPENQASM 3.0;\nqubit[6] q;\nh q[0];\nrz(0.1) q[1];\ncnot q[0], q[1];\nswap q[1], q[2];\n"
    noisy += "cphaseshift(0.4) q[0], q[1];\n#pragma braket noise depolarizing(0.1) q[0]\n"
    DensityMatrixSimulator().run(Program(source=noisy + "#pragma braket result probability\n"), shots=0)


def compile_for_every_size() -> None:
    """Compile each kernel for every number of qubits: numba makes a version of its own for each, seconds a piece.

    Takes minutes of processor time once; the versions lie in NUMBA_CACHE_DIR afterwards.
    """
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(_compile_for, range(_SMALLEST, _LARGEST + 1)))


def _compile_for(qubits: int) -> None:
    """Compile what `exercise` used for a state of so many dimensions."""
    exercise()
    for kernel in vars(linalg_utils).values():
        if not isinstance(kernel, Dispatcher):
            continue
        for signature in list(kernel.signatures):
            kernel.compile(tuple(_resized(each, qubits) for each in signature))


def _resized(kind: Any, dimensions: int) -> Any:
    return kind.copy(ndim=dimensions) if isinstance(kind, types.Array) and kind.ndim == _QUBITS else kind


def described() -> dict[str, Any]:
    """The capability documents of the installed simulator, by device."""
    simulators = {"sv1": StateVectorSimulator(), "dm1": DensityMatrixSimulator()}
    return {name: json.loads(simulator.properties.json()) for name, simulator in simulators.items()}


def main() -> None:
    prefix = Path(sys.argv[1] if len(sys.argv) > 1 else sys.prefix)
    compile_for_every_size()
    partial = prefix / f"{DEVICES_FILE}.partial"
    partial.write_text(json.dumps(described()))
    partial.replace(prefix / DEVICES_FILE)


if __name__ == "__main__":
    main()
