"""Real text that every Python carries: pydoc's topics and the docstrings of the standard library (a few MB)."""

from __future__ import annotations

import ast
import importlib
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from honmaru.core.errors import ValidationFault

_MIN_DOCSTRING_CHARACTERS = 60
_MIN_CORPUS_BYTES = 50_000


def documentation() -> bytes:
    """pydoc topics and standard-library docstrings as UTF-8, paragraphs shuffled with a fixed seed."""
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = sorted({*topics.values(), *_docstrings(Path(sysconfig.get_paths()["stdlib"]))})
    random.Random(0).shuffle(texts)  # noqa: S311 - an order, not a secret
    return "\n\n".join(texts).encode()


def _docstrings(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) > _MIN_DOCSTRING_CHARACTERS:
                    yield text


def read_corpus(path: Path | None) -> bytes:
    """The user's own UTF-8 text (a file, or every file of a directory), or the default. Raises ValidationFault."""
    if path is None:
        return documentation()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise ValidationFault(f"{path} holds no files; name a UTF-8 text file or a directory of them")
    parts = []
    for file in files:
        content = file.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as cause:
            raise ValidationFault(
                f"{file} is not UTF-8 text (byte {cause.start}); convert it or leave it out"
            ) from cause
        parts.append(content)
    text = b"\n\n".join(parts)
    if len(text) < _MIN_CORPUS_BYTES:
        raise ValidationFault(f"{path} holds {len(text)} bytes; a language model needs at least {_MIN_CORPUS_BYTES}")
    return text
