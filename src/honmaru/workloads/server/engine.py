"""What an engine is: token ids in, token ids out, many requests at once, each cancellable.

Invariants, which the tests check on every engine:
- `emit` is called for every token in order, and exactly once with a finish; after `cancel` possibly never again.
- The same ids and sampling with the same seed give the same tokens, whatever else runs.
- No request sees anything of another: prefix caches are off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from honmaru.workloads.server.tools import Grammar

Chance = tuple[float, Sequence[tuple[int, float]]]
"""The log probability of a token, and (token id, log probability) of the likeliest ones."""


class Emit(Protocol):
    def __call__(self, ids: Sequence[int], finish: str | None, chances: Sequence[Chance] = ()) -> None:
        """New token ids, with a chance each where log probabilities were asked for.

        `finish` is None, "stop" (an end token), "length", or "error: ..."; called on any thread.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; `top_k` 0 is no limit.

    `logprobs` is None, or how many alternatives are wanted beside each token's own. `grammar` constrains the answer.
    """

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    end_tokens: frozenset[int]
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    grammar: Grammar | None = None


class Engine(Protocol):
    name: str

    features: frozenset[str]
    """What of Sampling it honours beyond the plain: "grammar", "logit_bias", "logprobs", "top_logprobs"."""

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
