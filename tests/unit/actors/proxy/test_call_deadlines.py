"""One timer for the deadlines of all calls, on a loop whose time is played."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from raykeeper.actors.proxy.call_deadlines import CallDeadlines
from raykeeper.limits import RPC_DEADLINE_STEP_S


class PlayedTimer:
    def __init__(self, when: float, due: Callable[[], None]) -> None:
        self.when = when
        self.due = due
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class PlayedLoop:
    """As much of an event loop as deadlines need."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[PlayedTimer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, due: Callable[[], None]) -> PlayedTimer:
        self.timers.append(PlayedTimer(when, due))
        return self.timers[-1]

    def run(self, seconds: float) -> None:
        """Let time pass; each timer is called when it is due."""
        end = self.now + seconds
        while waiting := [each for each in self.timers if not each.cancelled and each.when <= end]:
            timer = min(waiting, key=lambda each: each.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.due()
        self.now = end


class Call:
    def __init__(self, loop: PlayedLoop, seconds: float) -> None:
        self._loop = loop
        self.deadline = loop.now + seconds
        self.expired = 0.0

    def expire(self) -> None:
        assert not self.expired
        self.expired = self._loop.now


@pytest.fixture
def loop() -> PlayedLoop:
    return PlayedLoop()


@pytest.fixture
def deadlines(loop: PlayedLoop) -> CallDeadlines:
    stands_in: Any = loop
    return CallDeadlines(stands_in)


def test_deadlines_pass_in_time(loop: PlayedLoop, deadlines: CallDeadlines) -> None:
    calls = [Call(loop, seconds) for seconds in (0.3, 0.05, 0.15, 0.0, 0.05)]
    for call in calls:
        deadlines.add(call)
    ended = Call(loop, 0.1)
    deadlines.add(ended)
    deadlines.discard(ended)
    forever = Call(loop, math.inf)
    deadlines.add(forever)
    deadlines.discard(forever)
    loop.run(0.6)
    assert not ended.expired
    assert not forever.expired
    for call in calls:
        assert call.deadline <= call.expired <= call.deadline + RPC_DEADLINE_STEP_S + 1e-6
    assert not deadlines._steps
    assert deadlines._timer is None
    late = Call(loop, 0.05)
    deadlines.add(late)
    loop.run(0.3)
    assert late.expired


def test_a_loop_that_was_held_up_catches_up(loop: PlayedLoop, deadlines: CallDeadlines) -> None:
    calls = [Call(loop, seconds) for seconds in (0.1, 0.9, 5.0)]
    for call in calls:
        deadlines.add(call)
    loop.now += 2.0
    loop.run(0.0)
    assert [bool(call.expired) for call in calls] == [True, True, False]
    loop.run(5.0)
    assert calls[2].deadline <= calls[2].expired <= calls[2].deadline + RPC_DEADLINE_STEP_S + 1e-6


def test_many_deadlines_are_few_timers(loop: PlayedLoop, deadlines: CallDeadlines) -> None:
    calls = [Call(loop, 10 + number / 10_000) for number in range(10_000)]
    for call in calls:
        deadlines.add(call)
    assert len(deadlines._steps) <= 2 + 1 / RPC_DEADLINE_STEP_S
    assert len([each for each in loop.timers if not each.cancelled]) == 1
    for call in calls:
        deadlines.discard(call)
    assert not any(deadlines._steps.values())
    deadlines.close()
    assert deadlines._timer is None
    assert all(each.cancelled for each in loop.timers)


def test_a_call_that_ends_while_others_expire(loop: PlayedLoop, deadlines: CallDeadlines) -> None:
    """One expiry may end another call of the same step."""
    first, second = Call(loop, 0.05), Call(loop, 0.05)
    for call, other in ((first, second), (second, first)):
        deadlines.add(call)
        call.expire = lambda other=other: deadlines.discard(other)  # type: ignore[method-assign]
    loop.run(0.3)
    assert not deadlines._steps
