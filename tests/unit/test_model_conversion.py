"""workloads/convert.py: the GGUF file computes what the safetensors compute, or there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from honmaru.core.errors import ValidationFault
from honmaru.testing.tiny_models import tiny_llama
from honmaru.workloads.convert import Inconvertible, Weights, convert


def worst_choice(directory: Path, prompt: list[int], chosen: list[int]) -> float:
    """By how many standard deviations of the logits a chosen token fell behind the reference's best, at most.

    Computed along the chosen tokens, so that one close call does not make all that follows incomparable.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
    gaps = (logits.max(-1).values - logits.gather(-1, torch.tensor(chosen)[:, None])[:, 0]) / logits.std(-1)
    return float(gaps.max())


def greedy_engine(gguf: Path, ids: list[int], count: int) -> list[int]:
    from queue import Queue

    from honmaru.workloads.server.engine import Sampling
    from honmaru.workloads.server.engine_openvino import OpenVinoEngine

    engine = OpenVinoEngine(gguf, 1)
    produced: Queue[list[int] | None] = Queue()

    def emit(new: object, finish: str | None, chances: object = ()) -> None:
        produced.put(list(new))  # type: ignore[call-overload]
        if finish:
            produced.put(None)

    engine.submit(ids, Sampling(count, 0.0, 1.0, 0, frozenset()), emit)
    tokens: list[int] = []
    while (new := produced.get(timeout=60)) is not None:
        tokens += new
    engine.close()
    return tokens


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_the_converted_model_says_what_the_original_says(tmp_path: Path, architecture: str) -> None:
    directory = tiny_llama(tmp_path / "model", architecture=architecture)
    convert(directory, tmp_path / "m.gguf")
    for prompt in ([5, 9, 300, 7], [42], list(range(10, 40))):
        assert worst_choice(directory, prompt, greedy_engine(tmp_path / "m.gguf", prompt, 12)) < 0.1


def test_the_comparison_notices_a_wrong_rotary_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny_llama(tmp_path / "model")
    monkeypatch.setattr("honmaru.workloads.convert._permuted", lambda weights, _: weights)
    convert(directory, tmp_path / "m.gguf")
    prompt = list(range(10, 40))
    assert worst_choice(directory, prompt, greedy_engine(tmp_path / "m.gguf", prompt, 12)) > 0.5


def changed(directory: Path, tmp_path: Path, **members: object) -> Path:
    target = tmp_path / "changed"
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | members))
    return target


def test_what_gguf_would_lose_is_not_converted(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    for number, members in enumerate(
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            {"hidden_act": "gelu"},
            {"model_type": "qwen3"},
            {"sliding_window": 32},
        )
    ):
        with pytest.raises(Inconvertible):
            convert(changed(directory, tmp_path / str(number), **members), tmp_path / "m.gguf")


def test_missing_and_doubled_tensors_are_faults_of_the_model(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    with pytest.raises(ValidationFault, match="lack"):
        convert(changed(directory, tmp_path / "more", num_hidden_layers=3), tmp_path / "m.gguf")
    shutil.copy(directory / "model.safetensors", directory / "model-2.safetensors")
    with pytest.raises(ValidationFault, match="and in"):
        Weights(directory)
