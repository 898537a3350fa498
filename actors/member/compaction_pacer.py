"""Paces physical compaction: the removal of what compaction has made unreachable, in slices between other work."""

from __future__ import annotations

import math

from ...limits import COMPACTION_MAX_FACTOR, COMPACTION_PAUSE_S
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
