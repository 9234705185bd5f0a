"""The files through which an executor and its runners speak: small JSON documents, written atomically and durably."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SPEC, STATUS, STOP, LOCK, RUNNER_LOG = "spec.json", "status.json", "stop.json", "lock", "runner.log"


def output_file(folder: Path, instance: int) -> Path:
    """Merged stdout and stderr of an instance (1 is the first)."""
    return folder / f"output-{instance}.log"


def store(file: Path, document: dict[str, Any]) -> None:
    """Replace the file; after a crash it holds the old document or the new one, and the new one on return."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(file: Path) -> dict[str, Any] | None:
    """The document, or None when there is no such file."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return document if isinstance(document, dict) else None
