"""Which connections a proxy keeps when there are too many."""

from __future__ import annotations

import asyncio

import pytest

from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.held_bytes import HeldBytes
from raykeeper.actors.proxy.http_exchange import answer_not_found
from raykeeper.actors.proxy.proxy_context import ProxyContext
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


def context(size: int) -> ProxyContext:
    loop = asyncio.new_event_loop()
    loop.close()
    return ProxyContext(loop, RpcMethods(), answer_not_found, MemberLog("proxy", "c", "p"), HeldBytes(), size)


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


def test_what_is_closed_as_its_time_is_over_is_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    room, noted, now = context(2), [], 100.0
    monkeypatch.setattr(room.loop, "time", lambda: now)
    room.note_useless = noted.append
    young, old = Connection(1.0), Connection(1.0)
    assert room.add(old, "old")
    now += PROXY_GREETING_S
    assert room.add(young, "young")
    room.discard(old)
    room.discard(young)
    assert noted == ["young"]
