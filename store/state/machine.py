"""The replicated state machine: keys, leases, sessions and settings, as applying the log has made them.

Every member applies the same entries and must reach the same state. So ``apply`` uses only the entries, the state
before them, and the limits that are part of the state (``Configure`` changes them, at its place in the log). The
effects of all entries that are applied together, and the applied index, go to disk in one write. A crash therefore
leaves the state at an entry boundary, and the log replays from there. The write needs no fsync of its own, except
before the log is trimmed.

Applying is total: whatever an entry holds, it gets an answer, the same on every member. Data that is not a command, or
a command that is not valid, has no effect. Only two things can fail: the disk, and a member too old to know a command,
which stops.

``State`` is built in layers. Each is a class that adds one subject and calls only the layers above it in this list:

    StoredState        the database: opening, loading and reading it      stored_state.py
    InternalCommands   what is applied beside the writes of clients       internal_commands.py
    State              applying the entries of the log                    (this file)
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping, Sequence

import msgspec

from ...errors import DataCorrupted
from ...limits import APPLY_WORK
from ...raft.messages import Configuration, Entry, EntryKind
from ...schema.answers import Answer, ContentAsked, Failed, Reason
from ...schema.commands import ByUser, Caller, ClientWrites, Command, CommandUnknown, decode_newer
from ...schema.operations import Txn
from ..engine.interface import Engine
from .content_hash import ContentHasher
from .internal_commands import InternalCommands
from .mvcc import RecordMissing
from .operation_rules import nests_too_deep
from .permission_check import may_command, needs_caller

_decode_command = msgspec.msgpack.Decoder(Command).decode

_POISON = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError)
"""Errors that computing with a command can raise. The disk raises others (``Engine``)."""


class _Unwritten:
    """Entries that have been applied to the write batch, of which nothing is written yet."""

    __slots__ = ("answers", "asked", "at_once", "index", "running", "term", "writing")

    def __init__(self, index: int, term: int) -> None:
        self.index = index
        self.term = term
        self.answers: list[tuple[Answer, ...]] = []
        self.running: Generator[None, None, tuple[Answer, ...]] | None = None
        """The command of the entry after ``index``, if it is partly done."""
        self.asked: ContentAsked | None = None
        """The answer of the last of these entries, if that asks for a hash of the content."""
        self.at_once = False
        """Whether readers find in memory already what these entries have changed: it must be on disk with this turn."""
        self.writing: Generator[None, None, None] | None = None
        """The write, if it is partly prepared; no entry is added then."""


class State(InternalCommands):
    """One member's state machine over its database.

    After an error in ``apply`` the object cannot be used: its memory may be ahead of the disk. Close it and open the
    database again; it holds nothing of the failed call.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._unwritten: _Unwritten | None = None
        """What the last call has left unwritten, because it ended within a command."""
        self._decoded: Mapping[int, Command] = {}
        """Entries that ``apply_some`` was given in decoded form."""
        self._applying = 0
        """Log index of the command that is being applied."""
        self._suspects: set[int] = set()
        """Log indexes of commands that have raised an error once: each is applied in a write of its own..."""
        self._poison: set[int] = set()
        """... and answers ``Failed`` without effect if it raises one again."""
        self._command_errors: list[tuple[int, Exception]] = []
        self._changed: list[bytes] = []
        self._content_hasher: ContentHasher | None = None

    # -- applying -----------------------------------------------------------------------------------------------------

    def apply(
        self, entries: Sequence[Entry], configurations: Mapping[int, Configuration] | None = None
    ) -> list[tuple[Answer, ...]]:
        """Apply all these committed entries, however much work that is (see ``apply_some``)."""
        answers: list[tuple[Answer, ...]] = []
        while len(answers) < len(entries):
            answers += self.apply_some(entries[len(answers) :], configurations)
        return answers

    def apply_some(
        self,
        entries: Sequence[Entry],
        configurations: Mapping[int, Configuration] | None = None,
        decoded: Mapping[int, Command] | None = None,
    ) -> list[tuple[Answer, ...]]:
        """Apply the first of these committed entries in one write: as many as fit into one turn.

        If a single entry needs more work than that, none is applied: the next call, with the same entries, continues
        with it. So a delete of 100,000 keys takes many turns, between which the member hears and sends messages. Until
        all of it is done nothing of it is on disk or visible to readers, nor is the applied index raised; a crash
        forgets it, and the log replays it from its beginning.

        Args:
            entries: consecutive; the first follows ``applied_index``.
            configurations: for each CONFIGURATION entry, by index, the configuration that it led to.
            decoded: the commands of entries that this process has decoded before, by index.

        Returns:
            The answers for each applied entry: one for each write of ``ClientWrites``, from the first on (see
            ``Sessions.apply_writes``); one for any other command; none for a no-op or a configuration.

        Raises:
            DataCorrupted: the state is damaged.
            CommandUnknown: an entry holds a command of a newer version of RayKeeper. Nothing is damaged.
        """
        if self._broken:
            raise DataCorrupted("an earlier apply failed: the state must be opened again")
        if self.lost:
            raise ValueError("nothing can be applied to a state that was lost")
        self._broken = True
        self._decoded = decoded or {}
        while True:
            try:
                answers = self._apply_some(entries, configurations or {})
            except (
                RecordMissing,
                msgspec.MsgspecError,
                struct.error,
            ) as error:  # commands were decoded outside of this
                raise DataCorrupted(f"the stored state is inconsistent: {error!r}") from error
            except _POISON as error:
                if not self._retry_without(error):
                    raise
            else:
                break
        self._broken = False
        return answers

    def _apply_some(
        self, entries: Sequence[Entry], configurations: Mapping[int, Configuration]
    ) -> list[tuple[Answer, ...]]:
        """What ``apply_some`` does, but for errors of commands."""
        unwritten = self._unwritten
        if unwritten is not None and len(entries) < len(unwritten.answers) + (unwritten.running is not None):
            self._reload()  # the call ends before the command that is partly done, or is partly written
            unwritten = None
        unwritten, self._unwritten = unwritten or _Unwritten(self.applied_index, self.applied_term), None
        self._executor.work = 0
        if unwritten.writing is None:
            self._run_entries(unwritten, entries, configurations)
            if unwritten.running is not None:
                self._unwritten = unwritten
                return []
            if not unwritten.answers:
                return []
            unwritten.writing = self._write_applied(unwritten.index, unwritten.term)
        for _ in unwritten.writing:
            if not unwritten.at_once:
                self._unwritten = unwritten
                return []
        self._changed += self._mvcc.changed
        self._mvcc.changed = []
        if self._suspects and max(self._suspects) <= unwritten.index:
            self._suspects.clear()
            self._poison.clear()
        if unwritten.asked is not None:  # later entries must not be in the hash
            self._content_hasher = ContentHasher(self, routine=unwritten.asked.routine)
        return unwritten.answers

    def _run_entries(
        self, unwritten: _Unwritten, entries: Sequence[Entry], configurations: Mapping[int, Configuration]
    ) -> None:
        """Apply entries to the batch, until a write is due or ``running`` has used up the turn. A write ends after an
        entry

        - once it has done its share of work, so that a turn stays short, or has taken several turns;
        - that changes settings, configuration or clock, whose readers must find the new value on disk too;
        - that asks for the hash of the content: entries after it must not be in the hash;
        - that raised an error before, and before such an entry: it must not take others with it.

        Where a write ends has no influence on the state, so members need not agree on it.
        """
        executor, answers = self._executor, unwritten.answers
        settings, readings = self.settings, self.clock.readings
        for entry in entries[len(answers) :]:
            self._applying = 0
            if answers and entry.index in self._suspects:
                break
            if entry.index != unwritten.index + 1 or entry.term < unwritten.term:
                raise ValueError(
                    f"entry {entry.index} of term {entry.term} cannot follow {unwritten.index}, {unwritten.term}"
                )
            resumed = unwritten.running is not None
            if entry.kind is EntryKind.CONFIGURATION:
                self._apply_configuration(configurations[entry.index])
                answers.append(())
            elif entry.data:
                unwritten.running = unwritten.running or self._run_entry(entry)
                self._applying = entry.index
                try:
                    next(unwritten.running)
                except StopIteration as done:
                    unwritten.running = None
                    answers.append(done.value)
                else:
                    return
            else:
                answers.append(())
            unwritten.index, unwritten.term = entry.index, entry.term
            last = answers[-1]
            if last and type(last[0]) is ContentAsked:
                unwritten.asked = last[0]
            unwritten.at_once = (
                entry.kind is EntryKind.CONFIGURATION
                or self.settings is not settings
                or self.clock.readings is not readings
            )
            if (
                unwritten.at_once
                or unwritten.asked is not None
                or resumed
                or executor.work >= APPLY_WORK / 2
                or entry.index in self._suspects
            ):
                break

    def _retry_without(self, error: Exception) -> bool:
        """A command has raised an error that does not come from the disk: a bug. Every member would fail on it, again
        and again, and the cluster would be lost.

        So forget everything that is not on disk, and apply the same entries again, with this one in a write of its own,
        since members differ in which entries share a write. If it raises an error again it gets no effect. Returns
        False if the error did not come from a command.
        """
        index = self._applying
        if not index or index in self._poison:
            return False
        (self._poison if index in self._suspects else self._suspects).add(index)
        self._command_errors.append((index, error))
        self._reload()
        return True

    def _reload(self) -> None:
        """Forget everything that is not on disk."""
        self._unwritten = None
        self._batch.discard()
        self._load()

    def take_content_hasher(self) -> ContentHasher | None:
        """The content as of the last ``HashContent`` applied since the last call, if any."""
        content, self._content_hasher = self._content_hasher, None
        return content

    def take_command_errors(self) -> list[tuple[int, Exception]]:
        """Errors that commands have raised in ``apply`` since the last call, by log index. Each is a bug, which the
        owner logs: it knows cluster and member."""
        raised, self._command_errors = self._command_errors, []
        return raised

    def take_changed_keys(self) -> list[bytes]:
        """The keys that ``apply`` has changed since the last call. A key may occur twice, or without a change."""
        changed, self._changed = self._changed, []
        return changed

    def _run_entry(self, entry: Entry) -> Generator[None, None, tuple[Answer, ...]]:
        """Apply the command of one entry; yields after each slice of work.

        An entry that cannot be decoded has no effect, since every member fails on it in the same way. The exception is
        a command of a newer version: newer members apply it, so this one must stop instead of diverging.
        """
        self._batch.deleted_keys.clear()
        try:
            command = self._decoded.get(entry.index) or _decode_command(entry.data)
        except (msgspec.MsgspecError, RecursionError):
            try:
                newer = decode_newer(entry.data)
            except CommandUnknown as error:
                raise CommandUnknown(f"log entry {entry.index} cannot be applied: {error}") from None
            if newer is None:
                return (Failed(Reason.INVALID, message="not a command"),)
            command = newer
        caller = None
        if type(command) is ByUser:
            caller, command = command.caller, command.command
        executor = self._executor
        executor.rights = None
        if self._auth.table.enabled:
            if reason := self._refusal(command, caller):
                count = len(command.writes) if isinstance(command, ClientWrites) else 1
                return (Failed(reason),) * count
            if caller is not None:
                executor.rights = self._auth.table.rights(caller.user)
        if isinstance(command, ClientWrites):
            # How deep a nesting can be decoded depends on the thread's stack. The rule must not depend on that.
            deep = any(type(each.operation) is Txn and nests_too_deep(each.operation) for each in command.writes)
            if deep or entry.index in self._poison:
                return (Failed(Reason.INVALID, message="no command that can be applied"),) * len(command.writes)
            user = None if executor.rights is None else executor.rights.user
            answers = yield from self._sessions.apply_writes(command, entry.index, executor, user)
            return tuple(answers)
        if entry.index in self._poison:
            return (Failed(Reason.INVALID, message="no command that can be applied"),)
        return ((yield from self._run_internal(command, entry)),)

    def _refusal(self, command: Command, caller: Caller | None) -> Reason | None:
        """Why nothing of a command may be done while users are needed, if so."""
        if caller is None:
            return Reason.NO_USER if needs_caller(command) else None
        table = self._auth.table
        if not table.is_valid(caller, self.clock.seconds):
            return Reason.BAD_TOKEN
        return None if may_command(command, table.rights(caller.user)) else Reason.DENIED

    def content_hash(self) -> str:
        """A hash of the logical content as of now (see ``content_hash``). Reads everything; for the owner."""
        return ContentHasher(self).digest()
