"""Which keys are in a few small ranges: what transactions have found there, kept right by every later change.

A lock, an election and the line of a semaphore ask in each of their transactions who is in their prefix, which holds a
few keys that come and go. RocksDB keeps a tombstone for each key that went, and an iterator passes over all that lie in
the range. That costs about as much as all else of such a transaction. The next transaction that asks is answered from
here.

It is memory only, and says nothing that the database would not: a range is known from an iteration that has reached its
end. So members may know different ranges, and an answer never depends on it.

The ranges do not overlap, so at most one of them has to be told of a key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from ...limits import KNOWN_KEY_BYTES, SMALL_RANGE_KEYS, SMALL_RANGES


class SmallRanges:
    """The keys of some ranges."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[bytes, list[bytes]]] = {}
        """Start -> end and keys in order; the longest known first."""
        self._starts: list[bytes] = []
        """In order."""
        self.changes = 0
        """Keys created or deleted so far, and times that all was forgotten: what was found is remembered only if none
        came in between."""

    def keys(self, start: bytes, end: bytes) -> list[bytes] | None:
        """The keys with ``start <= key < end``, in order; ``None`` if that is not known."""
        known = self._known.get(start)
        return known[1] if known is not None and known[0] == end else None

    def remember(self, start: bytes, end: bytes, keys: list[bytes]) -> None:
        """These are all keys of a range, in order. Other ranges that overlap with it are forgotten."""
        if start >= end or len(keys) > SMALL_RANGE_KEYS or max(map(len, (start, end, *keys))) > KNOWN_KEY_BYTES:
            return
        starts, known = self._starts, self._known
        at = bisect_left(starts, start)
        if at and known[starts[at - 1]][0] > start:
            at -= 1
        while at < len(starts) and starts[at] < end:
            del known[starts.pop(at)]
        if len(starts) == SMALL_RANGES:
            self._forget(next(iter(known)))
        insort(starts, start)
        known[start] = end, keys

    def key_added(self, key: bytes) -> None:
        """A key that did not exist exists now."""
        self.changes += 1
        if (start := self._range_of(key)) is not None:
            keys = self._known[start][1]
            if len(keys) == SMALL_RANGE_KEYS or len(key) > KNOWN_KEY_BYTES:
                self._forget(start)
            else:
                insort(keys, key)

    def key_removed(self, key: bytes) -> None:
        """A key that existed exists no longer."""
        self.changes += 1
        if (start := self._range_of(key)) is not None:
            self._known[start][1].remove(key)

    def forget_all(self) -> None:
        """Changes were undone."""
        self.changes += 1
        self._known.clear()
        self._starts.clear()

    def _range_of(self, key: bytes) -> bytes | None:
        """The start of the range that a key is in."""
        at = bisect_right(self._starts, key)
        if not at:
            return None
        start = self._starts[at - 1]
        return start if key < self._known[start][0] else None

    def _forget(self, start: bytes) -> None:
        del self._known[start]
        del self._starts[bisect_left(self._starts, start)]
