"""When a leader's commit index came how far, for the last minutes: so it can say for how many seconds a member's log
has lacked what is committed. It is looked at once in a while (``LAG_LOOK_S``): the seconds are as exact as that."""

from __future__ import annotations

from bisect import bisect_right

from ...limits import COMMIT_TIMES_KEPT


class CommitTimes:
    """See the module. The loop's thread notes; any thread asks."""

    def __init__(self) -> None:
        self._looks: tuple[tuple[float, int], ...] = ()
        """Times and indexes, both rising. Replaced as a whole, since other threads read it."""

    def begin(self) -> None:
        """Another leader's looks do not count."""
        self._looks = ()

    def note(self, commit_index: int, now: float) -> None:
        """One look."""
        if not self._looks or commit_index > self._looks[-1][1]:
            self._looks = (*self._looks[1 - COMMIT_TIMES_KEPT :], (now, commit_index))

    def lacking_for(self, index: int, now: float) -> float:
        """For how many seconds entries after this index have been committed, as far as is known; 0 if there are
        none."""
        looks = self._looks
        first = bisect_right(looks, index, key=lambda look: look[1])
        return max(0.0, now - looks[first][0]) if first < len(looks) else 0.0
