"""Which accelerators a model server gets: those with the most free memory, and never one that another label holds.

Invariants:
- An accelerator that a server holds goes only to servers of the same label and account until that one has ended: what
  is left in its memory, and how fast it answers, is nobody else's to see.
- What was promised to a server that has not taken it yet does not count as free.
- Without enough free memory the server is not started: NotReady, never a start that would fail half way.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from honmaru.core.errors import NotReady
from honmaru.ports.accelerators import Accelerator, Accelerators


@dataclass(frozen=True, slots=True)
class Wish:
    """What a server needs: `count` accelerators of a kind, each with so much free memory."""

    count: int
    kind: str = "cuda"
    memory_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """What a server got; give it back with `Placement.release`."""

    holder: tuple[str, str]
    """(account, canonical label)."""
    accelerators: Sequence[Accelerator]
    memory_bytes: int

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(sorted({node for one in self.accelerators for node in one.nodes}))

    @property
    def variables(self) -> Mapping[str, str]:
        joined: dict[str, list[str]] = {}
        for one in self.accelerators:
            for name, value in one.visible.items():
                joined.setdefault(name, []).append(value)
        return {name: ",".join(values) for name, values in joined.items()}


@dataclass(slots=True)
class Placement:
    """Thread-safe; one for the machine, shared by everything that starts servers on it."""

    accelerators: Accelerators
    _grants: list[tuple[Grant, Mapping[str, int]]] = field(default_factory=list)
    """With what each accelerator had free when the grant was made."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, account: str, label: str, wish: Wish) -> Grant:
        """Blocking. Raises NotReady when there is not enough that is free for this label and account."""
        holder = (account, label)
        with self._lock:
            there = [one for one in self.accelerators.found() if one.kind == wish.kind]
            free = {one.id: self._free(one) for one in there if self._open_to(one, holder)}
            fit = sorted((one for one in there if free.get(one.id, -1) >= wish.memory_bytes), key=lambda one: one.id)
            fit.sort(key=lambda one: free[one.id], reverse=True)
            if len(fit) < wish.count:
                raise NotReady(
                    f"{wish.count} {wish.kind} accelerators with {wish.memory_bytes >> 20} MiB of free memory each are "
                    "needed, and there are not as many; try again later"
                )
            chosen = fit[: wish.count]
            grant = Grant(holder, chosen, wish.memory_bytes)
            self._grants.append((grant, {one.id: one.free_bytes for one in chosen}))
            return grant

    def release(self, grant: Grant) -> None:
        """The server has ended. Idempotent."""
        with self._lock:
            self._grants = [kept for kept in self._grants if kept[0] is not grant]

    def _open_to(self, one: Accelerator, holder: tuple[str, str]) -> bool:
        return all(
            grant.holder == holder or all(held.id != one.id for held in grant.accelerators) for grant, _ in self._grants
        )

    def _free(self, one: Accelerator) -> int:
        """Free now, less what was promised and is not taken yet: no less was free before than now plus the promises."""
        held = [(grant, before[one.id]) for grant, before in self._grants if one.id in before]
        if not held:
            return one.free_bytes
        promised = sum(grant.memory_bytes for grant, _ in held)
        return min(one.free_bytes, max(before for _, before in held) - promised)
