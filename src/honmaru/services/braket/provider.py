"""The operations of Braket. Their meaning lives in one file per resource.

Device ARNs come in two partitions (the enclave's, and `aws`, which existing code writes), so operations that name a
device ask IAM themselves, about the device's ARN in the enclave's partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from honmaru.core.errors import Throttled
from honmaru.jobs.environments import Environments
from honmaru.jobs.instances import Capacity
from honmaru.jobs.quantum_devices import Devices
from honmaru.jobs.quantum_spending import Spending
from honmaru.jobs.quantum_task import QuantumTasks
from honmaru.jobs.training import Roles
from honmaru.ports.runtime import Ids
from honmaru.security.calls import Call, Provider, Target
from honmaru.services.braket import device, job, quantum_task, spending_limit, tags

Request = Mapping[str, Any]
_Result = TypeVar("_Result")
_WAITING_CHECKS = 256


@dataclass(slots=True)
class _Turn:
    """The programs of one principal that are or wait to be interpreted."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


def interpreted_programs(cores: int) -> int:
    """Programs that are interpreted at the same time before their tasks are accepted."""
    return max(2, cores)


class Braket(Provider):
    """Args:
    wake: Called after a hybrid job was made or changed, so that the supervisor looks at once.
    """

    service = "braket"
    targets: ClassVar[Mapping[str, Target]] = {
        "GetQuantumTask": Target("braket:GetQuantumTask", "{quantumTaskArn}"),
        "CancelQuantumTask": Target("braket:CancelQuantumTask", "{quantumTaskArn}"),
        "GetJob": Target("braket:GetJob", "{jobArn}"),
        "CancelJob": Target("braket:CancelJob", "{jobArn}"),
        "UpdateSpendingLimit": Target("braket:UpdateSpendingLimit", "{spendingLimitArn}"),
        "DeleteSpendingLimit": Target("braket:DeleteSpendingLimit", "{spendingLimitArn}"),
        "ListTagsForResource": Target("braket:ListTagsForResource", "{resourceArn}"),
        "TagResource": Target("braket:TagResource", "{resourceArn}"),
        "UntagResource": Target("braket:UntagResource", "{resourceArn}"),
    }
    unauthorized: ClassVar[frozenset[str]] = frozenset({"GetDevice", "CreateQuantumTask", "CreateSpendingLimit"})
    """These ask IAM about the device by themselves."""

    def __init__(
        self,
        devices: Devices,
        tasks: QuantumTasks,
        spending: Spending,
        roles: Roles,
        environments: Environments,
        capacity: Capacity,
        ids: Ids,
        wake: Callable[[], None],
    ) -> None:
        self._devices, self._tasks, self._spending, self._ids, self._wake = devices, tasks, spending, ids, wake
        # Programs are interpreted by few threads of their own: bombs hold up each other, and nobody else.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="braket")
        self._checks = ThreadPoolExecutor(interpreted_programs(capacity.cores), thread_name_prefix="braket-check")
        self._turns: dict[str, _Turn] = {}
        self._jobs = job.Jobs(roles, environments, capacity, devices, ids)

    @asynccontextmanager
    async def _turn(self, principal: str) -> AsyncIterator[None]:
        """One principal's programs are interpreted one after another. Raises Throttled when too many wait."""
        turn = self._turns.setdefault(principal, _Turn())
        if turn.waiting >= _WAITING_CHECKS:
            raise Throttled("too many of your programs wait to be interpreted; try again later")
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(principal, None)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    # Devices

    def get_device(self, call: Call, request: Request) -> dict[str, Any]:
        return device.describe(call, request, self._devices, self._tasks)

    def search_devices(self, call: Call, request: Request) -> dict[str, Any]:
        return device.search(call, request, self._devices)

    # Quantum tasks

    async def create_quantum_task(self, call: Call, request: Request) -> dict[str, Any]:
        prepared = await self._in(self._threads, lambda: quantum_task.prepare(call, request, self._devices))
        if prepared.repeated:
            return {"quantumTaskArn": prepared.body["arn"]}
        async with self._turn(call.session.principal_arn):
            await self._in(self._checks, lambda: quantum_task.check(call, prepared, self._tasks))
        return await self._in(
            self._threads,
            lambda: quantum_task.lay_down(call, prepared, self._devices, self._tasks, self._spending),
        )

    async def get_quantum_task(self, call: Call, request: Request) -> dict[str, Any]:
        record, seconds = await self._in(self._threads, lambda: quantum_task.find(call, request))
        if seconds:
            await self._tasks.ended(record, seconds)
        return await self._in(self._threads, lambda: quantum_task.describe(call, record, self._tasks))

    def search_quantum_tasks(self, call: Call, request: Request) -> dict[str, Any]:
        return quantum_task.search(call, request, self._tasks)

    def cancel_quantum_task(self, call: Call, request: Request) -> dict[str, Any]:
        return quantum_task.cancel(call, request, self._tasks)

    # Hybrid jobs

    def create_job(self, call: Call, request: Request) -> dict[str, Any]:
        answer = self._jobs.create(call, request)
        self._wake()
        return answer

    def get_job(self, call: Call, request: Request) -> dict[str, Any]:
        return self._jobs.describe(call, request)

    def search_jobs(self, call: Call, request: Request) -> dict[str, Any]:
        return self._jobs.search(call, request)

    def cancel_job(self, call: Call, request: Request) -> dict[str, Any]:
        answer = self._jobs.cancel(call, request)
        self._wake()
        return answer

    # Spending limits

    def create_spending_limit(self, call: Call, request: Request) -> dict[str, Any]:
        return spending_limit.create(call, request, self._devices, self._ids)

    def search_spending_limits(self, call: Call, request: Request) -> dict[str, Any]:
        return spending_limit.search(call, request, self._spending)

    def update_spending_limit(self, call: Call, request: Request) -> dict[str, Any]:
        return spending_limit.update(call, request)

    def delete_spending_limit(self, call: Call, request: Request) -> dict[str, Any]:
        return spending_limit.delete(call, request)

    # Tags

    def list_tags_for_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return {"tags": dict(tags.resource(call, request["resourceArn"]).body["tags"])}

    def tag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return tags.add(call, request)

    def untag_resource(self, call: Call, request: Request) -> dict[str, Any]:
        return tags.remove(call, request)
