"""Every parser of untrusted bytes under arbitrary and half-valid input: it answers or raises the fault of its wire,
quickly, in bounded memory. Nothing else ever comes out of it.

Input is random bytes, and valid samples that were cut, doubled, spliced, and sprinkled with what matters to the
grammar. HONMARU_LONG=1 runs a hundred times as many examples.
"""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from honmaru.api import cbor, cbor_codec, eventstreams, json_codec, query_codec, rest_codec, timestamps, xml_codec
from honmaru.api.misreads import Misread
from honmaru.api.models import ServiceModels
from honmaru.core import labels, markings, safetensors
from honmaru.core.errors import IntegrityFault, RequestFault, ValidationFault
from honmaru.gateway.aws import payloads, signatures
from honmaru.gateway.aws.routing import RestRouter, rpc_v2_names
from honmaru.gateway.aws.signatures import SignatureFault

EXAMPLES = 10_000 if os.environ.get("HONMARU_LONG") else 60
SLOWEST_S = 0.5
"""Of CPU, for one small input."""
LARGEST_BYTES = (256 if os.environ.get("HONMARU_LONG") else 48) << 20

fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)


def mutated(samples: list[bytes], words: list[bytes]) -> st.SearchStrategy[bytes]:
    """Samples after up to six cuts, repetitions, insertions and flips; or plain random bytes."""

    @st.composite
    def change(draw: Any) -> bytes:
        raw = bytearray(draw(st.sampled_from(samples)))
        for _ in range(draw(st.integers(0, 6))):
            at = draw(st.integers(0, len(raw)))
            to = min(len(raw), at + draw(st.integers(0, 12)))
            kind = draw(st.integers(0, 4))
            if kind == 0:
                del raw[at:to]
            elif kind == 1:
                raw[at:at] = raw[at:to] * draw(st.integers(1, 4))
            elif kind == 2:
                raw[at:at] = draw(st.sampled_from(words))
            elif kind == 3:
                raw[at:to] = draw(st.binary(max_size=8))
            elif raw:
                raw[at % len(raw)] ^= 1 << draw(st.integers(0, 7))
        return bytes(raw)

    return st.one_of(change(), st.binary(max_size=80))


