"""Where each entry of the log lies, and what a start reads of it: in memory, 25 bytes an entry."""

from __future__ import annotations

from array import array
from itertools import accumulate

from ...raft.log import ENTRY_OVERHEAD
from .log_record import EntryRows

_OFFSET_BITS = 32


class EntryIndex:
    """Consecutive entries, by index. Later entries never lie before earlier ones."""

    def __init__(self, first: int, before: int = 0) -> None:
        self.first = first
        """Index of the first entry held, or of the next one if there is none."""
        self.before = before
        """Term of the entry before the first."""
        self.size = 0
        """Bytes of the entries held, as ``ENTRY_OVERHEAD`` counts them."""
        self._terms: array[int] = array("Q")
        self._sizes = array("I")
        self._checks = array("I")
        self._kinds = array("B")
        self._places = array("Q")
        """Number of the segment and offset of the data in it."""
        self._columns = (self._terms, self._sizes, self._checks, self._kinds, self._places)

    @property
    def last(self) -> int:
        """Index of the last entry held; ``first - 1`` if there is none."""
        return self.first + len(self._terms) - 1

    @property
    def last_term(self) -> int:
        """Term of the last entry held, or of the one before the first."""
        return self._terms[-1] if self._terms else self.before

    def term(self, index: int) -> int:
        """Term of an entry held, or of the one before the first."""
        return self.before if index < self.first else self._terms[index - self.first]

    def size_of(self, index: int) -> int:
        """Bytes of a held entry's data."""
        return self._sizes[index - self.first]

    def extend(self, segment: int, offset: int, rows: EntryRows) -> None:
        """Add entries after the last: their data lies in a segment from ``offset`` on."""
        sizes = rows.sizes
        self.size += sum(sizes) + ENTRY_OVERHEAD * len(sizes)
        self._terms.extend(rows.terms)
        self._sizes.extend(sizes)
        self._checks.extend(rows.checks)
        self._kinds.extend(rows.kinds)
        self._places.extend(accumulate(sizes[:-1], initial=segment << _OFFSET_BITS | offset))

    def at(self, index: int) -> tuple[int, int, int, int, int, int]:
        """Segment, offset, term, size, check and kind of an entry."""
        position = index - self.first
        place = self._places[position]
        return (
            place >> _OFFSET_BITS,
            place & ((1 << _OFFSET_BITS) - 1),
            self._terms[position],
            self._sizes[position],
            self._checks[position],
            self._kinds[position],
        )

    def drop_from(self, index: int) -> None:
        """Forget the entries from ``index`` on. If that is before the first, the next entry is the new first."""
        keep = max(0, index - self.first)
        self.size -= sum(self._sizes[keep:]) + ENTRY_OVERHEAD * (len(self._sizes) - keep)
        for column in self._columns:
            del column[keep:]
        if index < self.first:
            self.first, self.before = index, 0  # unknown

    def drop_to(self, index: int) -> None:
        """Forget the entries up to ``index``, which is held, or the one before the first."""
        count = index + 1 - self.first
        if count <= 0:
            return
        self.before = self._terms[count - 1]
        self.size -= sum(self._sizes[:count]) + ENTRY_OVERHEAD * count
        for column in self._columns:
            del column[:count]
        self.first = index + 1

    def first_segment(self) -> int | None:
        """The segment of the first entry; ``None`` if no entry is held."""
        return self._places[0] >> _OFFSET_BITS if self._places else None

    def __repr__(self) -> str:
        return f"entries {self.first} to {self.last}"
