"""Clocks of other members' hosts that differ from this one's.

Every ``CLOCK_TOLD_FRAMES``-th frame between two members says the sender's clock. Nothing depends on it but logs and
operators: members count time by monotonic clocks.

A reading is older when it is looked at than when it was made, by an unknown delay. So a clock seems less far ahead than
it is, never further; the largest of the readings of some time is the nearest to the truth.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from ...limits import CLOCK_DIFFERS_S, CLOCK_LOG_PAUSE_S, CLOCK_LOOK_READINGS, CLOCK_LOOK_S
from ...schema.operator_frames import MemberStatus
from ..logs import MemberLog
from ..naming import member_name

_AHEAD = "the clock of %s's host is %.3f s ahead of this one's: run a time service (chrony) on both"
_LATE = "the clock of %s's host is %.3f s slow by this one's: run a time service (chrony) on both"


class _Look:
    """The readings of one member's clock in ``CLOCK_LOOK_S``."""

    __slots__ = ("ahead", "began", "readings")

    def __init__(self, began: float) -> None:
        self.began = began
        self.readings = 0
        self.ahead = 0.0
        """The largest."""


class PeerClocks:
    """See the module. Any thread.

    Args:
        log: where a clock that differs is said.
        wall: this host's clock, in seconds since 1970; ``time.time`` if none is given.
        clock: monotonic seconds.
    """

    def __init__(
        self, log: MemberLog, wall: Callable[[], float] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._wall = time.time if wall is None else wall
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: dict[int, _Look] = {}
        self._found: dict[int, tuple[float, float]] = {}
        """Of each member: how far its clock is ahead by the last look that is over, and when that was."""
        self._said: dict[int, float] = {}
        """Members whose clock differs, and when that was said last."""

    def now(self) -> float:
        """What to tell another member."""
        return self._wall()

    def heard(self, member: int, wall: float) -> None:
        """A member has said its clock."""
        ahead, now = wall - self._wall(), self._clock()
        with self._lock:
            look = self._looks.get(member)
            if look is None:
                look = self._looks[member] = _Look(now)
            look.ahead = ahead if not look.readings else max(look.ahead, ahead)
            look.readings += 1
            if look.readings < CLOCK_LOOK_READINGS or now - look.began < CLOCK_LOOK_S:
                return
            del self._looks[member]
            self._found[member] = look.ahead, now
            line = self._line(member, look.ahead, now)
        if line:
            self._log.warning(line, member_name(member), abs(look.ahead))

    def _line(self, member: int, ahead: float, now: float) -> str:
        """What to log of a look that is over; empty for nothing. With the lock held."""
        if abs(ahead) < CLOCK_DIFFERS_S:
            if self._said.pop(member, None) is None:
                return ""
            return "the clock of %s's host agrees with this one's again, within %.3f s"
        if now - self._said.get(member, -math.inf) < CLOCK_LOG_PAUSE_S:
            return ""
        self._said[member] = now
        return _AHEAD if ahead > 0 else _LATE

    def offsets(self) -> dict[int, float]:
        """By how many seconds other members' clocks are ahead of this host's, of those that were heard of late."""
        now = self._clock()
        with self._lock:
            return {member: ahead for member, (ahead, at) in self._found.items() if now - at < 4 * CLOCK_LOOK_S}


def clocks_that_differ(leader: MemberStatus | None) -> list[str]:
    """The hosts whose clock is off the leader's, one line each. A leader hears all members; they hear only it."""
    if leader is None:
        return []
    return [
        f"the clock of {member_name(member)}'s host is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'slow by'} "
        f"that of {leader.name}'s: run a time service on both"
        for member, ahead in sorted(leader.clocks.items())
        if abs(ahead) >= CLOCK_DIFFERS_S
    ]
