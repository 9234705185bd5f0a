"""The default engine: openvino-genai's continuous batching over a GGUF file.

One thread owns the pipeline and loops its `step`; everything reaches it through a queue.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.workloads.server.engine import Emit, Sampling

CACHE_GIB = 1
MAX_SEQUENCES = 64


@dataclass(slots=True)
class _Request:
    handle: Any
    emit: Emit


@dataclass(frozen=True, slots=True)
class _Submission:
    number: int
    ids: Sequence[int]
    sampling: Sampling
    emit: Emit


@dataclass(frozen=True, slots=True)
class _Cancellation:
    number: int


class OpenVinoEngine:
    """Serves one GGUF model on the CPU with `threads` threads."""

    name = "openvino"

    def __init__(self, gguf: Path, threads: int) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_seqs = MAX_SEQUENCES
        scheduler.dynamic_split_fuse = True
        # A shared prefix cache would tell one caller by timing what another asked.
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(gguf), scheduler, "CPU", properties)
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[_Submission | _Cancellation | None] = queue.SimpleQueue()
        self._requests: dict[int, _Request] = {}
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="openvino-step", daemon=True)
        self._thread.start()

    def submit(self, ids: Sequence[int], sampling: Sampling, emit: Emit) -> int:
        number = next(self._numbers)
        with self._lock:
            self._waiting += 1
        self._inbox.put(_Submission(number, ids, sampling, emit))
        return number

    def cancel(self, number: int) -> None:
        self._inbox.put(_Cancellation(number))

    def active(self) -> int:
        return self._waiting + len(self._requests)

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        while True:
            try:
                message = self._inbox.get(block=not self._requests)
            except queue.Empty:
                self._step()
                continue
            if message is None:
                return
            if isinstance(message, _Cancellation):
                request = self._requests.pop(message.number, None)
                if request is not None:
                    request.handle.cancel()
            else:
                self._admit(message)

    def _admit(self, submission: _Submission) -> None:
        import numpy
        import openvino  # type: ignore[import-untyped]

        ids = openvino.Tensor(numpy.array([submission.ids], dtype=numpy.int64))
        try:
            handle = self._pipeline.add_request(submission.number, ids, _configuration(submission.sampling))
        except RuntimeError as fault:
            submission.emit((), f"error: the engine refused the request: {str(fault)[:200]}")
        else:
            self._requests[submission.number] = _Request(handle, submission.emit)
        with self._lock:
            self._waiting -= 1

    def _step(self) -> None:
        try:
            self._pipeline.step()
        except RuntimeError as fault:
            for request in self._requests.values():
                request.handle.cancel()
                request.emit((), f"error: the engine failed: {str(fault)[:200]}")
            self._requests.clear()
            return
        for number, request in list(self._requests.items()):
            finish = self._read(request)
            if finish:
                del self._requests[number]

    def _read(self, request: _Request) -> bool:
        from openvino_genai import GenerationFinishReason, GenerationStatus

        ended = request.handle.get_status() != GenerationStatus.RUNNING
        if request.handle.can_read():
            for output in request.handle.read().values():
                reason = output.finish_reason
                if reason == GenerationFinishReason.NONE:
                    request.emit(output.generated_ids, None)
                    continue
                request.emit(output.generated_ids, "length" if reason == GenerationFinishReason.LENGTH else "stop")
                return True
        elif ended:
            ignored = request.handle.get_status() == GenerationStatus.IGNORED
            request.emit((), "error: the request does not fit the engine's memory" if ignored else "stop")
            return True
        return False


def _configuration(sampling: Sampling) -> Any:
    import openvino_genai

    configuration = openvino_genai.GenerationConfig()
    configuration.max_new_tokens = sampling.max_tokens
    configuration.do_sample = sampling.temperature > 0
    if sampling.temperature > 0:
        configuration.temperature = sampling.temperature
        configuration.top_p = sampling.top_p
        configuration.rng_seed = sampling.seed
    configuration.stop_token_ids = set(sampling.end_tokens)
    configuration.apply_chat_template = False
    if sampling.end_tokens:
        configuration.eos_token_id = min(sampling.end_tokens)
    return configuration
