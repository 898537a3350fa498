"""A flood of new connections: what it costs of the loop's time, and when an address is taken to flood."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from lab.http2.listening import ELSEWHERE, REQUEST, answer, connect, listening, run, until
from lab.http2.wire import BLOCK, HELLO
from lab.patience import PATIENCE
from raykeeper.actors.proxy import proxy_acceptor
from raykeeper.actors.proxy.http1_protocol import Http1Protocol
from raykeeper.actors.proxy.http2_frames import END_HEADERS, END_STREAM, HEADERS, pack_frame
from raykeeper.actors.proxy.http2_protocol import Http2Protocol
from raykeeper.actors.proxy.loop_share import LoopShare
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.limits import (
    PROXY_ADMIT_DIVISOR,
    PROXY_FLOOD_ADMIT_DIVISOR,
    PROXY_GREETING_S,
    PROXY_LOOK_DIVISOR,
    PROXY_ROUND_S,
    PROXY_SHARE_PAUSE_S,
    PROXY_SOURCE_PER_S,
    PROXY_STEP_S,
    PROXY_SWEEP_S,
)


def test_of_a_crowd_all_that_have_come_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_acceptor, "PROXY_CROWD_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_CROWD_AT_ONCE", 3)
    monkeypatch.setattr(proxy_acceptor, "PROXY_CROWD_PAUSE_S", 10 * PATIENCE)  # the next round is the test's

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            acceptor = listener.acceptor
            acceptor._looks = LoopShare(acceptor._loop.time, 1.0, 10 * PATIENCE, 0.0)  # however slow the test is
            for count in range(1, 4):
                with connect(address, REQUEST) as sock:
                    assert (await answer(sock)).startswith(b"HTTP/1.1 404")
                assert (listener.context.accepted, acceptor._next_round) == (count, None), "each as it comes"
            socks = [connect(address)]
            await until(lambda: acceptor._next_round is not None)
            socks[0].sendall(REQUEST)
            socks += [connect(address, REQUEST) for _ in range(5)]
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert listener.context.accepted == 4
            assert len(acceptor._silent) == 1, "nobody looks in between"
            assert acceptor._next_round is not None
            acceptor._next_round.cancel()
            monkeypatch.setattr(proxy_acceptor, "PROXY_CROWD_PAUSE_S", 0.001)
            acceptor._round()
            for sock in socks:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")
                sock.close()
            await until(lambda: acceptor._next_round is None)
            with connect(address, REQUEST) as sock:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404"), "the loop tells of each again"

    run(test)


class PlayedLoop:
    """A loop with a clock that the test plays, whose timers it calls, and which has no reader."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))

    def add_reader(self, *_: object) -> None: ...

    def remove_reader(self, *_: object) -> None: ...


@asynccontextmanager
async def slow_listening() -> AsyncIterator[tuple[ProxyListener, PlayedLoop]]:
    """A port that serves, and whose acceptor believes that it runs on another loop."""
    async with listening() as (listener, _):
        acceptor, played = listener.acceptor, PlayedLoop()
        listener.context.serving = True
        acceptor._loop, loop = played, acceptor._loop  # type: ignore[assignment]
        for share in (acceptor._looks, listener.context.admissions):
            share.clock, share._at = played.time, played.now
        for rate in (acceptor._accepts, acceptor._calm, acceptor._admits):
            rate._clock, rate._at = played.time, played.now
        try:
            yield listener, played
        finally:
            acceptor._loop = loop


class EndlessCrowd:
    """A socket that listens, and always has another connection, which is closed already.

    Args:
        played: the loop.
        cost: seconds that it takes to accept one.
    """

    def __init__(self, played: PlayedLoop, cost: float) -> None:
        self._played = played
        self._cost = cost
        self.accepted = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.accepted += 1
        self._played.now += self._cost
        theirs, ours = socket.socketpair()
        ours.close()
        return theirs, ("10.0.0.1", 1)

    def fileno(self) -> int:
        return 0


