"""Strict reading of safetensors headers, the only form in which weights enter the enclave.

Layout: 8 bytes little-endian header length N, N bytes JSON, then one data buffer. JSON maps each tensor name to
{"dtype", "shape", "data_offsets": [begin, end]}; "__metadata__" maps strings to strings.

Invariants:
- A header is accepted only if every byte of the data buffer belongs to exactly one tensor: no hole, no overlap,
  nothing beyond the end of the file, nothing missing (truncation).
- The length of each tensor equals its shape times the size of its dtype.
- Nothing is executed, and memory use is bounded by the header limit, whatever the bytes are; every malformed input
  raises ValidationFault and nothing else.
- What looks like a pickle, a zip (torch.save) or another executable format is named as such in the refusal.

Source: the format's specification in the README of github.com/huggingface/safetensors; the limits are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from honmaru.core.errors import ValidationFault

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 16
_MAX_INTEGER = 1 << 53

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

_FOREIGN = (
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"PK\x03\x04", "a zip archive (torch.save)"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "an executable"),
    (b"\x1f\x8b", "a gzip archive"),
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `begin` and `end` are offsets in the file, not in the data buffer."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A verified header. `tensors` are in file order by offset."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    header_bytes: int


def foreign_format(first_bytes: bytes) -> str | None:
    """What a file really is when its first bytes are those of a format that is never accepted as weights."""
    for magic, name in _FOREIGN:
        if first_bytes.startswith(magic):
            return name
    return None


def read_header(stream: BinaryIO, size: int, *, name: str = "file") -> Header:
    """Read and verify the header of a safetensors file of `size` bytes from the start of `stream`.

    Raises ValidationFault, with the file's name and the reason, for anything that is not exactly right.
    """
    first = stream.read(8)
    foreign = foreign_format(first)
    if foreign:
        raise _refused(name, f"this is {foreign}, expected safetensors")
    if len(first) < 8 or size < 10:
        raise _refused(name, f"{size} bytes are too few for a header")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise _refused(name, f"the header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
    if length < 2 or 8 + length > size:
        raise _refused(name, f"the header claims {length} bytes and the file has {size}: truncated or not safetensors")
    text = stream.read(length)
    if len(text) != length:
        raise _refused(name, "the file ends within its header")
    return _verify(_decode(text, name), 8 + length, size, name)


def _refused(name: str, reason: str) -> ValidationFault:
    return ValidationFault(f"{name} is not an acceptable safetensors file: {reason}")


def _decode(text: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    if not text.startswith(b"{"):
        raise _refused(name, "the header does not start with '{'")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as fault:
        raise _refused(name, f"the header is not strict JSON ({str(fault)[:100]})") from None
    if not isinstance(header, dict):
        raise _refused(name, "the header is not a JSON object")
    return header


def _integer(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INTEGER


def _verify(header: dict[str, Any], data_start: int, size: int, name: str) -> Header:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(name, "__metadata__ must map strings to strings")
    if len(header) > MAX_TENSORS:
        raise _refused(name, f"{len(header)} tensors; the limit is {MAX_TENSORS}")
    tensors = [_tensor(key, entry, data_start, name) for key, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    position = data_start
    for tensor in tensors:
        if tensor.begin != position:
            fault = "overlaps the one before it" if tensor.begin < position else "leaves a hole before it"
            raise _refused(name, f"tensor {tensor.name[:200]!r} {fault}")
        position = tensor.end
    if position != size:
        fault = "truncated" if position > size else "bytes after the last tensor"
        raise _refused(name, f"the tensors end at byte {position} and the file at {size}: {fault}")
    return Header({tensor.name: tensor for tensor in tensors}, metadata, data_start)


def _tensor(key: str, entry: Any, data_start: int, name: str) -> Tensor:
    def refused(reason: str) -> ValidationFault:
        return _refused(name, f"tensor {key[:200]!r} {reason}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refused("must have exactly the members dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise refused(f"has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_integer(n) for n in shape):
        raise refused("has a malformed shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_integer(n) for n in offsets):
        raise refused("has malformed data_offsets")
    begin, end = offsets
    if begin > end:
        raise refused("ends before it begins")
    length = DTYPE_BYTES[dtype]
    for dimension in shape:
        length *= dimension
    if length != end - begin:
        raise refused(f"holds {end - begin} bytes; its shape and dtype need {length}")
    return Tensor(key, dtype, tuple(shape), data_start + begin, data_start + end)
