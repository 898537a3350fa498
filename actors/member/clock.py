"""The clock of a member: elapsed time, in two readings.

Everything that a member times (Raft's ticks, leases, sessions, calls to peers) uses this clock. It is based on the
system's monotonic clock that runs on while the machine sleeps, never on the wall clock. Nor is that clock trusted: a
step of more than ``MAX_CLOCK_STEP_S`` between two readings is a clock that jumped or a machine that slept, and the two
cannot be told apart. So there are two readings:

- *at least* this much time has passed: a step that is too long, or backwards, is not counted. For whatever ends
  something that others rely on: leases, sessions, calls, the promise to follow a leader. Counting too little only makes
  those longer.
- *at most* this much time has passed: a step that is too long is counted whole; one backwards, which may hide any
  amount of time, counts as more than any promise lasts. For what this member itself relies on while time is left: the
  lease of a leader (``raft/leader_lease.py``). Counting too much only costs a leader another heartbeat round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ...limits import MAX_CLOCK_STEP_S, MAX_PROMISE_S

if hasattr(time, "CLOCK_BOOTTIME"):

    def system_clock() -> float:
        """Seconds on the system's monotonic clock that runs on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    system_clock = time.monotonic


class SteadyClock:
    """A clock that neither goes back nor jumps. Callable from any thread: seconds that have passed at least.

    Args:
        source: the underlying clock, in seconds.
        max_step: the longest step between two readings that is trusted.
    """

    def __init__(self, source: Callable[[], float] | None = None, max_step: float = MAX_CLOCK_STEP_S) -> None:
        self._source = source or (lambda: system_clock())
        self._max_step = max_step
        self._lock = threading.Lock()
        self._last = self._source()
        self._skipped = 0.0
        """The part of the source's time that the lower reading does not count."""
        self._hidden = 0.0
        """The time that the upper reading counts beyond the source's."""

    def __call__(self) -> float:
        """Seconds that have passed at least; only differences are meaningful."""
        return self.readings()[0]

    def readings(self) -> tuple[float, float]:
        """Seconds that have passed at least, and at most, at one moment. Only differences between readings of one kind
        are meaningful."""
        now = self._source()
        if 0 <= now - self._last <= self._max_step:
            # No lock: if another thread reads a later time meanwhile, ``_last`` only lags by that moment.
            self._last = now
            return now - self._skipped, now + self._hidden
        with self._lock:
            now = self._source()
            step = now - self._last
            if step < 0:
                self._skipped += step
                self._hidden += MAX_PROMISE_S - step
            elif step > self._max_step:
                self._skipped += step
            self._last = now
            return now - self._skipped, now + self._hidden


def both_readings(clock: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """A function that gives both readings of a clock; any clock but a :class:`SteadyClock` is trusted."""
    if isinstance(clock, SteadyClock):
        return clock.readings

    def readings() -> tuple[float, float]:
        now = clock()
        return now, now

    return readings


member_clock = SteadyClock()
"""The clock of the member in this process."""
