"""A member's Raft log as a loss of power would leave it: read from the simulated disk, record by record.

It shares the format of records with the product, and nothing else: what is synced, where a segment ends, and what a
record does to the log are written once more here.
"""

from __future__ import annotations

from collections import deque

from raykeeper.raft.messages import HardState
from raykeeper.store.log.log_record import OPENS, ROW, SEALS, LogBase, LogRecord, read_header, read_record
from simulation.disk import SimDisk


class DurableLog:
    """What is durable of a log. ``refresh`` reads what is new."""

    def __init__(self, disk: SimDisk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._seen = (-1, -1)
        self._segment = 1
        self._offset = 0
        self._chain: int | None = None
        """``None`` where records before are gone: they were trimmed."""
        self.newest: deque[tuple[str, int, int]] = deque(maxlen=8)
        """The newest records that are durable: the file of each, its offset, and how many of its bytes are read."""
        self.hard_state = HardState()
        self._base = LogBase()
        self._last = 0
        self._terms: dict[int, int] = {}

    def holds(self, index: int, term: int | None = None) -> bool:
        """Whether the entry is there (of that term), or was trimmed."""
        if index <= self._base.index:
            return True
        return index in self._terms and (term is None or self._terms[index] == term)

    def refresh(self) -> None:
        """Read the records that have become durable since."""
        now = (self._disk.operations, self._disk.losses)
        if now == self._seen:
            return
        self._seen = now
        while True:
            name = f"{self._path}/{self._segment:010}.wal"
            if not self._disk.exists(name):
                later = [int(name[:10]) for name in self._disk.list(self._path) if name[:10].isdigit()]
                later = [number for number in later if number > self._segment]
                if not later:
                    return
                self._segment, self._offset, self._chain = min(later), 0, None
                continue
            data = self._disk.synced_file(name)
            while True:
                header = read_header(data, self._offset)
                if header is None or (header.segment, header.offset) != (self._segment, self._offset):
                    return
                if self._chain not in (None, header.previous):
                    return
                record = read_record(data, header)
                if record is None:
                    return
                self._apply(record)
                self.newest.append((name, self._offset, header.data_offset + header.data_size))
                self._chain = header.chain
                self._offset += header.size
                if header.flags & SEALS:
                    self._segment, self._offset = self._segment + 1, 0
                    break

    def _apply(self, record: LogRecord) -> None:
        note, header = record.note, record.header
        if note is not None:
            if note.hard_state is not None:
                self.hard_state = note.hard_state
            if header.flags & OPENS and note.last is not None:
                self._last = note.last.index
            if note.base is not None:
                self._base = note.base
                for index in [index for index in self._terms if index <= note.base.index]:
                    del self._terms[index]
            if note.reset:
                self._terms.clear()
                self._last = self._base.index
        if header.entries:
            for index in range(header.first, self._last + 1):
                self._terms.pop(index, None)
            terms = [term for term, *_ in ROW.iter_unpack(record.rows)]
            self._terms.update(enumerate(terms, header.first))
            self._last = header.first + header.entries - 1
