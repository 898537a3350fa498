"""Automatic compaction by the leader: of history, by revisions or by age (etcd: auto-compaction), and of request ids.

Ages are counted on the cluster's clock (``store/state/cluster_clock.py``), so they do not start again with each leader:
what is kept for an hour is forgotten after little more, even if no leader lasts that long. Automatic compaction goes
through the log like any other, and its settings are in the replicated state, where ``Configure`` changes them.
"""

from __future__ import annotations

from collections.abc import Callable

from ...limits import COMPACTION_CHECK_S, COMPACTION_SLACK_DIVISOR
from ...schema.commands import Command, CompactHistory, ForgetRequests
from .deadlines import ClusterTime
from .turn import Turn


class Compactor:
    """One leader's compaction. Does nothing on a member that does not lead.

    Args:
        turn: the member's.
        propose: puts a command of the member's own into the log; returns its index, 0 if it was refused.
        time: the member's reading of the cluster's clock.
    """

    def __init__(self, turn: Turn, propose: Callable[[Command], int], time: ClusterTime) -> None:
        self._turn = turn
        self._propose = propose
        self._time = time
        self._leads = False
        self._next = 0.0

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        self._leads = True
        self._next = now

    def stop(self) -> None:
        """This member does not lead."""
        self._leads = False

    def work(self, now: float) -> None:
        """Compact what is older than the settings keep. For a leader that has committed in its term."""
        if not self._leads or now < self._next:
            return
        self._next = now + COMPACTION_CHECK_S
        settings, clock, read = self._time.settings, self._turn.state.clock, self._time.reading(now)
        if settings.compaction.mode == "revisions":
            keep = settings.compaction.keep
            self._compact(self._turn.state.revision - keep, keep // COMPACTION_SLACK_DIVISOR)
        elif settings.compaction.mode == "age":
            point = clock.before(read - settings.compaction.keep)
            if point is not None:
                self._compact(point.revision, 0)
        if self._turn.state.remembered_requests:
            point = clock.before(read - settings.timings.request_ttl)
            if point is not None and point.index >= self._turn.state.oldest_request:
                self._propose(ForgetRequests(point.index))

    def _compact(self, revision: int, slack: int) -> None:
        if revision > self._turn.state.compact_revision + slack and revision > 1:  # revision 1 is the empty store
            self._propose(CompactHistory(revision))
