"""The local operator's channel: a UNIX socket in the data directory, one JSON request and one JSON answer a connection.

Invariants:
- Only a process of the enclave's own user (or root) is answered: the socket is 0600 and the peer's uid is checked.
- Every operation leaves a ledger entry before it is answered.
- What it offers is in one table, `OPERATIONS`; none of it reads what jobs or users stored.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honmaru.core.errors import AccessDenied, ConfigurationFault, HonmaruError, ValidationFault
from honmaru.core.labels import BOTTOM, Label
from honmaru.gateway.meters import Reader
from honmaru.security.ledger.entries import api_call

if TYPE_CHECKING:
    from honmaru.app.enclave import Enclave

_MAX_REQUEST_BYTES = 1 << 20


def _status(enclave: Enclave, _request: Mapping[str, Any]) -> dict[str, Any]:
    return enclave.describe()


def _create_user(enclave: Enclave, request: Mapping[str, Any]) -> dict[str, Any]:
    enclave.identity.create_user(request["name"], request["clearance"], request["policies"])
    return {"user": request["name"], "clearance": request["clearance"]}


def _list_users(enclave: Enclave, _request: Mapping[str, Any]) -> dict[str, Any]:
    return {"users": enclave.identity.users()}


def _credentials(enclave: Enclave, request: Mapping[str, Any]) -> dict[str, Any]:
    label = Label.parse(request["label"]) if request.get("label") else BOTTOM
    access_key_id, secret = enclave.identity.access_key(request["user"], label)
    return {
        "access_key_id": access_key_id,
        "secret_access_key": secret,
        "bearer_token": enclave.identity.bearer_key(request["user"], label),
        "label": label.banner,
    }


def _environments(enclave: Enclave, _request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "environments": [
            {"name": e.name, "digest": e.digest, "description": e.description} for e in enclave.environments.all()
        ]
    }


def _rotate_root_key(enclave: Enclave, _request: Mapping[str, Any]) -> dict[str, Any]:
    return {"keys": enclave.keyring.rotate()}


def _metrics(enclave: Enclave, request: Mapping[str, Any]) -> dict[str, Any]:
    label = Label.parse(request["label"]) if request.get("label") else BOTTOM
    return {"text": enclave.meter.text(Reader("", label))}


def _back_up(enclave: Enclave, request: Mapping[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from honmaru.app.backup import back_up

    settings = enclave.settings
    if settings.database or settings.blobs:
        raise ConfigurationFault(["records or blobs lie outside the data directory: back them up by their own means"])
    return asdict(back_up(settings.data, Path(request["to"]), str(request["passphrase"]), enclave))


OPERATIONS: Mapping[str, Callable[[Enclave, Mapping[str, Any]], dict[str, Any]]] = {
    "Status": _status,
    "CreateUser": _create_user,
    "ListUsers": _list_users,
    "GetCredentials": _credentials,
    "ListEnvironments": _environments,
    "GetMetrics": _metrics,
    "RotateRootKey": _rotate_root_key,
    "BackUp": _back_up,
}


def _label_of(request: Mapping[str, Any]) -> Label:
    """The log that an operation's entry belongs in: who signs in at a label is not for those below it to know."""
    try:
        return Label.parse(request["label"])
    except (KeyError, HonmaruError):
        return BOTTOM


def answer(enclave: Enclave, request: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one operator request. Faults become {"error": message}; nothing else escapes."""
    operation = str(request.get("operation"))
    error: HonmaruError | None = None
    try:
        if operation not in OPERATIONS:
            raise ValidationFault(f"the operator channel has no operation {operation!r}")
        result = OPERATIONS[operation](enclave, request)
    except HonmaruError as fault:
        error, result = fault, {"error": fault.message}
    details = {key: request[key] for key in ("name", "user", "clearance", "label", "to") if request.get(key)}
    enclave.ledger.append(_label_of(request), operator_entry(enclave, operation, details, error)).result()
    return result


def operator_entry(
    enclave: Enclave, operation: str, details: Mapping[str, Any], error: HonmaruError | None = None
) -> dict[str, Any]:
    """The ledger entry of what the local operator did."""
    return api_call(
        event_id=enclave.ids.uuid(),
        session=None,
        service="honmaru",
        event_source="operator.honmaru",
        operation=operation,
        request_id=enclave.ids.uuid(),
        at=enclave.clock.now(),
        decision="Allow" if error is None else "Deny",
        error_code=type(error).__name__ if error else None,
        error_message=error.message if error else None,
        resources=[],
        request_digest="",
        response_digest="",
        details=details,
        source_ip="operator-socket",
        user_agent="honmaru",
        region=enclave.region,
        account=enclave.account,
        read_only=operation in ("Status", "ListUsers", "ListEnvironments"),
    )


class OperatorServer:
    """Serves the channel from a thread of its own until `close`."""

    def __init__(self, enclave: Enclave, path: Path) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                try:
                    require_own_user(self.connection)
                    line = self.rfile.readline(_MAX_REQUEST_BYTES)
                    request = json.loads(line)
                    if not isinstance(request, dict):
                        raise ValidationFault("expected one JSON object on one line")
                    result = answer(enclave, request)
                except HonmaruError as fault:
                    result = {"error": fault.message}
                except ValueError:
                    result = {"error": "expected one JSON object on one line"}
                self.wfile.write(json.dumps(result).encode() + b"\n")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        path.unlink(missing_ok=True)
        self._path = path
        self._server = Server(str(path), Handler)
        path.chmod(0o600)
        threading.Thread(target=self._server.serve_forever, name="operator", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


def require_own_user(connection: socket.socket) -> None:
    """Raises AccessDenied unless the peer is the enclave's own user, or root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    if uid not in (0, os.getuid()):
        raise AccessDenied("the operator channel answers the enclave's own user only")


def ask(data: Path, operation: str, *, timeout_s: float = 60.0, **members: Any) -> dict[str, Any]:
    """The client side, for the command line. Raises ValidationFault with the enclave's message, or when none runs."""
    path = data / "run" / "operator.sock"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except OSError as cause:
            raise ValidationFault(
                f"no enclave is running in {data}: start it with `honmaru up`, or name another with --data"
            ) from cause
        connection.sendall(json.dumps({"operation": operation, **members}).encode() + b"\n")
        with connection.makefile("rb") as stream:
            answered: dict[str, Any] = json.loads(stream.readline() or b'{"error": "the enclave closed the channel"}')
    if "error" in answered:
        raise ValidationFault(str(answered["error"]))
    return answered
