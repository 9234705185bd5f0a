"""Checkpoints: weights and optimizer state as safetensors, progress as JSON. No pickle.

Invariant: a checkpoint is whole or absent: it is written beside and renamed; `load` takes the newest whole one, and
one that does not fit the hyperparameters is refused instead of being trained on.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.core.safetensors import read_header

_NAME = "checkpoint"


def save_checkpoint(directory: Path, model: Any, optimizer: Any, progress: dict[str, Any]) -> None:
    """Write the state after `progress["step"]` steps and drop the older one."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f".{_NAME}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": parameter.detach().contiguous() for parameter, name in names.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{names[parameter]}.{key}"] = value.detach().clone().contiguous()
    save_file(tensors, str(beside / "state.safetensors"))
    (beside / "progress.json").write_text(json.dumps(progress), "utf-8")
    final = directory / f"{_NAME}-{progress['step']:09d}"
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    for other in directory.glob(f"{_NAME}-*"):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def find_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, if there is one."""
    found = sorted(path for path in directory.glob(f"{_NAME}-*") if (path / "progress.json").is_file())
    return found[-1] if found else None


def load_checkpoint(path: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore weights and optimizer state. Returns the progress. Raises ValidationFault when it does not fit."""
    from safetensors.torch import load_file

    file = path / "state.safetensors"
    with file.open("rb") as stream:
        read_header(stream, file.stat().st_size, name=file.name)
    progress: dict[str, Any] = json.loads((path / "progress.json").read_text("utf-8"))
    tensors = load_file(str(file))
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        saved = tensors.get(f"model.{name}")
        if saved is None or saved.shape != parameter.shape:
            raise ValidationFault(f"the checkpoint {path.name} is of another model: {name} does not fit; remove it")
        parameter.data.copy_(saved)
    for name, parameter in parameters.items():
        prefix = f"optimizer.{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    return progress
