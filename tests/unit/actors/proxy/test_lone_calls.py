"""A call that is alone costs no pass of the loop of its own, neither on its way to the member nor on its way back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, cast

import pytest

from lab.http2.wire import HELLO, REQUEST, split_frames
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.header_blocks import encode_block
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, pack_frame
from raykeeper.actors.proxy.http2_protocol import Http2Protocol
from raykeeper.actors.proxy.http_exchange import answer_not_found
from raykeeper.actors.proxy.proxy_context import ProxyContext
from raykeeper.actors.proxy.rpc_methods import RpcMethods, UnaryCall


class Loop:
    """A pass of a loop: what else is to run in it, and what is to run in the next."""

    def __init__(self) -> None:
        self._ready: list[Any] = []
        self.next: list[Callable[[], None]] = []
        self.exceptions: list[BaseException] = []

    def time(self) -> float:
        return 1.0

    def call_soon(self, work: Callable[[], None]) -> None:
        self.next.append(work)

    def call_exception_handler(self, what: dict[str, Any]) -> None:
        self.exceptions.append(what["exception"])

    def go_on(self) -> None:
        """The next pass."""
        work, self.next = self.next, []
        for each in work:
            each()


class Socket:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Client:
    """A connection to a method that is answered by the test."""

    def __init__(self) -> None:
        self.loop, self.socket = Loop(), Socket()
        self.calls: list[UnaryCall] = []
        self.done: list[str] = []
        self.answers_at_once = False
        methods = RpcMethods()
        methods.add_direct("/test.Test/Echo", self._take)
        log = MemberLog("proxy", "c", "p")
        context = ProxyContext(cast(Any, self.loop), methods, answer_not_found, log, HeldBytes(), 10)
        self.protocol = Http2Protocol(context)
        self.protocol.connection_made(cast(Any, self.socket))
        self.protocol.data_received(HELLO)
        self.socket.written.clear()

    def _take(self, message: bytes, call: UnaryCall) -> bool:
        self.calls.append(call)
        self.done.append("taken")
        if len(self.calls) == 1:
            call.soon(self.work)
        if self.answers_at_once:
            call.answer(b"y")
        return True

    def work(self) -> None:
        self.done.append("work")

    def ask(self, *streams: int) -> None:
        """Requests that one read of the socket brings."""
        message = struct.pack(">BL", 0, 1) + b"x"
        self.protocol.data_received(
            b"".join(
                pack_frame(HEADERS, END_HEADERS, stream, encode_block(REQUEST))
                + pack_frame(DATA, END_STREAM, stream, message)
                for stream in streams
            )
        )

    def answered(self) -> list[list[int]]:
        """The streams that each write has ended."""
        return [
            [frame.stream for frame in split_frames(data) if frame.flags & END_STREAM] for data in self.socket.written
        ]


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.mark.parametrize("streaming", [0, 3])
def test_a_lone_answer_leaves_at_once(client: Client, streaming: int) -> None:
    """Calls of streams, which may last forever, do not count."""
    client.protocol.running = client.protocol.streaming = streaming
    for stream in (1, 3, 5):
        client.ask(stream)
        client.calls[-1].answer(b"y")
    assert client.answered() == [[1], [3], [5]]
    assert client.loop.next == []


def test_answers_that_come_together_leave_in_one_write(client: Client) -> None:
    client.ask(1, 3)
    client.ask(5)
    for call in client.calls:
        call.answer(b"y")
    assert client.answered() == []
    client.loop.go_on()
    assert client.answered() == [[1, 3, 5]]
    client.ask(7)
    client.calls[-1].answer(b"y")
    assert client.answered() == [[1, 3, 5], [7]]


def test_an_answer_while_requests_are_read_leaves_when_all_are_read(client: Client) -> None:
    client.answers_at_once = True
    client.ask(1, 3)
    assert client.answered() == [[1, 3]]


def test_what_requests_lead_to_is_done_when_all_are_read(client: Client) -> None:
    client.ask(1, 3, 5)
    assert client.done == ["taken", "taken", "taken", "work"]
    assert client.loop.next == []


def test_what_requests_lead_to_waits_for_other_sockets(client: Client) -> None:
    client.loop._ready.append("another socket was read")
    client.ask(1, 3)
    assert client.done == ["taken", "taken"]
    client.loop.go_on()
    assert client.done == ["taken", "taken", "work"]


def test_a_failure_of_what_is_done_later_ends_no_connection(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(client, "work", fail)
    client.ask(1)
    assert [type(error) for error in client.loop.exceptions] == [ValueError]
    client.calls[0].answer(b"y")
    assert client.answered() == [[1]]
