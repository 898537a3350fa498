"""The replicated state machine: what applying the log has made of the keys, leases, sessions and settings.

Every member applies the same entries and must come to the same state: ``apply`` uses nothing but the entries, the state
before, and the limits that stand in the state itself (``Configure`` changes them, at its place in the log). All effects
of the entries that are applied together, and the applied index, go to the disk in one write; so a crash leaves the
state at an entry boundary, and the log replays from there. It needs no fsync of its own, except before the log is cut.

Applying is total: whatever stands in an entry, it is answered, alike on every member. What is no command, or one that
cannot be, has no effect. Only the disk can fail, and a member that is older than a command: that one stops.

One thread owns the state and writes; ``range`` and the plain numbers may be read on any thread. A reader holds the
database open: ``close`` waits for it.
"""

from __future__ import annotations

import struct
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import msgspec

from ..actors.raft.messages import Configuration, Entry, EntryKind
from ..errors import DataCorrupted
from ..limits import APPLY_WORK, HASH_SLICE_RECORDS
from .alarms import Alarms
from .cluster_clock import ClusterClock
from .commands import (
    AlarmKind,
    Answer,
    ClientWrites,
    Command,
    CommandUnknown,
    ContentAsked,
    Failed,
    Range,
    RangeAnswer,
    RangePart,
    Reason,
    decode_newer,
)
from .content import SETTLED_META, Content
from .engine import Disk, Engine
from .history import Changes, Wanted
from .leases import Lease, Leases
from .members import Members
from .mvcc import Mvcc, compaction_slice, next_pass
from .own_commands import SETTINGS, OwnCommands
from .pending import Pending
from .ranges import Vanished
from .readers import Readers
from .reading import read_as_of, read_changes
from .sessions import Session, Sessions
from .transactions import Executor, nests_too_deep

FAMILIES = ("keys", "versions", "revisions", "leases", "sessions", "meta")

FORMAT = 2
"""Version of what the families hold. Another one is refused."""

_FORMAT, _APPLIED, _CONFIGURATION, _COMPACTED = b"format", b"applied", b"configuration", b"compacted"
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


_POISON = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError)
"""Errors of computing with what a command says. The disk's are others (``Engine``)."""


class FormatUnknown(DataCorrupted):
    """The state was written by a version of RayKeeper that knows more than this one: it is not damaged."""


class _Begun:
    """Entries that are being applied: how far, and nothing of it is written."""

    __slots__ = ("answers", "index", "running", "term")

    def __init__(self, index: int, term: int) -> None:
        self.index = index
        self.term = term
        self.answers: list[tuple[Answer, ...]] = []
        self.running: Generator[None, None, tuple[Answer, ...]] | None = None
        """The command of the entry behind ``index``, in the middle of its work."""


