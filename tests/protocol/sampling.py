"""Sample values for any shape of a service model: minimal, or with every member, within the model's constraints."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime
from re import _constants as C  # type: ignore[attr-defined]
from re import _parser as P  # type: ignore[attr-defined]

from honmaru.api.corrections import python_pattern

SKIP = object()


def sample(service, reference, *, full):
    """A value for a shape, or SKIP when none is found. With `full`, each structure has all its members once."""
    return _sample(service, reference, full, set(), ())


def _sample(service, reference, full, expanded, path):
    name = reference["shape"]
    shape = service.shapes[name]
    kind = shape["type"]
    if shape.get("document"):
        return {"a": [1, "x", None, {"b": True}]}
    if kind == "structure":
        return _structure(service, name, shape, full, expanded, path)
    if kind == "list":
        count = max(shape.get("min", 0), 1)
        items = [_sample(service, shape["member"], full, expanded, path) for _ in range(count)]
        return SKIP if SKIP in items else items
    if kind == "map":
        key = _sample(service, shape["key"], full, expanded, path)
        value = _sample(service, shape["value"], full, expanded, path)
        if key is SKIP or value is SKIP:
            return SKIP
        return {f"{key}{number or ''}"[:64]: value for number in range(max(shape.get("min", 0), 1))}
    if kind == "string":
        return _text(shape)
    if kind in ("integer", "long"):
        return max(shape.get("min", 1), min(shape.get("max", 7), 7))
    if kind in ("float", "double"):
        return float(max(shape.get("min", 0.25), min(shape.get("max", 0.5), 0.5)))
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert kind == "blob"
    return b"\x00\xffblob" + b"x" * max(0, shape.get("min", 0) - 6)


def _structure(service, name, shape, full, expanded, path):
    if shape.get("eventstream") or path.count(name) > 2:
        return SKIP
    path = (*path, name)
    required = shape.get("required", ())
    if shape.get("union"):
        for member in shape["members"]:
            value = _sample(service, shape["members"][member], full, expanded, path)
            if value is not SKIP:
                return {member: value}
        return SKIP
    every = full and name not in expanded
    expanded.add(name)
    out = {}
    for member, inner in shape["members"].items():
        if member not in required and not every:
            continue
        value = _sample(service, inner, full, expanded, path)
        if value is not SKIP:
            out[member] = value
        elif member in required:
            return SKIP
    if not out and len(path) > 1:  # a form or a flattened list cannot say "an empty structure"
        for member, inner in shape["members"].items():
            value = _sample(service, inner, False, expanded, path)
            if value is not SKIP:
                return {member: value}
    return out


def _text(shape):
    key = (shape.get("pattern"), shape.get("min"), shape.get("max"), str(shape.get("enum")))
    if key not in _TEXTS:
        _TEXTS[key] = _new_text(shape)
    return _TEXTS[key]


_TEXTS = {}


def _new_text(shape):
    if "enum" in shape:
        return shape["enum"][0]
    shortest, longest = shape.get("min", 0), shape.get("max", 1 << 20)
    if "pattern" not in shape:
        return "Aé<&>\"' z"[:longest] if shortest <= 9 and longest >= 1 else "a" * max(1, shortest)
    compiled = python_pattern(shape["pattern"])
    pool = [
        "a",
        "a" * max(1, shortest),
        "ab1",
        "1" * 12,
        "a" * 10,
        "1" * max(1, shortest),
        "arn:aws-us-gov:iam::123456789012:role/x",
        "s3://bucket/key",
        "arn:aws-us-gov:sagemaker:us-gov-west-1:123456789012:model/x",
        "https://a.example/x",
        "/a",
        "1.0",
        "",
    ]
    tree = P.parse(compiled.pattern, compiled.flags)
    generated = (_generate(tree, repeat) for repeat in (1, 2, 0, 8, 16, 32, 64))  # only until one fits
    for text in itertools.chain(pool, generated):
        if shortest <= len(text) <= longest and compiled.fullmatch(text) and text.strip() == text and text:
            return text
    return SKIP


def _generate(tree, repeat):
    out = []
    for op, argument in tree:
        if op is C.LITERAL:
            out.append(chr(argument))
        elif op is C.ANY:
            out.append("a")
        elif op is C.NOT_LITERAL:
            out.append("a" if argument != ord("a") else "b")
        elif op is C.IN:
            out.append(_member(argument))
        elif op in (C.MAX_REPEAT, C.MIN_REPEAT):
            low, high, inner = argument
            out.append("".join(_generate(inner, min(repeat, 4)) for _ in range(max(low, min(int(high), repeat)))))
        elif op is C.SUBPATTERN:
            out.append(_generate(argument[3], repeat))
        elif op is C.BRANCH:
            out.append(_generate(argument[1][repeat % len(argument[1])], repeat))
    return "".join(out)


def _member(items):
    candidates = "a1A-/_.:Z0 b"
    text = []
    negate = False
    for op, argument in items:
        if op is C.NEGATE:
            negate = True
        elif op is C.LITERAL:
            text.append(re.escape(chr(argument)))
        elif op is C.RANGE:
            text.append(f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}")
        elif op is C.CATEGORY:
            text.append(
                {
                    C.CATEGORY_DIGIT: r"\d",
                    C.CATEGORY_WORD: r"\w",
                    C.CATEGORY_SPACE: r"\s",
                    C.CATEGORY_NOT_SPACE: r"\S",
                    C.CATEGORY_NOT_DIGIT: r"\D",
                    C.CATEGORY_NOT_WORD: r"\W",
                }[argument]
            )
    compiled = re.compile(f"[{'^' if negate else ''}{''.join(text)}]", re.ASCII)
    for candidate in candidates:
        if compiled.match(candidate):
            return candidate
    return chr(items[0][1] if items[0][0] is C.LITERAL else items[0][1][0])
