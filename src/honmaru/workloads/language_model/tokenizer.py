"""The tokenizer: byte-level BPE, its special tokens and the chat template.

Invariants:
- Every string round-trips: byte-level BPE has no unknown token.
- Text never becomes a special token: input is encoded with the special tokens disabled as text.

Source: tokenizers' ByteLevel pre-tokenizer (GPT-2 byte alphabet).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL_TOKENS = (END, USER, ASSISTANT, PAD)
SAMPLE_CHARACTERS = 4_000_000

# A system text has no token of its own: it goes before the user's first words.
CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = ns.system + message['content'] + '\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '<|user|>' + ns.system + message['content'] -}}{%- set ns.system = '' -%}"
    "{%- else -%}{{- '<|assistant|>' + message['content'] + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Sequence[str], vocab_size: int, seed: int) -> Any:
    """Train on at most SAMPLE_CHARACTERS of the texts, taken at random. The vocabulary may come out smaller."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = list(texts)
    random.Random(seed).shuffle(sample)  # noqa: S311 - a sample, not a secret
    total = 0
    for count, text in enumerate(sample):
        total += len(text)
        if total > SAMPLE_CHARACTERS:
            sample = sample[: count + 1]
            break
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def token_bytes(tokenizer: Any) -> list[int]:
    """How many bytes of text each token stands for; special tokens stand for none."""
    lengths = [0] * tokenizer.get_vocab_size()
    for text, number in tokenizer.get_vocab().items():
        # In the byte-level alphabet each character is one byte.
        lengths[number] = 0 if text in SPECIAL_TOKENS else len(text)
    return lengths


def save_tokenizer(tokenizer: Any, directory: Path, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers, vLLM and OpenVINO load them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "eos_token": END,
        "bos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
