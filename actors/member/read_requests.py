"""Answers the reads of clients: ranges and single keys, linearizable or not.

A linearizable read goes by way of the loop, which says when the state is recent enough; reading itself does not hold up
the loop, unless it takes no longer than handing it on. A lone read of one key is answered at once where that is
possible, for its client to confirm (:mod:`confirmed_read`).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from ...errors import Unavailable
from ...limits import BIG_ANSWER_BYTES, LANE_QUICK_READS, READ_FRAME_S, READ_SCAN_KEYS, SLOW_S
from ...schema.answers import Failed, RangeAnswer, RangePart
from ...schema.frames import (
    AskTerm,
    CurrentTerm,
    LoneRead,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    UnconfirmedRead,
)
from ...schema.operations import Range
from ...schema.replies import reply_bytes
from .asked_request import AskedRequest, ReplyCallback, finish
from .events import InboxEvent, LoneReadAsked, ReadAsked
from .load_meter import LoadMeter
from .member_audit import Audit
from .replica import Replica
from .request_source import source_of
from .user_check import UserCheck


class ReadRequests:
    """Serves the reads of one member's clients.

    Args:
        replica: the member.
        enqueue: puts an event of that many bytes into the loop's inbox, or refuses the request.
        clock: the replica's clock.
        load: who reads what.
        users: what callers may read.
        audit: what they were refused.
    """

    def __init__(
        self,
        replica: Replica,
        enqueue: Callable[[InboxEvent, int, ReplyCallback], None],
        clock: Callable[[], float],
        load: LoadMeter,
        users: UserCheck,
        audit: Audit,
    ) -> None:
        self._replica = replica
        self._enqueue_event = enqueue
        self._clock = clock
        self._load = load
        self._users = users
        self._audit = audit

    def read(self, request: Reads, asked: AskedRequest) -> None:
        """A linearizable read goes by way of the loop. A serializable one runs at once, unless this member has
        not reached a revision that the client has seen (``at_least``)."""
        read = self._asked_read(request, asked)
        if request.serializable and self._replica.state.revision >= read.at_least:
            read.done(None)
        else:
            self._enqueue_event(read, 0, asked.done)

    def _asked_read(self, request: Reads, asked: AskedRequest) -> ReadAsked:
        """A read for the loop: once it is allowed, single keys are read in the loop, and ranges on another thread."""

        quick = len(request.reads) <= LANE_QUICK_READS and all(read.range.keys.end is None for read in request.reads)
        allowed = asked.once_allowed(lambda: self._run_reads(request, asked), quick)
        at_least = max((read.at_least for read in request.reads), default=0)
        return ReadAsked(asked.deadline, allowed, request.serializable, at_least)

    def tell_term(self, request: AskTerm, asked: AskedRequest) -> bool:
        """On any thread: a term that is not on disk yet is only newer than it needs to be."""
        finish(asked.done, CurrentTerm(self._replica.node.id, self._replica.term))
        return True

    def read_alone(self, request: LoneRead, asked: AskedRequest) -> bool:
        """Answer a read of one key as its client can confirm it (:mod:`confirmed_read`): at once, if this is the loop
        and nothing else comes first, else in the next turn. The order matters only in that all comes after the
        arrival."""
        node = self._replica.node
        reads = Reads(request.cluster, request.deadline, False, (request.read,), request.traceparent)
        if request.read.range.keys.end is not None:
            self.read(reads, asked)
            return False

        def answer(term: int, voters: tuple[int, ...]) -> None:
            asked.done(lambda: self._run_reads(reads, asked, (term, voters)))

        up_to_date = asked.in_loop and self._replica.state.applied_index >= node.commit_index
        if up_to_date and (voters := node.confirming_voters()):
            answer(node.term, voters)
            return self._replica.state.damage is None  # which this read may have found
        self._enqueue_event(LoneReadAsked(self._asked_read(reads, asked), answer), 0, asked.done)
        return False

    def _run_reads(
        self, request: Reads, asked: AskedRequest, confirmation: tuple[int, tuple[int, ...]] | None = None
    ) -> bytes:
        """Do as many reads as fit into one reply and into ``READ_FRAME_S``, at least one; the client sends the rest
        again.

        Args:
            confirmation: the term of this leader, and voters, if the client is to confirm the one read.
        """
        bytes_left = self._replica.limits.max_page_bytes
        started, began = self._clock(), monotonic()
        until = started + READ_FRAME_S
        answers: list[RangeAnswer | RangePart | Failed] = []
        for read in request.reads:
            if bytes_left <= 0 or (answers and self._clock() >= until):
                break
            try:
                answer = self._range(read.range, bytes_left, asked)
            except Unavailable as error:
                return reply_bytes(Refused(Refusal.NOT_SERVING, message=str(error)))
            if not isinstance(answer, Failed):
                for item in answer.items:
                    bytes_left -= len(item.key) + len(item.value)
            answers.append(answer)
        if confirmation is None:
            reply = reply_bytes(ReadReply(tuple(answers), self._replica.term))
        else:
            reply = reply_bytes(UnconfirmedRead(answers[0], *confirmation))
        counter = self._load.reads
        counter.left -= len(answers)
        if counter.left <= 0:
            self._load.read(request.reads[: len(answers)], len(reply), asked.lane)
        waited, took = started - asked.arrival, monotonic() - began
        if waited + took >= SLOW_S or len(reply) >= BIG_ANSWER_BYTES:
            self._replica.slow.read(request.reads, waited, took, len(reply))
        if request.traceparent:
            self._replica.spans.read(request.traceparent, asked.arrival, waited, took)
        return reply

    def _range(self, request: Range, page_bytes: int, asked: AskedRequest) -> RangeAnswer | RangePart | Failed:
        """One page. If users or roles have changed while it was read, the right to it is looked up again: what was
        written after a right was taken is not shown to who had it."""
        items = self._replica.limits.max_page_items
        while True:
            state = self._replica.state
            users = state.users
            if users.enabled and (refused := self._users.read(request.keys, asked.caller, state, users)) is not None:
                source = source_of(state, asked.request, asked.lane, asked.said)
                self._audit.refused_read(asked.caller, request.keys, refused, source)
                return refused
            try:
                answer = state.range(request, page_items=items, page_bytes=page_bytes, max_scanned=READ_SCAN_KEYS)
                if state.users is users:
                    return answer
            except Unavailable:
                if state is self._replica.state:
                    raise
                # A snapshot has replaced the state; the new one is at least as recent.
