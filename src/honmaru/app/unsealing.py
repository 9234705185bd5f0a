"""The start of an enclave whose root key is sealed: it waits on the operator's socket for what opens it.

Invariants:
- Until the root key is open the enclave has no store, no ledger and no port: nobody is answered but the operator.
- What was brought (passphrase, shares, PIN) lies in memory only, and is let go as soon as the root key is open.
- How often something wrong was brought is written to the ledger with the unsealing, once there is one.
"""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from honmaru.app import run_files
from honmaru.app.operator import require_own_user
from honmaru.core.errors import ConfigurationFault, HonmaruError, ValidationFault
from honmaru.security.crypto import locks
from honmaru.security.crypto.root_key import RootKey, sealed_lock

_MAX_REQUEST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What opened the root key. `kind` is the lock's, `failures` how often something wrong came before."""

    key: bytes
    kind: str
    failures: int


def ring_of(data: Path) -> Path:
    """Where the root key and the keys under it lie."""
    return data / "keys" / "ring"


def no_core_dumps() -> None:
    """A crash must not write the keys in memory to a file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def unseal(data: Path, *, required: bool, announce: Callable[[dict[str, Any]], None]) -> Unsealed | None:
    """What opens the root key, once the operator has brought it; None when it is not sealed.

    Args:
        required: The operator asked for a sealed start.
        announce: Is told that the enclave waits.
    Raises:
        ConfigurationFault: a sealed start was asked for, and the root key is not sealed.
    """
    lock = sealed_lock(ring_of(data))
    if lock is None:
        if required:
            raise ConfigurationFault(["the root key is not sealed: run `honmaru seal` first, it tells how"])
        return None
    facts = {"sealed": True, "pid": os.getpid(), "data": str(data), **_shown(lock, 0)}
    path = data / "run" / "operator.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
        run_files.publish(data, facts)
        announce(facts)
        try:
            return _Waiting(ring_of(data), lock).serve(listener)
        finally:
            run_files.withdraw(data)
            path.unlink(missing_ok=True)


def _shown(lock: Mapping[str, Any], given: int) -> dict[str, Any]:
    shown = {"lock": lock["kind"]}
    if lock["kind"] == locks.SHARES:
        shown |= {"threshold": lock["threshold"], "given": given}
    if lock["kind"] == locks.TOKEN:
        shown |= {"token": lock["token"]}
    return shown


class _Waiting:
    """Answers the operator until what came opens the root key."""

    def __init__(self, ring: Path, lock: locks.Lock) -> None:
        self._ring = ring
        self._lock = lock
        self._shares: dict[tuple[int, int], str] = {}
        self._failures = 0

    def serve(self, listener: socket.socket) -> Unsealed:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                key: bytes | None = None
                try:
                    require_own_user(connection)
                    with connection.makefile("rb") as stream:
                        request = json.loads(stream.readline(_MAX_REQUEST_BYTES))
                    key = self._taken(request)
                    answer: dict[str, Any] = {"sealed": key is None, **_shown(self._lock, len(self._shares))}
                except ConfigurationFault as fault:
                    self._failures += 1
                    answer = {"error": "; ".join(fault.problems)}
                except HonmaruError as fault:
                    answer = {"error": fault.message}
                except (ValueError, OSError):
                    answer = {"error": "expected one JSON object on one line"}
                try:
                    connection.sendall(json.dumps(answer).encode() + b"\n")
                except OSError:
                    pass  # whoever asked has gone; what they brought counts all the same
            if key is not None:
                return Unsealed(key, self._lock["kind"], self._failures)

    def _taken(self, request: Any) -> bytes | None:
        """What opens the root key, if it is complete now. Raises ConfigurationFault for what is wrong."""
        if not isinstance(request, dict) or request.get("operation") not in ("Status", "Unseal"):
            raise ValidationFault("the enclave is sealed: run `honmaru unseal`")
        if request["operation"] == "Status":
            return None
        brought = str(request.get("secret") or "")
        kind = self._lock["kind"]
        if kind == locks.PASSPHRASE:
            key = locks.by_passphrase(self._lock, brought)
        elif kind == locks.TOKEN:
            key = locks.by_token(self._lock, brought)
        else:
            found = locks.check_share(brought)
            if any(identifier != found[0] for identifier, _ in self._shares):
                raise ConfigurationFault(["this share is of another set than those given before"])
            self._shares[found] = brought
            if len(self._shares) < self._lock["threshold"]:
                return None
            shares, self._shares = list(self._shares.values()), {}
            key = locks.by_shares(self._lock, shares)
        RootKey(self._ring, os.urandom, key).check()
        return key
