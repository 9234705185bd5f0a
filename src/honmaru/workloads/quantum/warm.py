"""Exercising the simulator once, so that its compiled code is there before a task needs it.

    NUMBA_CACHE_DIR=DIRECTORY python -m honmaru.workloads.quantum.warm [PREFIX]

Run as a program (by `make install-quantum`) it also writes PREFIX/braket-devices.json: what the installed simulator
says of itself, from which the control plane states the devices' capabilities without importing the simulator.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from braket.default_simulator import DensityMatrixSimulator, StateVectorSimulator
from braket.ir.openqasm import Program

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
DEVICES_FILE = "braket-devices.json"
_QUBITS = 12


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


def described() -> dict[str, Any]:
    """The capability documents of the installed simulator, by device."""
    simulators = {"sv1": StateVectorSimulator(), "dm1": DensityMatrixSimulator()}
    return {name: json.loads(simulator.properties.json()) for name, simulator in simulators.items()}


def main() -> None:
    prefix = Path(sys.argv[1] if len(sys.argv) > 1 else sys.prefix)
    exercise()
    partial = prefix / f"{DEVICES_FILE}.partial"
    partial.write_text(json.dumps(described()))
    partial.replace(prefix / DEVICES_FILE)


if __name__ == "__main__":
    main()
