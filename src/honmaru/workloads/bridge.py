"""Runs a model server of somebody else inside the sandbox and leads a UNIX socket to its port.

`python -m honmaru.workloads.bridge --socket PATH --port N [--identity DIRECTORY] -- COMMAND...`: the sandbox has no
network but its own loopback, so the server listens there as it always does, and its only way out is this socket.

Invariants:
- When the command ends, or SIGTERM comes, both end; the exit code is the command's.
- A connection that either side closes is closed on the other side at once, so a client that goes away is noticed.
- Python's own library and nothing else: any environment can run it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from honmaru.workloads.serving_identity import ServingIdentity

_CHUNK = 1 << 16


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """One connection, both ways, until either side closes it."""
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()
        return
    ways = [asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    writer.close()
    inner_writer.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, identity: ServingIdentity | None
) -> None:
    if identity is not None and not identity.answers(writer.transport):
        writer.close()
        return
    await _carry(reader, writer, port)


async def run(socket: Path, port: int, command: list[str], identity: ServingIdentity | None = None) -> int:
    """Serve until the command ends; its exit code. With an identity the socket speaks TLS and answers the enclave."""
    process = subprocess.Popen(command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.terminate)
    context = None if identity is None else identity.context
    server = await asyncio.start_unix_server(lambda r, w: _answer(r, w, port, identity), path=str(socket), ssl=context)
    async with server:
        return await asyncio.to_thread(process.wait)


def main() -> int:
    parser = argparse.ArgumentParser(prog="honmaru.workloads.bridge")
    parser.add_argument("--socket", type=Path, required=True, help="path of the UNIX socket to listen on")
    parser.add_argument("--port", type=int, required=True, help="port on loopback that the command listens on")
    parser.add_argument("--identity", type=Path, help="directory that hands out this server's identity")
    parser.add_argument("command", nargs="+", help="the model server")
    arguments = parser.parse_args()
    identity = None if arguments.identity is None else ServingIdentity(arguments.identity)
    return asyncio.run(run(arguments.socket, arguments.port, arguments.command, identity))


if __name__ == "__main__":
    sys.exit(main())
