"""SAML 2.0: the metadata of identity providers, and assertions whose signature was verified. Pure.

Invariants:
- Documents with a DTD, an entity declaration or a processing instruction are refused; size and depth are limited.
- Names count with their namespace; text is read whole, so a comment inside a value parts nothing of it.
- An assertion without issuer, subject, audience, recipient and end of validity is none. It is taken within five minutes
  of its issue, by the bearer whom its subject confirmation names.
- An attribute that AWS reads is there once, with as many values as it may have.

Source: SAML 2.0 core 2 and 5.4, profiles 4.1.4, metadata 2; IAM user guide "Configure SAML assertions for the
authentication response", "Available keys for SAML-based AWS STS federation".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.parsers import expat

from honmaru.core.errors import AuthenticationFailed

METADATA_LIMIT, CERTIFICATES_LIMIT = 10_000_000, 10
REDEEM_WITHIN, LEEWAY = timedelta(minutes=5), timedelta(seconds=60)
_DEPTH, _ELEMENTS = 64, 50_000
_SAML, _MD = "urn:oasis:names:tc:SAML:2.0:assertion ", "urn:oasis:names:tc:SAML:2.0:metadata "
_DS = "http://www.w3.org/2000/09/xmldsig# "
_BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
_FORMATS = "urn:oasis:names:tc:SAML:2.0:nameid-format:"
_AWS = "https://aws.amazon.com/SAML/Attributes/"
_TAG = f"{_AWS}PrincipalTag:"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_CONSOLES = {"aws-us-gov": "amazonaws-us-gov.com"}
_EDU_PERSON = (
    *("affiliation", "nickname", "orgdn", "orgunitdn", "primaryaffiliation", "principalname", "entitlement"),
    *("primaryorgunitdn", "scopedaffiliation", "targetedid", "assurance"),
)
_EDU_ORG = ("homepageuri", "identityauthnpolicyuri", "legalname", "superioruri", "whitepagesuri")
_CLAIMS = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/"
_KEYS: Mapping[str, str] = {
    **{f"urn:oid:1.3.6.1.4.1.5923.1.1.1.{at}": f"saml:eduperson{name}" for at, name in enumerate(_EDU_PERSON, 1)},
    **{f"urn:oid:1.3.6.1.4.1.5923.1.2.1.{at}": f"saml:eduorg{name}" for at, name in enumerate(_EDU_ORG, 2)},
    "urn:oid:2.5.4.3": "saml:cn",
    "urn:oid:2.5.4.4": "saml:surname",
    "urn:oid:2.5.4.41": "saml:name",
    "urn:oid:2.5.4.42": "saml:givenname",
    "urn:oid:2.5.4.45": "saml:x500uniqueidentifier",
    "urn:oid:0.9.2342.19200300.100.1.1": "saml:uid",
    "urn:oid:0.9.2342.19200300.100.1.3": "saml:mail",
    "urn:oid:0.9.2342.19200300.100.1.45": "saml:organizationstatus",
    "http://schemas.xmlsoap.org/claims/CommonName": "saml:commonname",
    f"{_CLAIMS}emailaddress": "saml:mail",
    f"{_CLAIMS}givenname": "saml:givenname",
    f"{_CLAIMS}name": "saml:name",
    f"{_CLAIMS}surname": "saml:surname",
    "http://schemas.microsoft.com/ws/2008/06/identity/claims/primarygroupsid": "saml:primarygroupsid",
}
"""Attribute → condition key. An identity provider that uses two names of one key gives it the values of both."""


class Element:
    """A parsed element: `namespace name`, attributes, children, text."""

    __slots__ = ("attributes", "children", "name", "text")

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.attributes, self.text = name, attributes, ""
        self.children: list[Element] = []

    def all(self, name: str) -> list[Element]:
        return [child for child in self.children if child.name == name]

    def one(self, name: str) -> Element:
        """The only child of a name. Raises AuthenticationFailed."""
        found = self.all(name)
        if len(found) != 1:
            raise invalid(f"expected one {name.rpartition(' ')[2]}, found {len(found)}")
        return found[0]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What an identity provider says of itself. `certificates` are DER in base64."""

    entity: str
    certificates: tuple[str, ...]
    valid_until: str | None


@dataclass(frozen=True, slots=True)
class Assertion:
    """What a verified assertion says. `ends` is the last moment at which it can be used."""

    id: str
    issuer: str
    subject: str
    subject_type: str
    audience: str
    recipient: str
    ends: datetime
    session_ends: datetime | None
    roles: frozenset[tuple[str, str]]
    """Pairs of ARNs, as written: (role, provider) or the other way round."""
    session_name: str
    source_identity: str | None
    duration_s: int | None
    tags: Mapping[str, str]
    transitive: frozenset[str]
    keys: Mapping[str, Any] = field(repr=False)
    """Condition keys of what else the identity provider says."""


