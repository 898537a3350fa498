"""Proposals that wait for their place in the log: a client's until it is answered, a member's own only until it is in.

What was proposed is told apart by index and term. An entry that is committed at the index of a proposal is the proposal
only if it also has its term; otherwise another leader's entry took the place, and the proposal is lost (paper, 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...raft import Entry, Node, NotLeader, ProposalRefused
from ...schema import commands
from ...schema.answers import Answer
from ...schema.commands import COMMANDS_VERSION, Command
from ...schema.frames import Refusal, Refused
from .events import Proposal
from .request_spans import WriteSpan
from .turn import Turn

_NOT_PROPOSED: tuple[int, Proposal | None, float] = (0, None, 0.0)


class Proposals:
    """What one member has proposed and not seen applied.

    Args:
        node: its consensus core.
        turn: the member's.
        slow: told of a proposal that took long: its index, and when it was proposed.
        sampled: told the index of a proposal with a span.
    """

    def __init__(
        self,
        node: Node,
        turn: Turn,
        slow: Callable[[Proposal, int, float], None] = lambda proposal, index, at: None,
        sampled: Callable[[int, WriteSpan], None] = lambda index, span: None,
    ) -> None:
        self._node = node
        self._turn = turn
        self._slow = slow
        self._sampled = sampled
        self._waiting: dict[int, tuple[int, Proposal, float]] = {}
        """By log index: the term in which it was proposed, the proposal with its callback, and when that was."""
        self.failed = 0
        """Proposals that were refused, or whose outcome is unknown, so far; for metrics."""

    @property
    def active_version(self) -> int:
        """The newest version of commands that all members of the configuration support. Newer ones are not proposed.
        For any thread."""
        state = self._turn.state
        return min(COMMANDS_VERSION, state.members.version(state.configuration.members))

    @property
    def pending(self) -> int:
        """How many wait for their place in the log to be applied. Any thread."""
        return len(self._waiting)

    # -- into the log -------------------------------------------------------------------------------------------------

    def propose(self, proposals: list[Proposal]) -> None:
        """Propose all at once, so that one append carries them. Those whose callers no longer wait are refused: under
        a flood, the log has room for those who do."""
        now = self._turn.now
        late = [proposal for proposal in proposals if proposal.deadline <= now]
        if late:
            why = "its deadline passed before it could be proposed"
            self._refuse(late, Refused(Refusal.OVERLOADED, self._node.leader, why))
            proposals = [proposal for proposal in proposals if proposal.deadline > now]
        if proposals:
            self._append(proposals)

    def _append(self, proposals: list[Proposal]) -> None:
        """Append to the log, and remember index and term of each, by which ``answer`` will know it."""
        node = self._node
        try:
            index = node.propose([proposal.data for proposal in proposals])
        except NotLeader:
            self._refuse(proposals, Refused(Refusal.NOT_LEADER, node.leader))
            return
        except ProposalRefused as error:
            if len(proposals) > 1:  # propose as many as fit
                for proposal in proposals:
                    self._append([proposal])
                return
            self._refuse(proposals, Refused(Refusal.OVERLOADED, node.leader, str(error)))
            return
        term, now = node.term, self._turn.now
        for proposal in proposals:
            self._waiting[index] = (term, proposal, now)
            if proposal.span is not None:
                self._sampled(index, proposal.span)
            index += 1

    def propose_own(self, command: Command) -> int:
        """Propose a command of the member's own; its log index, or 0 if it was refused."""
        if commands.version_of(command) > self.active_version:
            return 0
        try:
            return self._node.propose([commands.encode(command)])
        except (NotLeader, ProposalRefused):
            return 0

    # -- out of the log -----------------------------------------------------------------------------------------------

    def decoded(self, entries: Sequence[Entry]) -> dict[int, Command]:
        """The commands of entries that this member has proposed: their data need not be decoded a second time."""
        known: dict[int, Command] = {}
        for entry in entries:
            term, proposal, _ = self._waiting.get(entry.index, _NOT_PROPOSED)
            if term == entry.term and proposal is not None and proposal.decoded is not None:
                known[entry.index] = proposal.decoded
        return known

    def answer(
        self,
        entries: Sequence[Entry],
        answers: Sequence[tuple[Answer, ...]],
        heard: Callable[[int, float], object],
        slow_before: float,
        applied: tuple[float, float],
    ) -> None:
        """Answer the proposals whose entries were applied, and those whose place another leader's entry took.

        Args:
            answers: of the first entries; no others were applied.
            heard: told the session of each write, and when it arrived, before the write is answered.
            slow_before: what arrived before is slow.
            applied: when they began to be applied, on the member's clock, and how many seconds that took.
        """
        waiting = self._waiting
        for entry, answer in zip(entries, answers, strict=False):
            proposed = waiting.pop(entry.index, None)
            if proposed is None:
                continue
            term, proposal, at = proposed
            if term != entry.term:
                self.failed += 1
                proposal.done(Refused(Refusal.LOST, self._node.leader))
                continue
            if proposal.session:
                heard(proposal.session, proposal.arrival)
            proposal.done(answer)
            if proposal.arrival < slow_before:
                self._slow(proposal, entry.index, at)
            if proposal.span is not None:
                proposal.span.answered(entry.index, proposal.arrival, at, *applied)

    def drop(self, refused: Refused) -> None:
        """Give up all that wait: this member will not see their entries applied as its own."""
        waiting, self._waiting = self._waiting, {}
        self.failed += len(waiting)
        for _, proposal, _ in waiting.values():
            proposal.done(refused)

    def refuse_late(self, now: float) -> None:
        """Answer the proposals whose deadline has passed. Their entries may still be committed."""
        late = [index for index, (_, proposal, _) in self._waiting.items() if proposal.deadline <= now]
        self.failed += len(late)
        for index in late:
            self._waiting.pop(index)[1].done(Refused(Refusal.TIMED_OUT, self._node.leader))

    def _refuse(self, proposals: Sequence[Proposal], refused: Refused) -> None:
        self.failed += len(proposals)
        for proposal in proposals:
            proposal.done(refused)
