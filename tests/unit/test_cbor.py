"""CBOR: what botocore writes is read, what we write botocore reads, and everything else is refused."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta

import botocore.model
import botocore.parsers
import botocore.serialize
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from honmaru.api import cbor, cbor_codec
from honmaru.api.misreads import Misread

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# a double holds milliseconds exactly enough for two centuries around the epoch
MOMENTS = st.integers(-(2**42), 2**42).map(lambda ms: EPOCH + timedelta(milliseconds=ms))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=30),
    st.binary(max_size=30),
    MOMENTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=8), inner.filter(lambda item: item is not None), max_size=4),
    ),
    max_leaves=12,
)


def written(value):
    out = bytearray()
    cbor_codec.write_any(out, value)
    return bytes(out)


@settings(max_examples=60)
@given(VALUES)
def test_what_is_written_is_read(value):
    assert cbor.decode(written(value)) == value


@settings(max_examples=40)
@given(VALUES.filter(lambda value: "datetime" not in repr(value)))
def test_botocore_reads_what_is_written(value):
    parser = botocore.parsers.create_parser("smithy-rpc-v2-cbor")
    raw = written(value)
    assert parser.parse_data_item(parser.get_peekable_stream_from_bytes(raw)) == cbor.decode(raw)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 31), st.binary(max_size=6)), max_size=6))
@settings(max_examples=100)
@example([(5, 31, b"\x61a\x01\x61a\x02\xff")])
def test_any_bytes_are_a_value_or_a_misread(parts):
    raw = b"".join(bytes((major << 5 | low,)) + rest for major, low, rest in parts)
    try:
        value = cbor.decode(raw)
    except Misread:
        return
    written(value)


REFUSED = {
    "nothing": b"",
    "two items": b"\x01\x02",
    "cut number": b"\x19\x01",
    "cut text": b"\x65abc",
    "reserved length": b"\x1c",
    "length beyond the body": b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    "map length beyond the body": b"\xbb\x00\x00\x00\xff\xff\xff\xff\xff\xa0",
    "text length beyond the body": b"\x7b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "not UTF-8": b"\x62\xc3\x28",
    "surrogate": b"\x63\xed\xa0\x80",
    "duplicate keys": b"\xa2\x61a\x01\x61a\x02",
    "duplicate keys, indefinite": b"\xbf\x61a\x01\x61a\x02\xff",
    "number as key": b"\xa1\x01\x02",
    "bytes as key": b"\xa1\x41a\x02",
    "date as text (tag 0)": b"\xc0\x74" + b"2013-03-21T20:04:00Z",
    "bignum (tag 2)": b"\xc2\x41\x01",
    "self-described (tag 55799)": b"\xd9\xd9\xf7\x01",
    "tagged tag": b"\xc1\xc1\x00",
    "tagged text": b"\xc1\x61a",
    "time out of range": b"\xc1\xfb" + struct.pack(">d", 1e300),
    "time that is no number": b"\xc1\xfb" + struct.pack(">d", math.nan),
    "break alone": b"\xff",
    "no break": b"\x9f\x01",
    "break in a definite list": b"\x82\x01\xff",
    "value without key": b"\xbf\x61a\xff",
    "mixed pieces": b"\x7f\x41a\xff",
    "piece of indefinite length": b"\x7f\x7f\x61a\xff\xff",
    "character split over pieces": b"\x7f\x61\xc3\x61\xa9\xff",
    "unknown simple value": b"\xf0",
    "simple value in a byte": b"\xf8\x20",
    "too deep": b"\x81" * 200 + b"\x01",
    "too deep, tags": b"\xc1" * 200 + b"\x01",
    "too deep, maps": b"\xa1\x61a" * 200 + b"\x01",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_protocol_does_not_have_is_refused(name):
    with pytest.raises(Misread):
        cbor.decode(REFUSED[name])


def test_what_the_protocol_has_is_read():
    assert cbor.decode(b"\x9f\x01\x9f\xff\xbf\x61a\xf6\xff\xff") == [1, [], {"a": None}]
    assert cbor.decode(b"\x7f\x61a\x60\x61b\xff") == "ab"
    assert cbor.decode(b"\x5f\x41a\x41b\xff") == b"ab"
    assert cbor.decode(b"\xf7") is None  # undefined
    assert cbor.decode(b"\xf9\x3c\x00") == 1.0  # half precision
    assert cbor.decode(b"\x3b" + b"\xff" * 8) == -(2**64)
    assert cbor.decode(b"\xc1\xf9\x3c\x00") == EPOCH + timedelta(seconds=1)
    assert cbor.decode(b"\x81" * 100 + b"\x01") is not None


def test_the_number_of_items_is_bounded(monkeypatch):
    monkeypatch.setattr(cbor, "MAX_ITEMS", 50)
    assert cbor.decode(b"\x98\x31" + b"\x01" * 49) == [1] * 49
    for raw in (b"\x98\x32" + b"\x01" * 50, b"\x7f" + b"\x60" * 60 + b"\xff"):
        with pytest.raises(Misread, match=r"at most|pieces"):
            cbor.decode(raw)


def test_types_of_members(tmp_path):
    from honmaru.api.models import ServiceModels

    service = ServiceModels(tmp_path, ("cloudwatch",))["cloudwatch"]
    read = cbor_codec.reader(service, {"shape": "MetricDatum"})
    good = {"MetricName": "m", "Value": 1, "Timestamp": EPOCH, "StorageResolution": 1, "Dimensions": None}
    assert read(good) == {"MetricName": "m", "Value": 1.0, "Timestamp": EPOCH, "StorageResolution": 1}
    for member, value in (
        ("MetricName", b"m"),
        ("MetricName", 1),
        ("Value", "1"),
        ("Value", True),
        ("Timestamp", 0),
        ("Timestamp", "1970-01-01T00:00:00Z"),
        ("StorageResolution", 1.0),
        ("StorageResolution", 2**31),
        ("Dimensions", {}),
        ("Dimensions", [None]),
        ("Unknown", 1),
    ):
        with pytest.raises(Misread):
            read({"MetricName": "m", member: value})
