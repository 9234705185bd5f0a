"""Identities of model servers, from the same authority as those of jobs: a `ports.server_identities.ServerIdentities`.

Invariants:
- A model server has a directory with one socket, which hands out its identity and leads nowhere: it answers the
  enclave and reaches nothing.
- Both sides of every connection to it are named. The enclave shows an identity of minutes at the server's label, made
  anew before it ends.
"""

from __future__ import annotations

import ssl
import threading
from datetime import datetime, timedelta
from pathlib import Path

from honmaru.core.sessions import Session
from honmaru.jobs.job_broker import BROKER, SVID, JobBrokers
from honmaru.ports.runtime import Clock
from honmaru.ports.server_identities import ServerIdentityGone
from honmaru.security.crypto.workload_identity import WorkloadAuthority, client_context, spiffe_id

_RENEW = timedelta(seconds=60)


class ModelServerIdentities:
    """See the module. Thread-safe."""

    def __init__(self, brokers: JobBrokers, authority: WorkloadAuthority, clock: Clock) -> None:
        self._brokers, self._authority, self._clock = brokers, authority, clock
        self._sessions: dict[str, Session] = {}
        self._shown: dict[tuple[str, str], tuple[datetime, ssl.SSLContext]] = {}
        self._lock = threading.Lock()

    def open(self, server_id: str, session: Session) -> Path:
        """See the port."""
        with self._lock:
            self._sessions[server_id] = session
        return self._brokers.open(server_id, session, _workload(server_id), doors=(SVID,))

    def close(self, server_id: str) -> None:
        """See the port."""
        with self._lock:
            self._sessions.pop(server_id, None)
        self._brokers.close(server_id)

    def context(self, server_id: str) -> ssl.SSLContext:
        """See the port."""
        with self._lock:
            session = self._sessions.get(server_id)
            if session is None:
                raise ServerIdentityGone("the model server was stopped")
            place, now = (session.account, session.label.canonical), self._clock.now()
            until, context = self._shown.get(place, (now, None))
            if context is None or now > until - _RENEW:
                svid = self._authority.issue(session.account, session.label, BROKER, now)
                until, context = svid.expires, client_context(svid)
                self._shown[place] = (until, context)
            return context

    def name(self, server_id: str) -> str:
        """See the port."""
        with self._lock:
            session = self._sessions.get(server_id)
        if session is None:
            return ""
        return spiffe_id(self._authority.trust_domain, session.label, session.account, _workload(server_id))


def _workload(server_id: str) -> str:
    return f"bedrock/model-server/{server_id}"
