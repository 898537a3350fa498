"""New connections: which are let in, in which order, and which make way."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from lab import patience
from lab.http2.listening import ELSEWHERE, REQUEST, answer, arrived, connect, listening, run, until
from lab.patience import PATIENCE
from raykeeper.actors.proxy import proxy_acceptor, proxy_listener
from raykeeper.actors.proxy.proxy_acceptor import BySource
from raykeeper.actors.transport.accept_rate import source_of_address
from raykeeper.limits import (
    PROXY_GREETING_S,
    PROXY_PASS_ADMITS,
    PROXY_SWEEP_S,
)


def test_answers_leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that acknowledges late, as Go's does, got an answer in two parts 40 ms late."""
    tuned: list[socket.socket] = []

    def tune_socket(sock: socket.socket) -> None:
        real_tune(sock)
        tuned.append(sock)

    real_tune = proxy_listener.tune_socket
    monkeypatch.setattr(proxy_listener, "tune_socket", tune_socket)

    async def test() -> None:
        async with listening() as (_, address):
            with connect(address, REQUEST) as sock:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")
                assert [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in tuned] == [1]

    run(test)


def test_one_pass_of_the_loop_lets_a_few_in() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            count = 4 * PROXY_PASS_ADMITS
            socks = [connect(address, REQUEST) for _ in range(count)]
            by_pass = []
            while (before := len(listener.context.connections())) < count:
                await asyncio.sleep(0)
                by_pass.append(len(listener.context.connections()) - before)
            assert max(by_pass) <= PROXY_PASS_ADMITS
            assert listener.context.accepted == count
            for sock in socks:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")
                sock.close()

    run(test)


def test_while_others_are_served_the_rate_is_limited_and_each_address_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 2)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            flood = [connect(address, REQUEST, ELSEWHERE) for _ in range(50)]
            await until(lambda: listener.context.accepted == 50)
            with connect(address, REQUEST) as honest:
                # Two were let in at once. The third is that from here, though 48 have waited for longer.
                await until(lambda: len(listener.acceptor._waiting) == 49 and listener.connection_count() == 51)
                listener.acceptor._admits._left = 2.0
                assert (await answer(honest)).startswith(b"HTTP/1.1 404")
            assert len(listener.acceptor._waiting) >= 47
            listener.context.serving = False
            for sock in flood:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404"), "nobody is served: all are let in"
                sock.close()

    run(test)


def test_a_port_serves_when_older_connections_are_heard() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            with connect(address, REQUEST) as sock:
                assert await answer(sock)
                now = listener.context.loop.time()
                listener.context.share_passes(now - PATIENCE)
                assert not listener.context.serving, "it is new itself"
                await asyncio.sleep(PROXY_SWEEP_S + 0.1)
                since = listener.context.loop.time()
                await asyncio.get_running_loop().sock_sendall(sock, REQUEST)
                assert await answer(sock)
                listener.context.share_passes(since)
                assert listener.context.serving
                listener.context.share_passes(listener.context.loop.time() + 1)
                assert not listener.context.serving, "nothing was heard since"

    run(test)


def test_what_says_nothing_makes_way_by_address_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_SILENT", 10)

    async def test() -> None:
        async with listening() as (listener, address):
            quiet = connect(address)
            await until(lambda: listener.connection_count() == 1)
            flood = [connect(address, b"", ELSEWHERE) for _ in range(30)]
            await until(lambda: listener.context.accepted == 31)
            assert listener.connection_count() == 10
            for sock in flood[:21]:
                assert await answer(sock) == b""
            assert listener.context.ends["displaced"] == 21
            late = flood[-1]
            quiet.sendall(REQUEST)
            assert (await answer(quiet)).startswith(b"HTTP/1.1 404"), "the oldest of all had stayed"
            # Its first byte has come, and the loop has not looked yet: it is not the client that is slow.
            late.settimeout(PATIENCE)
            late.sendall(REQUEST)
            theirs = next(reversed(listener.acceptor._silent.values()))[0]
            patience.until(lambda: arrived(theirs))
            listener.acceptor.expire(listener.context.loop.time() + 2 * PROXY_GREETING_S)
            for sock in flood[21:-1]:
                assert await answer(sock) == b""
            assert (await answer(late)).startswith(b"HTTP/1.1 404")
            for sock in (quiet, *flood):
                sock.close()

    run(test)


def test_those_that_wait_make_way_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_WAITING", 10)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 0)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            with connect(address, REQUEST) as honest:
                await until(lambda: len(listener.acceptor._waiting) == 1)
                flood = [connect(address, REQUEST, ELSEWHERE) for _ in range(30)]
                await until(lambda: listener.context.ends["refused"] == 21)
                assert len(listener.acceptor._waiting) == 10
                listener.context.serving = False
                assert (await answer(honest)).startswith(b"HTTP/1.1 404")
            for sock in flood:
                sock.close()

    run(test)


@pytest.mark.parametrize("data", [b"\0", b"x" * 64, b"\x16\x03\x01", b"\xff\xff", b" GET /"])
def test_what_begins_no_request_is_closed_at_once(data: bytes) -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            with connect(address, data) as sock:
                assert await answer(sock) == b""
            assert listener.context.ends["harmful"] == 1
            assert listener.context.connections() == []

    run(test)


