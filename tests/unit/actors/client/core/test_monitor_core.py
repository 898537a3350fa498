"""When a process asks to be monitored, and whom."""

from __future__ import annotations

import random

import msgspec
import pytest

from raykeeper.actors.client.core.monitor_core import MonitorCore
from raykeeper.actors.client.core.router import Router
from raykeeper.limits import CLIENT_SUSPICION_S, MONITOR_REFRESH_S
from raykeeper.schema.frames import MonitorProcess, ProcessMonitored, Refusal, Refused, Reply, Request
from raykeeper.schema.replies import reply_bytes

decode = msgspec.msgpack.Decoder(Request).decode


class Process:
    def __init__(self, near: set[int]) -> None:
        self.now = 100.0
        self.session = 5
        self.owns = True
        self.router = Router((1, 2, 3), leader=3, near=near)
        self.core = MonitorCore(9, self.router, lambda: self.session, lambda: self.owns, random.Random(1))

    def asks(self) -> tuple[int, MonitorProcess] | None:
        """The member that is asked now, if any, and what."""
        out = self.core.outgoing(self.now)
        assert self.core.outgoing(self.now) == []
        if not out:
            return None
        (frame,) = out
        self.number = frame.number
        request = decode(frame.frame)
        assert isinstance(request, MonitorProcess)
        return frame.member, request

    def later(self) -> None:
        """Until it wants to be woken."""
        wakeup = self.core.next_wakeup()
        assert wakeup is not None
        assert wakeup > self.now
        self.now = wakeup
        self.core.on_time(self.now)

    def hears(self, reply: Reply) -> None:
        self.core.on_reply(self.number, reply_bytes(reply), self.now)


def test_nothing_is_asked_while_no_lease_is_owned() -> None:
    process = Process({2})
    assert process.asks() is None
    assert process.core.next_wakeup() is None
    process.core.lease_owned(process.now)
    asked = process.asks()
    assert asked is not None
    assert asked[0] == 2
    assert asked[1].session == 5
    process.hears(ProcessMonitored(True))
    assert process.core.monitored == 5
    process.owns = False
    process.later()
    assert process.asks() is None
    assert process.core.next_wakeup() is None


def test_it_is_said_again_because_members_forget() -> None:
    process = Process({1, 3})
    process.core.lease_owned(process.now)
    for _ in range(5):
        asked = process.asks()
        assert asked is not None
        assert asked[0] == 3, "the leader, whose word is the shortest way"
        before = process.now
        process.hears(ProcessMonitored(True))
        process.later()
        assert process.now - before <= MONITOR_REFRESH_S


def test_the_first_refusals_are_followed_by_another_attempt_soon_and_then_by_another_member() -> None:
    process = Process({1, 2})
    process.core.lease_owned(process.now)
    asked, began = [], process.now
    for _ in range(12):
        frame = process.asks()
        assert frame is not None
        asked.append(frame[0])
        process.hears(ProcessMonitored(False))
        process.later()
        if len(asked) == 4:
            assert process.now - began < 0.5
    assert asked[0] == asked[3]
    assert set(asked) == {1, 2}


def test_a_lost_frame_a_refusal_and_a_failure_are_attempts_without_success() -> None:
    process = Process({2})
    process.core.lease_owned(process.now)
    assert process.asks() is not None
    before = process.now
    process.later()
    assert process.now == before + CLIENT_SUSPICION_S
    process.later()
    assert process.asks() is not None
    process.hears(Refused(Refusal.NOT_SERVING))
    process.later()
    assert process.asks() is not None
    process.core.on_failure(process.number, process.now)
    process.later()
    assert process.asks() is not None
    process.core.on_reply(process.number, b"\xc1", process.now)
    assert process.core.monitored == 0


def test_without_a_member_near_by_or_a_session_it_waits() -> None:
    near: set[int] = set()
    process = Process(near)
    process.core.lease_owned(process.now)
    assert process.asks() is None
    near.add(2)
    process.session = 0
    process.later()
    assert process.asks() is None
    process.session = 6
    process.later()
    asked = process.asks()
    assert asked is not None
    assert asked[1].session == 6


def test_without_a_session_it_looks_ever_less_often() -> None:
    process = Process({2})
    process.session = 0
    process.core.lease_owned(process.now)
    pauses = []
    for _ in range(12):
        assert process.asks() is None
        before = process.now
        process.later()
        pauses.append(process.now - before)
    assert pauses[0] < 0.05
    assert pauses[-1] == pytest.approx(MONITOR_REFRESH_S)
    process.session = 5
    assert process.asks() is not None


def test_after_its_end_it_asks_nothing() -> None:
    process = Process({2})
    process.core.lease_owned(process.now)
    process.core.close(process.now)
    assert process.asks() is None
    assert process.core.next_wakeup() is None
