"""What an engine is: token ids in, token ids out, many requests at once, each cancellable.

Invariants, which the tests check on every engine:
- `emit` is called for every token in order, and exactly once with a finish; after `cancel` possibly never again.
- The same ids and sampling with the same seed give the same tokens, whatever else runs.
- No request sees anything of another: prefix caches are off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Emit = Callable[[Sequence[int], str | None], None]
"""(new token ids, finish): finish is None, "stop" (an end token), "length", or "error: ..."; called on any thread."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    end_tokens: frozenset[int]


class Engine(Protocol):
    name: str

    def submit(self, ids: Sequence[int], sampling: Sampling, emit: Emit) -> int:
        """Queue a request; returns its number."""
        ...

    def cancel(self, number: int) -> None:
        """Stop a request and free what it holds. No error when it has ended."""
        ...

    def active(self) -> int:
        """Requests queued or running."""
        ...

    def close(self) -> None: ...
