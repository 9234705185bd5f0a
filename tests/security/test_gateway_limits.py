"""Limits of the server on connections that never become a request, over real sockets."""

from __future__ import annotations

import socket
import time

import pytest

from honmaru.core.errors import ConfigurationFault
from honmaru.gateway.limits import Limits
from honmaru.gateway.server import serve
from honmaru.testing.gateways import GatewayUnderTest


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    limits = Limits(header_bytes=4096, headers=20, url_bytes=1024, header_s=0.4, keep_alive_s=1, connections=8)
    gateway = GatewayUnderTest(tmp_path_factory.mktemp("gateway"), limits=limits)
    with gateway.served() as number:
        yield number
    gateway.close()


def exchange(port, *pieces, wait=0.0):
    """Sends pieces with a pause between them; returns everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(wait)
        out = b""
        try:
            while data := connection.recv(65536):
                out += data
        except ConnectionResetError:
            pass
        return out


def test_large_headers(port):
    assert exchange(port, b"GET /b HTTP/1.1\r\nhost: x\r\na: " + b"y" * 5000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431")
    many = b"".join(b"h%d: 1\r\n" % number for number in range(30))
    assert exchange(port, b"GET /b HTTP/1.1\r\nhost: x\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431")


def test_long_url(port):
    assert exchange(port, b"GET /" + b"y" * 2000 + b" HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 414")


def test_slow_headers(port):
    begun = time.monotonic()
    answer = exchange(port, b"GET /b HTTP/1.1\r\n", *[b"a: 1\r\n"] * 10, wait=0.1)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 4
    assert exchange(port).startswith(b"HTTP/1.1 408")  # a connection that says nothing


def test_slow_headers_of_a_second_request(port):
    first = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = exchange(port, first, b"GET /b HTTP/1.1\r\n", *[b"a: 1\r\n"] * 10, wait=0.1)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_malformed_http(port):
    assert exchange(port, b"NONSENSE\r\n\r\n").startswith(b"HTTP/1.1 400")
    both = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    assert exchange(port, both).startswith(b"HTTP/1.1 4")


def test_expect_continue_is_answered_before_the_body(port):
    """An upload that is refused by its headers is refused without its body."""
    head = b"PUT /b/k HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n"
    answer = exchange(port, head)
    assert b"100 Continue" not in answer
    assert answer.startswith(b"HTTP/1.1 403")


def test_connections_are_bounded(port):
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    time.sleep(0.2)
    closed = 0
    for connection in reversed(held):
        connection.settimeout(0.01)
        try:
            closed += connection.recv(1) == b""
        except TimeoutError:
            pass
        connection.close()
    assert closed >= 8
    time.sleep(0.1)
    assert exchange(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_plain_http_is_loopback_only():
    with pytest.raises(ConfigurationFault, match="loopback"):
        serve(None, host="0.0.0.0", port=0, certificate=None, key=None, limits=Limits(), ready=print, stopping=None)
