"""The engine for models that GGUF cannot hold: transformers, one thread, one token per request in turn."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from honmaru.workloads.server.engine import Chance, Emit, Sampling
from honmaru.workloads.server.loops import start_loop

MAX_RUNNING = 8


@dataclass(slots=True)
class _Request:
    number: int
    ids: Sequence[int]
    sampling: Sampling
    emit: Emit
    cache: Any = None
    generator: Any = None
    produced: int = 0
    last: int = -1
    written: dict[int, int] = field(default_factory=dict)


class TorchEngine:
    """Serves a Hugging Face model directory. Only safetensors are read; no code from the directory is run."""

    name = "transformers"
    features = frozenset({"logit_bias", "logprobs", "top_logprobs"})

    def __init__(self, directory: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModelForCausalLM.from_pretrained(
            str(directory), use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype=torch.float32
        )
        self._model.to(self._device).eval()
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[_Request | int | None] = queue.SimpleQueue()
        self._requests: dict[int, _Request] = {}
        self._thread = start_loop(self._loop, "torch-step")

    def submit(self, ids: Sequence[int], sampling: Sampling, emit: Emit) -> int:
        number = next(self._numbers)
        self._inbox.put(_Request(number, ids, sampling, emit))
        return number

    def cancel(self, number: int) -> None:
        self._inbox.put(number)

    def active(self) -> int:
        return len(self._requests) + self._inbox.qsize()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        import torch

        with torch.inference_mode():
            while True:
                try:
                    message = self._inbox.get(block=not self._requests)
                except queue.Empty:
                    for request in list(self._requests.values())[:MAX_RUNNING]:
                        self._advance(request)
                    continue
                if message is None:
                    return
                if isinstance(message, int):
                    self._requests.pop(message, None)
                else:
                    self._requests[message.number] = message

    def _advance(self, request: _Request) -> None:
        import torch

        sampling = request.sampling
        ids = [request.last] if request.produced else list(request.ids)
        try:
            output = self._model(
                input_ids=torch.tensor([ids], device=self._device), past_key_values=request.cache, use_cache=True
            )
        except RuntimeError as fault:
            self._requests.pop(request.number, None)
            request.emit((), f"error: the engine failed: {str(fault)[:200]}")
            return
        request.cache = output.past_key_values
        logits = output.logits[0, -1].float().cpu()
        request.last = self._choose(_shaped(logits, request), request)
        request.written[request.last] = request.written.get(request.last, 0) + 1
        request.produced += 1
        finish = "stop" if request.last in sampling.end_tokens else None
        if finish is None and request.produced >= sampling.max_tokens:
            finish = "length"
        if finish:
            self._requests.pop(request.number, None)
        chances = () if sampling.logprobs is None else (_chance(logits, request.last, sampling.logprobs),)
        request.emit((request.last,), finish, chances)

    def _choose(self, logits: Any, request: _Request) -> int:
        import torch

        sampling = request.sampling
        if sampling.temperature <= 0:
            return int(logits.argmax())
        if request.generator is None:
            request.generator = torch.Generator().manual_seed(sampling.seed)
        chances, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
        if sampling.top_k:
            chances[sampling.top_k :] = 0
        # Keep the smallest set of likeliest tokens whose chances reach top_p.
        chances[(chances.cumsum(-1) - chances) >= sampling.top_p] = 0
        return int(order[int(torch.multinomial(chances, 1, generator=request.generator))])


def _shaped(logits: Any, request: _Request) -> Any:
    """The logits after bias and penalties, as OpenAI defines them."""
    sampling = request.sampling
    if not (sampling.logit_bias or sampling.frequency_penalty or sampling.presence_penalty):
        return logits
    logits = logits.clone()
    for token, bias in sampling.logit_bias.items():
        if token < len(logits):
            logits[token] += bias
    for token, count in request.written.items():
        logits[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    return logits


def _chance(logits: Any, token: int, alternatives: int) -> Chance:
    import torch

    chances = torch.log_softmax(logits, -1)
    best = chances.topk(alternatives) if alternatives else None
    others = () if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return float(chances[token]), others
