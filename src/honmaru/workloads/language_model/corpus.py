"""From files to documents: reading, splitting, and the held-out part.

Invariants:
- Bytes that are not UTF-8, or a NUL, are refused with the file's name and offset; nothing is replaced silently.
- The held-out documents are never trained on, and the split depends on the seed only.
- A document longer than `LONG` characters is cut (at paragraphs, lines, anywhere), so no single file is all of a split.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from honmaru.core.errors import ValidationFault

LONG = 3000
MINIMUM_CHARACTERS = 2000
_BORDER = re.compile(r"\f|\n[ \t]*\n[ \t]*\n+")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True, slots=True)
class Corpus:
    training: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def characters(self) -> int:
        return sum(map(len, self.training)) + sum(map(len, self.held_out))


def read_text(path: Path, name: str) -> str:
    """A file's text without a byte-order mark. Raises ValidationFault naming the file and the offset of the fault."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValidationFault(
            f"{name} is not UTF-8 text: byte {data[fault.start]:#04x} at offset {fault.start}; "
            "convert it (for example with iconv) or leave it out of the channel"
        ) from None
    if "\0" in text:
        raise ValidationFault(f"{name} is not text: it holds NUL characters; leave it out of the channel")
    return text.replace("\r\n", "\n")


def documents(text: str) -> list[str]:
    """Cut a text at form feeds and runs of two or more empty lines, then long pieces at paragraphs, lines, anywhere."""
    result: list[str] = []
    for piece in _BORDER.split(text):
        part = ""
        for separator, paragraph in _paragraphs(piece.strip()):
            if part and len(part) + len(paragraph) > LONG:
                result.append(part)
                part = ""
            part = f"{part}{separator}{paragraph}" if part else paragraph
        if part.strip():
            result.append(part)
    return result


def _paragraphs(piece: str) -> Iterator[tuple[str, str]]:
    """(what stood before it, text) of each paragraph; of one that is too long, of its lines, cut where they are too."""
    for paragraph in _PARAGRAPH.split(piece):
        if len(paragraph) <= LONG:
            yield "\n\n", paragraph
            continue
        separator = "\n\n"
        for line in paragraph.split("\n"):
            for start in range(0, max(len(line), 1), LONG):
                yield (separator if start == 0 else ""), line[start : start + LONG]
            separator = "\n"


def read_corpus(files: Iterable[Path], directory: Path, *, held_out: float, seed: int) -> Corpus:
    """Read every file of a channel and split: the tail of the shuffled documents is held out.

    Raises ValidationFault for text that is not UTF-8 and for too little of it.
    """
    found: list[str] = []
    count = 0
    for path in files:
        count += 1
        found += documents(read_text(path, str(path.relative_to(directory))))
    total = sum(map(len, found))
    if total < MINIMUM_CHARACTERS or len(found) < 2:
        raise ValidationFault(
            f"too little text: {total} characters in {len(found)} documents from {count} files; "
            f"at least {MINIMUM_CHARACTERS} characters in 2 documents are needed"
        )
    random.Random(seed).shuffle(found)  # noqa: S311 - a split, not a secret
    wanted, tail = held_out * total, 0
    cut = len(found)
    while cut > 1 and tail < wanted:
        cut -= 1
        tail += len(found[cut])
    return Corpus(tuple(found[:cut]), tuple(found[cut:]))
