"""Prompt routers: one of several models is chosen for a request.

The criterion. Nothing here guesses how well a model will answer a prompt. An operator declares each engine's `quality`
(0 to 100, as measured by an evaluation) and `price` (of a token, in any one unit). For a request the candidates are
the router's models that can do what it asks, at most `responseQualityDifference` percent below the fallback model's
declared quality, and cheaper than it; the cheapest is asked. When none is, also because numbers are not declared, the
fallback model is.

Invariants:
- The choice depends on the router, the declarations and what the request needs; never on load, time or other sessions.
- A model that the session may not see is passed over as one that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from honmaru.core.errors import ValidationFault
from honmaru.ports.models import ModelArtifact

ROUTER_KIND = "prompt-router"
"""Records of service "bedrock", by id: {"name", "models": [ARN], "fallback": ARN, "difference", "tags", ...}."""


def chosen(
    models: Sequence[ModelArtifact],
    fallback: ModelArtifact,
    difference: float,
    check: Callable[[ModelArtifact], object],
) -> ModelArtifact:
    """The model to ask. `check` raises ValidationFault for a model that cannot do what the request asks for.

    Raises what `check` raises of the fallback model, when that one is chosen.
    """
    quality, price = _number(fallback, "quality"), _number(fallback, "price")
    if quality is not None and price is not None:
        floor = quality * (1 - difference / 100)
        for model in sorted(models, key=lambda one: (_number(one, "price") or 0.0, one.arn)):
            own_quality, own_price = _number(model, "quality"), _number(model, "price")
            if own_quality is None or own_price is None or own_price >= price or own_quality < floor:
                continue
            try:
                check(model)
            except ValidationFault:
                continue
            return model
    check(fallback)
    return fallback


def _number(model: ModelArtifact, name: str) -> float | None:
    value = model.details.get(name)
    return float(value) if isinstance(value, int | float) else None
