"""The client side of bench_quantum: Amazon's unmodified SDK against an enclave, and the bare simulator beside it.

Run by .venv-quantum's interpreter with the variables of `honmaru env`; prints one JSON object.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
from botocore.config import Config
from braket.aws import AwsDevice, AwsSession
from braket.circuits import Circuit
from braket.circuits.serialization import IRType
from braket.devices import LocalSimulator
from braket.program_sets import ProgramSet

warnings.filterwarnings("ignore")
SV1 = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"
BELL = Circuit().h(0).cnot(0, 1)


def ghz(qubits: int) -> Circuit:
    circuit = Circuit().h(0)
    for qubit in range(qubits - 1):
        circuit.cnot(qubit, qubit + 1)
    return circuit


def large(qubits: int) -> Circuit:
    circuit = Circuit()
    for target in range(qubits):
        circuit.h(target)
        for control in range(target + 1, qubits):
            circuit.cphaseshift(control, target, math.pi / 2 ** (control - target))
    return circuit


def measured(circuit: Circuit) -> Circuit:
    return circuit.copy().measure(range(circuit.qubit_count))


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def plain(circuits: list[Circuit], bucket: str) -> None:
    """The same tasks through boto3 alone: create, ask until it has ended, read results.json; 16 at a time."""
    config = Config(max_pool_connections=16)
    tasks, objects = boto3.client("braket", config=config), boto3.client("s3", config=config)

    def one(circuit: Circuit) -> None:
        task = tasks.create_quantum_task(
            action=circuit.to_ir(IRType.OPENQASM).json(), clientToken=str(uuid.uuid4()), deviceArn=SV1, shots=100,
            outputS3Bucket=bucket, outputS3KeyPrefix="bench",
        )["quantumTaskArn"]  # fmt: skip
        while (found := tasks.get_quantum_task(quantumTaskArn=task))["status"] != "COMPLETED":
            time.sleep(0.02)
        key = f"{found['outputS3Directory']}/results.json"
        json.loads(objects.get_object(Bucket=bucket, Key=key)["Body"].read())

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, circuits))


def main() -> None:
    runs, batch, qubits, repeats = (int(each) for each in sys.argv[1:5])
    device, bare = AwsDevice(SV1), LocalSimulator()
    for _ in range(3):
        device.run(BELL, shots=100).result()
        bare.run(BELL, shots=100).result()
    figures: dict[str, Any] = {}
    spans = []
    for _ in range(runs):
        began = time.perf_counter()
        task = device.run(BELL, shots=100)
        created = time.perf_counter()
        task.result()
        spans.append((created - began, time.perf_counter() - began))
    figures["bell_create_ms"] = statistics.median(span[0] for span in spans) * 1000
    figures["bell_ms"] = statistics.median(span[1] for span in spans) * 1000
    figures["bell_bare_ms"] = (
        statistics.median(timed(lambda: bare.run(BELL, shots=100).result()) for _ in range(runs)) * 1000
    )
    circuits = [ghz(3 + number % 4) for number in range(batch)]
    figures["batch_s"] = min(
        timed(lambda: device.run_batch(circuits, shots=100, max_parallel=batch).results()) for _ in range(3)
    )
    bucket = AwsSession().default_bucket()
    figures["plain_s"] = min(timed(lambda: plain(circuits, bucket)) for _ in range(3))
    programs = ProgramSet([measured(circuit) for circuit in circuits])
    figures["program_set_s"] = min(timed(lambda: device.run(programs, shots=100 * batch).result()) for _ in range(3))
    figures["batch_bare_s"] = timed(lambda: [bare.run(circuit, shots=100).result() for circuit in circuits])
    circuit = large(qubits)
    bare.run(circuit, shots=100).result()
    device.run(circuit, shots=100).result()
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(timed(lambda: bare.run(circuit, shots=100).result()))
        ours.append(timed(lambda: device.run(circuit, shots=100).result()))
    figures["large_s"], figures["large_bare_s"] = statistics.median(ours), statistics.median(theirs)
    figures["gates"] = len(circuit.instructions)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
