"""Linearizable reads that the client confirms itself: it asks the leader and one other voter at the same time.

ReadIndex takes four messages one after the other: to the leader, from it to a voter, back, and to the client. Here the
leader L answers at once, from a state that has applied the commit index that it had after the read arrived. It says
in which term T it leads, and which voters would each be a quorum together with it. Meanwhile the client has asked a
voter F for its term. The read counts if F is one of those voters and its term is T, too.

Why that is enough. The read begins at t0; L looks at its commit index at t1, F at its term at t2, both later, in any
order. Suppose that a leader of a term after T was elected before t0. The quorum that elected it overlaps with {L, F},
by the same rule and for the same configuration as a round of heartbeats does (``raft/heartbeats.py``; L may not have
applied the newest one that is committed, which differs by one step at most, so the quorums overlap). So L or F had
led or voted in a later term than T before t0. A vote leaves its member only once its term is on disk. From then on the
term that this member tells is at least as high, also after a restart. But both were in term T after t0. So there was no
such leader, and whatever was acknowledged before t0 was committed in T or before. L knows all of that: it has committed
an entry of its own term. (A term in which nobody has voted yet may be told before it is on disk: then the client only
asks once more.)

A lone read goes this way: while others of the process are under way, they share the leader's round, which costs less.
If the voter is silent for ``CLIENT_TERM_WAIT_S``, or in another term, the read is sent to the leader once more, as
an ordinary one, and this way is not taken for a while; so too if the leader does not know it, as an older one. A leader
that no single voter can confirm (there are more than three, it has not committed in its term, it holds a lease) does as
for an ordinary read: nothing is lost by having asked. After ``CLIENT_ANSWERED_OTHERWISE`` of them in a row this way
is not taken for a while, either.

Which voter is asked decides only how long a read takes. One that answers much later than the leader is not asked the
next time, if there is another. One that has confirmed nothing is not asked for a while, a longer one each time until it
confirms a read: what others confirm says nothing of it. And no voter has two questions to answer: an actor call to one
whose node is gone does not fail, it waits until there is an actor again, and so would all that follow it.
"""

from __future__ import annotations

import math

from ....limits import (
    CLIENT_ANSWERED_OTHERWISE,
    CLIENT_MAX_TERM_PAUSE_S,
    CLIENT_SLOW_VOTER_S,
    CLIENT_TERM_LOST_S,
    CLIENT_TERM_PAUSE_S,
    CLIENT_TERM_WAIT_S,
)
from ....schema.answers import Failed, RangeAnswer, RangePart
from ....schema.frames import CurrentTerm, UnconfirmedRead
from .in_flight import InFlight
from .outbox import PendingCall
from .router import Router

ReadAnswer = RangeAnswer | RangePart | Failed


def _longer(pause: float) -> float:
    """The pause after one of so many seconds, 0 for the first one."""
    return min(CLIENT_MAX_TERM_PAUSE_S, 2 * pause or CLIENT_TERM_PAUSE_S)


class TermQuestion:
    """The read under way, and the question to a voter that belongs to it."""

    __slots__ = ("answer", "answered_at", "asked_at", "given_up", "heard", "number", "read", "term", "voter")

    def __init__(self, read: InFlight, number: int, voter: int, now: float) -> None:
        self.read = read
        """The frame to the leader."""
        self.asked_at = self.answered_at = now
        """When both were asked, and when the leader has answered."""
        self.number = number
        """Of the frame to the voter."""
        self.voter = voter
        self.answer: UnconfirmedRead | None = None
        """The leader's, once it is there."""
        self.heard = False
        """Whether the voter has answered, or will not..."""
        self.term = 0
        """... and the term that it has named, 0 if none."""
        self.given_up = False
        """Whether it is waited for no longer."""

    @property
    def until(self) -> float:
        """When the voter is waited for no longer."""
        return self.asked_at + CLIENT_TERM_WAIT_S

    def is_slow(self, now: float) -> bool:
        """Whether the voter, heard last, came much later than the leader."""
        return now - self.answered_at > self.answered_at - self.asked_at + CLIENT_SLOW_VOTER_S

    def is_confirmed(self, answer: UnconfirmedRead) -> bool:
        """Whether the voter's word makes the leader's answer count."""
        return self.voter in answer.voters and self.term == answer.term


class VoterPause:
    """Until when a voter is not asked."""

    __slots__ = ("not_before", "seconds", "unanswered", "unanswered_until")

    def __init__(self) -> None:
        self.not_before = -math.inf
        self.seconds = 0.0
        """The last pause, of those that grow until the voter confirms a read."""
        self.unanswered = 0
        """The number of a frame to it that it has not answered, 0 if there is none..."""
        self.unanswered_until = 0.0
        """... and when that is taken for lost."""

    def is_over(self, now: float) -> bool:
        """Whether it can be asked."""
        return now >= self.not_before and (not self.unanswered or now >= self.unanswered_until)


