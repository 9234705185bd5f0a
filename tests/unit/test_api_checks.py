"""Checks and patterns: what AWS's regular expressions mean here, and that none of them can be made to run away."""

from __future__ import annotations

import re
import time

import pytest

from honmaru.api.checks import MAX_PATTERN_TEXT
from honmaru.api.corrections import PATTERNS, python_pattern
from honmaru.api.misreads import Misread
from honmaru.api.models import ServiceModels
from honmaru.api.query_codec import fields, tree
from honmaru.api.rest_codec import header_bytes, split_list
from honmaru.api.timestamps import read_http, read_iso, read_unix, write_http, write_iso, write_unix
from honmaru.api.xml_codec import escape, parse


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return ServiceModels(tmp_path_factory.mktemp("models"))


def patterns(models):
    for service in models:
        for name, shape in service.shapes.items():
            if "pattern" in shape:
                yield service.name, name, shape


def test_every_pattern_compiles(models):
    for _, _, shape in patterns(models):
        assert isinstance(python_pattern(shape["pattern"]), re.Pattern)


PIECES = ("a", "1", "-", "a-", "a.", "a/", "s3://a/", "/", "a_", " ", "a a", ".")
STARTS = ("", "a", "https://a/", "arn:aws:bedrock:us-east-1:111122223333:")


def slowest(compiled, longest):
    """Seconds that the worst of the adversarial texts takes; stops growing them at the first slow one."""
    worst = 0.0
    for length in (*range(12, 40, 2), 64, 256, longest):
        for start in STARTS:
            for piece in PIECES:
                text = (start + piece * length)[: min(length, longest)] + "\n"
                begun = time.process_time()
                compiled.fullmatch(text)
                worst = max(worst, time.process_time() - begun)
                if worst > 0.1:
                    return worst
    return worst


def test_no_pattern_runs_away(models):
    """Adversarial text, as long as the checks admit it to a pattern (here at most 4,096), is decided at once."""
    tried = {}
    for service, name, shape in patterns(models):
        longest = min(shape.get("max", MAX_PATTERN_TEXT), 4096)
        tried.setdefault((shape["pattern"], longest), (service, name))
    slow = [where for (pattern, longest), where in tried.items() if slowest(python_pattern(pattern), longest) > 0.1]
    assert not slow


def test_runaway_patterns_are_noticed():
    assert slowest(python_pattern(r"[a-zA-Z0-9](-*[a-zA-Z0-9\+\-\.])*"), 63) > 0.1


def test_rewritten_patterns_accept_the_same():
    texts = [
        "a",
        "a-b",
        "a--",
        "-a",
        "a.b+c",
        "a/b",
        "/a/b",
        "/a/",
        "a/",
        "text/plain",
        "TEXT/x",
        "A/a/x",
        "",
        "https://a.b/c",
        "https://a",
        "https://ab/",
        "https://a//b",
        "https://abc/",
        "https:///abc",
        "..",
        "a..",
        "schema.db.table",
        "a.b.c.d\n",
        "a" * 63,
        "a-",
        "x/\ny",
    ]
    for (service, shape), (pattern, _) in PATTERNS.items():
        original = ORIGINALS.get((service, shape))
        if original:
            for text in texts:
                assert bool(python_pattern(pattern).fullmatch(text)) == bool(re.fullmatch(original, text)), (
                    shape,
                    text,
                )


ORIGINALS = {
    ("bedrock", "ContentType"): r".*[a-z]{1,20}/.{1,20}.*",
    ("bedrock", "JobName"): r"[a-zA-Z0-9](-*[a-zA-Z0-9\+\-\.])*",
    ("bedrock", "ModelInvocationJobName"): r"[a-zA-Z0-9]{1,63}(-*[a-zA-Z0-9\+\-\.]){0,63}",
    ("bedrock-agent", "ByteContentDocMimeTypeString"): r".*[a-z]{1,20}/.{1,20}.*",
    ("bedrock-agent", "QueryGenerationTableName"): r".*\..*\..*",
    ("s3", "CopySource"): r"\/?.+\/.+",
    ("sagemaker", "ClusterSchedulerPriorityClassName"): r"[a-z0-9]([-a-z0-9]*[a-z0-9]){0,39}?",
    ("sagemaker", "RepositoryUrl"): r"https://([.\-_a-zA-Z0-9]+/?){3,1016}",
}


def test_unicode_classes():
    tag = python_pattern(r"^([\p{L}\p{Z}\p{N}_.:/=+\-@]*)$")
    assert tag.fullmatch("Übung 本丸 1:/=+-@")
    assert not tag.fullmatch("no*star")
    assert not python_pattern(r"\d+").fullmatch("٣")  # Java's \d is ASCII


def test_timestamps_round_trip():
    moment = read_iso("2026-02-03T04:05:06.789Z")
    assert write_iso(moment) == "2026-02-03T04:05:06.789Z"
    assert read_unix(write_unix(moment)) == moment
    assert write_http(moment) == "Tue, 03 Feb 2026 04:05:06 GMT"
    assert read_http(write_http(moment)) == moment.replace(microsecond=0)
    for read, bad in (
        (read_unix, "1"),
        (read_unix, float("nan")),
        (read_unix, 1e300),
        (read_unix, True),
        (read_iso, "yesterday"),
        (read_iso, 5),
        (read_http, "x" * 100),
        (read_http, "Tue, 99 Foo 2026"),
    ):
        with pytest.raises(Misread):
            read(bad)


def test_forms():
    assert fields(b"a=1&b=%C3%BC+x&c=") == {"a": "1", "b": "ü x", "c": ""}
    assert tree({"a.member.1": "x", "b": "y"}) == {"a": {"member": {"1": "x"}}, "b": "y"}
    for bad in (b"a=1&a=2", b"a=%ff"):
        with pytest.raises(Misread):
            fields(bad)
    for flat in ({"a": "1", "a.b": "2"}, {"a.b": "2", "a": "1"}, {"a." * 60: "1"}):
        with pytest.raises(Misread):
            tree(flat)


def test_xml_text():
    assert escape('a<b>&"\x01\n') == "a&lt;b&gt;&amp;&quot;&#x1;&#xa;"
    root = parse(b"<a xmlns='urn:x'><b>1 &amp; 2</b></a>")
    assert (root.name, root.children[0].text) == ("a", "1 & 2")


def test_headers():
    assert split_list('a, "b,c", "d\\"e"') == ["a", "b,c", 'd"e']
    assert header_bytes("a\r\nSet-Cookie: x") == b"aSet-Cookie: x"
    assert header_bytes("本") == "本".encode()
