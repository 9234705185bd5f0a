"""Embeddings of texts: an encoder of Hugging Face's layout, its last hidden states averaged over the text's tokens.

Invariants:
- The vectors have length 1, and do not depend on what else is embedded at the same time.
- Only safetensors are read; no code from the directory is run.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from honmaru.core.errors import ValidationFault

BATCH = 32


class Embedder:
    """Blocking; one batch at a time."""

    def __init__(self, directory: Path, threads: int) -> None:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModel.from_pretrained(
            str(directory), use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype=torch.float32
        )
        self._model.to(self._device).eval()
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = json.loads((directory / "config.json").read_text("utf-8"))
        self.context = int(config["max_position_embeddings"])
        # RoBERTa counts positions from behind its padding token.
        if str(config.get("model_type", "")).endswith("roberta"):
            self.context -= int(config.get("pad_token_id", 1)) + 1
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """(a vector for each text, tokens of all). Raises ValidationFault for a text that is too long or empty."""
        encoded = [self._tokenizer.encode(text).ids for text in texts]
        for at, ids in enumerate(encoded):
            if not 0 < len(ids) <= self.context:
                raise ValidationFault(f"text {at} has {len(ids)} tokens; between 1 and {self.context} are possible")
        # Texts of one length go together, so none is padded and none changes another's vector.
        order = sorted(range(len(encoded)), key=lambda at: len(encoded[at]))
        vectors: list[list[float]] = [[] for _ in encoded]
        with self._lock:
            while order:
                size = len(encoded[order[0]])
                batch = [at for at in order[:BATCH] if len(encoded[at]) == size]
                order = order[len(batch) :]
                for at, vector in zip(batch, self._batch([encoded[at] for at in batch]), strict=True):
                    vectors[at] = vector
        return vectors, sum(map(len, encoded))

    def _batch(self, ids: list[list[int]]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            inputs = torch.tensor(ids, device=self._device)
            states = self._model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state
            means = torch.nn.functional.normalize(states.mean(1), dim=-1)
        found: list[list[float]] = means.cpu().tolist()
        return found
