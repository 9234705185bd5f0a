"""HTTP as clients abuse it, over real sockets: order, framing, line breaks, places, memory."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from honmaru.gateway.limits import Limits
from honmaru.gateway.server import serve

LIMITS = Limits(header_s=5.0, keep_alive_s=30, connections=40, idle_s=0.5)
BIG = 1 << 20


class Echo:
    """An application that answers what its path says, and notes what it was given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.gone = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["raw_path"]
        if path == b"/known":  # as the gateway does once a caller is authenticated
            scope["honmaru.exchange"] = type("Exchange", (), {"session": object()})()
        if path == b"/wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()
            return
        if path == b"/slow":
            await asyncio.sleep(0.2)
        if path == b"/unread":
            scope["honmaru.answer"](403, [(b"content-length", b"2")], b"no")
            return
        if path == b"/crash":
            raise KeyError("inside")
        if path == b"/half":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"12345", "more_body": True})
            raise KeyError("inside")
        if path == b"/split":
            scope["honmaru.answer"](200, [(b"x", b"a\r\nset-cookie: b"), (b"content-length", b"0")], b"")
            return
        body = scope["honmaru.body"]()
        if body is None:
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if path == b"/pieces":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (b"one", b"", b"two"):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        text = bytes(BIG) if path == b"/big" else path + b"?" + scope["query_string"]
        scope["honmaru.answer"](200, [(b"content-length", str(len(text)).encode())], text)


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def port(echo: Echo) -> Iterator[int]:
    ports: list[int] = []
    up, stopping = threading.Event(), threading.Event()

    def ready(number: int) -> None:
        ports.append(number)
        up.set()

    thread = threading.Thread(
        target=lambda: serve(
            echo, host="127.0.0.1", port=0, certificate=None, key=None, limits=LIMITS, ready=ready, stopping=stopping
        ),
        daemon=True,
    )
    thread.start()
    assert up.wait(5)
    yield ports[0]
    stopping.set()
    thread.join(15)
    assert not thread.is_alive()


def talk(port: int, *pieces: bytes, wait: float = 0.0) -> bytes:
    """Sends the pieces; everything that comes back until the server closes or says nothing for a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(wait)
        out = b""
        try:
            while data := connection.recv(1 << 20):
                out += data
        except (TimeoutError, ConnectionResetError):
            pass
        return out


def get(path: str, *headers: str, close: bool = True) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "host: x", *headers, *(["connection: close"] if close else [])]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    asked = [f"/{number}?q={number}" for number in range(40)]
    asked[3] = "/slow"
    sent = b"".join(get(path, close=path == asked[-1]) for path in asked)
    answers = re.findall(rb"\r\n\r\n(/\w+\?[a-z0-9=]*)", talk(port, sent))
    assert answers == [(path if "?" in path else path + "?").encode() for path in asked]


def test_bodies_in_pieces_and_in_chunks_arrive_whole(port: int, echo: Echo) -> None:
    head = b"POST /body HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    assert b"200 OK" in talk(port, head + b"content-length: 6\r\n\r\n", b"abc", b"def", wait=0.05)
    assert echo.bodies[-1] == b"abcdef"
    assert b"200 OK" in talk(port, head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")
    assert echo.bodies[-1] == b"abcdef"
    large = bytes(3 << 20)
    assert b"200 OK" in talk(port, head + b"content-length: %d\r\n\r\n" % len(large), large)
    assert echo.bodies[-1] == large


def test_a_body_is_asked_for_only_when_it_is_wanted(port: int) -> None:
    head = b"POST /%b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
    answer = talk(port, head % b"body", b"abc", wait=0.1)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    answer = talk(port, head % b"unread")
    assert answer.startswith(b"HTTP/1.1 403") and b"connection: close" in answer


def test_who_is_refused_inside_a_body_can_read_why(port: int) -> None:
    head = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"
    assert talk(port, head, bytes(100_000), bytes(100_000), wait=0.05).startswith(b"HTTP/1.1 403")


def test_answers_in_pieces_are_chunked_and_end(port: int) -> None:
    assert talk(port, get("/pieces")).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    old = talk(port, b"GET /pieces HTTP/1.0\r\nhost: x\r\n\r\n")
    assert old.endswith(b"\r\n\r\nonetwo") and b"chunked" not in old


def test_a_failing_application_is_a_500_or_a_broken_answer_never_a_short_one(port: int) -> None:
    assert talk(port, get("/crash")).startswith(b"HTTP/1.1 500")
    broken = talk(port, get("/half"))
    assert not broken.endswith(b"0\r\n\r\n") and broken.count(b"12345") <= 1
    assert b"inside" not in broken


def test_no_header_of_an_answer_carries_a_line_break(port: int) -> None:
    answer = talk(port, get("/split"))
    assert answer.startswith(b"HTTP/1.1 500") and b"set-cookie" not in answer


def test_what_is_wrong_behind_a_request_does_not_cost_its_answer(port: int) -> None:
    answer = talk(port, get("/slow", close=False) + b"NONSENSE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1


def test_a_client_that_takes_nothing_is_not_answered_further(port: int) -> None:
    """64 answers of a mebibyte, asked for at once and never read: made until the system's buffers are full, no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(get("/big", close=False) * 64)
        time.sleep(LIMITS.idle_s + 0.4)
        taken = 0
        try:
            while data := connection.recv(1 << 16):
                taken += len(data)
        except OSError:
            pass
        assert BIG <= taken < 32 * BIG


def test_the_application_learns_that_its_client_is_gone(port: int, echo: Echo) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(get("/wait", close=False))
        time.sleep(0.1)
    assert echo.gone.wait(2)


def test_connections_that_do_nothing_never_lock_others_out(port: int) -> None:
    """Twice as many silent connections as there are places, held open: known callers keep theirs, new ones get in."""
    known = socket.create_connection(("127.0.0.1", port), timeout=2)
    known.sendall(get("/known", close=False))
    assert known.recv(1000).startswith(b"HTTP/1.1 200")
    silent = [socket.create_connection(("127.0.0.1", port), timeout=2) for _ in range(2 * LIMITS.connections)]
    time.sleep(0.1)
    assert talk(port, get("/late")).startswith(b"HTTP/1.1 200")
    known.sendall(get("/again", close=False))
    assert known.recv(1000).startswith(b"HTTP/1.1 200")
    for connection in (known, *silent):
        connection.close()
