"""SAML responses: what is believed is what a registered key signed, whatever lies around it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from lxml import etree

from honmaru.app.saml_signatures import SignedXml
from honmaru.core.errors import AuthenticationFailed
from honmaru.security.identity import saml
from honmaru.testing.saml_provider import PROTOCOL, RECIPIENT, SAML, SamlProvider

ROLE, PROVIDER = "arn:aws-iso-b:iam::123456789012:role/web", "arn:aws-iso-b:iam::123456789012:saml-provider/idp"
DS = "http://www.w3.org/2000/09/xmldsig#"
IDP, OTHER, CURVE = SamlProvider(), SamlProvider(), SamlProvider(curve=True)


def signed(response: str | bytes, *certificates: str) -> bytes:
    octets = response if isinstance(response, bytes) else response.encode()
    return SignedXml().signed_assertion(octets, certificates or [IDP.der], datetime.now(UTC))


def read(octets: bytes) -> saml.Assertion:
    return saml.read(octets, datetime.now(UTC), accepted=saml.audiences("aws-iso-b"), sent_to=frozenset((RECIPIENT,)))


def refused(run: Callable[[], object], code: str = "InvalidIdentityToken") -> None:
    with pytest.raises(AuthenticationFailed) as refusal:
        run()
    assert refusal.value.code == code, refusal.value


def asserted(**stated: Any) -> str:
    return IDP.assertion(ROLE, PROVIDER, **stated)


def either(unsigned: str) -> list[str]:
    """A response whose assertion, whole, or both are signed."""
    inner = IDP.signed(unsigned)
    return [IDP.response(inner), IDP.signed(IDP.response(unsigned)), IDP.signed(IDP.response(inner))]


def test_a_signed_assertion_or_response_is_read_from_what_was_signed() -> None:
    for response in either(asserted()):
        found = read(signed(response))
        assert (found.subject, found.subject_type, found.issuer) == ("ann@example", "persistent", IDP.entity)
        assert found.roles == {(ROLE, PROVIDER)}
    curved = CURVE.response(CURVE.signed(CURVE.assertion(ROLE, PROVIDER)))
    assert read(signed(curved, IDP.der, CURVE.der)).subject == "ann@example"  # any registered key, of any kind


def test_what_is_not_signed_by_a_registered_key_opens_nothing() -> None:
    plain = asserted()
    refused(lambda: signed(IDP.response(plain)))
    refused(lambda: signed(OTHER.response(OTHER.signed(plain))))
    refused(lambda: signed(IDP.response(IDP.signed(plain)), OTHER.der))
    refused(lambda: signed(IDP.response(IDP.signed(plain)), "bm8gY2VydGlmaWNhdGU="))
    # Both signatures must be good: a good assertion does not carry a bad response, nor the other way round.
    refused(lambda: signed(OTHER.signed(IDP.response(IDP.signed(plain)))))
    refused(lambda: signed(IDP.signed(IDP.response(OTHER.signed(plain)))))
    refused(lambda: signed(IDP.response(IDP.signed(plain), IDP.signed(asserted()))))
    refused(lambda: signed(IDP.response(IDP.signed(plain), status="Requester")), "IDPRejectedClaim")


def test_weak_algorithms_sign_nothing() -> None:
    for method, digest in (("rsa-sha1", "sha256"), ("rsa-sha256", "sha1")):
        response = IDP.response(IDP.signed(asserted(), method=method, digest=digest))
        refused(lambda response=response: signed(response))  # type: ignore[misc]


def test_any_changed_byte_of_the_signed_part_is_found() -> None:
    response = IDP.response(IDP.signed(asserted(attributes={"PrincipalTag:team": ["red"]})))
    for before, after in (
        ("ann@example", "eve@example"),
        (">red<", ">blue<"),
        ("role/web", "role/any"),
        (RECIPIENT, RECIPIENT.replace("sgov", "evil")),
        (":persistent", ":transient"),
        ("urn:amazon:webservices", "urn:amazon:websites"),
        ("</saml:Subject>", "<saml:NameID>eve</saml:NameID></saml:Subject>"),
    ):
        changed = response.replace(before, after)
        assert changed != response
        refused(lambda changed=changed: signed(changed))  # type: ignore[misc]


def test_a_comment_in_a_name_parts_nothing_of_it() -> None:
    """CVE-2017-11427 and its kin: `admin<!---->.evil` must be nobody but `admin.evil`."""
    signed_name = IDP.response(IDP.signed(asserted(name="admin.evil")))
    cut = signed_name.replace("admin.evil", "admin<!-- -->.evil")
    assert cut != signed_name
    assert read(signed(cut)).subject == "admin.evil"
    commented = IDP.response(IDP.signed(asserted(name="admin<!-- -->.evil")))
    assert read(signed(commented)).subject == "admin.evil"


def test_documents_with_dtds_entities_instructions_or_too_many_bytes_are_not_read() -> None:
    good = IDP.response(IDP.signed(asserted()))
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    for bad in (
        bomb + good,
        '<!DOCTYPE x SYSTEM "file:///etc/passwd">' + good,
        good.replace("<samlp:Status>", "<?php x ?><samlp:Status>"),
        good.replace("<samlp:Status>", "<!--" + "x" * 100_000 + "--><samlp:Status>"),
        good.replace("<samlp:Status>", "<a>" * 300 + "</a>" * 300 + "<samlp:Status>"),
        "<x/>",
        "",
        "not xml",
        good[:-1],
    ):
        refused(lambda bad=bad: signed(bad))  # type: ignore[misc]


def _evil(assertion: Any) -> Any:
    """A copy of an assertion that says something else, without its signature."""
    made = copy.deepcopy(assertion)
    made.set("ID", "_evil")
    made.find(f".//{{{SAML}}}NameID").text = "eve@example"
    made.remove(made.find(f"{{{DS}}}Signature"))
    return made


def _assertion_wrapped(kind: int) -> bytes:
    """XSW3 to XSW8 on a signed assertion."""
    root = etree.fromstring(IDP.response(IDP.signed(asserted())).encode())
    real = root.find(f"{{{SAML}}}Assertion")
    signature = real.find(f"{{{DS}}}Signature")
    evil = _evil(real)
    place = root.index(real)
    if kind == 3:
        root.insert(place, evil)
    elif kind == 4:
        root.remove(real)
        evil.append(real)
        root.append(evil)
    elif kind == 5:
        real.remove(signature)
        evil.insert(1, signature)
        root.insert(place, evil)
    elif kind == 6:
        root.remove(real)
        real.remove(signature)
        evil.insert(1, signature)
        signature.append(real)
        root.append(evil)
    elif kind == 7:
        extensions = etree.SubElement(root, f"{{{PROTOCOL}}}Extensions")
        evil.set("ID", real.get("ID"))
        extensions.append(evil)
        root.insert(1, extensions)
    else:
        root.remove(real)
        real.remove(signature)
        evil.insert(1, signature)
        etree.SubElement(signature, f"{{{DS}}}Object").append(real)
        root.append(evil)
    return bytes(etree.tostring(root))


def _response_wrapped(kind: int, *, same: bool) -> bytes:
    """XSW1 and XSW2 on a signed response; with an ID of its own, or the signed one's again."""
    real = etree.fromstring(IDP.signed(IDP.response(asserted())).encode())
    evil = copy.deepcopy(real)
    if not same:
        evil.set("ID", "_evil")
    evil.find(f".//{{{SAML}}}NameID").text = "eve@example"
    signature = evil.find(f"{{{DS}}}Signature")
    inner = copy.deepcopy(real)
    inner.remove(inner.find(f"{{{DS}}}Signature"))
    if kind == 1:
        signature.append(inner)
    else:
        evil.insert(evil.index(signature), inner)
    return bytes(etree.tostring(evil))


