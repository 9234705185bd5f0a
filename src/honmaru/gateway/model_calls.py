"""What calls of models took, for AWS/Bedrock's metrics: invocations, latency, tokens, errors, by model.

Invariants:
- Only calls that reached a model count, so no name that a caller makes up is kept.
- Counts are kept apart by account and label, and given away once (`drain`).

Source: Amazon Bedrock user guide, "Monitoring Amazon Bedrock": runtime metrics.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from honmaru.core.errors import EngineFailed, NotReady, PlatformFault, Throttled
from honmaru.core.labels import Label
from honmaru.gateway.exchange import Exchange

SERVICE = "bedrock-runtime"
_OPERATIONS = frozenset({"Converse", "ConverseStream", "InvokeModel", "InvokeModelWithResponseStream"})


@dataclass(slots=True)
class ModelCalls:
    """Of one model since the last `drain`. Latencies in milliseconds, with their numbers."""

    invocations: int = 0
    throttled: int = 0
    server_errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    latencies_ms: Counter[int] = field(default_factory=Counter)


Key = tuple[str, Label, str]
"""(account, label, model id)."""


class ModelMeter:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[Key, ModelCalls] = {}

    def observe(self, exchange: Exchange, seconds: float) -> None:
        """Count a call of a model that has been answered or has failed."""
        session, error = exchange.session, exchange.error
        if session is None or exchange.operation_name not in _OPERATIONS:
            return
        if error is not None and not isinstance(error, EngineFailed | NotReady | Throttled | PlatformFault):
            return
        model = str(exchange.members.get("modelId", ""))
        details = exchange.call.details if exchange.call is not None else {}
        with self._lock:
            calls = self._calls.setdefault((session.account, session.label, model), ModelCalls())
            if isinstance(error, Throttled | NotReady):
                calls.throttled += 1
            elif error is not None:
                calls.server_errors += 1
            else:
                calls.invocations += 1
                calls.latencies_ms[round(seconds * 1000)] += 1
                calls.input_tokens += int(details.get("inputTokens", 0))
                calls.output_tokens += int(details.get("outputTokens", 0))

    def drain(self) -> dict[Key, ModelCalls]:
        """The calls since the last time."""
        with self._lock:
            calls, self._calls = self._calls, {}
        return calls
