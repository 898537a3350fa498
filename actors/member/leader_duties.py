"""What only a leader does: as it takes over, as time passes, and when it is asked what only a leader may answer.

Leadership is taken in two steps. Proposals are accepted from the moment of election. But leases, sessions and
compaction need a state with everything that earlier leaders committed, so they wait until the entry that opened the
term is applied (paper, section 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...raft import Node, ProposalRefused
from ...schema.answers import Answer, LeaseGranted, SessionOpened, TxnAnswer
from ...schema.frames import Refusal, Refused
from .compactor import Compactor
from .config_changes import ConfigChanges
from .deadlines import ClusterTime
from .events import LeadershipTransfer, LeaseRenewal, LeasesAsked, ReadAsked, SessionRenewal
from .lessor import Lessor
from .proposals import Proposals
from .read_index import ReadRounds
from .session_expirer import SessionExpirer
from .turn import Turn


class LeaderDuties:
    """One member's duties while it leads.

    Args:
        node: its consensus core.
        turn: the member's.
        clock: the replica's clock.
        time: its reading of the cluster's clock.
        proposals, config_changes, reads: what waits there; a change of leadership drops or repeats it.
    """

    def __init__(
        self,
        node: Node,
        turn: Turn,
        clock: Callable[[], float],
        time: ClusterTime,
        proposals: Proposals,
        config_changes: ConfigChanges,
        reads: ReadRounds,
    ) -> None:
        self._node = node
        self._turn = turn
        self._clock = clock
        self._time = time
        self._proposals = proposals
        self._config_changes = config_changes
        self._reads = reads
        self._sessions = SessionExpirer(turn, proposals.propose_own, time)
        self._lessor = Lessor(turn, proposals.propose_own, time)
        self._compactor = Compactor(turn, proposals.propose_own, time)
        self._proposing_term = 0
        """The term in which proposals are accepted, 0 while this member does not lead."""
        self.term = 0
        """The term in which this member leads and has applied all that earlier leaders committed, 0 if there is
        none."""
        self.heard_session = self._sessions.heard
        """Told each session whose write was applied, and when that write arrived."""

    @property
    def leases_renewed(self) -> int:
        """Keep-alives of leases that were answered so far."""
        return self._lessor.renewed

    # -- taking and losing leadership ---------------------------------------------------------------------------------

    def follow_leadership(self, now: float) -> None:
        """Start and stop the duties in the two steps of taking over, as role, term and applied index say.

        A proposal of an earlier term is given up: whether it takes effect is up to the new leader."""
        node = self._node
        term = node.term if node.role == "leader" else 0
        if term != self._proposing_term:
            self._proposing_term = term
            self._config_changes.leadership_changed(now)
            lost = Refused(Refusal.LOST, node.leader)
            self._proposals.drop(lost)
            self._config_changes.drop_waiting(lost)
        if term and self._turn.state.applied_index < node.term_start:
            term = 0
        if term != self.term:
            self.term = term
            for part in (self._time, self._sessions, self._lessor, self._compactor):
                if term:
                    part.lead(term, now)
                else:
                    part.stop()

    def transfer(self, event: LeadershipTransfer) -> None:
        """Hand leadership over. Answered once the transfer has begun; it may still fail."""
        if self._node.role != "leader":
            event.done(self._not_leader())
            return
        target = event.target or self._node.most_up_to_date_peer()
        try:
            if target != self._node.id:
                self._node.transfer_leadership(target)
        except ProposalRefused as error:
            event.done(Refused(Refusal.INVALID, self._node.leader, str(error)))
            return
        event.done(None)

    def stop(self) -> None:
        """The member stops: keep-alives that wait must go to another."""
        self._sessions.stop()
        self._lessor.stop()

    # -- as time passes -----------------------------------------------------------------------------------------------

    def work(self, now: float, pause: float) -> None:
        """Do what is due. For a leader in its ``term``. The clock comes first: the others read it.

        Args:
            pause: seconds until a command that was refused, or had no effect, is tried again.
        """
        self._time.work(now, pause)
        self._sessions.work(now, pause)
        self._lessor.work(now, pause)
        self._compactor.work(now)

    def count_granted(self, answers: Sequence[Answer], now: float) -> None:
        """Start the time of leases and sessions that were just granted or opened. For a leader in its ``term``."""
        for answer in answers:
            if type(answer) is LeaseGranted:
                self._lessor.granted(answer.id, now)
            elif type(answer) is SessionOpened:
                self._sessions.opened(answer.session, now)
            elif type(answer) is TxnAnswer:
                self.count_granted(answer.responses, now)

    def applied(self) -> None:
        """Entries were applied: answer the keep-alives that waited for them."""
        self._sessions.applied()
        self._lessor.applied()

    # -- questions that only a leader may answer ----------------------------------------------------------------------

    def keep_session(self, event: SessionRenewal) -> None:
        """Renew a session."""

        def renewed(alive: bool | None) -> None:
            if alive is None:
                why = "whether the session lives is not known: ask again"
                event.done(Refused(Refusal.OVERLOADED, self._node.leader, why))
            else:
                event.done(alive)

        self._once_confirmed(
            event.deadline, lambda: self._sessions.keep_alive(event.session, event.arrival, renewed), event.done
        )

    def keep_leases(self, event: LeaseRenewal) -> None:
        """Renew leases."""
        self._once_confirmed(
            event.deadline,
            lambda: self._lessor.keep_alive(event.leases, event.arrival, event.done, event.session),
            event.done,
        )

    def report_leases(self, event: LeasesAsked) -> None:
        """Tell how much time leases have left."""

        def answer() -> None:
            now = self._clock()
            if event.most and not event.leases:
                event.done(self._lessor.first_to_end(event.most, now))
                return
            found = self._lessor.status(event.leases or sorted(self._turn.state.leases), now)
            event.done(lambda: found)

        self._once_confirmed(event.deadline, answer, event.done)

    def _once_confirmed(self, deadline: float, go_on: Callable[[], None], refuse: Callable[[Refused], None]) -> None:
        """Go on once a quorum has confirmed, after now, that this member leads. Whatever renews a lease or a session
        needs that: a deposed leader must not extend what its successor may already have ended."""
        if self._node.role != "leader":
            refuse(self._not_leader())
            return

        def answered(refused: Refused | None) -> None:
            if refused is not None:
                refuse(refused)
            elif self._node.role != "leader":
                refuse(self._not_leader())
            else:
                go_on()

        self._reads.add_read(ReadAsked(deadline, answered), self._turn.state)

    def _not_leader(self) -> Refused:
        return Refused(Refusal.NOT_LEADER, self._node.leader)
