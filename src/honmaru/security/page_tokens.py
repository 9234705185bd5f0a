"""Page tokens: the place where a list goes on, sealed for the one question that it belongs to.

A service states a place (the key of the last item shown, never a count, so lists stay stable while items come and
go) and gets the same place back; what a client holds in between is sealed. The gateway seals and opens every page
token of every modelled operation, so no service has a mechanism of its own.

Invariants:
- A token opens only for the operation, account and session label that it was sealed for; any other, and any that was
  changed, is refused with one and the same fault, which says nothing of what is inside.
- The same place gives the same token, always: clients of GetLogEvents compare tokens to see the end of a stream.
- A token is letters and digits only, for the models' patterns of tokens have little more in common.

Source: RFC 5297 (AES-SIV: deterministic, authenticated).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from honmaru.core.errors import ValidationFault
from honmaru.core.sessions import Session
from honmaru.security.crypto.keyring import Keyring
from honmaru.security.crypto.secret_files import read_or_create

MAX_TOKEN = 16_384
"""Characters of a token that is looked at."""

_KEY_BYTES = 64
_PURPOSE = b"honmaru page token 1"


def page_key(path: Path, keyring: Keyring, account: str, secret: Callable[[int], bytes]) -> bytes:
    """The enclave's key for page tokens, kept in `path` sealed by the keyring; made on first use."""
    sealed = read_or_create(path, lambda: keyring.seal(account, "", secret(_KEY_BYTES), _PURPOSE))
    return keyring.open(account, "", sealed, _PURPOSE)


class PageTokens:
    """Seals and opens page tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESSIV(key)

    def seal(self, session: Session, operation: str, place: str) -> str:
        """The token of a place. `operation` is "service:Operation"."""
        sealed = self._cipher.encrypt(place.encode("utf-8", "surrogatepass"), _bound(session, operation))
        return base64.b32encode(sealed).decode("ascii").rstrip("=")

    def open(self, session: Session, operation: str, token: str, *, code: str | None = None) -> str:
        """The place of a token. Raises ValidationFault, with `code`, for any that was not sealed for this question."""
        try:
            if len(token) > MAX_TOKEN:
                raise ValueError
            sealed = base64.b32decode(token + "=" * (-len(token) % 8))
            return self._cipher.decrypt(sealed, _bound(session, operation)).decode("utf-8", "surrogatepass")
        except (InvalidTag, ValueError):
            raise ValidationFault(
                "The page token is not one that this operation gave to this account at this label: "
                "repeat the request without a token",
                code=code,
            ) from None


def write_place(*parts: str | int) -> str:
    """The text of a place that takes more than a name: what a service hands out as its token."""
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def read_place(text: str, *kinds: type, code: str | None = None) -> Any:
    """The parts of a place, a tuple of `kinds`. The gateway lets nothing through that it did not seal, so a text of
    another form comes only from another version, or from a token used with another kind of request. Raises
    ValidationFault."""
    try:
        parts = json.loads(text)
    except ValueError:
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise ValidationFault("The page token was given for another request: begin the list again", code=code)
    return tuple(parts)


def _bound(session: Session, operation: str) -> list[bytes]:
    return [_PURPOSE, operation.encode(), session.account.encode(), session.label.canonical.encode()]