class ConfirmedReads:
    """The lone read of a process, and which voter is asked.

    There is one at a time. No method calls back or sends: the dispatch core does.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._question: TermQuestion | None = None
        self._voters: tuple[int, ...] = ()
        """Those that this leader has named last..."""
        self._named_by = 0
        self._rotation = 0
        """Selects one of the voters: another one after one that was silent or slow."""
        self._pauses: dict[int, VoterPause] = {}
        """By voter: those that did not confirm a read, or have a question to answer that is waited for no longer."""
        self._not_before = -math.inf
        self._pause = 0.0
        """The last one, in seconds; 0 after a success."""
        self._otherwise = self._otherwise_by = 0
        """Such reads in a row that a leader has answered as ordinary ones, and which leader that is."""
        self.confirmed = self.unconfirmed = 0
        """Reads so far that a voter has confirmed, and that it has not; for tests and metrics."""

    # -- asking -------------------------------------------------------------------------------------------------------

    def suits(self, calls: list[PendingCall]) -> bool:
        """Whether these calls, the only linearizable reads under way, are a lone read of one key, sent for the first
        time."""
        call = calls[0]
        return len(calls) == 1 and call.sends == 1 and call.read is not None and call.read.range.keys.end is None

    def voter(self, leader: int, now: float) -> int:
        """The voter to ask beside that leader: a near one, if there is one. 0 if a read should go the ordinary way."""
        router = self._router
        if now < self._not_before or not leader or leader != router.leader:
            return 0
        if self._question is not None:  # of a read that is waited for no longer
            self._end_question(self._question)
        named = self._voters if leader == self._named_by else ()
        others = [member for member in named if member in router.members]
        others = others or [member for member in router.members if member != leader]
        if self._pauses:
            others = [member for member in others if (pause := self._pauses.get(member)) is None or pause.is_over(now)]
        others.sort(key=lambda member: member not in router.near)
        return others[self._rotation % len(others)] if others else 0

    def asked(self, read: InFlight, number: int, voter: int, now: float) -> None:
        """The leader and the voter are asked now."""
        self._question = TermQuestion(read, number, voter, now)

    def forget(self) -> None:
        """Nothing is under way any more."""
        self._question = None

    # -- answers ------------------------------------------------------------------------------------------------------

    def asks(self, number: int) -> bool:
        """Whether the frame with that number is the question of the read under way, which has not been answered."""
        question = self._question
        return question is not None and question.number == number and not question.heard

    def heard_voter(self, word: object) -> None:
        """The question to a voter was answered, or has failed."""
        question = self._question
        assert question is not None
        question.heard = True
        if isinstance(word, CurrentTerm) and word.member == question.voter:
            question.term = word.term

    def heard_late(self, number: int) -> None:
        """A frame was answered, or has failed, that no read waits for: the voter may be asked again."""
        for pause in self._pauses.values():
            if pause.unanswered == number:
                pause.unanswered = 0

    def heard_leader(self, read: InFlight, answer: UnconfirmedRead, now: float) -> bool:
        """The leader has answered; whether that answer is waited for."""
        question = self._question
        if question is None or question.read is not read or read.late:
            return False
        question.answer, question.answered_at = answer, now
        self._otherwise = 0
        self._voters, self._named_by = answer.voters, read.member
        return True

    def answered_otherwise(self, read: InFlight, now: float) -> None:
        """The frame to the leader was answered without the need for a voter. One such answer says little: the leader
        may be new. One that does so each time has no use for a voter, and none is asked for a while."""
        question = self._question
        if question is not None and question.read is read:
            self._end_question(question)
            self._otherwise = self._otherwise + 1 if read.member == self._otherwise_by else 1
            self._otherwise_by = read.member
            if self._otherwise >= CLIENT_ANSWERED_OTHERWISE:
                self._pause_from(now)

    def refused(self, read: InFlight, now: float) -> bool:
        """The leader takes the frame for none: whether that may be because it does not know this way."""
        question = self._question
        if question is None or question.read is not read:
            return False
        self._end_question(question)
        self._pause_from(now)
        return True

    def _pause_from(self, now: float) -> None:
        """Not to be taken for a while, a longer one each time."""
        self._pause = _longer(self._pause)
        self._not_before = now + self._pause

    def _pause_of(self, voter: int) -> VoterPause:
        pause = self._pauses.get(voter)
        if pause is None:
            members = self._router.members
            self._pauses = {member: each for member, each in self._pauses.items() if member in members}
            pause = self._pauses[voter] = VoterPause()
        return pause

    def _end_question(self, question: TermQuestion) -> None:
        """The question of the read under way decides nothing any more; its voter may still answer it."""
        self._question = None
        if not question.heard:
            pause = self._pause_of(question.voter)
            pause.unanswered, pause.unanswered_until = question.number, question.asked_at + CLIENT_TERM_LOST_S

    def on_time(self, now: float) -> bool:
        """Whether the voter is waited for no longer."""
        question = self._question
        if question is None or question.heard or question.given_up or now < question.until:
            return False
        question.given_up = True
        return True

    def next_wakeup(self) -> float:
        """When :meth:`on_time` is to be called; infinity for never."""
        question = self._question
        return math.inf if question is None or question.heard or question.given_up else question.until

    def conclude(self, now: float) -> tuple[InFlight, UnconfirmedRead, bool] | None:
        """The frame to the leader, its answer, and whether that counts; ``None`` while one of the two is missing. If it
        does not count, another voter is asked next, after a pause that grows each time."""
        question = self._question
        if question is None or question.answer is None or not (question.heard or question.given_up):
            return None
        self._end_question(question)
        counts = question.is_confirmed(question.answer)
        if counts:
            self._pause = 0.0
            self.confirmed += 1
            if self._pauses:
                self._pauses.pop(question.voter, None)
        else:
            self.unconfirmed += 1
            self._pause_from(now)
            pause = self._pause_of(question.voter)
            pause.seconds = _longer(pause.seconds)
            pause.not_before = now + pause.seconds
        if not counts or question.is_slow(now):
            self._rotation += 1
        return question.read, question.answer, counts
