"""Accelerators: what the drivers say of them, and which one a model server gets."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.errors import ConfigurationFault, NotReady, ValidationFault
from honmaru.deployments.engines import read_engine
from honmaru.deployments.placement import Placement, Wish
from honmaru.executors.local import LocalExecutor
from honmaru.executors.local.accelerators import LocalAccelerators
from honmaru.executors.local.sandbox import Walls, command
from honmaru.ports.accelerators import Accelerator
from honmaru.ports.executors import Environment, JobSpec
from honmaru.testing.keep import ACCOUNT

GIB = 1 << 30


class Driver:
    """NVML as its functions are called through ctypes. `broken`: the second device cannot be read."""

    def __init__(self, free: list[int], broken: bool = False) -> None:
        self.free, self.broken, self.open = free, broken, 0

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.free)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        at = handle.value - 1
        memory._obj.total, memory._obj.free = 80 * GIB, self.free[at]
        return 999 if self.broken and at == 1 else 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: Any) -> int:
        name.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, uuid: Any, size: Any) -> int:
        uuid.value = b"GPU-%d" % (handle.value - 1)
        return 0

    def nvmlDeviceGetMinorNumber(self, handle: Any, minor: Any) -> int:
        minor._obj.value = handle.value - 1
        return 0


NEURON = json.dumps(
    [
        {"neuron_device": 0, "nc_count": 2, "memory_size": 32 * GIB, "neuron_processes": []},
        {"neuron_device": 1, "nc_count": 2, "memory_size": 32 * GIB, "neuron_processes": [{"pid": 1}]},
    ]
)


def test_both_makers_are_found_behind_one_interface() -> None:
    driver = Driver([70 * GIB, 10 * GIB])
    found = LocalAccelerators(lambda: driver, lambda: NEURON).found()
    assert [(one.id, one.kind, one.free_bytes) for one in found] == [
        ("GPU-0", "cuda", 70 * GIB),
        ("GPU-1", "cuda", 10 * GIB),
        ("neuron0", "neuron", 32 * GIB),
        ("neuron1", "neuron", 0),
    ]
    assert found[1].nodes == ("/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert found[1].visible == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert found[3].visible == {"NEURON_RT_VISIBLE_CORES": "2,3"}
    assert driver.open == 0


def test_a_machine_without_drivers_or_with_broken_ones_has_none() -> None:
    assert LocalAccelerators(lambda: None, lambda: "").found() == []
    for nonsense in ("{", "[1]", '{"a": 1}', "[{}]"):
        assert LocalAccelerators(lambda: None, lambda nonsense=nonsense: nonsense).found() == []
    found = LocalAccelerators(lambda: Driver([GIB, GIB], broken=True), lambda: "").found()
    assert [one.id for one in found] == ["GPU-0"]


class Fixed:
    def __init__(self, *free_gib: int) -> None:
        self.devices = [
            Accelerator(
                f"GPU-{at}",
                "cuda",
                "x",
                80 * GIB,
                free * GIB,
                (f"/dev/nvidia{at}",),
                {"CUDA_VISIBLE_DEVICES": f"GPU-{at}"},
            )
            for at, free in enumerate(free_gib)
        ]

    def found(self) -> list[Accelerator]:
        return list(self.devices)

    def use(self, at: int, free_gib: int) -> None:
        self.devices[at] = replace(self.devices[at], free_bytes=free_gib * GIB)


def ids(grant: Any) -> list[str]:
    return [one.id for one in grant.accelerators]


def test_the_accelerators_with_the_most_free_memory_are_given() -> None:
    placement = Placement(Fixed(10, 40, 30))
    grant = placement.take("a", "S", Wish(2, memory_bytes=20 * GIB))
    assert ids(grant) == ["GPU-1", "GPU-2"]
    assert grant.variables == {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}
    assert grant.nodes == ("/dev/nvidia1", "/dev/nvidia2")
    with pytest.raises(NotReady):
        placement.take("a", "S", Wish(1, "neuron"))


@pytest.mark.parametrize("other", [("a", "TS"), ("b", "S")])
def test_an_accelerator_is_never_shared_between_labels_or_accounts(other: tuple[str, str]) -> None:
    placement = Placement(Fixed(40))
    grant = placement.take("a", "S", Wish(1, memory_bytes=10 * GIB))
    with pytest.raises(NotReady):
        placement.take(*other, Wish(1, memory_bytes=10 * GIB))
    placement.release(grant)
    assert ids(placement.take(*other, Wish(1, memory_bytes=10 * GIB))) == ["GPU-0"]


def test_what_was_promised_is_not_promised_again_whether_or_not_it_was_taken() -> None:
    devices = Fixed(40)
    placement = Placement(devices)
    first = placement.take("a", "S", Wish(1, memory_bytes=25 * GIB))
    with pytest.raises(NotReady):
        placement.take("a", "S", Wish(1, memory_bytes=25 * GIB))  # not taken yet
    devices.use(0, 15)
    with pytest.raises(NotReady):
        placement.take("a", "S", Wish(1, memory_bytes=25 * GIB))  # taken
    second = placement.take("a", "S", Wish(1, memory_bytes=15 * GIB))
    for grant in (first, second, first):
        placement.release(grant)
    devices.use(0, 40)
    assert ids(placement.take("a", "S", Wish(1, memory_bytes=40 * GIB))) == ["GPU-0"]


def test_a_sandbox_gets_the_devices_and_only_devices(tmp_path: Path) -> None:
    walls = Walls("bwrap", 1, 1, tmp_path, tmp_path, tmp_path, tmp_path, False, {}, {}, GIB, devices=("/dev/nvidia0",))
    line = command(walls, 3, ("true",))
    at = line.index("--dev-bind")
    assert line[at + 1 : at + 3] == ["/dev/nvidia0", "/dev/nvidia0"]
    assert at < line.index("--remount-ro", at)
    environment = Environment("e", "/usr", "d", "m")
    executor = LocalExecutor(tmp_path / "executor")
    for node in ("/dev/sda", "/dev/nvidia0/../mem", "/etc", "/dev/kmsg"):
        spec = JobSpec("job", tmp_path, environment, ("true",), {}, "U", devices=(node,))
        with pytest.raises(ValidationFault, match="no device of an accelerator"):
            executor.start(spec)


def test_an_engine_declares_what_it_needs() -> None:
    entry = {"command": ["vllm"], "environment": "vllm", "accelerators": 2, "accelerator_memory_gib": 0.5}
    assert read_engine("acme.x", entry, ACCOUNT).accelerators == Wish(2, "cuda", GIB // 2)
    for more in ({"accelerator": "tpu"}, {"accelerators": 65}, {"accelerator_memory_gib": -1}):
        with pytest.raises(ConfigurationFault, match="accelerators is 1 to 64"):
            read_engine("acme.x", entry | more, ACCOUNT)


def test_the_memory_structure_is_nvmls() -> None:
    from honmaru.executors.local.accelerators import _Memory

    assert [name for name, _ in _Memory._fields_] == ["total", "free", "used"]
    assert ctypes.sizeof(_Memory) == 24
