"""The token bucket of one process: its share of a rate, and the tokens that it has now. No I/O; any thread.

Tokens come at ``per_second`` and are kept up to ``burst``. Those who wait are served in the order of arrival. If the
first of them wants more than ``burst``, tokens are kept up to what it wants until it has them. So in any time of *t*
seconds this bucket gives at most ``max(burst, most that was taken at once) + per_second * t`` tokens.

The clock is the process's monotonic one, which does not run while the machine sleeps: that can only make it slower.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ...limits import RATE_PAUSE_S


class TokenWait:
    """One that waits for tokens."""

    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n


class TokenBucket:
    """The bucket. It gives nothing unless it is alive.

    Args:
        clock: seconds, growing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[TokenWait] = deque()
        self._at = clock()
        self.per_second = 0.0
        self.burst = 0.0
        self.tokens = 0.0
        self.used_at = self._at
        """When tokens were last asked for."""
        self.lost: threading.Event | None = None
        """Of the lease that the share hangs on; ``None`` while there is no share."""

    def try_take(self, n: int) -> bool:
        """Take tokens if they are there and nobody waits for any."""
        with self._lock:
            return not self._waiting and self._take(n)

    def enqueue(self, n: int) -> TokenWait:
        """Wait for tokens."""
        wait = TokenWait(n)
        with self._lock:
            self._waiting.append(wait)
        return wait

    def take(self, wait: TokenWait) -> float:
        """Take the tokens, if it is the turn of this one: 0 if they were taken, otherwise the seconds until they may
        be, infinity if that is not known."""
        with self._lock:
            if self._waiting[0] is wait and self._take(wait.n):
                return 0.0
            wanted = 0
            for each in self._waiting:
                wanted += each.n
                if each is wait:
                    break
            if self.per_second <= 0:
                return float("inf")
            return max(RATE_PAUSE_S, (wanted - self.tokens) / self.per_second)  # 0 would mean that they were taken

    def leave(self, wait: TokenWait) -> None:
        """It no longer waits."""
        with self._lock:
            self._waiting.remove(wait)

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def open(self, lost: threading.Event) -> None:
        """Begin with no share, and nothing in it."""
        with self._lock:
            self._set(0.0, 0.0, 0.0)
            self.lost = lost

    def lower(self, per_second: float, burst: float) -> float:
        """Have a smaller share from now on; the tokens that it does not hold. Those that the first who waits is
        gathering stay."""
        with self._lock:
            self._refill()
            keep = min(self.tokens, self._most(min(burst, self.burst)))
            excess = self.tokens - keep
            self._set(min(per_second, self.per_second), min(burst, self.burst), keep)
            return excess

    def set_share(self, per_second: float, burst: float, more: float) -> None:
        """Have this share from now on, and these tokens in addition."""
        with self._lock:
            self._refill()
            self._set(per_second, burst, self.tokens + more)

    def drain(self) -> float:
        """Give nothing any more; the tokens that were left."""
        with self._lock:
            self._refill()
            left = min(self.tokens, self.burst)
            self._set(0.0, 0.0, 0.0)
            self.lost = None
            return left

    def _set(self, per_second: float, burst: float, tokens: float) -> None:
        self._at = self._clock()
        self.per_second, self.burst, self.tokens = per_second, burst, tokens

    def _take(self, n: int) -> bool:
        self._refill()
        self.used_at = self._at
        if self.tokens < n or self.lost is None or self.lost.is_set():
            return False
        self.tokens -= n
        return True

    def _refill(self) -> None:
        now = self._clock()
        more = self.tokens + (now - self._at) * self.per_second
        self.tokens = min(more, max(self.tokens, self._most(self.burst)))
        self._at = now

    def _most(self, burst: float) -> float:
        """How many tokens are kept."""
        return max(burst, self._waiting[0].n) if self._waiting else burst
