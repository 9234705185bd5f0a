"""The training loop: AdamW on a Llama-architecture model, stopped by wall clock or steps.

Recipe (measured): betas .9/.95, weight decay .1 on matrices, gradient clip 1, warm-up of some steps, constant to half
of the budget, then linear to 3 %. The budget counts training time over all runs of the job, not start-up.

Invariants:
- The reported held-out bits per byte are over every held-out token, with special tokens counted as cost and as no byte.
- SIGTERM (a stopped job) ends the loop after the current step; the model trained so far is still written.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.workloads.language_model.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from honmaru.workloads.language_model.examples import Windows
from honmaru.workloads.language_model.hyperparameters import Hyperparameters

_COMPILE_PAYS_AFTER_S = 300.0


@dataclass(frozen=True, slots=True)
class Device:
    """What computes, and in which precision: "bf16" is autocast over fp32 weights."""

    name: str
    precision: str
    compiled: bool
    threads: int


@dataclass(frozen=True, slots=True)
class Outcome:
    steps: int
    tokens: int
    train_loss: float
    held_out_loss: float
    bits_per_byte: float
    tokens_per_second: float


def cpu_has_bf16() -> bool:
    """Whether bf16 is a native CPU type here; without it, bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_device(wanted: Hyperparameters) -> Device:
    """CUDA when there is one; threads as many as the sandbox grants; compile only where it pays (a long run)."""
    import shutil

    import torch

    cores = len(os.sched_getaffinity(0))
    granted = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SM_NUM_CPUS", "")
    threads = wanted.threads or min(cores, int(granted) if granted.isdigit() and int(granted) else cores)
    cuda = torch.cuda.is_available()
    bf16 = (torch.cuda.is_bf16_supported() if cuda else cpu_has_bf16()) if wanted.precision == "auto" else False
    precision = "bf16" if bf16 or wanted.precision == "bf16" else "fp32"
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    compiled = wanted.compile == "on" or (
        wanted.compile == "auto" and wanted.max_seconds >= _COMPILE_PAYS_AFTER_S and compiler is not None
    )
    return Device("cuda" if cuda else "cpu", precision, compiled, max(1, threads))


def rate(progress: float, step: int, wanted: Hyperparameters) -> float:
    """The learning rate at a step and a share of the budget (0 to 1)."""
    if step < wanted.warmup_steps and progress < 0.5:
        return wanted.learning_rate * (step + 1) / wanted.warmup_steps
    return wanted.learning_rate * (1.0 if progress < 0.5 else 1.0 - 0.97 * min(1.0, (progress - 0.5) * 2))