class State(OwnCommands):
    """One member's state machine over its database.

    After an error in ``apply`` the object is of no use any more: its memory may be ahead of the disk. Close it and open
    the database anew; nothing of the failed call is there.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending = Pending(engine, FAMILIES)
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
        self.lost = ""
        """Why this is an empty state in the place of one that was damaged, from which too much is cut off the log:
        nothing is applied to it, and nothing read, until an image takes its place. Empty for an ordinary state."""
        self._inconsistent: DataCorrupted | None = None
        self._content: Content | None = None
        self._changed: list[bytes] = []
        self._begun: _Begun | None = None
        self._suspects: set[int] = set()
        """Log indexes of commands that have led to an error once: each is applied in a write of its own..."""
        self._poison: set[int] = set()
        """... and has no answer but ``Failed`` if it does so again."""
        self._writing = False
        self._applying = 0
        """Log index of the command that is being applied."""
        self._broken = False
        self._readers = Readers()
        self._load()

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
                ("meta", SETTINGS, settings),
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
        """Read what memory holds of the database."""
        self._leases, self._sessions = Leases(self._pending), Sessions(self._pending)
        self.members, self._alarms = Members(self._pending), Alarms(self._pending)
        self.clock = ClusterClock(self._pending)
        get = self._engine.get
        try:
            format = msgspec.msgpack.decode(get("meta", _FORMAT) or b"", type=int)
            if format != FORMAT:
                raise FormatUnknown(f"the state has format {format}; this version of RayKeeper knows {FORMAT}")
            applied = msgspec.msgpack.decode(get("meta", _APPLIED) or b"", type=_Applied)
            self.configuration = msgspec.msgpack.decode(get("meta", _CONFIGURATION) or b"", type=Configuration)
            self.settings = get("meta", SETTINGS) or b""
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
        self._compacting = 0
        """The mark of this process's last pass, 0 if there was none."""
        self._leases.load(self._engine)
        self._sessions.load(self._engine)
        self._sessions.requests, self._sessions.request_bytes = applied.requests, applied.request_bytes
        self._mvcc = Mvcc(self._pending, self.revision)
        self._executor = Executor(self._pending, self._mvcc, self._leases, self._limits(), self.compact_revision)
        self._executor.read_only = self._alarms.no_space

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
        """Apply committed entries, however much work that is (see ``apply_some``)."""
        answers: list[tuple[Answer, ...]] = []
        while len(answers) < len(entries):
            answers += self.apply_some(entries[len(answers) :], configurations)
        return answers

    def apply_some(
        self, entries: Sequence[Entry], configurations: Mapping[int, Configuration] | None = None
    ) -> list[tuple[Answer, ...]]:
        """Apply the first of some committed entries, in one write: as many as a turn of the loop has time for.

        None at all, if the work of an entry is longer than that: the next call, with the same entries, goes on with it.
        Until then nothing of them is on the disk, or can be read.

        Args:
            entries: consecutive, the first one behind ``applied_index``.
            configurations: by index of a CONFIGURATION entry, the configuration that it has led to.

        Returns:
            for each entry that is applied its answers: one for each write of ``ClientWrites``, from the first one on
            (see ``Sessions.write``), one for another command, none for a no-op or a configuration.

        Raises:
            DataCorrupted: the state is damaged.
            CommandUnknown: an entry was written by a newer version of RayKeeper; nothing is damaged.
        """
        if self._broken:
            raise DataCorrupted("an earlier apply failed: the state must be opened anew")
        if self.lost:
            raise ValueError("nothing can be applied to a state that was lost")
        self._broken = True
        while True:
            try:
                answers = self._apply_some(entries, configurations or {})
            except (Vanished, msgspec.MsgspecError, struct.error) as error:  # commands were decoded outside of this
                raise DataCorrupted(f"what is stored does not fit together: {error!r}") from error
            except _POISON as error:
                if not self._begin_again(error):
                    raise
            else:
                break
        self._broken = False
        return answers

    def _apply_some(
        self, entries: Sequence[Entry], configurations: Mapping[int, Configuration]
    ) -> list[tuple[Answer, ...]]:
        begun = self._begun
        if begun is not None and len(entries) <= len(begun.answers):
            self._forget()  # the command that is in the middle of its work is not wanted yet
            begun = None
        begun, self._begun = begun or _Begun(self.applied_index, self.applied_term), None
        executor, answers = self._executor, begun.answers
        executor.work = 0
        asked: ContentAsked | None = None
        settings, marks = self.settings, self.clock.marks
        for entry in entries[len(answers) :]:
            self._applying = 0
            if answers and entry.index in self._suspects:
                break
            if entry.index != begun.index + 1 or entry.term < begun.term:
                raise ValueError(f"entry {entry.index} of term {entry.term} cannot follow {begun.index}, {begun.term}")
            if entry.kind is EntryKind.CONFIGURATION:
                self._configuration(configurations[entry.index])
                answers.append(())
            elif entry.data:
                begun.running = begun.running or self._command(entry)
                self._applying = entry.index
                try:
                    next(begun.running)
                except StopIteration as done:
                    begun.running = None
                    answers.append(done.value)
                else:
                    self._begun = begun
                    return []
            else:
                answers.append(())
            begun.index, begun.term = entry.index, entry.term
            asked = answers[-1][0] if answers[-1] and type(answers[-1][0]) is ContentAsked else None
            if (
                asked is not None
                or executor.work >= APPLY_WORK / 2
                or entry.kind is EntryKind.CONFIGURATION
                or entry.index in self._suspects
                or self.settings is not settings  # whoever reads these here must find them on the disk, too
                or self.clock.marks is not marks
            ):
                break
        if answers:
            self._write(begun.index, begun.term)
            if self._suspects and max(self._suspects) <= begun.index:
                self._suspects.clear()
                self._poison.clear()
            if asked is not None:  # what follows must not be in the hash
                self._content = Content(self, routine=asked.routine)
        return answers

    def _begin_again(self, error: Exception) -> bool:
        """A command has led to an error that is not the disk's, which must not be; and since it would do so again and
        again, and on every member, that would be the end. Forget all that is not on the disk, so that the same entries
        can be applied once more: this one alone, because what was in one write with it is not the same on every
        member; and if it leads to an error then, too, without effect. False if it was none of a command.
        """
        index = self._applying
        if not index or index in self._poison:
            return False
        (self._poison if index in self._suspects else self._suspects).add(index)
        traceback.print_exception(error)
        self._forget()
        return True

    def _forget(self) -> None:
        """Forget all that is not on the disk."""
        self._begun = None
        self._pending.discard()
        self._load()

    def _configuration(self, configuration: Configuration) -> None:
        before, self.configuration = self.configuration, configuration
        self._pending.set("meta", _CONFIGURATION, _encode(configuration))
        self.members.settle(before.members, configuration.members)
        self._alarms.settle(configuration.members)
        self._executor.read_only = self._alarms.no_space

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
        self._writing = True
        self._pending.flush()
        self.applied_index, self.applied_term = index, term
        self.compact_revision = executor.compact_revision
        self.revision = self._mvcc.revision
        self._writing = False
        self._changed += self._mvcc.changed
        self._mvcc.changed = []

    def take_content(self) -> Content | None:
        """The content as of the last ``HashContent`` that was applied since this was last called, if any was."""
        content, self._content = self._content, None
        return content

    def take_changed(self) -> list[bytes]:
        """The keys that ``apply`` has changed since this was last called; one may be named twice, or for nothing."""
        changed, self._changed = self._changed, []
        return changed

    def _command(self, entry: Entry) -> Generator[None, None, tuple[Answer, ...]]:
        """Do what an entry says; rests after each slice of work."""
        self._pending.dead.clear()
        try:
            command = _decode_command(entry.data)
        except (msgspec.MsgspecError, RecursionError):
            try:
                newer = decode_newer(entry.data)
            except CommandUnknown as error:
                raise CommandUnknown(f"log entry {entry.index} cannot be applied: {error}") from None
            if newer is None:
                return (Failed(Reason.INVALID, message="no command"),)
            command = newer
        if isinstance(command, ClientWrites):
            # How deep a nested command may be to be decoded at all depends on the thread; so nothing may depend on it.
            if entry.index in self._poison or any(nests_too_deep(write.operation) for write in command.writes):
                return (Failed(Reason.INVALID, message="no command that can be applied"),) * len(command.writes)
            executor = self._executor
            answers = yield from self._sessions.write(command, entry.index, executor)
            return tuple(answers)
        if entry.index in self._poison:
            return (Failed(Reason.INVALID, message="no command that can be applied"),)
        return (self._own_command(command, entry),)

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
            max_scanned: the budget (see ``ranges``); of a range for which it does not reach a part is answered. 0: no
                end of it.

        Raises:
            Unavailable: the state was closed: read again from the member's new one.
        """
        with self.reading() as engine:
            return read_as_of(engine, self, r, page_items=page_items, page_bytes=page_bytes, max_scanned=max_scanned)

    def shows(self, revision: int) -> bool:
        """Whether what was opened just before now shows this revision, and nothing newer. For any thread."""
        return not self._writing and self.revision == revision

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
        if self._compacting and self._compacting != mark:
            self._compaction_start = next_pass(self._compaction_start, self._compacting)
        self._compacting = mark
        before = self._compaction_start
        writes, start, more = compaction_slice(self._engine, mark, before, keys)
        self._compaction_start = start
        if not more:
            self._compacted_to = mark
        safe = next_pass(start, mark)  # whatever the mark will be when another process goes on
        if safe != next_pass(before, mark):
            writes.append(("meta", _COMPACTED, safe))
        if writes:
            self._engine.write(writes)
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
        put("meta", SETTINGS, settings)
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
