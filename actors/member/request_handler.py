"""Turns requests from clients into events for the loop, and their outcomes into replies.

A frame is decoded and checked on the thread that received it, becomes one event in the loop's inbox, and is answered
through ``done``, which gets a function that makes the reply. Reads run in that function, so that they do not hold up
the loop: a reply that may take a long time to make is a ``SlowReply``, which must be made on another thread.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from ...errors import AuthFailed, InvalidArgument, PermissionDenied, RequestTooLarge, Unavailable
from ...limits import (
    BIG_ANSWER_BYTES,
    CLIENTS_PER_ANSWER,
    LANE_QUICK_READS,
    LOAD_ROWS,
    MAX_FRAME_DEADLINE_S,
    READ_FRAME_S,
    READ_SCAN_KEYS,
    SLOW_S,
    WATCH_POLL_S,
    Limits,
)
from ...schema.answers import Answer, Done, Failed, RangeAnswer, RangePart, Reason, SessionOpened
from ...schema.client_identity import ClientIdentity
from ...schema.commands import (
    Administration,
    ByUser,
    Caller,
    CloseSession,
    Command,
    OpenSession,
    encode,
    version_of,
)
from ...schema.frame_validation import check_request
from ...schema.frames import (
    AskLeases,
    AskTerm,
    AsUser,
    BareRequest,
    Close,
    CurrentTerm,
    KeepAlive,
    KeepLeases,
    Kept,
    LeasesKept,
    LeaseStatus,
    LeaseStatuses,
    Login,
    LoneRead,
    MonitorProcess,
    Open,
    Opened,
    ProcessMonitored,
    ReadReply,
    Reads,
    Refusal,
    Refused,
    Reply,
    Request,
    UnconfirmedRead,
    Watched,
    WatchPoll,
    Writes,
    Written,
)
from ...schema.key_range import KeyRange
from ...schema.operations import Range
from ...schema.operator_frames import (
    Administer,
    AskClients,
    AskEvents,
    AskFigures,
    AskLoad,
    AskStatus,
    AwaitCompaction,
    BeginBackup,
    ChangeMembership,
    ClientLoad,
    ClientsListed,
    Defragment,
    EndBackup,
    EventsListed,
    Figures,
    HashKeys,
    LoadShown,
    MemberStatus,
    PrefixLoad,
    ReadBackup,
    Status,
)
from ...schema.replies import MakeReply, SlowReply, reply_bytes
from ...telemetry import COUNT_BUCKETS, Family, Histogram
from ..transport.lane_server import Lane
from .client_list import client_of, clients_of, may_be_of, owner_of
from .events import (
    CompactionAwaited,
    InboxEvent,
    LeaseRenewal,
    LeasesAsked,
    LoneReadAsked,
    MembershipChange,
    Proposal,
    ReadAsked,
    SessionRenewal,
)
from .load_meter import LoadMeter
from .member_audit import Audit
from .operator_requests import OperatorRequests
from .replica import Replica
from .request_source import source_of
from .user_check import UserCheck
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
        monitor: notices the death of the process at the other end of a lane, which has that session; whether it can.
        figures: makes the families of this process's metrics.
    """

    def __init__(
        self,
        replica: Replica,
        enqueue: Callable[[InboxEvent, int], bool],
        clock: Callable[[], float],
        status: Callable[[], MemberStatus],
        operators: OperatorRequests,
        monitor: Callable[[Lane, int], bool] = lambda lane, session: False,
        figures: Callable[[], Sequence[Family]] = tuple,
    ) -> None:
        self._replica = replica
        self._monitor = monitor
        self._enqueue = enqueue
        self._clock = clock
        self._status = status
        self.operators = operators
        self._figures = figures
        self.batch_sizes = Histogram(COUNT_BUCKETS)
        """Writes of each frame."""
        self.load = LoadMeter(clock, lambda session, pid: may_be_of(replica.state, session, pid))
        """Who sends what."""
        self._cluster = replica.folder.identity.cluster
        self._users = UserCheck(replica)
        self._audit = Audit(replica.folder.identity.cluster_name, replica.folder.identity.name)
        self._handlers: dict[type[Request], Callable[[Any, _Asked], bool | None]] = {
            Writes: self._write,
            Reads: self._read,
            LoneRead: self._read_alone,
            AskTerm: self._tell_term,
            Open: self._open_session,
            KeepAlive: self._keep_session,
            Close: self._close_session,
            KeepLeases: self._keep_leases,
            AskLeases: self._ask_leases,
            AskClients: self._ask_clients,
            AskEvents: self._ask_events,
            AskLoad: self._ask_load,
            WatchPoll: self._watch,
            Administer: self._administer,
            ChangeMembership: self._change_membership,
            HashKeys: self._hash_keys,
            AwaitCompaction: self._await_compaction,
            Defragment: self._defragment,
            Login: self._log_in,
            BeginBackup: self._begin_backup,
            ReadBackup: self._read_backup,
            EndBackup: self._end_backup,
            MonitorProcess: self._monitor_process,
        }
        """By kind of request; what each returns see ``handle_request``."""

    @property
    def limits(self) -> Limits:
        """The limits that requests are checked against."""
        return self._replica.limits

    def own_token(self) -> bytes:
        """A token of the cluster itself, which may administer it; empty while users are not needed."""
        return self._users.own_token()

    def check_root(self, token: bytes, what: str) -> None:
        """Check that a token allows administration, while users are needed.

        Args:
            what: the call, for the audit log.

        Raises:
            AuthFailed, PermissionDenied: it does not.
        """
        if not self._replica.state.users.enabled:
            return
        refused = self._users.administrator(token)
        if refused is not None:
            self._audit.refused_control(token, what, refused)
            raise (PermissionDenied if refused.refusal is Refusal.DENIED else AuthFailed)(refused.message)

    def handle_request(
        self, frame: bytes, done: ReplyCallback, lane: Lane | None = None, in_loop: bool = False
    ) -> bool:
        """Handle one request frame; ``done`` is called exactly once, on this thread or on the loop's.

        Args:
            lane: on which it came; ``None`` for an actor call.
            in_loop: whether this is the loop's thread, between two turns, with time to answer a lone read at once.

        Returns:
            Whether it was answered, and a turn of the loop would find nothing to do.
        """
        token, said = b"", None
        try:
            request = _decode(frame)
            check_request(request, self.limits)
        except (msgspec.MsgspecError, RecursionError, InvalidArgument, RequestTooLarge) as error:
            _finish(done, Refused(Refusal.INVALID, message=str(error)))
            return False
        if isinstance(request, AsUser):
            token, said, request = request.token, request.client, request.request
        if isinstance(request, AskStatus):
            done(SlowReply(lambda: reply_bytes(Status(self._status()))))
        elif isinstance(request, AskFigures):
            done(SlowReply(lambda: reply_bytes(Figures(tuple(self._figures())))))
        elif request.cluster != self._cluster:
            _finish(done, Refused(Refusal.WRONG_CLUSTER))
        elif why := self._replica.why_not_serving:
            _finish(done, Refused(Refusal.NOT_SERVING, self._replica.leader, why))
        else:
            arrival = self._clock()
            deadline = arrival + min(request.deadline, MAX_FRAME_DEADLINE_S)
            asked = _Asked(arrival, deadline, done, None, request, lane, said, in_loop)
            if self._replica.state.users.enabled:
                caller = self._users.frame(request, token)
                if isinstance(caller, Refused):
                    self._audit.refused(token, request, caller, self._source(asked))
                    _finish(done, caller)
                    return False
                asked = _Asked(arrival, deadline, done, caller, request, lane, said, in_loop)
            return bool(self._handlers[type(request)](request, asked))
        return False

    def _source(self, asked: _Asked) -> str:
        """From where it came, for the audit log."""
        return source_of(self._replica.state, asked.request, asked.lane, asked.said)

    def _write(self, request: Writes, asked: _Asked) -> None:
        commands = request.commands
        self.batch_sizes.observe(len(commands.writes))
        if too_new := self._too_new(commands):
            _finish(asked.done, Refused(Refusal.INVALID, message=too_new))
            return
        command = commands if asked.caller is None else ByUser(asked.caller, commands)
        users = self._replica.state.users

        span = None
        if request.traceparent and self._replica.is_leader:
            span = self._replica.spans.write(request.traceparent, asked.arrival)

        def outcome(result: tuple[Answer, ...] | Refused) -> None:
            if isinstance(result, Refused):
                if span is not None:
                    span.refused(f"{result.refusal.name} {result.message}".strip())
                _finish(asked.done, result)
                return
            if asked.caller is not None or self._replica.state.users is not users:
                self._audit.wrote(commands, result, asked.caller, self._source(asked))
            _finish(asked.done, Written(result, self._replica.term))

        data, session = encode(command), commands.session
        counter = self.load.writes
        counter.left -= len(commands.writes)
        if counter.left <= 0:
            self.load.wrote(session, commands.writes, len(data), asked.lane)
        self._propose(Proposal(data, asked.deadline, asked.arrival, outcome, session, command, span), asked.done)

    def _administer(self, request: Administer, asked: _Asked) -> None:
        if too_new := self._too_new(request.command):
            _finish(asked.done, Written((Failed(Reason.INVALID, message=too_new),)))
            return
        outcome = self._audit.of_change(request.command, asked.caller, self._source(asked), self._written(asked.done))
        self._propose_for(request.command, asked, outcome)

    def _open_session(self, request: Open, asked: _Asked) -> None:
        command = OpenSession(request.nonce, self._replica.timings.session_ttl, request.client)
        self._propose_for(command, asked, self._opened(asked.done, command.ttl))

    def _close_session(self, request: Close, asked: _Asked) -> None:
        self._propose_for(CloseSession(request.session), asked, self._written(asked.done))

    def _propose_for(
        self,
        command: OpenSession | CloseSession | Administration,
        asked: _Asked,
        outcome: Callable[[tuple[Answer, ...] | Refused], None],
    ) -> None:
        """Propose a command for its caller, if it names one."""
        data = encode(command if asked.caller is None else ByUser(asked.caller, command))
        self._propose(Proposal(data, asked.deadline, asked.arrival, outcome), asked.done)

    def _keep_session(self, request: KeepAlive, asked: _Asked) -> None:
        if asked.caller is not None:
            session = self._replica.state.sessions.get(request.session)
            if session is not None and session.user != asked.caller.user:
                _finish(asked.done, Written((Failed(Reason.SESSION_EXPIRED),)))
                return
        renewal = SessionRenewal(request.session, asked.deadline, asked.arrival, self._renewed(asked.done))
        self._enqueue_event(renewal, 0, asked.done)

    def _keep_leases(self, request: KeepLeases, asked: _Asked) -> None:
        done = self._kept(request, asked.done)
        renewal = LeaseRenewal(request.leases, asked.deadline, asked.arrival, done, request.session)
        self._enqueue_event(renewal, 8 * len(request.leases), asked.done)

    def _monitor_process(self, request: MonitorProcess, asked: _Asked) -> None:
        """On the loop's thread, as all that comes by lane. A user's process speaks for sessions of that user alone, so
        it cannot have those of another end with it."""
        monitored = False
        if asked.lane is not None and request.session:
            session = self._replica.state.sessions.get(request.session)
            if asked.caller is None or (session is not None and session.user == asked.caller.user):
                asked.lane.session = request.session
                monitored = self._monitor(asked.lane, request.session)
        _finish(asked.done, ProcessMonitored(monitored))

    def _ask_leases(self, request: AskLeases, asked: _Asked) -> None:
        question = LeasesAsked(request.leases, asked.deadline, self._leases(request, asked), request.most)
        self._enqueue_event(question, 8 * len(request.leases), asked.done)

    def _ask_clients(self, request: AskClients, asked: _Asked) -> None:
        def make() -> bytes:
            clients, more = clients_of(self._replica.state, request.after, CLIENTS_PER_ANSWER)
            return reply_bytes(ClientsListed(clients, more, self._replica.term))

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(asked.done, refused)
            else:
                asked.done(SlowReply(make))

        self._enqueue_event(ReadAsked(asked.deadline, allowed), 0, asked.done)

    def _ask_events(self, request: AskEvents, asked: _Asked) -> None:
        def make() -> bytes:
            events = tuple([each for each in self._replica.state.events if each[0] > request.after])
            return reply_bytes(EventsListed(events, self._replica.term))

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(asked.done, refused)
            else:
                asked.done(SlowReply(make))

        self._enqueue_event(ReadAsked(asked.deadline, allowed), 0, asked.done)

    def _ask_load(self, request: AskLoad, asked: _Asked) -> None:
        """What this member alone has seen: nobody else is asked."""

        def make() -> bytes:
            state = self._replica.state
            clients, prefixes = self.load.shown(min(request.most, LOAD_ROWS))
            shown = LoadShown(
                socket.gethostname(),
                tuple([ClientLoad(*who, client_of(state, who.session), load) for who, load in clients]),
                tuple([PrefixLoad(*each) for each in prefixes]),
                tuple(self._replica.slow.recent),
            )
            return reply_bytes(shown)

        asked.done(SlowReply(make))

    def _change_membership(self, request: ChangeMembership, asked: _Asked) -> None:
        outcome = self._audit.of_change(request, asked.caller, self._source(asked), self._written(asked.done))
        self._enqueue_event(MembershipChange(request.changes, asked.deadline, outcome, request.context), 0, asked.done)

    def _log_in(self, request: Login, asked: _Asked) -> None:
        """Users and passwords are looked at after the arrival, as a linearizable read would: so a password that was
        changed before is not good any more."""

        def make() -> bytes:
            reply = self._users.log_in(request)
            if isinstance(reply, Refused):
                self._audit.refused_login(request, reply, self._source(asked))
            return reply_bytes(reply)

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(asked.done, refused)
            else:
                asked.done(SlowReply(make))

        self._enqueue_event(ReadAsked(asked.deadline, allowed), 0, asked.done)

    def _hash_keys(self, request: HashKeys, asked: _Asked) -> None:
        self.operators.hash_keys(request.revision, asked.deadline, lambda reply: _finish(asked.done, reply))

    def _defragment(self, request: Defragment, asked: _Asked) -> None:
        self.operators.defragment(asked.deadline, lambda reply: _finish(asked.done, reply))

    def _begin_backup(self, request: BeginBackup, asked: _Asked) -> None:
        self.operators.begin_backup(request.created, asked.deadline, lambda reply: _finish(asked.done, reply))

    def _read_backup(self, request: ReadBackup, asked: _Asked) -> None:
        read = self.operators.read_backup
        asked.done(SlowReply(lambda: reply_bytes(read(request.snapshot, request.offset, request.size))))

    def _end_backup(self, request: EndBackup, asked: _Asked) -> None:
        asked.done(SlowReply(lambda: reply_bytes(self.operators.end_backup(request.snapshot))))

    def _await_compaction(self, request: AwaitCompaction, asked: _Asked) -> None:
        def removed(refused: Refused | None) -> None:
            _finish(asked.done, refused or Written((Done(self._replica.state.revision),), self._replica.term))

        self._enqueue_event(CompactionAwaited(request.revision, asked.deadline, removed), 0, asked.done)

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
            self._replica.slow.refused(event)
            _finish(done, Refused(Refusal.OVERLOADED, self._replica.leader, "the member's inbox is full"))

    def _read(self, request: Reads, asked: _Asked) -> None:
        """A linearizable read goes by way of the loop. A serializable one runs at once, unless this member has
        not reached a revision that the client has seen (``at_least``)."""
        read = self._asked_read(request, asked)
        if request.serializable and self._replica.state.revision >= read.at_least:
            read.done(None)
        else:
            self._enqueue_event(read, 0, asked.done)

    def _asked_read(self, request: Reads, asked: _Asked) -> ReadAsked:
        """A read for the loop: once it is allowed, single keys are read in the loop, and ranges on another thread."""

        def make() -> bytes:
            return self._run_reads(request, asked)

        done = asked.done
        quick = len(request.reads) <= LANE_QUICK_READS and all(read.range.keys.end is None for read in request.reads)

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(done, refused)
            else:
                done(make if quick else SlowReply(make))

        at_least = max((read.at_least for read in request.reads), default=0)
        return ReadAsked(asked.deadline, allowed, request.serializable, at_least)

    def _tell_term(self, request: AskTerm, asked: _Asked) -> bool:
        """On any thread: a term that is not on disk yet is only newer than it needs to be."""
        _finish(asked.done, CurrentTerm(self._replica.node.id, self._replica.term))
        return True

    def _read_alone(self, request: LoneRead, asked: _Asked) -> bool:
        """Answer a read of one key as its client can confirm it (:mod:`confirmed_read`): at once, if this is the loop
        and nothing else comes first, else in the next turn. The order matters only in that all comes after the
        arrival."""
        node = self._replica.node
        reads = Reads(request.cluster, request.deadline, False, (request.read,), request.traceparent)
        if request.read.range.keys.end is not None:
            self._read(reads, asked)
            return False

        def answer(term: int, voters: tuple[int, ...]) -> None:
            asked.done(lambda: self._run_reads(reads, asked, (term, voters)))

        up_to_date = asked.in_loop and self._replica.state.applied_index >= node.commit_index
        if up_to_date and (voters := node.confirming_voters()):
            answer(node.term, voters)
            return self._replica.state.damage is None  # which this read may have found
        self._enqueue_event(LoneReadAsked(self._asked_read(reads, asked), answer), 0, asked.done)
        return False

    def _watch(self, request: WatchPoll, asked: _Asked) -> None:
        """Answer a poll when there is something to deliver. A watch that starts now must miss nothing that was
        committed before the poll arrived, so the poll then waits for a linearizable read first."""
        watches, done = self._replica.watches, asked.done
        until = min(asked.deadline, asked.arrival + WATCH_POLL_S)

        def counted(reply: Watched | Refused) -> bytes:
            if isinstance(reply, Watched) and reply.batches:
                counter = self.load.events
                counter.left -= sum([len(batch.events) for batch in reply.batches])
                if counter.left <= 0:
                    self.load.watched(reply, asked.lane)
            return reply_bytes(reply)

        def answered(make: Callable[[], Watched | Refused]) -> None:
            if isinstance(make, ReadyReply):
                reply = make()
                done(lambda: counted(reply))
            else:
                done(SlowReply(lambda: counted(make())))

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                _finish(done, refused)
            else:
                watches.poll(request, until, answered, asked.caller, self._source(asked))

        if any(create.start_revision == 0 for create in request.create):
            self._enqueue_event(ReadAsked(asked.deadline, allowed), 0, done)
        else:
            allowed(None)

    def _leases(
        self, request: AskLeases, asked: _Asked
    ) -> Callable[[Callable[[], list[tuple[int, float, float]]] | Refused], None]:
        """The loop gives the leases' times; their keys are read from the state elsewhere, because there may be many."""

        done = asked.done

        def outcome(found: Callable[[], list[tuple[int, float, float]]] | Refused) -> None:
            if isinstance(found, Refused):
                _finish(done, found)
                return

            def make() -> bytes:
                state = self._replica.state
                keys = state.lease_keys if request.keys else lambda lease: []
                owner = partial(owner_of, state) if request.owners else lambda lease: None
                leases = tuple([LeaseStatus(*each, tuple(keys(each[0])), owner(each[0])) for each in found()])
                if (users := state.users).enabled:
                    for key in [key for lease in leases for key in lease.keys]:
                        if self._users.read(KeyRange(key), asked.caller, state, users) is not None:
                            refused = Refused(Refusal.DENIED, message="a lease has keys that the user may not read")
                            self._audit.refused_call(asked.caller, request, refused, self._source(asked))
                            return reply_bytes(refused)
                total = len(state.leases) if request.most else 0
                return reply_bytes(LeaseStatuses(leases, state.revision, self._replica.term, total))

            done(SlowReply(make))

        return outcome

    def _run_reads(
        self, request: Reads, asked: _Asked, confirmation: tuple[int, tuple[int, ...]] | None = None
    ) -> bytes:
        """Do as many reads as fit into one reply and into ``READ_FRAME_S``, at least one; the client sends the rest
        again.

        Args:
            confirmation: the term of this leader, and voters, if the client is to confirm the one read.
        """
        bytes_left = self.limits.max_page_bytes
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
        counter = self.load.reads
        counter.left -= len(answers)
        if counter.left <= 0:
            self.load.read(request.reads[: len(answers)], len(reply), asked.lane)
        waited, took = started - asked.arrival, monotonic() - began
        if waited + took >= SLOW_S or len(reply) >= BIG_ANSWER_BYTES:
            self._replica.slow.read(request.reads, waited, took, len(reply))
        if request.traceparent:
            self._replica.spans.read(request.traceparent, asked.arrival, waited, took)
        return reply

    def _range(self, request: Range, page_bytes: int, asked: _Asked) -> RangeAnswer | RangePart | Failed:
        """One page. If users or roles have changed while it was read, the right to it is looked up again: what was
        written after a right was taken is not shown to who had it."""
        items = self.limits.max_page_items
        while True:
            state = self._replica.state
            users = state.users
            if users.enabled and (refused := self._users.read(request.keys, asked.caller, state, users)) is not None:
                self._audit.refused_read(asked.caller, request.keys, refused, self._source(asked))
                return refused
            try:
                answer = state.range(request, page_items=items, page_bytes=page_bytes, max_scanned=READ_SCAN_KEYS)
                if state.users is users:
                    return answer
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


class _Asked(NamedTuple):
    """How a request arrived, and where its reply goes."""

    arrival: float
    """On the member's clock; so is the deadline."""
    deadline: float
    done: ReplyCallback
    caller: Caller | None
    """Who sent it; ``None`` while users are not needed."""
    request: BareRequest
    lane: Lane | None = None
    """The lane that it came on, if it came on one."""
    said: ClientIdentity | None = None
    """Which process sent it, as it says itself."""
    in_loop: bool = False
    """Whether it is handled on the loop's thread, between two turns."""


def _finish(done: ReplyCallback, reply: Reply) -> None:
    done(lambda: reply_bytes(reply))
