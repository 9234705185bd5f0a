"""Result types of a task with shots: what was asked for, computed from the measurements.

Braket's service returns these values, and its SDK reads them; the simulator itself returns the measurements only.
Measurements are in the basis of the observables already: the simulator rotates into it before it samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

_SIGNS = np.array([1.0, -1.0])


def value(result: Any, measurements: Any, measured: Sequence[int]) -> Any:
    """The value of one result type: a number, or a list (of one per qubit when no target is named).

    Args:
        result: Braket's IR of the result type.
        measurements: Shots x measured qubits, 0 or 1.
        measured: The qubits that the columns are of.
    """
    targets = list(result.targets) if getattr(result, "targets", None) else None
    if result.type == "probability":
        return probabilities(_columns(measurements, measured, targets or list(measured)))
    calculate: Any = {"expectation": np.mean, "variance": np.var, "sample": np.asarray}[result.type]
    groups = [targets] if targets else [[qubit] for qubit in measured]
    values = [calculate(_samples(result.observable, measurements, measured, group)) for group in groups]
    plain = [each.tolist() if isinstance(each, np.ndarray) else float(each) for each in values]
    return plain[0] if targets else plain


def probabilities(columns: Any) -> list[float]:
    """How often each basis state was measured, first column most significant."""
    counts = np.bincount(_states(columns), minlength=2 ** columns.shape[1])
    shares: list[float] = (counts / columns.shape[0]).tolist()
    return shares


def _samples(observable: Any, measurements: Any, measured: Sequence[int], targets: list[int]) -> Any:
    eigenvalues = reduce(np.kron, [_eigenvalues(factor) for factor in observable])
    return eigenvalues[_states(_columns(measurements, measured, targets))].real


def _columns(measurements: Any, measured: Sequence[int], targets: list[int]) -> Any:
    places = {qubit: place for place, qubit in enumerate(measured)}
    return measurements[:, [places[qubit] for qubit in targets]]


def _states(columns: Any) -> Any:
    return columns @ (1 << np.arange(columns.shape[1])[::-1])


def _eigenvalues(factor: Any) -> Any:
    if isinstance(factor, str):
        return np.ones(2) if factor == "i" else _SIGNS
    matrix = np.array([[complex(*entry) for entry in row] for row in factor])
    return np.linalg.eigvalsh(matrix)
