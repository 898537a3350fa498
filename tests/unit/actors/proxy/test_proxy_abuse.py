"""Clients that do harm: the port refuses them, stays within its bounds, and goes on serving others."""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from lab.http2.hostile import (
    ask_ping,
    call,
    connect,
    goaway_of,
    held,
    message,
    open_streams,
    pass_time,
    read_all,
    read_frames,
)
from lab.http2.port import Port
from lab.http2.wire import HELLO, REQUEST, Frame, split_frames
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.http2_frames import (
    ACK,
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PROTOCOL_ERROR,
    RST_STREAM,
    pack_frame,
    pack_settings,
    pack_window_update,
)
from raykeeper.actors.proxy.proxy_context import has_unread
from raykeeper.limits import (
    MAX_HEADER_LIST_BYTES,
    MAX_PROXY_STREAMS,
    PROXY_GREETING_S,
    PROXY_IDLE_S,
    PROXY_PARTIAL_S,
    PROXY_PING_TIMEOUT_S,
    PROXY_REQUEST_S,
    PROXY_STALL_S,
)


@pytest.fixture(autouse=True)
def others_are_served(port: Port) -> Iterator[None]:
    yield
    with grpc.insecure_channel(port.target) as channel:
        assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x"


def test_garbage(port: Port) -> None:
    dice = random.Random(1)
    for _ in range(200):
        data = dice.randbytes(dice.randrange(1, 300))
        if dice.random() < 0.5:
            data = HELLO + data
        connect(port, data).close()
    until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.held.held == 0)


def test_damaged_dialogues(port: Port) -> None:
    """A good client's bytes with some of them changed, or cut off."""
    dice = random.Random(2)
    good = HELLO + b"".join(call("Echo", stream) + message(stream, b"text" * 100) for stream in range(1, 21, 2))
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(HELLO), len(data))] = dice.randrange(256)
        connect(port, bytes(data[: dice.randrange(len(data))])).close()
    until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.held.held == 0)


def test_tls(port: Port) -> None:
    with connect(port, bytes.fromhex("1603010200010001fc0303") + bytes(500)) as sock:
        assert read_all(sock) == []


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (b"", PROXY_GREETING_S),
        (HELLO[:10], PROXY_GREETING_S),
        (HELLO[:30], PROXY_PARTIAL_S),
        (HELLO + b"\0", PROXY_PARTIAL_S),
        (HELLO + call("Echo", 1)[:-1], PROXY_PARTIAL_S),
        (HELLO + pack_frame(HEADERS, 0, 1, b"\x82"), PROXY_PARTIAL_S),
        (b"G", PROXY_GREETING_S),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", PROXY_GREETING_S),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nabc", PROXY_REQUEST_S),
        (b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n", PROXY_STALL_S),
    ],
)
def test_slow_clients_are_closed(port: Port, data: bytes, seconds: float) -> None:
    port.stop_sweeping()
    began = time.monotonic()
    with connect(port, data):
        time.sleep(0.3)
        pass_time(port, seconds, since=began)
        until(lambda: port.listener.connection_count() == 1)  # for a moment it is in neither count

        def is_closed() -> bool:  # it may not have been read the first time
            pass_time(port, seconds + 1)
            return port.listener.connection_count() == 0

        until(is_closed)


