"""The Raft log on disk: entries by index, the hard state, and the base after which the log begins.

A promise is on disk before it is sent (Raft paper, figure 2: currentTerm, votedFor and log[] are persistent). So
entries and hard state go into one batch, and ``sync`` follows before the caller continues. The base (index and term of
the last entry that was trimmed) is on disk too, so trimming is one small write; the trimmed entries are garbage from
then on, and are removed in slices. Terms are kept in memory as runs, and the newest entries in a bounded cache:
replicating and applying recent entries reads no disk. One thread owns a log.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ...errors import DataCorrupted, KeeperError
from ...limits import LOG_TRIM_SLICE_ENTRIES
from ...raft.log import ENTRY_OVERHEAD, EntryCompacted, EntryUnavailable, can_follow
from ...raft.messages import Configuration, Entry, EntryKind, HardState
from ..engine.interface import Disk, Engine, Write

_FAMILIES = ("entries", "meta")

_INDEX = struct.Struct(">Q")
_HEAD = struct.Struct(">QBB")
"""Before an entry's data: term, kind, and the byte with which the data is xored (see ``_stored``)."""
_ZEROS = bytes(16)
_MASKS = [bytes(byte ^ mask for byte in range(256)) for mask in range(256)]
_HARD_STATE, _BASE, _CONFIGURATION = b"hard", b"mark", b"configuration"
_encode = msgspec.msgpack.Encoder().encode
_decode_hard = msgspec.msgpack.Decoder(HardState).decode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode


class LogBase(msgspec.Struct, frozen=True, array_like=True):
    """The last entry that was trimmed: the log begins after it."""

    index: int = 0
    term: int = 0


_decode_base = msgspec.msgpack.Decoder(LogBase).decode


class _Terms:
    """The terms of consecutive entries, as runs: (first index, term). Terms never fall along a log."""

    def __init__(self, base: LogBase) -> None:
        self.indexes = [base.index]
        self.terms = [base.term]

    def append(self, index: int, term: int) -> None:
        if term != self.terms[-1]:
            self.indexes.append(index)
            self.terms.append(term)

    def at(self, index: int) -> int:
        return self.terms[bisect_right(self.indexes, index) - 1]

    def drop_from(self, index: int) -> None:
        while len(self.indexes) > 1 and self.indexes[-1] >= index:
            self.indexes.pop()
            self.terms.pop()

    def set_base(self, base: LogBase) -> None:
        keep = bisect_right(self.indexes, base.index)
        del self.indexes[:keep], self.terms[:keep]
        self.indexes.insert(0, base.index)
        self.terms.insert(0, base.term)


