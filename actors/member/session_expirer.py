"""The leader's work on sessions: it counts their time, renews them, and lets those of silent processes expire.

A new leader starts from what the log tells (``store/state/cluster_clock.py``): a session without a sign of life in the
log under the previous leader counts as silent since that leader's term began. So the first keep-alive of an idle client
under each leader goes through the log; writes do anyway. Sessions expire through the log, by a command that names the
last sign of life that the leader knew.
"""

from __future__ import annotations

from collections.abc import Callable

from ...limits import MAX_EXPIRIES_AT_ONCE
from ...schema.commands import Command, ExpireSessions, Expiry, RenewSessions
from .deadlines import ClusterTime, DeadlineQueue
from .turn import Turn

Renewed = Callable[["bool | None"], None]
"""Gets whether a session is alive; ``None`` if that is not known, and the client must ask again."""


class SessionExpirer:
    """One leader's sessions. Does nothing on a member that does not lead.

    Args:
        turn: the member's.
        propose: puts a command of the member's own into the log; returns its index, 0 if it was refused.
        time: the member's reading of the cluster's clock.
    """

    def __init__(self, turn: Turn, propose: Callable[[Command], int], time: ClusterTime) -> None:
        self._turn = turn
        self._propose = propose
        self._time = time
        self._ends = DeadlineQueue()
        self._asked: list[tuple[int, float, Renewed]] = []
        """(session, arrival, callback) of keep-alives that have to go through the log."""
        self._waiting: list[tuple[int, list[tuple[int, float, Renewed]]]] = []
        """Those in the log that are not applied yet, with their index."""
        self._expiry_index = 0
        """Log index of the expiry that is not settled yet, 0 for none."""
        self._term = 0

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        self.stop()
        self._term = term
        sessions = self._turn.state.sessions.values()
        left = self._time.time_left
        self._ends.start(((known.id, left(known.ttl, known.heard, None, now)) for known in sessions), now)

    def stop(self) -> None:
        """This member does not lead: keep-alives that wait must go to another."""
        self._term = 0
        self._expiry_index = 0
        self._ends.stop()
        asked, self._asked = self._asked, []
        waiting, self._waiting = self._waiting, []
        for signs in (asked, *(signs for _, signs in waiting)):
            for _, _, done in signs:
                done(None)

    def opened(self, session: int, now: float) -> None:
        """A session was opened (or the opening was repeated)."""
        known = self._turn.state.sessions.get(session)
        if self._term and known is not None and session not in self._ends:
            self._ends.renew(session, now + known.ttl)

    def heard(self, session: int, arrival: float) -> bool | None:
        """Count a sign of life that is in the log from its arrival on.

        Returns:
            Whether the session is alive; ``None`` if it is expiring, so that only the log can tell.
        """
        known = self._turn.state.sessions.get(session)
        if known is None:
            return False
        return True if self._term and self._ends.renew(session, arrival + known.ttl) else None

    def keep_alive(self, session: int, arrival: float, done: Renewed) -> None:
        """Renew a session from the arrival of a keep-alive on. A quorum has confirmed since that this member leads."""
        known = self._turn.state.sessions.get(session)
        if self._term and known is not None and known.heard < self._time.beginning:
            self._asked.append((session, arrival, done))
        else:
            done(self.heard(session, arrival))

    def applied(self) -> None:
        """Entries were applied: answer the keep-alives that waited for them."""
        index = self._turn.state.applied_index
        while self._waiting and self._waiting[0][0] <= index:
            for session, arrival, done in self._waiting.pop(0)[1]:
                self.keep_alive(session, arrival, done)  # the renewal may have had no effect

    def work(self, now: float, pause: float) -> None:
        """Propose the expiry of sessions that are due, and log keep-alives. For a leader that has committed in its
        term.

        Args:
            pause: seconds until a command that was refused, or had no effect, is tried again.
        """
        self._settle(now, pause)
        sessions = self._turn.state.sessions
        if len(self._ends) > 2 * len(sessions) + DeadlineQueue.SPARE:  # closed by their clients
            for session in self._ends.ids - sessions.keys():
                self._ends.forget(session)
        while self._asked:
            signs, self._asked = self._asked[:MAX_EXPIRIES_AT_ONCE], self._asked[MAX_EXPIRIES_AT_ONCE:]
            index = self._propose(RenewSessions(self._term, tuple(dict.fromkeys(session for session, _, _ in signs))))
            if index:
                self._waiting.append((index, signs))
            else:
                for _, _, done in signs:
                    done(None)
        if not self._expiry_index and self._ends.next_deadline() <= now:
            self._expire(now, pause)

    def _settle(self, now: float, pause: float) -> None:
        if not self._expiry_index or self._turn.state.applied_index < self._expiry_index:
            return
        self._expiry_index = 0
        for session in self._ends.expiring:
            if session in self._turn.state.sessions:
                self._ends.retry(session, now + pause)
            else:
                self._ends.forget(session)

    def _expire(self, now: float, pause: float) -> None:
        """Propose the expiry of what is due, one command at a time. A session with a renewal in the log is spared: its
        keep-alive arrived in time."""
        sessions = self._turn.state.sessions
        renewed = {session for _, signs in self._waiting for session, _, _ in signs}
        ended = []
        for session in self._ends.due(now, MAX_EXPIRIES_AT_ONCE):
            if session not in sessions:  # closed by its client
                self._ends.forget(session)
            elif session in renewed:
                self._ends.retry(session, now + pause)
            else:
                ended.append(Expiry(session, sessions[session].heard))
        if not ended:
            return
        self._expiry_index = self._propose(ExpireSessions(self._term, tuple(ended)))
        if not self._expiry_index:
            for expiry in ended:
                self._ends.retry(expiry.id, now + pause)
