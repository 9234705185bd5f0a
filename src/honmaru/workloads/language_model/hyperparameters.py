"""The hyperparameters of honmaru-lm: strings in, checked values out.

Invariant: an unknown name or a value out of range is refused with all problems named together, before any work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from honmaru.core.errors import ValidationFault


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Training stops at whichever of `max_seconds` and `max_steps` comes first; 0 means no such limit."""

    max_seconds: float = 0.0
    max_steps: int = 0
    vocab_size: int = 4096
    hidden_size: int = 256
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 4
    context: int = 256
    batch_size: int = 4
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    held_out: float = 0.03
    seed: int = 1
    threads: int = 0
    precision: str = "auto"
    compile: str = "auto"
    log_every_seconds: float = 1.0
    evaluate_every_seconds: float = 20.0
    checkpoint_every_seconds: float = 30.0

    @staticmethod
    def parse(values: Mapping[str, str]) -> Hyperparameters:
        """Read the job's strings. Names that start with "sagemaker_" are the platform's and are passed over."""
        problems: list[str] = []
        parsed: dict[str, object] = {}
        fields = {field.name: field for field in dataclasses.fields(Hyperparameters)}
        for name, text in values.items():
            if name.startswith("sagemaker_"):
                continue
            if name not in fields:
                problems.append(f"unknown hyperparameter {name!r}; known are {', '.join(sorted(fields))}")
                continue
            convert: Callable[[str], object] = {"int": int, "float": float, "str": str}[str(fields[name].type)]
            try:
                parsed[name] = convert(text.strip().strip('"'))
            except ValueError:
                problems.append(f"{name}={text!r} is not of type {fields[name].type}")
        if not problems:
            result = Hyperparameters(**parsed)  # type: ignore[arg-type]
            problems += result._problems()
            if not problems:
                return result if result.max_seconds or result.max_steps else dataclasses.replace(result, max_seconds=95)
        raise ValidationFault("hyperparameters: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        ranges = {
            "max_seconds": (0, 30 * 86400), "max_steps": (0, 10**9), "vocab_size": (264, 262144),
            "hidden_size": (16, 16384), "layers": (1, 128), "heads": (1, 256), "key_value_heads": (1, 256),
            "context": (16, 131072), "batch_size": (1, 4096), "learning_rate": (1e-7, 1.0), "warmup_steps": (0, 10**6),
            "weight_decay": (0, 1), "held_out": (0.001, 0.5), "seed": (0, 2**31 - 1), "threads": (0, 1024),
            "log_every_seconds": (0, 3600), "evaluate_every_seconds": (0, 86400),
            "checkpoint_every_seconds": (0, 86400),
        }  # fmt: skip
        problems = [
            f"{name}={getattr(self, name)} is not between {low} and {high}"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if not problems and self.hidden_size % self.heads:
            problems.append(f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}")
        elif not problems and self.hidden_size // self.heads % 2:
            problems.append(f"hidden_size/heads={self.hidden_size // self.heads} must be even (rotary positions)")
        if not problems and self.heads % self.key_value_heads:
            problems.append(f"heads={self.heads} is not a multiple of key_value_heads={self.key_value_heads}")
        if self.precision not in ("auto", "bf16", "fp32"):
            problems.append(f"precision={self.precision!r} is not auto, bf16 or fp32")
        if self.compile not in ("auto", "on", "off"):
            problems.append(f"compile={self.compile!r} is not auto, on or off")
        return problems
