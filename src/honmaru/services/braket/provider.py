"""The operations of Braket. Their meaning lives in one file per resource.

Device ARNs come in two partitions (the enclave's, and `aws`, which existing code writes), so operations that name a
device ask IAM themselves, about the device's ARN in the enclave's partition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

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
        self._jobs = job.Jobs(roles, environments, capacity, devices, ids)

    # Devices

    def get_device(self, call: Call, request: Request) -> dict[str, Any]:
        return device.describe(call, request, self._devices, self._tasks)

    def search_devices(self, call: Call, request: Request) -> dict[str, Any]:
        return device.search(call, request, self._devices)

    # Quantum tasks

    def create_quantum_task(self, call: Call, request: Request) -> dict[str, Any]:
        return quantum_task.create(call, request, self._devices, self._tasks, self._spending)

    def get_quantum_task(self, call: Call, request: Request) -> dict[str, Any]:
        return quantum_task.describe(call, request, self._tasks)

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
