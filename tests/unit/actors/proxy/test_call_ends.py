"""How calls end that do not end with their handler's answer: nothing of them is left, and the client is told."""

from __future__ import annotations

import socket
import struct
from typing import Any

import grpc
import pytest

from lab.http2.hostile import ask_ping, connect
from lab.http2.port import Port
from lab.http2.wire import HELLO, REQUEST, split_frames
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.header_blocks import Fields, encode_block
from raykeeper.actors.proxy.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, pack_frame
from raykeeper.actors.proxy.http2_protocol import Http2Protocol


def grpc_fields(method: str) -> Fields:
    return tuple((name, b"/test.Test/" + method.encode() if name == b":path" else value) for name, value in REQUEST)


SLEEP_BY_HTTP: Fields = tuple((name, b"/sleep" if name == b":path" else value) for name, value in REQUEST[:4])


@pytest.mark.parametrize(
    "fields",
    [grpc_fields("Sleep"), grpc_fields("Both"), grpc_fields("Flood"), SLEEP_BY_HTTP],
    ids=["unary", "requests", "answers", "http"],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_call_that_is_reset(port: Port, fields: Fields, begun: bool) -> None:
    """Before its handler has begun, and after."""
    message = pack_frame(DATA, END_STREAM, 1, struct.pack(">BL", 0, 1) + b"x")
    with connect(port) as sock:
        hello = HELLO + pack_frame(HEADERS, END_HEADERS, 1, encode_block(fields)) + message
        reset = pack_frame(RST_STREAM, 0, 1, bytes(4))
        sock.sendall(hello if begun else hello + reset)
        if begun:
            ask_ping(sock)
            ask_ping(sock)  # the loop has been round since the first one
            sock.sendall(reset)
        ask_ping(sock)
        connection: Any = port.listener.context.connections()[0]
        assert type(connection) is Http2Protocol
        until(lambda: not connection.connection.streams and connection.running == 0 and port.held.held == 0)


def call_of(method: str, size: int) -> bytes:
    """A call on the first stream, with one message of this many bytes, which a client may send at once."""
    message, most = struct.pack(">BL", 0, size) + bytes(size), 16_000
    frames = [
        pack_frame(DATA, END_STREAM if at + most >= len(message) else 0, 1, message[at : at + most])
        for at in range(0, len(message), most)
    ]
    return HELLO + pack_frame(HEADERS, END_HEADERS, 1, encode_block(grpc_fields(method))) + b"".join(frames)


@pytest.mark.parametrize("end", ["the client closes", "expelled"])
def test_a_request_counts_until_its_handler_has_ended(port: Port, end: str) -> None:
    """Also when the socket is closed, by its client or by the proxy."""
    held = port.held
    with connect(port) as sock:
        sock.sendall(call_of("Never", 50_000))
        until(lambda: port.begun == 1)
        until(lambda: held.held == 50_000)
        if end == "expelled":
            port.loop.call_soon_threadsafe(held.relieve)
            until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.cancelled == 1)
    until(lambda: port.listener.connection_count() == 0)
    assert (held.held, held.running) == (50_000, 50_000)
    port.loop.call_soon_threadsafe(port.never[0].answer, b"")
    until(lambda: held.held == 0)
    assert held.running == 0


def test_requests_are_refused_while_those_of_closed_connections_take_the_room(port: Port) -> None:
    port.held.limit, port.held.reserve = 60_000, 0
    with connect(port) as sock:
        sock.sendall(call_of("Never", 50_000))
        until(lambda: port.begun == 1)
    until(lambda: port.cancelled == 1)
    until(lambda: port.listener.connection_count() == 0)
    channel = grpc.insecure_channel(port.target)
    with channel:
        echo = channel.unary_unary("/test.Test/Echo")
        with pytest.raises(grpc.RpcError) as refused:
            echo(bytes(20_000), timeout=PATIENCE)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert echo(b"x", timeout=PATIENCE) == b"x", "the connection stays"
        port.loop.call_soon_threadsafe(port.never[0].answer, b"")
        until(lambda: port.held.running == 0)
        assert echo(bytes(20_000), timeout=PATIENCE) == bytes(20_000)


def test_a_message_of_a_stream_counts_while_its_handler_works_at_it(port: Port) -> None:
    with connect(port) as sock:
        sock.sendall(call_of("Keep", 50_000))
        until(lambda: port.begun == 1)
        until(lambda: port.held.held == 50_000)
    until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.held.held == 0)


@pytest.mark.parametrize("method", ["Echo", "Both", "Sum"])
@pytest.mark.parametrize("part", [b"\0\0\0", b"\0\0\0\0\5abc"])
def test_a_request_that_ends_in_the_middle(port: Port, method: str, part: bytes) -> None:
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        head = pack_frame(HEADERS, END_HEADERS, 1, encode_block(grpc_fields(method)))
        sock.sendall(HELLO + head + pack_frame(DATA, END_STREAM, 1, part))
        data = b""
        while b"grpc-message" not in data:
            data += sock.recv(10_000)
        (trailers,) = [each for each in split_frames(data) if each.kind == HEADERS]
        assert b"grpc-status\x0213" in trailers.payload
        assert b"unexpected EOF" in trailers.payload


def test_a_notice_that_fails_ends_nothing_else(port: Port) -> None:
    """``when_ended`` of one call raises; its neighbors are told all the same."""
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        block = encode_block(grpc_fields("Never"))
        for stream in (1, 3, 5):
            message = pack_frame(DATA, END_STREAM, stream, struct.pack(">BL", 0, 0))
            sock.sendall((HELLO if stream == 1 else b"") + pack_frame(HEADERS, END_HEADERS, stream, block) + message)
        until(lambda: port.begun == 3)
        port.never[0].when_ended = lambda: 1 / 0  # type: ignore[assignment]
        port.loop.set_exception_handler(lambda loop, context: None)
    until(lambda: port.cancelled == 2)
    until(lambda: port.listener.connection_count() == 0)
