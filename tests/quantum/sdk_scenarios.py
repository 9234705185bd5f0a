"""Scenarios for unmodified clients, run by .venv-quantum's interpreter: `python sdk_scenarios.py NAME ...`.

Each scenario asserts what it saw and returns figures. One JSON line a scenario goes to standard output.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from botocore.exceptions import ClientError
from braket.aws import AwsDevice, AwsQuantumJob, AwsQuantumTask, AwsSession
from braket.circuits import Circuit, FreeParameter, Observable, ResultType
from braket.devices import LocalSimulator
from braket.ir.openqasm import Program
from braket.program_sets import CircuitBinding, ProgramSet

warnings.filterwarnings("ignore")
SV1, DM1 = (f"arn:aws:braket:::device/quantum-simulator/amazon/{name}" for name in ("sv1", "dm1"))
PARTITION = os.environ.get("HONMARU_TEST_PARTITION", "aws-iso-b")
IMAGE = "292282985366.dkr.ecr.us-west-2.amazonaws.com/amazon-braket-base-jobs:latest"


def qft(n: int) -> Circuit:
    circuit = Circuit()
    for target in range(n):
        circuit.h(target)
        for control in range(target + 1, n):
            circuit.cphaseshift(control, target, math.pi / 2 ** (control - target))
    for qubit in range(n // 2):
        circuit.swap(qubit, n - 1 - qubit)
    return circuit


def ghz(n: int) -> Circuit:
    circuit = Circuit().h(0)
    for qubit in range(n - 1):
        circuit.cnot(qubit, qubit + 1)
    return circuit


def random_circuit(rng, qubits: int, gates: int) -> Circuit:
    circuit = Circuit()
    for qubit in range(qubits):
        circuit.ry(qubit, rng.uniform(0, 2 * math.pi))
    one, two = ["h", "x", "y", "z", "s", "t", "v"], ["cnot", "cz", "swap", "iswap", "cy", "ecr"]
    for _ in range(gates):
        a, b = (int(q) for q in rng.choice(qubits, 2, replace=False))
        kind = rng.integers(4)
        if kind == 0:
            getattr(circuit, rng.choice(one))(a)
        elif kind == 1:
            getattr(circuit, rng.choice(["rx", "ry", "rz", "phaseshift"]))(a, rng.uniform(-math.pi, math.pi))
        elif kind == 2:
            getattr(circuit, rng.choice(two))(a, b)
        else:
            getattr(circuit, rng.choice(["cphaseshift", "xx", "yy", "zz", "pswap"]))(a, b, rng.uniform(-3, 3))
    return circuit


def matrix(value) -> np.ndarray:
    """A density matrix as the SDK leaves it: [re, im] pairs."""
    pairs = np.asarray(value)
    return pairs[..., 0] + 1j * pairs[..., 1]


def devices():
    for arn in (SV1, DM1, SV1.replace("aws", PARTITION, 1)):
        device = AwsDevice(arn)
        assert device.status == "ONLINE" and device.properties.service.shotsRange == (0, 100_000)
        assert device.queue_depth().jobs == "0"
    names = {device.name for device in AwsDevice.get_devices(arns=[SV1], types=["SIMULATOR"])}
    assert names == {"SV1"}, names
    return {"sv1_qubits": AwsDevice(SV1).properties.paradigm.qubitCount,
            "dm1_qubits": AwsDevice(DM1).properties.paradigm.qubitCount}  # fmt: skip


def textbook_circuits():
    device = AwsDevice(SV1)
    bell = device.run(Circuit().h(0).cnot(0, 1), shots=1000).result()
    assert set(bell.measurement_counts) == {"00", "11"} and sum(bell.measurement_counts.values()) == 1000
    assert 400 < bell.measurement_counts["00"] < 600
    assert set(device.run(ghz(8), shots=200).result().measurement_counts) == {"0" * 8, "1" * 8}
    state = device.run(qft(5).state_vector(), shots=0).result().values[0]
    assert np.allclose(state, np.full(32, 1 / math.sqrt(32)), atol=1e-9)
    oracle = Circuit().h(range(3)).cz(0, 1).h(range(3)).x(range(3)).h(2).ccnot(0, 1, 2).h(2).x(range(3)).h(range(3))
    local = LocalSimulator().run(oracle.probability(), shots=0).result().values[0]
    assert np.allclose(device.run(oracle, shots=0).result().values[0], local, atol=1e-9)
    grover = Circuit().h([0, 1]).cz(0, 1).h([0, 1]).z([0, 1]).cz(0, 1).h([0, 1])
    assert device.run(grover, shots=100).result().measurement_counts == Counter({"11": 100})


def result_types():
    device = AwsDevice(SV1)
    circuit = Circuit().rx(0, 0.3).ry(1, 0.7).cnot(0, 1)
    exact = (circuit.copy().state_vector().amplitude(["00", "11"]).probability().probability(target=[0])
             .expectation(Observable.Z() @ Observable.X(), target=[0, 1]).variance(Observable.Y(), target=[0])
             .density_matrix(target=[0]))  # fmt: skip
    ours = device.run(exact, shots=0).result().values
    theirs = LocalSimulator().run(exact, shots=0).result().values
    for mine, wanted in zip(ours, theirs, strict=True):
        if np.ndim(wanted) == 2:
            assert np.allclose(matrix(mine), wanted, atol=1e-12)
        elif isinstance(wanted, dict):
            assert mine.keys() == wanted.keys() and all(abs(mine[k] - wanted[k]) < 1e-12 for k in wanted)
        else:
            assert np.allclose(mine, wanted, atol=1e-12)
    sampled = circuit.copy().sample(Observable.Z(), target=[0]).expectation(Observable.Z(), target=[0])
    sampled.variance(Observable.Z(), target=[0]).probability(target=[0])
    sampled.expectation(Observable.Z() @ Observable.X(), target=[0, 1])
    exact_product = LocalSimulator().run(circuit.copy().expectation(Observable.Z() @ Observable.X(), target=[0, 1]),
                                         shots=0).result().values[0]  # fmt: skip
    result = device.run(sampled, shots=2000).result()
    assert set(result.values[0]) <= {1, -1} and len(result.values[0]) == 2000
    assert abs(result.values[1] - math.cos(0.3)) < 0.1 and abs(result.values[2] - math.sin(0.3) ** 2) < 0.1
    assert abs(sum(result.values[3]) - 1) < 1e-9 and abs(result.values[4] - exact_product) < 0.1
    hermitian = np.array([[0.5, 0.2j], [-0.2j, 1.5]])
    with_matrix = circuit.copy().expectation(Observable.Hermitian(hermitian), target=[1])
    assert abs(device.run(with_matrix, shots=0).result().values[0]
               - LocalSimulator().run(with_matrix, shots=0).result().values[0]) < 1e-12  # fmt: skip


def parameter_sweep():
    """VQE style: one circuit, parameters bound by the service, in a batch."""
    theta = FreeParameter("theta")
    circuit = Circuit().rx(0, theta).cnot(0, 1).expectation(Observable.Z() @ Observable.Z(), target=[0, 1])
    circuit.add_result_type(ResultType.Expectation(Observable.Z(), target=[0]))
    angles = [0.1 * number for number in range(12)]
    batch = AwsDevice(SV1).run_batch(circuit, inputs=[{"theta": angle} for angle in angles], shots=0)
    for angle, result in zip(angles, batch.results(), strict=True):
        assert abs(result.values[1] - math.cos(angle)) < 1e-12


def noise():
    device = AwsDevice(DM1)
    kraus = [np.array([[1, 0], [0, math.sqrt(0.8)]]), np.array([[0, math.sqrt(0.2)], [0, 0]])]
    circuit = (Circuit().h(0).cnot(0, 1).bit_flip(0, 0.1).phase_flip(1, 0.2).depolarizing(0, 0.05)
               .amplitude_damping(1, 0.1).phase_damping(0, 0.1).two_qubit_depolarizing(0, 1, 0.1)
               .pauli_channel(0, 0.1, 0.05, 0.02).generalized_amplitude_damping(1, 0.1, 0.9)
               .two_qubit_dephasing(0, 1, 0.05).kraus([0], kraus))  # fmt: skip
    exact = circuit.copy().density_matrix().probability()
    ours = device.run(exact, shots=0).result().values
    theirs = LocalSimulator("braket_dm").run(exact, shots=0).result().values
    assert np.allclose(matrix(ours[0]), theirs[0], atol=1e-12) and np.allclose(ours[1], theirs[1], atol=1e-12)
    sampled = device.run(circuit, shots=500).result()
    assert sum(sampled.measurement_counts.values()) == 500


def batch():
    circuits = [ghz(2 + number % 4) for number in range(40)]
    began = time.perf_counter()
    results = AwsDevice(SV1).run_batch(circuits, shots=50, max_parallel=40).results()
    seconds = time.perf_counter() - began
    for circuit, result in zip(circuits, results, strict=True):
        assert set(result.measurement_counts) <= {"0" * circuit.qubit_count, "1" * circuit.qubit_count}
    return {"tasks_per_s": round(40 / seconds, 1)}


def program_set():
    theta = FreeParameter("theta")
    bound = CircuitBinding(Circuit().rx(0, theta).cnot(0, 1).measure([0, 1]), input_sets={"theta": [0.0, math.pi]})
    programs = ProgramSet([bound, Circuit().h(0).cnot(0, 1).measure([0, 1])], shots_per_executable=100)
    result = AwsDevice(SV1).run(programs).result()
    first, second = result[0]
    assert first.counts == Counter({"00": 100}) and second.counts == Counter({"11": 100}), (first, second)
    assert set(result[1][0].counts) == {"00", "11"}


def cancel():
    """A circuit that runs for long is stopped, and its core is free again."""
    device = AwsDevice(SV1)
    layers = Circuit()
    for layer in range(400):
        for qubit in range(22):
            layers.rx(qubit, 0.1 * layer + qubit)
    task = device.run(layers, shots=10)
    for _ in range(100):
        if task.state() == "RUNNING":
            break
        time.sleep(0.05)
    began = time.perf_counter()
    task.cancel()
    while task.state() not in AwsQuantumTask.TERMINAL_STATES:
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    assert task.state() == "CANCELLED" and task.result() is None
    return {"cancelled_after_s": round(seconds, 3)}


def refused(make, code: str, *words: str) -> str:
    message = None
    try:
        make()
    except ClientError as fault:
        error = fault.response["Error"]
        message = error["Message"] if error["Code"] == code else None
    assert message is not None, f"was not refused with {code}"
    assert all(word in message for word in words), message
    return message


def bad_programs():
    device = AwsDevice(SV1)

    def run(source: str, shots: int = 10):
        return lambda: device.run(Program(source=source), shots=shots)

    head = "OPENQASM 3.0;\n"
    told = {
        "malformed": refused(run(head + "qubit[2] q;\nthis is not a gate;"), "ValidationException", "line 3"),
        "undefined gate": refused(run(head + "qubit[2] q;\nfoo q[0];"), "ValidationException", "foo"),
        "empty": refused(run(head), "ValidationException"),
        "qubits": refused(run(head + "qubit[40] q;\nh q;"), "ValidationException", "qubits", "26"),
        "declared": refused(run(head + "qubit[999999999] q;\nh q[0];"), "ValidationException", "qubits"),
        "shots": refused(run(head + "qubit q;\nh q;", 1_000_000), "ValidationException", "shots", "100000"),
        "gate bomb": refused(
            run(head + "qubit[2] q;\nfor int i in [0:1000000000] { h q[0]; }"), "ValidationException"
        ),
        "nested bomb": refused(
            run(head + "qubit[2] q;\nfor int i in [0:1000] { for int j in [0:1000] { h q[0]; } }"),
            "ValidationException",
        ),
        "noise on sv1": refused(
            run(head + "qubit q;\nh q;\n#pragma braket noise bit_flip(0.1) q"), "ValidationException"
        ),
        "large result": refused(
            run(head + "qubit[22] q;\nh q;\n#pragma braket result state_vector", 0), "ValidationException", "values"
        ),
        "a file": refused(run("/etc/passwd.qasm"), "ValidationException"),
        "no such device": refused(lambda: AwsSession().braket_client.get_device(deviceArn=SV1[:-1] + "9"),
                                  "ResourceNotFoundException"),
        "no bucket": refused(lambda: device.run(Circuit().h(0), ("no-such-bucket-here", "x"), shots=1),
                             "ValidationException", "no-such-bucket-here"),
    }  # fmt: skip
    assert set(device.run(ghz(2), shots=10).result().measurement_counts) <= {"00", "11"}
    return told


def random_agreement():
    """200 random circuits: exact results to 1e-9, shots by a chi-square test, noise on the density matrix."""
    rng = np.random.default_rng(20260101)
    device, noisy = AwsDevice(SV1), AwsDevice(DM1)
    worst = 0.0
    exact = []
    for _ in range(150):
        circuit = random_circuit(rng, int(rng.integers(2, 13)), int(rng.integers(5, 40)))
        circuit.state_vector().probability(target=[0])
        circuit.expectation(Observable.Z() @ Observable.Y(), target=[0, 1]).variance(Observable.X(), target=[1])
        exact.append(circuit)
    for circuit, result in zip(exact, device.run_batch(exact, shots=0, max_parallel=50).results(), strict=True):
        for ours, theirs in zip(result.values, LocalSimulator().run(circuit, shots=0).result().values, strict=True):
            worst = max(worst, float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs)))))
    dense = []
    for _ in range(30):
        circuit = random_circuit(rng, int(rng.integers(2, 6)), 15)
        circuit.depolarizing(0, float(rng.uniform(0, 0.5))).amplitude_damping(1, float(rng.uniform(0, 1)))
        dense.append(circuit.density_matrix())
    for circuit, result in zip(dense, noisy.run_batch(dense, shots=0, max_parallel=30).results(), strict=True):
        theirs = LocalSimulator("braket_dm").run(circuit, shots=0).result().values[0]
        worst = max(worst, float(np.max(np.abs(matrix(result.values[0]) - np.asarray(theirs)))))
    assert worst < 1e-9, worst
    sampled = [random_circuit(rng, 3, 20) for _ in range(40)]
    shots, highest = 2000, 0.0
    for circuit, result in zip(sampled, device.run_batch(sampled, shots=shots, max_parallel=40).results(), strict=True):
        wanted = LocalSimulator().run(circuit.copy().probability(), shots=0).result().values[0]
        counts = [result.measurement_counts.get(f"{state:03b}", 0) for state in range(8)]
        statistic = sum((n - shots * p) ** 2 / (shots * p) for n, p in zip(counts, wanted, strict=True) if p > 1e-6)
        assert sum(n for n, p in zip(counts, wanted, strict=True) if p < 1e-9) == 0
        highest = max(highest, statistic)
    assert highest < 40, highest  # chi-square with 7 degrees: beyond 40 once in 800,000
    return {"circuits": 220, "worst_exact_difference": worst, "highest_chi_square": round(highest, 1)}


def large_controlled():
    """Controls above ten qubits, which the bare simulator (1.41) cannot run: checked on the same circuit widened."""
    head = "OPENQASM 3.0;\nqubit[{n}] q;\nh q[0];\nry(0.4) q[1];\nctrl @ rx(0.3) q[0], q[1];\n"
    body = "negctrl @ ry(0.7) q[1], q[2];\nctrl(2) @ rz(0.9) q[0], q[1], q[2];\nctrl @ swap q[0], q[1], q[2];\n"
    tail = "#pragma braket result expectation x(q[0]) @ y(q[1]) @ z(q[2])\n"
    values = []
    for n, idle in ((3, ""), (12, "".join(f"i q[{q}];\n" for q in range(3, 12)))):
        program = Program(source=head.format(n=n) + body + idle + tail)
        values.append(AwsDevice(SV1).run(program, shots=0).result().values[0])
    assert abs(values[0] - values[1]) < 1e-12, values


def pennylane_descent():
    import pennylane as qml
    from pennylane import numpy as pnp

    device = qml.device("braket.aws.qubit", device_arn=SV1, wires=2, shots=None, parallel=True)

    @qml.qnode(device, diff_method="parameter-shift")
    def cost(weights):
        qml.RX(weights[0], wires=0)
        qml.RY(weights[1], wires=1)
        qml.CNOT(wires=[0, 1])
        return qml.expval(qml.PauliZ(1))

    optimizer, weights = qml.GradientDescentOptimizer(0.4), pnp.array([0.4, 0.3], requires_grad=True)
    began = time.perf_counter()
    first = float(cost(weights))
    for _ in range(12):
        weights = optimizer.step(cost, weights)
    last = float(cost(weights))
    assert last < first - 0.5, (first, last)
    return {"first": round(first, 4), "last": round(last, 4), "seconds": round(time.perf_counter() - began, 1)}


def qiskit_bell():
    from qiskit import QuantumCircuit
    from qiskit_braket_provider import BraketAwsBackend

    backend = BraketAwsBackend(arn=SV1)
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    counts = backend.run(circuit, shots=200).result().get_counts()
    assert set(counts) == {"00", "11"} and sum(counts.values()) == 200, counts
    return {"counts": dict(counts)}


_JOB = '''
import os, socket
from braket.aws import AwsDevice
from braket.circuits import Circuit, Observable
from braket.jobs import get_hyperparameters, get_input_data_dir, get_job_device_arn
from braket.jobs import save_job_checkpoint, save_job_result
from braket.jobs.metrics import log_metric

def main():
    hyperparameters = get_hyperparameters()
    data = open(get_input_data_dir("numbers") + "/numbers.txt").read().split()
    device, best = AwsDevice(get_job_device_arn()), 1.0
    for number, angle in enumerate(data):
        circuit = Circuit().rx(0, float(angle)).expectation(Observable.Z(), target=[0])
        energy = float(device.run(circuit, shots=0).result().values[0])
        log_metric("energy", energy, iteration_number=number)
        best = min(best, energy)
    try:
        socket.create_connection(("192.0.2.1", 443), timeout=2)
        reached = "the network"
    except OSError as fault:
        reached = "nothing"
    save_job_checkpoint({"best": best})
    save_job_result({"best": best, "hyperparameters": hyperparameters, "reached": reached})
    print("the job is done")

def fails():
    raise ValueError("on purpose")

def sleeps():
    import time
    time.sleep(600)
'''  # fmt: skip


def _job(entry: str, **more):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "algorithm.py").write_text(_JOB)
        (Path(folder) / "numbers.txt").write_text("0.0 1.0 2.0 3.0")
        session = AwsSession()
        uri = f"s3://{session.default_bucket()}/inputs/numbers.txt"
        session.upload_to_s3(f"{folder}/numbers.txt", uri)
        return AwsQuantumJob.create(
            device=SV1, source_module=f"{folder}/algorithm.py", entry_point=f"algorithm:{entry}", image_uri=IMAGE,
            hyperparameters={"rate": "0.1"}, input_data={"numbers": uri}, **more,
        )  # fmt: skip


def _ended(job) -> str:
    while job.state() not in AwsQuantumJob.TERMINAL_STATES:
        time.sleep(0.3)
    return job.state()


def hybrid_job():
    began = time.perf_counter()
    job = _job("main")
    assert _ended(job) == "COMPLETED", job.metadata()
    seconds = time.perf_counter() - began
    result = job.result()
    assert abs(result["best"] - math.cos(3.0)) < 1e-9 and result["hyperparameters"] == {"rate": "0.1"}
    assert result["reached"] == "nothing"
    metrics = job.metrics()
    assert sorted(metrics["iteration_number"]) == [0, 1, 2, 3] and abs(min(metrics["energy"]) - math.cos(3.0)) < 1e-9
    tasks = job.get_tasks()
    assert len(tasks) == 4 and all(task.metadata()["jobArn"] == job.arn for task in tasks)
    group = AwsSession().logs_client.filter_log_events(logGroupName="/aws/braket/jobs", filterPattern='"job is done"')
    assert group["events"]
    checkpoint = job.metadata()["checkpointConfig"]["s3Uri"]
    bucket, prefix = AwsSession.parse_s3_uri(checkpoint)
    assert AwsSession().list_keys(bucket, prefix)
    return {"seconds": round(seconds, 1)}


def hybrid_job_failures():
    failed = _job("fails")
    stopped = _job("sleeps")
    assert _ended(failed) == "FAILED"
    assert "on purpose" in failed.metadata()["failureReason"], failed.metadata()["failureReason"]
    while stopped.state() == "QUEUED":
        time.sleep(0.2)
    stopped.cancel()
    assert _ended(stopped) == "CANCELLED"


def bookkeeping():
    session = AwsSession()
    client = session.braket_client
    task = AwsDevice(SV1).run(Circuit().h(0), shots=10, tags={"project": "honmaru"})
    task.result()
    assert task.queue_position().queue_position is None
    client.tag_resource(resourceArn=task.id, tags={"more": "yes"})
    client.untag_resource(resourceArn=task.id, tagKeys=["project"])
    assert client.list_tags_for_resource(resourceArn=task.id)["tags"] == {"more": "yes"}
    found = client.search_quantum_tasks(filters=[{"name": "quantumTaskArn", "operator": "EQUAL", "values": [task.id]}])
    assert [each["status"] for each in found["quantumTasks"]] == ["COMPLETED"]
    tagged = client.search_quantum_tasks(filters=[{"name": "tags:more", "operator": "EQUAL", "values": ["yes"]}])
    assert task.id in [each["quantumTaskArn"] for each in tagged["quantumTasks"]]
    return {"actionMetadata": task.metadata()["actionMetadata"]}


def main() -> None:
    for name in sys.argv[1:]:
        began = time.perf_counter()
        line = {"scenario": name, "ok": True}
        try:
            line["figures"] = globals()[name]()
        except BaseException:
            line |= {"ok": False, "trace": traceback.format_exc()[-3000:]}
        line["seconds"] = round(time.perf_counter() - began, 2)
        sys.stdout.write("SCENARIO " + json.dumps(line, default=str) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
