"""The entry of a hybrid job inside the sandbox: a way to the enclave on loopback, and the user's code.

    python -m honmaru.workloads.quantum.job --broker DIRECTORY

There is no network inside. The two UNIX sockets in DIRECTORY lead to the enclave; this process offers them on loopback,
where unmodified SDKs look: AWS_ENDPOINT_URL and AWS_CONTAINER_CREDENTIALS_FULL_URI. The user's code runs as a child.

Source: contract of Amazon Braket's job containers (entry point `module` or `module:function`), re-made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from honmaru.workloads.archives import BadArchive, unpack
from honmaru.workloads.quantum.server import use_compiled_code

ROOT = Path("/opt/ml")
_CHUNK = 1 << 16
_CONNECTIONS = 64
_CALL = (
    "import importlib, sys; module, _, function = sys.argv[1].partition(':'); "
    "getattr(importlib.import_module(module), function)()"
)


def listen(serve: Callable[[socket.socket], None]) -> int:
    """Serve connections to a free port on loopback, each in a thread; returns the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=_CONNECTIONS)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_served, args=(serve, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def _served(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with connection, suppress(OSError):
        serve(connection)


def relay(path: Path) -> Callable[[socket.socket], None]:
    """Carry bytes between a connection and a UNIX socket."""

    def serve(connection: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(str(path))
            back = threading.Thread(target=_pump, args=(outside, connection), daemon=True)
            back.start()
            _pump(connection, outside)
            back.join()

    return serve


def credentials(path: Path) -> Callable[[socket.socket], None]:
    """Answer any HTTP request with the document that the UNIX socket gives."""

    def serve(connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _CHUNK:
            chunk = connection.recv(_CHUNK)
            if not chunk:
                return
            head += chunk
        with socket.socket(socket.AF_UNIX) as outside:
            outside.connect(str(path))
            document = b""
            while chunk := outside.recv(_CHUNK):
                document += chunk
        status = b"200 OK" if document else b"503 Service Unavailable"
        connection.sendall(
            b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
            + str(len(document)).encode() + b"\r\n\r\n" + document
        )  # fmt: skip

    return serve


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def code() -> Path:
    """The user's code, unpacked. Raises BadArchive."""
    target = ROOT / "code"
    staged = ROOT / "input" / "submit" / "sourcedir.tar.gz"
    if os.environ.get("AMZN_BRAKET_SCRIPT_COMPRESSION_TYPE") == "NONE":
        name = os.environ["AMZN_BRAKET_SCRIPT_S3_URI"].rpartition("/")[2]
        shutil.copyfile(staged, target / name)
    else:
        unpack(staged, target)
    return target


def command(entry: str) -> list[str]:
    """The user's program: a module to run, or a function of one to call."""
    return [sys.executable, "-c", _CALL, entry] if ":" in entry else [sys.executable, "-m", entry]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m honmaru.workloads.quantum.job", description=__doc__)
    parser.add_argument("--broker", required=True, type=Path, help="directory of the broker's UNIX sockets")
    broker = parser.parse_args().broker
    use_compiled_code(Path(sys.prefix))
    try:
        folder = code()
    except BadArchive as bad:
        (ROOT / "output" / "failure").write_text(f"the submitted archive is refused: {bad}")
        return 1
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listen(relay(broker / 'aws'))}",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{listen(credentials(broker / 'credentials'))}/",
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
    }
    child = subprocess.Popen(command(os.environ["AMZN_BRAKET_SCRIPT_ENTRY_POINT"]), cwd=folder, env=environment)

    def pass_on(number: int, _frame: Any) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
