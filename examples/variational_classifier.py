"""A variational quantum classifier, trained on an enclave with Amazon's Braket SDK.

Two of the iris species (Fisher, 1936; bundled with scikit-learn) are told apart by a circuit of two qubits. Each
rotation's angle is a trained function of a flower's measurements; gradients come from the parameter-shift rule, with
many circuits in one program set, so a step costs a few quantum tasks. Nothing here knows of honmaru:

    eval "$(.venv/bin/honmaru env --user scientist --label SECRET)"
    .venv-quantum/bin/python examples/variational_classifier.py [--steps 15] [--shots 200]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from braket.aws import AwsDevice
from braket.circuits import Circuit, FreeParameter
from braket.program_sets import CircuitBinding, ProgramSet
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

DEVICE = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"
ANGLES = 6
EXECUTABLES = 100
"""Circuits in one program set, at most: what the device states."""


def ansatz() -> Circuit:
    """Two layers of rotations with an entangling gate after each; the first qubit is read."""
    angle = [FreeParameter(f"a{number}") for number in range(ANGLES)]
    circuit = Circuit().ry(0, angle[0]).ry(1, angle[1]).cnot(0, 1)
    circuit.ry(0, angle[2]).ry(1, angle[3]).cnot(1, 0)
    return circuit.ry(0, angle[4]).rz(1, angle[5]).measure([0, 1])


def expectations(device: AwsDevice, angles: np.ndarray, shots: int) -> np.ndarray:
    """<Z> of the first qubit for each row of angles."""
    circuit, found = ansatz(), []
    for begin in range(0, len(angles), EXECUTABLES):
        rows = angles[begin : begin + EXECUTABLES]
        inputs = {f"a{number}": rows[:, number].tolist() for number in range(ANGLES)}
        programs = ProgramSet([CircuitBinding(circuit, input_sets=inputs)], shots_per_executable=shots)
        for executable in device.run(programs).result()[0]:
            ones = sum(count for bits, count in executable.counts.items() if bits[0] == "1")
            found.append(1 - 2 * ones / shots)
    return np.array(found)


def gradient(
    device: AwsDevice, weights: np.ndarray, features: np.ndarray, targets: np.ndarray, shots: int
) -> tuple[float, np.ndarray]:
    """Mean squared error and its gradient. Angles are `features @ weights`: the chain rule does the rest."""
    angles = features @ weights
    shifts = np.concatenate([np.eye(ANGLES), -np.eye(ANGLES)]) * math.pi / 2
    shifted = (angles[:, None, :] + shifts[None, :, :]).reshape(-1, ANGLES)
    values = expectations(device, np.concatenate([angles, shifted]), shots)
    errors = values[: len(angles)] - targets
    both = values[len(angles) :].reshape(len(angles), 2, ANGLES)
    by_angle = (both[:, 0] - both[:, 1]) / 2
    slope = features.T @ (2 * errors[:, None] * by_angle) / len(targets)
    return float(np.mean(errors**2)), slope


def flowers() -> Sequence[np.ndarray]:
    """Training and test features (with a constant one) and targets of +1 and -1."""
    iris = load_iris()
    chosen = iris.target > 0  # versicolor and virginica: the pair that no straight line separates
    features = StandardScaler().fit_transform(iris.data[chosen])
    features = np.hstack([features, np.ones((len(features), 1))])
    targets = np.where(iris.target[chosen] == 1, 1.0, -1.0)
    return train_test_split(features, targets, test_size=0.4, random_state=7, stratify=targets)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a variational quantum classifier on an enclave.")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--shots", type=int, default=200)
    parser.add_argument("--batch", type=int, default=15, help="flowers in a step")
    chosen = parser.parse_args()
    device, rng = AwsDevice(DEVICE), np.random.default_rng(1)
    train, test, train_targets, test_targets = flowers()
    weights = rng.normal(0, 0.1, (train.shape[1], ANGLES))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, chosen.steps + 1):
        rows = rng.choice(len(train), chosen.batch, replace=False)
        loss, slope = gradient(device, weights, train[rows], train_targets[rows], chosen.shots)
        first, second = 0.8 * first + 0.2 * slope, 0.9 * second + 0.1 * slope**2
        weights -= 0.1 * (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.9**step)) + 1e-8)
        print(f"step {step:2d}  loss {loss:.3f}", flush=True)
    guessed = np.sign(expectations(device, test @ weights, chosen.shots))
    print(f"test accuracy {np.mean(guessed == test_targets):.3f}")


if __name__ == "__main__":
    main()
