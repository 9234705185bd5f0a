"""Entry point; see the package's docstring."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.core.errors import HonmaruError, ValidationFault
from honmaru.core.model_files import SERVED
from honmaru.workloads.convert import restore
from honmaru.workloads.fine_tuning import records
from honmaru.workloads.fine_tuning.lora import adapt, merge
from honmaru.workloads.layout import ROOT_VARIABLE, Layout
from honmaru.workloads.server.text import Vocabulary

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Hyperparameters, under Bedrock's names where it has them."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    method: str
    rank: int
    alpha: float
    seed: int

    @staticmethod
    def parse(given: dict[str, str]) -> Wanted:
        """Raises ValidationFault that names what is wrong."""
        known = {
            "epochCount": "3", "batchSize": "8", "learningRate": "", "learningRateWarmupSteps": "0", "method": "lora",
            "loraRank": "8", "loraAlpha": "16", "seed": "1",
        }  # fmt: skip
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValidationFault(f"hyperparameter {unknown[0]!r} is not known; known are {', '.join(known)}")
        values = {**known, **given}
        if values["method"] not in ("lora", "full"):
            raise ValidationFault("hyperparameter method must be lora or full")
        try:
            made = Wanted(
                int(values["epochCount"]), int(values["batchSize"]),
                float(values["learningRate"] or ("1e-3" if values["method"] == "lora" else "3e-4")),
                int(values["learningRateWarmupSteps"]), values["method"], int(values["loraRank"]),
                float(values["loraAlpha"]), int(values["seed"]),
            )  # fmt: skip
        except ValueError as fault:
            raise ValidationFault(f"a hyperparameter is not a number: {fault}") from None
        limits = (
            ("epochCount", made.epochs, 1, 1000), ("batchSize", made.batch_size, 1, 512),
            ("learningRate", made.learning_rate, 1e-7, 1.0), ("loraRank", made.rank, 1, 256),
            ("learningRateWarmupSteps", made.warmup_steps, 0, 100_000),
        )  # fmt: skip
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise ValidationFault(f"hyperparameter {name} must be between {low} and {high}, not {value}")
        return made


def load(base: Path) -> Any:
    """The base model, from its safetensors or from the GGUF file that the import made of them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if list(base.glob("*.safetensors")):
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(base), use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype=torch.float32
        )
        return model
    config = json.loads((base / "config.json").read_text("utf-8"))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(base), local_files_only=True))
    tensors = {name: torch.tensor(values) for name, values in restore(base / "model.gguf", config).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    lost = [name for name in missing if name != "lm_head.weight" or not config.get("tie_word_embeddings")]
    if lost or unexpected:
        raise ValidationFault(f"model.gguf and config.json disagree: {[*lost, *unexpected][:3]}")
    model.tie_weights()
    return model.float()


class Tuning:
    """One run: epochs over the examples, a metric line for each step."""

    def __init__(self, wanted: Wanted, model: Any, training: list[records.Example], held_out: list[records.Example]):
        import torch

        self._wanted, self.model = wanted, model
        self._training, self._held_out = training, held_out
        torch.manual_seed(wanted.seed)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        trained = adapt(model, wanted.rank, wanted.alpha) if wanted.method == "lora" else list(model.parameters())
        model.to(self._device)
        self._trained = trained
        self._optimizer = torch.optim.AdamW(trained, lr=wanted.learning_rate, weight_decay=0.0)
        self.steps: list[tuple[int, int, float]] = []
        self.validations: list[tuple[int, float]] = []
        self.stopped = False

    def run(self) -> None:
        """Train, then fold adapters in. Raises FloatingPointError for a loss that is no number."""
        import torch

        wanted = self._wanted
        order = list(range(len(self._training)))
        generator = random.Random(wanted.seed)  # noqa: S311 - an order, not a secret
        total = wanted.epochs * -(-len(order) // wanted.batch_size)
        for epoch in range(1, wanted.epochs + 1):
            generator.shuffle(order)
            self.model.train()
            for at in range(0, len(order), wanted.batch_size):
                if self.stopped:
                    break
                step = len(self.steps)
                warm = min(1.0, (step + 1) / max(1, wanted.warmup_steps))
                for group in self._optimizer.param_groups:
                    group["lr"] = wanted.learning_rate * warm * (1 - 0.9 * step / total)
                loss = self._loss([self._training[number] for number in order[at : at + wanted.batch_size]])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(f"the loss is {value} after {step + 1} steps; lower learningRate")
                self.steps.append((step + 1, epoch, value))
            if self._held_out:
                self.validations.append((epoch, self.validate()))
                print(f"epoch={epoch} validation_loss={self.validations[-1][1]:.4f}", flush=True)
            print(f"epoch={epoch} training_loss={self.steps[-1][2]:.4f} steps={len(self.steps)}", flush=True)
        if wanted.method == "lora":
            merge(self.model)
        self.model.to("cpu")

    def validate(self) -> float:
        """Mean loss over the held-out examples."""
        import torch

        self.model.eval()
        size = self._wanted.batch_size
        batches = [self._held_out[at : at + size] for at in range(0, len(self._held_out), size)]
        with torch.inference_mode():
            losses = [(float(self._loss(batch)), len(batch)) for batch in batches]
        return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)

    def _loss(self, examples: Sequence[records.Example]) -> Any:
        import torch

        width = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), width, dtype=torch.long)
        mask = torch.zeros(len(examples), width, dtype=torch.long)
        wanted = torch.full((len(examples), width), -100, dtype=torch.long)
        for row, example in enumerate(examples):
            size = len(example.ids)
            ids[row, :size] = torch.tensor(example.ids)
            mask[row, :size] = 1
            wanted[row, :size] = torch.tensor(
                [number if learned else -100 for number, learned in zip(example.ids, example.learned, strict=True)]
            )
        logits = self.model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False
        ).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten().to(self._device), ignore_index=-100
        )