def survives(parse: Callable[[], Any], *faults: type[Exception]) -> Any:
    """Runs a parser: what it returns, or None after one of its faults. Any other exception fails, and so does a parser
    that is slow twice (once, the collector may have been at work)."""
    took = []
    for _ in range(2):
        begun = time.process_time()
        try:
            value = parse()
        except faults:
            value = None
        took.append(time.process_time() - begun)
        if took[-1] < SLOWEST_S:
            return value
    raise AssertionError(f"slow: {took}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ServiceModels:
    services = ("cloudwatch", "iam", "s3", "sagemaker", "bedrock-runtime", "logs")
    return ServiceModels(tmp_path_factory.mktemp("models"), services)


QUERY = mutated(
    [
        b"Action=CreateUser&Version=2010-05-08&UserName=a&Tags.member.1.Key=k&Tags.member.1.Value=v",
        b"Action=PutMetricData&Namespace=n&MetricData.member.1.Values.member.1=1.5&MetricData.member.1.MetricName=m",
        b"Action=SimulateCustomPolicy&PolicyInputList.member.1=%7B%7D&ActionNames.member.1=s3%3A%2A&ContextEntries=",
    ],
    [b"&", b"=", b".", b"%", b"%ff", b"%00", b"+", b"member", b".1", b".0", b".-1", b".99999999999999999999", b"entry"],
)


@fuzzed
@given(QUERY)
def test_query(models: ServiceModels, body: bytes) -> None:
    flat = survives(lambda: query_codec.fields(body), Misread)
    tree = survives(lambda: query_codec.tree(flat), Misread) if flat else None
    if tree is not None:
        for service, shape in (
            ("iam", "CreateUserRequest"),
            ("iam", "SimulateCustomPolicyRequest"),
            ("cloudwatch", "PutMetricDataInput"),
        ):
            read = query_codec.reader(models[service], {"shape": shape})
            survives(lambda: read(tree), Misread)  # noqa: B023


JSON = mutated(
    [
        b'{"TrainingJobName":"a","HyperParameters":{"k":"v"},"AlgorithmSpecification":{"TrainingInputMode":"File"}}',
        b'{"ResourceConfig":{"InstanceCount":1,"VolumeSizeInGB":1e2},"StoppingCondition":null,"Tags":[{"Key":"k"}]}',
    ],
    [b"{", b"[", b"]", b"}", b'"', b"\\u0000", b"\\ud800", b"null", b"true", b"1e999", b"-0", b"NaN", b"9" * 30, b","],
)


@fuzzed
@given(JSON)
def test_json(models: ServiceModels, body: bytes) -> None:
    value = survives(lambda: json_codec.parse(body), Misread)
    read = json_codec.reader(models["sagemaker"], {"shape": "CreateTrainingJobRequest"})
    survives(lambda: read(value), Misread)


XML = mutated(
    [
        b'<?xml version="1.0"?><Tagging xmlns="http://s3.x/"><TagSet><Tag><Key>k</Key></Tag></TagSet></Tagging>',
        b"<LifecycleConfiguration><Rule><ID>a</ID><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>",
        b"<Delete><Object><Key>a</Key></Object><Quiet>true</Quiet></Delete>",
    ],
    [
        *(b"<", b">", b"/>", b"</Tag>", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"&lt;", b"&#0;", b"&#x110000;"),
        *(b"<![CDATA[", b"]]>", b"<?pi?>", b"<!--", b"-->", b"xmlns:a='b'", b"\xff", b"\x00", b'encoding="utf-16"'),
    ],
)


@fuzzed
@given(XML)
def test_xml(models: ServiceModels, body: bytes) -> None:
    root = survives(lambda: xml_codec.parse(body), Misread)
    if root is not None:
        for shape in ("Tagging", "BucketLifecycleConfiguration", "Delete", "CompletedMultipartUpload"):
            read = xml_codec.reader(models["s3"], {"shape": shape})
            survives(lambda: read([root]), Misread)  # noqa: B023


def _metric() -> bytes:
    out = bytearray()
    cbor_codec.write_any(
        out,
        {
            "Namespace": "n",
            "MetricData": [{"MetricName": "m", "Value": 1.5, "Timestamp": datetime(2026, 1, 1, tzinfo=UTC)}],
        },
    )
    return bytes(out)


CBOR = mutated(
    [_metric(), b"\xbf\x69Namespace\x7f\x61a\x61b\xff\xff", b"\x9f\x01\xf9\x3c\x00\xfb" + bytes(8) + b"\xff"],
    [bytes((major << 5 | low,)) for major in range(8) for low in (0, 1, 23, 24, 25, 26, 27, 28, 31)],
)


@fuzzed
@given(CBOR)
def test_cbor(models: ServiceModels, body: bytes) -> None:
    value = survives(lambda: cbor.decode(body), Misread)
    read = cbor_codec.reader(models["cloudwatch"], {"shape": "PutMetricDataInput"})
    survives(lambda: read(value), Misread)


FRAMES = mutated(
    [
        eventstreams.encode({":message-type": "event", ":event-type": "chunk", "n": 1, "b": True, "r": b"x"}, b"{}"),
        eventstreams.encode({"t": datetime(2026, 1, 1, tzinfo=UTC)}, b"") * 2,
    ],
    [struct.pack(">II", 2**32 - 1, 16), struct.pack(">II", 16, 2**31), bytes(12), b"\x09", b"\x07\xff\xff"],
)


@fuzzed
@given(FRAMES, st.integers(1, 40))
def test_event_stream(body: bytes, step: int) -> None:
    decoder = eventstreams.Decoder()

    def feed() -> None:
        for at in range(0, len(body), step):
            decoder.feed(body[at : at + step])
        decoder.close()

    survives(feed, Misread)
    survives(lambda: eventstreams.decode_headers(body), Misread)


CLAIM = signatures.Claim(
    "AKIA" + "A" * 16, "20260101", "us-gov-west-1", "s3", datetime(2026, 1, 1, tzinfo=UTC), "20260101T000000Z",
    ("host",), "0" * 64, None, None,
)  # fmt: skip


def _signed_chunks(*chunks: bytes) -> bytes:
    previous, out = CLAIM.signature, b""
    for chunk in (*chunks, b""):
        import hashlib

        text = (
            f"AWS4-HMAC-SHA256-PAYLOAD\n{CLAIM.timestamp}\n{CLAIM.scope}\n{previous}\n{signatures.EMPTY_SHA256}\n"
            f"{hashlib.sha256(chunk).hexdigest()}"
        )
        previous = signatures.sign(b"key", text)
        out += b"%x;chunk-signature=%s\r\n%s\r\n" % (len(chunk), previous.encode(), chunk)
    return out


CHUNKS = mutated(
    [
        b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
        _signed_chunks(b"hello", b"world"),
        b"0\r\n\r\n",
    ],
    [b"\r\n", b"0\r\n", b"ffffffffffff\r\n", b";chunk-signature=" + b"0" * 64, b"-1", b"x-amz-checksum-crc32:a\r\n"],
)


@fuzzed
@given(CHUNKS, st.sampled_from(sorted(payloads.STREAMING)), st.integers(1, 30), st.integers(0, 20))
def test_chunks(body: bytes, form: str, step: int, length: int) -> None:
    names = frozenset({"x-amz-checksum-crc32"})
    payload = payloads.ChunkedPayload(form, length=length, trailer_names=names, claim=CLAIM, key=b"key")
    released = bytearray()

    def feed() -> None:
        for at in range(0, len(body), step):
            released.extend(payload.feed(body[at : at + step]))
        payload.finish()

    survives(feed, RequestFault)
    assert len(released) <= length
    if form == payloads.SIGNED_CHUNKS:  # only what was signed is ever released
        assert b"helloworld".startswith(bytes(released))


def test_sabotage_the_signed_sample_is_released() -> None:
    payload = payloads.ChunkedPayload(
        payloads.SIGNED_CHUNKS, length=10, trailer_names=frozenset(), claim=CLAIM, key=b"key"
    )
    assert payload.feed(_signed_chunks(b"hello", b"world")) == b"helloworld"
    payload.finish()


MARKINGS = mutated(
    [
        b"TOP SECRET//SI-G ABCD//TK//FGI GBR//ORCON/NOFORN",
        b"(S//REL TO USA, FVEY)",
        b"//NATO SECRET",
        b"CUI//SP-CTI//NOFORN",
        b"SECRET//RD-CNWDI-SIGMA 14 18//NOFORN",
    ],
    [b"//", b"/", b",", b" ", b"-", b"(", b")", b"USA", b"NOFORN", b"\xe2\x80\xa8", b"\x00", b"SI-" * 50],
)


@fuzzed
@given(MARKINGS)
def test_markings(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    axes = survives(lambda: markings.parse(text), ValidationFault)
    survives(lambda: markings.read(text), ValidationFault)
    label = survives(lambda: labels.Label.parse(text), ValidationFault)
    assert (axes is None) == (label is None)
    if label is not None:
        assert labels.Label.parse(label.banner) == label
    survives(lambda: labels.Label.decode(text), IntegrityFault)  # stored text, not a caller's


AUTHORIZATION = mutated(
    [
        b"AWS4-HMAC-SHA256 Credential=AKIAAAAAAAAAAAAAAAAA/20260101/us-gov-west-1/s3/aws4_request, "
        b"SignedHeaders=host;x-amz-date, Signature=" + b"0" * 64,
        b"Bearer abc",
        b"AWS AKIA:sig",
    ],
    [b",", b"=", b";", b"/", b" " * 50, b"Credential=", b"SignedHeaders=", b"\xff", b"0" * 64, b"99999999"],
)


@fuzzed
@given(AUTHORIZATION, st.sampled_from(["20260101T000000Z", "20269999T999999Z", "x", ""]))
def test_authorization_header(raw: bytes, at: str) -> None:
    headers = {"authorization": raw.decode("latin-1"), "x-amz-date": at, "host": "h"}
    claim = survives(lambda: signatures.read_claim(headers, {}), SignatureFault)
    signatures.bearer_token(headers)
    if claim is not None:
        _judged(claim, headers)


def _judged(claim: signatures.Claim, headers: dict[str, str]) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    regions = frozenset({"us-gov-west-1"})
    survives(lambda: signatures.check_claim(claim, now=now, regions=regions, headers=headers), SignatureFault)
    if all(name in headers for name in claim.signed_headers):
        with pytest.raises(SignatureFault):
            signatures.verify(
                claim, b"k", method="GET", raw_path="/é%", raw_query="a=%&=b", headers=headers, payload_hash="x"
            )


PRESIGNED = mutated(
    [
        b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAAAAAAAAAAAAAAAAA%2F20260101%2Fus-gov-west-1%2Fs3%2F"
        b"aws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature="
        + b"0"
        * 64,
        b"AWSAccessKeyId=a&Signature=b&Expires=1",
    ],
    [b"&", b"=", b"%", b"%ff", b"X-Amz-Signature=", b"X-Amz-Expires=-1", b"X-Amz-Expires=9999999", b"x-amz-"],
)


@fuzzed
@given(PRESIGNED)
def test_presigned_query(raw: bytes) -> None:
    query: dict[str, list[str]] = {}

    def split() -> None:
        for part in raw.split(b"&"):
            name, _, value = part.partition(b"=")
            query.setdefault(query_codec.decode(name), []).append(query_codec.decode(value))

    survives(split, Misread)
    claim = survives(lambda: signatures.read_claim({"host": "h"}, query), SignatureFault)
    if claim is not None:
        _judged(claim, {"host": "h"})
    signatures.canonical_query(raw.decode("latin-1"), presigned=True)


TENSORS = mutated(
    [b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"k":"v"}}', b"{}"],
    [b"{", b"}", b"[" * 50, b'"a":', b"1e400", b"-1", b"9" * 40, b"\\ud800", b"NaN"],
)


@fuzzed
@given(TENSORS, st.integers(0, 40))
def test_safetensors_header(header: bytes, data: int) -> None:
    for raw in (struct.pack("<Q", len(header)) + header + bytes(data), header):
        survives(lambda: safetensors.read_header(io.BytesIO(raw), len(raw)), ValidationFault)  # noqa: B023


@fuzzed
@given(st.text(max_size=60), st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "BREW"]))
def test_paths(models: ServiceModels, path: str, method: str) -> None:
    raw = "/" + path.encode("utf-8", "surrogatepass").decode("latin-1")
    for name in ("s3", "bedrock-runtime"):
        router = _ROUTERS.setdefault(name, RestRouter(models[name]))
        survives(lambda: router.match(method, raw, {"x": ["y"]}, {}), Misread)  # noqa: B023
    rpc_v2_names(raw)
    rest_codec.split_list(path)
    for reader in timestamps.TEXT_READERS.values():
        survives(lambda: reader(path), Misread)  # noqa: B023