def test_more_than_a_machine_should_accept_stay_with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_acceptor, "PROXY_ACCEPTS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ACCEPTS_AT_ONCE", 5)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            socks = [connect(address, REQUEST) for _ in range(8)]
            await until(lambda: listener.acceptor._next_round is not None)
            assert listener.context.accepted == 5
            listener.context.serving = False
            for sock in socks:
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")
                sock.close()

    run(test)


def test_those_that_give_up_wait_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 0)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            socks = [connect(address, data) for data in (REQUEST, REQUEST, b"", b"")]
            await until(lambda: len(listener.acceptor._waiting) == 2 and len(listener.acceptor._silent) == 2)
            for sock in socks[::2]:
                sock.close()
            await until(lambda: len(listener.acceptor._waiting) == 1 and len(listener.acceptor._silent) == 1)
            listener.context.serving = False
            assert (await answer(socks[1])).startswith(b"HTTP/1.1 404")
            socks[3].sendall(REQUEST)
            assert (await answer(socks[3])).startswith(b"HTTP/1.1 404")
            for sock in socks:
                sock.close()

    run(test)


def is_reset(sock: socket.socket) -> bool:
    """Whether its client has reset it, and that has arrived."""
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("first", ["looked at", "let in"])
def test_one_that_is_reset_while_it_waits_gives_up_whoever_notices_it(
    monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 0)

    async def test() -> None:
        async with listening() as (listener, address):
            listener.context.serving = True
            acceptor = listener.acceptor
            sock = connect(address, REQUEST, ELSEWHERE)
            await until(lambda: len(acceptor._waiting) == 1)
            [(theirs, _)] = acceptor._waiting.values()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            patience.until(lambda: is_reset(theirs))
            if first == "let in":
                assert acceptor._next_admission is not None
                acceptor._next_admission.cancel()
                listener.context.serving = False
                acceptor._admit()
            await until(lambda: not acceptor._waiting)
            assert theirs.fileno() == -1
            assert not acceptor.useless._count

    run(test)


def test_those_that_have_said_something_are_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """... though nobody has looked at them yet."""
    monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_SILENT", 10)
    monkeypatch.setattr(proxy_acceptor, "PROXY_PASS_ACCEPTS", 5)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_PER_S", 0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_ADMITS_AT_ONCE", 0)

    async def test() -> None:
        async with listening() as (listener, _):
            listener.context.serving = True
            pairs = [socket.socketpair() for _ in range(34)]
            for number, (theirs, ours) in enumerate(pairs):
                if number > 3:
                    ours.sendall(REQUEST)
                    patience.until(lambda theirs=theirs: arrived(theirs))  # type: ignore[misc]
            for theirs, _ in pairs:
                listener.acceptor._keep_silent(theirs, "a crowd")
            await until(lambda: len(listener.acceptor._waiting) == 30)
            assert len(listener.acceptor._silent) == 4
            assert listener.context.ends["displaced"] == 0
            listener.acceptor.close()
            for _, ours in pairs:
                ours.close()

    run(test)


def test_a_client_that_says_all_it_has_to_say_and_closes_its_side_is_answered() -> None:
    async def test() -> None:
        async with listening() as (_, address):
            with connect(address, REQUEST) as sock:
                sock.shutdown(socket.SHUT_WR)
                assert (await answer(sock)).startswith(b"HTTP/1.1 404")

    run(test)


def test_times_are_kept_while_the_last_calls_end() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            with connect(address, REQUEST) as sock:
                assert await answer(sock)
                listener.acceptor.close()
                listener._sweep()
                assert listener._sweeper is not None
                listener._sweeper.cancel()
                (connection,) = listener.context.connections()
                connection.check_times(listener.context.loop.time())

    run(test)


def test_the_end_closes_what_waits() -> None:
    async def test() -> None:
        async with listening() as (listener, address):
            silent = connect(address)
            await until(lambda: listener.connection_count() == 1)
            listener.acceptor.close()
            assert await answer(silent) == b""
            with pytest.raises(OSError):
                connect(address)

    run(test)


def test_things_by_source() -> None:
    things: BySource[int] = BySource()
    for number in range(6):
        things.add("many", number)
    things.add("few", 10)
    things.add("one", 20)
    assert things.take_of_largest() == ("many", 0)
    assert [things.take() for _ in range(4)] == [("many", 1), ("few", 10), ("one", 20), ("many", 2)]
    things.discard("many", 4)
    things.discard("many", 4)
    things.discard("nobody", 4)
    assert len(things) == 2
    assert [things.take(), things.take()] == [("many", 3), ("many", 5)]
    assert len(things) == 0


def test_sources() -> None:
    assert source_of_address("10.1.2.3") == "10.1.2.3"
    assert source_of_address("2001:db8:0:1:2::3") == source_of_address("2001:db8:0:1::9")
    assert source_of_address("2001:db8:0:1::3") != source_of_address("2001:db8:0:2::3")
    assert source_of_address("fe80::1%eth0") == source_of_address("fe80::2%eth0")
