"""What a model server shows to the enclave, and whom it answers: mutual TLS with its own short-lived identity.

DIRECTORY/svid hands this server its SVID (SPIFFE). It is renewed before it ends, for new connections.

Invariants:
- Only a peer that shows the enclave's own SPIFFE ID, as it came with this server's identity, is answered.
- Python's own library and nothing else: any environment can run it.

Source: SPIFFE X.509-SVID.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

_RENEW_S, _AGAIN_S = 60.0, 2.0


class ServingIdentity:
    """A TLS context for the listening socket. Raises OSError when no identity is handed out."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0
        self.context.verify_mode = ssl.CERT_REQUIRED
        document = self._fetch()
        self.context.load_verify_locations(cadata=document["bundle"])
        self.enclave = str(document["broker"])
        self._until = self._show(document)
        threading.Thread(target=self._renew, name="identity", daemon=True).start()

    def answers(self, transport: Any) -> bool:
        """Whether the peer of a connection is the enclave."""
        shown = transport.get_extra_info("peercert") or {}
        return [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"] == [self.enclave]

    def _fetch(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(str(self._directory / "svid"))
            octets = b""
            while chunk := outside.recv(1 << 16):
                octets += chunk
        document: dict[str, Any] = json.loads(octets)
        return document

    def _show(self, document: dict[str, Any]) -> float:
        """Use an identity for new connections; when it ends, in epoch seconds."""
        handle = os.memfd_create("svid", os.MFD_CLOEXEC)  # OpenSSL reads keys from files only
        try:
            os.write(handle, (document["certificate"] + document["key"]).encode())
            self.context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        return float(document["expires"])

    def _renew(self) -> None:
        while True:
            time.sleep(max(_AGAIN_S, self._until - _RENEW_S - time.time()))
            try:
                self._until = self._show(self._fetch())
            except (OSError, ValueError, KeyError):
                continue  # an enclave that is gone needs no answer; this server ends with it
