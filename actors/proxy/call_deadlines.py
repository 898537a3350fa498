"""The deadlines of running calls: one timer for all of them, accurate to ``RPC_DEADLINE_STEP_S``.

A timer of the event loop for each call would cost more than all else that is done for it, and most calls end long
before their deadlines. So calls with deadlines in the same step share a set, which they leave when they end.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import Protocol

from ...limits import RPC_DEADLINE_STEP_S


class Expiring(Protocol):
    """A call with a deadline, in seconds of ``time.monotonic``, which is also the clock of the event loop."""

    deadline: float

    def expire(self) -> None:
        """The deadline has passed."""


class CallDeadlines:
    """See the module. The loop's thread alone uses it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._steps: dict[int, set[Expiring]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Expiring) -> None:
        """Call ``call.expire`` when its deadline has passed; not for an infinite one."""
        if call.deadline == math.inf:
            return
        step = _step_of(call)
        calls = self._steps.get(step)
        if calls is None:
            calls = self._steps[step] = set()
            heapq.heappush(self._order, step)
            if self._order[0] == step:
                self._set_timer()
        calls.add(call)

    def discard(self, call: Expiring) -> None:
        """A call has ended."""
        if call.deadline != math.inf:
            calls = self._steps.get(_step_of(call))
            if calls is not None:
                calls.discard(call)

    def close(self) -> None:
        """Forget all."""
        self._steps.clear()
        self._order.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._order:
            self._timer = self._loop.call_at(self._order[0] * RPC_DEADLINE_STEP_S, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        while self._order and self._order[0] * RPC_DEADLINE_STEP_S <= now:
            for call in self._steps.pop(heapq.heappop(self._order)):
                call.expire()
        self._set_timer()


def _step_of(call: Expiring) -> int:
    """The step at whose beginning the deadline has passed."""
    return math.ceil(call.deadline / RPC_DEADLINE_STEP_S)