@pytest.mark.parametrize("slowness", [1, 10, 100])
def test_a_crowd_takes_a_part_of_a_slow_loops_time(slowness: int) -> None:
    """To accept a connection takes 30 us where the machine has time, and up to 3 ms where it has none; there is always
    another. The part of the loop's time is the same, and the address is found to flood, however few are accepted."""

    async def test() -> None:
        async with slow_listening() as (listener, played):
            acceptor, cost = listener.acceptor, 0.00003 * slowness
            crowd = EndlessCrowd(played, cost)
            listeners, acceptor._listeners = acceptor._listeners, [crowd]  # type: ignore[list-item]
            began, longest = played.now, 0.0
            acceptor._reviewed_at = began
            acceptor._accept(acceptor._listeners[0])
            while played.now < began + 20:
                (pause, call), *more = played.timers
                assert not more
                played.timers.clear()
                played.now += pause
                before = played.now
                call()
                longest = max(longest, played.now - before)
                if played.now - acceptor._reviewed_at > PROXY_SWEEP_S:
                    acceptor.review()
                    assert acceptor.useless.floods
            acceptor._listeners = listeners
            acceptor._next_round = None
            assert crowd.accepted * cost / 20 == pytest.approx(1 / PROXY_LOOK_DIVISOR, rel=0.2)
            assert longest <= PROXY_ROUND_S + 2 * cost

    run(test)


@pytest.mark.parametrize("slowness", [1, 10, 100, 1000])
def test_a_port_at_two_addresses_accepts_at_both(slowness: int) -> None:
    """What was first in the list had all of the time, and the other one's clients waited for as long as it had any."""

    async def test() -> None:
        async with slow_listening() as (listener, played):
            acceptor = listener.acceptor
            crowds = [EndlessCrowd(played, 0.00003 * slowness) for _ in range(2)]
            listeners, acceptor._listeners = acceptor._listeners, list(crowds)  # type: ignore[arg-type]
            for number in range(1, 21):
                played.timers.clear()
                before = played.now
                acceptor._round()
                assert played.now - before <= PROXY_ROUND_S + 4 * 0.00003 * slowness
                played.now += max(pause for pause, _ in played.timers)
                assert min(crowd.accepted for crowd in crowds) >= number
            acceptor._listeners = listeners
            acceptor._next_round = None
            assert crowds[0].accepted == pytest.approx(crowds[1].accepted, rel=0.2)

    run(test)


def test_the_last_of_what_may_be_accepted_goes_to_each_address_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with slow_listening() as (listener, played):
            acceptor = listener.acceptor
            monkeypatch.setattr(acceptor._accepts, "_per_s", 0.0)
            crowds = [EndlessCrowd(played, 0.0) for _ in range(2)]
            listeners, acceptor._listeners = acceptor._listeners, list(crowds)  # type: ignore[arg-type]
            for _ in range(10):
                acceptor._accepts._left = 3.0
                acceptor._round()
            acceptor._listeners = listeners
            acceptor._next_round = None
            assert [crowd.accepted for crowd in crowds] == [15, 15]

    run(test)


