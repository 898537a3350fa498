"""The state machine's database: creating, opening and loading it, reading it on any thread, and maintaining it.

One thread owns the state and writes. ``range`` and the plain numbers may be read on any thread: the numbers change only
after what they stand for is in the database. A reader keeps the database open: ``close`` waits for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TypeVar

import msgspec

from ...errors import DataCorrupted
from ...limits import HASH_SLICE_RECORDS, RECLAIM_MIN_FRACTION, Limits, Settings, decode_settings
from ...raft.messages import Configuration
from ...schema.answers import Failed, RangeAnswer, RangePart
from ...schema.commands import AlarmKind, ClusterEvent
from ...schema.operations import Range
from ...telemetry import Histogram
from ..engine.interface import Disk, Engine
from .alarms import Alarms
from .auth import Auth
from .auth_table import AuthTable
from .clients import ClientRecord, Clients
from .cluster_clock import ClusterClock
from .content_hash import OF_THE_CLUSTER
from .event_log import EventLog, Subject
from .executor import Executor
from .history import Changes, HistoryQuery
from .lease_table import LeaseRecord, LeaseTable
from .members import Members
from .mvcc import Mvcc, newest_change
from .physical_compaction import PhysicalCompaction
from .read_gate import ReadGate
from .reads import read_as_of, read_changes, read_now
from .sessions import SessionRecord, Sessions
from .unfinished import AHEAD, MARK, remove_unfinished
from .write_batch import WriteBatch

FAMILIES = ("keys", "history", "deletions", "values", "leases", "sessions", "meta")

STATE_FORMAT = 2
"""Version of the content of the families. Any other version is refused."""

CONFIGURATION, SETTINGS = b"configuration", b"settings"
"""Keys in ``meta``."""
_FORMAT, _APPLIED, _LOST = b"format", b"applied", b"lost"

_S = TypeVar("_S", bound="StoredState")

encode = msgspec.msgpack.Encoder().encode


class _Applied(msgspec.Struct, frozen=True, array_like=True):
    """Written with every batch."""

    index: int = 0
    term: int = 0
    revision: int = 1
    compact_revision: int = 0
    requests: int = 0
    request_bytes: int = 0


class FormatUnknown(DataCorrupted):
    """The data was written by another version of RayKeeper. It is not damaged."""


class StoredState:
    """The database of one member's state machine, and what of it is in memory."""

    applied_index: int
    applied_term: int
    revision: int
    """The newest revision; an empty store is at 1."""
    compact_revision: int
    """Revisions below this one are compacted."""
    configuration: Configuration
    """The newest configuration that was applied."""
    settings: bytes
    """Encoded settings (``limits.encode_settings``); empty for the defaults."""
    lost: str
    """Why the state was lost: this empty state stands in for a damaged one, and the log no longer holds everything.
    Nothing is applied to it or read from it until a snapshot replaces it. Empty for an ordinary state."""
    members: Members
    """The table of members."""
    clock: ClusterClock
    """The cluster's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._batch = WriteBatch(engine, FAMILIES)
        self._inconsistent: DataCorrupted | None = None
        """Damage that a reader has found."""
        self._writing = False
        """Whether the database may be ahead of the attributes above."""
        self._broken = False
        """Whether memory may be ahead of the database, so that nothing more may be applied."""
        self._read_gate = ReadGate()
        self.write_times = Histogram()
        """Seconds of each write of applied entries to the database, in real time."""
        self.ranges = 0
        """Reads of ranges so far; for metrics."""
        self._load()

    @classmethod
    def create(
        cls: type[_S],
        disk: Disk,
        path: str,
        configuration: Configuration,
        settings: bytes = b"",
        *,
        lost: str = "",
    ) -> _S:
        """Create an empty state where there is none: for bootstrap, join, or in place of a damaged one.

        Args:
            configuration: the first one, before any entry of the log; the same on every member.
            settings: encoded; the same on every member.
            lost: why it can only wait for a snapshot (see the attribute).

        Raises:
            DataCorrupted: there is one already.
        """
        engine = disk.open(path, FAMILIES, create=True)
        try:
            engine.write(
                [
                    ("meta", _FORMAT, encode(STATE_FORMAT)),
                    ("meta", _APPLIED, encode(_Applied())),
                    ("meta", CONFIGURATION, encode(configuration)),
                    ("meta", SETTINGS, settings),
                    ("meta", _LOST, lost.encode() or None),
                ]
            )
            engine.flush()
            return cls(engine)
        except BaseException:
            engine.close()
            raise

    @classmethod
    def open(cls: type[_S], disk: Disk, path: str) -> _S:
        """Open an existing state.

        Raises:
            DataCorrupted: it is missing or damaged.
            FormatUnknown: it has a format that this version does not know.
        """
        engine = disk.open(path, FAMILIES)
        try:
            return cls(engine)
        except BaseException:
            engine.close()
            raise

    def _load(self) -> None:
        """Fill memory from the database. Called again to forget everything that is not written (``_reload``), so it
        sets every attribute that applying may change."""
        self._clients = Clients(self._batch)
        self._leases, self._sessions = LeaseTable(self._batch, self._clients), Sessions(self._batch, self._clients)
        self.members, self._alarms = Members(self._batch), Alarms(self._batch)
        self._events = EventLog(self._batch)
        self.clock, self._auth = ClusterClock(self._batch), Auth(self._batch)
        get = self._engine.get
        try:
            format = msgspec.msgpack.decode(get("meta", _FORMAT) or b"", type=int)
            if format != STATE_FORMAT:
                raise FormatUnknown(f"the state has format {format}; this version of RayKeeper knows {STATE_FORMAT}")
            applied = msgspec.msgpack.decode(get("meta", _APPLIED) or b"", type=_Applied)
            self.configuration = msgspec.msgpack.decode(get("meta", CONFIGURATION) or b"", type=Configuration)
            self.settings = get("meta", SETTINGS) or b""
            self.lost = (get("meta", _LOST) or b"").decode()
            self._limits()
            self.members.load(self._engine)
            self._alarms.load(self._engine)
            self._events.load(self._engine)
            self._auth.load(self._engine)
            self.clock.load(self._engine)
            remove_unfinished(self._engine, applied.revision)
            history_end = newest_change(self._engine)
        except (msgspec.MsgspecError, ValueError, struct.error) as error:
            raise DataCorrupted(f"the state cannot be read: {error}") from error
        if history_end != applied.revision or applied.compact_revision > applied.revision:
            raise DataCorrupted(f"the history ends at revision {history_end}, which does not fit {applied}")
        if self.configuration.index > applied.index and not self.lost:  # a lost state has the log's configuration
            raise DataCorrupted(f"the configuration of entry {self.configuration.index} does not fit {applied}")
        self.applied_index, self.applied_term = applied.index, applied.term
        self.revision, self.compact_revision = applied.revision, applied.compact_revision
        self._compaction = PhysicalCompaction(self._engine)
        self._sessions.load(self._engine)  # with the clients, which count their leases
        self._leases.load(self._engine)
        self._sessions.requests, self._sessions.request_bytes = applied.requests, applied.request_bytes
        self._mvcc = Mvcc(self._batch, self.revision)
        self._executor = Executor(
            self._batch, self._mvcc, self._leases, self._auth, self._limits(), self.compact_revision
        )
        self._executor.read_only = self._alarms.no_space

    def _decoded_settings(self) -> Settings:
        return decode_settings(self.settings) if self.settings else Settings()

    def _limits(self) -> Limits:
        return self._decoded_settings().limits

    # -- content ------------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """The limits that commands must keep; the same on every member."""
        return self._executor.limits

    @property
    def sessions(self) -> Mapping[int, SessionRecord]:
        """Sessions by id."""
        return self._sessions.by_id

    @property
    def clients(self) -> Mapping[int, ClientRecord]:
        """Who opened each session and made each lease, by the session's id, of those that said so."""
        return self._clients.by_id

    @property
    def leases(self) -> Mapping[int, LeaseRecord]:
        """Leases by id."""
        return self._leases.by_id

    @property
    def alarms(self) -> Mapping[tuple[int, AlarmKind], str]:
        """The messages of active alarms, by member and kind. For any thread."""
        return self._alarms.on

    @property
    def events(self) -> tuple[tuple[int, ClusterEvent], ...]:
        """What has happened to the cluster, with the number of each event, oldest first. For any thread."""
        return self._events.kept

    @property
    def latest_events(self) -> Mapping[Subject, ClusterEvent]:
        """The newest of them of each subject. For the owner."""
        return self._events.latest

    @property
    def users(self) -> AuthTable:
        """Users and roles as of the last applied entry, or a later one. For any thread."""
        return self._auth.table

    @property
    def executor(self) -> Executor:
        """What runs operations: its counts may be read on any thread."""
        return self._executor

    @property
    def mvcc(self) -> Mvcc:
        """What writes keys: its counts may be read on any thread."""
        return self._mvcc

    @property
    def remembered_requests(self) -> int:
        """The number of request ids whose answers are remembered."""
        return self._sessions.requests

    @property
    def oldest_request(self) -> int:
        """A lower bound on the log index of every remembered request id."""
        return self._sessions.oldest_request

    @property
    def damage(self) -> DataCorrupted | None:
        """Damage that any thread has found in reading or writing. A damaged state must stop serving."""
        return self._inconsistent or self._engine.damage

    def report_damage(self, error: DataCorrupted) -> None:
        """A reader found data that is inconsistent."""
        self._inconsistent = error

    # -- writing, by the owner ----------------------------------------------------------------------------------------

    def _write_applied(self, index: int, term: int) -> Generator[None, None, None]:
        """Write everything applied up to this entry, in one batch, which is prepared in slices. The attributes that
        readers look at change only afterwards, so a reader never knows of a revision that is not in the database;
        ``_writing`` covers the time in between (``shows``).

        Raises:
            ValueError: something would go back, or a revision is unfinished. Nothing was written.
        """
        executor, sessions, revision = self._executor, self._sessions, self._mvcc.revision
        if (
            self._mvcc.sub
            or index <= self.applied_index
            or term < self.applied_term
            or revision < self.revision
            or not self.compact_revision <= executor.compact_revision <= revision
        ):
            raise ValueError(f"entry {index} of term {term}, revision {revision} cannot follow {self.applied_index}")
        applied = _Applied(
            index,
            term,
            revision,
            executor.compact_revision,
            sessions.requests,
            sessions.request_bytes,
        )
        self._batch.set("meta", _APPLIED, encode(applied))
        write = yield from self._batch.prepare(AHEAD, MARK)
        self._writing = True
        began = perf_counter()
        write()
        self.write_times.observe(perf_counter() - began)
        self.applied_index, self.applied_term = index, term
        self.compact_revision = executor.compact_revision
        self.revision = revision
        self._writing = False

    # -- reading ------------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Engine]:
        """Hold the database open for a read, on any thread.

        Raises:
            Unavailable: it is closed, or about to be.
        """
        self._read_gate.enter()
        try:
            yield self._engine
        except DataCorrupted as error:
            self.report_damage(error)
            raise
        finally:
            self._read_gate.leave()

    def range(
        self, r: Range, *, page_items: int, page_bytes: int, max_scanned: int = 0
    ) -> RangeAnswer | RangePart | Failed:
        """Read a range at its revision, or at the newest applied one. For any thread, concurrent with ``apply`` and
        compaction.

        Args:
            page_items, page_bytes: bounds on the answer; one item always fits.
            max_scanned: the budget (see ``ranges``); a range that exceeds it is answered in part. 0: no bound.

        Raises:
            Unavailable: the state was closed: read again from the state that replaced it.
        """
        self.ranges += 1
        gate = self._read_gate
        gate.enter()
        try:  # as ``reading``, which costs more than to read a key
            if r.keys.end is None and not r.revision and (found := read_now(self._engine, self, r)) is not None:
                return found
            return read_as_of(
                self._engine, self, r, page_items=page_items, page_bytes=page_bytes, max_scanned=max_scanned
            )
        except DataCorrupted as error:
            self.report_damage(error)
            raise
        finally:
            gate.leave()

    def shows(self, revision: int) -> bool:
        """Whether an iterator opened just before this call shows this revision and nothing newer. For any thread."""
        return not self._writing and self.revision == revision

    def history(self, wanted: HistoryQuery, low: int, high: int, *, max_bytes: int, max_scanned: int) -> Changes | int:
        """The changes from revision ``low`` to ``high``, both included, for watches. For any thread.

        Args:
            max_bytes, max_scanned: bounds (see ``read_history``); one revision always fits.

        Returns:
            The changes and the revision up to which they are complete; or the compact revision if ``low`` is below it.

        Raises:
            Unavailable: the state was closed.
        """
        with self.reading() as engine:
            return read_changes(engine, self, wanted, low, high, max_bytes=max_bytes, max_scanned=max_scanned)

    def lease_keys(self, lease: int) -> list[bytes]:
        """The keys that are attached to a lease. For any thread."""
        with self.reading() as engine:
            return list(self._leases.attached(engine, lease))

    # -- maintenance --------------------------------------------------------------------------------------------------

    def reset_for_new_cluster(self, configuration: Configuration, settings: bytes) -> None:
        """Make this, durably, the first state of a new cluster; ``backup_file`` says what is kept.

        The object cannot be used afterwards: close it.
        """
        put, engine = self._batch.set, self._engine
        put("meta", CONFIGURATION, encode(configuration))
        put("meta", SETTINGS, settings)
        for prefix in OF_THE_CLUSTER:
            for key, _ in engine.iterate("meta", prefix, prefix + b"\xff"):
                put("meta", key, None)
        for session in list(self.sessions):
            self._sessions.close(session)
        self._leases.renew_all(self.applied_index)
        self._broken = True
        self._batch.flush()
        engine.flush()

    def compact_slice(self, changes: int) -> bool:
        """Remove records that compaction has made unreachable, looking at no more than this many changes (see
        ``physical_compaction``).

        Returns:
            Whether there is more to remove up to ``compact_revision``.
        """
        return self._compaction.remove_slice(self.compact_revision, changes)

    @property
    def compacted_changes(self) -> int:
        """How many records of changes compaction has removed here; for metrics. Any thread."""
        return self._compaction.removed

    def is_removed(self, revision: int) -> bool:
        """Whether everything that compaction at this revision has made unreachable is removed."""
        return self._compaction.removed_to >= revision

    def flush(self) -> None:
        """Return once everything applied is on disk. Required before the log is trimmed, and before a checkpoint, which
        is short then. Slow; for any thread."""
        with self.reading() as engine:
            engine.flush()

    def checkpoint(self, path: str) -> None:
        """Write a copy of the database, as of ``applied_index``, to a folder that does not exist yet."""
        self._engine.checkpoint(path)

    def verify(self, throttle: Callable[[], None] = lambda: None) -> None:
        """Read everything, and so check every checksum. For any thread.

        Args:
            throttle: called after each slice of work; may wait.

        Raises:
            DataCorrupted: something is damaged.
        """
        for family in FAMILIES:
            with self.reading() as engine:
                for number, _ in enumerate(engine.iterate(family)):
                    if number % HASH_SLICE_RECORDS == HASH_SLICE_RECORDS - 1:
                        throttle()

    def size(self) -> int:
        """Bytes on disk (see ``Engine.size``). For any thread."""
        with self.reading() as engine:
            return engine.size()

    def size_in_use(self) -> int:
        """Bytes of it that hold what was not overwritten or deleted (see ``Engine.size_in_use``). For any thread."""
        with self.reading() as engine:
            return engine.size_in_use()

    def reclaim(self, free: int, least: float = RECLAIM_MIN_FRACTION) -> bool:
        """Return the space of deleted and compacted data to the disk (see ``Engine.reclaim``). For any thread.

        It does not keep the database open: ``close`` does not wait for it.
        """
        with suppress(RuntimeError):  # closed in the meantime
            return self._engine.reclaim(free, least)
        return False

    def close(self) -> None:
        """Wait for the readers, and release the database."""
        if self._read_gate.close():
            self._engine.close()
