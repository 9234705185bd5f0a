"""Identities of model servers: what each shows to the enclave, and the enclave to each (SPIFFE X.509-SVIDs)."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Protocol

from honmaru.core.sessions import Session

IDENTITY_INSIDE = "/run/identity"
"""Where a server's sandbox has the directory that `open` answers."""


class ServerIdentities(Protocol):
    def open(self, server_id: str, session: Session) -> Path:
        """Have an identity ready for a server at the session's label; the directory to mount into its sandbox.

        `server_id` is letters, digits and hyphens.
        """
        ...

    def close(self, server_id: str) -> None:
        """Hand out that identity no more. Idempotent."""
        ...

    def context(self, server_id: str) -> ssl.SSLContext:
        """TLS with the enclave's own identity at the server's label, good now, for a new connection to it.

        Raises ServerIdentityGone (an OSError) when the server has none.
        """
        ...

    def name(self, server_id: str) -> str:
        """The SPIFFE ID that the server must show; "" when it has none."""
        ...


class ServerIdentityGone(OSError):
    """A server whose identity was closed is not talked to."""
