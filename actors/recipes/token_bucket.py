"""The token bucket of one process: its share of a rate, and the tokens that it has now. No I/O; any thread.

Tokens come at ``per_second`` and are kept up to ``burst``. Those who wait are served in the order of arrival. If the
first of them wants more than ``burst``, tokens are kept up to what it wants until it has them; if it gives up, what is
more than the next one or ``burst`` allows is gone. So in any time of *t* seconds this bucket gives at most
``max(burst, most that was taken at once) + per_second * t`` tokens.

The clock is the process's monotonic one, which does not run while the machine sleeps: that can only make it slower.

A signal handler or a destructor that has interrupted this very thread in a bucket's critical section is refused with
``ReentrantCall``, before it has changed anything (``finalizer_guard.py``).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from ...errors import ReentrantCall
from ...limits import RATE_PAUSE_S
from ..finalizer_guard import gc_deferred, held_by_this_thread


class TokenWait:
    """One that waits for tokens.

    Args:
        n: how many.
        thread: the id of the thread that waits, 0 for a coroutine.
    """

    __slots__ = ("blocked", "n", "over", "thread")

    def __init__(self, n: int, thread: int = 0) -> None:
        self.n = n
        self.thread = thread
        self.over = False
        """It waits no longer. Set by who waits, so that whatever interrupts it then, the next one is served."""
        self.blocked = False
        """Whether it would wait for itself: its thread waits already, and was interrupted by a signal handler."""


class TokenBucket:
    """The bucket. It gives nothing unless it is open and the lease that it hangs on is not lost.

    Args:
        clock: seconds, growing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: deque[TokenWait] = deque()
        self._at = clock()
        self.per_second = 0.0
        self.burst = 0.0
        self.tokens = 0.0
        self.used_at = self._at
        """When tokens were last asked for."""
        self.lost: threading.Event | None = None
        """Of the lease that the share hangs on; ``None`` while there is no share."""

    def check_not_held(self) -> None:
        """Raise ``ReentrantCall`` if this thread was interrupted in the middle of a change of the bucket."""
        if held_by_this_thread(self._lock):
            raise ReentrantCall()

    def try_take(self, n: int) -> bool:
        """Take tokens if they are there and nobody waits for any."""
        self.check_not_held()
        with gc_deferred, self._lock:
            taken = self._first() is None and self._take(n)
        return taken

    def enqueue(self, wait: TokenWait) -> None:
        """Wait for tokens, until :meth:`leave`."""
        self.check_not_held()
        with gc_deferred, self._lock:
            ours = [each for each in self._waiting if each.thread == wait.thread and not each.over]
            wait.blocked = bool(wait.thread and ours)
            self._waiting.append(wait)

    def take(self, wait: TokenWait) -> float:
        """Take the tokens, if it is the turn of this one: 0 if they were taken, otherwise the seconds until they may
        be, infinity if that is not known."""
        self.check_not_held()
        with gc_deferred, self._lock:
            if self._first() is wait and self._take(wait.n):
                wait.over = True
                return 0.0
            wanted = 0
            for each in self._waiting:
                wanted += 0 if each.over else each.n
                if each is wait:
                    break
            missing, per_second = wanted - self.tokens, self.per_second
        return max(RATE_PAUSE_S, missing / per_second) if per_second > 0 else math.inf  # 0 says that they were taken

    def leave(self, wait: TokenWait) -> None:
        """It no longer waits, if it did. What was gathered for it is cut to what is kept without it."""
        self.check_not_held()
        with gc_deferred, self._lock:
            wait.over = True
            if wait in self._waiting:
                self._waiting.remove(wait)
            self._refill()

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return any(not wait.over for wait in list(self._waiting))

    def open(self, lost: threading.Event) -> None:
        """Begin with no share, and nothing in it, until this lease is lost."""
        self.check_not_held()
        with gc_deferred, self._lock:
            self._set(0.0, 0.0, 0.0)
            self.lost = lost

    def lower(self, per_second: float, burst: float) -> float:
        """Have a smaller share from now on; the tokens that it does not hold. Those that the first who waits is
        gathering stay."""
        self.check_not_held()
        with gc_deferred, self._lock:
            self._refill()
            keep = min(self.tokens, self._most(min(burst, self.burst)))
            excess = self.tokens - keep
            self._set(min(per_second, self.per_second), min(burst, self.burst), keep)
            return excess

    def set_share(self, per_second: float, burst: float, more: float) -> None:
        """Have this share from now on, and these tokens in addition."""
        self.check_not_held()
        with gc_deferred, self._lock:
            self._refill()
            self._set(per_second, burst, min(self.tokens + more, self._most(burst)))

    def drain(self, lost: threading.Event) -> float:
        """Give nothing any more, unless it was opened for another lease than this since; the tokens that were left."""
        self.check_not_held()
        with gc_deferred, self._lock:
            if self.lost is not None and self.lost is not lost:
                return 0.0
            self._refill()
            left = min(self.tokens, self.burst)
            self._set(0.0, 0.0, 0.0)
            self.lost = None
            return left

    # -- inside the lock ----------------------------------------------------------------------------------------------

    def _set(self, per_second: float, burst: float, tokens: float) -> None:
        self._at = self._clock()
        self.per_second, self.burst, self.tokens = per_second, burst, tokens

    def _first(self) -> TokenWait | None:
        """The first who waits."""
        while self._waiting and self._waiting[0].over:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def _take(self, n: int) -> bool:
        self._refill()
        self.used_at = self._at
        if self.tokens < n or self.lost is None or self.lost.is_set():
            return False
        self.tokens -= n
        return True

    def _refill(self) -> None:
        now = self._clock()
        self.tokens = min(self.tokens + (now - self._at) * self.per_second, self._most(self.burst))
        self._at = now

    def _most(self, burst: float) -> float:
        """How many tokens are kept."""
        first = self._first()
        return burst if first is None else max(burst, first.n)
