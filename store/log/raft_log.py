"""The Raft log on disk: entries by index, the hard state, and the base after which the log begins.

A promise is on disk before it is sent (Raft paper, figure 2: currentTerm, votedFor and log[] are persistent). So
entries and hard state go into one batch, and ``sync`` follows before the caller continues. The base (index and term of
the last entry that was trimmed) is on disk too, so trimming is one small write; the files that hold nothing else any
more go with it. The newest entries are in a bounded cache: replicating and applying them reads no disk. One thread owns
a log.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from msgspec.structs import replace

from ...errors import DataCorrupted, KeeperError
from ...limits import LOG_SEGMENT_BYTES
from ...raft.log import ENTRY_OVERHEAD, EntryCompacted, EntryUnavailable, can_follow
from ...raft.messages import Configuration, Entry, HardState
from ...telemetry import FSYNC_BUCKETS, Histogram
from ..engine.interface import Disk
from .log_record import LogBase, LogNote
from .log_store import LogStore
from .segments import SegmentedLog


class RaftLog:
    """The durable part of a Raft node: ``Node`` reads it through ``Storage``, and the owner of the node writes it."""

    hard_state: HardState
    """Term, vote and commit index. All of it is on disk, except perhaps the newest commit index (see ``append``)."""

    def __init__(self, store: LogStore, *, cache_bytes: int) -> None:
        self._store = store
        self._cache_bytes = cache_bytes
        self._cache: deque[Entry] = deque()
        """The newest entries up to the last, without a gap."""
        self._cached = 0
        self.hard_state = store.note.hard_state or HardState()
        self._hard_state_unwritten = False
        """Whether the hard state holds a commit index that is not written yet."""
        self._base = store.note.base or LogBase()
        self.sync_times = Histogram(FSYNC_BUCKETS)
        """Seconds of each fsync, in real time."""

    @classmethod
    def create(
        cls, disk: Disk, path: str, *, cache_bytes: int, number: int = 1, segment_bytes: int = LOG_SEGMENT_BYTES
    ) -> RaftLog:
        """Create an empty log where there is none. For bootstrap and join only.

        Args:
            number: of this log for life; no other log should have it.

        Raises:
            DataCorrupted: there is one already.
        """
        store = SegmentedLog.create(disk, path, log=number, segment_bytes=segment_bytes)
        try:
            store.append([], LogNote(HardState(), LogBase()))
            store.sync()
        except BaseException:
            store.close()
            raise
        return cls(store, cache_bytes=cache_bytes)

    @classmethod
    def open(cls, disk: Disk, path: str, *, cache_bytes: int, segment_bytes: int = LOG_SEGMENT_BYTES) -> RaftLog:
        """Open an existing log. All that it holds is on disk.

        Raises:
            DataCorrupted: missing or damaged. The vote may be gone, so the member may not serve under its id.
            NoSpace: the disk is full.
        """
        store = SegmentedLog.open(disk, path, segment_bytes=segment_bytes)
        try:
            log = cls(store, cache_bytes=cache_bytes)
            hard, index = log.hard_state, store.index
            if hard.term < index.last_term or hard.commit > index.last:
                raise DataCorrupted(f"{path}: {hard} does not fit a log that ends at {index.last}")
            log._fill_cache()
            # A process that died between write and sync has left data that a loss of power may still take. This process
            # promises what it reads, so that must be on disk first.
            store.sync()
            store.release()
            store.reserve()
        except BaseException:
            store.close()
            raise
        return log

    def _fill_cache(self) -> None:
        """Read the newest entries."""
        index, size = self._store.index, 0
        low = index.last + 1
        while low > index.first and size < self._cache_bytes:
            low -= 1
            size += index.size_of(low) + ENTRY_OVERHEAD
        while low <= index.last:
            entries = self._store.read(low, index.last + 1, self._cache_bytes)
            self._cache_entries(entries)
            low += len(entries)

    def _cache_entries(self, entries: Sequence[Entry]) -> None:
        """Add entries that follow the cached ones."""
        self._cache.extend(entries)
        self._cached += sum([len(entry.data) for entry in entries]) + ENTRY_OVERHEAD * len(entries)
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= len(self._cache.popleft().data) + ENTRY_OVERHEAD

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether this log holds no promise: no term, no vote, no entry, no snapshot."""
        return self.hard_state == HardState() and self.last_index() == 0

    @property
    def configuration(self) -> Configuration | None:
        """The configuration that was in effect when the log was last trimmed or reset. With the entries that follow, it
        gives the configuration even if the state is lost. ``None`` if the log was never trimmed."""
        return self._store.note.configuration

    @property
    def size_bytes(self) -> int:
        """Bytes of the held entries."""
        return self._store.index.size

    @property
    def written_bytes(self) -> int:
        """Bytes that this process has written. Any thread."""
        return self._store.written_bytes

    def first_index(self) -> int:
        """Index of the first entry held; the last index plus one if there is none."""
        return self._base.index + 1

    def last_index(self) -> int:
        """Index of the last entry held; the base's if there is none."""
        return self._store.index.last

    def term(self, index: int) -> int:
        """The term of a held entry, or of the base.

        Raises:
            EntryCompacted: the index lies before the base.
            EntryUnavailable: the index lies after the last entry.
        """
        held = self._store.index
        if index < self._base.index:
            raise EntryCompacted(f"entry {index} was trimmed; the log begins at {held.first}")
        if index > held.last:
            raise EntryUnavailable(f"entry {index} does not exist; the log ends at {held.last}")
        return held.term(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries with ``low <= index < high``: as many as fit into ``max_bytes``, at least one.

        The cache answers if it holds ``low``, since it has no gaps.

        Raises:
            EntryCompacted: ``low`` lies before the first entry.
            EntryUnavailable: ``high`` is more than one after the last entry.
            DataCorrupted: an entry is damaged on disk.
        """
        if low <= self._base.index:
            raise EntryCompacted(f"entry {low} was trimmed; the log begins at {self._base.index + 1}")
        if high > self.last_index() + 1:
            raise EntryUnavailable(f"entry {high - 1} does not exist; the log ends at {self.last_index()}")
        found: list[Entry] = []
        if low >= high:
            return found
        size = 0
        if self._cache and low >= self._cache[0].index:
            start = low - self._cache[0].index
            # From the nearer end: indexing a deque costs its distance from an end.
            for position in range(start, start + high - low):
                entry = self._cache[position]
                size += len(entry.data) + ENTRY_OVERHEAD
                if found and size > max_bytes:
                    break
                found.append(entry)
            return found
        return self._store.read(low, high, max_bytes)

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        """Write entries and hard state in one batch. The entries replace everything from the first of them on.

        What was promised is never taken back, which is checked here once more, because a bug above would lose
        acknowledged writes or vote twice. A new commit index alone is not written but goes with the next batch. It is a
        hint, which a leader repeats, and writing it would double the writes of a member that gets one command at a
        time.

        Args:
            entries: consecutive; the first lies after the base and at most one after the last entry. May be empty.
            hard_state: ``None`` if unchanged. Pass ``sync`` if term or vote have changed.
            sync: return only once all of this, and everything written before, is on disk.

        Raises:
            ValueError: the entries leave a gap or would replace committed ones, or the hard state does not follow the
                last one. Nothing was written.
            NoSpace: the disk is full. Nothing was written.
        """
        hard = hard_state or self.hard_state
        store, last = self._store, self._store.index.last
        self._check_append(entries, hard)
        if entries or (sync and (hard_state is not None or self._hard_state_unwritten)):
            store.append(entries, LogNote(hard))
            self._hard_state_unwritten = False
        elif hard_state is not None:
            self._hard_state_unwritten = True
        self.hard_state = hard
        if entries:
            if entries[0].index <= last:
                self._uncache_from(entries[0].index)
            self._cache_entries(entries)
        if sync:
            began = perf_counter()
            store.sync()
            self.sync_times.observe(perf_counter() - began)

    def _check_append(self, entries: Sequence[Entry], hard: HardState) -> None:
        """What ``open`` demands of a log, and what makes votes and acknowledgements promises."""
        old, held = self.hard_state, self._store.index
        last = held.last
        if entries:
            first, last = entries[0].index, entries[-1].index
            if not self._base.index < first <= held.last + 1:
                raise ValueError(f"entries from {first} do not continue a log of {held.first}..{held.last}")
            if first <= old.commit:
                raise ValueError(f"entries from {first} would replace committed ones up to {old.commit}")
            if not can_follow(first - 1, held.term(first - 1), entries, hard.term):
                raise ValueError(f"entries {first}..{last} have a gap, or a term that falls or is not reached yet")
        if hard is not old:
            kept = hard.term > old.term or (hard.term == old.term and old.vote in (0, hard.vote))
            if not kept or not old.commit <= hard.commit <= last:
                raise ValueError(f"{hard} cannot follow {old} in a log that ends at {last}")

    def _uncache_from(self, index: int) -> None:
        cache = self._cache
        while cache and cache[-1].index >= index:
            self._cached -= len(cache.pop().data) + ENTRY_OVERHEAD

    def trim(self, index: int, configuration: Configuration | None = None) -> None:
        """Drop the entries up to ``index``. The caller has synced the state at least that far: the log is the only copy
        of what the state has not on disk.

        Args:
            configuration: the newest that was applied.
        """
        if index > self.last_index():
            raise ValueError(f"cannot trim to {index}: the log ends at {self.last_index()}")
        if index > self._base.index:
            base = LogBase(index, self.term(index))
            self._store.append([], LogNote(self.hard_state, base, configuration))
            self._hard_state_unwritten = False
            self._base = base
            cache = self._cache
            while cache and cache[0].index <= index:
                self._cached -= len(cache.popleft().data) + ENTRY_OVERHEAD
            self._store.release()

    def reset(self, index: int, term: int, configuration: Configuration | None = None) -> None:
        """Empty the log and let it begin after (index, term): a snapshot replaces all of it.

        Term and vote stay, because they are promises; the commit index becomes at least ``index``. ``configuration`` is
        the snapshot's.
        """
        hard = self.hard_state
        if term > hard.term:
            hard = replace(hard, term=term, vote=0)  # it has not voted in that newer term
        hard = replace(hard, commit=max(hard.commit, index))
        base = LogBase(index, term)
        self._store.append([], LogNote(hard, base, configuration, reset=True))
        self.hard_state, self._base = hard, base
        self._hard_state_unwritten = False
        self._cache.clear()
        self._cached = 0
        self._store.sync()
        self._store.release()

    def close(self) -> None:
        """Release the files. Unsynced writes survive the process, but not a loss of power."""
        if self._hard_state_unwritten:
            with contextlib.suppress(KeeperError, OSError):  # a full or broken disk: the commit index is a hint
                self._store.append([], LogNote(self.hard_state))
        self._store.close()
