"""HTTP/2 by clients that do harm: floods of every frame that costs work and brings none, resets of every kind, and
header blocks that grow when they are read. Meanwhile a quiet client is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import grpc
import hpack
import pytest

from lab.http2.hostile import call, connect, goaway_of, held, message, pass_time, read_all
from lab.http2.port import Port
from lab.http2.wire import BLOCK, HELLO, REQUEST, Frame
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy import floods
from raykeeper.actors.proxy.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    pack_frame,
)
from raykeeper.limits import (
    MAX_CONTINUATION_FRAMES,
    MAX_HEADER_LIST_BYTES,
    MAX_PROXY_STREAMS,
    PROXY_HELD_BYTES,
)

UNKNOWN = 0x77
FLOOD = 4000


@pytest.fixture(autouse=True)
def smaller_floods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floods, "MAX_FLOOD_FRAMES", FLOOD)
    monkeypatch.setattr(floods, "MAX_FLOOD_RESETS", FLOOD)


@pytest.fixture(autouse=True)
def a_quiet_client(port: Port) -> Iterator[None]:
    """Calls all the time; each call is answered."""
    stop, failures, answered = threading.Event(), [], 0

    def ask() -> None:
        nonlocal answered
        with grpc.insecure_channel(port.target) as channel:
            echo = channel.unary_unary("/test.Test/Echo")
            while not stop.wait(0.01):
                try:
                    assert echo(b"x", timeout=PATIENCE) == b"x"
                    answered += 1
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: answered > 0)
    yield
    before = answered
    until(lambda: answered > before or bool(failures))
    stop.set()
    thread.join()
    assert not failures


def send_all(port: Port, parts: Iterable[bytes]) -> int | None:
    """Send until the port has had enough, and read meanwhile; the code of its GOAWAY, ``ENHANCE_YOUR_CALM`` if that was
    lost with the connection, ``None`` if the port did not close it."""
    ends: list[list[Frame]] = []

    def read() -> None:
        with suppress(TimeoutError):
            ends.append(read_all(sock))

    with connect(port, HELLO) as sock:
        reader = threading.Thread(target=read)
        reader.start()
        with suppress(OSError):
            for part in parts:
                sock.sendall(part)
        reader.join()
    if not ends:
        return None
    with suppress(StopIteration):
        return goaway_of(ends[0])
    return ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "frame",
    [
        pack_frame(PING, 0, 0, bytes(8)),
        pack_frame(PING, ACK, 0, bytes(8)),
        pack_frame(SETTINGS, 0, 0),
        pack_frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff"),
        pack_frame(SETTINGS, ACK, 0),
        pack_frame(DATA, 0, 1),
        pack_frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"),
        pack_frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
        pack_frame(PRIORITY, 0, 1, bytes(5)),
        pack_frame(RST_STREAM, 0, 3, bytes(4)),
        pack_frame(GOAWAY, 0, 0, bytes(8)),
        pack_frame(UNKNOWN, 0, 0, b"x"),
        pack_frame(UNKNOWN, 0, 1),
    ],
    ids=lambda frame: f"{frame[3]}-{frame[4]}-{frame[8]}-{len(frame) - 9}",
)
def test_floods(port: Port, frame: bytes) -> None:
    begin = call("Both", 1) + call("Both", 3) + pack_frame(RST_STREAM, 0, 3, bytes(4))
    assert send_all(port, [begin, *[frame * 500] * (3 * FLOOD // 500)]) == ENHANCE_YOUR_CALM
    until(lambda: port.listener.connection_count() == 1)


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_header_blocks_that_do_not_end(port: Port, size: int) -> None:
    blocks = pack_frame(CONTINUATION, 0, 1, bytes(size)) * (MAX_CONTINUATION_FRAMES + 1)
    with connect(port, HELLO + pack_frame(HEADERS, 0, 1, b"\x82") + blocks) as sock:
        assert goaway_of(read_all(sock)) == ENHANCE_YOUR_CALM


def test_header_blocks_that_grow_when_they_are_read(port: Port) -> None:
    """A field of the table may be named by one byte: 16 KiB of such bytes would be 64 MiB of fields."""
    encoder = hpack.Encoder()
    first = encoder.encode([*REQUEST, (b"x", b"v" * 3900)])
    bomb = encoder.encode([(b"x", b"v" * 3900)])
    assert len(bomb) == 1
    with connect(port, HELLO + pack_frame(HEADERS, END_HEADERS, 1, first)) as sock:
        sock.sendall(pack_frame(HEADERS, END_HEADERS, 3, BLOCK + bomb * 16_000))
        assert goaway_of(read_all(sock)) == ENHANCE_YOUR_CALM
    assert MAX_HEADER_LIST_BYTES < 16_000 * 3900


@pytest.mark.parametrize(
    "mistake",
    [
        pack_frame(WINDOW_UPDATE, 0, 0x1234, bytes(4)),
        pack_frame(HEADERS, END_HEADERS, 0x1234, BLOCK),
    ],
    ids=["window", "trailers"],
)
def test_resets_that_the_client_has_the_server_send(port: Port, mistake: bytes) -> None:
    """Each call is begun, and ended by a mistake in it; handlers that were begun are cancelled."""
    parts = [
        call("Both", stream) + mistake[:5] + stream.to_bytes(4, "big") + mistake[9:]
        for stream in range(1, 6 * FLOOD, 2)
    ]
    assert send_all(port, parts) == ENHANCE_YOUR_CALM
    until(lambda: port.listener.connection_count() == 1)
    assert held(port) < 100_000


def test_streams_opened_and_reset_on_connection_after_connection(port: Port) -> None:
    """By a client that comes again each time."""
    pairs = [call("Sleep", stream) + message(stream) for stream in range(1, 601, 2)]
    batch = b"".join(pair + pack_frame(RST_STREAM, 0, 2 * at + 1, bytes(4)) for at, pair in enumerate(pairs))
    for _ in range(100):
        with connect(port, HELLO) as sock, suppress(OSError):
            sock.sendall(batch)
    until(lambda: port.listener.connection_count() == 1)
    until(lambda: port.begun == port.cancelled)
    until(lambda: port.held.held == 0)


def test_frames_that_do_not_end_are_counted(port: Port) -> None:
    part = pack_frame(DATA, 0, 1, bytes(16_000))[:-1]
    sockets = [connect(port, HELLO + call("Both", 1) + part) for _ in range(5)]
    until(lambda: port.held.held == 5 * len(part))
    block = pack_frame(HEADERS, 0, 1, b"\0" * 16_000)
    sockets += [connect(port, HELLO + block) for _ in range(5)]
    until(lambda: port.held.held == 5 * len(part) + 5 * 16_000)
    for sock in sockets:
        sock.close()
    until(lambda: port.held.held == 0)


def test_answers_in_sockets_are_counted(port: Port) -> None:
    """A client that does not read, with one small answer after the other: what the transport holds counts, too."""
    port.held.limit = 2_000_000
    sockets = [connect(port, HELLO, narrow=True) for _ in range(12)]
    calls = [(call("Fail", stream) + message(stream, b"e" * 3000) for stream in range(1, 100_000, 2)) for _ in sockets]
    unsent = [b""] * len(sockets)

    def had_enough() -> bool:
        for number, sock in enumerate(sockets):
            sock.setblocking(False)
            with suppress(OSError):  # it takes no more now, or is closed
                while True:
                    unsent[number] = unsent[number] or next(calls[number])
                    unsent[number] = unsent[number][sock.send(unsent[number]) :]
        return port.listener.connection_count() < 13

    until(had_enough)
    assert held(port) <= 2_000_000 < PROXY_HELD_BYTES
    for sock in sockets:
        sock.close()
    until(lambda: port.held.held == 0)


def test_a_body_in_single_bytes(port: Port) -> None:
    """Of plain HTTP; it takes the memory of its bytes, and has a deadline however it comes."""
    fields = tuple((name, b"/echo" if name == b":path" else value) for name, value in REQUEST[:4])
    head = pack_frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode(fields))
    with connect(port, HELLO + head + pack_frame(DATA, 0, 1, b"x") * 10_000) as sock:
        until(lambda: port.held.held == 10_000)
        time.sleep(1.5)
        sock.sendall(pack_frame(DATA, 0, 1, b"x"))
        until(lambda: port.held.held == 10_001)
        pass_time(port, 59)
        until(lambda: port.held.held == 0)


def test_requests_that_end_at_once_are_served(port: Port) -> None:
    """What is allowed beside all that: a burst of as many calls as there may be streams."""
    with connect(port, HELLO) as sock:
        streams = range(1, 2 * MAX_PROXY_STREAMS, 2)
        sender = threading.Thread(
            target=sock.sendall, args=(b"".join(call("Echo", stream) + message(stream) for stream in streams),)
        )
        sender.start()
        data = b""
        tail = pack_frame(HEADERS, END_HEADERS | END_STREAM, streams[-1])[3:]
        while data.count(b"grpc-status") < len(streams):
            data += sock.recv(1 << 20)
        sender.join()
    assert tail[:2] in data


def test_a_request_counts_until_its_handler_has_ended(port: Port) -> None:
    """A reset ends the call for its client alone: what the handler works on is in memory for as long as it does."""
    with connect(port, HELLO) as sock:
        sock.sendall(call("Never", 1) + message(1, bytes(10_000)))
        until(lambda: len(port.never) == 1)
        sock.sendall(pack_frame(RST_STREAM, 0, 1, bytes(4)))
        until(lambda: port.cancelled == 1)
        assert held(port) >= 10_000
        port.loop.call_soon_threadsafe(port.never[0].answer, b"")
        until(lambda: held(port) == 0)