def invalid(message: str) -> AuthenticationFailed:
    """AWS's refusal of a token."""
    return AuthenticationFailed(
        f"Your request included an invalid SAML response: {message}", code="InvalidIdentityToken"
    )


def parse(document: bytes) -> Element:
    """Bytes → the root element. Raises AuthenticationFailed."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    root = Element("", {})
    stack, pieces, count = [root], [[""]], 0

    def refuse(*_: object) -> None:
        raise invalid("a DTD, entity or processing instruction")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _ELEMENTS or len(stack) > _DEPTH:
            raise invalid("too many elements")
        element = Element(name, attributes)
        stack[-1].children.append(element)
        stack.append(element)
        pieces.append([])

    def end(_: str) -> None:
        stack.pop().text = "".join(pieces.pop())

    parser.StartDoctypeDeclHandler = refuse
    parser.ProcessingInstructionHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda data: pieces[-1].append(data)
    try:
        parser.Parse(document, True)
    except (expat.ExpatError, ValueError, LookupError):
        raise invalid("not well-formed XML") from None
    return root.children[0]


def read_metadata(text: str) -> Metadata:
    """A provider's metadata document. Raises AuthenticationFailed for what is none, or holds no key that signs."""
    root = parse(text.encode())
    entity = root.attributes.get("entityID", "")
    if len(text) > METADATA_LIMIT or root.name != f"{_MD}EntityDescriptor" or not 1 <= len(entity) <= 1024:
        raise invalid("not a metadata document of one entity")
    certificates: list[str] = []
    for descriptor in root.all(f"{_MD}IDPSSODescriptor"):
        for key in descriptor.all(f"{_MD}KeyDescriptor"):
            if key.attributes.get("use", "signing") == "signing":
                certificates += _certificates(key)
    certificates = list(dict.fromkeys(certificates))
    if not 1 <= len(certificates) <= CERTIFICATES_LIMIT:
        raise invalid(f"{len(certificates)} certificates that sign; expected 1 to {CERTIFICATES_LIMIT}")
    return Metadata(entity, tuple(certificates), root.attributes.get("validUntil"))


def _certificates(key: Element) -> list[str]:
    path = [f"{_DS}KeyInfo", f"{_DS}X509Data", f"{_DS}X509Certificate"]
    found = [key]
    for name in path:
        found = [child for each in found for child in each.all(name)]
    return ["".join(each.text.split()) for each in found]


def moment(text: str) -> datetime:
    """A time of SAML, which is in UTC. Raises AuthenticationFailed."""
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
        except ValueError:
            pass
    raise invalid(f"the time {text[:40]!r}")


def audiences(partition: str) -> frozenset[str]:
    """Whom an assertion for this partition is for."""
    named = {"urn:amazon:webservices"}
    return frozenset(named | {"urn:amazon:webservices:govcloud"} if partition == "aws-us-gov" else named)


def recipients(partition: str, dns_suffix: str, region: str) -> frozenset[str]:
    """Where an assertion may be sent: the partition's sign-in page, or this Region's, which no other enclave takes."""
    host = f"signin.{_CONSOLES.get(partition, dns_suffix)}"
    return frozenset((f"https://{host}/saml", f"https://{region}.{host}/saml"))


def read(signed: bytes, now: datetime, *, accepted: frozenset[str], sent_to: frozenset[str]) -> Assertion:
    """A verified assertion, once everything about it but its issuer was checked.

    `accepted` are audiences, `sent_to` recipients. Raises AuthenticationFailed (InvalidIdentityToken,
    ExpiredTokenException).
    """
    root = parse(signed)
    if root.name != f"{_SAML}Assertion" or root.attributes.get("Version") != "2.0":
        raise invalid("not an assertion of SAML 2.0")
    issued = moment(root.attributes.get("IssueInstant", ""))
    if issued > now + LEEWAY:
        raise invalid("it was issued in the future")
    if now >= issued + REDEEM_WITHIN:
        raise _expired("Token must be redeemed within 5 minutes of issuance")
    identifier = root.attributes.get("ID", "")
    if not 1 <= len(identifier) <= 256:
        raise invalid("no ID")
    subject = root.one(f"{_SAML}Subject")
    name = subject.one(f"{_SAML}NameID")
    recipient, ends = _confirmed(subject, now, sent_to)
    audience, ends = _within_conditions(root.one(f"{_SAML}Conditions"), now, accepted, ends)
    statements = root.all(f"{_SAML}AuthnStatement")
    limits = [
        moment(each.attributes["SessionNotOnOrAfter"])
        for each in statements
        if "SessionNotOnOrAfter" in each.attributes
    ]
    if not statements:
        raise invalid("no AuthnStatement")
    if any(now >= each for each in limits):
        raise _expired("The session of the identity provider has ended")
    if not 1 <= len(name.text) <= 255 or name.text != name.text.strip():
        raise invalid("a NameID of 1 to 255 characters is expected")
    attributes = _attributes(root.all(f"{_SAML}AttributeStatement"))
    return Assertion(
        id=identifier,
        issuer=root.one(f"{_SAML}Issuer").text.strip(),
        subject=name.text,
        subject_type=name.attributes.get("Format", "").removeprefix(_FORMATS),
        audience=audience,
        recipient=recipient,
        ends=min(ends, issued + REDEEM_WITHIN),
        session_ends=min(limits, default=None),
        roles=frozenset(_pair(each) for each in attributes.get(f"{_AWS}Role", ())),
        session_name=_single(attributes, "RoleSessionName") or "",
        source_identity=_single(attributes, "SourceIdentity"),
        duration_s=_seconds(_single(attributes, "SessionDuration")),
        tags={name[len(_TAG) :]: _only(name, values) for name, values in attributes.items() if name.startswith(_TAG)},
        transitive=frozenset(attributes.get(f"{_AWS}TransitiveTagKeys", ())),
        keys=_condition_keys(attributes),
    )


