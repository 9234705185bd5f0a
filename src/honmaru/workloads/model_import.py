"""Check and convert a model that is to be imported; run inside the sandbox, because its bytes are not trusted.

Input: /opt/ml/input/data/source holds the files of a Hugging Face model directory, or one model.tar.gz. Output:
/opt/ml/model holds what a model server needs, and report.json what the platform needs to know.

Invariants:
- Weights are accepted only as safetensors that pass the strict header parser; a pickle is refused, not skipped.
- A model that is reported as importable has been loaded by its engine here and has generated a token.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from honmaru.core.errors import HonmaruError, ValidationFault
from honmaru.core.model_files import EMBEDDINGS, SERVED, has_chat_template, read_architecture, strict_json, wanted_files
from honmaru.workloads.archive import unpack
from honmaru.workloads.convert import Inconvertible, Weights, convert
from honmaru.workloads.layout import Layout
from honmaru.workloads.server.__main__ import is_encoder
from honmaru.workloads.server.embedder import Embedder

REPORT = "report.json"
CHANNEL = "source"
_TRIAL_S = 300.0


def prepare(source: Path, scratch: Path) -> Path:
    """The directory with the model's files: `source`, or what its one archive unpacks to."""
    names = sorted(path.name for path in source.iterdir())
    archives = [name for name in names if name.endswith((".tar.gz", ".tgz"))]
    if not archives:
        return source
    if len(names) > 1:
        raise ValidationFault(f"the source holds {archives[0]!r} beside other files; name the archive or a directory")
    target = scratch / "unpacked"
    unpack(source / archives[0], target)
    return target


def check(directory: Path) -> tuple[list[str], dict[str, Any]]:
    """Check every file; returns the names to take and the report's first part. Raises ValidationFault."""
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValidationFault(f"{path.name[:100]!r} is neither a file nor a directory")
    names = wanted_files({path.name for path in directory.iterdir() if path.is_file()})
    architecture = read_architecture((directory / "config.json").read_bytes())
    small = {
        name: (directory / name).read_bytes()
        for name in names
        if name.endswith((".json", ".jinja")) and (directory / name).stat().st_size <= 64 << 20
    }
    for name, data in small.items():
        if name.endswith(".json"):
            strict_json(data, name)
    weights = Weights(directory)
    tensor = EMBEDDINGS.get(architecture.name, "model.embed_tokens.weight")
    vocabulary = weights.shape(tensor)[0] if tensor in weights else 0
    if vocabulary != architecture.vocab_size:
        raise ValidationFault(
            f"config.json says vocab_size {architecture.vocab_size}; the weights have {vocabulary} embeddings"
        )
    report = {
        "architecture": architecture.name,
        "context_length": architecture.context_length,
        "instruct": has_chat_template(small) and not is_encoder(directory),
        "parameters": sum(_product(weights.shape(name)) for name in weights),
    }
    return names, report


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for dimension in shape:
        result *= dimension
    return result


def build(directory: Path, names: list[str], target: Path) -> dict[str, Any]:
    """Write the served form into `target`; returns which engine serves it, and why not the default one."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in SERVED:
            shutil.copyfile(directory / name, target / name)
    if is_encoder(directory):
        for name in names:
            shutil.copyfile(directory / name, target / name)
        try:
            Embedder(target, len(os.sched_getaffinity(0))).embed(["1"])
        except (RuntimeError, ImportError, ValueError, KeyError, OSError) as fault:
            raise ValidationFault(f"the model embeds nothing: {type(fault).__name__}: {str(fault)[:300]}") from None
        return {"engine": "embedding", "engine_note": ""}
    reason = ""
    gguf = target / "model.gguf"
    try:
        convert(directory, gguf)
        _try(target)
        return {"engine": "openvino", "engine_note": ""}
    except Inconvertible as fault:
        reason = str(fault)
    except (RuntimeError, ImportError) as fault:
        reason = f"the default engine does not load it: {str(fault)[:200]}"
    gguf.unlink(missing_ok=True)
    for name in names:
        shutil.copyfile(directory / name, target / name)
    try:
        _try(target)
    except (RuntimeError, ImportError, ValueError, KeyError, OSError) as fault:
        raise ValidationFault(
            f"no engine can serve the model: {reason}; transformers: {type(fault).__name__}: {str(fault)[:300]}"
        ) from None
    return {"engine": "transformers", "engine_note": reason}


def _try(directory: Path) -> None:
    """Load the model as the server will, and generate one token. Raises RuntimeError when that fails."""
    from honmaru.workloads.server.__main__ import load_engine
    from honmaru.workloads.server.engine import Sampling
    from honmaru.workloads.server.text import Vocabulary

    vocabulary = Vocabulary(directory)
    engine = load_engine(directory, len(os.sched_getaffinity(0)))
    finished: Queue[str] = Queue()

    def emit(ids: Sequence[int], finish: str | None, chances: Sequence[Any] = ()) -> None:  # noqa: ARG001
        if finish:
            finished.put(finish)

    engine.submit(vocabulary.encode_prompt("1") or [0], Sampling(1, 0.0, 1.0, 0, frozenset()), emit)
    try:
        finish = finished.get(timeout=_TRIAL_S)
    except Empty:
        raise RuntimeError(f"no token within {_TRIAL_S:.0f} s") from None
    finally:
        engine.close()
    if finish.startswith("error: "):
        raise RuntimeError(finish.removeprefix("error: "))


def run(layout: Layout) -> dict[str, Any]:
    """The whole import; returns the report. Raises HonmaruError."""
    with tempfile.TemporaryDirectory(dir=layout.output if layout.output.is_dir() else None) as scratch:
        directory = prepare(layout.channel(CHANNEL), Path(scratch))
        names, report = check(directory)
        report |= build(directory, names, layout.model)
    (layout.model / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return report


def main() -> int:
    """Exit code 0, or 1 with the reason in output/failure."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[name] = "1"
    layout = Layout.from_environment()
    try:
        print(json.dumps(run(layout)), flush=True)
    except (HonmaruError, OSError, MemoryError) as fault:
        reason = str(fault) if isinstance(fault, HonmaruError) else f"{type(fault).__name__}: {fault}"
        layout.fail(reason)
        print(reason, file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