@pytest.mark.parametrize(
    ("begin", "rest", "answer"),
    [
        (HELLO[:3], HELLO[3:] + call("Echo", 1) + message(1), b"grpc-status"),
        (b"GET /health HTTP/1.1\r\n", b"host: x\r\n\r\n", b"HTTP/1.1 200"),
        (HELLO + call("Echo", 1)[:-1], call("Echo", 1)[-1:] + message(1), b"grpc-status"),
    ],
    ids=["greeting", "head", "frame"],
)
def test_no_client_is_closed_for_what_the_port_has_not_read(
    port: Port, begin: bytes, rest: bytes, answer: bytes
) -> None:
    """As when other clients or other processes take all of its time."""
    with connect(port, begin) as sock:

        def is_read() -> bool:
            connections = port.listener.context.connections()
            return len(connections) == 1 and not has_unread(connections[0]._transport)  # type: ignore[attr-defined]

        until(is_read)

        async def come_late() -> None:
            """The rest comes, and the deadlines pass, before the loop reads again."""
            sock.sendall(rest)
            (connection,) = port.listener.context.connections()
            while not has_unread(connection._transport):  # type: ignore[attr-defined]
                pass
            connection.check_times(port.loop.time() + 2 * max(PROXY_GREETING_S, PROXY_PARTIAL_S))

        port.run(come_late())
        got = b""
        while answer not in got:
            part = sock.recv(10_000)
            assert part, "it was closed"
            got += part


@pytest.mark.parametrize("method", ["Echo", "Both"])
def test_a_request_that_is_not_completed(port: Port, method: str) -> None:
    """The stream is reset; the connection and its other streams go on."""
    part = pack_frame(DATA, 0, 1, struct.pack(">BL", 0, 100) + b"abc")
    with connect(port, HELLO + call(method, 1) + part + call("Both", 3)) as sock:
        until(lambda: port.held.held == 8)
        pass_time(port, PROXY_REQUEST_S + 1)
        until(lambda: port.held.held == 0)
        sock.sendall(call("Echo", 5) + message(5))
        frames = read_frames(sock, lambda frames: any(each.stream == 5 and each.kind == DATA for each in frames))
        assert Frame(RST_STREAM, 0, 1, CANCEL.to_bytes(4, "big")) in frames
        assert not any(each.stream == 3 for each in frames), "it may be silent"


def test_a_call_whose_request_never_comes(port: Port) -> None:
    with connect(port, HELLO + call("Echo", 1)) as sock:
        ask_ping(sock)
        pass_time(port, PROXY_REQUEST_S + 1)
        frames = read_frames(sock, lambda frames: any(each.stream == 1 for each in frames))
        assert frames[-1].kind == RST_STREAM


def test_a_silent_client_is_asked_for_a_sign_of_life(port: Port) -> None:
    with connect(port, HELLO + call("Both", 1)) as sock:
        ask_ping(sock)
        pass_time(port, PROXY_IDLE_S + 1)
        (ping,) = read_frames(sock, bool)
        assert ping == Frame(PING, 0, 0, bytes(8))
        sock.sendall(pack_frame(PING, ACK, 0, ping.payload))
        (connection,) = port.listener.context.connections()
        until(lambda: connection._pinged == 0.0)  # type: ignore[attr-defined]
        pass_time(port, PROXY_PING_TIMEOUT_S + 1)
        assert port.listener.connection_count() == 1
        pass_time(port, PROXY_IDLE_S + 1)
        assert read_frames(sock, bool) == [ping]
        pass_time(port, PROXY_IDLE_S + 1 + PROXY_PING_TIMEOUT_S + 1)
        until(lambda: port.listener.connection_count() == 0)


