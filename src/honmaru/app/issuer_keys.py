"""Asks OpenID Connect issuers on the site's own network for their keys: a `ports.issuers.IssuerKeys`.

Invariants:
- Only issuers that an administrator registered are asked, over TLS, and only when somebody brings their token.
- No address of the public Internet is ever connected to; redirects are not followed; answers are bounded.

Source: OpenID Connect Discovery 1.0, 4; RFC 7517 5.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from honmaru.core.errors import StoreUnavailable

_TIMEOUT_S = 5.0
_LIMIT = 256 << 10


class LocalIssuerKeys:
    """See the module."""

    def fetch(self, issuer: str, thumbprints: Sequence[str]) -> list[Mapping[str, Any]]:
        """See the port."""
        discovery = _json(f"{issuer.rstrip('/')}/.well-known/openid-configuration", thumbprints)
        if discovery.get("issuer") != issuer:
            raise StoreUnavailable(f"the discovery document of {issuer} is another issuer's")
        keys = _json(str(discovery.get("jwks_uri", "")), thumbprints).get("keys")
        if not isinstance(keys, list):
            raise StoreUnavailable(f"{issuer} publishes no keys")
        return [key for key in keys if isinstance(key, dict)]


def _json(url: str, thumbprints: Sequence[str]) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise StoreUnavailable(f"{url[:256]!r} is not an https URL")
    address = _local_address(parts.hostname, parts.port or 443)
    context = ssl.create_default_context()
    if thumbprints:
        # The certificate is compared with the registered ones instead of being traced to an authority.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=_TIMEOUT_S, context=context)
    try:
        plain = socket.create_connection(address, timeout=_TIMEOUT_S)
        connection.sock = context.wrap_socket(plain, server_hostname=parts.hostname)
        certificate = connection.sock.getpeercert(binary_form=True) or b""
        digest = hashlib.sha1(certificate, usedforsecurity=False).hexdigest()
        if thumbprints and digest not in {each.lower() for each in thumbprints}:
            raise StoreUnavailable(f"{parts.hostname} shows a certificate that is not registered")
        connection.request("GET", parts.path or "/", headers={"Accept": "application/json"})
        response = connection.getresponse()
        body = response.read(_LIMIT + 1)
        if response.status != 200 or len(body) > _LIMIT:
            raise StoreUnavailable(f"{parts.hostname} answers {response.status}")
        found = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as fault:
        raise StoreUnavailable(f"{parts.hostname} cannot be asked: {type(fault).__name__}") from fault
    finally:
        connection.close()
    if not isinstance(found, dict):
        raise StoreUnavailable(f"{parts.hostname} answers no JSON object")
    return found


def _local_address(host: str, port: int) -> tuple[str, int]:
    """An address of the host on the site's own network. Raises StoreUnavailable when it has none."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as fault:
        raise StoreUnavailable(f"{host} has no address") from fault
    for each in found:
        if not ip_address(each.partition("%")[0]).is_global:
            return each, port
    raise StoreUnavailable(f"{host} is outside of this site's network")
