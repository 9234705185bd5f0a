"""Running one Braket action on the simulator, within stated limits, and writing its result in Braket's schema.

Invariants:
- Limits hold before memory is taken: qubits, gates and depth are counted while the program is interpreted.
- Whatever is wrong with a program is a `Refused` with the reason; only a fault of the simulator is anything else.
- A result is written with finite numbers of full precision; complex ones as [re, im].

Source: braket.ir.openqasm.program, .program_set, braket.ir.jaqcd.program; braket.task_result.gate_model_task_result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pickle
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from braket.default_simulator import DensityMatrixSimulator, StateVectorSimulator
from braket.default_simulator.gate_operations import Unitary
from braket.default_simulator.openqasm import interpreter
from braket.default_simulator.openqasm.program_context import ProgramContext
from braket.ir.jaqcd import Program as JaqcdProgram
from braket.ir.openqasm import Program, ProgramSet

from honmaru.workloads.quantum import sampling

warnings.filterwarnings("ignore")
logging.getLogger("braket").setLevel(logging.ERROR)

OPENQASM, PROGRAM_SET, JAQCD = "braket.ir.openqasm.program", "braket.ir.openqasm.program_set", "braket.ir.jaqcd.program"
_DECLARED_QUBITS = 4096
TREES = Path("/tmp/trees")  # noqa: S108  inside the sandbox, a tmpfs of its own
_CACHED_SOURCE = 256 << 10
_LEFT_TREES = 256
_SMALL = 10
"""Up to so many qubits the simulator works without compiled code."""


@lru_cache(maxsize=64)
def _parsed(source: str) -> bytes | None:
    """The pickled syntax tree; None for one that cannot be pickled (gate modifiers are made-up enumerations)."""
    left = _place(source)
    try:
        tree = left.read_bytes()
        left.unlink(missing_ok=True)
        return tree
    except FileNotFoundError:
        pass
    try:
        return pickle.dumps(_parse(source))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def _place(source: str) -> Path:
    return TREES / hashlib.sha256(source.encode()).hexdigest()


def leave_tree(source: str) -> None:
    """Leave a source's syntax tree for the process that will run it, in this sandbox: it need not parse again."""
    tree = _parsed(source) if len(source) <= _CACHED_SOURCE else None
    if tree is None or not TREES.is_dir() or sum(1 for _ in TREES.iterdir()) >= _LEFT_TREES:
        return
    partial = TREES / f"{os.getpid()}.partial"
    partial.write_bytes(tree)
    partial.replace(_place(source))


def _parse_once(source: str) -> Any:
    """A fresh syntax tree. A program set runs one source with many inputs, and parsing is most of a small circuit."""
    tree = _parsed(source) if len(source) <= _CACHED_SOURCE else None
    return _parse(source) if tree is None else pickle.loads(tree)  # noqa: S301  our own


_parse = interpreter.parse
interpreter.parse = _parse_once


class Refused(Exception):
    """The program cannot be run as it is; the message says why."""


@dataclass(slots=True)
class Limits:
    """What one task may be. `gates` and `depth` are per executed circuit; `values` counts numbers in exact results."""

    qubits: int
    gates: int
    depth: int
    values: int
    executables: int


