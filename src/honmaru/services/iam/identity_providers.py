"""Identity providers: OpenID Connect issuers whose tokens open roles, and SAML providers' metadata.

Invariants:
- Whoever sets a provider's clearance tag (how far its word about labels is taken) covers that clearance.
- An issuer is named by its https URL once; what is registered reaches no network.
- Whoever replaces a provider's keys covers its clearance tag too: the keys are what its word is believed by.

Encrypted assertions are not read, so a SAML provider takes no private key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from honmaru.core.errors import AuthenticationFailed, Conflict, NotFound, QuotaExceeded, ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.security.identity import entities, saml
from honmaru.services.iam.entities import (
    Part,
    arn_of,
    check_grant,
    find,
    listed_tags,
    tag_list,
    tagged,
    tags_of,
    untagged,
    update,
)

CLIENTS_LIMIT, THUMBPRINTS_LIMIT = 100, 5
_THUMBPRINT = re.compile(r"[0-9A-Fa-f]{40}")
Request = Mapping[str, Any]


def _issuer(url: str) -> str:
    """An issuer without its scheme, as ARNs and condition keys name it. Raises ValidationFault."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or len(url) > 255:
        raise ValidationFault("Invalid Open ID Connect Provider URL", code="InvalidInput")
    return url.removeprefix("https://").rstrip("/")


def _check_thumbprints(listed: list[str]) -> list[str]:
    if len(listed) > THUMBPRINTS_LIMIT:
        raise QuotaExceeded(f"Thumbprint list must contain at most {THUMBPRINTS_LIMIT} entries.", code="InvalidInput")
    for each in listed:
        if not _THUMBPRINT.fullmatch(each):
            raise ValidationFault("Thumbprint must be 40 hexadecimal characters.", code="InvalidInput")
    return [each.lower() for each in listed]


