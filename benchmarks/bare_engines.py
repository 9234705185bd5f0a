"""The engines without honmaru: tokens per second of one model at a number of concurrent requests.

python benchmarks/bare_engines.py ENGINE MODEL_DIRECTORY CONCURRENT TOKENS ROUNDS THREADS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

PROMPT = "The inner keep holds what matters. " * 6


def openvino(model: Path, concurrent: int, tokens: int, rounds: int, threads: int) -> float:
    import numpy
    import openvino
    import openvino_genai
    from tokenizers import Tokenizer

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.dynamic_split_fuse = 1, 64, True
    properties = {"INFERENCE_NUM_THREADS": threads}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(model / "model.gguf"), scheduler, "CPU", properties)
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(PROMPT).ids
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.apply_chat_template = tokens, True, False
    written, begun = 0, 0.0
    for number in range(rounds + 1):
        if number == 1:
            written, begun = 0, time.perf_counter()
        handles = [
            pipeline.add_request(number * 1000 + one, openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config)
            for one in range(concurrent)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for handle in handles:
                if handle.can_read():
                    written += sum(len(output.generated_ids) for output in handle.read().values())
    return written / (time.perf_counter() - begun)


def transformers(model: Path, concurrent: int, tokens: int, rounds: int, threads: int) -> float:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16, local_files_only=True).eval()
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(PROMPT).ids
    batch = torch.tensor([ids] * concurrent)
    begun = 0.0
    with torch.inference_mode():
        for number in range(rounds + 1):
            if number == 1:
                begun = time.perf_counter()
            length = tokens if number else 4
            loaded.generate(
                batch, attention_mask=torch.ones_like(batch), max_new_tokens=length, min_new_tokens=length,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
    return rounds * concurrent * tokens / (time.perf_counter() - begun)


if __name__ == "__main__":
    engine = {"openvino": openvino, "transformers": transformers}[sys.argv[1]]
    concurrent, tokens, rounds, threads = map(int, sys.argv[3:])
    print(json.dumps(engine(Path(sys.argv[2]), concurrent, tokens, rounds, threads)))
