"""The invariants of core/safetensors.py."""

from __future__ import annotations

import io
import json
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.core.errors import ValidationFault
from honmaru.core.safetensors import DTYPE_BYTES, Header, read_header


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(content: bytes) -> Header:
    return read_header(io.BytesIO(content), len(content), name="w.safetensors")


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TWO = {"a": entry("F32", [2, 2], 0, 16), "b": entry("U8", [3], 16, 19), "__metadata__": {"format": "pt"}}
GOOD = file(TWO, bytes(19))

tensors = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 4), max_size=3)), min_size=0, max_size=6
)


@given(tensors)
def test_every_well_formed_file_is_accepted_as_it_is(wanted: list[tuple[str, list[int]]]) -> None:
    header, position = {}, 0
    for number, (dtype, shape) in enumerate(wanted):
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        header[f"t{number}"] = entry(dtype, shape, position, position + size)
        position += size
    result = read(file(header, bytes(position)))
    assert {name: (t.dtype, list(t.shape)) for name, t in result.tensors.items()} == {
        f"t{number}": pair for number, pair in enumerate(wanted)
    }
    assert sum(t.end - t.begin for t in result.tensors.values()) == position


def test_what_the_real_library_writes_is_read_the_same() -> None:
    import numpy
    from safetensors.numpy import save

    content = save({"x": numpy.ones((3, 5), numpy.float16), "y": numpy.zeros((), numpy.int64)}, {"format": "pt"})
    header = read(content)
    assert header.tensors["x"].shape == (3, 5)
    assert header.tensors["y"].dtype == "I64"
    assert header.metadata == {"format": "pt"}
    x = header.tensors["x"]
    assert content[x.begin : x.end] == numpy.ones((3, 5), numpy.float16).tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too few"),
        (GOOD[:-1], "truncated"),
        (GOOD[:30], "truncated"),
        (GOOD + b"x", "after the last tensor"),
        (file({"a": entry("F32", [2, 2], 0, 16), "b": entry("U8", [8], 12, 20)}, bytes(20)), "overlaps"),
        (file({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)}, bytes(9)), "hole"),
        (file({"a": entry("F32", [2, 2], 0, 8)}, bytes(8)), "need 16"),
        (file({"a": entry("F99", [1], 0, 4)}, bytes(4)), "dtype"),
        (file({"a": entry("U8", [-1], 0, 0)}), "shape"),
        (file({"a": entry("U8", [True], 0, 1)}, b"x"), "shape"),
        (file({"a": entry("U8", [1.0], 0, 1)}, b"x"), "shape"),  # type: ignore[list-item]
        (file({"a": entry("U8", [2], 4, 2)}, bytes(4)), "before it begins"),
        (file({"a": entry("U8", [1 << 60], 0, 1 << 60)}), "shape"),
        (file({"a": {**entry("U8", [1], 0, 1), "extra": 1}}, b"x"), "exactly"),
        (file({"a": [1]}), "exactly"),
        (file({"__metadata__": {"a": 1}}), "strings"),
        (file(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"x"), "twice"),
        (file(b'{"a": NaN}'), "JSON"),
        (file(b"[]"), "'{'"),
        (file(b'{"\xff": 1}'), "JSON"),
        (file(b'{"a":' + b"[" * 100_000), "JSON"),
        (file(b'{"a":' + b"9" * 10_000 + b"}"), "JSON"),
        (struct.pack("<Q", 1 << 62) + bytes(100), "limit"),
        (pickle.dumps({"weights": [1.0]}), "pickle"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"GGUF" + bytes(100), "GGUF"),
    ],
)
def test_a_file_that_is_not_exactly_right_is_refused_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ValidationFault, match=reason) as caught:
        read(content)
    assert "w.safetensors" in caught.value.message
    assert len(caught.value.message) < 1000


@settings(max_examples=400)
@given(st.data())
def test_random_damage_is_refused_or_changes_no_bytes_of_a_tensor_and_raises_nothing_else(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip":
            content[position] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del content[position:]
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(max_size=9))
        else:
            content += content[position:]
        if not content:
            break
    try:
        header = read(bytes(content))
    except ValidationFault:
        return
    position = header.header_bytes
    for tensor in sorted(header.tensors.values(), key=lambda t: (t.begin, t.end)):
        assert tensor.begin == position
        position = tensor.end
    assert position == len(content)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_a_refusal(content: bytes) -> None:
    try:
        read(content)
    except ValidationFault:
        pass


def test_the_header_limit_bounds_what_is_read() -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return struct.pack("<Q", 1 << 40) if self.taken == 8 else bytes(size)

    stream = Endless()
    with pytest.raises(ValidationFault, match="limit"):
        read_header(stream, 1 << 50)  # type: ignore[arg-type]
    assert stream.taken == 8
