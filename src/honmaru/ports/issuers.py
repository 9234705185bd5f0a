"""Where the verification keys of OpenID Connect issuers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class IssuerKeys(Protocol):
    def fetch(self, issuer: str, thumbprints: Sequence[str]) -> list[Mapping[str, Any]]:
        """The signing keys (JWK, RFC 7517) that an issuer publishes under its discovery document.

        `issuer` is an https URL; `thumbprints` are SHA-1 digests of its TLS certificate, in hex: when there are any,
        the certificate must be one of them. Raises StoreUnavailable when the issuer cannot be asked.
        """
        ...
