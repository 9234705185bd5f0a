"""The quantum devices of an enclave: two simulators, with the limits that this machine really has.

Invariants:
- What a device states as its limits is what tasks are held to, and both come from one `Limits`.
- A device is known under its ARN in the enclave's partition and under `arn:aws:braket:::`, which existing code uses.
  IAM is asked about the former, whichever was written.

Source: measured peak memory of amazon-braket-default-simulator 1.41 (26 qubits: 2.3 GB; 13 with density matrices).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from honmaru.core.errors import NotFound, NotReady
from honmaru.jobs.instances import Capacity

ENVIRONMENT = "braket"
DEVICES_FILE = "braket-devices.json"
"""Written into the environment by `make install-quantum`: what the installed simulator says of itself."""
MISSING = (
    "this enclave has no quantum environment: run `make install-quantum` where honmaru is installed, then start the "
    "enclave again"
)
PRICE_PER_MINUTE_USD = 0.075
MINIMUM_S = 3.0
"""Simulated time is accounted per millisecond, from three seconds on, as Amazon Braket accounts it."""
_STATES = 4
"""Copies of the state that a simulation holds at its peak, with sampling."""
_BYTES_PER_VALUE = 16
_FLOOR_BYTES = 256 << 20
_LARGEST_STATE_VECTOR, _LARGEST_DENSITY_MATRIX = 26, 13


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may be. Sizes in bytes, times in seconds."""

    qubits: int
    shots: int
    seconds: float
    memory_bytes: int
    gates: int = 50_000
    depth: int = 50_000
    values: int = 1 << 20
    executables: int = 100
    program_set_shots: int = 200_000
    action_bytes: int = 2 << 20

    def for_worker(self) -> dict[str, int]:
        """What the worker enforces itself."""
        told = asdict(self)
        return {name: told[name] for name in ("qubits", "gates", "depth", "values", "executables")}


@dataclass(frozen=True, slots=True)
class Device:
    """A simulator. `name` is "sv1" or "dm1"."""

    name: str
    limits: Limits

    @property
    def resource(self) -> str:
        return f"device/quantum-simulator/amazon/{self.name}"

    @property
    def display_name(self) -> str:
        return self.name.upper()

    def arn(self, partition: str) -> str:
        return f"arn:{partition}:braket:::{self.resource}"

    def memory_bytes(self, qubits: int) -> int:
        """Memory that a circuit of so many qubits may take at its peak."""
        exponent = qubits if self.name == "sv1" else 2 * qubits
        return int(_FLOOR_BYTES + _STATES * _BYTES_PER_VALUE * 2**exponent)


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of one enclave.

    Args:
        prefix: The quantum environment; None when it is not installed.
        memory_bytes: What all tasks together may take.
    """

    partition: str
    prefix: Path | None
    memory_bytes: int
    all: tuple[Device, ...]

    def require(self) -> None:
        """Raises NotReady, naming the repair, when the quantum environment is not installed."""
        if self.prefix is None:
            raise NotReady(MISSING, code="DeviceOfflineException")

    def canonical(self, arn: str) -> str:
        """An ARN as policies know it: in the enclave's partition, though existing code writes `aws`."""
        return re.sub(r"^arn:aws:", f"arn:{self.partition}:", arn)

    def named(self, arn: str) -> Device:
        """Raises NotFound."""
        for device in self.all:
            if arn in (device.arn(self.partition), device.arn("aws")):
                return device
        known = ", ".join(device.arn(self.partition) for device in self.all)
        raise NotFound(f"Device {arn} is not found; this enclave has {known}", code="ResourceNotFoundException")

    def described(self, device: Device) -> dict[str, Any]:
        """The simulator's own capability document. Raises NotReady when it is not installed."""
        self.require()
        told: dict[str, Any] = json.loads((Path(str(self.prefix)) / DEVICES_FILE).read_text())[device.name]
        return told


def devices_of(capacity: Capacity, partition: str, prefix: Path | None) -> Devices:
    """The devices that a machine of this capacity has."""
    memory = capacity.memory_bytes // 2
    values = max(2, (memory - _FLOOR_BYTES) // (_STATES * _BYTES_PER_VALUE))
    largest = int(math.log2(values))
    return Devices(
        partition,
        prefix if prefix is not None and (prefix / DEVICES_FILE).exists() else None,
        memory,
        (
            Device("sv1", Limits(min(_LARGEST_STATE_VECTOR, largest), 100_000, 3600.0, memory)),
            Device("dm1", Limits(min(_LARGEST_DENSITY_MATRIX, largest // 2), 100_000, 3600.0, memory)),
        ),
    )


def price_usd(seconds: float) -> float:
    """What a task of this duration is accounted with."""
    return round(max(MINIMUM_S, seconds) / 60 * PRICE_PER_MINUTE_USD, 6)


def estimated_qubits(device: Device, action: Mapping[str, Any]) -> int:
    """An upper bound of the qubits a program uses, for admission; the device's largest when it cannot be read off."""
    sizes = [_declared(program.get("source")) for program in action.get("programs") or [action]]
    return min(device.limits.qubits, max(sizes, default=device.limits.qubits))


def _declared(source: Any) -> int:
    if not isinstance(source, str) or "/*" in source:
        return 1 << 20
    source = re.sub(r"//[^\n]*", "", source)
    found = re.findall(r"\bqubit\s*(?:\[\s*(\d{1,9})\s*\])?", source)
    physical = [int(number) + 1 for number in re.findall(r"\$(\d{1,6})", source)]
    others = re.search(r"\bqubit\s*\[(?!\s*\d{1,9}\s*\])|\bqreg\b|\binclude\b", source)
    return (
        1 << 20
        if others or not (found or physical)
        else sum(int(size or 1) for size in found) + max(physical, default=0)
    )