def test_header_bombs(port: Port) -> None:
    bomb = encode_block(((b"x", b"v" * (MAX_HEADER_LIST_BYTES // 2)),) * 3)
    with connect(port, HELLO + pack_frame(HEADERS, 0, 1, bomb[:16_384])) as sock:
        for at in range(16_384, len(bomb), 16_384):
            sock.sendall(pack_frame(9, 0, 1, bomb[at : at + 16_384]))
        assert goaway_of(read_all(sock)) == ENHANCE_YOUR_CALM


def test_streams_opened_and_reset(port: Port) -> None:
    """Until the connection is closed; the handlers that were begun are cancelled."""
    with connect(port, HELLO) as sock:
        batch = b""
        try:
            for stream in range(1, 200_001, 2):
                batch += call("Sleep", stream) + message(stream) + pack_frame(RST_STREAM, 0, stream, bytes(4))
                if len(batch) > 100_000:
                    sock.sendall(batch)
                    batch = b""
        except OSError:
            pass
        else:
            assert goaway_of(read_all(sock)) == ENHANCE_YOUR_CALM
    until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.begun == port.cancelled)


def test_handlers_that_go_on_after_a_reset_count_as_streams(port: Port) -> None:
    """A direct handler that has not noticed yet."""
    with connect(port, HELLO) as sock:
        for stream in range(1, 2 * MAX_PROXY_STREAMS + 200, 2):
            sock.sendall(call("Never", stream) + message(stream) + pack_frame(RST_STREAM, 0, stream, bytes(4)))
        ask_ping(sock)
        until(lambda: port.begun == MAX_PROXY_STREAMS)
        ask_ping(sock)
        assert port.begun == MAX_PROXY_STREAMS
        for each in port.never:
            port.loop.call_soon_threadsafe(each.answer, b"")
        ask_ping(sock)
        stream = 4 * MAX_PROXY_STREAMS + 1
        sock.sendall(call("Never", stream) + message(stream))
        until(lambda: port.begun == MAX_PROXY_STREAMS + 1)


@pytest.mark.parametrize("request_bytes", ["calls", "pings", "errors"])
def test_a_client_that_does_not_read_is_not_read(port: Port, request_bytes: str) -> None:
    """It can send what sockets hold and what bounds allow, and the proxy keeps no more than that."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent, stream = 0, 1
    with connect(port, HELLO + pack_settings({INITIAL_WINDOW_SIZE: 1 << 30}) + pack_window_update(0, 1 << 30)) as sock:
        sock.settimeout(1.0)
        batch = b""
        with suppress(TimeoutError, ConnectionResetError, BrokenPipeError):  # the last two after a flood of PINGs
            while sent < 400_000_000:
                batch = b""
                for _ in range(100):
                    if request_bytes == "calls":
                        batch += call("Size", stream) + message(stream, b"100000")
                    elif request_bytes == "errors":
                        batch += call("Fail", stream) + message(stream, b"e" * 3000)
                    else:
                        batch += pack_frame(PING, 0, 0, bytes(8))
                    stream += 2
                while batch:
                    count = sock.send(batch)
                    sent += count
                    batch = batch[count:]
        assert held(port) < 100_000 * MAX_PROXY_STREAMS
    assert sent < 50_000_000
    until(lambda: port.listener.connection_count() == 0)
    until(lambda: port.held.held == 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # kilobytes


def test_beginnings_of_requests_are_counted(port: Port) -> None:
    port.held.limit = 10_000_000
    part = struct.pack(">BL", 0, 60_000) + bytes(16_000)
    sockets = []
    for _ in range(4):
        sock = connect(port, HELLO)
        sockets.append(sock)
        try:
            for stream in range(1, 400, 2):
                sock.sendall(call("Echo", stream) + pack_frame(DATA, 0, stream, part))
        except OSError:
            break
    until(lambda: port.listener.connection_count() < 4)
    assert held(port) <= 10_000_000
    for sock in sockets:
        sock.close()
    until(lambda: port.held.held == 0)


def test_long_messages_wait_their_turn(port: Port) -> None:
    """One that never comes holds others up until it is overdue, and no longer."""
    port.held._room = port.held._all_room = 1_500_000
    start = struct.pack(">BL", 0, 1_000_000) + bytes(10_000)
    hello = HELLO + call("Echo", 1) + pack_frame(DATA, 0, 1, start)
    with connect(port, hello), grpc.insecure_channel(port.target) as channel:
        until(lambda: port.held._room == 1_500_000 - 1_000_005)
        waiting = channel.unary_unary("/test.Test/Echo").future(bytes(1_000_000), timeout=PATIENCE)
        until(lambda: len(port.held._waiting) == 1)
        time.sleep(0.1)
        assert not waiting.done()
        pass_time(port, PROXY_REQUEST_S + 1, connections=1)
        assert len(waiting.result()) == 1_000_000


def test_malformed_requests(port: Port) -> None:
    heads = [
        REQUEST[1:],
        (*REQUEST, (b":path", b"/again")),
        (*REQUEST, (b"Upper", b"x")),
        (*REQUEST, (b"connection", b"close")),
        (*REQUEST, (b"x", b"a\r\nb: c")),
        ((b"x", b"y"), *REQUEST),
        tuple((name, b"" if name == b":path" else value) for name, value in REQUEST),
    ]
    with connect(port, HELLO) as sock:
        for number, head in enumerate(heads):
            sock.sendall(pack_frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, encode_block(head)))
        data = b""
        while len([each for each in split_frames(data) if each.kind == RST_STREAM]) < len(heads):
            data += sock.recv(10_000)
        codes = [each.payload[-1] for each in split_frames(data) if each.kind == RST_STREAM]
        assert codes == [PROTOCOL_ERROR] * len(heads)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (message(1)[:9] + b"\x02" + message(1)[10:], b"13"),
        (message(1)[:9] + b"\x01" + message(1)[10:], b"13"),
        (pack_frame(DATA, END_STREAM, 1, b""), b"13"),
        (pack_frame(DATA, END_STREAM, 1, b"\0\0\0\0\5abc"), b"13"),
        (pack_frame(DATA, END_STREAM, 1, b"\0\0\0\0\1a\0\0\0\0\1b"), b"13"),
        (pack_frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"), b"8"),
    ],
)
def test_what_is_not_one_message(port: Port, data: bytes, status: bytes) -> None:
    with connect(port, HELLO + call("Echo", 1) + data) as sock:
        answer = b""
        while b"grpc-status" not in answer:
            answer += sock.recv(10_000)
        assert b"grpc-status" + bytes([len(status)]) + status in answer


@pytest.mark.parametrize("timeout", [b"5", b"x", b"999999999S", b"-1S", b"1.5S", b"5X"])
def test_bad_timeouts(port: Port, timeout: bytes) -> None:
    block = encode_block((*REQUEST, (b"grpc-timeout", timeout)))
    with connect(port, HELLO + pack_frame(HEADERS, END_HEADERS, 1, block) + message(1)) as sock:
        answer = b""
        while b"grpc-status" not in answer:
            answer += sock.recv(10_000)
        assert b"malformed grpc-timeout" in answer


async def sweep_time(port: Port) -> float:
    """Processor time of the loop for one check of all connections."""
    began = time.thread_time()
    for connection in port.listener.context.connections():
        connection.check_times(port.loop.time())
    return time.thread_time() - began


def test_a_thousand_idle_connections(port: Port) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(3000, soft // 3)
    port.stop_sweeping()  # some say nothing, and more than their time may pass until the last one is there
    kinds = [HELLO, HELLO + call("Both", 1), b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b""]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sockets = [connect(port, kinds[number % len(kinds)]) for number in range(count)]
    until(lambda: port.listener.connection_count() == count)
    assert port.run(sweep_time(port)) < 0.5
    with grpc.insecure_channel(port.target) as channel:
        assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < count * 100  # kilobytes, both ends
    for sock in sockets:
        sock.close()
    until(lambda: port.listener.connection_count() == 0)


def test_a_new_connection_displaces_an_idle_one() -> None:
    port = Port(max_connections=10)
    port.stop_sweeping()
    try:
        busy = [connect(port, HELLO + call("Both", 1)) for _ in range(5)]
        until(lambda: open_streams(port) == 5)
        idle = [connect(port, HELLO) for _ in range(5)]
        until(lambda: len(port.listener.context.connections()) == 10)
        more = [connect(port, HELLO + call("Both", 1)) for _ in range(5)]
        for sock in idle:
            read_all(sock)  # to its end
        until(lambda: open_streams(port) == 10)
        with connect(port, HELLO) as refused:
            assert read_all(refused) == []
        assert len(port.listener.context.connections()) == 10
        for sock in busy + more:
            sock.close()
        until(lambda: port.listener.connection_count() == 0)
    finally:
        port.close()
