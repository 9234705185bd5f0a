"""honmaru-lm: hyperparameters, corpus, training, resuming, the model directory it writes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from honmaru.core.errors import ValidationFault
from honmaru.core.safetensors import read_header
from honmaru.workloads.language_model.__main__ import main
from honmaru.workloads.language_model.corpus import documents, read_corpus, read_text
from honmaru.workloads.language_model.hyperparameters import Hyperparameters
from honmaru.workloads.language_model.training import rate

PARAGRAPHS = [
    f"Rule {number}. The keep holds record {number * 7 % 31}; a reader of level {number % 4} may look at it.\n"
    f"It was written on day {number} and sealed on day {number + 1}, and the ledger says so."
    for number in range(120)
]
SMALL = {
    "vocab_size": "300", "hidden_size": "32", "layers": "1", "heads": "2", "key_value_heads": "1", "context": "32",
    "batch_size": "4", "warmup_steps": "5", "log_every_seconds": "0", "checkpoint_every_seconds": "0.001",
    "evaluate_every_seconds": "0", "learning_rate": "0.01", "held_out": "0.1", "threads": "1",
}  # fmt: skip


def lay_out(root: Path, text: bytes, **values: str) -> Path:
    (root / "input" / "data" / "training").mkdir(parents=True, exist_ok=True)
    (root / "input" / "config").mkdir(exist_ok=True)
    (root / "input" / "data" / "training" / "a.txt").write_bytes(text)
    (root / "input" / "config" / "hyperparameters.json").write_text(json.dumps(SMALL | values))
    return root


def job(root: Path) -> tuple[int, str]:
    """Run the job in this process: (exit code, standard output)."""
    before = signal.getsignal(signal.SIGTERM)
    output = io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            patch.setenv("HONMARU_ML_ROOT", str(root))
            return main(), output.getvalue()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A job of 20 steps, then the same job resumed to 40."""
    text = "\n\n\n".join(PARAGRAPHS).encode()
    root = lay_out(tmp_path_factory.mktemp("lm"), text, max_steps="20")
    first = job(root)
    assert first[0] == 0, first
    lay_out(root, text, max_steps="40")
    second = job(root)
    assert second[0] == 0, second
    return root, first[1] + second[1]


def test_training_learns_and_its_metrics_can_be_read(trained: tuple[Path, str]) -> None:
    _, output = trained
    losses = [float(value) for value in re.findall(r"train_loss=([0-9.]+)", output)]
    assert losses[-1] < losses[0] - 0.5
    assert re.search(r"tokens_per_second=\d+ progress=[0-9.]+ elapsed_seconds=[0-9.]+", output)
    bits = [float(value) for value in re.findall(r"validation:bits_per_byte=([0-9.]+)", output)]
    assert 0 < bits[-1] < bits[0] < 8


def test_a_job_resumes_from_its_checkpoint(trained: tuple[Path, str]) -> None:
    root, output = trained
    assert "resumed from checkpoint-000000020: step=20" in output
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["checkpoint-000000040"]
    names = sorted(path.name for path in (root / "checkpoints" / "checkpoint-000000040").iterdir())
    assert names == ["progress.json", "state.safetensors"]


