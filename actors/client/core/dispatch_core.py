"""The requests of one process, without I/O: into batches for members, and back to exactly one outcome for each.

Nothing here sends, sleeps, locks or reads a clock. The owner passes the time in with every call, and after any call
asks :meth:`DispatchCore.outgoing` what to send; the simulator runs the same code. The rules:

- Every submitted call ends exactly once, in an answer or in a ``KeeperError``.
- A write keeps its session and sequence over all retries, so a copy of a write that was applied is only answered again
  (thesis 6.3). A batch that was given up as lost may still be answered, and its answers count.
- A write that was sent in a session that has expired ends in ``SessionExpired`` and is never sent again.
- An error says ``applied=False`` for a write only if the write was never sent, or if the state machine refused it.

Batches form by themselves: the calls that gather while batches are in flight make up the next one, and a lone request
waits for nothing.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence

import msgspec

from ....errors import ClusterMismatch, InvalidArgument, KeeperError, RequestTimeout, SessionExpired, Unavailable
from ....limits import CLIENT_MAX_FRAME_DEADLINE_S, CLIENT_MAX_LATE_BATCHES, CLIENT_TERM_WAIT_S, Limits, Timings
from ....schema.answers import Answer, Done, Failed, Reason
from ....schema.client_identity import ClientIdentity
from ....schema.commands import ClientWrite, ClientWrites, RequestId
from ....schema.frames import (
    AskTerm,
    BareReads,
    BareWrites,
    Close,
    KeepAlive,
    LoneRead,
    Open,
    Opened,
    Read,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    UnconfirmedRead,
    Writes,
    Written,
)
from ....schema.operations import Operation
from .confirmed_read import ConfirmedReads
from .failures import denial, failure
from .in_flight import CallTrace, InFlight, Kind, OutgoingFrame, longest_wait, request_size
from .outbox import Outbox, PendingCall
from .router import Prefer, Router
from .session import ClientSession

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


class DispatchCore:
    """All requests of one process to one cluster. The owner holds a lock around every call.

    Args:
        cluster: the cluster's id, named in every frame.
        router: the hub's, shared with its other cores.
        rng: for nonces, the spread of serializable reads, and the jitter of pauses.
        client: who this process is; ``None`` says nothing.
    """

    def __init__(
        self,
        cluster: int,
        router: Router,
        limits: Limits,
        timings: Timings,
        rng: random.Random,
        client: ClientIdentity | None = None,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._router = router
        self._limits = limits
        self._timings = timings
        self._writes = Outbox("write", limits, rng, Prefer.LEADER)
        self._reads = Outbox("read", limits, rng, Prefer.LEADER)
        self._stale = Outbox("serializable read", limits, rng, Prefer.NEAR)
        self._outboxes = (self._writes, self._reads, self._stale)
        self._session = ClientSession(rng)
        self.confirmed_reads = ConfirmedReads(router)
        """Lone reads that this process confirms itself."""
        self._calls: dict[int, PendingCall] = {}
        self._in_flight: dict[int, InFlight] = {}
        self._traces: dict[int, CallTrace] = {}
        """Of the calls that are sampled: mostly empty."""
        self._number = 0
        self._expire_at = math.inf
        """When to look for calls whose time is over: the earliest deadline, or a little later."""
        self._expire_floor = -math.inf
        """``_expire_at`` is never set below this, so that looking at all calls takes a bounded share of the time."""
        self._closed = False
        self._close_session = False
        self.callback_errors: list[Exception] = []
        """Exceptions raised by ``done`` callbacks, for the owner to log outside of its lock."""
        self.revision = 0
        """The newest revision seen in an answer."""

    # -- for callers --------------------------------------------------------------------------------------------------

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
        """Accept a request; ``done`` gets its outcome exactly once, maybe before this returns.

        Args:
            timeout: seconds; zero or less ends the call at once, without sending it.
            serializable: for a ``Read``: any member may answer, from what it has.
            request_id: for a write: its name beyond this session.
            size: what ``request_size`` returned; ``None`` checks the request here.

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
            waiting = f"{len(self._calls)} requests of this process wait already"
            error = Unavailable(f"{waiting}, as many as limits.max_pending_requests allows", applied=False)
            error.reason = Reason.FULL
        elif size is None:
            try:
                size = request_size(request, self._limits)
            except KeeperError as refused:
                error = refused
        if error is not None or size is None:
            done(error or Unavailable("not sent"))
            return number
        if isinstance(request, Read):
            outbox = self._stale if serializable else self._reads
            call = PendingCall(number, outbox, request, None, now + timeout, size, done)
        else:
            outbox = self._writes
            call = PendingCall(number, outbox, None, ClientWrite(0, request, request_id), now + timeout, size, done)
        self._calls[number] = call
        if call.deadline < self._expire_at:
            self._expire_at = max(call.deadline, self._expire_floor)
        outbox.fresh.append(call)
        return number

    def trace(self, number: int, trace: CallTrace) -> None:
        """A call that was just submitted is sampled."""
        if number in self._calls:
            self._traces[number] = trace
        else:
            trace.ended(None)

    def give_up(self, number: int, now: float) -> None:
        """The caller no longer waits: the call ends as at its timeout, unless it is over already."""
        call = self._calls.get(number)
        if call is not None:
            self._end(call, self._timed_out(call))
            if len(call.outbox.fresh) + len(call.outbox.again) > 2 * len(self._calls) + 64:
                call.outbox.discard_ended()

    def give_up_callback(self, done: Callable[[Answer | KeeperError], None], now: float) -> None:
        """As :meth:`give_up`, for a caller that was interrupted before it learned the number."""
        for call in list(self._calls.values()):
            if call.done == done:
                self.give_up(call.id, now)

    def close(self, now: float) -> None:
        """End all calls and accept no more; the next :meth:`outgoing` still tells the cluster to end the session."""
        if self._closed:
            return
        for call in list(self._calls.values()):
            applied = None if call.outbox is self._writes and call.sends else False
            self._end(call, Unavailable("the hub was closed", applied=applied))
        self._closed = True
        self._close_session = self._session.id != 0 and bool(self._router.members)
        self._in_flight.clear()
        self.confirmed_reads.forget()

    # -- for the owner ------------------------------------------------------------------------------------------------

    def outgoing(self, now: float) -> list[OutgoingFrame]:
        """The frames to send now. Asked again, it returns none until something else happens."""
        out: list[OutgoingFrame] = []
        if self._closed:
            if self._close_session:
                self._close_session = False
                self._number += 1
                member = self._writes.target(self._router, now)
                frame = _encode(Close(self._cluster, CLIENT_MAX_FRAME_DEADLINE_S, self._session.id))
                out.append(OutgoingFrame(self._number, member, frame))
            return out
        if not self._router.members:
            return out
        self._send_writes(now, out)
        for outbox in (self._reads, self._stale):
            while outbox.waiting() and outbox.can_send(now):
                calls = outbox.next_batch(len(outbox.fresh))
                if not calls:
                    break
                if outbox is self._reads and not outbox.in_flight and self._send_alone(calls, now, out):
                    continue
                reads = tuple([call.read for call in calls if call.read is not None])
                request = BareReads(self._cluster, longest_wait(calls, now), outbox is self._stale, reads)
                self._send(Kind.BATCH, outbox, calls, request, now, out)
        return out

    def on_reply(self, frame_number: int, reply: bytes, now: float) -> None:
        """A reply has arrived, maybe late, or for the second time.

        Only a frame in ``_in_flight`` is answered. It leaves that table at its first reply, so a second reply is
        dropped; a frame that is waited for no longer (``late``) stays, so its answers still count.
        """
        inflight = self._in_flight.get(frame_number)
        if inflight is None:
            self._voter_answered(frame_number, reply, now)
            return
        try:
            answer = _decode(reply)
        except msgspec.MsgspecError as error:
            self._lost(inflight, now, f"m{inflight.member} sent an unreadable reply: {error}")
            return
        if isinstance(answer, Refused):
            self._refused(inflight, answer, now)
        elif isinstance(answer, UnconfirmedRead):
            self._leader_answered(inflight, answer, now)
        elif inflight.kind is not Kind.BATCH and isinstance(answer, (Opened, Written)):
            self._session_answered(inflight, answer, now)
        elif isinstance(answer, Written if inflight.outbox is self._writes else ReadReply):
            if answer.term > self._router.term:
                self._router.term = answer.term
            self._answered(inflight, answer.answers, now)
        else:
            self._lost(inflight, now, f"m{inflight.member} sent a reply of another kind")

    def on_failure(self, frame_number: int, now: float, problem: str = "") -> None:
        """The transport gave the frame up. The member may have it all the same; sending it again is safe."""
        inflight = self._in_flight.get(frame_number)
        if inflight is None:
            self._voter_answered(frame_number, None, now)
        else:
            self._lost(inflight, now, f"m{inflight.member} cannot be reached{': ' if problem else ''}{problem}")

    def resume(self, now: float) -> None:
        """Restore order after a thread was interrupted (Ctrl-C) anywhere inside this core.

        Nothing in the queues and counters can be trusted, only ``_calls``: a call is in it until its outcome is
        certain. So everything is rebuilt from it, in the order of submission. Calls that are not answered are sent once
        more: their frames may never have left, and a second copy does no harm, because a write that has a sequence
        keeps it. A write without one gets its sequence when it is sent again. A call that was marked over but is still
        in the table ends now, since its caller was not told.
        """
        self._in_flight.clear()
        self.confirmed_reads.forget()
        for outbox in self._outboxes:
            outbox.reset()
        for call in list(self._calls.values()):
            if call.over:
                call.over = False
                self._end(call, self._timed_out(call))
            elif call.sequence or (call.sends and call.outbox is not self._writes):
                call.outbox.put_back([call], maybe_applied=True)
            else:
                call.maybe_applied |= call.sends > 0
                call.outbox.fresh.append(call)
        for outbox in self._outboxes:
            outbox.again.reverse()
        self._session.keep_open_only({call.sequence for call in self._calls.values()})
        self._expire(now)

    def on_time(self, now: float) -> None:
        """Look at the clock: end the calls whose time is over, and give up batches without a reply."""
        if now >= self._expire_at:
            self._expire(now)
        if self.confirmed_reads.on_time(now):
            self._conclude_read(now)
        for inflight in [
            inflight for inflight in self._in_flight.values() if not inflight.late and now >= inflight.suspect_at
        ]:
            if not inflight.late:
                inflight.outbox.timed_out(inflight.member, now)
                self._abandon(inflight.outbox, inflight.member)

    def next_wakeup(self) -> float | None:
        """The time at which to call :meth:`on_time` and :meth:`outgoing`; ``None`` if there is nothing to wait for."""
        if not self._calls:
            self._expire_at = math.inf
        wakeup = min(self._expire_at, self.confirmed_reads.next_wakeup())
        for inflight in self._in_flight.values():
            if not inflight.late and inflight.suspect_at < wakeup:
                wakeup = inflight.suspect_at
        for outbox in self._outboxes:
            if outbox.failures and not outbox.in_flight and outbox.not_before < wakeup and self._wants_to_send(outbox):
                wakeup = outbox.not_before
        if self._session.id and self._router.members and not self._writes.in_flight and not self._closed:
            wakeup = min(wakeup, max(self._session.keep_alive_at(), self._writes.not_before))
        return None if wakeup == math.inf else wakeup

    @property
    def session(self) -> int:
        """The session's id, 0 while there is none."""
        return self._session.id

    @property
    def failing(self) -> bool:
        """Whether no member has answered since something failed."""
        return self._writes.failures > 0 or self._reads.failures > 0 or self._stale.failures > 0

    @property
    def pending(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    @property
    def frames_in_flight(self) -> int:
        """How many frames wait for a reply. Any thread."""
        return len(self._in_flight)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _wants_to_send(self, outbox: Outbox) -> bool:
        return bool(self._router.members) and outbox.waiting()

    def _send_writes(self, now: float, out: list[OutgoingFrame]) -> None:
        """Send the writes that may go, in a session; open one first if there is none; keep an idle one alive.

        The promise of exactly once rests on this. A write gets its sequence when it is first sent and keeps it, so a
        retry is the same write to the state machine. The low mark that travels with a batch is at most the sequence of
        any open write, so no member forgets an answer that is still waited for. No more sequences are open than members
        keep answers for (``room``). And a session that may have expired is given up only while no sequence is open:
        a write that was sent in it must never be sent in another.
        """
        outbox, session = self._writes, self._session
        if session.id and session.idle and session.may_be_over(now):
            session.ended()
        if not outbox.can_send(now):
            return
        if not session.id:
            if outbox.waiting() and not outbox.in_flight:
                outbox.discard_ended()
                if outbox.waiting():
                    nonce = session.opening_nonce(now, self._timings.session_ttl)
                    waiting = outbox.fresh if outbox.fresh else outbox.again
                    opening = Open(self._cluster, longest_wait(waiting, now), nonce, self._client)
                    self._send(Kind.OPEN, outbox, [], opening, now, out)
            return
        while outbox.waiting() and outbox.can_send(now):
            calls = outbox.next_batch(session.room(self._limits.max_session_answers))
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
            if session.low > min([write.sequence for write in writes]):  # members would not run it
                raise ValueError(f"a write below the low mark {session.low}: {writes[0].sequence}")
            commands = ClientWrites(session.id, session.low, tuple(writes))
            self._send(
                Kind.BATCH, outbox, calls, BareWrites(self._cluster, longest_wait(calls, now), commands), now, out
            )
        if not outbox.in_flight and now >= session.keep_alive_at():
            keep_alive = KeepAlive(self._cluster, session.ttl / 3, session.id)
            self._send(Kind.KEEP_ALIVE, outbox, [], keep_alive, now, out)

    def _send_alone(self, calls: list[PendingCall], now: float, out: list[OutgoingFrame]) -> bool:
        """Send a lone read to the leader, and ask a voter for its term (:mod:`confirmed_read`); False if these calls
        go the ordinary way."""
        reads = self.confirmed_reads
        if self._reads.failures or not reads.suits(calls):
            return False
        voter = reads.voter(self._reads.target(self._router, now), now)
        read = calls[0].read
        if not voter or read is None:
            return False
        wait = longest_wait(calls, now)
        self._send(Kind.BATCH, self._reads, calls, LoneRead(self._cluster, wait, read), now, out)
        leader = self._in_flight[self._number]
        self._number += 1
        reads.asked(leader, self._number, voter, now)
        out.append(OutgoingFrame(self._number, voter, _encode(AskTerm(self._cluster, CLIENT_TERM_WAIT_S))))
        return True

    def _send(
        self,
        kind: Kind,
        outbox: Outbox,
        calls: list[PendingCall],
        request: Request | BareWrites | BareReads,
        now: float,
        out: list[OutgoingFrame],
    ) -> None:
        """Encode a request, choose the member, and note the frame as in flight under its number."""
        self._number += 1
        member = outbox.target(self._router, now)
        self._in_flight[self._number] = InFlight(self._number, kind, outbox, member, calls, self._session.id, now)
        outbox.batch_sent(len(calls))
        if self._traces:
            request = self._traced(request, calls, member)
        out.append(OutgoingFrame(self._number, member, _encode(request)))

    def _traced(
        self, request: Request | BareWrites | BareReads, calls: list[PendingCall], member: int
    ) -> Request | BareWrites | BareReads:
        """The request with the traceparent of its first sampled call, if it has one."""
        traces = [trace for call in calls if (trace := self._traces.get(call.id)) is not None]
        for trace in traces:
            trace.sent(member, traces[0].traceparent)
        if traces and isinstance(request, BareWrites):
            return Writes(request.cluster, request.deadline, request.commands, traces[0].traceparent)
        if traces and isinstance(request, BareReads):
            return Reads(request.cluster, request.deadline, request.serializable, request.reads, traces[0].traceparent)
        if traces and isinstance(request, LoneRead):
            return LoneRead(request.cluster, request.deadline, request.read, traces[0].traceparent)
        return request

    # -- answers ------------------------------------------------------------------------------------------------------

    def _settle(self, inflight: InFlight, now: float) -> None:
        """The member did what the frame asked: the frame is no longer in flight, and all is well with the member.

        An answer to a write shows who leads, unless it is late and a leader is known: that one may be newer.
        """
        del self._in_flight[inflight.id]
        if not inflight.late:
            inflight.outbox.batch_settled(len(inflight.calls))
        self._router.note_ours(inflight.member)
        if inflight.outbox is self._writes and not (inflight.late and self._router.leader):
            self._router.note_leader(inflight.member)
        inflight.outbox.answered(inflight.member, now - inflight.sent_at)
        if inflight.outbox is self._reads:
            self.confirmed_reads.answered_otherwise(inflight, now)

    def _leader_answered(self, inflight: InFlight, answer: UnconfirmedRead, now: float) -> None:
        """The leader's half of a lone read. If it is waited for no longer, it is worth nothing."""
        if self.confirmed_reads.heard_leader(inflight, answer, now):
            self._conclude_read(now)
        elif inflight.outbox is self._reads:
            self._put_back(inflight, maybe_applied=False)
        else:
            self._lost(inflight, now, f"m{inflight.member} sent a reply of another kind")

    def _voter_answered(self, frame_number: int, reply: bytes | None, now: float) -> None:
        """The other half, or the news that there is none; or what belongs to no frame that is waited for."""
        if not self.confirmed_reads.asks(frame_number):
            self.confirmed_reads.heard_late(frame_number)
            return
        word = None
        if reply is not None:
            with contextlib.suppress(msgspec.MsgspecError, RecursionError):
                word = _decode(reply)
        self.confirmed_reads.heard_voter(word)
        self._conclude_read(now)

    def _conclude_read(self, now: float) -> None:
        """End a lone read if both halves are there; if they do not fit together, the read goes the ordinary way."""
        concluded = self.confirmed_reads.conclude(now)
        if concluded is None:
            return
        inflight, answer, counts = concluded
        if self._in_flight.get(inflight.id) is not inflight:
            return
        if inflight.late:  # its call was sent again, and nothing more will answer this frame
            del self._in_flight[inflight.id]
            return
        if not counts:
            self._put_back(inflight, maybe_applied=False)
            return
        if answer.term > self._router.term:
            self._router.term = answer.term
        self._answered(inflight, (answer.answer,), now)

    def _answered(self, inflight: InFlight, answers: Sequence[Answer], now: float) -> None:
        """End the calls of a batch with their answers.

        A member answers the first calls of a batch, as many as fit into a reply or a log entry. It did nothing of the
        others, which are sent again (after a late reply they have been queued already). ``SESSION_EXPIRED`` concerns
        not one write but the session: all that were sent in it end together, and only if it is still the current one.
        """
        calls, unanswered = inflight.calls[: len(answers)], inflight.calls[len(answers) :]
        if not calls or len(answers) > len(calls):
            self._lost(inflight, now, f"m{inflight.member} answered {len(answers)} of {len(inflight.calls)} requests")
            return
        self._settle(inflight, now)
        if not inflight.late:
            inflight.outbox.put_back(unanswered, maybe_applied=False)
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
                self._end(call, failure(answer, maybe_applied=call.maybe_applied))
        if inflight.outbox is self._writes and inflight.session == self._session.id:
            if expired:
                self._session_expired()
            else:
                self._session.renewed(inflight.sent_at)

    def _session_answered(self, inflight: InFlight, answer: Opened | Written, now: float) -> None:
        """Take in the reply to an opening or a keep-alive; one that concerns an earlier session changes nothing."""
        session = self._session
        if isinstance(answer, Opened):
            self._settle(inflight, now)
            if inflight.kind is Kind.OPEN:
                session.opened(inflight.sent_at, answer.session, answer.ttl)
            return
        result = answer.answers[0] if answer.answers else None
        if isinstance(result, Done) and inflight.kind is Kind.KEEP_ALIVE:
            self._settle(inflight, now)
            if inflight.session == session.id:
                session.renewed(inflight.sent_at)
        elif (
            isinstance(result, Failed) and result.reason is Reason.SESSION_EXPIRED and inflight.kind is Kind.KEEP_ALIVE
        ):
            self._settle(inflight, now)
            if inflight.session == session.id:
                self._session_expired()
        else:
            problem = (
                str(failure(result, maybe_applied=False)) if isinstance(result, Failed) else "a reply of another kind"
            )
            late = inflight.late
            self._put_back(inflight, maybe_applied=True)
            if not late:
                inflight.outbox.back_off(now, f"no session: {problem}")

    def _session_expired(self) -> None:
        """End every write that was sent in the session: whether it took effect cannot be known any more."""
        ended = [call for call in self._calls.values() if call.sequence]
        for call in ended:
            self._end(call, SessionExpired("the session expired while the call was open", applied=None))
        self._writes.discard_ended()
        self._session.ended()

    def _refused(self, inflight: InFlight, refused: Refused, now: float) -> None:
        """Take in a member's refusal: its calls are queued again, and the outbox learns where or when to try next.

        Only LOST and TIMED_OUT leave it open whether a write takes effect: the member had proposed it. Every other
        refusal says that this copy never will. A late refusal changes nothing: the calls were queued again before.
        """
        late, outbox, member = inflight.late, inflight.outbox, inflight.member
        self._put_back(inflight, maybe_applied=refused.refusal in (Refusal.LOST, Refusal.TIMED_OUT))
        if late:
            return
        refusal = refused.refusal
        who = f"m{member}: {refused.message or refusal.name.lower().replace('_', ' ')}"
        if (error := denial(refused)) is not None:
            self._end_denied(inflight, error, now)
        elif refusal is Refusal.INVALID:
            if not self.confirmed_reads.refused(inflight, now):
                self._find_culprit(inflight, refused, now)
        elif refusal is Refusal.WRONG_CLUSTER:
            outbox.failed(member, now, f"m{member} belongs to another cluster")
            if self._router.note_foreign(member):
                self._end_all_foreign()
        elif refusal is Refusal.NOT_SERVING:
            outbox.failed(member, now, who)
            self._router.take_hint(refused, member)
        elif refusal in (Refusal.NOT_LEADER, Refusal.LOST):
            leader = self._router.take_hint(refused, member)
            if leader and not outbox.quarantined(leader, now):
                outbox.redirected(now, who)
            else:
                outbox.back_off(now, who)
        else:
            outbox.back_off(now, who)
        self._router.note_failures(outbox.failures)

    def _end_denied(self, inflight: InFlight, error: KeeperError, now: float) -> None:
        """A frame was refused because of who sent it: its calls end, or, if there can be no session, all that need
        one."""
        outbox = inflight.outbox
        calls = inflight.calls or [call for call in self._calls.values() if call.outbox is outbox]
        for call in calls:
            ended = type(error)(*error.args, applied=None if outbox is self._writes and call.maybe_applied else False)
            ended.reason = error.reason
            self._end(call, ended)
        outbox.discard_ended()
        if not inflight.calls:
            outbox.back_off(now, str(error))

    def _find_culprit(self, inflight: InFlight, refused: Refused, now: float) -> None:
        """A member refused a batch as invalid, without effect. Halve it until the call to blame stands alone."""
        if len(inflight.calls) > 1:
            for call in inflight.calls:
                call.largest_batch = max(1, len(inflight.calls) // 2)
            return
        for call in inflight.calls:
            applied = None if call.outbox is self._writes and call.maybe_applied else False
            self._end(call, InvalidArgument(f"refused: {refused.message}", applied=applied))
        if not inflight.calls:
            inflight.outbox.back_off(now, f"m{inflight.member} refuses the session: {refused.message}")

    def _end_all_foreign(self) -> None:
        """All known members belong to another cluster: end every call. The fate of a write in flight is unknown."""
        under_way = {call.id for inflight in self._in_flight.values() for call in inflight.calls}
        for call in list(self._calls.values()):
            unknown = call.outbox is self._writes and (call.maybe_applied or call.id in under_way)
            self._end(
                call,
                ClusterMismatch(
                    "the members of that name belong to another cluster", applied=None if unknown else False
                ),
            )

    # -- failures -----------------------------------------------------------------------------------------------------

    def _put_back(self, inflight: InFlight, *, maybe_applied: bool) -> None:
        """The frame ended without answers: its open calls are queued again, unless they were when it became late."""
        del self._in_flight[inflight.id]
        if not inflight.late:
            inflight.outbox.batch_settled(len(inflight.calls))
            inflight.outbox.put_back(inflight.calls, maybe_applied=maybe_applied)

    def _lost(self, inflight: InFlight, now: float, problem: str) -> None:
        """What became of the frame is unknown: the member is quarantined, and what it was sent goes to others."""
        late = inflight.late
        self._put_back(inflight, maybe_applied=True)
        if not late:
            inflight.outbox.failed(inflight.member, now, problem)
            self._abandon(inflight.outbox, inflight.member)

    def _abandon(self, outbox: Outbox, member: int) -> None:
        """Wait no longer for what the member was sent, without forgetting it.

        Every frame to the member becomes ``late``: its calls are queued again, marked ``maybe_applied``, and counted as
        in flight no more. It stays in the table, because its answers still count when they come. Only the newest late
        frames of an outbox are kept, so a member that never answers does not fill the memory. Frames are visited from
        the newest to the oldest, and each puts its calls in front: so the calls keep their order.
        """
        self._router.note_no_answer(member)
        self._router.note_failures(outbox.failures)
        late = []
        of_outbox = [inflight for inflight in self._in_flight.values() if inflight.outbox is outbox]
        for inflight in reversed(of_outbox):
            if inflight.member == member and not inflight.late:
                inflight.late = True
                outbox.batch_settled(len(inflight.calls))
                outbox.put_back(inflight.calls, maybe_applied=True)
            if inflight.late:
                late.append(inflight)
        for inflight in late[CLIENT_MAX_LATE_BATCHES:]:
            del self._in_flight[inflight.id]

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> None:
        """End the calls whose time is over, and find the next time to look, no sooner than a look is worth its cost."""
        due = [call for call in self._calls.values() if call.deadline <= now]
        for call in due:
            self._end(call, self._timed_out(call))
        if due:
            for outbox in self._outboxes:
                outbox.discard_ended()
        earliest = min((call.deadline for call in self._calls.values()), default=math.inf)
        self._expire_floor = now + 1e-6 * len(self._calls)  # about what it costs to look at all calls
        self._expire_at = max(earliest, self._expire_floor) if earliest != math.inf else math.inf

    def _timed_out(self, call: PendingCall) -> KeeperError:
        applied = None if call.outbox is self._writes and call.sends else False
        if not self._router.members:
            return Unavailable(f"no member of {self._router.cluster} can be found", applied=applied)
        outbox, cluster = call.outbox, self._router.cluster
        if outbox.failures:
            return Unavailable(
                f"no quorum of {cluster} answered the {outbox.name} in time ({outbox.problem})", applied=applied
            )
        return RequestTimeout(f"no answer of {cluster} to the {outbox.name} in time", applied=applied)

    def _end(self, call: PendingCall, outcome: Answer | KeeperError) -> None:
        """End a call with its outcome, unless it has ended: the only place where ``done`` is called after submission.

        It is marked over first and leaves the table last, so that :meth:`resume` finds a call that an interrupt left in
        between: then ``done`` is called once more, and the first outcome counts. Its sequence is settled before its
        caller is told, so a later call sees the low mark move.
        """
        if call.over:
            return
        call.over = True
        call.read = call.write = None  # a late frame keeps the call, but not its bytes
        if call.sequence:
            self._session.settle(call.sequence)
        if self._traces and (trace := self._traces.pop(call.id, None)) is not None:
            trace.ended(outcome)
        try:
            call.done(outcome)
        except Exception as error:  # a failing callback must not lose the answers of others
            self.callback_errors.append(error)
        del self._calls[call.id]
