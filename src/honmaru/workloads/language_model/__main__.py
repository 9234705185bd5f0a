"""Entry point of the honmaru-lm environment: read /opt/ml, train, write the model; see the package's docstring."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from honmaru.core.errors import HonmaruError, ValidationFault
from honmaru.workloads.language_model.corpus import read_corpus
from honmaru.workloads.language_model.hyperparameters import Hyperparameters
from honmaru.workloads.layout import Layout

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def say(line: str) -> None:
    print(line, flush=True)


def write_model(directory: Path, model: Any, tokenizer: Any, wanted: Hyperparameters) -> None:
    """Write the Hugging Face layout: config.json, model.safetensors, generation_config.json and the tokenizer."""
    from transformers import GenerationConfig

    from honmaru.workloads.language_model.tokenizer import END, PAD, save_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=tokenizer.token_to_id(PAD),
        do_sample=True, temperature=0.7, top_p=0.9,
    )  # fmt: skip
    model.to("cpu").save_pretrained(str(directory), safe_serialization=True)
    save_tokenizer(tokenizer, directory, wanted.context)


def train(layout: Layout) -> None:
    """The whole job. Raises HonmaruError for what the caller can fix."""
    wanted = Hyperparameters.parse(layout.hyperparameters())
    if len(layout.hosts()) > 1:
        raise ValidationFault(f"honmaru-lm trains on one instance; InstanceCount is {len(layout.hosts())}")
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))

    began = time.monotonic()
    corpus = read_corpus(
        layout.files("training"), layout.channel("training"), held_out=wanted.held_out, seed=wanted.seed
    )
    say(
        f"corpus: {corpus.characters} characters, {len(corpus.training)} documents to train on, "
        f"{len(corpus.held_out)} held out"
    )
    from honmaru.workloads.language_model.examples import encode
    from honmaru.workloads.language_model.tokenizer import END, PAD, token_bytes, train_tokenizer

    tokenizer = train_tokenizer(corpus.training, wanted.vocab_size, wanted.seed)
    training = encode(tokenizer, corpus.training, conversations=True, seed=wanted.seed)
    held_out = encode(tokenizer, corpus.held_out, conversations=False, seed=wanted.seed)
    say(
        f"tokenizer: {tokenizer.get_vocab_size()} tokens; training {len(training)} tokens, held out {len(held_out)}; "
        f"prepared in {time.monotonic() - began:.1f} s"
    )
    from honmaru.workloads.language_model.training import Trainer, build_model

    model = build_model(wanted, tokenizer.get_vocab_size(), tokenizer.token_to_id(END), tokenizer.token_to_id(PAD))
    lengths = token_bytes(tokenizer)
    trainer = Trainer(wanted, model, training, held_out, lengths, layout.checkpoints, say, lambda: bool(stopped))
    device = trainer.device
    say(
        f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device.name}, "
        f"{device.precision}, {device.threads} threads{', compiled' if device.compiled else ''}"
    )
    outcome = trainer.run()
    write_model(layout.model, model, tokenizer, wanted)
    summary = {
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "train_loss": outcome.train_loss,
        "held_out_loss": outcome.held_out_loss,
        "bits_per_byte": outcome.bits_per_byte,
        "tokens_per_second": outcome.tokens_per_second,
        "device": device.name,
        "precision": device.precision,
        "stopped_early": bool(stopped),
    }
    (layout.model / "training_metrics.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    say(f"model written; validation:bits_per_byte={outcome.bits_per_byte:.4f}")


def keep_memory() -> None:
    """Tell glibc to reuse freed memory: giving 30 MB back to the kernel each step cost a quarter of the time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 1 << 30), (_M_TOP_PAD, 128 << 20)):
            libc.mallopt(parameter, value)
    except OSError:
        return  # another C library: slower, and as right


def main() -> int:
    """Run the job; the exit code is 0, or 1 with the reason in output/failure."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Threads that spin at OpenMP's barriers cost a factor of 3 to 5 as soon as anything else wants a core (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()
    layout = Layout.from_environment()
    try:
        train(layout)
    except (HonmaruError, FloatingPointError, MemoryError, OSError) as fault:
        reason = f"{type(fault).__name__}: {fault}"
        layout.fail(reason)
        print(reason, file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
