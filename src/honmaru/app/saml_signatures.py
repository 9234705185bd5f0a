"""Checks the XML signatures of SAML responses with signxml: a `ports.assertions.AssertionVerifier`.

Invariants:
- A response has one shape: one Response, one Assertion directly inside, signatures as a child of either and nowhere
  else, each over exactly its parent. What signature wrapping needs (a second assertion, a signature or signed element
  in another place, an ID twice, an Object) is refused before any key is tried.
- A signature counts under the provider's registered certificates only, whatever KeyInfo says; never by SHA-1, MD5,
  HMAC, DSA, or an RSA key under 2,048 bits. Every signature that is there must be good.
- What is answered is what the library says was signed, never the document that came.
- No DTD, entity, processing instruction, external reference or network; depth and size are libxml2's limits or less.

Source: XML Signature 1.1; SAML 2.0 core 5.4; Somorovsky et al., "On Breaking SAML: Be Whoever You Want to Be" (XSW1-8).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import Certificate, load_der_x509_certificate

from honmaru.core.errors import AuthenticationFailed, NotImplementedYet

_LIMIT = 100_000
_LEAST_RSA_BITS = 2048
_SAML, _PROTOCOL = "{urn:oasis:names:tc:SAML:2.0:assertion}", "{urn:oasis:names:tc:SAML:2.0:protocol}"
_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_SUCCESS = "urn:oasis:names:tc:SAML:2.0:status:Success"
_EXCLUSIVE = "http://www.w3.org/2001/10/xml-exc-c14n#"
_TRANSFORMS = frozenset(("http://www.w3.org/2000/09/xmldsig#enveloped-signature", _EXCLUSIVE))
_METHODS = ("RSA_SHA256", "RSA_SHA384", "RSA_SHA512", "ECDSA_SHA256", "ECDSA_SHA384", "ECDSA_SHA512")
_PSS_METHODS = ("SHA256_RSA_MGF1", "SHA384_RSA_MGF1", "SHA512_RSA_MGF1")
_DIGESTS = ("SHA256", "SHA384", "SHA512")


def _invalid(why: str) -> AuthenticationFailed:
    return AuthenticationFailed(f"Your request included an invalid SAML response: {why}", code="InvalidIdentityToken")


class SignedXml:
    """See the module. The libraries are of the extra `saml` and are imported when the first response comes."""

    def signed_assertion(self, response: bytes, certificates: Sequence[str], now: datetime) -> bytes:
        """See the port. Raises NotImplementedYet where the extra is not installed."""
        try:
            from lxml import etree
        except ImportError:
            raise NotImplementedYet("SAML needs signxml: install honmaru with the extra 'saml'") from None
        if len(response) > _LIMIT:
            raise _invalid(f"{len(response)} bytes; at most {_LIMIT} are read")
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        try:
            root = etree.fromstring(response, parser)
        except (etree.XMLSyntaxError, ValueError):
            raise _invalid("not well-formed XML") from None
        assertion = _shape(root, etree)
        keys = _certificates(certificates)
        signed: bytes | None = None
        for parent, location in ((assertion, f"./{_SAML}Assertion/"), (root, "./")):
            if parent.find(f"{_DS}Signature") is not None:
                signed = _verified(response, location, parent, keys, now)
        if signed is None:
            raise _invalid("neither the response nor its assertion is signed")
        found = etree.fromstring(signed, parser)
        if found.tag == f"{_PROTOCOL}Response":
            # Of a signed response its assertion is read: the one that `_shape` found, as the signature covers it.
            found = found.find(f"{_SAML}Assertion")
        if found is None or found.tag != f"{_SAML}Assertion" or found.get("ID") != assertion.get("ID"):
            raise _invalid("the signature covers something else than the assertion")
        octets: bytes = etree.tostring(found, method="c14n", exclusive=True, with_comments=False)
        return octets


def _shape(root: Any, etree: Any) -> Any:
    """The assertion of a response that has the one shape which is taken. Raises AuthenticationFailed."""
    tree = root.getroottree().docinfo
    if tree.internalDTD is not None or tree.externalDTD is not None:
        raise _invalid("a DTD")
    if root.tag != f"{_PROTOCOL}Response":
        raise _invalid("not a Response of SAML 2.0")
    counts = {"Response": 0, "Assertion": 0, "EncryptedAssertion": 0, "Signature": 0, "Object": 0}
    identifiers: list[str] = []
    for node in root.iter():
        if node.tag is etree.Comment:
            continue
        if not isinstance(node.tag, str):
            raise _invalid("an entity or a processing instruction")
        name = etree.QName(node).localname
        counts[name] = counts.get(name, 0) + 1
        identifiers += [value for key, value in node.attrib.items() if etree.QName(key).localname.lower() == "id"]
        if name == "Signature":
            _check_signature(node, root)
    if counts["EncryptedAssertion"]:
        raise _invalid("its assertion is encrypted, which this enclave does not read: sign it, and send it over TLS")
    assertions = root.findall(f"{_SAML}Assertion")
    if counts["Response"] != 1 or counts["Assertion"] != 1 or len(assertions) != 1 or counts["Object"]:
        raise _invalid("expected one Response with one Assertion inside, and no Object in a signature")
    if len(set(identifiers)) != len(identifiers):
        raise _invalid("an ID twice")
    statuses = root.findall(f"{_PROTOCOL}Status/{_PROTOCOL}StatusCode")
    if [each.get("Value") for each in statuses] != [_SUCCESS]:
        raise AuthenticationFailed("The identity provider did not authenticate anybody", code="IDPRejectedClaim")
    return assertions[0]


def _check_signature(signature: Any, root: Any) -> None:
    """Raises unless a signature is the only one of the Response or Assertion that it lies in, and over that alone."""
    parent = signature.getparent()
    inside = parent is not None and (
        parent is root or (parent.tag == f"{_SAML}Assertion" and parent.getparent() is root)
    )
    if signature.tag != f"{_DS}Signature" or not inside or len(parent.findall(f"{_DS}Signature")) != 1:
        raise _invalid("a signature in the wrong place")
    listed = signature.findall(f"{_DS}SignedInfo")
    references = [each for part in listed for each in part.findall(f"{_DS}Reference")]
    identifier = parent.get("ID")
    if len(listed) != 1 or len(references) != 1 or not identifier or references[0].get("URI") != f"#{identifier}":
        raise _invalid("a signature over something else than the element that it lies in")
    transforms = [each.get("Algorithm") for each in references[0].iter(f"{_DS}Transform")]
    methods = [each.get("Algorithm") for each in listed[0].findall(f"{_DS}CanonicalizationMethod")]
    if len(set(transforms)) != len(transforms) or set(transforms) != _TRANSFORMS or methods != [_EXCLUSIVE]:
        raise _invalid("a signature whose transforms are not the enveloped signature and exclusive canonicalization")


def _certificates(listed: Sequence[str]) -> list[Certificate]:
    found: list[Certificate] = []
    for text in listed:
        try:
            certificate = load_der_x509_certificate(base64.b64decode(text, validate=True))
            key = certificate.public_key()
        except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
            continue  # one that no library reads makes no signature good
        strong = isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS
        if strong or isinstance(key, ec.EllipticCurvePublicKey):
            found.append(certificate)
    return found


def _verified(response: bytes, location: str, parent: Any, keys: Sequence[Certificate], now: datetime) -> bytes:
    """The canonical bytes that the signature at a place covers. Raises AuthenticationFailed when no key made it."""
    from cryptography.exceptions import InvalidSignature as BadSignature
    from lxml import etree
    from signxml import DigestAlgorithm, SignatureConfiguration, SignatureMethod, XMLVerifier
    from signxml.exceptions import SignXMLException

    settings = SignatureConfiguration(
        location=location,
        expect_references=1,
        signature_methods=frozenset(SignatureMethod[name] for name in (*_METHODS, *_PSS_METHODS)),
        digest_algorithms=frozenset(DigestAlgorithm[name] for name in _DIGESTS),
        ignore_ambiguous_key_info=True,  # KeyInfo is not believed at all: the certificate is the registered one
        verification_time=now,
    )
    for certificate in keys:
        try:
            result = XMLVerifier().verify(response, x509_cert=certificate, expect_config=settings, id_attribute="ID")
        except (SignXMLException, BadSignature, etree.LxmlError, ValueError, TypeError, AttributeError, KeyError):
            # signxml checks a certificate by the algorithm that the document states, so a key of another kind, or a
            # document of another form, shows as these.
            continue
        if result.signed_xml is not None and result.signed_xml.get("ID") == parent.get("ID"):
            octets: bytes = result.signed_data
            return octets
    raise _invalid("the signature is not one of the identity provider's")
