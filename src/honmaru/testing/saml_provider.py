"""A SAML 2.0 identity provider for tests: its metadata, and responses with any content, signed by its key."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from xml.sax.saxutils import escape, quoteattr

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

SAML, PROTOCOL = "urn:oasis:names:tc:SAML:2.0:assertion", "urn:oasis:names:tc:SAML:2.0:protocol"
AWS = "https://aws.amazon.com/SAML/Attributes/"
RECIPIENT = "https://signin.sc2s.sgov.gov/saml"


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class SamlProvider:
    """See the module. `entity` is its entity id."""

    def __init__(self, entity: str = "https://idp.example/saml", *, curve: bool = False) -> None:
        self.entity = entity
        self.key: Any = ec.generate_private_key(ec.SECP256R1()) if curve else rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "identity provider")])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self.key, SHA256())
        )
        self.method = "ecdsa-sha256" if curve else "rsa-sha256"

    @property
    def der(self) -> str:
        """The certificate, DER in base64."""
        return base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()

    def metadata(self, *, valid_until: str = "2040-01-01T00:00:00Z", others: Sequence[str] = ()) -> str:
        """The metadata document, with further certificates beside its own."""
        keys = "".join(
            '<KeyDescriptor use="signing"><ds:KeyInfo xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:X509Data>'
            f"<ds:X509Certificate>{each}</ds:X509Certificate></ds:X509Data></ds:KeyInfo></KeyDescriptor>"
            for each in (*others, self.der)
        )
        return (
            f'<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata" entityID="{self.entity}" '
            f'validUntil="{valid_until}"><IDPSSODescriptor protocolSupportEnumeration="{PROTOCOL}">{keys}'
            "<!-- padded to the least length that the model allows, which an elliptic key does not reach by itself -->"
            '<SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST" '
            'Location="https://idp.example/sso"/></IDPSSODescriptor></EntityDescriptor>'
        )

    def assertion(
        self,
        role: str,
        provider: str,
        *,
        subject: str = "ann@example",
        name: str | None = None,
        audience: str = "urn:amazon:webservices",
        recipient: str = RECIPIENT,
        issued: datetime | None = None,
        lasts: timedelta = timedelta(minutes=4),
        starts: timedelta = timedelta(0),
        session: timedelta | None = None,
        attributes: Mapping[str, Sequence[str]] | None = None,
        identifier: str | None = None,
    ) -> str:
        """An unsigned assertion. `name` is the NameID element's content as XML, else `subject` escaped."""
        now = issued or datetime.now(UTC)
        ends = _instant(now + lasts)
        stated: dict[str, Sequence[str]] = {
            f"{AWS}Role": [f"{role},{provider}"],
            f"{AWS}RoleSessionName": ["ann"],
            **{
                key if key.startswith(("urn:", "http")) else AWS + key: value
                for key, value in (attributes or {}).items()
            },
        }
        listed = "".join(
            f"<saml:Attribute Name={quoteattr(key)}>"
            + "".join(f"<saml:AttributeValue>{escape(value)}</saml:AttributeValue>" for value in values)
            + "</saml:Attribute>"
            for key, values in stated.items()
        )
        until = "" if session is None else f' SessionNotOnOrAfter="{_instant(now + session)}"'
        return (
            f'<saml:Assertion xmlns:saml="{SAML}" ID="{identifier or "_" + uuid4().hex}" Version="2.0" '
            f'IssueInstant="{_instant(now)}"><saml:Issuer>{escape(self.entity)}</saml:Issuer><saml:Subject>'
            '<saml:NameID Format="urn:oasis:names:tc:SAML:2.0:nameid-format:persistent">'
            f"{escape(subject) if name is None else name}</saml:NameID>"
            '<saml:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer"><saml:SubjectConfirmationData '
            f'Recipient="{recipient}" NotOnOrAfter="{ends}"/></saml:SubjectConfirmation></saml:Subject>'
            f'<saml:Conditions NotBefore="{_instant(now + starts)}" NotOnOrAfter="{ends}"><saml:AudienceRestriction>'
            f"<saml:Audience>{escape(audience)}</saml:Audience></saml:AudienceRestriction></saml:Conditions>"
            f'<saml:AuthnStatement AuthnInstant="{_instant(now)}"{until}><saml:AuthnContext><saml:AuthnContextClassRef>'
            "urn:oasis:names:tc:SAML:2.0:ac:classes:Password</saml:AuthnContextClassRef></saml:AuthnContext>"
            f"</saml:AuthnStatement><saml:AttributeStatement>{listed}</saml:AttributeStatement></saml:Assertion>"
        )

    def signed(self, element: str, *, method: str | None = None, digest: str = "sha256") -> str:
        """An Assertion or Response with an enveloped signature after its Issuer."""
        from lxml import etree
        from signxml import SignatureConstructionMethod, XMLSigner

        class Signer(XMLSigner):  # type: ignore[misc, unused-ignore]
            def check_deprecated_methods(self) -> None:
                """SHA-1 too: tests sign with it to see it refused."""

        root = etree.fromstring(element.encode())
        place = etree.SubElement(root, "{http://www.w3.org/2000/09/xmldsig#}Signature", Id="placeholder")
        root.remove(place)
        root.insert(1, place)
        signer = Signer(
            method=SignatureConstructionMethod.enveloped,
            signature_algorithm=method or self.method,
            digest_algorithm=digest,
            c14n_algorithm="http://www.w3.org/2001/10/xml-exc-c14n#",
        )
        made = signer.sign(root, key=self.key, cert=[self.certificate], reference_uri=root.get("ID"), id_attribute="ID")
        text: str = etree.tostring(made).decode()
        return text

    def response(self, *inside: str, status: str = "Success") -> str:
        """An unsigned response around assertions."""
        return (
            f'<samlp:Response xmlns:samlp="{PROTOCOL}" xmlns:saml="{SAML}" ID="_{uuid4().hex}" Version="2.0" '
            f'IssueInstant="{_instant(datetime.now(UTC))}"><saml:Issuer>{escape(self.entity)}</saml:Issuer><samlp:Status>'
            f'<samlp:StatusCode Value="urn:oasis:names:tc:SAML:2.0:status:{status}"/></samlp:Status>{"".join(inside)}'
            "</samlp:Response>"
        )


def encoded(response: str) -> str:
    """A response as clients send it."""
    return base64.b64encode(response.encode()).decode()
