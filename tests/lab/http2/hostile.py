"""What tests of clients that do harm are made of: raw requests, and what comes back until the port has had enough."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from lab.http2.port import Port
from lab.http2.wire import REQUEST, Frame, split_frames
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.http2_frames import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, pack_frame


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def connect(port: Port, data: bytes = b"", *, narrow: bool = False) -> socket.socket:
    """A connection, and what it says first. A narrow one has a small buffer for what it does not read."""
    sock = socket.socket()
    sock.settimeout(10)
    if narrow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((port.host, port.port))
    sock.sendall(data)
    return sock


def call(method: str, stream: int, *, end: bool = False) -> bytes:
    fields = tuple((name, b"/test.Test/" + method.encode() if name == b":path" else value) for name, value in REQUEST)
    return pack_frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, encode_block(fields))


def message(stream: int, data: bytes = b"x") -> bytes:
    return pack_frame(DATA, END_STREAM, stream, struct.pack(">BL", 0, len(data)) + data)


def read_all(sock: socket.socket) -> list[Frame]:
    """All frames until the port closes the connection."""
    data = b""
    try:
        while part := sock.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return split_frames(data)


def goaway_of(frames: list[Frame]) -> int:
    code: int = struct.unpack_from(">LL", next(each for each in frames if each.kind == GOAWAY).payload)[1]
    return code


def pass_time(port: Port, seconds: float, connections: int | None = None) -> None:
    """What the sweep does when this time has passed, to the oldest connections or to all."""

    async def sweep() -> None:
        for connection in port.listener.context.connections()[:connections]:
            connection.check_times(port.loop.time() + seconds)

    port.run(sweep())
