"""Devices: what GetDevice and SearchDevices say of the simulators.

Invariants:
- The capability document is the installed simulator's own, with this machine's limits in it: nothing is promised that
  a task would be refused for.
- Every operation that names a device asks IAM first, then whether the device is there, then whether its environment is
  installed.
- Queue sizes count only tasks that the session's label dominates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from honmaru.jobs.quantum_devices import PRICE_PER_MINUTE_USD, Device, Devices
from honmaru.jobs.quantum_task import QuantumTasks
from honmaru.security.calls import Call
from honmaru.security.page_tokens import read_place, write_place

POLL_MS = 20
"""How often the SDK asks whether a task has ended. GetQuantumTask itself waits a moment, so this may be short."""


def permitted(call: Call, action: str, arn: str, devices: Devices) -> Device:
    """The device that a request names, once IAM has allowed the action on it.

    Raises AccessDenied before NotFound: who may do nothing here learns nothing of what there is.
    """
    call.authorize(action, devices.canonical(arn))
    return devices.named(arn)


def describe(call: Call, request: Mapping[str, Any], devices: Devices, tasks: QuantumTasks) -> dict[str, Any]:
    device = permitted(call, "braket:GetDevice", request["deviceArn"], devices)
    devices.require()
    normal, priority = tasks.queue_sizes(device, call.session.account, call.session.label)
    return {
        **_summary(device, request["deviceArn"]),
        "deviceCapabilities": json.dumps(capabilities(device, devices)),
        "deviceQueueInfo": [
            {"queue": "QUANTUM_TASKS_QUEUE", "queueSize": str(normal), "queuePriority": "Normal"},
            {"queue": "QUANTUM_TASKS_QUEUE", "queueSize": str(priority), "queuePriority": "Priority"},
            {"queue": "JOBS_QUEUE", "queueSize": str(_waiting_jobs(call, request["deviceArn"]))},
        ],
    }


def search(call: Call, request: Mapping[str, Any], devices: Devices) -> dict[str, Any]:
    devices.require()
    after = read_place(request["nextToken"], str)[0] if request.get("nextToken") else ""
    shown: list[dict[str, Any]] = []
    for device in sorted(devices.all, key=lambda each: each.name):
        summary = _summary(device, device.arn(call.session.partition))
        known = {**summary, "deviceArn": (device.arn(call.session.partition), device.arn("aws"))}
        if device.name > after and all(_passes(known, each) for each in request.get("filters") or ()):
            shown.append(summary)
    size = int(request.get("maxResults") or len(devices.all))
    token = write_place(shown[size - 1]["deviceName"].lower()) if len(shown) > size else None
    return {"devices": shown[:size], "nextToken": token}


def _passes(known: Mapping[str, Any], each: Mapping[str, Any]) -> bool:
    values = known.get(each["name"], ())
    return any(value in each["values"] for value in ([values] if isinstance(values, str) else values))


def _summary(device: Device, arn: str) -> dict[str, Any]:
    return {
        "deviceArn": arn,
        "deviceName": device.display_name,
        "providerName": "Amazon Braket",
        "deviceType": "SIMULATOR",
        "deviceStatus": "ONLINE",
    }


def _waiting_jobs(call: Call, arn: str) -> int:
    return sum(1 for record in call.records.iterate("job", state="QUEUED") if record.body["device"] == arn)


def capabilities(device: Device, devices: Devices) -> dict[str, Any]:
    """The simulator's own document with this machine's limits."""
    document = devices.described(device)
    limits = device.limits
    for action in document["action"].values():
        for result in action.get("supportedResultTypes") or ():
            if result["maxShots"]:
                result["maxShots"] = limits.shots
    program_set = document["action"]["braket.ir.openqasm.program_set"]
    program_set |= {"maximumExecutables": limits.executables, "maximumTotalShots": limits.program_set_shots}
    document["paradigm"]["qubitCount"] = limits.qubits
    document["service"] |= {
        "shotsRange": [0, limits.shots],
        "deviceCost": {"price": PRICE_PER_MINUTE_USD, "unit": "minute"},
        "deviceDocumentation": {
            "imageUrl": "",
            "summary": (
                f"{device.display_name}: amazon-braket-default-simulator on this machine. At most "
                f"{limits.qubits} qubits, {limits.gates} gates, depth {limits.depth}, {limits.shots} shots, "
                f"{limits.seconds:.0f} s, {limits.memory_bytes >> 20} MiB, {limits.values} values in an exact result."
            ),
            "externalDocumentationUrl": "",
        },
        "deviceLocation": "this enclave",
        "getTaskPollIntervalMillis": POLL_MS,
    }
    return document
