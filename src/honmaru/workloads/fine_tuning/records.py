"""Bedrock's training records, JSONL, as token ids with a mask of what is learned.

    {"prompt": ..., "completion": ...}                       one turn; the completion is learned
    {"messages": [...], "system": [...]} (bedrock-conversation-2024)   every answer of the assistant is learned
    {"input": ...}                                            continued pre-training; everything is learned

Invariants:
- A record that is wrong ends the job with its file and line; none is passed over silently.
- What a record says never becomes a special token.
- A prompt is laid out exactly as the model server lays it out, so what was learned is what is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.workloads.server.text import Vocabulary

FINE_TUNING, PRE_TRAINING = "FINE_TUNING", "CONTINUED_PRE_TRAINING"
MAX_RECORDS = 100_000


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and for each whether it is to be predicted."""

    ids: list[int]
    learned: list[bool]


def read(files: Iterable[Path], vocabulary: Vocabulary, kind: str) -> list[Example]:
    """Every record of a channel. Raises ValidationFault."""
    examples: list[Example] = []
    for path in files:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                raise ValidationFault(f"{where} is not JSON") from None
            if not isinstance(record, dict):
                raise ValidationFault(f"{where} is not an object")
            examples += (
                _pre_training(record, where, vocabulary)
                if kind == PRE_TRAINING
                else [_fine_tuning(record, where, vocabulary)]
            )
            if len(examples) > MAX_RECORDS:
                raise ValidationFault(f"more than {MAX_RECORDS} records")
    if not examples:
        raise ValidationFault("the training data holds no record")
    return examples


def _pre_training(record: Mapping[str, Any], where: str, vocabulary: Vocabulary) -> list[Example]:
    text = record.get("input")
    if not isinstance(text, str) or not text.strip():
        raise ValidationFault(f'{where} must be {{"input": text}}')
    ids = [*vocabulary.encode_text(text), *_end(vocabulary)]
    size = vocabulary.context
    return [Example(ids[at : at + size], [True] * len(ids[at : at + size])) for at in range(0, len(ids), size)]


def _fine_tuning(record: Mapping[str, Any], where: str, vocabulary: Vocabulary) -> Example:
    if "messages" in record:
        messages = _turns(record, where)
    elif isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        messages = [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        ]
    else:
        raise ValidationFault(f'{where} must be {{"prompt": text, "completion": text}} or a conversation')
    example = _conversation(messages, vocabulary)
    if len(example.ids) > vocabulary.context:
        raise ValidationFault(f"{where} has {len(example.ids)} tokens; the model's context is {vocabulary.context}")
    return example


def _turns(record: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    try:
        system = "\n".join(str(block["text"]) for block in record.get("system") or ())
        turns = [
            {"role": one["role"], "content": "\n".join(str(block["text"]) for block in one["content"])}
            for one in record["messages"]
        ]
    except (KeyError, TypeError):
        raise ValidationFault(f"{where} is no conversation of texts") from None
    roles = [turn["role"] for turn in turns]
    if not turns or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValidationFault(f"{where}: a conversation alternates between user and assistant and ends with assistant")
    return [{"role": "system", "content": system}, *turns] if system else turns


def _conversation(messages: list[dict[str, str]], vocabulary: Vocabulary) -> Example:
    ids: list[int] = []
    learned: list[bool] = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if vocabulary.converses:
            asked = vocabulary.encode_messages(messages[:at])
        else:
            asked = vocabulary.encode_text("\n".join(one["content"] for one in messages[:at]))
        # The turns before this one are laid out anew, as the server will do when it is asked.
        asked = asked[len(ids) :] if asked[: len(ids)] == ids else asked
        said = [*vocabulary.encode_text(message["content"]), *_end(vocabulary)]
        ids += [*asked, *said]
        learned += [False] * len(asked) + [True] * len(said)
    return Example(ids, learned)


def _end(vocabulary: Vocabulary) -> list[int]:
    return [min(vocabulary.end_tokens)] if vocabulary.end_tokens else []
