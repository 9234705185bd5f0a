"""Finding this machine's accelerators: NVIDIA's by NVML, AWS's Neuron devices by `neuron-ls`.

Both come with the drivers, so nothing is installed for it, and a machine without them has no accelerators.

Source: NVML API reference (nvmlDeviceGetMemoryInfo and others); AWS Neuron, "neuron-ls user guide".
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from honmaru.ports.accelerators import Accelerator

_NVIDIA_SHARED = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_NEURON_S = 10.0


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def nvml() -> Any:
    """The driver's library; None without one."""
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None


def neuron_ls() -> str:
    """What `neuron-ls` prints; "" without it."""
    program = shutil.which("neuron-ls") or shutil.which("/opt/aws/neuron/bin/neuron-ls")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "--json-output"], capture_output=True, timeout=_NEURON_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


class LocalAccelerators:
    """A `ports.accelerators.Accelerators`.

    Args:
        library: Gives NVML, or None. `listing` gives neuron-ls's JSON, or "".
    """

    def __init__(self, library: Callable[[], Any] = nvml, listing: Callable[[], str] = neuron_ls) -> None:
        self._library, self._listing = library, listing

    def found(self) -> Sequence[Accelerator]:
        return [*self._nvidia(), *self._neuron()]

    def _nvidia(self) -> list[Accelerator]:
        library = self._library()
        if library is None or library.nvmlInit_v2() != 0:
            return []
        try:
            count = ctypes.c_uint()
            if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
                return []
            devices = [_gpu(library, index) for index in range(count.value)]
            return [device for device in devices if device is not None]
        finally:
            library.nvmlShutdown()

    def _neuron(self) -> list[Accelerator]:
        try:
            listed = json.loads(self._listing() or "[]")
            return [_neuron_device(one) for one in listed]
        except (ValueError, KeyError, TypeError):
            return []  # a tool of another version: nothing can be said of its devices


def _gpu(library: Any, index: int) -> Accelerator | None:
    """None for a device that NVML cannot read (fallen off the bus, in MIG mode)."""
    handle, memory, minor = ctypes.c_void_p(), _Memory(), ctypes.c_uint()
    name, uuid = ctypes.create_string_buffer(96), ctypes.create_string_buffer(96)
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return None
    answers = (
        library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)),
        library.nvmlDeviceGetName(handle, name, ctypes.c_uint(96)),
        library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(96)),
        library.nvmlDeviceGetMinorNumber(handle, ctypes.byref(minor)),
    )
    if any(answers):
        return None
    own = uuid.value.decode("ascii", "replace")
    nodes = (f"/dev/nvidia{minor.value}", *_NVIDIA_SHARED)
    return Accelerator(
        own, "cuda", name.value.decode("utf-8", "replace"), memory.total, memory.free, nodes,
        {"CUDA_VISIBLE_DEVICES": own},
    )  # fmt: skip


def _neuron_device(listed: dict[str, Any]) -> Accelerator:
    number, cores, total = int(listed["neuron_device"]), int(listed["nc_count"]), int(listed["memory_size"])
    # neuron-ls names the processes on a device and not their memory: one that is used counts as full.
    free = 0 if listed.get("neuron_processes") else total
    visible = ",".join(str(number * cores + core) for core in range(cores))
    return Accelerator(
        f"neuron{number}", "neuron", str(listed.get("instance_type") or "Neuron"), total, free,
        (f"/dev/neuron{number}",), {"NEURON_RT_VISIBLE_CORES": visible},
    )  # fmt: skip
