"""The clock of a member: time that passes, and nothing else.

All that a member counts (ticks of Raft, leases, sessions, patience with peers) is counted on this clock. It is taken
from the system's monotonic clock that runs on while the machine sleeps, never from the wall clock, and it does not
believe that one blindly either: a step of more than ``MAX_CLOCK_STEP`` between two looks is a clock that jumped or a
machine that slept, and nobody can tell which. So there are two readings:

- *at least* this much has passed: a step that is too long, or back, is not counted. For whatever ends something of
  somebody else's: leases, sessions, patience, the promise to stand by a leader. Counting too little only makes a
  promise longer.
- *at most* this much has passed: a step that is too long is counted whole, and one back, of which nobody knows how much
  time it hides, as more than any promise lasts. For whatever this member takes for its own while time is left: the
  lease of a leader (``raft/lease.py``). Counting too much only has a leader ask the others once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..limits import MAX_CLOCK_STEP, MAX_PROMISE

if hasattr(time, "CLOCK_BOOTTIME"):

    def system_clock() -> float:
        """Seconds on the system's monotonic clock that runs on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    system_clock = time.monotonic


class SteadyClock:
    """A clock that neither goes back nor jumps. Callable, from any thread: seconds that have passed at least.

    Args:
        source: the clock that it is taken from, in seconds.
        max_step: the longest time between two looks that is believed.
    """

    def __init__(self, source: Callable[[], float] | None = None, max_step: float = MAX_CLOCK_STEP) -> None:
        self._source = source or (lambda: system_clock())
        self._max_step = max_step
        self._lock = threading.Lock()
        self._last = self._source()
        self._skipped = 0.0
        """Of the source's time, what the lower reading does not count."""
        self._hidden = 0.0
        """What the upper reading counts beyond the source's time."""

    def __call__(self) -> float:
        """Seconds that have passed at least; only differences mean something."""
        return self.look()[0]

    def look(self) -> tuple[float, float]:
        """Seconds that have passed at least, and that may have passed at most, at one moment. Only differences of
        readings of one kind mean something."""
        with self._lock:
            now = self._source()
            step = now - self._last
            if step < 0:
                self._skipped += step
                self._hidden += MAX_PROMISE - step
            elif step > self._max_step:
                self._skipped += step
            self._last = now
            return now - self._skipped, now + self._hidden


def both_readings(clock: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """How to read a clock both ways; one that is no :class:`SteadyClock` is believed."""
    if isinstance(clock, SteadyClock):
        return clock.look

    def look() -> tuple[float, float]:
        now = clock()
        return now, now

    return look


member_clock = SteadyClock()
"""The clock of the member in this process."""