@pytest.mark.parametrize("kind", range(3, 9))
def test_signature_wrapping_of_an_assertion_is_refused(kind: int) -> None:
    refused(lambda: signed(_assertion_wrapped(kind)))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("kind", [1, 2])
def test_signature_wrapping_of_a_response_is_refused(kind: int, same: bool) -> None:
    refused(lambda: signed(_response_wrapped(kind, same=same)))


def test_either_guard_against_wrapping_is_enough_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape refuses each before any key is tried; without it, nothing but what was signed is answered."""
    import honmaru.app.saml_signatures as module

    wrapped = [_assertion_wrapped(kind) for kind in range(3, 9)]
    wrapped += [_response_wrapped(kind, same=same) for kind in (1, 2) for same in (False, True)]
    for each in wrapped:
        refused(lambda each=each: module._shape(etree.fromstring(each), etree))  # type: ignore[misc]
    monkeypatch.setattr(module, "_shape", lambda root, _: root.find(f"{{{SAML}}}Assertion"))
    for each in wrapped:
        try:
            assert read(signed(each)).subject == "ann@example"
        except AuthenticationFailed:
            continue


def test_an_assertion_is_for_this_place_and_this_moment() -> None:
    good = asserted()

    def of(**stated: Any) -> bytes:
        return signed(IDP.response(IDP.signed(asserted(**stated))))

    now = datetime.now(UTC)
    assert read(signed(IDP.response(IDP.signed(good)))).audience == "urn:amazon:webservices"
    for bad in (
        of(audience="urn:somebody:else"),
        of(recipient="https://signin.example/saml"),
        of(issued=now + timedelta(minutes=3)),
        of(starts=timedelta(minutes=2)),
        of(subject=""),
        of(name="<b>ann</b>"),
        of(attributes={"Role": ["no pair"]}),
        of(attributes={"SessionDuration": ["1"]}),
        of(attributes={"RoleSessionName": ["a", "b"]}),
    ):
        refused(lambda bad=bad: read(bad))  # type: ignore[misc]
    for late in (
        of(issued=now - timedelta(minutes=6), lasts=timedelta(minutes=20)),
        of(issued=now - timedelta(minutes=2), lasts=timedelta(minutes=1)),
        of(session=timedelta(seconds=-1)),
    ):
        refused(lambda late=late: read(late), "ExpiredTokenException")  # type: ignore[misc]
    twice = good.replace(
        "</saml:AttributeStatement>",
        "</saml:AttributeStatement><saml:AttributeStatement><saml:Attribute "
        'Name="https://aws.amazon.com/SAML/Attributes/Role"><saml:AttributeValue>a,b'
        "</saml:AttributeValue></saml:Attribute></saml:AttributeStatement>",
    )
    refused(lambda: read(signed(IDP.response(IDP.signed(twice)))))
    unknown = good.replace("<saml:AudienceRestriction>", "<saml:Condition/><saml:AudienceRestriction>")
    refused(lambda: read(signed(IDP.response(IDP.signed(unknown)))))


def test_metadata_without_a_key_that_signs_is_none() -> None:
    good = IDP.metadata()
    assert saml.read_metadata(good).certificates == (IDP.der,)
    assert len(saml.read_metadata(IDP.metadata(others=[OTHER.der, IDP.der])).certificates) == 2
    for bad in (
        good.replace('use="signing"', 'use="encryption"'),
        good.replace("IDPSSODescriptor", "SPSSODescriptor"),
        good.replace("EntityDescriptor", "EntitiesDescriptor"),
        good.replace(f'entityID="{IDP.entity}"', 'entityID=""'),
        '<!DOCTYPE x [<!ENTITY a "b">]>' + good,
        IDP.metadata(others=[f"AAA{i}" for i in range(10)]),
    ):
        refused(lambda bad=bad: saml.read_metadata(bad))  # type: ignore[misc]
