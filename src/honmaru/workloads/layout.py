"""Where a program inside the sandbox finds its things: SageMaker's /opt/ml layout.

Invariant: a program that ends with `fail` has left its reason in output/failure (at most 1024 characters), which
becomes the job's FailureReason.

Source: "How Amazon SageMaker processes training input and output" (SageMaker developer guide).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import ValidationFault

ROOT_VARIABLE = "HONMARU_ML_ROOT"


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of one instance, below `root` (/opt/ml inside the sandbox)."""

    root: Path

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> Layout:
        """The layout at $HONMARU_ML_ROOT, by default /opt/ml."""
        return Layout(Path((os.environ if environment is None else environment).get(ROOT_VARIABLE, "/opt/ml")))

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def output(self) -> Path:
        return self.root / "output"

    def channel(self, name: str) -> Path:
        return self.root / "input" / "data" / name

    def hyperparameters(self) -> dict[str, str]:
        """hyperparameters.json: strings only, as SageMaker passes them. Absent means none."""
        path = self.root / "input" / "config" / "hyperparameters.json"
        if not path.exists():
            return {}
        try:
            values = json.loads(path.read_text("utf-8"))
        except ValueError as fault:
            raise ValidationFault(f"hyperparameters.json is not JSON: {fault}") from None
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise ValidationFault("hyperparameters.json must map names to strings")
        return values

    def hosts(self) -> tuple[str, ...]:
        """Names of the instances of this job; one, when resourceconfig.json is absent."""
        path = self.root / "input" / "config" / "resourceconfig.json"
        if not path.exists():
            return ("algo-1",)
        return tuple(json.loads(path.read_text("utf-8"))["hosts"])

    def files(self, channel: str) -> Iterator[Path]:
        """Regular files of a channel in path order. Raises ValidationFault when the channel is absent."""
        directory = self.channel(channel)
        if not directory.is_dir():
            raise ValidationFault(f"there is no input channel {channel!r}; add it to InputDataConfig")
        return iter(sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()))

    def fail(self, reason: str) -> None:
        """Leave the reason for the platform."""
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "failure").write_text(reason[:1024], "utf-8")
