"""From documents to token windows: what one training step sees.

Half of the training documents are laid out as a conversation (their opening as the user's words, the rest as the
answer), so that the chat template's tokens mean something to the model: asked about a topic, it continues in the
register of the text. The held-out documents stay plain.

Invariant: the windows of step n depend on the seed and n only, so a resumed run sees what the first would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from honmaru.workloads.language_model.tokenizer import ASSISTANT, END, USER

_OPENING = 200


def split_opening(document: str) -> tuple[str, str] | None:
    """The first line (or sentence of at most _OPENING characters) and the rest; None when there is no rest."""
    end = document.find("\n")
    if not 0 < end <= _OPENING:
        end = document.find(". ", 0, _OPENING) + 1
    if end <= 0 or not document[end:].strip():
        return None
    return document[:end].strip(), document[end:].lstrip("\n")


def encode(tokenizer: Any, documents: Sequence[str], *, conversations: bool, seed: int) -> Any:
    """All documents as one array of token ids, each ended by END. Text is never read as a special token."""
    import numpy

    generator = random.Random(seed)  # noqa: S311 - a layout, not a secret
    end, user, assistant = (tokenizer.token_to_id(token) for token in (END, USER, ASSISTANT))
    pieces: list[str] = []
    layout: list[bool] = []
    for document in documents:
        parts = split_opening(document) if conversations and generator.random() < 0.5 else None
        pieces += parts or (document,)
        layout.append(parts is not None)
    tokenizer.encode_special_tokens = True
    encoded = iter([encoding.ids for encoding in tokenizer.encode_batch_fast(pieces)])
    tokenizer.encode_special_tokens = False
    stream: list[int] = []
    for conversation in layout:
        if conversation:
            stream += [user, *next(encoded), assistant, *next(encoded), end]
        else:
            stream += [*next(encoded), end]
    return numpy.array(stream, dtype=numpy.int32)


class Windows:
    """Batches of `batch_size` windows of `context` tokens, each epoch in a new order and at a new phase."""

    def __init__(self, tokens: Any, context: int, batch_size: int, seed: int) -> None:
        import numpy

        if len(tokens) < context + 1:
            tokens = numpy.resize(tokens, context + 1)
        self._tokens, self._context, self._batch, self._seed = tokens, context, batch_size, seed
        self._per_epoch = max(1, (len(tokens) - context) // context)
        self._epoch = -1
        self._starts: Any = None

    @property
    def epoch_steps(self) -> float:
        return self._per_epoch / self._batch

    def batch(self, step: int) -> Any:
        """The array [batch_size, context] of step `step`."""
        import numpy

        return numpy.stack([self._window(step * self._batch + row) for row in range(self._batch)])

    def _window(self, number: int) -> Any:
        import numpy

        epoch, index = divmod(number, self._per_epoch)
        if epoch != self._epoch:
            generator = numpy.random.default_rng([self._seed, epoch])
            phase = int(generator.integers(0, min(self._context, len(self._tokens) - self._context) + 1))
            last = len(self._tokens) - self._context
            self._starts = generator.permutation(
                numpy.minimum(numpy.arange(self._per_epoch) * self._context + phase, last)
            )
            self._epoch = epoch
        start = int(self._starts[index])
        return self._tokens[start : start + self._context]