class _Counting(ProgramContext):  # type: ignore[misc]
    """A program context that refuses while the program is interpreted, before a bomb has gone off."""

    def __init__(self, simulator: Any, limits: Limits) -> None:
        super().__init__(simulator=simulator)
        self._limits, self._gates = limits, 0
        self._levels: dict[int, int] = {}

    def add_qubits(self, name: str, num_qubits: int | None = 1) -> None:
        if self.num_qubits + (num_qubits or 1) > _DECLARED_QUBITS:
            raise Refused(f"the program declares more than {_DECLARED_QUBITS} qubits")
        super().add_qubits(name, num_qubits)

    def _count(self, target: Any) -> None:
        self._gates += 1
        if self._gates > self._limits.gates:
            raise Refused(f"the circuit has more than {self._limits.gates} gates, which is this device's limit")
        levels = self._levels
        level = 1 + max((levels.get(qubit, 0) for qubit in target), default=0)
        if level > self._limits.depth:
            raise Refused(f"the circuit is deeper than {self._limits.depth}, which is this device's limit")
        for qubit in target:
            levels[qubit] = level
        if len(levels) > self._limits.qubits:
            raise Refused(f"the circuit uses more than {self._limits.qubits} qubits, which is this device's limit")

    def add_gate_instruction(self, gate_name: str, target: tuple[int, ...], *rest: Any, **named: Any) -> None:
        self._count(target)
        super().add_gate_instruction(gate_name, target, *rest, **named)

    def add_phase_instruction(self, target: tuple[int], phase_value: int) -> None:
        self._count(())
        super().add_phase_instruction(target, phase_value)

    def add_custom_unitary(self, unitary: Any, target: tuple[int, ...]) -> None:
        self._count(target)
        super().add_custom_unitary(unitary, target)

    def add_noise_instruction(self, noise_instruction: str, target: list[int], probabilities: list[float]) -> None:
        self._count(target)
        super().add_noise_instruction(noise_instruction, target, probabilities)

    def add_kraus_instruction(self, matrices: Any, target: list[int]) -> None:
        self._count(target)
        super().add_kraus_instruction(matrices, target)

    def add_reset(self, target: list[int]) -> None:
        self._count(target)
        super().add_reset(target)


class _Measured:
    """Mixed into a simulator: counts while it interprets, and checks the result types it is asked for."""

    limits: Limits

    @property
    def properties(self) -> Any:
        """The simulator's own, made once: it makes and validates the whole document for each circuit that it checks,
        which is half of the work on a small one."""
        kind: Any = type(self)
        return _properties(kind)

    def create_program_context(self) -> ProgramContext:
        return _Counting(self, self.limits)

    def _validate_program_set_instructions_compatibility(self, program_set: ProgramSet) -> None:
        """Nothing: each executable is checked when it is run, and interpreting all of them twice is what costs."""

    def initialize_simulation(self, **named: Any) -> Any:
        qubits = int(named.get("qubit_count") or 0)
        if qubits == 0:
            raise Refused("the circuit uses no qubit")
        if qubits > self.limits.qubits:
            raise Refused(f"the circuit uses {qubits} qubits; this device has at most {self.limits.qubits}")
        simulation = super().initialize_simulation(**named)  # type: ignore[misc]
        if qubits > _SMALL:
            evolve = simulation.evolve
            simulation.evolve = lambda operations: evolve([_without_control(each) for each in operations])
        return simulation

    def _validate_shots_and_ir_results(self, shots: int, results: Any, qubit_count: int) -> None:
        super()._validate_shots_and_ir_results(shots, results, qubit_count)  # type: ignore[misc]
        for result in results or ():
            values = _values(result, qubit_count)
            if not shots and values > self.limits.values:
                raise Refused(
                    f"result type {result.type.value} over {qubit_count} qubits has {values} values; at most "
                    f"{self.limits.values} are returned: name fewer targets, or ask for shots or expectation values"
                )


@cache
def _properties(kind: Any) -> Any:
    return super(_Measured, kind()).properties


class _StateVector(_Measured, StateVectorSimulator):  # type: ignore[misc]
    pass


class _DensityMatrix(_Measured, DensityMatrixSimulator):  # type: ignore[misc]
    pass


DEVICES = {"sv1": _StateVector, "dm1": _DensityMatrix}


def _without_control(operation: Any) -> Any:
    """The same operation with its controls inside its matrix.

    The simulator's compiled kernels cannot take the part of a state that a control selects (1.41: TypingError).
    """
    states = getattr(operation, "control_state", ())
    if not states:
        return operation
    inner = np.asarray(operation.matrix, dtype=complex)
    controls, size = len(states), inner.shape[0]
    matrix = np.eye(2**controls * size, dtype=complex)
    begin = int("".join(str(state) for state in states), 2) * size
    matrix[begin : begin + size, begin : begin + size] = inner
    return Unitary(tuple(operation.targets), matrix)


