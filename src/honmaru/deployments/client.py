"""A small HTTP/1.1 client over a UNIX socket, for model servers.

The server runs in a sandbox and is not trusted to be well-behaved.

Invariants:
- Nothing read from the server grows without a limit: lines, headers, bodies and events have one each.
- One connection carries one request; closing the reply closes the connection, which cancels the work behind it.
- A connection leads to the socket in the server's folder and through no link to another process's.
- Whatever is wrong with the server or its answer is a `ServerGone` or `ServerRefused`, never another exception.

Source: RFC 9112 (message syntax, chunked coding); WHATWG server-sent events.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MAX_LINE_BYTES = 1 << 16
MAX_HEADERS = 100
MAX_BODY_BYTES = 64 << 20
MAX_EVENT_BYTES = 1 << 20


class ServerGone(Exception):
    """The server cannot be reached, broke off, or does not speak HTTP."""


class ServerRefused(Exception):
    """The server answered with an error. `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Reply:
    """An answer whose head has been read. Use as an async context manager."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: Any, writer: asyncio.StreamWriter) -> None:
        self.status, self._headers, self._reader, self._writer = status, headers, reader, writer

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    async def json(self) -> Any:
        """The whole body as JSON. Raises ServerRefused for a status of 400 or more."""
        data = bytearray()
        async for chunk in self._chunks():
            data += chunk
            if len(data) > MAX_BODY_BYTES:
                raise ServerGone(f"the model server's answer exceeds {MAX_BODY_BYTES} bytes")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise ServerGone("the model server's answer is not JSON") from None
        if self.status >= 400:
            raise ServerRefused(self.status, error_message(value))
        return value

    async def events(self, quiet_s: float) -> AsyncIterator[Any]:
        """The JSON of each server-sent event until [DONE].

        Raises ServerGone when the stream breaks off or says nothing for `quiet_s` seconds.
        """
        if self.status >= 400:
            await self.json()
        pending = b""
        chunks = self._chunks().__aiter__()
        while True:
            try:
                async with asyncio.timeout(quiet_s):
                    chunk = await chunks.__anext__()
            except TimeoutError:
                raise ServerGone(f"the model server said nothing for {quiet_s:.0f} s") from None
            except StopAsyncIteration:
                raise ServerGone("the model server broke off its answer") from None
            pending += chunk
            *events, pending = pending.split(b"\n\n")
            if len(pending) > MAX_EVENT_BYTES:
                raise ServerGone("the model server sent an event without an end")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return
                try:
                    yield json.loads(data)
                except (ValueError, RecursionError):
                    raise ServerGone("the model server sent an event that is not JSON") from None

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            if self._headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int((await self._reader.readline()).split(b";")[0].strip() or b"-", 16):
                    if size < 0 or size > MAX_BODY_BYTES:
                        raise ServerGone("the model server sent a chunk that is too large")
                    yield await self._reader.readexactly(size)
                    await self._reader.readexactly(2)
                return
            length = int(self._headers.get("content-length", "0"))
            if length > MAX_BODY_BYTES:
                raise ServerGone(f"the model server's answer exceeds {MAX_BODY_BYTES} bytes")
            if length:
                yield await self._reader.readexactly(length)
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as fault:
            raise ServerGone(f"the model server broke off its answer ({type(fault).__name__})") from None


async def call(folder: Path, socket: str, method: str, path: str, body: Any = None, *, head_s: float) -> Reply:
    """Send one request to `folder/socket` and read the head of the answer, waiting at most `head_s` seconds for it.

    Raises ServerGone.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(head_s):
            reader, writer = await _connect(folder, socket)
            data = b"" if body is None else json.dumps(body).encode()
            writer.write(
                f"{method} {path} HTTP/1.1\r\nhost: model\r\nconnection: close\r\n"
                f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode()
                + data
            )
            await writer.drain()
            status, headers = await _head(reader)
            return Reply(status, headers, reader, writer)
    except TimeoutError:
        _close(writer)
        raise ServerGone(f"the model server did not answer within {head_s:.0f} s") from None
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as fault:
        _close(writer)
        raise ServerGone(f"the model server does not answer ({type(fault).__name__})") from None
    except BaseException:
        # Cancelled: the connection must go, so that the server stops working for nobody.
        _close(writer)
        raise


def _close(writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        writer.close()


async def _connect(folder: Path, socket: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # The server may put anything in the place of its socket. A handle of the place itself leads through no link; it
    # also allows for folders as deep as they like, where a socket's path holds at most 107 bytes.
    descriptor = os.open(folder / socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise FileNotFoundError("the model server left something else in the place of its socket")
        return await asyncio.open_unix_connection(f"/proc/self/fd/{descriptor}", limit=MAX_LINE_BYTES)
    finally:
        os.close(descriptor)


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    parts = (await reader.readline()).split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):
        raise ValueError("no status line")
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = await reader.readline()
        if line in (b"\r\n", b"\n"):
            return int(parts[1]), headers
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise ValueError("a header without a colon")
        headers[name.strip().lower()] = value.strip()
    raise ValueError("too many headers")


def error_message(value: Any) -> str:
    """The message of an OpenAI error body, or what stands in for it."""
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message[:1000] if isinstance(message, str) else "the model server gave no reason"
