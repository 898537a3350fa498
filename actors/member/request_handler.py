"""Turns requests from clients into events for the loop, and their outcomes into replies.

A frame is decoded and checked on the thread that received it, becomes one event in the loop's inbox, and is answered
through ``done``, which gets a function that makes the reply. Reads run in that function (:mod:`read_requests`), so that
they do not hold up the loop: a reply that may take a long time to make is a ``SlowReply``, which must be made on
another thread.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from ...errors import AuthFailed, InvalidArgument, PermissionDenied, RequestTooLarge
from ...limits import (
    CLIENTS_PER_ANSWER,
    LOAD_ROWS,
    MAX_FRAME_DEADLINE_S,
    WATCH_POLL_S,
    Limits,
)
from ...schema.answers import Answer, Done, Failed, Reason, SessionOpened
from ...schema.commands import (
    Administration,
    ByUser,
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
    Close,
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
    Reads,
    Refusal,
    Refused,
    Request,
    Watched,
    WatchPoll,
    Writes,
    Written,
)
from ...schema.key_range import KeyRange
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
from ...schema.replies import SlowReply, reply_bytes
from ...telemetry import COUNT_BUCKETS, Family, Histogram
from ..transport.lane_server import Lane
from .asked_request import AskedRequest, ReplyCallback, finish
from .client_list import client_of, clients_of, may_be_of, owner_of
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
from .load_meter import LoadMeter
from .member_audit import Audit
from .operator_requests import OperatorRequests
from .read_requests import ReadRequests
from .replica import Replica
from .request_source import source_of
from .user_check import UserCheck
from .watches import ReadyReply

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
        self.reads = reads = ReadRequests(replica, self._enqueue_event, clock, self.load, self._users, self._audit)
        self._handlers: dict[type[Request], Callable[[Any, AskedRequest], bool | None]] = {
            Writes: self._write,
            Reads: reads.read,
            LoneRead: reads.read_alone,
            AskTerm: reads.tell_term,
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
            finish(done, Refused(Refusal.INVALID, message=str(error)))
            return False
        if isinstance(request, AsUser):
            token, said, request = request.token, request.client, request.request
        if isinstance(request, AskStatus):
            done(SlowReply(lambda: reply_bytes(Status(self._status()))))
        elif isinstance(request, AskFigures):
            done(SlowReply(lambda: reply_bytes(Figures(tuple(self._figures())))))
        elif request.cluster != self._cluster:
            finish(done, Refused(Refusal.WRONG_CLUSTER))
        elif why := self._replica.why_not_serving:
            finish(done, Refused(Refusal.NOT_SERVING, self._replica.leader, why))
        else:
            arrival = self._clock()
            deadline = arrival + min(request.deadline, MAX_FRAME_DEADLINE_S)
            asked = AskedRequest(arrival, deadline, done, None, request, lane, said, in_loop)
            if self._replica.state.users.enabled:
                caller = self._users.frame(request, token)
                if isinstance(caller, Refused):
                    self._audit.refused(token, request, caller, self._source(asked))
                    finish(done, caller)
                    return False
                asked = AskedRequest(arrival, deadline, done, caller, request, lane, said, in_loop)
            return bool(self._handlers[type(request)](request, asked))
        return False

    def _source(self, asked: AskedRequest) -> str:
        """From where it came, for the audit log."""
        return source_of(self._replica.state, asked.request, asked.lane, asked.said)

    def _write(self, request: Writes, asked: AskedRequest) -> None:
        commands = request.commands
        self.batch_sizes.observe(len(commands.writes))
        if too_new := self._too_new(commands):
            finish(asked.done, Refused(Refusal.INVALID, message=too_new))
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
                finish(asked.done, result)
                return
            if asked.caller is not None or self._replica.state.users is not users:
                self._audit.wrote(commands, result, asked.caller, self._source(asked))
            finish(asked.done, Written(result, self._replica.term))

        data, session = encode(command), commands.session
        counter = self.load.writes
        counter.left -= len(commands.writes)
        if counter.left <= 0:
            self.load.wrote(session, commands.writes, len(data), asked.lane)
        self._propose(Proposal(data, asked.deadline, asked.arrival, outcome, session, command, span), asked.done)

    def _administer(self, request: Administer, asked: AskedRequest) -> None:
        if too_new := self._too_new(request.command):
            finish(asked.done, Written((Failed(Reason.INVALID, message=too_new),)))
            return
        outcome = self._audit.of_change(request.command, asked.caller, self._source(asked), self._written(asked.done))
        self._propose_for(request.command, asked, outcome)

    def _open_session(self, request: Open, asked: AskedRequest) -> None:
        command = OpenSession(request.nonce, self._replica.timings.session_ttl, request.client)
        self._propose_for(command, asked, self._opened(asked.done, command.ttl))

    def _close_session(self, request: Close, asked: AskedRequest) -> None:
        self._propose_for(CloseSession(request.session), asked, self._written(asked.done))

    def _propose_for(
        self,
        command: OpenSession | CloseSession | Administration,
        asked: AskedRequest,
        outcome: Callable[[tuple[Answer, ...] | Refused], None],
    ) -> None:
        """Propose a command for its caller, if it names one."""
        data = encode(command if asked.caller is None else ByUser(asked.caller, command))
        self._propose(Proposal(data, asked.deadline, asked.arrival, outcome), asked.done)

    def _keep_session(self, request: KeepAlive, asked: AskedRequest) -> None:
        if asked.caller is not None:
            session = self._replica.state.sessions.get(request.session)
            if session is not None and session.user != asked.caller.user:
                finish(asked.done, Written((Failed(Reason.SESSION_EXPIRED),)))
                return
        renewal = SessionRenewal(request.session, asked.deadline, asked.arrival, self._renewed(asked.done))
        self._enqueue_event(renewal, 0, asked.done)

    def _keep_leases(self, request: KeepLeases, asked: AskedRequest) -> None:
        done = self._kept(request, asked.done)
        renewal = LeaseRenewal(request.leases, asked.deadline, asked.arrival, done, request.session)
        self._enqueue_event(renewal, 8 * len(request.leases), asked.done)

    def _monitor_process(self, request: MonitorProcess, asked: AskedRequest) -> None:
        """On the loop's thread, as all that comes by lane. A user's process speaks for sessions of that user alone, so
        it cannot have those of another end with it."""
        monitored = False
        if asked.lane is not None and request.session:
            session = self._replica.state.sessions.get(request.session)
            if asked.caller is None or (session is not None and session.user == asked.caller.user):
                asked.lane.session = request.session
                monitored = self._monitor(asked.lane, request.session)
        finish(asked.done, ProcessMonitored(monitored))

    def _ask_leases(self, request: AskLeases, asked: AskedRequest) -> None:
        question = LeasesAsked(request.leases, asked.deadline, self._leases(request, asked), request.most)
        self._enqueue_event(question, 8 * len(request.leases), asked.done)

    def _ask_clients(self, request: AskClients, asked: AskedRequest) -> None:
        def make() -> bytes:
            clients, more = clients_of(self._replica.state, request.after, CLIENTS_PER_ANSWER)
            return reply_bytes(ClientsListed(clients, more, self._replica.term))

        self._enqueue_event(ReadAsked(asked.deadline, asked.once_allowed(make)), 0, asked.done)

    def _ask_events(self, request: AskEvents, asked: AskedRequest) -> None:
        def make() -> bytes:
            events = tuple([each for each in self._replica.state.events if each[0] > request.after])
            return reply_bytes(EventsListed(events, self._replica.term))

        self._enqueue_event(ReadAsked(asked.deadline, asked.once_allowed(make)), 0, asked.done)

    def _ask_load(self, request: AskLoad, asked: AskedRequest) -> None:
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

    def _change_membership(self, request: ChangeMembership, asked: AskedRequest) -> None:
        outcome = self._audit.of_change(request, asked.caller, self._source(asked), self._written(asked.done))
        self._enqueue_event(MembershipChange(request.changes, asked.deadline, outcome, request.context), 0, asked.done)

    def _log_in(self, request: Login, asked: AskedRequest) -> None:
        """Users and passwords are looked at after the arrival, as a linearizable read would: so a password that was
        changed before is not good any more."""

        def make() -> bytes:
            reply = self._users.log_in(request)
            if isinstance(reply, Refused):
                self._audit.refused_login(request, reply, self._source(asked))
            return reply_bytes(reply)

        self._enqueue_event(ReadAsked(asked.deadline, asked.once_allowed(make)), 0, asked.done)

    def _hash_keys(self, request: HashKeys, asked: AskedRequest) -> None:
        self.operators.hash_keys(request.revision, asked.deadline, lambda reply: finish(asked.done, reply))

    def _defragment(self, request: Defragment, asked: AskedRequest) -> None:
        self.operators.defragment(asked.deadline, lambda reply: finish(asked.done, reply))

    def _begin_backup(self, request: BeginBackup, asked: AskedRequest) -> None:
        self.operators.begin_backup(request.created, asked.deadline, lambda reply: finish(asked.done, reply))

    def _read_backup(self, request: ReadBackup, asked: AskedRequest) -> None:
        read = self.operators.read_backup
        asked.done(SlowReply(lambda: reply_bytes(read(request.snapshot, request.offset, request.size))))

    def _end_backup(self, request: EndBackup, asked: AskedRequest) -> None:
        asked.done(SlowReply(lambda: reply_bytes(self.operators.end_backup(request.snapshot))))

    def _await_compaction(self, request: AwaitCompaction, asked: AskedRequest) -> None:
        def removed(refused: Refused | None) -> None:
            finish(asked.done, refused or Written((Done(self._replica.state.revision),), self._replica.term))

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
            finish(done, Refused(Refusal.NOT_LEADER, self._replica.leader))
            return
        self._enqueue_event(proposal, len(proposal.data), done)

    def _enqueue_event(self, event: InboxEvent, size: int, done: ReplyCallback) -> None:
        if not self._enqueue(event, size):
            self._replica.slow.refused(event)
            finish(done, Refused(Refusal.OVERLOADED, self._replica.leader, "the member's inbox is full"))

    def _watch(self, request: WatchPoll, asked: AskedRequest) -> None:
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
                finish(done, refused)
            else:
                watches.poll(request, until, answered, asked.caller, self._source(asked))

        if any(create.start_revision == 0 for create in request.create):
            self._enqueue_event(ReadAsked(asked.deadline, allowed), 0, done)
        else:
            allowed(None)

    def _leases(
        self, request: AskLeases, asked: AskedRequest
    ) -> Callable[[Callable[[], list[tuple[int, float, float]]] | Refused], None]:
        """The loop gives the leases' times; their keys are read from the state elsewhere, because there may be many."""

        done = asked.done

        def outcome(found: Callable[[], list[tuple[int, float, float]]] | Refused) -> None:
            if isinstance(found, Refused):
                finish(done, found)
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

    def _renewed(self, done: ReplyCallback) -> Callable[[bool | Refused], None]:
        def outcome(result: bool | Refused) -> None:
            if isinstance(result, Refused):
                finish(done, result)
            elif result:
                finish(done, Written((Done(self._replica.state.revision),), self._replica.term))
            else:
                finish(done, Written((Failed(Reason.SESSION_EXPIRED),)))

        return outcome

    # -- outcomes of events ------------------------------------------------------------------------------------------

    def _written(self, done: ReplyCallback) -> Callable[[tuple[Answer, ...] | Refused], None]:
        def outcome(result: tuple[Answer, ...] | Refused) -> None:
            finish(done, result if isinstance(result, Refused) else Written(result, self._replica.term))

        return outcome

    def _kept(self, request: KeepLeases, done: ReplyCallback) -> Callable[[tuple[Kept, ...] | Refused], None]:
        def outcome(result: tuple[Kept, ...] | Refused) -> None:
            if isinstance(result, Refused):
                finish(done, result)
                return
            state = self._replica.state
            ttls: tuple[float, ...] = ()
            if request.with_ttls:
                found = map(state.leases.get, request.leases)
                ttls = tuple([0.0 if lease is None else lease.ttl for lease in found])
            finish(done, LeasesKept(result, state.revision, self._replica.term, ttls))

        return outcome

    def _opened(self, done: ReplyCallback, ttl: float) -> Callable[[tuple[Answer, ...] | Refused], None]:
        def outcome(result: tuple[Answer, ...] | Refused) -> None:
            if isinstance(result, tuple) and isinstance(result[0], SessionOpened):
                finish(done, Opened(result[0].session, ttl))
            elif isinstance(result, tuple):
                finish(done, Written(result, self._replica.term))
            else:
                finish(done, result)

        return outcome
