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
from honmaru.workloads.server.loops import start_loop
from honmaru.workloads.server.tools import BEGIN, Grammar

CACHE_GIB = 1
MAX_SEQUENCES = 64


@dataclass(slots=True)
class _Request:
    handle: Any
    emit: Emit
    chances: bool


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
    features = frozenset({"grammar", "logprobs"})

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
        self._reasons = openvino_genai.GenerationFinishReason
        self._states = openvino_genai.GenerationStatus
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[_Submission | _Cancellation | None] = queue.SimpleQueue()
        self._requests: dict[int, _Request] = {}
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = start_loop(self._loop, "openvino-step")

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
            chances = submission.sampling.logprobs is not None
            self._requests[submission.number] = _Request(handle, submission.emit, chances)
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
        """Pass on what a request has written; True when it has ended. Only the stepping thread makes it write."""
        reasons, handle = self._reasons, request.handle
        if handle.can_read():
            for output in handle.read().values():
                reason = output.finish_reason
                chances = [(chance, ()) for chance in output.generated_log_probs] if request.chances else ()
                if reason == reasons.NONE:
                    request.emit(output.generated_ids, None, chances)
                    continue
                request.emit(output.generated_ids, "length" if reason == reasons.LENGTH else "stop", chances)
                return True
            return False
        status = handle.get_status()
        if status == self._states.RUNNING:
            return False
        ignored = status == self._states.IGNORED
        request.emit((), "error: the request does not fit the engine's memory" if ignored else "stop")
        return True


def _configuration(sampling: Sampling) -> Any:
    import openvino_genai

    configuration = openvino_genai.GenerationConfig()
    configuration.max_new_tokens = sampling.max_tokens
    configuration.do_sample = sampling.temperature > 0
    if sampling.temperature > 0:
        configuration.temperature = sampling.temperature
        configuration.top_p = sampling.top_p
        configuration.rng_seed = sampling.seed
        if sampling.top_k:
            configuration.top_k = sampling.top_k
    configuration.frequency_penalty = sampling.frequency_penalty
    configuration.presence_penalty = sampling.presence_penalty
    if sampling.logprobs is not None:
        configuration.logprobs = 1
    if sampling.grammar is not None:
        configuration.structured_output_config = _constraint(sampling.grammar)
    configuration.stop_token_ids = set(sampling.end_tokens)
    configuration.apply_chat_template = False
    if sampling.end_tokens:
        configuration.eos_token_id = min(sampling.end_tokens)
    return configuration


def _constraint(grammar: Grammar) -> Any:
    import openvino_genai

    if grammar.schema is not None:
        return openvino_genai.StructuredOutputConfig(json_schema=grammar.schema)
    tags = [
        openvino_genai.StructuralTagItem(begin=begin, schema=schema, end=end) for begin, schema, end in grammar.tags
    ]
    config = openvino_genai.StructuralTagsConfig(structural_tags=tags, triggers=[BEGIN])
    return openvino_genai.StructuredOutputConfig(structural_tags_config=config)
