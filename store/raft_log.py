"""The Raft log on disk: entries by index, hard state, and the mark behind which the log begins.

A promise is on disk before it is spoken (Raft paper, figure 2: currentTerm, votedFor and log[] are persistent), so
entries and hard state go in one batch, and ``sync`` follows before the caller goes on. Where the log begins (the mark:
index and term of the last entry that is not held) is on disk too, so a cut is one small write; the entries behind the
cut are garbage from then on and go in slices. Terms are kept in memory as runs, the newest entries in a bounded cache:
replicating and applying what has just been written reads no disk. One thread owns a log.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ..actors.raft.log import ENTRY_OVERHEAD, Compacted, Unavailable
from ..actors.raft.messages import Configuration, Entry, EntryKind, HardState
from ..errors import DataCorrupted, KeeperError
from ..limits import LOG_CUT_SLICE
from .engine import Disk, Engine, Write

FAMILIES = ("entries", "meta")

_INDEX = struct.Struct(">Q")
_HEAD = struct.Struct(">QBB")
"""Before an entry's data: term, kind, and what each byte of the data is xored with (see ``_stored``)."""
_ZEROS = bytes(16)
_MASKS = [bytes(byte ^ mask for byte in range(256)) for mask in range(256)]
_HARD, _MARK, _CONFIGURATION = b"hard", b"mark", b"configuration"
_encode = msgspec.msgpack.Encoder().encode
_decode_hard = msgspec.msgpack.Decoder(HardState).decode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The last entry that the log does not hold any more."""

    index: int = 0
    term: int = 0


_decode_mark = msgspec.msgpack.Decoder(Mark).decode


class _Terms:
    """The terms of consecutive entries, as runs: (first index, term). Entries of one term are neighbours."""

    def __init__(self, mark: Mark) -> None:
        self.indexes = [mark.index]
        self.terms = [mark.term]

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

    def begin_at(self, mark: Mark) -> None:
        keep = bisect_right(self.indexes, mark.index)
        del self.indexes[:keep], self.terms[:keep]
        self.indexes.insert(0, mark.index)
        self.terms.insert(0, mark.term)


class RaftLog:
    """The durable part of a Raft node: what ``Node`` reads through ``Storage``, and what its owner writes."""

    hard_state: HardState
    """Term, vote and commit index; all of it is on disk but perhaps the newest commit index (see ``append``)."""

    def __init__(self, engine: Engine, *, cache_bytes: int) -> None:
        self._engine = engine
        self._cache_bytes = cache_bytes
        self._cache: deque[Entry] = deque()
        """The newest entries, without a gap, up to the last."""
        self._cached = 0
        self.hard_state = HardState()
        self._hard_waits = False
        """Whether the hard state has a commit index that is not written yet."""
        self.configuration: Configuration | None = None
        """One that was applied when the log was last cut or reset: with it and the entries that follow, the
        configuration is known even without the state. ``None`` if nothing was ever cut off."""
        self._mark = Mark()
        self._garbage = 1
        """The first index whose entry may still lie on disk behind the mark."""
        self._last = 0
        self._sizes: deque[int] = deque()
        """Sizes of all held entries."""
        self._size = 0
        self._terms = _Terms(self._mark)

    @classmethod
    def create(cls, disk: Disk, path: str, *, cache_bytes: int) -> RaftLog:
        """Make a new, empty log where there is none. For bootstrap and join only.

        Raises:
            DataCorrupted: there is something.
        """
        engine = disk.open(path, FAMILIES, create=True, is_log=True)
        log = cls(engine, cache_bytes=cache_bytes)
        engine.write([("meta", _HARD, _encode(log.hard_state)), ("meta", _MARK, _encode(log._mark))])
        engine.sync()
        return log

    @classmethod
    def open(cls, disk: Disk, path: str, *, cache_bytes: int) -> RaftLog:
        """Open an existing log.

        Raises:
            DataCorrupted: missing or damaged: the vote may be gone, so the member may not serve under its id.
        """
        engine = disk.open(path, FAMILIES, is_log=True)
        log = cls(engine, cache_bytes=cache_bytes)
        try:
            log._load(path)
            # A process that died between write and sync leaves what the next one reads, but a loss of power may still
            # take. Whoever reads it will promise it.
            engine.sync()
        except BaseException:
            engine.close()
            raise
        return log

    def _load(self, path: str) -> None:
        hard, mark = self._engine.get("meta", _HARD), self._engine.get("meta", _MARK)
        if hard is None or mark is None:
            raise DataCorrupted(f"{path}: no hard state")
        try:
            self.hard_state, self._mark = _decode_hard(hard), _decode_mark(mark)
            configuration = self._engine.get("meta", _CONFIGURATION)
            if configuration is not None:
                self.configuration = _decode_configuration(configuration)
        except msgspec.MsgspecError as error:
            raise DataCorrupted(f"{path}: hard state cannot be read: {error}") from error
        self._terms = _Terms(self._mark)
        self._last = self._mark.index
        self._garbage = self._mark.index + 1
        for key, _ in self._engine.iterate("entries", b"", _INDEX.pack(self._mark.index + 1)):
            self._garbage = _INDEX.unpack(key)[0]
            break
        for key, value in self._engine.iterate("entries", _INDEX.pack(self._mark.index + 1)):
            entry = _entry(key, value)
            if entry.index != self._last + 1 or entry.term < self._terms.terms[-1]:
                raise DataCorrupted(f"{path}: entry {entry.index} of term {entry.term} follows entry {self._last}")
            self._take(entry)
        if self.hard_state.term < self._terms.terms[-1] or self.hard_state.commit > self._last:
            raise DataCorrupted(f"{path}: {self.hard_state} does not fit a log that ends at {self._last}")

    def _take(self, entry: Entry) -> None:
        """Count an entry in behind the last."""
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
        """Whether nothing was ever promised here: no term, no vote, no entry, no snapshot."""
        return self.hard_state == HardState() and self._last == 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the held entries."""
        return self._size

    def first_index(self) -> int:
        """Index of the first entry held; the last index plus one if none is."""
        return self._mark.index + 1

    def last_index(self) -> int:
        """Index of the last entry; the mark's if none is held."""
        return self._last

    def term(self, index: int) -> int:
        """The term of a held entry, or of the mark.

        Raises:
            Compacted: the index lies before the mark.
            Unavailable: it lies behind the last entry.
        """
        if index < self._mark.index:
            raise Compacted(f"entry {index} was cut off; the log begins at {self._mark.index + 1}")
        if index > self._last:
            raise Unavailable(f"entry {index} does not exist; the log ends at {self._last}")
        return self._terms.at(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries with ``low <= index < high``, as many as fit in ``max_bytes``, but at least one.

        Raises:
            Compacted: ``low`` lies before the first entry.
            Unavailable: ``high`` lies behind the last entry plus one.
        """
        if low <= self._mark.index:
            raise Compacted(f"entry {low} was cut off; the log begins at {self._mark.index + 1}")
        if high > self._last + 1:
            raise Unavailable(f"entry {high - 1} does not exist; the log ends at {self._last}")
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
        """Write entries (they replace what the log holds from the first of them on) and hard state, all or none.

        A commit index that comes alone goes with the next write: it is a hint, which a leader gives again, and would
        double the writes of a member that gets one command at a time.

        Args:
            entries: consecutive, beginning at most one behind the last and behind the mark; may be empty.
            hard_state: ``None`` if it has not changed; if term or vote have, ``sync`` it.
            sync: return only once all of it, and all written before, is on the disk.
        """
        writes: list[Write] = []
        if entries:
            first = entries[0].index
            if not self._mark.index < first <= self._last + 1:
                raise ValueError(f"entries from {first} do not continue a log of {self._mark.index + 1}..{self._last}")
            if first <= self.hard_state.commit:
                raise ValueError(f"entries from {first} would replace committed ones up to {self.hard_state.commit}")
            if first <= self._last:
                writes += [("entries", _INDEX.pack(i), None) for i in range(entries[-1].index + 1, self._last + 1)]
                self._drop_from(first)
            for entry in entries:
                writes.append(("entries", _INDEX.pack(entry.index), _stored(entry)))
                self._take(entry)
        if hard_state is not None:
            self.hard_state = hard_state
            self._hard_waits = True
        if writes or sync:
            self._add_hard_state(writes)
        if writes:
            self._engine.write(writes)
        if sync:
            self._engine.sync()

    def _add_hard_state(self, writes: list[Write]) -> None:
        if self._hard_waits:
            writes.append(("meta", _HARD, _encode(self.hard_state)))
            self._hard_waits = False

    def _drop_from(self, index: int) -> None:
        """Forget, in memory, the entries from ``index`` on."""
        for _ in range(index, self._last + 1):
            size = self._sizes.pop()
            self._size -= size
            if self._cache:
                self._cache.pop()
                self._cached -= size
        self._last = index - 1
        self._terms.drop_from(index)

    def cut(self, index: int, configuration: Configuration | None = None) -> bool:
        """Begin the log behind ``index``. The caller has synced the state past it (rules of the disk).

        The entries go from the disk in slices, one a call.

        Args:
            configuration: the newest that was applied, so of an entry at or behind ``index`` or before it.

        Returns:
            whether there is more to remove: call again, with the same index or a later one.
        """
        if index > self._last:
            raise ValueError(f"cannot cut at {index}: the log ends at {self._last}")
        writes: list[Write] = []
        if index > self._mark.index:
            mark = Mark(index, self._terms.at(index))
            for position in range(self._mark.index + 1, index + 1):
                size = self._sizes.popleft()
                self._size -= size
                if self._cache and self._cache[0].index == position:
                    self._cache.popleft()
                    self._cached -= size
            self._begin_at(mark, configuration, writes)
        self._sweep(writes)
        if writes:
            self._add_hard_state(writes)
            self._engine.write(writes)
        return self._garbage <= self._mark.index

    def reset(self, index: int, term: int, configuration: Configuration | None = None) -> None:
        """Empty the log and let it begin behind (index, term): a snapshot has taken the place of all of it.

        Term and vote stay; the commit index becomes at least ``index``. ``configuration`` is the snapshot's.
        """
        hard = self.hard_state
        if term > hard.term:
            hard = replace(hard, term=term, vote=0)  # never voted in that term
        hard = replace(hard, commit=max(hard.commit, index))
        writes: list[Write] = [("meta", _HARD, _encode(hard))]
        self._hard_waits = False
        # What lies behind the new beginning would be taken for entries; what lies before it is garbage.
        writes += [("entries", _INDEX.pack(i), None) for i in range(index + 1, self._last + 1)]
        self.hard_state = hard
        self._cache.clear()
        self._sizes.clear()
        self._cached = self._size = 0
        self._last = index
        self._begin_at(Mark(index, term), configuration, writes)
        self._terms = _Terms(self._mark)
        self._sweep(writes)
        self._engine.write(writes)
        self._engine.sync()

    def _begin_at(self, mark: Mark, configuration: Configuration | None, writes: list[Write]) -> None:
        self._mark = mark
        self._terms.begin_at(mark)
        writes.append(("meta", _MARK, _encode(mark)))
        if configuration is not None:
            self.configuration = configuration
            writes.append(("meta", _CONFIGURATION, _encode(configuration)))

    def _sweep(self, writes: list[Write]) -> None:
        """Remove a slice of what lies before the mark."""
        end = min(self._mark.index + 1, self._garbage + LOG_CUT_SLICE)
        writes += [("entries", _INDEX.pack(i), None) for i in range(self._garbage, end)]
        self._garbage = max(self._garbage, end)

    def close(self) -> None:
        """Release the database. What was not synced may be lost with the machine, not with the process."""
        writes: list[Write] = []
        self._add_hard_state(writes)
        if writes:
            with contextlib.suppress(KeeperError):  # a full or broken disk: the commit index is a hint
                self._engine.write(writes)
        self._engine.close()


def _stored(entry: Entry) -> bytes:
    """An entry as it is written: without many zeros in a row, so that what is blank is what was never written."""
    data, mask = entry.data, 0
    if _ZEROS in data:
        mask = next((byte for byte in range(1, 256) if bytes((byte,)) * len(_ZEROS) not in data), 0)
        data = data.translate(_MASKS[mask])
    return _HEAD.pack(entry.term, entry.kind, mask) + data


def _entry(key: bytes, value: bytes) -> Entry:
    try:
        (index,) = _INDEX.unpack(key)
        term, kind, mask = _HEAD.unpack_from(value)
        data = value[_HEAD.size :]
        return Entry(index, term, EntryKind(kind), data.translate(_MASKS[mask]) if mask else data)
    except (struct.error, ValueError) as error:
        raise DataCorrupted(f"an entry of the log cannot be read: {error}") from error
