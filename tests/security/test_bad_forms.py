"""Browser forms and their policies from whoever likes: only refusals, in bounded memory, however the bytes are cut."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honmaru.core.errors import RequestFault
from honmaru.gateway.aws import forms
from honmaru.gateway.aws.forms import FilePayload, FormHead, boundary_of
from honmaru.gateway.aws.post_policy import SizeRange, read_policy

NOW = datetime(2030, 1, 1, tzinfo=UTC)
_MARKS = (b"--B", b"\r\n", b"--", b"\r\n--B\r\n", b"\r\n--B--\r\n", b"\r\n\r\n", b":", b'"', b";", b"\xff", b"\0")
_HEADERS = (b'Content-Disposition: form-data; name="file"', b'content-disposition: form-data; name="k"')
PIECES = st.lists(st.sampled_from([*_MARKS, *_HEADERS, b"x", b"a" * 600]), max_size=40)


@given(PIECES, st.integers(1, 64))
def test_any_bytes_are_a_form_or_refused(pieces: list[bytes], size: int) -> None:
    body = b"".join(pieces)
    head = FormHead(b"B")
    try:
        for at in range(0, len(body), size):
            if head.feed(body[at : at + size]):
                break
            assert len(head._buffer) <= forms._MAX_BEFORE + size
        else:
            head.finish()
    except RequestFault:
        return
    payload = FilePayload(head.delimiter, SizeRange(0, 100))
    try:
        out = payload.feed(head.rest) + payload.feed(body[at + size :])
        payload.finish()
    except RequestFault:
        return
    assert len(out) <= 100 and b"\r\n--B" not in out


@given(st.binary(max_size=2000), st.integers(1, 200))
def test_a_file_comes_out_as_it_went_in(content: bytes, size: int) -> None:
    if b"\r\n--B" in content:
        return
    payload = FilePayload(b"\r\n--B", None)
    wire = content + b"\r\n--B--\r\n"
    out = b"".join(payload.feed(wire[at : at + size]) for at in range(0, len(wire), size))
    payload.finish()
    assert out == content


def test_a_form_without_an_end_to_its_fields_is_cut_off() -> None:
    head = FormHead(b"B")
    head.feed(b'--B\r\nContent-Disposition: form-data; name="k"\r\n\r\n')
    with pytest.raises(RequestFault, match="preceding the upload file were too large"):
        for _ in range(64):
            head.feed(b"x" * 1000)


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_any_content_type_has_a_boundary_or_is_refused(text: str) -> None:
    with suppress(RequestFault):
        assert boundary_of(f"multipart/form-data; {text}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
CONDITION = st.lists(
    st.sampled_from(
        ["eq", "starts-with", "content-length-range", "$key", "k", "", 0, -1, 10**30, "10", None, True, 1.5]
    ),
    max_size=4,
) | st.dictionaries(st.sampled_from(["key", "bucket", "$x"]), st.sampled_from(["k", "", 7, None]), max_size=2)


@given(
    JSON
    | st.fixed_dictionaries(
        {"expiration": JSON | st.just("2031-01-01T00:00:00Z"), "conditions": st.lists(CONDITION | JSON)}
    )
)
def test_any_policy_is_read_and_asked_or_refused(value: object) -> None:
    with suppress(RequestFault):
        read_policy(json.dumps(value).encode()).check({"key": "k", "content-type": "a,b"}, "bucket", NOW)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_policy_or_refused(raw: bytes) -> None:
    with pytest.raises(RequestFault, match="Invalid Policy"):
        read_policy(raw)


def test_a_deep_policy_does_no_harm() -> None:
    for raw in (b"[" * 200_000, b'{"conditions":' + b"[" * 100_000):
        with pytest.raises(RequestFault, match="Invalid Policy"):
            read_policy(raw)
