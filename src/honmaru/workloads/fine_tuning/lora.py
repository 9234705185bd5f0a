"""Low-rank adaptation: each linear layer learns a product of two thin matrices beside its frozen weight.

Invariant: `merge` leaves the model as it was found, layer by layer, with the products added to the weights; nothing of
the adapters remains, so every engine serves the result.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import math
from typing import Any

_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapt(model: Any, rank: int, alpha: float) -> list[Any]:
    """Freeze the model and put an adapter on every linear layer of its blocks; returns what is to be trained."""
    import torch

    class Adapted(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner
            self.down = torch.nn.Parameter(torch.empty(rank, inner.in_features))
            self.up = torch.nn.Parameter(torch.zeros(inner.out_features, rank))
            torch.nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
            self.scale = alpha / rank

        def forward(self, value: Any) -> Any:
            return self.inner(value) + (value @ self.down.T @ self.up.T) * self.scale

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained: list[Any] = []
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if name in _ADAPTED and isinstance(child, torch.nn.Linear):
                adapter = Adapted(child)
                setattr(owner, name, adapter)
                trained += [adapter.down, adapter.up]
    return trained


def merge(model: Any) -> None:
    """Fold every adapter into its layer."""
    import torch

    with torch.no_grad():
        for owner in list(model.modules()):
            for name, child in list(owner.named_children()):
                if hasattr(child, "inner") and hasattr(child, "down"):
                    child.inner.weight += (child.up @ child.down) * child.scale
                    setattr(owner, name, child.inner)