def _values(result: Any, qubits: int) -> int:
    named = getattr(result, "targets", None)
    width = len(named) if named else qubits
    if result.type == "statevector":
        return int(2**qubits)
    if result.type == "densitymatrix":
        return int(4**width)
    return int(2**width) if result.type == "probability" else 1


def parse(action: str) -> Any:
    """The action as Braket's own class. Raises Refused."""
    try:
        document = json.loads(action)
        name = document["braketSchemaHeader"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused("action is not a JSON document with a braketSchemaHeader") from None
    kinds: Mapping[str, Any] = {OPENQASM: Program, PROGRAM_SET: ProgramSet, JAQCD: JaqcdProgram}
    if name not in kinds:
        raise Refused(f"action {name!r} is not supported; this device runs {', '.join(sorted(kinds))}")
    try:
        program = kinds[name].parse_obj(document)
    except ValueError as fault:
        raise Refused(f"action is not a valid {name}: {_brief(fault)}") from None
    for one in program.programs if name == PROGRAM_SET else [program]:
        if name != JAQCD and one.source.endswith(".qasm"):
            raise Refused("the program's source must be OpenQASM text, not the name of a file")
    return program


def check(request: Mapping[str, Any]) -> None:
    """Interpret the program without simulating it. Raises Refused."""
    simulator, program, shots = _prepared(request)
    with _faults_of_the_program():
        if isinstance(program, ProgramSet):
            executables = program.num_executables
            if not shots or shots % executables:
                raise Refused(f"shots must be a positive multiple of the {executables} executables of the program set")
            if executables > simulator.limits.executables:
                raise Refused(f"the program set has {executables} executables; at most {simulator.limits.executables}")
            for each in program.programs:  # one executable of each: the run checks every one as it comes to it
                inputs = {name: values[0] for name, values in (each.inputs or {}).items()}
                _check_openqasm(simulator, Program(source=each.source, inputs=inputs), shots // executables)
        elif isinstance(program, Program):
            _check_openqasm(simulator, program, shots)
    for each in getattr(program, "programs", [program]):
        if isinstance(each, Program):
            leave_tree(each.source)


def _check_openqasm(simulator: Any, program: Program, shots: int) -> None:
    context = simulator._parse_program_with_shots(program, shots) if shots else simulator.parse_program(program)
    if context.is_branched:
        return
    circuit = context.circuit
    circuit.validate_single_measured_register()
    action = "braket.ir.openqasm.program"
    simulator._validate_ir_results_compatibility(circuit.results, device_action_type=action)
    simulator._validate_ir_instructions_compatibility(circuit, device_action_type=action)
    simulator._validate_input_provided(circuit)
    simulator._validate_shots_and_ir_results(shots, circuit.results, circuit.num_qubits)
    if circuit.num_qubits == 0:
        raise Refused("the circuit uses no qubit")
    if circuit.num_qubits > simulator.limits.qubits:
        raise Refused(
            f"the circuit uses {circuit.num_qubits} qubits; this device has at most {simulator.limits.qubits}"
        )


def run(request: Mapping[str, Any]) -> Iterator[bytes]:
    """Simulate; the bytes of results.json. Raises Refused before the first byte."""
    simulator, program, shots = _prepared(request)
    began = time.perf_counter()
    with _faults_of_the_program():
        result = simulator.run(program, shots=shots)
    duration_ms = int((time.perf_counter() - began) * 1000)
    if isinstance(program, ProgramSet):
        return iter([_program_set_document(result, request)])
    return _written(_document(result, request, duration_ms))


def _prepared(request: Mapping[str, Any]) -> tuple[Any, Any, int]:
    simulator = DEVICES[request["device"]]()
    simulator.limits = Limits(**request["limits"])
    return simulator, parse(request["action"]), int(request["shots"])


class _faults_of_the_program:  # noqa: N801  reads as what it is: with _faults_of_the_program(): ...
    """What the interpreter raises for a program that is wrong becomes Refused. MemoryError and the like pass."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, fault: BaseException | None, trace: Any) -> None:
        if isinstance(fault, RecursionError):
            raise Refused("the program is nested too deeply") from None
        if isinstance(fault, Exception) and not isinstance(fault, Refused | MemoryError | OSError):
            raise Refused(_brief(fault)) from None
        if isinstance(fault, OSError):
            raise Refused(f"the program includes a file that is not there: {fault.strerror}") from None


def _brief(fault: BaseException) -> str:
    token = _offending(fault)
    if token is not None:
        return f"the program is not OpenQASM 3: line {token.line}, column {token.column}: unexpected {token.text!r}"[
            :800
        ]
    if str(fault).startswith("Noise instructions are not supported"):
        return "noise is simulated by device DM1; SV1 simulates pure states"
    text = " ".join(str(fault).split()) or type(fault).__name__
    name = type(fault).__name__
    return (text if name in ("ValueError", "TypeError", "NameError") else f"{name}: {text}")[:800]


def _offending(fault: BaseException) -> Any:
    """The token that the parser stumbled over: the parser keeps it in the cause of what it raises."""
    for cause in (fault.__cause__, *(fault.__cause__.args if fault.__cause__ is not None else ())):
        token = getattr(cause, "offendingToken", None)
        if token is not None:
            return token
    return None


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _document(result: Any, request: Mapping[str, Any], duration_ms: int) -> dict[str, Any]:
    task = request["task"]
    document: dict[str, Any] = {
        "braketSchemaHeader": {"name": "braket.task_result.gate_model_task_result", "version": "1"},
        "measuredQubits": [int(qubit) for qubit in result.measuredQubits],
        "taskMetadata": {
            "braketSchemaHeader": {"name": "braket.task_result.task_metadata", "version": "1"},
            "id": task["id"],
            "shots": int(request["shots"]),
            "deviceId": task["deviceArn"],
            "createdAt": task["createdAt"],
            "endedAt": _stamp(),
            "status": "COMPLETED",
        },
        "additionalMetadata": {
            "action": json.loads(request["action"]),
            "simulatorMetadata": {
                "braketSchemaHeader": {"name": "braket.task_result.simulator_metadata", "version": "1"},
                "executionDuration": duration_ms,
            },
        },
        "resultTypes": [
            {"type": _type_of(each), "value": each.value} for each in result.resultTypes or () if hasattr(each, "value")
        ],
    }
    if result.measurements is not None and len(result.measurements):
        measurements = np.asarray(result.measurements, dtype=int)
        document["measurements"] = measurements.tolist()
        with _faults_of_the_program():
            document["resultTypes"] = [
                {"type": _type_of(each), "value": sampling.value(each, measurements, document["measuredQubits"])}
                for each in result.resultTypes or ()
            ]
    if not document["resultTypes"]:
        del document["resultTypes"]
    return document


def _type_of(each: Any) -> Any:
    """The result type as JSON; an exact result carries it as `type`, a sampled one is it."""
    kind = getattr(each, "type", None)
    return json.loads((each if kind is None or isinstance(kind, str) else kind).json(exclude_none=True))


def _program_set_document(result: Any, request: Mapping[str, Any]) -> bytes:
    document = json.loads(result.json(exclude_none=True))
    task = request["task"]
    document["taskMetadata"] |= {
        "id": task["id"], "deviceId": task["deviceArn"], "createdAt": task["createdAt"], "endedAt": _stamp(),
    }  # fmt: skip
    return json.dumps(document).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.stack([value.real, value.imag], axis=-1).tolist() if np.iscomplexobj(value) else value.tolist()
    if isinstance(value, complex | np.complexfloating):
        return [float(value.real), float(value.imag)]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if not math.isfinite(number):
            raise Refused("the result is not a finite number")
        return number
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise TypeError(f"a {type(value).__name__} cannot be written")


def _written(document: dict[str, Any]) -> Iterator[bytes]:
    """JSON in chunks: an exact result is large, so each value is converted and written for itself."""
    types = document.pop("resultTypes", None)
    head = json.dumps(document)
    yield head[:-1].encode()
    if types is not None:
        yield b', "resultTypes": ['
        for number, each in enumerate(types):
            text = json.dumps({"type": each["type"], "value": _plain(each["value"])})
            yield (", " if number else "").encode() + text.encode()
        yield b"]"
    yield b"}"