class RaftLog:
    """The durable part of a Raft node: ``Node`` reads it through ``Storage``, and the owner of the node writes it."""

    hard_state: HardState
    """Term, vote and commit index. All of it is on disk, except perhaps the newest commit index (see ``append``)."""

    def __init__(self, engine: Engine, *, cache_bytes: int) -> None:
        self._engine = engine
        self._cache_bytes = cache_bytes
        self._cache: deque[Entry] = deque()
        """The newest entries up to the last, without a gap."""
        self._cached = 0
        self.hard_state = HardState()
        self._hard_state_unwritten = False
        """Whether the hard state holds a commit index that is not written yet."""
        self.configuration: Configuration | None = None
        """The configuration that was in effect when the log was last trimmed or reset. With the entries that follow, it
        gives the configuration even if the state is lost. ``None`` if the log was never trimmed."""
        self._base = LogBase()
        self._garbage_start = 1
        """The first index whose trimmed entry may still be on disk."""
        self._last = 0
        self._sizes: deque[int] = deque()
        """Bytes of each held entry."""
        self._size = 0
        self._terms = _Terms(self._base)

    @classmethod
    def create(cls, disk: Disk, path: str, *, cache_bytes: int) -> RaftLog:
        """Create an empty log where there is none. For bootstrap and join only.

        Raises:
            DataCorrupted: there is one already.
        """
        engine = disk.open(path, _FAMILIES, create=True, is_log=True)
        log = cls(engine, cache_bytes=cache_bytes)
        engine.write([("meta", _HARD_STATE, _encode(log.hard_state)), ("meta", _BASE, _encode(log._base))])
        engine.sync()
        return log

    @classmethod
    def open(cls, disk: Disk, path: str, *, cache_bytes: int) -> RaftLog:
        """Open an existing log.

        Raises:
            DataCorrupted: missing or damaged. The vote may be gone, so the member may not serve under its id.
        """
        engine = disk.open(path, _FAMILIES, is_log=True)
        log = cls(engine, cache_bytes=cache_bytes)
        try:
            log._load(path)
            # A process that died between write and sync has left data that a loss of power may still take. This process
            # promises what it reads, so that must be on disk first.
            engine.sync()
        except BaseException:
            engine.close()
            raise
        return log

    def _load(self, path: str) -> None:
        """Read the log into memory and check it: indexes without a gap, terms that never fall, and a hard state that
        is not older than the entries. A log that breaks one of these has lost something that was promised."""
        hard, base = self._engine.get("meta", _HARD_STATE), self._engine.get("meta", _BASE)
        if hard is None or base is None:
            raise DataCorrupted(f"{path}: the hard state is missing")
        try:
            self.hard_state, self._base = _decode_hard(hard), _decode_base(base)
            configuration = self._engine.get("meta", _CONFIGURATION)
            if configuration is not None:
                self.configuration = _decode_configuration(configuration)
        except msgspec.MsgspecError as error:
            raise DataCorrupted(f"{path}: the hard state cannot be read: {error}") from error
        self._terms = _Terms(self._base)
        self._last = self._base.index
        self._garbage_start = self._base.index + 1
        for key, _ in self._engine.iterate("entries", b"", _INDEX.pack(self._base.index + 1)):
            self._garbage_start = _INDEX.unpack(key)[0]
            break
        for key, value in self._engine.iterate("entries", _INDEX.pack(self._base.index + 1)):
            entry = _entry(key, value)
            if entry.index != self._last + 1 or entry.term < self._terms.terms[-1]:
                raise DataCorrupted(f"{path}: entry {entry.index} of term {entry.term} follows entry {self._last}")
            self._add_to_memory(entry)
        if self.hard_state.term < self._terms.terms[-1] or self.hard_state.commit > self._last:
            raise DataCorrupted(f"{path}: {self.hard_state} does not fit a log that ends at {self._last}")

    def _add_to_memory(self, entry: Entry) -> None:
        """Add an entry after the last one: its term, its size, and the entry itself to the cache."""
        self._last = entry.index
        self._terms.append(entry.index, entry.term)
        size = len(entry.data) + ENTRY_OVERHEAD
        self._size += size
        self._sizes.append(size)
        self._cache.append(entry)
        self._cached += size
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= len(self._cache.popleft().data) + ENTRY_OVERHEAD

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether this log holds no promise: no term, no vote, no entry, no snapshot."""
        return self.hard_state == HardState() and self._last == 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the held entries."""
        return self._size

    def first_index(self) -> int:
        """Index of the first entry held; the last index plus one if there is none."""
        return self._base.index + 1

    def last_index(self) -> int:
        """Index of the last entry held; the base's if there is none."""
        return self._last

    def term(self, index: int) -> int:
        """The term of a held entry, or of the base.

        Raises:
            EntryCompacted: the index lies before the base.
            EntryUnavailable: the index lies after the last entry.
        """
        if index < self._base.index:
            raise EntryCompacted(f"entry {index} was trimmed; the log begins at {self._base.index + 1}")
        if index > self._last:
            raise EntryUnavailable(f"entry {index} does not exist; the log ends at {self._last}")
        return self._terms.at(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries with ``low <= index < high``: as many as fit into ``max_bytes``, at least one.

        The cache answers if it holds ``low``, since it has no gaps. Each index read from disk is checked: a missing
        entry must never be passed over in silence.

        Raises:
            EntryCompacted: ``low`` lies before the first entry.
            EntryUnavailable: ``high`` is more than one after the last entry.
            DataCorrupted: an entry is missing on disk.
        """
        if low <= self._base.index:
            raise EntryCompacted(f"entry {low} was trimmed; the log begins at {self._base.index + 1}")
        if high > self._last + 1:
            raise EntryUnavailable(f"entry {high - 1} does not exist; the log ends at {self._last}")
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
        for key, value in self._engine.iterate("entries", _INDEX.pack(low), _INDEX.pack(high)):
            entry = _entry(key, value)
            if entry.index != low + len(found):
                raise DataCorrupted(f"entry {low + len(found)} is missing in the log")
            size += len(entry.data) + ENTRY_OVERHEAD
            if found and size > max_bytes:
                break
            found.append(entry)
        if not found:
            raise DataCorrupted(f"entry {low} is missing in the log")
        return found

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
        """
        self._check_append(entries, hard_state or self.hard_state)
        writes: list[Write] = []
        if entries:
            first = entries[0].index
            if first <= self._last:
                writes += [("entries", _INDEX.pack(i), None) for i in range(entries[-1].index + 1, self._last + 1)]
                self._drop_from_memory(first)
            for entry in entries:
                writes.append(("entries", _INDEX.pack(entry.index), _stored(entry)))
                self._add_to_memory(entry)
        if hard_state is not None:
            self.hard_state = hard_state
            self._hard_state_unwritten = True
        if writes or sync:
            self._add_hard_state(writes)
        if writes:
            self._engine.write(writes)
        if sync:
            self._engine.sync()

    def _check_append(self, entries: Sequence[Entry], hard: HardState) -> None:
        """What ``_load`` demands of a log, and what makes votes and acknowledgements promises."""
        old, last = self.hard_state, self._last
        if entries:
            first, last = entries[0].index, entries[-1].index
            if not self._base.index < first <= self._last + 1:
                raise ValueError(f"entries from {first} do not continue a log of {self._base.index + 1}..{self._last}")
            if first <= old.commit:
                raise ValueError(f"entries from {first} would replace committed ones up to {old.commit}")
            before = self._terms.terms[-1] if first > self._last else self._terms.at(first - 1)
            if not can_follow(first - 1, before, entries, hard.term):
                raise ValueError(f"entries {first}..{last} have a gap, or a term that falls or is not reached yet")
        if hard is not old:
            kept = hard.term > old.term or (hard.term == old.term and old.vote in (0, hard.vote))
            if not kept or not old.commit <= hard.commit <= last:
                raise ValueError(f"{hard} cannot follow {old} in a log that ends at {last}")

    def _add_hard_state(self, writes: list[Write]) -> None:
        if self._hard_state_unwritten:
            writes.append(("meta", _HARD_STATE, _encode(self.hard_state)))
            self._hard_state_unwritten = False

    def _drop_from_memory(self, index: int) -> None:
        """Forget, in memory, the entries from ``index`` on."""
        for _ in range(index, self._last + 1):
            size = self._sizes.pop()
            self._size -= size
            if self._cache:
                self._cache.pop()
                self._cached -= size
        self._last = index - 1
        self._terms.drop_from(index)

    def trim(self, index: int, configuration: Configuration | None = None) -> bool:
        """Drop the entries up to ``index``. The caller has synced the state at least that far: the log is the only copy
        of what the state has not on disk.

        Each call removes one slice of trimmed entries from disk.

        Args:
            configuration: the newest that was applied.

        Returns:
            Whether there is more to remove: call again, with the same index or a later one.
        """
        if index > self._last:
            raise ValueError(f"cannot trim to {index}: the log ends at {self._last}")
        writes: list[Write] = []
        if index > self._base.index:
            base = LogBase(index, self._terms.at(index))
            for position in range(self._base.index + 1, index + 1):
                size = self._sizes.popleft()
                self._size -= size
                if self._cache and self._cache[0].index == position:
                    self._cache.popleft()
                    self._cached -= size
            self._set_base(base, configuration, writes)
        self._remove_slice(writes)
        if writes:
            self._add_hard_state(writes)
            self._engine.write(writes)
        return self._garbage_start <= self._base.index

    def reset(self, index: int, term: int, configuration: Configuration | None = None) -> None:
        """Empty the log and let it begin after (index, term): a snapshot replaces all of it.

        Term and vote stay, because they are promises; the commit index becomes at least ``index``. ``configuration`` is
        the snapshot's.
        """
        hard = self.hard_state
        if term > hard.term:
            hard = replace(hard, term=term, vote=0)  # it has not voted in that newer term
        hard = replace(hard, commit=max(hard.commit, index))
        writes: list[Write] = [("meta", _HARD_STATE, _encode(hard))]
        self._hard_state_unwritten = False
        # Entries left after the new base would be taken for part of the log; those before it are garbage.
        writes += [("entries", _INDEX.pack(i), None) for i in range(index + 1, self._last + 1)]
        self.hard_state = hard
        self._cache.clear()
        self._sizes.clear()
        self._cached = self._size = 0
        self._last = index
        self._set_base(LogBase(index, term), configuration, writes)
        self._terms = _Terms(self._base)
        self._remove_slice(writes)
        self._engine.write(writes)
        self._engine.sync()

    def _set_base(self, base: LogBase, configuration: Configuration | None, writes: list[Write]) -> None:
        self._base = base
        self._terms.set_base(base)
        writes.append(("meta", _BASE, _encode(base)))
        if configuration is not None:
            self.configuration = configuration
            writes.append(("meta", _CONFIGURATION, _encode(configuration)))

    def _remove_slice(self, writes: list[Write]) -> None:
        """Remove one slice of the trimmed entries from disk."""
        end = min(self._base.index + 1, self._garbage_start + LOG_TRIM_SLICE_ENTRIES)
        writes += [("entries", _INDEX.pack(i), None) for i in range(self._garbage_start, end)]
        self._garbage_start = max(self._garbage_start, end)

    def close(self) -> None:
        """Release the database. Unsynced writes survive the process, but not a loss of power."""
        writes: list[Write] = []
        self._add_hard_state(writes)
        if writes:
            with contextlib.suppress(KeeperError):  # a full or broken disk: the commit index is a hint
                self._engine.write(writes)
        self._engine.close()


def _stored(entry: Entry) -> bytes:
    """An entry as it is written: without many zeros in a row, so that blank bytes on disk were never written (see
    ``rocks_wal``)."""
    data, mask = entry.data, 0
    if _ZEROS in data:
        mask = next((byte for byte in range(1, 256) if bytes((byte,)) * len(_ZEROS) not in data), 0)
        data = data.translate(_MASKS[mask])
    return _HEAD.pack(entry.term, entry.kind, mask) + data


def _entry(key: bytes, value: bytes) -> Entry:
    """Reverse of ``_stored``."""
    try:
        (index,) = _INDEX.unpack(key)
        term, kind, mask = _HEAD.unpack_from(value)
        data = value[_HEAD.size :]
        return Entry(index, term, EntryKind(kind), data.translate(_MASKS[mask]) if mask else data)
    except (struct.error, ValueError) as error:
        raise DataCorrupted(f"an entry of the log cannot be read: {error}") from error
