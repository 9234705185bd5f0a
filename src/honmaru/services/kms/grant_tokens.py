"""Grant tokens: what CreateGrant hands out, so that a grant may be named by who was given it.

A grant holds from the moment it is made, so a token opens no door that the grant itself does not; a token that was not
made here is refused all the same, as AWS does. Of a token the grant's record keeps a digest only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from collections.abc import Mapping
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.security.calls import Call
from honmaru.security.guard import Record
from honmaru.services.kms.keys import GRANT
from honmaru.services.kms.vault import Vault

_ID = 64


def new(vault: Vault, key_id: str, grant_id: str) -> tuple[str, str]:
    """(token, digest to keep). `grant_id` is 64 hexadecimal digits."""
    raw = uuid.UUID(key_id).bytes + bytes.fromhex(grant_id) + vault.ids.secret(32)
    return base64.b64encode(raw).decode(), _digest(raw)


def grant_of(call: Call, token: str) -> Record:
    """The grant that a token was made for. Raises InvalidGrantTokenException, also when the grant is gone."""
    try:
        raw = base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid() from None
    if len(raw) == 16 + _ID // 2 + 32:
        name = f"{uuid.UUID(bytes=raw[:16])}/{raw[16:48].hex()}"
        grant = call.sight("kms").get(GRANT, name)
        if grant is not None and any(hmac.compare_digest(kept, _digest(raw)) for kept in grant.body["tokens"]):
            return grant
    raise _invalid()


def check(call: Call, request: Mapping[str, Any]) -> None:
    """Raises InvalidGrantTokenException for a token that names no grant."""
    for token in request.get("GrantTokens") or ():
        grant_of(call, token)


def _digest(raw: bytes) -> str:
    return hashlib.sha384(raw).hexdigest()


def _invalid() -> ValidationFault:
    return ValidationFault("Invalid Grant Token.", code="InvalidGrantTokenException")
