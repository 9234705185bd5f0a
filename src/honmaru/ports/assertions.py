"""Who checks the XML signatures of SAML responses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol


class AssertionVerifier(Protocol):
    def signed_assertion(self, response: bytes, certificates: Sequence[str], now: datetime) -> bytes:
        """The one assertion of a SAML response, exactly as it was signed: canonical XML without comments.

        `certificates` are the identity provider's, DER in base64; each may have made the signature. Nothing outside of
        the answer may be believed. Raises AuthenticationFailed (InvalidIdentityToken, IDPRejectedClaim).
        """
        ...
