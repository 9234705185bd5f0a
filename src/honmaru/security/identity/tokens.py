"""Session tokens: sealed and stateless; a token carries the whole session, and only this enclave can make or open one.

Invariants:
- A token that was changed, cut or made elsewhere does not open, whatever the access key id.
- What a token carries is fixed when it is made: its label, principal and expiry can be changed by nobody.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import orjson

from honmaru.core.errors import AuthenticationFailed, IntegrityFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.core.sessions import Session
from honmaru.security.crypto.keyring import Keyring

_CONTEXT = b"sts session token 1"
TOKEN_LIMIT = 65536
_OF_THE_REQUEST = {"source_ip", "user_agent", "secure_transport"}
_SPECIAL = {"label", "tags", "transitive_tags", "chain"}
_PLAIN = tuple(each.name for each in fields(Session) if each.name not in _OF_THE_REQUEST | _SPECIAL)


@dataclass(frozen=True, slots=True)
class OpenedToken:
    """What a token holds."""

    secret: str
    expires: datetime
    session: Session


def seal_token(keyring: Keyring, account: str, opened: OpenedToken) -> str:
    """Session → token text (base64), sealed with a key of the enclave's own account."""
    session = opened.session
    content: dict[str, Any] = {name: getattr(session, name) for name in _PLAIN}
    content |= {
        "label": session.label.canonical,
        "tags": dict(session.tags),
        "transitive_tags": sorted(session.transitive_tags),
        "chain": session.chain,
        "secret": opened.secret,
        "expires": opened.expires.timestamp(),
    }
    return base64.b64encode(keyring.seal(account, BOTTOM.canonical, orjson.dumps(content), _CONTEXT)).decode()


def open_token(keyring: Keyring, account: str, token: str) -> OpenedToken:
    """Token text → session. Raises AuthenticationFailed; the caller checks expiry and that the principals remain."""
    refused = AuthenticationFailed("The security token included in the request is invalid")
    if len(token) > TOKEN_LIMIT:
        raise refused
    try:
        sealed = base64.b64decode(token, validate=True)
        if base64.b64encode(sealed).decode() != token:  # base64 has spare bits at its end: one token has one text
            raise refused
        content = orjson.loads(keyring.open(account, BOTTOM.canonical, sealed, _CONTEXT))
    except (IntegrityFault, binascii.Error, ValueError):
        raise refused from None
    session = Session(
        **{name: content[name] for name in _PLAIN if name in content},
        label=Label.decode(content["label"]),
        tags=content["tags"],
        transitive_tags=frozenset(content["transitive_tags"]),
        chain=tuple(tuple(link) for link in content["chain"]),
    )
    return OpenedToken(content["secret"], datetime.fromtimestamp(content["expires"], UTC), session)
