"""The leader's care for sessions: counting their time, renewing them, and ending those whose process is silent.

A leader that begins counts from what the log tells (``store/cluster_clock.py``): who gave no sign of life under the one
before it has been silent since that one began. So the first sign of life of an idle client under each leader goes
through the log; its writes do anyway. What ends, ends through the log, with the last sign of life that the leader saw.
"""

from __future__ import annotations

from collections.abc import Callable

from ..limits import MAX_EXPIRIES_AT_ONCE
from ..store.commands import Command, ExpireSessions, Expiry, RenewSessions
from ..store.state import State
from .timekeeper import ClusterTime, Countdown

Renewed = Callable[["bool | None"], None]
"""Takes whether a session is alive; ``None`` if that cannot be told now, and must be asked again."""


class SessionKeeper:
    """One leader's sessions. Does nothing on a member that does not lead.

    Args:
        state: the member's state as it is now.
        propose: puts a command of the member's own into the log; its index, 0 if it was not taken.
        time: the member's reading of the cluster's clock.
    """

    def __init__(self, state: Callable[[], State], propose: Callable[[Command], int], time: ClusterTime) -> None:
        self._state = state
        self._propose = propose
        self._time = time
        self._ends = Countdown()
        self._asked: list[tuple[int, float, Renewed]] = []
        """(session, arrival, who waits) of the signs of life that are to go through the log."""
        self._waiting: list[tuple[int, list[tuple[int, float, Renewed]]]] = []
        """Those that are on their way, by log index."""
        self._expiry_index = 0
        """Log index of the expiry that is under way, 0 for none."""
        self._term = 0

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        self.stop()
        self._term = term
        sessions = self._state().sessions.values()
        left = self._time.left
        self._ends.start(((known.id, left(known.ttl, known.heard, None, now)) for known in sessions), now)

    def stop(self) -> None:
        """This member does not lead (any more): who waits must ask somebody else."""
        self._term = 0
        self._expiry_index = 0
        self._ends.stop()
        asked, self._asked = self._asked, []
        waiting, self._waiting = self._waiting, []
        for signs in (asked, *(signs for _, signs in waiting)):
            for _, _, done in signs:
                done(None)

    def opened(self, session: int, now: float) -> None:
        """A session was opened (or its opening answered again)."""
        known = self._state().sessions.get(session)
        if self._term and known is not None and session not in self._ends:
            self._ends.renew(session, now + known.ttl)

    def heard(self, session: int, arrival: float) -> bool | None:
        """A sign of life that arrived then stands in the log.

        Returns:
            whether the session is alive; ``None`` if only the log can tell, because it is just being ended.
        """
        known = self._state().sessions.get(session)
        if known is None:
            return False
        return True if self._term and self._ends.renew(session, arrival + known.ttl) else None

    def keep(self, session: int, arrival: float, done: Renewed) -> None:
        """A sign of life arrived then, and a quorum has confirmed since that this member leads."""
        known = self._state().sessions.get(session)
        if self._term and known is not None and known.heard < self._time.beginning:
            self._asked.append((session, arrival, done))
        else:
            done(self.heard(session, arrival))

    def applied(self) -> None:
        """The state has moved on."""
        index = self._state().applied_index
        while self._waiting and self._waiting[0][0] <= index:
            for session, arrival, done in self._waiting.pop(0)[1]:
                self.keep(session, arrival, done)  # its renewal may have been void

    def work(self, now: float, pause: float) -> None:
        """End what has run out, and put signs of life into the log. For a leader that has committed in its term.

        Args:
            pause: seconds after which something that was not taken, or came back void, is tried again.
        """
        self._settle(now, pause)
        sessions = self._state().sessions
        if len(self._ends) > 2 * len(sessions) + Countdown.SPARE:  # closed by their clients
            for session in self._ends.promises - sessions.keys():
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
        if not self._expiry_index or self._state().applied_index < self._expiry_index:
            return
        self._expiry_index = 0
        for session in self._ends.expiring:
            if session in self._state().sessions:
                self._ends.retry(session, now + pause)
            else:
                self._ends.forget(session)

    def _expire(self, now: float, pause: float) -> None:
        sessions = self._state().sessions
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
