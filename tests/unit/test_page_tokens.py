"""Page tokens: opaque, the same for the same place, and good for nothing but the question they were given for."""

from __future__ import annotations

import re
import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honmaru.core.errors import IntegrityFault, ValidationFault
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.page_tokens import PageTokens, page_key
from honmaru.testing.keep import session

TOKENS = PageTokens(bytes(range(64)))
WHO = session("SECRET")


@given(st.text(max_size=200))
def test_a_place_comes_back(place):
    token = TOKENS.seal(WHO, "iam:ListUsers", place)
    assert TOKENS.open(WHO, "iam:ListUsers", token) == place
    assert TOKENS.seal(WHO, "iam:ListUsers", place) == token
    assert set(token) <= set(string.ascii_letters + string.digits)


def test_nothing_of_the_place_shows():
    token = TOKENS.seal(WHO, "iam:ListUsers", "plutonium")
    assert not re.search("plut", token, re.IGNORECASE)
    assert TOKENS.seal(WHO, "iam:ListUsers", "plutoniun")[:20] != token[:20]


@pytest.mark.parametrize(
    ("who", "operation"),
    [
        (session("UNCLASSIFIED"), "iam:ListUsers"),
        (session("TOP SECRET"), "iam:ListUsers"),
        (session("SECRET", account="999999999999"), "iam:ListUsers"),
        (WHO, "iam:ListRoles"),
        (WHO, "iam:ListUser"),
    ],
)
def test_a_token_is_bound_to_its_question(who, operation):
    token = TOKENS.seal(WHO, "iam:ListUsers", "place")
    with pytest.raises(ValidationFault, match="page token") as caught:
        TOKENS.open(who, operation, token, code="InvalidNextTokenException")
    assert caught.value.code == "InvalidNextTokenException"


@given(st.data())
def test_a_changed_token_is_refused(data):
    token = TOKENS.seal(WHO, "iam:ListUsers", "place")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from([c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" if c != token[at]]))
    changed = token[:at] + other + token[at + 1 :]
    # the last character may carry bits that mean nothing
    if at < len(token) - 1:
        with pytest.raises(ValidationFault):
            TOKENS.open(WHO, "iam:ListUsers", changed)


@given(st.text(max_size=40))
def test_any_text_is_refused_in_one_way(text):
    with pytest.raises(ValidationFault, match=r"^The page token is not one that this operation gave"):
        TOKENS.open(WHO, "iam:ListUsers", text)


def test_another_principal_of_the_account_may_go_on():
    token = TOKENS.seal(WHO, "iam:ListUsers", "place")
    assert TOKENS.open(replace(WHO, principal_arn="arn:x"), "iam:ListUsers", token) == "place"


def test_a_token_survives_a_restart(tmp_path):
    def key(secret):
        return page_key(tmp_path / "k" / "pages.key", Keyring(tmp_path / "ring", lambda n: b"\x01" * n), "1", secret)

    first = key(lambda n: b"a" * n)
    assert key(lambda n: b"b" * n) == first == b"a" * 64
    other = Keyring(tmp_path / "other", lambda n: b"\x02" * n)
    with pytest.raises(IntegrityFault):
        page_key(tmp_path / "k" / "pages.key", other, "1", lambda n: b"c" * n)
