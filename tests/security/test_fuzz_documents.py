"""Parsers of untrusted documents behind the wire's: forms of browsers, upload policies, IAM and bucket policies,
tokens, ciphertexts, page tokens. As in test_fuzz_parsers: the modelled fault or an answer, quickly, nothing else."""

from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.errors import AuthenticationFailed, RequestFault, ValidationFault
from honmaru.gateway.aws import forms, post_policy
from honmaru.security.crypto import ciphertexts
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.identity import jwt, tokens
from honmaru.security.page_tokens import PageTokens, read_place
from honmaru.security.policy.documents import PolicyKind, read_policy
from honmaru.services.s3 import bucket_policy
from honmaru.testing.keep import session

sys.path.insert(0, str(Path(__file__).parent))
from test_fuzz_parsers import fuzzed, mutated, survives

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\na/${filename}\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="b\\"c.txt"\r\nContent-Type: text/plain\r\n\r\n'
    b"hello\r\n--x--\r\n"
)
FORMS = mutated(
    [FORM],
    [b"--x", b"--x--", b"\r\n", b"\r\n\r\n", b'name="', b'"', b";", b"filename=", b"\xff", b"\0", b"--", b"x" * 100],
)


@fuzzed
@given(FORMS, st.integers(1, 50))
def test_forms(body: bytes, step: int) -> None:
    head = forms.FormHead(b"x")
    released = bytearray()

    def feed() -> None:
        at = 0
        while at < len(body):
            begun = head.feed(body[at : at + step])
            at += step
            if begun:
                break
        else:
            head.finish()
        file = forms.FilePayload(head.delimiter, None)
        released.extend(file.feed(head.rest))
        for start in range(at, len(body), step):
            released.extend(file.feed(body[start : start + step]))
        file.finish()

    survives(feed, RequestFault)
    assert len(released) <= 2 * len(body)


@fuzzed
@given(st.one_of(st.text(max_size=60), st.sampled_from(["form-data; boundary=x", 'a; boundary="y z"', ";", ""])))
def test_boundaries(text: str) -> None:
    survives(lambda: forms.boundary_of(text), RequestFault)


POST = mutated(
    [
        (
            b'{"expiration":"2030-01-01T00:00:00Z","conditions":[{"bucket":"b"},["starts-with","$key","a/"],'
            b'["content-length-range",0,10],["eq","$acl","private"]]}'
        )
    ],
    [b"{", b"[", b"]", b'"', b"$", b"null", b"1e999", b"-1", b"9" * 40, b"\\ud800", b'"eq"', b"[" * 200],
)


@fuzzed
@given(POST)
def test_upload_policies(text: bytes) -> None:
    policy = survives(lambda: post_policy.read_policy(text), RequestFault)
    if policy is not None:
        fields = {"key": "a/b", "acl": "private"}
        survives(lambda: policy.check(fields, "b", datetime(2026, 1, 1, tzinfo=UTC)), RequestFault)


POLICY = mutated(
    [
        (
            b'{"Version":"2012-10-17","Statement":[{"Sid":"a","Effect":"Allow","Action":["s3:Get*","iam:PassRole"],'
            b'"Resource":"arn:aws-us-gov:s3:::b/${aws:username}/*","Condition":{"StringLike":{"aws:userid":["a*","?"]},'
            b'"IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"DateLessThan":{"aws:CurrentTime":"2030-01-01T00:00:00Z"}}}]}'
        ),
        (
            b'{"Version":"2012-10-17","Statement":{"Effect":"Deny","Principal":{"AWS":"*"},"NotAction":"s3:*",'
            b'"NotResource":["arn:aws-us-gov:s3:::b"]}}'
        ),
    ],
    [b"{", b"}", b"[", b"]", b'"', b"*", b"?", b"${", b"}", b"null", b"NaN", b'"Effect":', b"*" * 200, b"[" * 200],
)


@fuzzed
@given(POLICY, st.sampled_from(list(PolicyKind)))
def test_policies(raw: bytes, kind: PolicyKind) -> None:
    text = raw.decode("utf-8", "replace")
    survives(lambda: read_policy(text, kind), ValidationFault)
    survives(lambda: bucket_policy.check(text, "b", "aws-us-gov"), RequestFault)


def _jwt(header: Any, claims: Any) -> bytes:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), b"signature")
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


TOKENS = mutated(
    [_jwt({"alg": "RS256", "kid": "k"}, {"iss": "https://i", "sub": "s", "exp": 1})],
    [b".", b"=", b"..", b"\xff"],
)


@fuzzed
@given(TOKENS)
def test_web_identity_tokens(raw: bytes) -> None:
    survives(lambda: jwt.read(raw.decode("latin-1")), RequestFault)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys"), lambda size: b"\x01" * size)


@fuzzed
@given(st.text(max_size=200))
def test_session_tokens(keyring: Keyring, text: str) -> None:
    assert survives(lambda: tokens.open_token(keyring, "123456789012", text), AuthenticationFailed) is None


@fuzzed
@given(st.binary(max_size=400))
def test_ciphertexts(blob: bytes) -> None:
    survives(lambda: ciphertexts.read(blob), ciphertexts.Unreadable)


@fuzzed
@given(st.text(max_size=100))
def test_page_tokens(text: str) -> None:
    pages = PageTokens(bytes(range(64)))
    assert survives(lambda: pages.open(session("SECRET"), "iam:ListUsers", text), ValidationFault) is None
    survives(lambda: read_place(text, str, int), ValidationFault)
