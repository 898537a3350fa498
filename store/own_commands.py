"""Commands that are not a client's writes: what leaders propose by themselves, what administrators ask for, and the
beginning and end of sessions.

Those that a leader proposes as such (what runs out, what was heard of) are void in another term than its own. Each ends
within a bound of work; what is left the leader proposes again.
"""

from __future__ import annotations

import msgspec

from ..actors.raft.messages import Configuration, Entry
from ..limits import Limits, Settings, decode_settings
from .alarms import Alarms
from .cluster_clock import ClusterClock
from .commands import (
    Answer,
    CheckpointLeases,
    ClientWrites,
    CloseSession,
    Command,
    CompactHistory,
    Configure,
    ContentAsked,
    Done,
    ExpireLeases,
    ExpireSessions,
    Failed,
    ForgetRequests,
    HashContent,
    MemberReserved,
    OpenSession,
    PassTime,
    Reason,
    RegisterMember,
    RenewLeases,
    RenewSessions,
    ReserveMember,
    RetireMember,
    SessionOpened,
    SetAlarm,
)
from .leases import Leases
from .members import Members
from .mvcc import Mvcc
from .pending import Pending
from .sessions import Sessions
from .transactions import Executor

SETTINGS = b"settings"
"""Their key in ``meta``."""


class OwnCommands:
    """The part of the state machine that does them."""

    _pending: Pending
    _mvcc: Mvcc
    _executor: Executor
    _leases: Leases
    _sessions: Sessions
    _alarms: Alarms
    members: Members
    """What is known of the members besides their part in the configuration."""
    clock: ClusterClock
    """How long ago things happened."""
    configuration: Configuration
    """The newest configuration that was applied."""
    settings: bytes
    """Encoded settings (``limits.encode_settings``); empty for the defaults."""

    @property
    def limits(self) -> Limits:
        """The limits that commands are held to, on every member alike."""
        return self._executor.limits

    def _decoded_settings(self) -> Settings:
        return decode_settings(self.settings) if self.settings else Settings()

    def _limits(self) -> Limits:
        return self._decoded_settings().limits

    def _horizon(self) -> float:
        """Seconds up to which it matters how old something is."""
        settings = self._decoded_settings()
        return max(settings.compaction.keep, settings.timings.request_ttl)

    def _own_command(self, command: Command, entry: Entry) -> Answer:
        """A command that a member proposed, not a client's write."""
        done = Done(self._mvcc.revision)
        if isinstance(command, OpenSession):
            session = self._sessions.open(entry.index, command.nonce, command.ttl, self.limits)
            return Failed(Reason.FULL) if session is None else SessionOpened(session)
        if isinstance(command, CloseSession):
            return done if self._sessions.close(command.session) else Failed(Reason.SESSION_EXPIRED)
        if isinstance(command, PassTime):
            went_on = self.clock.pass_time(command, entry.index, self._horizon())
            return done if went_on else Failed(Reason.CHANGED, message="void: the clock has gone on meanwhile")
        if isinstance(command, ForgetRequests):
            self._sessions.forget_requests(min(max(0, command.index), entry.index), self.limits.max_deleted_keys)
            return done
        if isinstance(command, Configure):
            return self._configure(command)
        if isinstance(command, (RegisterMember, ReserveMember, RetireMember)):
            return self._member_command(command)
        if isinstance(command, SetAlarm):
            return self._set_alarm(command)
        if isinstance(command, HashContent):
            return ContentAsked(entry.index, command.routine)
        if isinstance(command, CompactHistory):
            executor = self._executor
            if executor.compact_revision < command.revision <= self._mvcc.revision:
                executor.compact_revision = command.revision
            return done
        if isinstance(command, ClientWrites):
            raise AssertionError("handled before")
        if command.term != entry.term:
            return Failed(Reason.INVALID, entry.term, "void: proposed in another term")
        if isinstance(command, ExpireSessions):
            self._expire_sessions(command)
        elif isinstance(command, ExpireLeases):
            self._expire_leases(command)
        elif isinstance(command, CheckpointLeases):
            for deadline in command.leases:
                self._leases.checkpoint(deadline.id, deadline.seconds)
        elif isinstance(command, RenewLeases):
            for lease in command.leases:
                self._leases.renew(lease, entry.index)
        elif isinstance(command, RenewSessions):
            for session in command.sessions:
                self._sessions.renew(session, entry.index)
        return Done(self._mvcc.revision)

    def _expire_sessions(self, command: ExpireSessions) -> None:
        """End sessions until as many answers are forgotten as one command may delete keys; the leader proposes the rest
        again."""
        budget = self.limits.max_deleted_keys
        for expiry in command.sessions:
            session = self._sessions.by_id.get(expiry.id)
            if session is None or session.heard != expiry.heard:
                continue
            answers = len(session.batches)
            if answers > budget < self.limits.max_deleted_keys:
                return
            budget -= answers
            self._sessions.close(expiry.id)

    def _expire_leases(self, command: ExpireLeases) -> None:
        """End leases until as many keys went as one command may delete; the leader proposes the rest again."""
        budget = self.limits.max_deleted_keys
        for expiry in command.leases:
            lease = self._leases.by_id.get(expiry.id)
            if lease is None or lease.heard != expiry.heard:
                continue
            if lease.keys > budget < self.limits.max_deleted_keys:
                return
            budget -= lease.keys
            self._executor.end_lease(expiry.id)

    def _configure(self, command: Configure) -> Answer:
        try:
            limits = decode_settings(command.settings).limits
        except (msgspec.MsgspecError, RecursionError):
            return Failed(Reason.INVALID, message="settings cannot be read")
        if command.based_on not in (None, self.settings) and command.settings != self.settings:
            return Failed(Reason.CHANGED, message="the settings were changed by somebody else meanwhile")
        self.settings = command.settings
        self._executor.limits = limits
        self._pending.set("meta", SETTINGS, command.settings)
        return Done(self._mvcc.revision)

    def _member_command(self, command: RegisterMember | ReserveMember | RetireMember) -> Answer:
        members = self.configuration.members
        if isinstance(command, ReserveMember):
            member = self.members.reserve(command, members)
            return MemberReserved(member) if member else Failed(Reason.FULL, message="too many members are reserved")
        if isinstance(command, RegisterMember):
            if self.members.register(command, members):
                return Done(self._mvcc.revision)
            return Failed(Reason.INVALID, message=f"m{command.member} is no member of the cluster")
        if self.members.retire(command.member, members):
            return Done(self._mvcc.revision)
        return Failed(Reason.INVALID, message=f"m{command.member} still takes part, or never was a member")

    def _set_alarm(self, command: SetAlarm) -> Answer:
        if not self._alarms.set(command, self.configuration.members):
            return Failed(Reason.INVALID, message=f"{command.member} is no member of the cluster")
        self._executor.read_only = self._alarms.no_space
        return Done(self._mvcc.revision)