def _expired(message: str) -> AuthenticationFailed:
    return AuthenticationFailed(message, code="ExpiredTokenException")


def _confirmed(subject: Element, now: datetime, sent_to: frozenset[str]) -> tuple[str, datetime]:
    """The recipient and end of the bearer confirmation that holds now; SAML asks for one at least."""
    refused: AuthenticationFailed = invalid("no bearer SubjectConfirmation for this recipient")
    for each in subject.all(f"{_SAML}SubjectConfirmation"):
        listed = each.all(f"{_SAML}SubjectConfirmationData")
        if each.attributes.get("Method") != _BEARER or len(listed) != 1:
            continue
        stated = listed[0].attributes
        recipient, ends = stated.get("Recipient", ""), moment(stated.get("NotOnOrAfter", ""))
        if recipient not in sent_to or "NotBefore" in stated:
            continue
        if now < ends:
            return recipient, ends
        refused = _expired("The subject confirmation has expired")
    raise refused


def _within_conditions(
    conditions: Element, now: datetime, accepted: frozenset[str], ends: datetime
) -> tuple[str, datetime]:
    """The audience, and when the assertion ends."""
    stated = conditions.attributes
    if "NotBefore" in stated and now + LEEWAY < moment(stated["NotBefore"]):
        raise invalid("it is not valid yet")
    if "NotOnOrAfter" in stated:
        ends = min(ends, moment(stated["NotOnOrAfter"]))
        if now >= ends:
            raise _expired("The assertion has expired")
    known = {f"{_SAML}{name}" for name in ("AudienceRestriction", "OneTimeUse", "ProxyRestriction")}
    if any(child.name not in known for child in conditions.children):
        raise invalid("a condition that is not understood")
    restrictions = [
        {each.text.strip() for each in restriction.all(f"{_SAML}Audience")}
        for restriction in conditions.all(f"{_SAML}AudienceRestriction")
    ]
    if not restrictions or not all(listed & accepted for listed in restrictions):
        raise AuthenticationFailed("Incorrect token audience", code="InvalidIdentityToken")
    return min(set.intersection(*restrictions) & accepted or restrictions[0] & accepted), ends


def _attributes(statements: Iterable[Element]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for attribute in (each for statement in statements for each in statement.all(f"{_SAML}Attribute")):
        name = attribute.attributes.get("Name", "")
        values = attribute.all(f"{_SAML}AttributeValue")
        if name in found and name.startswith(_AWS):
            raise invalid(f"the attribute {name[:200]} twice")
        if name.startswith(_AWS) and any(value.children for value in values):
            raise invalid(f"elements in a value of {name[:200]}")
        found.setdefault(name, []).extend(value.text.strip() for value in values if not value.children)
    return found


def _only(name: str, values: list[str]) -> str:
    if len(values) != 1:
        raise invalid(f"{len(values)} values of {name[:200]}; expected one")
    return values[0]


def _single(attributes: Mapping[str, list[str]], name: str) -> str | None:
    values = attributes.get(_AWS + name)
    return None if values is None else _only(_AWS + name, values)


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 900 <= int(text) <= 43200:
        raise invalid("SessionDuration is no number of 900 to 43200 seconds")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    first, comma, second = (part.strip() for part in text.partition(","))
    if not comma:
        raise invalid("a Role that is no pair of ARNs")
    return first, second


def _condition_keys(attributes: Mapping[str, list[str]]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for name, values in attributes.items():
        key = _KEYS.get(name)
        if key is not None:
            found.setdefault(key, []).extend(values)
    return dict(found)
