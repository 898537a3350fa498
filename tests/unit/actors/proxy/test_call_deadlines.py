"""One timer for the deadlines of all calls."""

from __future__ import annotations

import asyncio
import math
import time

from raykeeper.actors.proxy.call_deadlines import CallDeadlines
from raykeeper.limits import RPC_DEADLINE_STEP_S


class Call:
    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.expired = 0.0

    def expire(self) -> None:
        assert not self.expired
        self.expired = time.monotonic()


def test_deadlines_pass_in_time() -> None:
    async def play() -> None:
        deadlines = CallDeadlines(asyncio.get_running_loop())
        calls = [Call(seconds) for seconds in (0.3, 0.05, 0.15, 0.0, 0.05)]
        for call in calls:
            deadlines.add(call)
        ended = Call(0.1)
        deadlines.add(ended)
        deadlines.discard(ended)
        forever = Call(math.inf)
        deadlines.add(forever)
        deadlines.discard(forever)
        await asyncio.sleep(0.6)
        assert not ended.expired
        assert not forever.expired
        for call in calls:
            assert call.deadline <= call.expired < call.deadline + RPC_DEADLINE_STEP_S + 0.2
        assert not deadlines._steps
        assert deadlines._timer is None
        late = Call(0.05)
        deadlines.add(late)
        await asyncio.sleep(0.3)
        assert late.expired

    asyncio.run(play())


def test_many_deadlines_are_few_timers() -> None:
    async def play() -> None:
        deadlines = CallDeadlines(asyncio.get_running_loop())
        calls = [Call(10 + number / 10_000) for number in range(10_000)]
        for call in calls:
            deadlines.add(call)
        span = max(call.deadline for call in calls) - min(call.deadline for call in calls)
        assert len(deadlines._steps) <= 2 + span / RPC_DEADLINE_STEP_S
        for call in calls:
            deadlines.discard(call)
        assert not any(deadlines._steps.values())
        deadlines.close()
        assert deadlines._timer is None

    asyncio.run(play())


def test_a_call_that_ends_while_others_expire() -> None:
    """One expiry may end another call of the same step."""

    async def play() -> None:
        deadlines = CallDeadlines(asyncio.get_running_loop())
        first, second = Call(0.05), Call(0.05)
        for call, other in ((first, second), (second, first)):
            deadlines.add(call)
            call.expire = lambda other=other: deadlines.discard(other)  # type: ignore[method-assign]
        await asyncio.sleep(0.3)
        assert not deadlines._steps

    asyncio.run(play())
