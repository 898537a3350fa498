"""The clock of a member: time that passes, and nothing else.

All that a member counts (ticks of Raft, leases, sessions, patience with peers) is counted on this clock. It is taken
from the system's monotonic clock, never from the wall clock, and it also does not believe the monotonic one blindly: it
never goes back, and a step of more than ``MAX_CLOCK_STEP`` between two looks is a clock that jumped or a machine that
slept, not time in which this member did its work; of such a step nothing is counted. Counting too little only makes a
promise of time longer, which hurts nobody: a member that did not run for so long has lost its leadership if the others
ran, and learns that from them. (So this is no clock for reads by leader lease, which must not count too little.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..limits import MAX_CLOCK_STEP

if hasattr(time, "CLOCK_BOOTTIME"):

    def system_clock() -> float:
        """Seconds on the system's monotonic clock that runs on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    system_clock = time.monotonic


class SteadyClock:
    """A clock that neither goes back nor jumps. Callable, from any thread.

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

    def __call__(self) -> float:
        """Seconds; only differences mean something."""
        with self._lock:
            now = self._source()
            if not 0 <= now - self._last <= self._max_step:
                self._skipped += now - self._last
            self._last = now
            return now - self._skipped


member_clock = SteadyClock()
"""The clock of the member in this process."""
