"""HTTP/1.1 by clients that do harm: slow, endless, too large, or without an interest in answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lab.http2.hostile import connect, held, pass_time
from lab.http2.http_client import request
from lab.http2.port import Port
from lab.patience import until
from raykeeper.actors.proxy.http1_protocol import Http1Protocol
from raykeeper.limits import (
    MAX_HEADER_LIST_BYTES,
    MAX_RPC_MESSAGE_BYTES,
    PROXY_READ_BYTES,
    PROXY_REQUEST_S,
    PROXY_SEND_BYTES,
)

POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def others_are_served(port: Port) -> Iterator[None]:
    yield
    assert request(port.target, "GET", "/health").status == 200


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            data += part
    return data


def test_a_body_byte_by_byte_has_a_deadline(port: Port) -> None:
    """Each byte shows that the client is there, and does not win it more time."""
    began = time.monotonic()
    with connect(port, POST + b"content-length: 1000\r\n\r\nx") as sock:
        until(lambda: held(port) == 1)
        time.sleep(1.5)
        sock.sendall(b"x")
        until(lambda: held(port) == 2)
        pass_time(port, PROXY_REQUEST_S, since=began)
        assert held(port) == 2
        pass_time(port, PROXY_REQUEST_S - 1)
        until(lambda: port.listener.connection_count() == 0)


def test_an_announced_length_that_is_too_large(port: Port) -> None:
    """It is refused before any of it has come."""
    for length in (str(MAX_RPC_MESSAGE_BYTES + 1), "9" * 19):
        with connect(port, POST + f"content-length: {length}\r\n\r\n".encode()) as sock:
            assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "rest",
    [
        b"0" * MAX_HEADER_LIST_BYTES * 2,
        b"5;" + b"x" * MAX_HEADER_LIST_BYTES * 2,
        b"1\r\na\r\n0\r\n" + b"trailer: x\r\n" * MAX_HEADER_LIST_BYTES,
        b"ffffffffffffffffffffffff\r\n",
        b"-5\r\nabcde\r\n",
        b"1\r\nabc\r\n",
        b"0x5\r\nabcde\r\n",
        b"\r\n\r\n",
    ],
)
def test_chunks_that_are_not(port: Port, rest: bytes) -> None:
    with connect(port, CHUNKED) as sock:
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(rest)
        assert b" 200 " not in read_to_end(sock)[:20]


def test_chunks_of_one_byte(port: Port) -> None:
    """A body takes the memory of its bytes, whatever it comes in, and ends at the bound."""
    before = port.held.held
    with connect(port, CHUNKED) as sock:
        sock.sendall(b"2\r\nab\r\n" * 100_000)
        until(lambda: port.held.held >= before + 200_000)
        assert held(port) <= before + 200_000 + 2 * PROXY_READ_BYTES
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(b"20\r\n%s\r\n" % bytes(32) * (MAX_RPC_MESSAGE_BYTES // 32))
        assert sock.recv(1000).startswith(b"HTTP/1.1 413 ")
    until(lambda: port.held.held == 0)


def test_bodies_that_do_not_end_are_counted(port: Port) -> None:
    """Beyond the bound, connections are closed, and what is held stays below it."""
    port.held.limit = 10_000_000
    sockets = [connect(port, POST + b"content-length: 2000000\r\n\r\n") for _ in range(30)]
    for sock in sockets:
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(bytes(1_000_000))
    until(lambda: port.listener.connection_count() <= 10)
    assert 0 < held(port) <= 10_000_000
    for sock in sockets:
        sock.close()
    until(lambda: port.held.held == 0)


def test_answers_that_nobody_reads_are_counted(port: Port) -> None:
    port.held.limit = 10_000_000
    body = bytes(MAX_RPC_MESSAGE_BYTES)
    sockets = []
    for _ in range(20):
        sock = connect(port, POST + b"content-length: %d\r\n\r\n" % len(body))
        sockets.append(sock)
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(body)
    until(lambda: port.listener.connection_count() < 20)
    assert held(port) <= 10_000_000
    for sock in sockets:
        sock.close()
    until(lambda: port.held.held == 0)


def test_a_long_answer_counts_until_the_last_of_it_was_taken(port: Port) -> None:
    """All of it is in memory as long as a part of it waits, and no second time in the transport."""
    body = bytes(MAX_RPC_MESSAGE_BYTES)
    for listener in port.listener.acceptor._listeners:  # otherwise the kernel may take it all
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PROXY_SEND_BYTES)
    with connect(port, POST + b"content-length: %d\r\n\r\n" % len(body), narrow=True) as sock:
        sock.sendall(body)
        until(lambda: port.held.held >= 2 * len(body))  # the request's body counts until it is answered
        assert held(port) <= 2 * (len(body) + PROXY_SEND_BYTES)
        answer = bytearray()
        while len(answer) < len(body) or not answer.endswith(body):
            part = sock.recv(1 << 16)
            assert part
            answer += part
        until(lambda: port.held.held == 0)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_heads_that_do_not_end_are_counted(port: Port) -> None:
    head = b"GET /health HTTP/1.1\r\n" + b"x" * 20_000
    sockets = [connect(port, head) for _ in range(10)]
    until(lambda: port.held.held == 10 * len(head))
    for sock in sockets:
        sock.close()
    until(lambda: port.held.held == 0)


def test_a_head_line_by_line(port: Port) -> None:
    """Up to the bound, and no longer."""
    sent = 0
    with connect(port, b"GET /health HTTP/1.1\r\n") as sock, suppress(BrokenPipeError, ConnectionResetError):
        while sent < 4 * MAX_HEADER_LIST_BYTES:
            sock.sendall(b"x: y\r\n")
            sent += 6
            time.sleep(0)
        assert read_to_end(sock)[9:12] in (b"431", b"400")
    until(lambda: port.listener.connection_count() == 0)


def test_pipelined_requests_without_reading(port: Port) -> None:
    """The client can send what sockets and bounds hold, and no more is answered than that."""
    with connect(port) as sock:
        sock.settimeout(1.0)
        sent = 0
        with suppress(TimeoutError):
            while sent < 100_000_000:
                sent += sock.send(GET * 1000)
        assert sent < 50_000_000
        assert held(port) < 2_000_000
    until(lambda: port.held.held == 0)


def test_ten_thousand_pipelined_requests(port: Port) -> None:
    with connect(port) as sock:
        sender = threading.Thread(target=sock.sendall, args=(GET * 10_000,))
        sender.start()
        data, answers = b"", 0
        while answers < 10_000:
            data += sock.recv(1 << 20)
            answers += data.count(b'{"health":"true"}')
            data = data[-200:] if data.rfind(b'{"health":"true"}') < len(data) - 200 else data[data.rfind(b"}") + 1 :]
        sender.join()
    assert answers == 10_000


def test_one_pass_reads_little_of_one_connection(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    take = Http1Protocol.data_received

    def data_received(self: Http1Protocol, data: bytes) -> None:
        sizes.append(len(data))
        take(self, data)

    monkeypatch.setattr(Http1Protocol, "data_received", data_received)
    assert request(port.target, "POST", "/echo", bytes(1_000_000)).status == 200
    assert max(sizes) <= PROXY_READ_BYTES
