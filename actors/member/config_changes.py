"""Configuration changes, and the leader's rules for them that go beyond Raft's.

Raft makes any change safely that leaves a voter (``raft/reconfiguration.py``). The rules here keep the cluster
available: a member becomes a voter only after it has caught up (thesis 4.2.1), and no change may lead to a
configuration without a quorum of voters that the leader hears from. A request is answered once the change is in effect
and a joint configuration has been left. One that is in effect already is answered at once, so a request may be repeated
after any failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...limits import FRESH_FRACTION, PROMOTE_LAG_ENTRIES
from ...raft import InvalidProposal, Node, NotLeader, ProposalRefused
from ...raft.configuration import InvalidChange, apply_change
from ...raft.messages import ChangeKind, Configuration, ConfigurationChange, MemberChange, Message
from ...raft.quorum import has_quorum
from ...schema.answers import Answer, Done, Failed, Reason
from ...schema.frames import Refusal, Refused
from .events import MembershipChange
from .turn import Turn


class ConfigChanges:
    """The configuration changes requested of one member, and what it knows of the others while it leads.

    Args:
        node: its consensus core.
        turn: the member's.
        silence: seconds after which a silent member counts as lost. A change that needs a lost member is refused for
            good; one that needs a member silent for more than ``FRESH_FRACTION`` of that may be tried again.
    """

    def __init__(self, node: Node, turn: Turn, silence: float) -> None:
        self._node = node
        self._turn = turn
        self.silence = silence
        self._heard: dict[int, float] = {}
        self._leading_since = 0.0
        self._waiting: list[tuple[int, MembershipChange]] = []
        """Changes in the log, with their index; at most one of them can be in progress."""

    # -- a leader's knowledge of the others ---------------------------------------------------------------------------

    def note_heard(self, messages: Sequence[Message], now: float) -> None:
        """Note when each sender was last heard from."""
        for message in messages:
            self._heard[message.sender] = now

    def leadership_changed(self, now: float) -> None:
        """This member leads now, or no longer. What it heard before does not count: followers do not report to
        followers."""
        self._heard = {}
        self._leading_since = now

    def silent_for(self, now: float) -> dict[int, float]:
        """Seconds since each other member was last heard from. For any thread, on a leader."""
        heard, since = self._heard, self._leading_since
        others = self._node.configuration.members - {self._node.id}
        return {member: max(0.0, now - max(since, heard.get(member, since))) for member in sorted(others)}

    def leading_for(self, now: float) -> float:
        """Seconds for which this member has led. For any thread, on a leader."""
        return max(0.0, now - self._leading_since)

    def caught_up(self, member: int) -> bool:
        """Whether a member's log is close enough to the leader's for it to become a voter. For any thread, on a
        leader."""
        progress = self._node.progress.get(member)
        if progress is None:
            return False
        return progress.match_index > 0 and self._node.last_index - progress.match_index <= PROMOTE_LAG_ENTRIES

    # -- changes ------------------------------------------------------------------------------------------------------

    def request_change(self, event: MembershipChange, now: float) -> None:
        """Propose a change, or refuse it. Whatever can pass (another change, a member briefly silent) is refused with
        ``OVERLOADED``, so that the caller tries again."""
        node = self._node
        if node.role != "leader":
            event.done(Refused(Refusal.NOT_LEADER, node.leader))
            return
        if node.configuration.joint:
            event.done(Refused(Refusal.OVERLOADED, node.leader, "another configuration change is under way"))
            return
        changes = _open_changes(node.configuration, event.changes)
        if not changes:
            event.done((Done(self._turn.state.revision),))
            return
        objection = self._objection(changes, now)
        if objection is not None:
            event.done(objection)
            return
        try:
            self._waiting.append((node.propose_change(changes, event.context), event))
        except NotLeader:
            event.done(Refused(Refusal.NOT_LEADER, node.leader))
        except InvalidProposal as error:
            event.done((Failed(Reason.INVALID, message=str(error)),))
        except ProposalRefused as error:
            event.done(Refused(Refusal.OVERLOADED, node.leader, str(error)))

    def _objection(self, changes: Sequence[MemberChange], now: float) -> tuple[Answer, ...] | Refused | None:
        """Why a change may not be made, ``None`` if it may: the new configuration must have a quorum of voters that
        were heard from lately. A new leader has not heard from all yet, so in its first seconds the refusal is
        temporary."""
        node = self._node
        for change in changes:
            if change.kind is not ChangeKind.ADD_VOTER:
                continue
            if change.member not in node.configuration.members:  # a learner that was removed never catches up
                return (Failed(Reason.INVALID, change.member, f"m{change.member} is not a member"),)
            if not self.caught_up(change.member):
                return (Failed(Reason.NOT_CAUGHT_UP, change.member, f"m{change.member} has not caught up yet"),)
        try:
            after = apply_change(node.configuration, ConfigurationChange(node.configuration.index, tuple(changes)), 0)
        except InvalidChange:
            return None  # the core refuses it, with a better message
        there = self._heard_within(self.silence * FRESH_FRACTION, now)
        if has_quorum(after, there):
            return None
        missing = ", ".join(f"m{member}" for member in after.voters if member not in there)
        if now - self._leading_since <= self.silence or has_quorum(after, self._heard_within(self.silence, now)):
            return Refused(Refusal.OVERLOADED, node.id, f"too few voters would be left if {missing} cannot be heard")
        return (Failed(Reason.NO_QUORUM, message=f"too few voters would be left: {missing} cannot be heard"),)

    def _heard_within(self, seconds: float, now: float) -> set[int]:
        return {member for member, when in self._heard.items() if now - when <= seconds} | {self._node.id}

    def applied(self) -> None:
        """Entries were applied: answer the requests whose change is now in effect, or was superseded."""
        if not self._waiting or self._node.configuration.joint:
            return
        applied = self._turn.state.applied_index
        ready = [event for index, event in self._waiting if index <= applied]
        self._waiting = [(index, event) for index, event in self._waiting if index > applied]
        for event in ready:
            answer: Answer = Done(self._turn.state.revision)
            if _open_changes(self._node.configuration, event.changes):
                answer = Failed(Reason.INVALID, message="another change came first")
            event.done((answer,))

    def drop_waiting(self, refused: Refused) -> None:
        """Leadership is lost: this member cannot tell whether the changes will take effect."""
        waiting, self._waiting = self._waiting, []
        for _, event in waiting:
            event.done(refused)

    def refuse_late(self, now: float) -> None:
        """Answer the requests whose deadline has passed."""
        late = [event for _, event in self._waiting if event.deadline <= now]
        self._waiting = [(index, event) for index, event in self._waiting if event.deadline > now]
        for event in late:
            event.done(Refused(Refusal.TIMED_OUT, self._node.leader))


def _open_changes(configuration: Configuration, changes: Sequence[MemberChange]) -> list[MemberChange]:
    """The changes that are not in effect yet."""
    voters, learners = frozenset(configuration.voters), frozenset(configuration.learners)
    left = []
    for change in changes:
        if change.kind is ChangeKind.ADD_VOTER:
            made = change.member in voters
        elif change.kind is ChangeKind.ADD_LEARNER:
            made = change.member in learners
        else:
            made = change.member not in configuration.members
        if not made:
            left.append(change)
    return left
