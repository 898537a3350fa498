"""The replicated state machine: what applying the log has made of the keys, leases, sessions and settings.

Every member applies the same entries and must come to the same state: ``apply`` uses nothing but the entries, the state
before, and the limits that stand in the state itself (``Configure`` changes them, at its place in the log). All effects
of the entries that are applied together, and the applied index, go to the disk in one write; so a crash leaves the
state at an entry boundary, and the log replays from there. It needs no fsync of its own, except before the log is cut.

One thread owns the state and writes; ``range`` and the plain numbers may be read on any thread. A reader holds the
database open: ``close`` waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import msgspec

from ..actors.raft.messages import Configuration, Entry, EntryKind
from ..errors import DataCorrupted
from ..limits import HASH_SLICE_RECORDS, Limits, Settings, decode_settings
from .alarms import Alarms
from .cluster_clock import ClusterClock
from .commands import (
    AlarmKind,
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
    Range,
    RangeAnswer,
    RangePart,
    Reason,
    RegisterMember,
    RenewLeases,
    RenewSessions,
    ReserveMember,
    RetireMember,
    SessionOpened,
    SetAlarm,
)
from .content import SETTLED_META, Content
from .engine import Disk, Engine
from .history import Changes, Wanted
from .leases import Lease, Leases
from .members import Members
from .mvcc import Mvcc, compaction_slice, next_pass
from .pending import Pending
from .readers import Readers
from .reading import read_as_of, read_changes
from .sessions import Session, Sessions
from .transactions import Executor

FAMILIES = ("keys", "versions", "revisions", "leases", "sessions", "meta")

FORMAT = 1
"""Version of what the families hold. Another one is refused."""

_FORMAT, _APPLIED, _CONFIGURATION, _SETTINGS, _COMPACTED = (
    b"format",
    b"applied",
    b"configuration",
    b"settings",
    b"compacted",
)
_LOST = b"lost"

_encode = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(Command).decode


class _Applied(msgspec.Struct, frozen=True, array_like=True):
    """Written with every batch."""

    index: int = 0
    term: int = 0
    revision: int = 1
    compact_revision: int = 0
    requests: int = 0
    request_bytes: int = 0


class UnknownCommand(DataCorrupted):
    """An entry of the log is no command of this version. The state is not damaged."""


class FormatUnknown(DataCorrupted):
    """The state was written by a version of RayKeeper that knows more than this one: it is not damaged."""


class State:
    """One member's state machine over its database.

    After an error in ``apply`` the object is of no use any more: its memory may be ahead of the disk. Close it and open
    the database anew; nothing of the failed call is there.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending = Pending(engine, FAMILIES)
        self._leases = Leases(self._pending)
        self._sessions = Sessions(self._pending)
        self.applied_index = 0
        self.applied_term = 0
        self.revision = 1
        """The newest revision; an empty store is at 1."""
        self.compact_revision = 0
        """Revisions below are gone."""
        self.configuration = Configuration()
        """The newest configuration that was applied."""
        self.settings = b""
        """Encoded settings (``limits.encode_settings``); empty for the defaults."""
        self.members = Members(self._pending)
        """What is known of the members besides their part in the configuration."""
        self.lost = ""
        """Why this is an empty state in the place of one that was damaged, from which too much is cut off the log:
        nothing is applied to it, and nothing read, until an image takes its place. Empty for an ordinary state."""
        self._inconsistent: DataCorrupted | None = None
        self._alarms = Alarms(self._pending)
        self.clock = ClusterClock(self._pending)
        """How long ago things happened."""
        self._load()
        self._mvcc = Mvcc(self._pending, self.revision)
        self._executor = Executor(self._pending, self._mvcc, self._leases, self._limits(), self.compact_revision)
        self._executor.read_only = self._alarms.no_space
        self._content: Content | None = None
        self._broken = False
        self._readers = Readers()

    @classmethod
    def create(
        cls, disk: Disk, path: str, configuration: Configuration, settings: bytes = b"", *, lost: str = ""
    ) -> State:
        """Make an empty state where there is none. For bootstrap and join, and in the place of one that is damaged.

        Args:
            configuration: the first one, before any entry of the log; the same on every member.
            settings: encoded; the same on every member.
            lost: why it can only wait for an image (see ``lost``).

        Raises:
            DataCorrupted: there is something.
        """
        engine = disk.open(path, FAMILIES, create=True)
        engine.write(
            [
                ("meta", _FORMAT, _encode(FORMAT)),
                ("meta", _APPLIED, _encode(_Applied())),
                ("meta", _CONFIGURATION, _encode(configuration)),
                ("meta", _SETTINGS, settings),
                ("meta", _LOST, lost.encode() or None),
            ]
        )
        engine.sync()
        return cls(engine)

    @classmethod
    def open(cls, disk: Disk, path: str) -> State:
        """Open an existing state.

        Raises:
            DataCorrupted: missing, damaged, or of a format that this version does not know.
        """
        engine = disk.open(path, FAMILIES)
        try:
            return cls(engine)
        except BaseException:
            engine.close()
            raise

    def _load(self) -> None:
        get = self._engine.get
        try:
            format = msgspec.msgpack.decode(get("meta", _FORMAT) or b"", type=int)
            if format != FORMAT:
                raise FormatUnknown(f"the state has format {format}; this version of RayKeeper knows {FORMAT}")
            applied = msgspec.msgpack.decode(get("meta", _APPLIED) or b"", type=_Applied)
            self.configuration = msgspec.msgpack.decode(get("meta", _CONFIGURATION) or b"", type=Configuration)
            self.settings = get("meta", _SETTINGS) or b""
            self.lost = (get("meta", _LOST) or b"").decode()
            self._limits()
            self.members.load(self._engine)
            self._alarms.load(self._engine)
            self.clock.load(self._engine)
        except (msgspec.MsgspecError, ValueError) as error:
            raise DataCorrupted(f"the state cannot be read: {error}") from error
        self.applied_index, self.applied_term = applied.index, applied.term
        self.revision, self.compact_revision = applied.revision, applied.compact_revision
        self._compaction_start = get("meta", _COMPACTED) or b""
        self._compacted_to = 0
        """The mark whose removals are complete, as far as this process knows."""
        self._leases.load(self._engine)
        self._sessions.load(self._engine)
        self._sessions.requests, self._sessions.request_bytes = applied.requests, applied.request_bytes

    def _decoded_settings(self) -> Settings:
        return decode_settings(self.settings) if self.settings else Settings()

    def _limits(self) -> Limits:
        return self._decoded_settings().limits

    def _horizon(self) -> float:
        """Seconds up to which it matters how old something is."""
        settings = self._decoded_settings()
        return max(settings.compaction.keep, settings.timings.request_ttl)

    # -- what is in it ------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> Mapping[int, Session]:
        """Sessions by id."""
        return self._sessions.by_id

    @property
    def leases(self) -> Mapping[int, Lease]:
        """Leases by id."""
        return self._leases.by_id

    @property
    def alarms(self) -> Mapping[tuple[int, AlarmKind], str]:
        """Alarms that are on, by member and kind: what was said of them. For any thread."""
        return self._alarms.on

    @property
    def limits(self) -> Limits:
        """The limits that commands are held to, on every member alike."""
        return self._executor.limits

    @property
    def remembered_requests(self) -> int:
        """Request ids whose answers are remembered."""
        return self._sessions.requests

    @property
    def oldest_request(self) -> int:
        """No request id is remembered that was applied before this log index."""
        return self._sessions.oldest_request

    @property
    def damage(self) -> DataCorrupted | None:
        """What any thread has found to be damaged in reading or writing. Such a state must not serve on."""
        return self._inconsistent or self._engine.damage

    def report_damage(self, error: DataCorrupted) -> None:
        """Somebody found that what is here does not fit together."""
        self._inconsistent = error

    # -- applying -----------------------------------------------------------------------------------------------------

    def apply(
        self, entries: Sequence[Entry], configurations: Mapping[int, Configuration] | None = None
    ) -> list[tuple[Answer, ...]]:
        """Apply committed entries, in one write.

        Args:
            entries: consecutive, the first one behind ``applied_index``.
            configurations: by index of a CONFIGURATION entry, the configuration that it has led to.

        Returns:
            for each entry its answers: one for each write of ``ClientWrites``, one for another command, none for a
            no-op or a configuration.

        Raises:
            UnknownCommand: an entry is no command of this version.
            DataCorrupted: the state is damaged.
        """
        if self._broken:
            raise DataCorrupted("an earlier apply failed: the state must be opened anew")
        if self.lost:
            raise ValueError("nothing can be applied to a state that was lost")
        if not entries:
            return []
        self._broken = True
        answers: list[tuple[Answer, ...]] = []
        index, term = self.applied_index, self.applied_term
        for entry in entries:
            if entry.index != index + 1 or entry.term < term:
                raise ValueError(f"entry {entry.index} of term {entry.term} cannot follow {index} of term {term}")
            index, term = entry.index, entry.term
            if entry.kind is EntryKind.CONFIGURATION:
                before, self.configuration = self.configuration, (configurations or {})[index]
                self._pending.set("meta", _CONFIGURATION, _encode(self.configuration))
                self.members.settle(before.members, self.configuration.members)
                self._alarms.settle(self.configuration.members)
                self._executor.read_only = self._alarms.no_space
                answers.append(())
            elif entry.data:
                answers.append(self._command(entry))
                if answers[-1] and type(answers[-1][0]) is ContentAsked:  # what follows must not be in the hash
                    self._write(index, term)
                    self._content = Content(self)
            else:
                answers.append(())
        self._write(index, term)
        self._broken = False
        return answers

    def _write(self, index: int, term: int) -> None:
        """Write what was applied up to this entry, in one batch."""
        executor, sessions = self._executor, self._sessions
        applied = _Applied(
            index,
            term,
            self._mvcc.revision,
            executor.compact_revision,
            sessions.requests,
            sessions.request_bytes,
        )
        self._pending.set("meta", _APPLIED, _encode(applied))
        self._pending.flush()
        self.applied_index, self.applied_term = index, term
        self.compact_revision = executor.compact_revision
        self.revision = self._mvcc.revision

    def take_content(self) -> Content | None:
        """The content as of the last ``HashContent`` that was applied since this was last called, if any was."""
        content, self._content = self._content, None
        return content

    def take_changed(self) -> list[bytes]:
        """The keys that ``apply`` has changed since this was last called; one may be named twice, or for nothing."""
        changed, self._mvcc.changed = self._mvcc.changed, []
        return changed

    def _command(self, entry: Entry) -> tuple[Answer, ...]:
        try:
            command = _decode_command(entry.data)
        except msgspec.MsgspecError as error:
            raise UnknownCommand(f"log entry {entry.index} is no command of this version: {error}") from error
        if isinstance(command, ClientWrites):
            executor = self._executor
            return tuple(
                self._sessions.write(command, entry.index, executor.run, lambda: executor.answer_bytes, executor.limits)
            )
        return (self._own_command(command, entry),)

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
            return ContentAsked(entry.index)
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
            for expiry in command.sessions:
                self._sessions.expire(expiry)
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

    def _expire_leases(self, command: ExpireLeases) -> None:
        """End leases until as many keys went as one command may delete; the leader proposes the rest again."""
        budget = self.limits.max_deleted_keys
        for expiry in command.leases:
            lease = self._leases.by_id.get(expiry.id)
            if lease is None or lease.heard != expiry.heard:
                continue
            if lease.keys > budget and budget < self.limits.max_deleted_keys:
                return
            budget -= lease.keys
            self._executor.end_lease(expiry.id)

    def _configure(self, command: Configure) -> Answer:
        try:
            limits = decode_settings(command.settings).limits
        except msgspec.MsgspecError as error:
            return Failed(Reason.INVALID, message=f"settings cannot be read: {error}")
        if command.based_on not in (None, self.settings) and command.settings != self.settings:
            return Failed(Reason.CHANGED, message="the settings were changed by somebody else meanwhile")
        self.settings = command.settings
        self._executor.limits = limits
        self._pending.set("meta", _SETTINGS, command.settings)
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

    # -- reading ------------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Engine]:
        """Hold the database open for a read, on any thread.

        Raises:
            Unavailable: it is closed, or about to be.
        """
        self._readers.enter()
        try:
            yield self._engine
        except DataCorrupted as error:
            self.report_damage(error)
            raise
        finally:
            self._readers.leave()

    def range(
        self, r: Range, *, page_items: int, page_bytes: int, max_scanned: int = 0
    ) -> RangeAnswer | RangePart | Failed:
        """Read a range at its revision, or at the newest applied one. For any thread, beside ``apply`` and compaction.

        Args:
            page_items, page_bytes: at most so much is answered, though at least one item.
            max_scanned: of a range with more keys than this (0: any number) only a part is answered.

        Raises:
            Unavailable: the state was closed: read again from the member's new one.
        """
        with self.reading() as engine:
            return read_as_of(engine, self, r, page_items=page_items, page_bytes=page_bytes, max_scanned=max_scanned)

    def history(self, wanted: Wanted, low: int, high: int, *, max_bytes: int, max_scanned: int) -> Changes | int:
        """The changes from revision ``low`` up to ``high`` (both included), for watches. For any thread.

        Args:
            max_bytes, max_scanned: where to stop (see ``read_history``); one revision always fits.

        Returns:
            the changes and how far they reach, or the compacted revision if ``low`` lies before it.

        Raises:
            Unavailable: the state was closed.
        """
        with self.reading() as engine:
            return read_changes(engine, self, wanted, low, high, max_bytes=max_bytes, max_scanned=max_scanned)

    def lease_keys(self, lease: int) -> list[bytes]:
        """The keys that are attached to a lease. For any thread."""
        with self.reading() as engine:
            return list(self._leases.attached(engine, lease))

    # -- housekeeping, by the owner -----------------------------------------------------------------------------------

    def compact_slice(self, keys: int) -> bool:
        """Remove for good what compaction has made unreachable, looking at no more than so many changes.

        Returns:
            whether there is more to do up to ``compact_revision``.
        """
        mark = self.compact_revision
        if self._compacted_to >= mark:
            return False
        writes, start, more = compaction_slice(self._engine, mark, self._compaction_start, keys)
        if not more:
            self._compacted_to = mark
            start = next_pass(start)
        if start != self._compaction_start:
            writes.append(("meta", _COMPACTED, start))
        if writes:
            self._engine.write(writes)
        self._compaction_start = start
        return more

    def sync(self) -> None:
        """Return once everything applied is on the disk. Before the log is cut (rules of the disk)."""
        self._engine.sync()

    def flush(self) -> None:
        """Move what is in memory into files: before a checkpoint, which then is short. Slow; for any thread."""
        with self.reading() as engine:
            engine.flush()

    def checkpoint(self, path: str) -> None:
        """Write a copy of the database, as of ``applied_index``, to a folder that does not exist yet."""
        self._engine.checkpoint(path)

    def begin_anew(self, configuration: Configuration, settings: bytes) -> None:
        """Make this, durably, the first state of another cluster; for what is kept see ``backup``.

        The object is of no use afterwards: close it.
        """
        put, engine = self._pending.set, self._engine
        put("meta", _CONFIGURATION, _encode(configuration))
        put("meta", _SETTINGS, settings)
        for prefix in SETTLED_META:
            for key, _ in engine.iterate("meta", prefix, prefix + b"\xff"):
                put("meta", key, None)
        for session in list(self.sessions):
            self._sessions.close(session)
        self._leases.refill(self.applied_index)
        self._broken = True
        self._pending.flush()
        engine.sync()

    def verify(self, breathe: Callable[[], None] = lambda: None) -> None:
        """Read everything, so that every checksum is looked at. For any thread.

        Args:
            breathe: called after each slice; may wait.

        Raises:
            DataCorrupted: something is damaged.
        """
        for family in FAMILIES:
            with self.reading() as engine:
                for number, _ in enumerate(engine.iterate(family)):
                    if number % HASH_SLICE_RECORDS == HASH_SLICE_RECORDS - 1:
                        breathe()

    def size(self) -> int:
        """Bytes that it takes on the disk (see ``Engine.size``). For any thread."""
        with self.reading() as engine:
            return engine.size()

    def reclaim(self, free: int) -> None:
        """Give the space of what was deleted and compacted back to the disk (see ``Engine.reclaim``). For any thread.

        It does not hold the database open: who closes it need not wait.
        """
        with suppress(RuntimeError):  # closed meanwhile
            self._engine.reclaim(free)

    def close(self) -> None:
        """Wait for the readers, and release the database."""
        if self._readers.close():
            self._engine.close()

    def content_hash(self) -> str:
        """A hash of all that the state means now (see ``content``). Reads everything; for the owner."""
        return Content(self).digest()
