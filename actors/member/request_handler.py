"""Turns requests from clients into events for the loop, and their outcomes into replies.

A frame is decoded and checked on the thread that received it, becomes one event in the loop's inbox, and is answered
through ``done``, which gets a function that makes the reply. Reads run in that function, so that they do not hold up
the loop: a reply that may take a long time to make is a ``SlowReply``, which must be made on another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ...errors import InvalidArgument, RequestTooLarge, Unavailable
from ...limits import LANE_QUICK_READS, MAX_FRAME_DEADLINE_S, READ_FRAME_S, READ_SCAN_KEYS, WATCH_POLL_S, Limits
from ...schema.answers import Answer, Done, Failed, RangeAnswer, RangePart, Reason, SessionOpened
from ...schema.commands import CloseSession, Command, OpenSession, encode, version_of
from ...schema.frame_validation import check_request
from ...schema.frames import (
    Administer,
    AskLeases,
    AskStatus,
    AwaitCompaction,
    ChangeMembership,
    Close,
    Defragment,
    HashKeys,
    KeepAlive,
    KeepLeases,
    Kept,
    LeasesKept,
    LeaseStatus,
    LeaseStatuses,
    MemberStatus,
    Open,
    Opened,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    Status,
    Watched,
    WatchPoll,
    Writes,
    Written,
)
from ...schema.operations import Range
from ...schema.replies import MakeReply, SlowReply, reply_bytes
from .events import (
    CompactionAwaited,
    InboxEvent,
    LeaseRenewal,
    LeasesAsked,
    MembershipChange,
    Proposal,
    ReadAsked,
    SessionRenewal,
)
from .operator_requests import OperatorRequests
from .replica import Replica
from .watches import ReadyReply

ReplyCallback = Callable[[MakeReply], None]

_decode = msgspec.msgpack.Decoder(Request).decode


class RequestHandler:
    """Answers frames from clients for one serving member.

    Args:
        replica: the member.
        enqueue: puts an event of that many bytes into the loop's inbox; False if it is full.
        clock: the replica's clock.
        status: makes the member's status.
        operators: serves what an operator asks of this member.
    """

    def __init__(
        self,
        replica: Replica,
        enqueue: Callable[[InboxEvent, int], bool],
        clock: Callable[[], float],
        status: Callable[[], MemberStatus],
        operators: OperatorRequests,
    ) -> None:
        self._replica = replica
        self._enqueue = enqueue
        self._clock = clock
        self._status = status
        self._operators = operators
        self._cluster = replica.folder.identity.cluster
        self._handlers: dict[type[Request], Callable[[Any, float, float, ReplyCallback], None]] = {
            Writes: self._write,
            Reads: self._read,
            Open: self._open_session,
            KeepAlive: self._keep_session,
            Close: self._close_session,
            KeepLeases: self._keep_leases,
            AskLeases: self._ask_leases,
            WatchPoll: self._watch,
            Administer: self._administer,
            ChangeMembership: self._change_membership,
            HashKeys: self._hash_keys,
            AwaitCompaction: self._await_compaction,
            Defragment: self._defragment,
        }
        """By kind of request. Each gets the request, its arrival and deadline on the member's clock, and ``done``."""

    @property
    def limits(self) -> Limits:
        """The limits that requests are checked against."""
        return self._replica.limits

    def handle_request(self, frame: bytes, done: ReplyCallback) -> None:
        """Handle one request frame; ``done`` is called exactly once, on this thread or on the loop's."""
        try:
            request = _decode(frame)
            check_request(request, self.limits)
        except (msgspec.MsgspecError, RecursionError, InvalidArgument, RequestTooLarge) as error:
            _finish(done, Refused(Refusal.INVALID, message=str(error)))
            return
        if isinstance(request, AskStatus):
            done(SlowReply(lambda: reply_bytes(Status(self._status()))))
        elif request.cluster != self._cluster:
            _finish(done, Refused(Refusal.WRONG_CLUSTER))
        elif why := self._replica.why_not_serving:
            _finish(done, Refused(Refusal.NOT_SERVING, self._replica.leader, why))
        else:
            arrival = self._clock()
            deadline = arrival + min(request.deadline, MAX_FRAME_DEADLINE_S)
            self._handlers[type(request)](request, arrival, deadline, done)

    def _write(self, request: Writes, arrival: float, deadline: float, done: ReplyCallback) -> None:
        commands = request.commands
        if too_new := self._too_new(commands):
            _finish(done, Refused(Refusal.INVALID, message=too_new))
            return
        data, session = encode(commands), commands.session
        self._propose(Proposal(data, deadline, arrival, self._written(done), session, commands), done)

    def _administer(self, request: Administer, arrival: float, deadline: float, done: ReplyCallback) -> None:
        if too_new := self._too_new(request.command):
            _finish(done, Written((Failed(Reason.INVALID, message=too_new),)))
            return
        self._propose(Proposal(encode(request.command), deadline, arrival, self._written(done)), done)

    def _open_session(self, request: Open, arrival: float, deadline: float, done: ReplyCallback) -> None:
        command = OpenSession(request.nonce, self._replica.timings.session_ttl)
        self._propose(Proposal(encode(command), deadline, arrival, self._opened(done, command.ttl)), done)

    def _close_session(self, request: Close, arrival: float, deadline: float, done: ReplyCallback) -> None:
        self._propose(Proposal(encode(CloseSession(request.session)), deadline, arrival, self._written(done)), done)

    def _keep_session(self, request: KeepAlive, arrival: float, deadline: float, done: ReplyCallback) -> None:
        self._enqueue_event(SessionRenewal(request.session, deadline, arrival, self._renewed(done)), 0, done)

    def _keep_leases(self, request: KeepLeases, arrival: float, deadline: float, done: ReplyCallback) -> None:
        self._enqueue_event(
            LeaseRenewal(request.leases, deadline, arrival, self._kept(request, done)), 8 * len(request.leases), done
        )

    def _ask_leases(self, request: AskLeases, arrival: float, deadline: float, done: ReplyCallback) -> None:
        self._enqueue_event(
            LeasesAsked(request.leases, deadline, self._leases(request, done)), 8 * len(request.leases), done
        )

    def _change_membership(
        self, request: ChangeMembership, arrival: float, deadline: float, done: ReplyCallback
    ) -> None:
        self._enqueue_event(MembershipChange(request.changes, deadline, self._written(done), request.context), 0, done)

    def _hash_keys(self, request: HashKeys, arrival: float, deadline: float, done: ReplyCallback) -> None:
        self._operators.hash_keys(request.revision, deadline, lambda reply: _finish(done, reply))

    def _defragment(self, request: Defragment, arrival: float, deadline: float, done: ReplyCallback) -> None:
        self._operators.defragment(deadline, lambda reply: _finish(done, reply))

    def _await_compaction(self, request: AwaitCompaction, arrival: float, deadline: float, done: ReplyCallback) -> None:
        def removed(refused: Refused | None) -> None:
            _finish(done, refused or Written((Done(self._replica.state.revision),), self._replica.term))

        self._enqueue_event(CompactionAwaited(request.revision, deadline, removed), 0, done)

    def _too_new(self, command: Command) -> str:
        """Why a command may not be proposed yet, empty if it may: every member must be able to apply it."""
        needed = version_of(command)
        if needed == 1 or needed <= (active := self._replica.active_version):
            return ""
        return (
            f"this needs version {needed} of the cluster's commands, and the active one is {active}, because not every "
            "member runs a RayKeeper that knows more (see Cluster.upgrade)"
        )

    def _propose(self, proposal: Proposal, done: ReplyCallback) -> None:
        if not self._replica.is_leader:  # the loop decides; this only saves it work
            _finish(done, Refused(Refusal.NOT_LEADER, self._replica.leader))
            return
        self._enqueue_event(proposal, len(proposal.data), done)

    def _enqueue_event(self, event: InboxEvent, size: int, done: ReplyCallback) -> None:
        if not self._enqueue(event, size):
            _finish(done, Refused(Refusal.OVERLOADED, self._replica.leader, "the member's inbox is full"))

    def _read(self, request: Reads, arrival: float, deadline: float, done: ReplyCallback) -> None:
        """A linearizable read goes by way of the loop. A serializable one runs at once, unless this member has
        not reached a revision that the client has seen (``at_least``)."""

        def make() -> bytes:
            return self._run_reads(request)

        quick = len(request.reads) <= LANE_QUICK_READS and all(read.range.keys.end is None for read in request.reads)

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(done, refused)
            else:
                done(make if quick else SlowReply(make))

        at_least = max((read.at_least for read in request.reads), default=0)
        if request.serializable and self._replica.state.revision >= at_least:
            allowed(None)
            return
        self._enqueue_event(ReadAsked(deadline, allowed, request.serializable, at_least), 0, done)

    def _watch(self, request: WatchPoll, arrival: float, deadline: float, done: ReplyCallback) -> None:
        """Answer a poll when there is something to deliver. A watch that starts now must miss nothing that was
        committed before the poll arrived, so the poll then waits for a linearizable read first."""
        watches = self._replica.watches

        def answered(make: Callable[[], Watched | Refused]) -> None:
            if isinstance(make, ReadyReply):
                _finish(done, make())
            else:
                done(SlowReply(lambda: reply_bytes(make())))

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(done, refused)
            else:
                watches.poll(request, min(deadline, arrival + WATCH_POLL_S), answered)

        if any(create.start_revision == 0 for create in request.create):
            self._enqueue_event(ReadAsked(deadline, allowed), 0, done)
        else:
            allowed(None)

    def _leases(
        self, request: AskLeases, done: ReplyCallback
    ) -> Callable[[list[tuple[int, float, float]] | Refused], None]:
        """The loop gives the leases' times; their keys are read from the state elsewhere, because there may be many."""

        def outcome(found: list[tuple[int, float, float]] | Refused) -> None:
            if isinstance(found, Refused):
                _finish(done, found)
                return

            def make() -> bytes:
                state = self._replica.state
                keys = state.lease_keys if request.keys else lambda lease: []
                leases = tuple([LeaseStatus(*each, tuple(keys(each[0]))) for each in found])
                return reply_bytes(LeaseStatuses(leases, state.revision, self._replica.term))

            done(SlowReply(make))

        return outcome

    def _run_reads(self, request: Reads) -> bytes:
        """Do as many reads as fit into one reply and into ``READ_FRAME_S``, at least one; the client sends the rest
        again."""
        bytes_left = self.limits.max_page_bytes
        until = self._clock() + READ_FRAME_S
        answers: list[RangeAnswer | RangePart | Failed] = []
        for read in request.reads:
            if bytes_left <= 0 or (answers and self._clock() >= until):
                break
            try:
                answer = self._range(read.range, bytes_left)
            except Unavailable as error:
                return reply_bytes(Refused(Refusal.NOT_SERVING, message=str(error)))
            if not isinstance(answer, Failed):
                bytes_left -= sum([len(item.key) + len(item.value) for item in answer.items])
            answers.append(answer)
        return reply_bytes(ReadReply(tuple(answers), self._replica.term))

    def _range(self, request: Range, page_bytes: int) -> RangeAnswer | RangePart | Failed:
        items = self.limits.max_page_items
        while True:
            state = self._replica.state
            try:
                return state.range(request, page_items=items, page_bytes=page_bytes, max_scanned=READ_SCAN_KEYS)
            except Unavailable:
                if state is self._replica.state:
                    raise
                # A snapshot has replaced the state; the new one is at least as recent.

    def _renewed(self, done: ReplyCallback) -> Callable[[bool | Refused], None]:
        def outcome(result: bool | Refused) -> None:
            if isinstance(result, Refused):
                _finish(done, result)
            elif result:
                _finish(done, Written((Done(self._replica.state.revision),), self._replica.term))
            else:
                _finish(done, Written((Failed(Reason.SESSION_EXPIRED),)))

        return outcome

    # -- outcomes of events ------------------------------------------------------------------------------------------

    def _written(self, done: ReplyCallback) -> Callable[[tuple[Answer, ...] | Refused], None]:
        def outcome(result: tuple[Answer, ...] | Refused) -> None:
            _finish(done, result if isinstance(result, Refused) else Written(result, self._replica.term))

        return outcome

    def _kept(self, request: KeepLeases, done: ReplyCallback) -> Callable[[tuple[Kept, ...] | Refused], None]:
        def outcome(result: tuple[Kept, ...] | Refused) -> None:
            if isinstance(result, Refused):
                _finish(done, result)
                return
            state = self._replica.state
            ttls: tuple[float, ...] = ()
            if request.with_ttls:
                found = map(state.leases.get, request.leases)
                ttls = tuple([0.0 if lease is None else lease.ttl for lease in found])
            _finish(done, LeasesKept(result, state.revision, self._replica.term, ttls))

        return outcome

    def _opened(self, done: ReplyCallback, ttl: float) -> Callable[[tuple[Answer, ...] | Refused], None]:
        def outcome(result: tuple[Answer, ...] | Refused) -> None:
            if isinstance(result, tuple) and isinstance(result[0], SessionOpened):
                _finish(done, Opened(result[0].session, ttl))
            elif isinstance(result, tuple):
                _finish(done, Written(result, self._replica.term))
            else:
                _finish(done, result)

        return outcome


def _finish(done: ReplyCallback, reply: Reply) -> None:
    done(lambda: reply_bytes(reply))
