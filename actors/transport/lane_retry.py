"""When a lane to a member is opened again, after it could not be opened or has ended: for members and clients alike.

What is wrong decides how long nothing is tried, and whether an operator hears of it:

- **There is no offer**: the member's actor does not answer, starts, or has no lanes. Pauses double up to a bound of
  seconds.
- **The address of an offer leads nowhere**: a firewall, or an address that is translated. It may refuse connections,
  swallow them, accept them and swallow what they say, or lead to another process. Pauses double up to minutes, and
  after a few attempts in a row the member counts as unreachable by lane.
- **A lane that was opened ends because nothing that is sent on it arrives**, or before anything has: the same, unless
  it had served for a while. A firewall that lets a few packets pass looks like this.
- **A lane ends otherwise**: the process at its other end has stopped, and its successor is asked soon.

So a lane that opens proves nothing yet: what was counted is forgotten only when a lane has lasted ``LANE_PROVEN_S``.
"""

from __future__ import annotations

import random

from ...limits import (
    LANE_MAX_PAUSE_S,
    LANE_PAUSE_S,
    LANE_PROVEN_S,
    LANE_UNREACHABLE_ATTEMPTS,
    LANE_UNREACHABLE_PAUSE_S,
)
from .lane import LaneUnreachable

SWALLOWED = "lanes to it are opened, and what is sent on them does not arrive"


class LaneRetry:
    """See the module; for one member. Its owner sees to it that one thread uses it at a time.

    Args:
        rng: for the jitter.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.not_before = 0.0
        """On the owner's clock: until then no attempt is made."""
        self._failures = 0
        """Attempts in a row that came to nothing, and lanes that ended at once..."""
        self._unreachable = 0
        """... and those whose address led nowhere, until a lane has lasted."""
        self._problem = ""
        self._opened_at: float | None = None

    def failed(self, now: float, error: Exception | None, longest: float = LANE_MAX_PAUSE_S) -> bool:
        """An attempt came to nothing; whether an operator should hear of it now.

        Args:
            error: why; ``None`` if the member had no lane to offer.
            longest: seconds, of the pause.
        """
        if isinstance(error, LaneUnreachable):
            return self._led_nowhere(now, str(error))
        self._pause(now, self._failures, longest)
        self._failures += 1
        return False

    def opened(self, now: float) -> None:
        """A lane is open."""
        self._opened_at = now

    def ended(self, now: float, *, swallowed: bool, longest: float) -> bool:
        """The lane has ended; whether an operator should hear of it now.

        Args:
            swallowed: nothing that was sent on it has arrived, or not any more.
            longest: seconds of the pause, if it is not that.
        """
        lasted = self._has_lasted(now)
        self._opened_at = None
        if lasted:
            self._failures = self._unreachable = 0
        elif swallowed:
            return self._led_nowhere(now, SWALLOWED)
        self._pause(now, self._failures, longest)
        self._failures += 1
        return False

    def seen(self, now: float) -> None:
        """The member is running: the next attempt need not wait."""
        self._failures = 0
        self.not_before = now

    def problem(self, now: float) -> str:
        """Why the member cannot be reached by lane; empty if it can, or if that is not known."""
        told = self._unreachable >= LANE_UNREACHABLE_ATTEMPTS
        return self._problem if told and not self._has_lasted(now) else ""

    def _has_lasted(self, now: float) -> bool:
        return self._opened_at is not None and now - self._opened_at >= LANE_PROVEN_S

    def _led_nowhere(self, now: float, problem: str) -> bool:
        self._problem = problem
        self._pause(now, self._unreachable, LANE_UNREACHABLE_PAUSE_S)
        self._unreachable += 1
        return self._unreachable == LANE_UNREACHABLE_ATTEMPTS

    def _pause(self, now: float, times: int, longest: float) -> None:
        """Exponential back-off with jitter."""
        self.not_before = now + min(longest, LANE_PAUSE_S * 2 ** min(times, 16)) * self._rng.uniform(0.5, 1.0)
