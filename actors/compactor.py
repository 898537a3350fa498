"""The leader forgets by itself: history, by the number of revisions or by age (etcd: auto-compaction), and request ids.

Ages are those of the cluster's clock (``store/cluster_clock.py``), so they do not begin anew with each leader: what is
kept for an hour is forgotten after little more, also if no leader leads for so long. What is to be forgotten goes
through the log like any compaction, and the settings are those of the replicated state: ``Configure`` changes them.
"""

from __future__ import annotations

from collections.abc import Callable

from ..limits import COMPACTION_LOOK, COMPACTION_SLACK
from ..store.commands import Command, CompactHistory, ForgetRequests
from ..store.state import State
from .timekeeper import ClusterTime


class Compactor:
    """One leader's compaction. Does nothing on a member that does not lead.

    Args:
        state: the member's state as it is now.
        propose: puts a command of the member's own into the log; its index, 0 if it was not taken.
        time: the member's reading of the cluster's clock.
    """

    def __init__(self, state: Callable[[], State], propose: Callable[[Command], int], time: ClusterTime) -> None:
        self._state = state
        self._propose = propose
        self._time = time
        self._leads = False
        self._next = 0.0

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        self._leads = True
        self._next = now

    def stop(self) -> None:
        """This member does not lead (any more)."""
        self._leads = False

    def work(self, now: float) -> None:
        """Forget what is older than what is to be kept. For a leader that has committed in its term."""
        if not self._leads or now < self._next:
            return
        self._next = now + COMPACTION_LOOK
        settings, clock, read = self._time.settings, self._state().clock, self._time.read(now)
        if settings.compaction.mode == "revisions":
            keep = settings.compaction.keep
            self._compact(self._state().revision - keep, keep // COMPACTION_SLACK)
        elif settings.compaction.mode == "age":
            mark = clock.before(read - settings.compaction.keep)
            if mark is not None:
                self._compact(mark.revision, 0)
        if self._state().remembered_requests:
            mark = clock.before(read - settings.timings.request_ttl)
            if mark is not None and mark.index >= self._state().oldest_request:
                self._propose(ForgetRequests(mark.index))

    def _compact(self, revision: int, slack: int) -> None:
        if revision > self._state().compact_revision + slack and revision > 1:  # revision 1 is the empty store
            self._propose(CompactHistory(revision))
