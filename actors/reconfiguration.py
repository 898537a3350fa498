"""Changes of the configuration, as a leader decides on them: what Raft would allow, and a careful operator would not.

Raft makes any change safely that leaves a voter (``raft/membership.py``). Here stand the rules that keep the cluster
available: a member becomes a voter only once it has caught up, and no change may leave a configuration of which too few
voters are heard of. Who asks is answered once the change is in effect, a joint configuration left again; asking for
what is so already is answered at once, so a change may be asked for again after any failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..limits import FRESH_SHARE, PROMOTE_LAG
from ..store.commands import Answer, Done, Failed, Reason
from ..store.state import State
from .events import MembershipChange
from .protocol import Refusal, Refused
from .raft import InvalidProposal, Node, NotLeader, ProposalRefused
from .raft.configuration import InvalidChange, apply_change
from .raft.messages import Change, ChangeKind, Configuration, ConfigurationChange, Message
from .raft.quorum import has_quorum


class Reconfiguration:
    """The changes that were asked of one member, and what it knows as a leader of the others.

    Args:
        node: its consensus.
        state: its state machine, asked anew each time.
        silence: seconds after which a member that said nothing is not counted on; one that said nothing for a part of
            that (``FRESH_SHARE``) may be asked for again.
    """

    def __init__(self, node: Node, state: Callable[[], State], silence: float) -> None:
        self._node = node
        self._state = state
        self.silence = silence
        self._heard: dict[int, float] = {}
        self._leading_since = 0.0
        self._waiting: list[tuple[int, MembershipChange]] = []
        """Changes in the log, with their index; at most one of them can be under way."""

    # -- what a leader knows of the others ----------------------------------------------------------------------------

    def heard(self, messages: Sequence[Message], now: float) -> None:
        """These messages have come."""
        for message in messages:
            self._heard[message.sender] = now

    def lead(self, now: float) -> None:
        """This member has begun to lead: until then it had no reason to hear from the others."""
        self._heard = {}
        self._leading_since = now

    def silent(self, now: float) -> dict[int, float]:
        """For how many seconds each other member has not been heard of. For any thread, of a leader."""
        heard, since = self._heard, self._leading_since
        others = self._node.configuration.members - {self._node.id}
        return {member: max(0.0, now - max(since, heard.get(member, since))) for member in sorted(others)}

    def leading_for(self, now: float) -> float:
        """For how many seconds this member has led. For any thread, of a leader."""
        return max(0.0, now - self._leading_since)

    def caught_up(self, member: int) -> bool:
        """Whether a member follows so closely that it may count as a voter. For any thread, of a leader."""
        progress = self._node.progress.get(member)
        if progress is None:
            return False
        return progress.match_index > 0 and self._node.last_index - progress.match_index <= PROMOTE_LAG

    # -- changes ------------------------------------------------------------------------------------------------------

    def ask(self, event: MembershipChange, now: float) -> None:
        """Make a change, or say why not."""
        node = self._node
        if node.role != "leader":
            event.done(Refused(Refusal.NOT_LEADER, node.leader))
            return
        if node.configuration.joint:
            event.done(Refused(Refusal.OVERLOADED, node.leader, "another configuration change is under way"))
            return
        changes = _open_changes(node.configuration, event.changes)
        if not changes:
            event.done((Done(self._state().revision),))
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

    def _objection(self, changes: Sequence[Change], now: float) -> tuple[Answer, ...] | Refused | None:
        node = self._node
        for change in changes:
            if change.kind is ChangeKind.ADD_VOTER and not self.caught_up(change.member):
                return (Failed(Reason.NOT_CAUGHT_UP, change.member, f"m{change.member} has not caught up yet"),)
        try:
            after = apply_change(node.configuration, ConfigurationChange(node.configuration.index, tuple(changes)), 0)
        except InvalidChange:
            return None  # the core says it better
        there = self._heard_within(self.silence * FRESH_SHARE, now)
        if has_quorum(after, there):
            return None
        missing = ", ".join(f"m{member}" for member in after.voters if member not in there)
        if now - self._leading_since <= self.silence or has_quorum(after, self._heard_within(self.silence, now)):
            return Refused(Refusal.OVERLOADED, node.id, f"too few voters would be left if {missing} cannot be heard")
        return (Failed(Reason.NO_QUORUM, message=f"too few voters would be left: {missing} cannot be heard"),)

    def _heard_within(self, seconds: float, now: float) -> set[int]:
        return {member for member, when in self._heard.items() if now - when <= seconds} | {self._node.id}

    def applied(self) -> None:
        """Entries were applied: answer those whose change is in effect, or void."""
        if not self._waiting or self._node.configuration.joint:
            return
        applied = self._state().applied_index
        ready = [event for index, event in self._waiting if index <= applied]
        self._waiting = [(index, event) for index, event in self._waiting if index > applied]
        for event in ready:
            answer: Answer = Done(self._state().revision)
            if _open_changes(self._node.configuration, event.changes):
                answer = Failed(Reason.INVALID, message="another change came first")
            event.done((answer,))

    def drop(self, refused: Refused) -> None:
        """Leadership is lost: whether the changes will take effect is not known here."""
        waiting, self._waiting = self._waiting, []
        for _, event in waiting:
            event.done(refused)

    def give_up(self, now: float) -> None:
        """Answer those who wait no longer."""
        late = [event for _, event in self._waiting if event.deadline <= now]
        self._waiting = [(index, event) for index, event in self._waiting if event.deadline > now]
        for event in late:
            event.done(Refused(Refusal.TIMED_OUT, self._node.leader))


def _open_changes(configuration: Configuration, changes: Sequence[Change]) -> list[Change]:
    """Those of the changes that are not in effect already."""
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
