"""What tests of clients that do harm are made of: raw requests, and what comes back until the port has had enough.

The port has a thread of its own, which may be far slower than the test. So ``connect`` returns when the port has
accepted the connection; ``ask_ping`` when it has also handled all that was sent; and ``held`` is asked on the port's
loop, where nothing is half done.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from lab.http2.port import Port
from lab.http2.wire import REQUEST, Frame, split_frames
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.http2_frames import ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, pack_frame
from raykeeper.actors.proxy.http2_protocol import Http2Protocol


def connect(port: Port, data: bytes = b"", *, narrow: bool = False) -> socket.socket:
    """A connection that the port has accepted, and what it says first. A narrow one has a small buffer for what it does
    not read."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    if narrow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((port.host, port.port))
    until(lambda: sock.getsockname() in port.met)
    port.met.discard(sock.getsockname())
    sock.sendall(data)
    return sock


def read_frames(sock: socket.socket, enough: Callable[[list[Frame]], bool]) -> list[Frame]:
    """All frames from here on, until there are enough."""
    data = b""
    while True:
        part = sock.recv(1 << 16)
        assert part, "the connection was closed"
        data += part
        frames = split_frames(data, partial=True)
        if enough(frames) and sum(9 + len(each.payload) for each in frames) == len(data):
            return frames


def ask_ping(sock: socket.socket, payload: bytes = b"in order") -> list[Frame]:
    """Wait until all that was sent has been handled; the frames that came meanwhile."""
    sock.sendall(pack_frame(PING, 0, 0, payload))
    answer = Frame(PING, ACK, 0, payload)
    return [each for each in read_frames(sock, lambda frames: answer in frames) if each != answer]


def held(port: Port) -> int:
    """The bytes that are held, between two steps of the port's loop."""

    async def look() -> int:
        return port.held.held

    return port.run(look())


def open_streams(port: Port) -> int:
    """The same for the streams of all connections."""

    async def look() -> int:
        connections = port.listener.context.connections()
        return sum(len(each.connection.streams) for each in connections if isinstance(each, Http2Protocol))

    return port.run(look())


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


def pass_time(port: Port, seconds: float, connections: int | None = None, *, since: float | None = None) -> None:
    """What the sweep does when this time has passed, to the oldest connections or to all.

    It has passed since now, or since a moment of ``time.monotonic``: what began after that moment has had less, however
    slow the test is.
    """

    async def sweep() -> None:
        now = port.loop.time() if since is None else since
        for connection in port.listener.context.connections()[:connections]:
            connection.check_times(now + seconds)
        port.listener.acceptor.expire(now + seconds)

    port.run(sweep())
