"""The quantum part of an enclave, joined: devices, warm workers, tasks, hybrid jobs and the Braket service.

Without the quantum environment everything is joined all the same; Braket's operations then name the repair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from honmaru.jobs.hybrid_job import HybridJob
from honmaru.jobs.instances import Capacity
from honmaru.jobs.quantum_devices import DEVICES_FILE, devices_of
from honmaru.jobs.quantum_spending import Spending
from honmaru.jobs.quantum_task import QuantumTasks, running_tasks
from honmaru.jobs.quantum_workers import QuantumWorkers
from honmaru.ports.buckets import Buckets
from honmaru.ports.logs import LogSink
from honmaru.services.braket import Braket, interpreted_programs

if TYPE_CHECKING:
    from honmaru.app.enclave import Enclave


def quantum_environment() -> Path | None:
    """The environment that `make install-quantum` made beside this one; None when it is not there or not complete."""
    prefix = Path(sys.prefix).with_name(".venv-quantum")
    return prefix if (prefix / DEVICES_FILE).exists() else None


class Quantum:
    """The parts; `tasks` is started and stopped by the enclave, `jobs` is run by its supervisor."""

    def __init__(
        self, enclave: Enclave, buckets: Buckets, logs: LogSink, capacity: Capacity, environment: Path | None
    ) -> None:
        self._enclave, self._capacity = enclave, capacity
        self._devices = devices_of(capacity, enclave.partition.name, environment)
        self._spending = Spending()
        workers = QuantumWorkers(
            enclave.executor,
            enclave.environments,
            enclave.clock,
            enclave.ids,
            enclave.settings.data / "quantum",
            cores=capacity.cores,
            idle=running_tasks(capacity.cores) + interpreted_programs(capacity.cores),
            memory_bytes=int(capacity.memory_bytes * 0.75),
        )
        self.tasks = QuantumTasks(
            enclave.guard, buckets, workers, self._devices, self._spending, enclave.clock, cores=capacity.cores
        )
        self.jobs = HybridJob(
            roles=enclave.identity,
            buckets=buckets,
            logs=logs,
            ledger=enclave.ledger,
            environments=enclave.environments,
            executor=enclave.executor,
            brokers=enclave.brokers,
            clock=enclave.clock,
            ids=enclave.ids,
            scratch=enclave.settings.data / "scratch",
            capacity=capacity,
        )

    def provider(self, wake: Callable[[], None]) -> Braket:
        enclave = self._enclave
        return Braket(
            self._devices,
            self.tasks,
            self._spending,
            enclave.identity,
            enclave.environments,
            self._capacity,
            enclave.ids,
            wake,
        )
