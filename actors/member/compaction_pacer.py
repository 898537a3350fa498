"""Paces physical compaction: the removal of what compaction has made unreachable, in slices between other work."""

from __future__ import annotations

import math

from ...limits import COMPACTION_MAX_FACTOR, COMPACTION_PAUSE_S, MAX_COMPACTION_WAITS
from ...schema.frames import Refusal, Refused
from .events import CompactionAwaited
from .turn import Turn


class CompactionPacer:
    """Has one member's state compacted.

    Args:
        turn: the member's.
        now: on the member's clock.
    """

    def __init__(self, turn: Turn, now: float) -> None:
        self._turn = turn
        self.due = now
        """When the next slice is due; infinity if there was nothing to remove."""
        self._revision = turn.state.revision
        """The revision at the last slice."""
        self._waiting: list[CompactionAwaited] = []

    def look_again(self, now: float) -> None:
        """There may be something to remove again: a slice is due, unless the next one is set."""
        if math.isinf(self.due):
            self.due = now

    def work(self, now: float, least: int) -> None:
        """Do a slice. Slices are short, so that none holds up a turn for long, but grow with the write rate, so that
        they keep pace.

        Args:
            least: how many changes a slice looks at on an idle member.
        """
        state = self._turn.state
        written = state.revision - self._revision
        self._revision = state.revision
        more = state.compact_slice(min(max(least, 2 * written), COMPACTION_MAX_FACTOR * least))
        self.due = now + COMPACTION_PAUSE_S if more else math.inf
        if not more and self._waiting:
            self._answer(now)

    # -- those who wait for its end -----------------------------------------------------------------------------------

    def wait(self, awaited: CompactionAwaited) -> None:
        """Answer once this much is removed."""
        if len(self._waiting) >= MAX_COMPACTION_WAITS:
            awaited.done(Refused(Refusal.OVERLOADED, message="enough requests wait for the end of compaction"))
            return
        self._waiting.append(awaited)
        self._answer(self._turn.now)

    def refuse_late(self, now: float) -> None:
        """Answer those whose deadline has passed."""
        if self._waiting:
            self._answer(now)

    def refuse_all(self, refused: Refused) -> None:
        """This member stops."""
        waiting, self._waiting = self._waiting, []
        for awaited in waiting:
            awaited.done(refused)

    def _answer(self, now: float) -> None:
        state, waiting, self._waiting = self._turn.state, self._waiting, []
        for awaited in waiting:
            if state.is_removed(awaited.revision):
                awaited.done(None)
            elif awaited.deadline <= now:
                awaited.done(Refused(Refusal.TIMED_OUT, message="compaction was not done in time"))
            else:
                self._waiting.append(awaited)
