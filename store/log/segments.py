"""The log's files: segments of blank sectors, each written once (docs/architecture/log-format.md).

Four rules make a start's verdict certain, and must hold in every method here. A segment has a number in its name only
once it is blank on disk. A record is written where the last one ended, on sectors that are blank. The next segment is
written to only after this one was sealed and synced. Segments go, oldest first, only after a synced note says that
their entries are not needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec.structs import replace

from ...errors import DataCorrupted, NoSpace
from ...limits import LOG_BLANK_PAUSE_S, LOG_BLANK_SLICE_BYTES, LOG_FREE_SEGMENTS
from ...raft.log import ENTRY_OVERHEAD
from ...raft.messages import Entry, EntryKind, HardState
from ..engine.interface import BlockFile, Disk
from .entry_index import EntryIndex
from .log_record import (
    OPENS,
    ROW,
    SEALS,
    SECTOR,
    LogBase,
    LogNote,
    LogRecord,
    RecordPlace,
    crc32c,
    encode_note,
    pack_content,
    pack_record,
    to_sector,
)
from .repair import SegmentContent, read_segment

_SUFFIX = ".wal"
_SPARE = "spare"
"""A segment that is being made blank. It is nothing until it has a number."""


class SegmentedLog:
    """A write-ahead log in segments (``log_store.LogStore``)."""

    note: LogNote
    index: EntryIndex

    def __init__(self, disk: Disk, path: str, log: int, segment_bytes: int) -> None:
        self._disk = disk
        self._path = path
        self._log = log
        self._segment_bytes = to_sector(segment_bytes)
        self.note = LogNote(HardState(), LogBase())
        self.index = EntryIndex(1)
        self._chain = 0
        self._oldest = 1
        """Number of the oldest segment with something in it that is needed."""
        self._free: list[int] = []
        """Numbers of older segments that are kept to be recycled, ascending."""
        self._number = 1
        """Of the segment that is written to..."""
        self._file: BlockFile
        """... its file..."""
        self._offset = 0
        """... where the next record begins in it..."""
        self._durable = 0
        """... and how far it is synced for certain."""
        self._unsynced = False
        """Whether anything was written since the last sync, perhaps by an earlier process."""
        self._hurry = threading.Event()
        """The next segment is waited for."""
        self._wait_for_next: Callable[[], None] | None = None
        """Waits until the next segment is made, or that has failed. ``None``: nothing makes it."""
        self._reading: tuple[int, BlockFile] | None = None
        """An older segment that is open for reading."""
        self.written_bytes = 0
        """By this process; for metrics."""
        self._broken: Exception | None = None
        """A failed write. What is on disk is not known, so nothing more may be written."""

    # -- creating and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, disk: Disk, path: str, *, log: int, segment_bytes: int) -> SegmentedLog:
        """Create a log whose first record is not written yet.

        Raises:
            DataCorrupted: there is something in the folder already.
        """
        if disk.list(path):
            raise DataCorrupted(f"{path}: there is already a log")
        disk.make_folder(path)
        store = cls(disk, path, log, segment_bytes)
        _prepare(disk, path, 1, store._segment_bytes, None)
        store._file = disk.open_file(store._name(1))
        store._prepare_next()
        return store

    @classmethod
    def open(cls, disk: Disk, path: str, *, segment_bytes: int) -> SegmentedLog:
        """Open a log: read all of it, and drop torn records. Call ``sync`` before anything that was read is promised.

        Raises:
            DataCorrupted: missing or damaged.
        """
        names = disk.list(path)
        numbers = sorted(int(name.removesuffix(_SUFFIX)) for name in names if _is_segment(name))
        if not numbers:
            raise DataCorrupted(f"{path}: there is no log" + (" of this version" if names else ""))
        store = cls(disk, path, 0, segment_bytes)
        first = max(number for number in numbers if number - 1 not in numbers)
        contents = store._replay(first, numbers[-1])
        store._check(contents)
        store._settle(contents)
        for number in [number for number in numbers if number < first]:
            disk.remove(store._name(number))  # trimmed; the removal of a later one was durable first
        return store

    def _replay(self, first: int, last: int) -> dict[int, SegmentContent]:
        """Read the segments in order, up to the first that is not sealed; what is after that must be blank."""
        contents: dict[int, SegmentContent] = {}
        log: int | None = None
        chain: int | None = None
        for number in range(first, last + 1):
            path = self._name(number)
            content = read_segment(path, self._disk.read(path), number, log, chain)
            before = contents.get(number - 1)
            if before is not None and not before.sealed and (content.records or content.torn):
                raise DataCorrupted(f"{path}: it was written to, but the segment before it ends without a seal")
            contents[number] = content
            for record in content.records:
                self._apply(path, record, first=chain is None)
                log, chain = record.header.log, record.header.chain
        self._log, self._chain = log or 0, chain or 0
        return contents

    def _apply(self, path: str, record: LogRecord, *, first: bool) -> None:
        """Apply a record that was read: what ``append`` did after it had written it, and checks."""
        header, note = record.header, record.note
        if header.flags & OPENS:
            last = (note and note.last) or LogBase()
            if first:
                self.index = EntryIndex(last.index + 1, last.term)
            elif (last.index, last.term) != (self.index.last, self.index.last_term):
                raise DataCorrupted(f"{path}: it does not continue the segment before it")
        if note is not None:
            self._merge(note)
        if header.entries:
            index, base = self.index, self.note.base or LogBase()
            if not base.index < header.first <= index.last + 1:
                raise DataCorrupted(f"{path}: entry {header.first} follows entry {index.last}")
            index.drop_from(header.first)
            terms, sizes, *_ = zip(*ROW.iter_unpack(record.rows), strict=True)
            terms = (index.last_term, *terms)
            if terms != tuple(sorted(terms)):
                raise DataCorrupted(f"{path}: terms fall from entry {header.first - 1} on: {terms[:10]}")
            index.extend(header.segment, header.offset + header.data_offset, record.rows, sizes)

    def _merge(self, note: LogNote) -> None:
        """Take over what a note says."""
        mine = self.note
        base = note.base or mine.base or LogBase()
        if note.reset:
            self.index = EntryIndex(base.index + 1, base.term)
        elif note.base is not None and self.index.first <= base.index <= self.index.last:
            self.index.drop_to(base.index)
        self.note = LogNote(note.hard_state or mine.hard_state, base, note.configuration or mine.configuration)

    def _check(self, contents: dict[int, SegmentContent]) -> None:
        """Check that nothing is missing: neither the beginning nor the end."""
        numbers = [number for number, content in contents.items() if content.records]
        if not numbers or numbers[0] != min(contents):
            raise DataCorrupted(f"{self._path}: the hard state is missing")
        if contents[numbers[-1]].sealed and numbers[-1] + 1 not in contents:
            raise DataCorrupted(f"{self._path}: segment {numbers[-1] + 1} is missing")
        base, index = self.note.base or LogBase(), self.index
        if not index.first - 1 <= base.index <= index.last:
            raise DataCorrupted(f"{self._path}: the log begins after entry {base.index}, but holds {index}")
        if index.first <= base.index and index.term(base.index) != base.term:
            raise DataCorrupted(f"{self._path}: entry {base.index} is not of term {base.term}")
        index.drop_to(base.index)
        index.set_before(base.term)

    def _settle(self, contents: dict[int, SegmentContent]) -> None:
        """Make the last segment ready to be written to. Nothing in it counts as synced: a process that died between
        write and sync has left data that a loss of power may still take."""
        self._oldest = min(contents)
        self._number = next((number for number, content in contents.items() if not content.sealed), 0)
        content = contents[self._number]
        if not content.end and self._number - 1 in contents:  # perhaps it died between the seal and its sync
            sealed = self._disk.open_file(self._name(self._number - 1))
            sealed.sync(contents[self._number - 1].end)
            sealed.close()
        self._file = self._disk.open_file(self._name(self._number))
        try:
            self._offset = content.end
            if content.torn:
                self._file.write_zeros(content.end, self._file.size)
            self._unsynced = True
        except BaseException:
            self._file.close()
            raise

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry], note: LogNote | None) -> None:
        """As ``LogStore.append``: one write."""
        if self._broken is not None:
            raise OSError(f"{self._path}: a write has failed before: {self._broken}") from self._broken
        content = pack_content(encode_note(note), entries)
        if not self._offset or self._offset + content.size + SECTOR > self._file.size:
            content = pack_content(encode_note(self._opening_note(note)), entries)
            self._open_segment(content.size)
        offset, number = self._offset, self._number
        place = RecordPlace(self._log, number, offset, self._durable, self._chain)
        data, chain = pack_record(place, 0 if offset else OPENS, content)
        self._write(data)
        self._chain = chain
        if note is not None:
            self._merge(note)
        if entries:
            self.index.drop_from(content.first)
            self.index.extend(number, offset + content.data_offset, content.rows, content.sizes)

    def _write(self, data: bytes) -> None:
        self._unsynced = True
        try:
            self._file.write(self._offset, data)
        except Exception as error:
            self._broken = error
            raise
        self._offset += len(data)
        self.written_bytes += len(data)

    def _opening_note(self, note: LogNote | None) -> LogNote:
        """A note with all that a start needs to know of earlier segments, and this one."""
        last = LogBase(self.index.last, self.index.last_term)
        if note is None:
            return replace(self.note, last=last)
        mine = self.note
        return LogNote(
            note.hard_state or mine.hard_state,
            note.base or mine.base,
            note.configuration or mine.configuration,
            note.reset,
            last,
        )

    def _open_segment(self, size: int) -> None:
        """Go on in a blank segment with room for a first record of this size, and for the seal.

        Raises:
            NoSpace: there is none, and no room for one; nothing has changed.
        """
        size += SECTOR
        if not self._offset:
            if size > self._file.size:
                self._join_preparation()
                _prepare(self._disk, self._path, self._number, size, None)
                self._file.close()
                self._file = self._disk.open_file(self._name(self._number))
                self._prepare_next()
            return
        following = self._next_segment(size)
        place = RecordPlace(self._log, self._number, self._offset, self._durable, self._chain)
        seal, chain = pack_record(place, SEALS, pack_content(b"", ()))
        try:
            self._write(seal)
        except BaseException:
            following.close()
            raise
        self._chain = chain
        self.sync()
        self._file.close()
        self._file, self._number, self._offset, self._durable = following, self._number + 1, 0, 0
        self._prepare_next()

    def _next_segment(self, size: int) -> BlockFile:
        """The next segment, open. It exists under its name, durably, before this one is sealed."""
        self.reserve(size)
        return self._disk.open_file(self._name(self._number + 1))

    def reserve(self, size: int = 0) -> None:
        """As ``LogStore.reserve``: there must be a next segment, with room for a record of this size."""
        self._join_preparation()
        number = self._number + 1
        name = self._name(number)
        if not self._disk.exists(name) or self._disk.size(name) < size:
            _prepare(self._disk, self._path, number, max(size, self._segment_bytes), self._take_free())

    def _take_free(self) -> str | None:
        """The file of a segment to be recycled, if there is one."""
        return self._name(self._free.pop(0)) if self._free else None

    def _prepare_next(self) -> None:
        """Let a thread make the next segment, of one that is free if there is one."""
        recycled = self._take_free()
        disk, path, number, size = self._disk, self._path, self._number + 1, self._segment_bytes
        self._hurry = hurry = threading.Event()
        self._wait_for_next = disk.in_background(
            lambda: _prepare(disk, path, number, size, recycled, lambda: hurry.wait(LOG_BLANK_PAUSE_S))
        )

    def _join_preparation(self) -> None:
        """Wait until the next segment is made. If that has failed, it is tried again when the segment is needed."""
        wait, self._wait_for_next = self._wait_for_next, None
        if wait is not None:
            self._hurry.set()
            with suppress(Exception):
                wait()

    def sync(self) -> None:
        """As ``LogStore.sync``."""
        if self._unsynced:
            self._file.sync(self._offset)
            self._durable = self._offset
            self._unsynced = False

    def release(self) -> None:
        """As ``LogStore.release``: whole segments, oldest first; some are kept to be recycled."""
        needed = self.index.first_segment()
        needed = self._number if needed is None else needed
        if not self._offset:
            needed = min(needed, self._number - 1)  # a blank segment does not repeat yet what the others say
        if needed <= self._oldest:
            return
        self.sync()
        if self._reading is not None and self._reading[0] < needed:
            self._reading[1].close()
            self._reading = None
        free = [*self._free, *range(self._oldest, needed)]
        self._oldest = needed
        for number in free[:-LOG_FREE_SEGMENTS]:
            self._disk.remove(self._name(number))
        self._free = free[-LOG_FREE_SEGMENTS:]

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """As ``LogStore.read``: one read for each segment."""
        found: list[Entry] = []
        size, index = 0, self.index
        while low < high:
            segment, start, *_ = index.at(low)
            rows: list[tuple[int, int, int, int, int, int]] = []
            for position in range(low, high):
                number, offset, term, length, check, kind = index.at(position)
                size += length + ENTRY_OVERHEAD
                if number != segment or ((found or rows) and size > max_bytes):
                    break
                rows.append((position, offset, term, length, check, kind))
            if not rows:
                break
            _, offset, _, length, *_ = rows[-1]
            data = self._segment(segment).read(start, offset + length - start)
            for position, offset, term, length, check, kind in rows:
                content = data[offset - start : offset - start + length]
                if len(content) != length or crc32c(0, content) != check:
                    raise DataCorrupted(f"{self._name(segment)}: entry {position} is damaged")
                found.append(Entry(position, term, EntryKind(kind), content))
            low += len(rows)
            if size > max_bytes:
                break
        return found

    def _segment(self, number: int) -> BlockFile:
        if number == self._number:
            return self._file
        if self._reading is None or self._reading[0] != number:
            if self._reading is not None:
                self._reading[1].close()
                self._reading = None
            self._reading = number, self._disk.open_file(self._name(number))
        return self._reading[1]

    def close(self) -> None:
        """As ``LogStore.close``."""
        self._join_preparation()
        self._file.close()
        if self._reading is not None:
            self._reading[1].close()

    def _name(self, number: int) -> str:
        return f"{self._path}/{segment_name(number)}"


def segment_name(number: int) -> str:
    """The file of a segment."""
    return f"{number:010}{_SUFFIX}"


def _is_segment(name: str) -> bool:
    return name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isdigit()


def _prepare(
    disk: Disk, path: str, number: int, size: int, recycled: str | None, pause: Callable[[], object] = lambda: None
) -> None:
    """Make a blank segment, and give it its number once it is blank on disk. Runs on a thread of its own, too.

    A segment that is recycled loses its number first: a start must not find it half blank. If there is no room, what
    was reserved of it is given back: the file system may have reserved a part, which the state needs more.
    """
    spare = f"{path}/{_SPARE}"
    if recycled is not None and disk.size(recycled) == size:
        disk.rename(recycled, spare)
    elif recycled is not None:
        disk.remove(recycled)
    try:
        file = disk.open_file(spare, size)
        try:
            for start in range(0, size, LOG_BLANK_SLICE_BYTES):
                if start:
                    pause()
                file.write_zeros(start, min(start + LOG_BLANK_SLICE_BYTES, size))
                file.sync(0)
        finally:
            file.close()
        disk.rename(spare, f"{path}/{segment_name(number)}")
    except NoSpace:
        disk.remove(spare)
        raise