def build_model(wanted: Hyperparameters, vocab_size: int, end: int, pad: int) -> Any:
    """A randomly initialised Llama model with tied embeddings. Seeded by the hyperparameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(wanted.seed)
    feed_forward = (wanted.hidden_size * 8 // 3 + 31) // 32 * 32
    config = LlamaConfig(
            vocab_size=vocab_size, hidden_size=wanted.hidden_size, intermediate_size=feed_forward,
            num_hidden_layers=wanted.layers, num_attention_heads=wanted.heads,
            num_key_value_heads=wanted.key_value_heads, head_dim=wanted.hidden_size // wanted.heads,
            max_position_embeddings=wanted.context, tie_word_embeddings=True, use_cache=True,
            bos_token_id=end, eos_token_id=end, pad_token_id=pad, attn_implementation="sdpa",
        )  # fmt: skip
    return LlamaForCausalLM(config)


class Trainer:
    """One run of the loop. `say` prints a line that the job's metric regexes read; `stopping` ends the loop early."""

    def __init__(
        self,
        wanted: Hyperparameters,
        model: Any,
        training: Any,
        held_out: Any,
        lengths: list[int],
        checkpoints: Path,
        say: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        import torch

        self._wanted, self._model, self._say, self._stopping = wanted, model, say, stopping
        self._checkpoints = checkpoints
        self.device = choose_device(wanted)
        torch.set_num_threads(self.device.threads)
        model.to(self.device.name)
        self._windows = Windows(training, wanted.context, wanted.batch_size, wanted.seed)
        self._held_out, self._lengths = held_out, lengths
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": wanted.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=wanted.learning_rate, betas=(0.9, 0.95), fused=True,
        )  # fmt: skip
        self._forward = torch.compile(model) if self.device.compiled else model

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.name, dtype=torch.bfloat16, enabled=self.device.precision == "bf16")

    def _loss(self, forward: Any, ids: Any, reduction: str) -> Any:
        import torch

        with self._autocast():
            logits = forward(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().long(), reduction=reduction
        )

    def run(self) -> Outcome:
        """Train to the end of the budget and evaluate."""
        import torch

        wanted, model = self._wanted, self._model
        step, before = 0, 0.0
        found = find_checkpoint(self._checkpoints)
        if found:
            progress = load_checkpoint(found, model, self._optimizer)
            step, before = int(progress["step"]), float(progress["seconds"])
            self._say(f"resumed from {found.name}: step={step} elapsed_seconds={before:.1f}")
        model.train()
        began = time.monotonic()
        logged = evaluated = saved = began
        first_step, logged_step, loss_value, paused, recent = step, step, float("nan"), 0.0, 0.0
        running = torch.zeros((), device=self.device.name)
        while not self._stopping():
            spent = before + time.monotonic() - began - paused
            share = max(spent / (wanted.max_seconds or math.inf), step / (wanted.max_steps or math.inf))
            if share >= 1:
                break
            for group in self._optimizer.param_groups:
                group["lr"] = rate(share, step, wanted)
            ids = torch.from_numpy(self._windows.batch(step)).to(self.device.name)
            loss = self._loss(self._forward, ids, "mean")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            running += loss.detach()
            step += 1
            now = time.monotonic()
            if now - logged >= wanted.log_every_seconds:
                loss_value = float(running) / (step - logged_step)
                running.zero_()
                if not math.isfinite(loss_value):
                    raise FloatingPointError(f"the loss is {loss_value} after {step} steps; lower learning_rate")
                recent = (step - logged_step) * wanted.batch_size * wanted.context / (now - logged)
                self._say(
                    f"step={step} train_loss={loss_value:.4f} tokens_per_second={recent:.0f} "
                    f"progress={share:.3f} elapsed_seconds={spent:.1f}"
                )
                logged, logged_step = now, step
            if wanted.evaluate_every_seconds and now - evaluated >= wanted.evaluate_every_seconds and share < 0.95:
                self._evaluate_and_say(step, limit=16)
                evaluated = time.monotonic()
                paused += evaluated - now
                logged += evaluated - now
            if wanted.checkpoint_every_seconds and now - saved >= wanted.checkpoint_every_seconds:
                moment = time.monotonic()
                self._save(step, before + moment - began - paused)
                saved = time.monotonic()
                logged += saved - moment
        elapsed = max(1e-6, time.monotonic() - began - paused)
        if step > logged_step:
            loss_value = float(running) / (step - logged_step)
        if wanted.checkpoint_every_seconds and step > first_step:
            self._save(step, before + elapsed)
        held_out_loss, bits = self._evaluate_and_say(step, limit=0)
        tokens = step * wanted.batch_size * wanted.context
        speed = (step - first_step) * wanted.batch_size * wanted.context / elapsed
        self._say(f"train:loss={loss_value:.4f} train:tokens_per_second={speed:.0f} train:steps={step}")
        return Outcome(step, tokens, loss_value, held_out_loss, bits, speed)

    def _save(self, step: int, seconds: float) -> None:
        save_checkpoint(self._checkpoints, self._model, self._optimizer, {"step": step, "seconds": seconds})

    def _evaluate_and_say(self, step: int, limit: int) -> tuple[float, float]:
        loss, bits = self.evaluate(limit)
        name = "validation" if not limit else "running"
        self._say(f"step={step} {name}:loss={loss:.4f} {name}:bits_per_byte={bits:.4f}")
        return loss, bits

    def evaluate(self, limit: int = 0) -> tuple[float, float]:
        """Mean loss (nats per token) and bits per byte of the held-out text; `limit` windows at most, 0 for all."""
        import torch

        context, tokens = self._wanted.context, self._held_out
        starts = list(range(0, max(1, len(tokens) - 1), context))[: limit or None]
        nats, count, length = 0.0, 0, 0
        self._model.eval()
        with torch.inference_mode():
            for start in starts:
                # Each window carries the last token of the one before, so every token but the first is predicted.
                window = tokens[start : start + context + 1]
                if len(window) < 2:
                    continue
                ids = torch.from_numpy(window).unsqueeze(0).to(self.device.name)
                nats += float(self._loss(self._model, ids, "sum"))
                count += len(window) - 1
                length += sum(self._lengths[number] for number in window[1:])
        self._model.train()
        return nats / max(1, count), nats / math.log(2) / max(1, length)