def write_metrics(folder: Path, tuning: Tuning) -> None:
    """Bedrock's two tables."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "step_wise_training_metrics.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["step_number", "epoch_number", "training_loss", "perplexity"])
        table.writerows([step, epoch, loss, math.exp(min(loss, 50))] for step, epoch, loss in tuning.steps)
    if tuning.validations:
        with (folder / "validation_metrics.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["epoch_number", "validation_loss", "perplexity"])
            table.writerows([epoch, loss, math.exp(min(loss, 50))] for epoch, loss in tuning.validations)


def _served(layout: Layout, base: Path, tuning: Tuning) -> dict[str, Any]:
    """Write the new model's served form, as an import does, in a process of its own: OpenVINO and torch do not share
    one. Returns its report. Raises ValidationFault."""
    scratch = layout.output / "tuned"
    shutil.rmtree(scratch, ignore_errors=True)
    source, inner = scratch / "input" / "data" / "source", Layout(scratch)
    source.mkdir(parents=True)
    tuning.model.save_pretrained(str(source), safe_serialization=True)
    for path in base.iterdir():
        if path.name in SERVED and path.name not in ("model.gguf", "config.json"):
            shutil.copyfile(path, source / path.name)
    inner.model.mkdir()
    command = [sys.executable, "-m", "honmaru.workloads.model_import"]
    done = subprocess.run(command, env={**os.environ, ROOT_VARIABLE: str(scratch)}, check=False)
    if done.returncode:
        failure = inner.output / "failure"
        raise ValidationFault(failure.read_text("utf-8") if failure.exists() else f"import ended {done.returncode}")
    report: dict[str, Any] = json.loads((inner.model / REPORT).read_text("utf-8"))
    for path in inner.model.iterdir():
        shutil.move(path, layout.model / path.name)
    shutil.rmtree(scratch)
    return report


def run(layout: Layout) -> None:
    """The whole job. Raises HonmaruError."""
    given = layout.hyperparameters()
    kind = given.pop("customizationType", records.FINE_TUNING)
    wanted = Wanted.parse(given)
    base = layout.channel("base")
    vocabulary = Vocabulary(base)
    training = records.read(layout.files("training"), vocabulary, kind)
    has_validation = layout.channel("validation").is_dir()
    held_out = records.read(layout.files("validation"), vocabulary, kind) if has_validation else []
    tuning = Tuning(wanted, load(base), training, held_out)
    signal.signal(signal.SIGTERM, lambda *_: setattr(tuning, "stopped", True))
    tuning.run()
    write_metrics(layout.output / "data", tuning)
    report = _served(layout, base, tuning)
    report["training_loss"] = tuning.steps[-1][2] if tuning.steps else None
    report["validation_losses"] = [loss for _, loss in tuning.validations[-1:]]
    (layout.model / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def main() -> int:
    """Exit code 0, or 1 with the reason in output/failure."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[name] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    layout = Layout.from_environment()
    try:
        run(layout)
    except (HonmaruError, FloatingPointError, OSError, MemoryError) as fault:
        reason = str(fault) if isinstance(fault, HonmaruError) else f"{type(fault).__name__}: {fault}"
        layout.fail(reason)
        print(reason, file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