_ROUTERS: dict[str, RestRouter] = {}


QUARTERS = 40 if os.environ.get("HONMARU_LONG") else 1
"""Bombs of a quarter of a MiB by default, else of the gateway's largest body, where what is not linear shows."""


def _deep_form() -> bytes:
    names = (b".".join(b"%d%c" % (number, 97 + part % 26) for part in range(47)) for number in range(500 * QUARTERS))
    return b"&".join(names)


BOMBS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {
    "json lists": (lambda: b"[" + b"[]," * 82_500 * QUARTERS + b"[]]", json_codec.parse),
    "json depth": (lambda: b"[" * 125_000 * QUARTERS, json_codec.parse),
    "json deep and whole": (lambda: b"[" * 900 + b"]" * 900, json_codec.parse),
    "json numbers": (lambda: b"[" + b"1.5," * 60_000 * QUARTERS + b"1]", json_codec.parse),
    "json names": (lambda: b"{" + b",".join(b'"%d":1' % n for n in range(20_000 * QUARTERS)) + b"}", json_codec.parse),
    "xml elements": (lambda: b"<a>" + b"<b/>" * 62_500 * QUARTERS + b"</a>", xml_codec.parse),
    "xml text between elements": (lambda: b"<a>" + b"xx<b/>" * 40_000 * QUARTERS + b"</a>", xml_codec.parse),
    "xml depth": (lambda: b"<a>" * 75_000 * QUARTERS, xml_codec.parse),
    "xml attributes": (
        lambda: b"<a " + b" ".join(b'a%d="1"' % n for n in range(12_500 * QUARTERS)) + b"/>",
        xml_codec.parse,
    ),
    "xml one text": (lambda: b"<a>" + b"&lt;" * 50_000 * QUARTERS + b"</a>", xml_codec.parse),
    "form depth": (_deep_form, lambda body: query_codec.tree(query_codec.fields(body))),
    "form fields": (lambda: b"&".join(b"%d=1" % n for n in range(22_500 * QUARTERS)), query_codec.fields),
    "cbor lists": (lambda: cbor.head(cbor.LIST, 250_000 * QUARTERS) + b"\x80" * 250_000 * QUARTERS, cbor.decode),
    "cbor depth": (lambda: b"\x81" * 250_000 * QUARTERS, cbor.decode),
    "cbor claimed": (lambda: b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff", cbor.decode),
    "cbor pieces": (lambda: b"\x5f" + b"\x40" * 250_000 * QUARTERS + b"\xff", cbor.decode),
    "marking": (lambda: b"SECRET//" + b"SI-" * 7_500 * QUARTERS, lambda body: markings.parse(body.decode())),
    "marking slashes": (lambda: b"/" * 25_000 * QUARTERS, lambda body: markings.parse(body.decode())),
    "authorization": (
        lambda: b"AWS4-HMAC-SHA256 " + b" " * 20_000 + b"Credential=" + b"a" * 20_000 + b" " * 20_000,
        lambda body: signatures.read_claim({"authorization": body.decode()}, {}),
    ),
    "header list": (lambda: b'"' + b"a," * 30_000, lambda body: rest_codec.split_list(body.decode())),
    "iso time": (lambda: b"2" * 25_000 * QUARTERS, lambda body: timestamps.read_iso(body.decode())),
    "http time": (lambda: b"Mon, " * 5_000 * QUARTERS, lambda body: timestamps.read_http(body.decode())),
    "safetensors": (
        lambda: struct.pack("<Q", 225_000 * QUARTERS) + b'{"a":' + b"[" * (225_000 * QUARTERS - 5),
        lambda body: safetensors.read_header(io.BytesIO(body), len(body)),
    ),
}


HEAVY = {"cbor lists", "cbor pieces", "xml elements", "xml text between elements", "form depth", "json lists"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.long, pytest.mark.skipif(QUARTERS == 1, reason="seconds: make test-long")]
        )
        if name in HEAVY
        else name
        for name in BOMBS
    ],
)
def test_small_input_takes_no_great_memory_or_time(name: str) -> None:
    """At most LARGEST_BYTES, and seconds of CPU while every allocation is traced."""
    make, parse = BOMBS[name]
    body = make()
    assert len(body) <= QUARTERS << 18
    tracemalloc.start()
    begun = time.process_time()
    try:
        parse(body)
    except (Misread, RequestFault):
        pass
    finally:
        took = time.process_time() - begun
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < LARGEST_BYTES, f"{peak >> 20} MiB"
    assert took < 1.5 + QUARTERS / 5, f"{took:.1f} s"


def test_chunks_of_one_byte_take_linear_time() -> None:
    form = payloads.UNSIGNED_TRAILER
    payload = payloads.ChunkedPayload(form, length=100_000, trailer_names=frozenset(), claim=CLAIM, key=b"")
    begun = time.process_time()
    assert payload.feed(b"1\r\nx\r\n" * 100_000) == b"x" * 100_000
    assert time.process_time() - begun < 5


def test_sabotage_a_crash_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        survives(lambda: 1 // 0, Misread)
    monkeypatch.setitem(globals(), "SLOWEST_S", 0.001)
    with pytest.raises(AssertionError):
        survives(lambda: sum(range(1_000_000)), Misread)


def test_the_targets_cover_the_parsers() -> None:
    """A parser of untrusted bytes that is added needs a target here."""
    import honmaru.api

    codecs = {path.stem for path in Path(honmaru.api.__file__).parent.glob("*.py")}
    inward = {"__init__", "checks", "corrections", "events", "misreads", "models", "names", "plans", "text_scalars"}
    covered = {"cbor", "cbor_codec", "eventstreams", "json_codec", "query_codec", "rest_codec", "timestamps"}
    assert codecs == inward | covered | {"xml_codec"}
