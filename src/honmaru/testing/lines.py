"""Connections to a stated worker of an enclave, with requests that botocore signs: for tests and benchmarks."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials

from honmaru.testing.enclaves import LiveEnclave

_TRIES = 200


class Line:
    """One connection that stays open, to the worker with a process id. `pid` None takes whichever answers."""

    def __init__(self, enclave: LiveEnclave, pid: int | None = None) -> None:
        self._enclave = enclave
        for _ in range(_TRIES):
            self._connection = self._open()
            self.pid = _holder(enclave, self._connection)
            if pid in (None, self.pid):
                return
            self._connection.close()
        raise RuntimeError(f"no connection was accepted by process {pid}")

    def _open(self) -> http.client.HTTPConnection:
        facts = self._enclave.facts
        if facts["ca"]:
            context = ssl.create_default_context(cafile=facts["ca"])
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                facts["host"], facts["port"], timeout=30, context=context
            )
        else:
            connection = http.client.HTTPConnection(facts["host"], facts["port"], timeout=30)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        return connection

    def call(
        self,
        key: Mapping[str, str],
        service: str,
        method: str = "POST",
        path: str = "/",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """(status, body) of a request signed with what `LiveEnclave.credentials` gave."""
        url = self._enclave.endpoint + path
        request = botocore.awsrequest.AWSRequest(method, url, dict(headers or {}), body)
        credentials = botocore.credentials.Credentials(key["access_key_id"], key["secret_access_key"])
        signer = botocore.auth.S3SigV4Auth if service == "s3" else botocore.auth.SigV4Auth
        signer(credentials, service, self._enclave.region).add_auth(request)
        self._connection.request(method, path, body, {name: str(value) for name, value in request.headers.items()})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def form(self, key: Mapping[str, str], service: str, form: str) -> tuple[int, bytes]:
        """A call of a service that takes forms (iam, sts)."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.call(key, service, body=form.encode(), headers=headers)

    def close(self) -> None:
        self._connection.close()


def lines(enclave: LiveEnclave) -> list[Line]:
    """A line to each worker, once all of them answer."""
    return [Line(enclave, worker["pid"]) for worker in workers(enclave)]


def workers(enclave: LiveEnclave, *, restarts: int = 0, within_s: float = 90.0) -> list[dict[str, Any]]:
    """What the enclave says of its workers, once all of them answer, after so many `restarts` of any of them."""
    from honmaru.app.operator import ask

    deadline = time.monotonic() + within_s
    while True:
        found: list[dict[str, Any]] = ask(enclave.data, "Status")["workers"]
        if all(worker["answers"] for worker in found) and sum(worker["restarts"] for worker in found) >= restarts:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"workers do not answer: {found}")
        time.sleep(0.05)


def _holder(enclave: LiveEnclave, connection: http.client.HTTPConnection) -> int:
    """The process that holds the other end of a connection, as the kernel says."""
    port = connection.sock.getsockname()[1]
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{enclave.port:04X}") and fields[2].endswith(f":{port:04X}"):
            inode = f"socket:[{fields[9]}]"
    for worker in workers(enclave):
        folder = Path(f"/proc/{worker['pid']}/fd")
        for entry in folder.iterdir():
            try:
                if str(entry.readlink()) == inode:
                    return int(worker["pid"])
            except OSError:
                continue
    return 0