def test_the_model_directory_is_what_transformers_loads_and_holds_no_pickle(trained: tuple[Path, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = trained[0] / "model"
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training_metrics.json",
    }  # fmt: skip
    weights = directory / "model.safetensors"
    with weights.open("rb") as stream:
        read_header(stream, weights.stat().st_size)
    model = AutoModelForCausalLM.from_pretrained(str(directory))
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    chat: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rule 5"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Be brief.\nRule 5<|assistant|>"
    odd = "naïve 本丸 \t\r\n ⚔️ \u0000"
    assert tokenizer.decode(tokenizer.encode(odd, add_special_tokens=False)) == odd
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0


def test_reported_bits_per_byte_are_those_of_the_written_model(trained: tuple[Path, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = trained[0]
    directory = root / "model"
    metrics = json.loads((directory / "training_metrics.json").read_text())
    wanted = Hyperparameters.parse(json.loads((root / "input/config/hyperparameters.json").read_text()))
    channel = root / "input" / "data" / "training"
    corpus = read_corpus([channel / "a.txt"], channel, held_out=wanted.held_out, seed=wanted.seed)
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    stream = [token for text in corpus.held_out for token in [*tokenizer.encode(text, add_special_tokens=False), 0]]
    model = AutoModelForCausalLM.from_pretrained(str(directory))
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(stream) - 1, 32):
            window = torch.tensor(stream[start : start + 33])
            logits = model(window[None]).logits[0, :-1]
            nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    size = len("".join(corpus.held_out).encode()) - len(tokenizer.decode(stream[:1]).encode())
    assert nats / math.log(2) / size == pytest.approx(metrics["bits_per_byte"], rel=0.02)


def test_a_checkpoint_of_another_model_is_refused(trained: tuple[Path, str], tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "other"
    shutil.copytree(trained[0], root)
    config = json.loads((root / "input/config/hyperparameters.json").read_text())
    (root / "input/config/hyperparameters.json").write_text(json.dumps(config | {"hidden_size": "48"}))
    assert job(root)[0] == 1
    assert "does not fit" in (root / "output" / "failure").read_text()


def test_sigterm_ends_early_and_still_writes_the_model(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "\n\n\n".join(PARAGRAPHS).encode(), max_seconds="200")
    environment = os.environ | {"HONMARU_ML_ROOT": str(root)}
    command = [sys.executable, "-m", "honmaru.workloads.language_model"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step="):
                break
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 0
    assert time.monotonic() - began < 30
    assert json.loads((root / "model" / "training_metrics.json").read_text())["stopped_early"] is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"fine text " * 500 + b"\xff\xfe", "offset 5000"),
        (b"with a NUL\0" * 500, "NUL"),
        (b"short", "too little text"),
    ],
)
def test_text_that_cannot_be_trained_on_is_refused_with_file_and_place(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    root = lay_out(tmp_path, content)
    channel = root / "input" / "data" / "training"
    with pytest.raises(ValidationFault, match=reason):
        read_corpus([channel / "a.txt"], channel, held_out=0.1, seed=1)


def test_a_byte_order_mark_and_windows_lines_are_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_text(tmp_path / "a", "a") == "one\ntwo"


def test_documents_are_cut_at_borders_and_nothing_is_lost() -> None:
    text = "one\n\ntwo\n\n\nthree\ffour\n\n" + "word " * 2000
    pieces = documents(text)
    assert pieces[:2] == ["one\n\ntwo", "three"]
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_the_held_out_documents_are_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\n\n\n".join(PARAGRAPHS))
    splits = [read_corpus([tmp_path / "a"], tmp_path, held_out=0.1, seed=seed) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        assert not set(split.training) & set(split.held_out)
        assert sorted(split.training + split.held_out) == sorted(PARAGRAPHS)


@pytest.mark.parametrize(
    "values",
    [
        {"layer": "3"}, {"layers": "x"}, {"layers": "0"}, {"hidden_size": "100", "heads": "3"}, {"precision": "int8"},
        {"max_seconds": "-1"}, {"learning_rate": "nan"}, {"heads": "4", "key_value_heads": "3"}, {"compile": "yes"},
    ],
)  # fmt: skip
def test_wrong_hyperparameters_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValidationFault, match=next(iter(values))):
        Hyperparameters.parse(values)


def test_hyperparameters_are_strings_and_the_platforms_are_passed_over() -> None:
    wanted = Hyperparameters.parse({"max_steps": "5", "learning_rate": '"2e-3"', "sagemaker_region": '"x"'})
    assert (wanted.max_steps, wanted.learning_rate, wanted.max_seconds) == (5, 2e-3, 0)
    assert Hyperparameters.parse({}).max_seconds == 95


def test_the_rate_warms_up_holds_and_falls_to_three_percent() -> None:
    wanted = Hyperparameters(learning_rate=1.0, warmup_steps=10)
    assert rate(0.0, 0, wanted) == 0.1
    assert rate(0.3, 50, wanted) == 1.0
    assert rate(0.75, 90, wanted) == pytest.approx(0.515)
    assert rate(1.0, 100, wanted) == pytest.approx(0.03)
