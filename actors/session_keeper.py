"""The leader's care for sessions: counting their time, ending those whose process is silent, forgetting old requests.

A new leader gives every session its whole TTL again: that can only make a promise longer. (Leases, which free locks,
are kept more strictly: see ``lessor``.) What ends, ends through the log, with the renewal count that the leader saw.
"""

from __future__ import annotations

from collections.abc import Callable

from ..limits import MAX_EXPIRIES_AT_ONCE
from ..store.commands import Command, ExpireSessions, Expiry, ForgetRequests
from ..store.state import State
from .timekeeper import Countdown, Memory


class SessionKeeper:
    """One leader's sessions. Does nothing on a member that does not lead.

    Args:
        state: the member's state as it is now.
        propose: puts a command of the member's own into the log; its index, 0 if it was not taken.
        request_ttl: seconds for which the answers to named requests are kept at least.
    """

    def __init__(self, state: Callable[[], State], propose: Callable[[Command], int], request_ttl: float) -> None:
        self._state = state
        self._propose = propose
        self._ends = Countdown()
        self._requests = Memory(request_ttl)
        self._expiry_index = 0
        """Log index of the expiry that is under way, 0 for none."""
        self._term = 0

    def remember_for(self, request_ttl: float) -> None:
        """Remember the answers of request ids for this many seconds from now on."""
        self._requests.age = request_ttl

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        self._term = term
        self._expiry_index = 0
        self._ends.start(((session.id, session.ttl) for session in self._state().sessions.values()), now)
        self._requests.start()

    def stop(self) -> None:
        """This member does not lead (any more)."""
        self._term = 0
        self._ends.stop()

    def opened(self, session: int, now: float) -> None:
        """A session was opened (or its opening answered again)."""
        known = self._state().sessions.get(session)
        if self._term and known is not None and session not in self._ends:
            self._ends.renew(session, now + known.ttl)

    def renew(self, session: int, arrival: float) -> bool | None:
        """Something of the session arrived then, and a quorum has confirmed since that this member leads.

        Returns:
            whether it is alive; ``None`` if only the log can tell, because it is just being ended.
        """
        known = self._state().sessions.get(session)
        if known is None:
            return False
        return True if self._term and self._ends.renew(session, arrival + known.ttl) else None

    def work(self, now: float, pause: float) -> None:
        """End what has run out, forget what is old. For a leader that has committed in its term.

        Args:
            pause: seconds after which something that was not taken, or came back void, is tried again.
        """
        self._settle(now, pause)
        sessions = self._state().sessions
        if len(self._ends) > 2 * len(sessions) + Countdown.SPARE:  # closed by their clients
            for session in self._ends.promises - sessions.keys():
                self._ends.forget(session)
        if not self._expiry_index and self._ends.next_deadline() <= now:
            self._expire(now, pause)
        self._requests.pass_time(now, self._state().applied_index, self._forget_requests)

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
        ended = []
        for session in self._ends.due(now, MAX_EXPIRIES_AT_ONCE):
            if session in sessions:
                ended.append(Expiry(session, sessions[session].renewals))
            else:  # closed by its client
                self._ends.forget(session)
        if not ended:
            return
        self._expiry_index = self._propose(ExpireSessions(self._term, tuple(ended)))
        if not self._expiry_index:
            for expiry in ended:
                self._ends.retry(expiry.id, now + pause)

    def _forget_requests(self, index: int) -> None:
        if self._state().remembered_requests:
            self._propose(ForgetRequests(index))