def test_connections_are_let_in_for_a_part_of_a_slow_loops_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes is known only when it is done, a few passes later."""

    async def test() -> None:
        async with slow_listening() as (listener, played):
            acceptor, begun = listener.acceptor, 0
            admissions, cost = listener.context.admissions, PROXY_STEP_S
            monkeypatch.setattr(acceptor, "_admit_soon", lambda: None)

            def begin(_: object, sock: socket.socket) -> None:
                nonlocal begun
                begun += 1
                sock.close()

            monkeypatch.setattr(acceptor, "_begin", begin)
            began, done = played.now, 0
            while played.now < began + 60:
                while len(acceptor._waiting) < 100:
                    theirs, ours = socket.socketpair()
                    acceptor._have_wait(theirs, "a crowd", b"G")
                    ours.close()
                played.timers.clear()
                acceptor._admit()
                for _ in range(begun - done):
                    since = played.now
                    played.now += cost
                    admissions.spend(since)
                done = begun
                played.now += max([pause for pause, _ in played.timers], default=0.001)
                assert all(pause <= PROXY_SHARE_PAUSE_S for pause, _ in played.timers)
            # A batch that is begun at once may take more than is remembered.
            assert begun * cost / 60 < 2 / PROXY_ADMIT_DIVISOR
            assert begun > 60 / PROXY_SHARE_PAUSE_S / 2, "some are always let in"
            acceptor._next_admission = None

    run(test)


def test_what_it_takes_to_let_in_is_measured() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            admissions, spent = listener.context.admissions, 0
            spend = admissions.spend

            def count(began: float) -> None:
                nonlocal spent
                spent += 1
                spend(began)

            admissions.spend = count  # type: ignore[method-assign]
            with connect(address, REQUEST) as sock:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")
            assert spent >= 4, "two steps at least, the connection, and its first bytes"

    run(test)


@pytest.mark.parametrize("hello", [REQUEST, HELLO], ids=["http1", "http2"])
def test_the_first_request_is_no_part_of_what_it_takes_to_let_in(monkeypatch: pytest.MonkeyPatch, hello: bytes) -> None:
    steps: list[str] = []
    for protocol in (Http1Protocol, Http2Protocol):

        def receive(self: object, data: bytes, real: Callable[[object, bytes], None] = protocol.data_received) -> None:
            steps.append("request")
            real(self, data)

        monkeypatch.setattr(protocol, "data_received", receive)

    async def test() -> None:
        async with listening() as (listener, address):
            spend = listener.context.admissions.spend

            def count(began: float) -> None:
                steps.append(sys._getframe(1).f_code.co_name)
                spend(began)

            listener.context.admissions.spend = count  # type: ignore[method-assign]
            with connect(address, hello) as sock:
                assert await answer(sock)
            assert steps.count("data_received") == 1
            assert steps.index("data_received") < steps.index("request")

    run(test)


def test_a_stall_while_one_is_let_in_does_not_keep_others_out() -> None:
    async def test() -> None:
        async with listening() as (listener, _):
            context = listener.context
            context.serving = True
            for share in (context.admissions, listener.acceptor._looks):
                share.spend(context.loop.time() - 100.0)
                assert share.pause() == 0.0, "a tenth of what may be done at once"

    run(test)


def test_while_an_address_floods_less_time_goes_into_letting_in() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            listener.acceptor.useless._count[ELSEWHERE] = 1000 * PROXY_SOURCE_PER_S
            listener.acceptor._reviewed_at = listener.context.loop.time() - 1.0
            assert listener.context.admissions._fraction == 1 / PROXY_ADMIT_DIVISOR
            listener.acceptor.review()
            assert listener.context.admissions._fraction == 1 / PROXY_FLOOD_ADMIT_DIVISOR
            with connect(address, REQUEST) as sock:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404"), "from another address"
            listener.context.serving = False
            listener.acceptor.review()
            assert listener.context.admissions._fraction == 1 / PROXY_ADMIT_DIVISOR
            with connect(address, REQUEST, ELSEWHERE) as sock:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")

    run(test)


def test_a_crowd_that_has_to_wait_is_no_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients behind one address that fail over at once: the proxy lets them in over seconds, and some give up."""
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 0)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            acceptor = listener.acceptor
            crowd = [connect(address, data, ELSEWHERE) for data in 20 * [REQUEST, HELLO]]
            await until(lambda: len(acceptor._waiting) == 40)
            for sock in crowd[:20]:
                sock.close()
            await until(lambda: len(acceptor._waiting) == 20)
            listener.context.serving = False
            for number, sock in enumerate(crowd[20:]):
                assert await answer(sock)
                if number % 2:
                    sock.sendall(pack_frame(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK))
            await until(lambda: not listener.context._unused)
            for sock in crowd[20:]:
                sock.close()
            await until(lambda: listener.connection_count() == 0)
            assert listener.context.accepted == 40
            assert not acceptor.useless._count

    run(test)


def test_what_ends_without_a_request_is_of_no_use() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            useless = listener.acceptor.useless._count
            for count, data in enumerate((b"", b"\0", HELLO, REQUEST[:9]), 1):
                sock = connect(address, data, ELSEWHERE)
                await until(lambda count=count: listener.context.accepted == count)  # type: ignore[misc]
                if data:
                    await until(lambda: not len(listener.acceptor))
                sock.close()
                await until(lambda count=count: useless[ELSEWHERE] == count)  # type: ignore[misc]
            silent = connect(address, b"", ELSEWHERE)
            await until(lambda: len(listener.acceptor) == 1)
            listener.acceptor.expire(listener.context.loop.time() + 2 * PROXY_GREETING_S)
            assert await answer(silent) == b""
            silent.close()
            assert useless == {ELSEWHERE: 4}, "it came long ago: the address may be another's by now"

    run(test)


def test_what_makes_way_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_WAITING", 1)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 0)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            useless = listener.acceptor.useless._count
            socks = [connect(address, REQUEST, ELSEWHERE) for _ in range(3)]
            await until(lambda: useless[ELSEWHERE] == 2 and len(listener.acceptor._waiting) == 1)
            monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_SILENT", 1)  # now that no first byte is on its way
            socks += [connect(address, b"", ELSEWHERE) for _ in range(2)]
            await until(lambda: useless[ELSEWHERE] == 3 and len(listener.acceptor) == 2)
            for sock in socks:
                sock.close()

    run(test)
