"""What is applied beside the writes of clients: commands of leaders and administrators, those that open and close
sessions, and configurations.

A command that a leader proposes in that role (expiries, renewals) is void in any other term. The work of each command
is bounded; the leader proposes the rest again.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NoReturn

import msgspec

from ...limits import MAX_FORGOTTEN_ANSWERS, decode_settings
from ...raft.messages import Configuration, Entry
from ...schema.answers import Answer, ContentAsked, Done, Failed, MemberReserved, Reason, SessionOpened
from ...schema.commands import (
    ByUser,
    CheckpointLeases,
    ClientWrites,
    CloseSession,
    Command,
    CompactHistory,
    Configure,
    EndDeadSessions,
    ExpireLeases,
    ExpireSessions,
    ForgetRequests,
    HashContent,
    OpenSession,
    PassTime,
    RecordEvents,
    RegisterMember,
    RenewLeases,
    RenewSessions,
    ReserveMember,
    RetireMember,
    SetAlarm,
)
from .stored_state import CONFIGURATION, SETTINGS, StoredState, encode


class InternalCommands(StoredState):
    """The layer of the state machine that applies them."""

    def _horizon(self) -> float:
        """The greatest age, in seconds, that any setting asks about."""
        settings = self._decoded_settings()
        return max(settings.compaction.keep, settings.timings.request_ttl)

    def _apply_configuration(self, configuration: Configuration) -> None:
        """A configuration takes effect: members and alarms follow it."""
        before, self.configuration = self.configuration, configuration
        self._batch.set("meta", CONFIGURATION, encode(configuration))
        self.members.on_configuration(before.members, configuration.members)
        self._alarms.on_configuration(configuration.members)
        self._executor.read_only = self._alarms.no_space

    def _run_internal(self, command: Command, entry: Entry) -> Generator[None, None, Answer]:
        """Apply a command that is not a client's write; yields after each slice of work. Those below the check of the
        term are a leader's: another leader may have acted on newer knowledge since, so they are void in any term but
        their own."""
        done = Done(self._mvcc.revision)
        if isinstance(command, OpenSession):
            user = "" if self._executor.rights is None else self._executor.rights.user
            session = self._sessions.open(entry.index, command.nonce, command.ttl, self.limits, user, command.client)
            return Failed(Reason.FULL) if session is None else SessionOpened(session)
        if isinstance(command, CloseSession):
            return self._close_session(command)
        if isinstance(command, PassTime):
            passed = self.clock.pass_time(command, entry.index, self._horizon())
            return done if passed else Failed(Reason.CHANGED, message="void: the clock has moved on in the meantime")
        if isinstance(command, ForgetRequests):
            self._sessions.forget_requests(min(max(0, command.index), entry.index), self._most_forgotten())
            return done
        if isinstance(command, Configure):
            return self._configure(command)
        if isinstance(command, (RegisterMember, ReserveMember, RetireMember)):
            return self._member_command(command)
        if isinstance(command, SetAlarm):
            return self._set_alarm(command)
        if isinstance(command, RecordEvents):
            self._events.record(command)
            return done
        if isinstance(command, HashContent):
            return ContentAsked(entry.index, command.routine)
        if isinstance(command, EndDeadSessions):
            return (yield from self._end_dead_sessions(command))
        if isinstance(command, CompactHistory):
            executor = self._executor
            if executor.compact_revision < command.revision <= self._mvcc.revision:
                executor.compact_revision = command.revision
            return done
        if isinstance(command, (ClientWrites, ByUser)):
            raise AssertionError("the machine handles these")
        if command.term != entry.term:
            return Failed(Reason.INVALID, entry.term, "void: proposed in another term")
        if isinstance(command, ExpireSessions):
            self._expire_sessions(command)
        elif isinstance(command, ExpireLeases):
            yield from self._expire_leases(command)
        elif isinstance(command, CheckpointLeases):
            for deadline in command.leases:
                self._leases.checkpoint(deadline.id, deadline.seconds)
        elif isinstance(command, RenewLeases):
            for lease in command.leases:
                self._leases.renew(lease, entry.index, command.by)
        elif isinstance(command, RenewSessions):
            for session in command.sessions:
                self._sessions.renew(session, entry.index)
        else:
            _without_a_branch(command)
        return Done(self._mvcc.revision)

    def _close_session(self, command: CloseSession) -> Answer:
        rights, session = self._executor.rights, self.sessions.get(command.session)
        if session is None or (rights is not None and session.user != rights.user):
            return Failed(Reason.SESSION_EXPIRED)
        self._sessions.close(command.session)
        return Done(self._mvcc.revision)

    def _expire_sessions(self, command: ExpireSessions) -> None:
        """Expire sessions, until as many answers are dropped as one command may forget. The leader proposes the rest
        again."""
        most = budget = self._most_forgotten()
        for expiry in command.sessions:
            session = self._sessions.by_id.get(expiry.id)
            if session is None or session.heard != expiry.heard:
                continue
            answers = len(session.batches)
            if answers > budget < most:
                return
            budget -= answers
            self._sessions.close(expiry.id)

    def _most_forgotten(self) -> int:
        """Answers and request ids that one command forgets: it does so in one turn."""
        return min(self.limits.max_deleted_keys, MAX_FORGOTTEN_ANSWERS)

    def _expire_leases(self, command: ExpireLeases) -> Generator[None, None, None]:
        """Expire leases, until as many keys are deleted as one command may delete. The leader proposes the rest
        again."""
        budget = self.limits.max_deleted_keys
        for expiry in command.leases:
            lease = self._leases.by_id.get(expiry.id)
            if lease is None or lease.heard != expiry.heard:
                continue
            if lease.keys > budget < self.limits.max_deleted_keys:
                return
            budget -= lease.keys
            yield from self._executor.end_lease(expiry.id)

    def _end_dead_sessions(self, command: EndDeadSessions) -> Generator[None, None, Answer]:
        """End sessions whose processes are dead, and the leases that each owns, until as much is deleted as one command
        may delete. The session goes first: what its process has sent and is still on its way has no effect then, so no
        lease comes after this.

        A lease that another session has used since it was granted is owned by nobody, so it is not among these: who
        uses a lease is in the log, before this entry or after it."""
        answers = forgotten = self._most_forgotten()
        budget = most = self.limits.max_deleted_keys
        rest = Failed(Reason.CHANGED, message="not all yet: ask again")
        for id in command.sessions:
            session = self._sessions.by_id.get(id)
            if session is not None:
                count = len(session.batches)
                if count > answers < forgotten:
                    return rest
                answers -= count
                self._sessions.close(id)
            for lease in self._leases.owned_by(id):
                keys = self._leases.by_id[lease].keys + 1
                if keys > budget < most:
                    return rest
                budget -= keys
                yield from self._executor.end_lease(lease)
        return Done(self._mvcc.revision)

    def _configure(self, command: Configure) -> Answer:
        try:
            limits = decode_settings(command.settings).limits
        except (msgspec.MsgspecError, RecursionError):
            return Failed(Reason.INVALID, message="settings cannot be read")
        if command.based_on not in (None, self.settings) and command.settings != self.settings:
            return Failed(Reason.CHANGED, message="the settings have been changed in the meantime")
        self.settings = command.settings
        self._executor.limits = limits
        self._batch.set("meta", SETTINGS, command.settings)
        return Done(self._mvcc.revision)

    def _member_command(self, command: RegisterMember | ReserveMember | RetireMember) -> Answer:
        members = self.configuration.members
        if isinstance(command, ReserveMember):
            member = self.members.reserve(command, members)
            return MemberReserved(member) if member else Failed(Reason.FULL, message="too many members are reserved")
        if isinstance(command, RegisterMember):
            if self.members.register(command, members):
                return Done(self._mvcc.revision)
            return Failed(Reason.INVALID, message=f"m{command.member} is not a member of the cluster")
        if self.members.retire(command.member, members):
            return Done(self._mvcc.revision)
        return Failed(Reason.INVALID, message=f"m{command.member} is still in the configuration, or was never a member")

    def _set_alarm(self, command: SetAlarm) -> Answer:
        if not self._alarms.set(command, self.configuration.members):
            return Failed(Reason.INVALID, message=f"{command.member} is not a member of the cluster")
        self._executor.read_only = self._alarms.no_space
        return Done(self._mvcc.revision)


def _without_a_branch(command: NoReturn) -> NoReturn:
    """mypy accepts a call of this only where every kind of command has had its branch."""
    raise AssertionError(f"{command!r} has no branch")
