"""The hub without I/O: from single requests to batches for members, and back to exactly one outcome for each.

Nothing here sends, sleeps, locks or reads a clock. The owner passes the time in with every call, and after any call
asks :meth:`HubCore.outgoing` what is to be sent; the simulator runs the same code. The rules it keeps:

- every submitted call ends exactly once, in an answer or in a ``KeeperError``;
- a write keeps its session and sequence over all retries, so that a copy that was already applied is only answered
  again; a batch that is given up as lost may still be answered, and its answer is taken;
- calls open when a session expires end in ``SessionExpired`` and are never sent again;
- an error says ``applied=False`` for a write only if it was never sent, or if the state machine said so.

Batches form by themselves: what gathers while ``max_calls_in_flight`` batches are under way makes up the next one, and
a lone request waits for nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence, Set

import msgspec

from ...errors import (
    ClusterMismatch,
    InvalidArgument,
    KeeperError,
    RequestTimeout,
    SessionExpired,
    Unavailable,
)
from ...limits import CLIENT_MAX_FRAME_DEADLINE, CLIENT_MAX_LATE_BATCHES, Limits, Timings
from ...store.commands import Answer, ClientWrite, ClientWrites, Done, Failed, Operation, Reason, RequestId
from ..protocol import (
    Close,
    KeepAlive,
    Open,
    Opened,
    Read,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    Writes,
    Written,
)
from .frames import Flight, Kind, Outgoing, check_request, longest_wait
from .outbox import Call, Outbox
from .outcome import failure
from .session import Session

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class HubCore:
    """All requests of one process to one cluster. The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        members: ids of those that can be asked.
        rng: for nonces, the spread of serializable reads, and the jitter of pauses.
        leader: who leads, if known.
        near: members on this process's own node (see ``Outbox``).
    """

    def __init__(
        self,
        cluster: int,
        members: Sequence[int],
        limits: Limits,
        timings: Timings,
        rng: random.Random,
        *,
        leader: int = 0,
        near: Set[int] = frozenset(),
    ) -> None:
        self._cluster = cluster
        self._members = tuple(sorted(members))
        self._limits = limits
        self._timings = timings
        self._leader = leader
        self._writes = Outbox("write", limits, rng, to_leader=True)
        self._reads = Outbox("read", limits, rng, to_leader=True)
        self._stale = Outbox("serializable read", limits, rng, to_leader=False, near=near)
        self._outboxes = (self._writes, self._reads, self._stale)
        self._session = Session(rng)
        self._calls: dict[int, Call] = {}
        self._flights: dict[int, Flight] = {}
        self._number = 0
        self._expire_at = math.inf
        """No open call's deadline is before this (or it is noticed a little late)."""
        self._expire_floor = -math.inf
        self._foreign: set[int] = set()
        """Members that belong to another cluster."""
        self._closed = False
        self._close_session = False
        self.wants_members = not members
        """The list of members may be out of date: somebody should call :meth:`set_members`."""
        self.mishaps: list[Exception] = []
        """What callbacks have raised, for the owner to say aloud where it can."""
        self.revision = 0
        """The newest revision that an answer has told of."""

    # -- what callers do ----------------------------------------------------------------------------------------------

    def submit(
        self,
        request: Operation | Read,
        *,
        now: float,
        timeout: float,
        serializable: bool = False,
        request_id: RequestId | None = None,
        done: Callable[[Answer | KeeperError], None],
        size: int | None = None,
    ) -> int:
        """Take in a request; ``done`` gets its outcome exactly once, maybe before this returns.

        Args:
            timeout: seconds; zero or less ends the call at once, without sending it.
            serializable: for a ``Read``: any member may answer, from what it has.
            request_id: for a write: names it beyond this session.
            size: bytes of the request if it was checked already (``validation``); ``None`` checks it here.

        Returns:
            The number of the call, for :meth:`give_up`.
        """
        self._number += 1
        number = self._number
        error: KeeperError | None = None
        if self._closed:
            error = InvalidArgument("the hub is closed")
        elif not timeout > 0:
            error = RequestTimeout(f"the timeout of {timeout:g} s left no time to send the request", applied=False)
        elif len(self._calls) >= self._limits.max_pending_requests:
            error = Unavailable(f"{len(self._calls)} requests of this process wait already", applied=False)
        elif size is None:
            try:
                size = check_request(request, self._limits)
            except KeeperError as refused:
                error = refused
        if error is not None or size is None:
            done(error or Unavailable("not sent"))
            return number
        if isinstance(request, Read):
            outbox = self._stale if serializable else self._reads
            call = Call(number, outbox, request, None, now + timeout, size, done)
        else:
            outbox = self._writes
            call = Call(number, outbox, None, ClientWrite(0, request, request_id), now + timeout, size, done)
        self._calls[number] = call
        if call.deadline < self._expire_at:
            self._expire_at = max(call.deadline, self._expire_floor)
        outbox.fresh.append(call)
        return number

    def give_up(self, call_id: int, now: float) -> None:
        """The caller waits no longer: the call ends as at its timeout, unless it is over already."""
        call = self._calls.get(call_id)
        if call is not None:
            self._end(call, self._timed_out(call))
            if len(call.outbox.fresh) + len(call.outbox.again) > 2 * len(self._calls) + 64:
                call.outbox.clear_away()

    def give_up_who(self, done: Callable[[Answer | KeeperError], None], now: float) -> None:
        """The same for a caller who was interrupted before he knew the number."""
        for call in list(self._calls.values()):
            if call.done == done:
                self.give_up(call.id, now)

    def set_members(self, members: Sequence[int]) -> None:
        """These members can be asked from now on."""
        self.wants_members = not members
        self._members = tuple(sorted(members))
        self._foreign.intersection_update(self._members)

    def close(self, now: float) -> None:
        """End all calls and take no more; :meth:`outgoing` then still tells the cluster that the session is over."""
        if self._closed:
            return
        for call in list(self._calls.values()):
            applied = None if call.outbox is self._writes and call.sends else False
            self._end(call, Unavailable("the hub was closed", applied=applied))
        self._closed = True
        self._close_session = self._session.id != 0 and bool(self._members)
        self._flights.clear()

    # -- what the owner does ------------------------------------------------------------------------------------------

    def outgoing(self, now: float) -> list[Outgoing]:
        """What is to be sent now. Empty again until something else happens."""
        out: list[Outgoing] = []
        if self._closed:
            if self._close_session:
                self._close_session = False
                self._number += 1
                member = self._writes.target(self._members, self._leader, now)
                frame = _encode(Close(self._cluster, CLIENT_MAX_FRAME_DEADLINE, self._session.id))
                out.append(Outgoing(self._number, member, frame))
            return out
        if not self._members:
            return out
        self._send_writes(now, out)
        for outbox in (self._reads, self._stale):
            while outbox.waiting() and outbox.ready(now):
                calls = outbox.take(len(outbox.fresh))
                if not calls:
                    break
                reads = tuple([call.read for call in calls if call.read is not None])
                request = Reads(self._cluster, longest_wait(calls, now), outbox is self._stale, reads)
                self._send(Kind.BATCH, outbox, calls, request, now, out)
        return out

    def on_reply(self, call_id: int, reply: bytes, now: float) -> None:
        """A reply came, maybe late, or for the second time."""
        flight = self._flights.get(call_id)
        if flight is None:
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError as error:
            self._lost(flight, now, f"member {flight.member} answers what cannot be read: {error}")
            return
        if isinstance(answer, Refused):
            self._refused(flight, answer, now)
        elif flight.kind is not Kind.BATCH and isinstance(answer, (Opened, Written)):
            self._session_answered(flight, answer, now)
        elif isinstance(answer, Written if flight.outbox is self._writes else ReadReply):
            self._answered(flight, answer.answers, now)
        else:
            self._lost(flight, now, f"member {flight.member} answers something else")

    def on_failure(self, call_id: int, now: float, problem: str = "") -> None:
        """The transport gave the frame up. It may have arrived all the same; sending it again is safe."""
        flight = self._flights.get(call_id)
        if flight is not None:
            self._lost(flight, now, f"member {flight.member} cannot be reached{': ' if problem else ''}{problem}")

    def resume(self, now: float) -> None:
        """Whoever was at work here was interrupted anywhere in the middle. What was not answered goes once more: it may
        not have been sent, and a second copy does no harm."""
        self._flights.clear()
        for outbox in self._outboxes:
            outbox.begin_anew()
        for call in list(self._calls.values()):
            if call.over:  # but its caller was not told
                call.over = False
                self._end(call, self._timed_out(call))
            elif call.sequence or (call.sends and call.outbox is not self._writes):
                call.outbox.put_back([call], doubtful=True)
            else:
                call.doubtful |= call.sends > 0
                call.outbox.fresh.append(call)
        for outbox in self._outboxes:
            outbox.again.reverse()
        self._session.settle_others({call.sequence for call in self._calls.values()})
        self._expire(now)

    def on_time(self, now: float) -> None:
        """Look at the clock: end calls whose time is over, and give up on batches without an answer."""
        if now >= self._expire_at:
            self._expire(now)
        for flight in [flight for flight in self._flights.values() if not flight.late and now >= flight.suspect_at]:
            if not flight.late:
                flight.outbox.silent(flight.member, now)
                self._abandon(flight.outbox, flight.member)

    def next_wakeup(self) -> float | None:
        """When :meth:`on_time` is next to be called; ``None`` if there is nothing to wait for."""
        if not self._calls:
            self._expire_at = math.inf
        wakeup = self._expire_at
        for flight in self._flights.values():
            if not flight.late and flight.suspect_at < wakeup:
                wakeup = flight.suspect_at
        for outbox in self._outboxes:
            if outbox.failures and not outbox.flying and outbox.not_before < wakeup and self._wants_to_send(outbox):
                wakeup = outbox.not_before
        if self._session.id and self._members and not self._writes.flying and not self._closed:
            wakeup = min(wakeup, max(self._session.keep_alive_at(), self._writes.not_before))
        return None if wakeup == math.inf else wakeup

    @property
    def session(self) -> int:
        """The session's id, 0 while there is none."""
        return self._session.id

    @property
    def leader(self) -> int:
        """The leader as far as known, 0 if not."""
        return self._leader

    @property
    def failing(self) -> bool:
        """Whether nobody has answered since something failed."""
        return any(outbox.failures for outbox in self._outboxes)

    @property
    def pending(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _wants_to_send(self, outbox: Outbox) -> bool:
        return bool(self._members) and outbox.waiting()

    def _send_writes(self, now: float, out: list[Outgoing]) -> None:
        outbox, session = self._writes, self._session
        if session.id and session.idle and session.may_be_over(now):
            session.ended()
        if not outbox.ready(now):
            return
        if not session.id:
            if outbox.waiting() and not outbox.flying:
                outbox.clear_away()
                if outbox.waiting():
                    nonce = session.opening(now, self._timings.session_ttl)
                    waiting = outbox.fresh if outbox.fresh else outbox.again
                    opening = Open(self._cluster, longest_wait(waiting, now), nonce)
                    self._send(Kind.OPEN, outbox, [], opening, now, out)
            return
        while outbox.waiting() and outbox.ready(now):
            calls = outbox.take(session.room(self._limits.max_session_answers))
            if not calls:
                break
            writes = []
            for call in calls:
                write = call.write
                assert write is not None
                if not call.sequence:
                    call.sequence = session.next_sequence()
                    call.write = write = ClientWrite(call.sequence, write.operation, write.request_id)
                writes.append(write)
            commands = ClientWrites(session.id, session.low, tuple(writes))
            self._send(Kind.BATCH, outbox, calls, Writes(self._cluster, longest_wait(calls, now), commands), now, out)
        if not outbox.flying and now >= session.keep_alive_at():
            keep_alive = KeepAlive(self._cluster, session.ttl / 3, session.id)
            self._send(Kind.KEEP_ALIVE, outbox, [], keep_alive, now, out)

    def _send(
        self, kind: Kind, outbox: Outbox, calls: list[Call], request: Request, now: float, out: list[Outgoing]
    ) -> None:
        self._number += 1
        # What any member may answer spreads over those that are near.
        member = outbox.target(self._members, self._leader if outbox.to_leader else 0, now)
        self._flights[self._number] = Flight(self._number, kind, outbox, member, calls, self._session.id, now)
        outbox.took_off(len(calls))
        out.append(Outgoing(self._number, member, _encode(request)))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _landed(self, flight: Flight, now: float) -> None:
        """The flight was answered in earnest: all is well with its member."""
        del self._flights[flight.id]
        if not flight.late:
            flight.outbox.came_down(len(flight.calls))
        if flight.outbox is self._writes and not (flight.late and self._leader):
            self._leader = flight.member
        self._foreign.discard(flight.member)
        flight.outbox.answered(flight.member, now - flight.sent_at)

    def _answered(self, flight: Flight, answers: Sequence[Answer], now: float) -> None:
        calls, unanswered = flight.calls[: len(answers)], flight.calls[len(answers) :]
        # A member answers as many as fit into a reply, or a log entry; nothing was done of the rest, which goes again.
        if not calls or len(answers) > len(calls):
            self._lost(flight, now, f"member {flight.member} answers {len(answers)} of {len(flight.calls)} requests")
            return
        self._landed(flight, now)
        if not flight.late:
            flight.outbox.put_back(unanswered, doubtful=False)
        expired = False
        for call, answer in zip(calls, answers, strict=True):
            if call.over:
                continue
            if type(answer) is not Failed:
                self.revision = max(self.revision, getattr(answer, "revision", 0))
                self._end(call, answer)
            elif answer.reason is Reason.SESSION_EXPIRED:
                expired = True
            else:
                self._end(call, failure(answer, doubtful=call.doubtful))
        if flight.outbox is self._writes and flight.session == self._session.id:
            if expired:
                self._session_expired()
            else:
                self._session.heard(flight.sent_at)

    def _session_answered(self, flight: Flight, answer: Opened | Written, now: float) -> None:
        session = self._session
        if isinstance(answer, Opened):
            self._landed(flight, now)
            if flight.kind is Kind.OPEN:
                session.opened(flight.sent_at, answer.session, answer.ttl)
            return
        result = answer.answers[0] if answer.answers else None
        if isinstance(result, Done) and flight.kind is Kind.KEEP_ALIVE:
            self._landed(flight, now)
            if flight.session == session.id:
                session.heard(flight.sent_at)
        elif isinstance(result, Failed) and result.reason is Reason.SESSION_EXPIRED and flight.kind is Kind.KEEP_ALIVE:
            self._landed(flight, now)
            if flight.session == session.id:
                self._session_expired()
        else:
            problem = (
                str(failure(result, doubtful=False)) if isinstance(result, Failed) else "it answers something else"
            )
            late = flight.late
            self._put_back(flight, doubtful=True)
            if not late:
                flight.outbox.pause(now, f"no session: {problem}")

    def _session_expired(self) -> None:
        """Every write that was sent in the session ends here, with nobody knowing whether it took effect."""
        ended = [call for call in self._calls.values() if call.sequence]
        for call in ended:
            self._end(call, SessionExpired("the session expired while the call was open", applied=None))
        self._writes.clear_away()
        self._session.ended()

    def _refused(self, flight: Flight, refused: Refused, now: float) -> None:
        late, outbox, member = flight.late, flight.outbox, flight.member
        self._put_back(flight, doubtful=refused.refusal in (Refusal.LOST, Refusal.TIMED_OUT))
        if late:
            return  # old news: the outbox has gone on
        refusal = refused.refusal
        who = f"member {member}: {refused.message or refusal.name.lower().replace('_', ' ')}"
        if refusal is Refusal.INVALID:
            self._find_culprit(flight, refused, now)
        elif refusal is Refusal.WRONG_CLUSTER:
            self._foreign.add(member)
            outbox.failed(member, now, f"member {member} belongs to another cluster")
            if self._foreign.issuperset(self._members):
                self._fail_all()
        elif refusal is Refusal.NOT_SERVING:
            outbox.failed(member, now, who)
            self._learn_leader(refused.leader, outbox, member, now)
        elif refusal in (Refusal.NOT_LEADER, Refusal.LOST):
            if self._learn_leader(refused.leader, outbox, member, now):
                outbox.redirected(now, who)
            else:
                outbox.pause(now, who)
        else:
            outbox.pause(now, who)
        if outbox.failures > len(self._members):  # all that we know may have left the cluster
            self.wants_members = True

    def _learn_leader(self, leader: int, outbox: Outbox, member: int, now: float) -> bool:
        """Take a hint; True if it names somebody who can be asked at once."""
        if leader and leader not in self._members:
            self.wants_members = True
            leader = 0
        if leader == member:
            leader = 0
        if leader or self._leader == member:
            self._leader = leader
        return leader != 0 and not outbox.banished(leader, now)

    def _find_culprit(self, flight: Flight, refused: Refused, now: float) -> None:
        """A member does not understand the batch: it had no effect. Smaller ones tell which request is to blame."""
        if len(flight.calls) > 1:
            for call in flight.calls:
                call.largest_batch = max(1, len(flight.calls) // 2)
            return
        for call in flight.calls:
            applied = None if call.outbox is self._writes and call.doubtful else False
            self._end(call, InvalidArgument(f"refused: {refused.message}", applied=applied))
        if not flight.calls:
            flight.outbox.pause(now, f"member {flight.member} refuses the session: {refused.message}")

    def _fail_all(self) -> None:
        under_way = {call.id for flight in self._flights.values() for call in flight.calls}
        for call in list(self._calls.values()):
            unknown = call.outbox is self._writes and (call.doubtful or call.id in under_way)
            self._end(
                call,
                ClusterMismatch(
                    "the members of that name belong to another cluster", applied=None if unknown else False
                ),
            )

    # -- failures -----------------------------------------------------------------------------------------------------

    def _put_back(self, flight: Flight, *, doubtful: bool) -> None:
        """The flight is over without answers: its open calls go again."""
        del self._flights[flight.id]
        if not flight.late:
            flight.outbox.came_down(len(flight.calls))
            flight.outbox.put_back(flight.calls, doubtful=doubtful)

    def _lost(self, flight: Flight, now: float, problem: str) -> None:
        """Nobody knows what became of the flight."""
        late = flight.late
        self._put_back(flight, doubtful=True)
        if not late:
            flight.outbox.failed(flight.member, now, problem)
            self._abandon(flight.outbox, flight.member)

    def _abandon(self, outbox: Outbox, member: int) -> None:
        """Wait no longer for what the member was sent; its answers are still taken, for as long as they are few."""
        if self._leader == member:
            self._leader = 0
        if outbox.failures > len(self._members):
            self.wants_members = True
        late = []
        flights = [flight for flight in self._flights.values() if flight.outbox is outbox]
        for flight in reversed(flights):
            if flight.member == member and not flight.late:
                flight.late = True
                outbox.came_down(len(flight.calls))
                outbox.put_back(flight.calls, doubtful=True)
            if flight.late:
                late.append(flight)
        for flight in late[CLIENT_MAX_LATE_BATCHES:]:
            del self._flights[flight.id]

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        due = [call for call in self._calls.values() if call.deadline <= now]
        for call in due:
            self._end(call, self._timed_out(call))
        if due:
            for outbox in self._outboxes:
                outbox.clear_away()
        earliest = min((call.deadline for call in self._calls.values()), default=math.inf)
        self._expire_floor = now + 1e-6 * len(self._calls)  # looking at all calls again costs about that much
        self._expire_at = max(earliest, self._expire_floor) if earliest != math.inf else math.inf

    def _timed_out(self, call: Call) -> KeeperError:
        applied = None if call.outbox is self._writes and call.sends else False
        if not self._members:
            return Unavailable("no member of the cluster can be found", applied=applied)
        if call.outbox.failures:
            return Unavailable(
                f"no quorum answered the {call.outbox.name} in time ({call.outbox.problem})", applied=applied
            )
        return RequestTimeout(f"no answer to the {call.outbox.name} in time", applied=applied)

    def _end(self, call: Call, outcome: Answer | KeeperError) -> None:
        if call.over:
            return
        call.over = True
        call.read = call.write = None  # a late flight keeps the call, but not its bytes
        del self._calls[call.id]
        if call.sequence:
            self._session.settle(call.sequence)
        try:
            call.done(outcome)
        except Exception as error:  # one caller's trouble must not lose the others' answers
            self.mishaps.append(error)
