"""Where each entry of the log lies, and what a start reads of it: in memory, 25 bytes an entry."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate

from ...raft.log import ENTRY_OVERHEAD
from .log_record import ROW

_OFFSET_BITS = 32
_TERM = struct.Struct("<Q")
_SIZE = struct.Struct(f"<{_TERM.size}xI{ROW.size - _TERM.size - 4}x")


class EntryIndex:
    """Consecutive entries, by index. Later entries never lie before earlier ones."""

    def __init__(self, first: int, before: int = 0) -> None:
        self.first = first
        """Index of the first entry held, or of the next one if there is none."""
        self.last = first - 1
        """Index of the last entry held; ``first - 1`` if there is none."""
        self.before = before
        """Term of the entry before the first."""
        self.last_term = before
        """Term of the last entry held, or of the one before the first."""
        self.size = 0
        """Bytes of the entries held, as ``ENTRY_OVERHEAD`` counts them."""
        self._rows = bytearray()
        """The entries' rows, as in their records."""
        self._places: array[int] = array("Q")
        """Number of the segment and offset of the data in it."""

    def term(self, index: int) -> int:
        """Term of an entry held, or of the one before the first."""
        if index == self.last:
            return self.last_term
        return self._term_at(index) if index >= self.first else self.before

    def _term_at(self, index: int) -> int:
        (term,) = _TERM.unpack_from(self._rows, (index - self.first) * ROW.size)
        return int(term)

    def size_of(self, index: int) -> int:
        """Bytes of a held entry's data."""
        return self.at(index)[3]

    def extend(self, segment: int, offset: int, rows: bytes, sizes: Sequence[int]) -> None:
        """Add entries after the last, with these rows: their data lies in a segment from ``offset`` on."""
        self.size += sum(sizes) + ENTRY_OVERHEAD * len(sizes)
        self._rows += rows
        self._places.extend(accumulate(sizes[:-1], initial=segment << _OFFSET_BITS | offset))
        self.last += len(sizes)
        (self.last_term,) = _TERM.unpack_from(rows, -ROW.size)

    def at(self, index: int) -> tuple[int, int, int, int, int, int]:
        """Segment, offset, term, size, check and kind of an entry."""
        position = index - self.first
        place = self._places[position]
        term, size, check, kind = ROW.unpack_from(self._rows, position * ROW.size)
        return place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1), term, size, check, kind

    def drop_from(self, index: int) -> None:
        """Forget the entries from ``index`` on. If that is before the first, the next entry is the new first."""
        if index > self.last:
            return
        keep = max(0, index - self.first)
        self.size -= self._bytes_of(keep, len(self._places))
        del self._rows[keep * ROW.size :]
        del self._places[keep:]
        if index < self.first:
            self.first, self.before = index, 0  # unknown
        self.last = index - 1
        self.last_term = self._term_at(self.last) if keep else self.before

    def drop_to(self, index: int) -> None:
        """Forget the entries up to ``index``, which is held, or the one before the first."""
        count = index + 1 - self.first
        if count <= 0:
            return
        self.before = self._term_at(index)
        self.size -= self._bytes_of(0, count)
        del self._rows[: count * ROW.size]
        del self._places[:count]
        self.first = index + 1

    def _bytes_of(self, low: int, high: int) -> int:
        rows = _SIZE.iter_unpack(self._rows[low * ROW.size : high * ROW.size])
        sizes: list[int] = [size for (size,) in rows]
        return sum(sizes) + ENTRY_OVERHEAD * len(sizes)

    def set_before(self, term: int) -> None:
        """Set the term of the entry before the first."""
        self.before = term
        if self.last < self.first:
            self.last_term = term

    def first_segment(self) -> int | None:
        """The segment of the first entry; ``None`` if no entry is held."""
        return self._places[0] >> _OFFSET_BITS if self._places else None

    def __repr__(self) -> str:
        return f"entries {self.first} to {self.last}"