class IdentityProviders(Part):
    """Operations on identity providers."""

    def create_open_id_connect_provider(self, call: Call, request: Request) -> dict[str, Any]:
        name = _issuer(request["Url"])
        clients = list(dict.fromkeys(request.get("ClientIDList") or []))
        if len(clients) > CLIENTS_LIMIT:
            raise QuotaExceeded(
                f"Cannot exceed quota for ClientIdsPerOpenIdConnectProvider: {CLIENTS_LIMIT}", code="LimitExceeded"
            )
        tags = tags_of(request)
        check_grant(call, self.identity, tags)
        if call.records.get(entities.OIDC_PROVIDER, name) is not None:
            raise Conflict(f"Provider with url https://{name} already exists.", code="EntityAlreadyExists")
        body = {
            "id": self.identity.ids.token("OIDC", 17),
            "clients": clients,
            "thumbprints": _check_thumbprints(list(request.get("ThumbprintList") or [])),
            "tags": tags,
        }
        record = call.records.create(entities.OIDC_PROVIDER, name, body)
        call.resources.append((arn_of(call, record), "AWS::IAM::OIDCProvider"))
        return {"OpenIDConnectProviderArn": arn_of(call, record), "Tags": tag_list(tags) or None}

    def get_open_id_connect_provider(self, call: Call, request: Request) -> dict[str, Any]:
        record = _oidc(call, request)
        return {
            "Url": record.name,
            "ClientIDList": record.body["clients"],
            "ThumbprintList": record.body["thumbprints"],
            "CreateDate": record.created,
            "Tags": tag_list(record.body["tags"]) or None,
        }

    def list_open_id_connect_providers(self, call: Call, _request: Request) -> dict[str, Any]:
        return {
            "OpenIDConnectProviderList": [
                {"Arn": arn_of(call, each)} for each in call.records.iterate(entities.OIDC_PROVIDER)
            ]
        }

    def delete_open_id_connect_provider(self, call: Call, request: Request) -> None:
        call.records.delete(_oidc(call, request))

    def update_open_id_connect_provider_thumbprint(self, call: Call, request: Request) -> None:
        record = _oidc(call, request)
        check_grant(call, self.identity, record.body["tags"])
        update(call, record, thumbprints=_check_thumbprints(list(request["ThumbprintList"])))

    def add_client_id_to_open_id_connect_provider(self, call: Call, request: Request) -> None:
        record = _oidc(call, request)
        clients = list(dict.fromkeys([*record.body["clients"], request["ClientID"]]))
        if len(clients) > CLIENTS_LIMIT:
            raise QuotaExceeded(
                f"Cannot exceed quota for ClientIdsPerOpenIdConnectProvider: {CLIENTS_LIMIT}", code="LimitExceeded"
            )
        update(call, record, clients=clients)

    def remove_client_id_from_open_id_connect_provider(self, call: Call, request: Request) -> None:
        record = _oidc(call, request)
        update(call, record, clients=[each for each in record.body["clients"] if each != request["ClientID"]])

    def tag_open_id_connect_provider(self, call: Call, request: Request) -> None:
        tagged(call, self.identity, _oidc(call, request), request)

    def untag_open_id_connect_provider(self, call: Call, request: Request) -> None:
        untagged(call, _oidc(call, request), request["TagKeys"])

    def list_open_id_connect_provider_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(_oidc(call, request), request)

    # SAML

    def create_saml_provider(self, call: Call, request: Request) -> dict[str, Any]:
        name = request["Name"]
        entities.check_name(name, 128)
        _refuse_encryption(request)
        tags = tags_of(request)
        check_grant(call, self.identity, tags)
        if call.records.get(entities.SAML_PROVIDER, name) is not None:
            raise Conflict(f"SAMLProvider with name {name} already exists.", code="EntityAlreadyExists")
        body = {
            "id": self.identity.ids.token("SAML", 17),
            "tags": tags,
            **_metadata(request["SAMLMetadataDocument"]),
        }
        record = call.records.create(entities.SAML_PROVIDER, name, body)
        return {"SAMLProviderArn": arn_of(call, record), "Tags": tag_list(tags) or None}

    def get_saml_provider(self, call: Call, request: Request) -> dict[str, Any]:
        record = _saml(call, request)
        return {
            "SAMLProviderUUID": record.body["id"],
            "SAMLMetadataDocument": record.body["metadata"],
            "CreateDate": record.created,
            "ValidUntil": _valid_until(record),
            "Tags": tag_list(record.body["tags"]) or None,
        }

    def list_saml_providers(self, call: Call, _request: Request) -> dict[str, Any]:
        return {
            "SAMLProviderList": [
                {"Arn": arn_of(call, each), "ValidUntil": _valid_until(each), "CreateDate": each.created}
                for each in call.records.iterate(entities.SAML_PROVIDER)
            ]
        }

    def update_saml_provider(self, call: Call, request: Request) -> dict[str, Any]:
        _refuse_encryption(request)
        record = _saml(call, request)
        check_grant(call, self.identity, record.body["tags"])
        if request.get("SAMLMetadataDocument"):
            update(call, record, **_metadata(request["SAMLMetadataDocument"]))
        return {"SAMLProviderArn": arn_of(call, record)}

    def delete_saml_provider(self, call: Call, request: Request) -> None:
        call.records.delete(_saml(call, request))

    def tag_saml_provider(self, call: Call, request: Request) -> None:
        tagged(call, self.identity, _saml(call, request), request)

    def untag_saml_provider(self, call: Call, request: Request) -> None:
        untagged(call, _saml(call, request), request["TagKeys"])

    def list_saml_provider_tags(self, call: Call, request: Request) -> dict[str, Any]:
        return listed_tags(_saml(call, request), request)


def _oidc(call: Call, request: Request) -> Record:
    return _provider(call, entities.OIDC_PROVIDER, request["OpenIDConnectProviderArn"])


def _saml(call: Call, request: Request) -> Record:
    return _provider(call, entities.SAML_PROVIDER, request["SAMLProviderArn"])


def _provider(call: Call, kind: str, arn: str) -> Record:
    name = arn.partition(f":{kind}/")[2]
    if call.records.get(kind, name) is None:
        raise NotFound(f"No provider {arn} was found.", code="NoSuchEntity")
    record = find(call, kind, name)
    if arn_of(call, record) != arn:
        raise NotFound(f"No provider {arn} was found.", code="NoSuchEntity")
    return record


def _refuse_encryption(request: Request) -> None:
    for member in ("AssertionEncryptionMode", "AddPrivateKey", "RemovePrivateKey"):
        if request.get(member) not in (None, "Allowed"):
            raise ValidationFault(f"{member} is not supported: encrypted assertions are not read", code="InvalidInput")


def _metadata(text: str) -> dict[str, Any]:
    """A SAML metadata document and its end of validity. Raises ValidationFault for what is none."""
    try:
        found = saml.read_metadata(text)
        if found.valid_until is not None:
            saml.moment(found.valid_until)
    except AuthenticationFailed as fault:
        raise ValidationFault(f"Could not parse metadata: {fault.message}", code="InvalidInput") from None
    return {"metadata": text, "entity": found.entity, "valid_until": found.valid_until}


def _valid_until(record: Record) -> datetime | None:
    text = record.body["valid_until"]
    return None if text is None else saml.moment(text)
