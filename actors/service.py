"""Between the threads that bring requests and the loop that decides on them.

A frame is decoded and checked on the thread that brought it, becomes one event in the loop's inbox, and is answered
through ``done``, which gets a function that makes the reply: reads run in that function, on whichever thread calls it,
so that a long read never holds up the loop: what may take long is marked as ``Slow``.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..errors import InvalidArgument, RequestTooLarge, Unavailable
from ..limits import (
    LANE_QUICK_READS,
    MAX_FRAME_DEADLINE,
    READ_SCAN,
    READ_SECONDS,
    WATCH_POLL,
    Limits,
)
from ..store.commands import (
    Answer,
    CloseSession,
    Command,
    Done,
    Failed,
    OpenSession,
    Range,
    RangeAnswer,
    RangePart,
    Reason,
    SessionOpened,
    encode,
    version_of,
)
from .door import check_request
from .events import Event, LeaseRenewal, LeasesAsked, MembershipChange, Proposal, ReadAsked, SessionRenewal
from .protocol import (
    Administer,
    AskLeases,
    AskStatus,
    ChangeMembership,
    KeepAlive,
    KeepLeases,
    Kept,
    Leases,
    LeasesKept,
    LeaseStatus,
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
from .server import Server
from .watches import Gathered

MakeReply = Callable[[], bytes]


class Slow:
    """A function that makes a reply and may take long over it: not for a thread on which others wait."""

    __slots__ = ("_make",)

    def __init__(self, make: MakeReply) -> None:
        self._make = make

    def __call__(self) -> bytes:
        """Make the reply."""
        return self._make()


Done_ = Callable[[MakeReply], None]

_decode = msgspec.msgpack.Decoder(Request).decode
_encode = msgspec.msgpack.Encoder().encode


def reply_bytes(reply: Reply) -> bytes:
    """A reply as it travels."""
    return _encode(reply)


class Service:
    """Answers the frames of clients for one serving member.

    Args:
        server: the member.
        enqueue: puts an event of that many bytes into the loop's inbox; False if it is full.
        clock: the server's clock.
        status: what the member says of itself.
    """

    def __init__(
        self,
        server: Server,
        enqueue: Callable[[Event, int], bool],
        clock: Callable[[], float],
        status: Callable[[], MemberStatus],
    ) -> None:
        self._server = server
        self._enqueue = enqueue
        self._clock = clock
        self._status = status
        self._cluster = server.folder.identity.cluster

    @property
    def limits(self) -> Limits:
        """The limits that requests are checked against."""
        return self._server.limits

    def submit(self, frame: bytes, done: Done_) -> None:
        """Take one request frame; ``done`` is called exactly once, on this thread or on the loop's."""
        try:
            request = _decode(frame)
            check_request(request, self.limits)
        except (msgspec.MsgspecError, RecursionError, InvalidArgument, RequestTooLarge) as error:
            _finish(done, Refused(Refusal.INVALID, message=str(error)))
            return
        if isinstance(request, AskStatus):
            done(Slow(lambda: _encode(Status(self._status()))))
            return
        if request.cluster != self._cluster:
            _finish(done, Refused(Refusal.WRONG_CLUSTER))
            return
        if why := self._server.why_not_serving:
            _finish(done, Refused(Refusal.NOT_SERVING, self._server.leader, why))
            return
        arrival = self._clock()
        deadline = arrival + min(request.deadline, MAX_FRAME_DEADLINE)
        if isinstance(request, Writes):
            commands = request.commands
            too_new = self._too_new(commands)
            if too_new:
                _finish(done, Refused(Refusal.INVALID, message=too_new))
                return
            self._propose(Proposal(encode(commands), deadline, arrival, _written(done), commands.session), done)
        elif isinstance(request, Reads):
            self._read(request, deadline, done)
        elif isinstance(request, Open):
            command = OpenSession(request.nonce, self._server.timings.session_ttl)
            self._propose(Proposal(encode(command), deadline, arrival, _opened(done, command.ttl)), done)
        elif isinstance(request, KeepAlive):
            event = SessionRenewal(request.session, deadline, arrival, self._renewed(done))
            self._put(event, 0, done)
        elif isinstance(request, KeepLeases):
            self._put(LeaseRenewal(request.leases, deadline, arrival, _kept(done)), 8 * len(request.leases), done)
        elif isinstance(request, AskLeases):
            self._put(LeasesAsked(request.leases, deadline, self._leases(request, done)), 8 * len(request.leases), done)
        elif isinstance(request, WatchPoll):
            self._watch(request, arrival, deadline, done)
        elif isinstance(request, Administer):
            too_new = self._too_new(request.command)
            if too_new:
                _finish(done, Written((Failed(Reason.INVALID, message=too_new),)))
                return
            self._propose(Proposal(encode(request.command), deadline, arrival, _written(done)), done)
        elif isinstance(request, ChangeMembership):
            self._put(MembershipChange(request.changes, deadline, _written(done), request.context), 0, done)
        else:
            self._propose(Proposal(encode(CloseSession(request.session)), deadline, arrival, _written(done)), done)

    def _too_new(self, command: Command) -> str:
        """Why a command may not be proposed yet, or nothing: a member that does not know it could not apply it."""
        needed, active = version_of(command), self._server.active_version
        if needed <= active:
            return ""
        return (
            f"this needs version {needed} of the cluster's commands, and the active one is {active}, because not every "
            "member runs a RayKeeper that knows more (see Cluster.upgrade)"
        )

    def _propose(self, proposal: Proposal, done: Done_) -> None:
        if not self._server.is_leader:  # the loop decides; this only spares it the work
            _finish(done, Refused(Refusal.NOT_LEADER, self._server.leader))
            return
        self._put(proposal, len(proposal.data), done)

    def _put(self, event: Event, size: int, done: Done_) -> None:
        if not self._enqueue(event, size):
            _finish(done, Refused(Refusal.OVERLOADED, self._server.leader, "the member's inbox is full"))

    def _read(self, request: Reads, deadline: float, done: Done_) -> None:
        def make() -> bytes:
            return self._run(request)

        quick = len(request.reads) <= LANE_QUICK_READS and all(read.range.keys.end is None for read in request.reads)

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(done, refused)
            else:
                done(make if quick else Slow(make))

        at_least = max((read.at_least for read in request.reads), default=0)
        if request.serializable and self._server.state.revision >= at_least:
            allowed(None)
            return
        self._put(ReadAsked(deadline, allowed, request.serializable, at_least), 0, done)

    def _watch(self, request: WatchPoll, arrival: float, deadline: float, done: Done_) -> None:
        """Answer a poll when there is news. A watch that begins now begins at a revision as new as the poll."""
        watches = self._server.watches

        def answered(make: Callable[[], Watched | Refused]) -> None:
            if isinstance(make, Gathered):
                _finish(done, make())
            else:
                done(Slow(lambda: _encode(make())))

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(done, refused)
            else:
                watches.poll(request, min(deadline, arrival + WATCH_POLL), answered)

        if any(create.start_revision == 0 for create in request.create):
            self._put(ReadAsked(deadline, allowed), 0, done)
        else:
            allowed(None)

    def _leases(self, request: AskLeases, done: Done_) -> Callable[[list[tuple[int, float, float]] | Refused], None]:
        def outcome(found: list[tuple[int, float, float]] | Refused) -> None:
            if isinstance(found, Refused):
                _finish(done, found)
                return

            def make() -> bytes:
                keys = self._server.state.lease_keys if request.keys else lambda lease: []
                return _encode(Leases(tuple([LeaseStatus(*each, tuple(keys(each[0]))) for each in found])))

            done(Slow(make))

        return outcome

    def _run(self, request: Reads) -> bytes:
        """Read as many as fit into one reply and a moment, at least one; the client asks again for the rest."""
        bytes_left = self.limits.max_page_bytes
        until = self._clock() + READ_SECONDS
        answers: list[RangeAnswer | RangePart | Failed] = []
        for read in request.reads:
            if bytes_left <= 0 or (answers and self._clock() >= until):
                break
            try:
                answer = self._range(read.range, bytes_left)
            except Unavailable as error:
                return _encode(Refused(Refusal.NOT_SERVING, message=str(error)))
            if not isinstance(answer, Failed):
                bytes_left -= sum([len(item.key) + len(item.value) for item in answer.items])
            answers.append(answer)
        return _encode(ReadReply(tuple(answers)))

    def _range(self, request: Range, page_bytes: int) -> RangeAnswer | RangePart | Failed:
        items = self.limits.max_page_items
        while True:
            state = self._server.state
            try:
                return state.range(request, page_items=items, page_bytes=page_bytes, max_scanned=READ_SCAN)
            except Unavailable:
                if state is self._server.state:
                    raise
                # A snapshot has replaced the state: the new one knows at least as much.

    def _renewed(self, done: Done_) -> Callable[[bool | Refused], None]:
        def outcome(result: bool | Refused) -> None:
            if isinstance(result, Refused):
                _finish(done, result)
            elif result:
                _finish(done, Written((Done(self._server.state.revision),)))
            else:
                _finish(done, Written((Failed(Reason.SESSION_EXPIRED),)))

        return outcome


def _finish(done: Done_, reply: Reply) -> None:
    done(lambda: _encode(reply))


def _written(done: Done_) -> Callable[[tuple[Answer, ...] | Refused], None]:
    def outcome(result: tuple[Answer, ...] | Refused) -> None:
        _finish(done, result if isinstance(result, Refused) else Written(result))

    return outcome


def _kept(done: Done_) -> Callable[[tuple[Kept, ...] | Refused], None]:
    def outcome(result: tuple[Kept, ...] | Refused) -> None:
        _finish(done, result if isinstance(result, Refused) else LeasesKept(result))

    return outcome


def _opened(done: Done_, ttl: float) -> Callable[[tuple[Answer, ...] | Refused], None]:
    def outcome(result: tuple[Answer, ...] | Refused) -> None:
        if isinstance(result, tuple) and isinstance(result[0], SessionOpened):
            _finish(done, Opened(result[0].session, ttl))
        elif isinstance(result, tuple):
            _finish(done, Written(result))
        else:
            _finish(done, result)

    return outcome
