"""Which connections a proxy keeps when there are too many."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http1_protocol import Http1Protocol
from raykeeper.actors.proxy.http2_frames import PREFACE
from raykeeper.actors.proxy.http2_protocol import Http2Protocol
from raykeeper.actors.proxy.http_exchange import answer_not_found
from raykeeper.actors.proxy.proxy_context import ProxyContext
from raykeeper.actors.proxy.proxy_listener import Greeting
from raykeeper.actors.proxy.rpc_methods import RpcMethods
from raykeeper.limits import MAX_ADMISSION_CHECKS, PROXY_GREETING_S


class Connection:
    def __init__(self, idle_since: float | None) -> None:
        self._idle_since = idle_since
        self.looked_at = 0
        self.aborted = False

    def idle_since(self) -> float | None:
        self.looked_at += 1
        return self._idle_since

    def check_times(self, now: float) -> None: ...

    def drain(self) -> None: ...

    def stop(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


class Loop:
    """One whose time is the test's, and which runs nothing."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def call_soon(self, *called: object) -> None: ...


class Transport:
    """Of a client that has sent nothing more."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self.protocol: Any = None
        self.closed = False

    def get_extra_info(self, name: str) -> object:
        return self._socket if name == "socket" else None

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self._socket.close()
        self.closed = True

    abort = close


def context(size: int, loop: Loop | None = None) -> ProxyContext:
    clock = cast(Any, loop or Loop())
    return ProxyContext(clock, RpcMethods(), answer_not_found, MemberLog("proxy", "c", "p"), HeldBytes(), size)


def test_the_one_that_is_idle_longest_goes() -> None:
    room = context(4)
    connections = [Connection(since) for since in (5.0, None, 3.0, 4.0)]
    assert all(room.add(each) for each in connections)
    assert room.add(Connection(6.0))
    assert [each.aborted for each in connections] == [False, False, True, False]
    assert len(room.connections()) == 4


def test_none_is_idle() -> None:
    room = context(2)
    assert room.add(Connection(None))
    assert room.add(Connection(None))
    assert not room.add(Connection(None))
    assert len(room.connections()) == 2


def test_few_are_looked_at_each_time_and_all_in_the_end() -> None:
    count = 10 * MAX_ADMISSION_CHECKS
    room = context(count)
    connections = [Connection(None) for _ in range(count - 1)] + [Connection(1.0)]
    assert all(room.add(each) for each in connections)
    assert [room.add(Connection(None)) for _ in range(10)] == [False] * 9 + [True]
    assert connections[-1].aborted
    assert all(each.looked_at == 1 for each in connections)


def test_what_is_closed_without_a_request_is_noted_once() -> None:
    room, noted = context(2), []
    room.note_useless = noted.append
    greeting, unused, used = (Connection(1.0) for _ in range(3))
    assert room.add(greeting, "a")
    room.replace(greeting, unused)
    assert room.add(used, "b")
    room.begin_requests(used)
    assert room.add(Connection(2.0), "c"), "one makes way"
    assert unused.aborted
    for connection in (unused, used, greeting):
        room.discard(connection)
    assert noted == ["a"]
    assert len(room._unused) == 1


@pytest.mark.parametrize("make", [Greeting, Http1Protocol, Http2Protocol])
@pytest.mark.parametrize("end", ["its own deadline", "its client"])
def test_what_its_own_deadline_closes_is_not_noted(make: Callable[..., Any], end: str) -> None:
    """Both are equally old."""
    loop, noted = Loop(), []
    room = context(2, loop)
    room.note_useless = noted.append
    transport = Transport()
    greeting = Greeting(room, lambda: None)
    greeting.connection_made(cast(Any, transport))
    connection: Any = greeting
    if make is not Greeting:
        greeting.data_received(PREFACE + b"\0" if make is Http2Protocol else b"GET")
        connection = transport.protocol
    assert type(connection) is make
    loop.now += 2 * PROXY_GREETING_S
    if end == "its own deadline":
        connection.check_times(loop.now)
        assert transport.closed
    connection.connection_lost(None)
    transport.close()
    assert not room.connections()
    assert noted == ([] if end == "its own deadline" else [""])


def test_all_that_make_way_in_a_full_table_are_noted() -> None:
    """A flood of connections that only the next ones displace: they are older than a greeting may take, since each
    has said something."""
    loop, noted = Loop(), []
    room = context(50, loop)
    room.note_useless = noted.append
    for _ in range(200):
        assert room.add(Connection(loop.now), "flood")
        loop.now += 1
    assert PROXY_GREETING_S < 50
    assert noted == ["flood"] * 150
    assert len(room._unused) == 50
