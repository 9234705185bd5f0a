"""What an instance type means on this machine: a share of its cores and memory, within what it has.

A job may name any of AWS's CPU types. It is given the type's cores and memory, but never more than the machine has:
a job must be able to run on a laptop, slower. Accelerator types are refused where there are no accelerators, because
a script that asks for CUDA would not do the same thing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from honmaru.core.errors import ValidationFault

_TYPE = re.compile(r"ml\.(?P<family>[a-z]+)\d[a-z0-9-]*\.(?P<size>medium|large|xlarge|(?P<times>\d+)xlarge)")
_GIB_PER_CORE = {"c": 2, "m": 4, "t": 4, "r": 8}
_SHARE = 0.85
"""Of the machine's memory that one instance may have at most; the rest is the enclave's and the kernel's."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the machine has."""

    cores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Size:
    """What one instance gets. `nominal_cores` is what AWS gives the type."""

    cores: int
    nominal_cores: int
    memory_bytes: int


def size_of(instance_type: str, capacity: Capacity) -> Size:
    """Raises ValidationFault for a type that this machine cannot stand in for."""
    match = _TYPE.fullmatch(instance_type)
    if match is None or match["family"] not in _GIB_PER_CORE:
        raise ValidationFault(
            f"instance type {instance_type!r} has accelerators or is not known; this enclave runs CPU types "
            "(ml.m*, ml.c*, ml.r*, ml.t*)"
        )
    steps = {"medium": 2 if match["family"] == "t" else 1, "large": 2, "xlarge": 4}
    nominal = steps.get(match["size"], 4 * int(match["times"] or 1))
    memory = nominal * _GIB_PER_CORE[match["family"]] << 30
    return Size(
        cores=min(nominal, capacity.cores),
        nominal_cores=nominal,
        memory_bytes=min(memory, int(capacity.memory_bytes * _SHARE)),
    )
