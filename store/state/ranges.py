"""Reading the keys as of a revision: one key or a range, within a budget.

Readers run on other threads, concurrent with the writer. What they read at a fixed revision cannot change, because
every record is kept until compaction. And compaction raises the compact revision before it removes the first record. So
a reader that finds the compact revision at or below its own *after* its last look at the disk has seen everything.

``keys`` holds the keys that exist now, in key order: a read of the present is one pass over it, however many keys were
deleted lately. A read of the past takes from ``keys`` what has not changed since, and the rest from ``versions``. The
history says which keys those are, as long as it is short. Beyond ``PAST_CHANGES`` changes it is cheaper to find the
keys of the range in ``versions``; only the cost of that way depends on deleted keys. In every case the iterator over
``keys`` is opened first: later looks see what changes after that.

The cost of a read is counted in a :class:`Budget`: in keys that exist, existed then, or have changed since. It never
depends on what compaction has or has not removed, so a command that exceeds its budget does so on every member.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from heapq import merge
from typing import Any, Protocol

from ...limits import PAST_CHANGES
from ...schema.answers import Item, RangeAnswer, RangePart
from ...schema.operations import KeyRange, Range, Sort
from .mvcc import (
    CHANGE,
    HEAD,
    INLINE,
    ITEM_OVERHEAD,
    RECORD,
    REVISION,
    TOMBSTONE,
    bounds,
    memcomparable,
    plain_key,
    version_key,
)
from .write_batch import Source, WriteBatch

WEIGHT_SHIFT = 10
"""As a shift: this many bytes of values count as one key."""


class RecordMissing(Exception):
    """A record is missing: compaction has overtaken the reader, or the data is damaged."""


class TooManyKeys(Exception):
    """The budget is used up."""

    def __init__(self, next: bytes) -> None:
        super().__init__()
        self.next = next
        """The first key that was not looked at."""


class Budget:
    """How much may still be looked at. Keys, changes, and kilobytes of values count alike.

    Args:
        left: the amount.
        deleted: how many keys that the same command has deleted may be skipped.
    """

    __slots__ = ("deleted", "left")

    def __init__(self, left: int, deleted: int = 0) -> None:
        self.left = left
        self.deleted = deleted


class Newest(Protocol):
    """Knows which revision readers see as the newest."""

    def shows(self, revision: int) -> bool:
        """Whether an iterator opened just before this call shows this revision and nothing newer. For any thread."""
        ...


class RevisionView:
    """A source as of a revision.

    Args:
        source: a database, or a batch on top of one.
        revision: the revision to read.
        newest: tells whether that is the newest; ``None`` to treat it as a past one.
        far: whether a distant past may be read by searching ``versions``, at a cost that the budget does not count.
    """

    __slots__ = ("_newest", "far", "revision", "source")

    def __init__(self, source: Source, revision: int, newest: Newest | None = None, far: bool = False) -> None:
        self.source = source
        self.revision = revision
        self._newest = newest
        self.far = far

    def is_current(self) -> bool:
        """Whether what was opened just before shows the revision and nothing newer."""
        return self._newest is not None and self._newest.shows(self.revision)


def _value(source: Source, key: bytes, record: bytes, mod: int, kind: int) -> bytes:
    if kind == INLINE:
        return record[HEAD:]
    whole = source.get("versions", version_key(key, mod))
    if whole is None:
        raise RecordMissing
    return whole[HEAD:]


def item_of(source: Source, key: bytes, record: bytes, *, with_value: bool = True) -> Item:
    """The item of an existing key's record."""
    mod, create, version, lease, kind = RECORD.unpack_from(record)
    value = _value(source, key, record, mod, kind) if with_value else b""
    return Item(key, value, create, mod, version, lease)


def record_at(source: Source, key: bytes, record: bytes | None, revision: int) -> bytes | None:
    """The record of a key as of a revision, given its record now; ``None`` if the key did not exist then."""
    if record is None or REVISION.unpack_from(record)[0] > revision:
        start = version_key(key, 0)
        older = source.iterate("versions", start, start[:-8] + REVISION.pack(revision + 1), reverse=True)
        found = next(older, None)
        if found is None:
            return None
        record = found[1]
    return None if record[HEAD - 1] == TOMBSTONE else record


def find(view: RevisionView, key: bytes, *, with_value: bool = True) -> Item | None:
    """One key; ``None`` if it did not exist."""
    source = view.source
    record = source.get("keys", key)
    if record is None and view.is_current():
        return None
    record = record_at(source, key, record, view.revision)
    return None if record is None else item_of(source, key, record, with_value=with_value)


def records(
    view: RevisionView, keys: KeyRange, budget: Budget, *, descending: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """(key, record) of the keys in a range that existed at the view's revision, in key order or reverse.

    Raises:
        TooManyKeys: the budget is used up.
    """
    source, revision = view.source, view.revision
    if keys.end is None:
        record = source.get("keys", keys.key)
        budget.left -= 1
        if record is not None or not view.is_current():
            record = record_at(source, keys.key, record, revision)
            if record is not None:
                yield keys.key, record
        return
    now = _records_now(source, keys, budget, descending)
    if not view.is_current():
        now = _records_then(view, keys, now, budget, descending)
    for pair in now:
        if budget.left <= 0:
            raise TooManyKeys(pair[0])
        budget.left -= 1
        yield pair


def _records_now(source: Source, keys: KeyRange, budget: Budget, descending: bool) -> Iterator[tuple[bytes, bytes]]:
    """The keys that exist now, in order."""
    if isinstance(source, WriteBatch):
        return _passing_by_deleted(source.iterate_with_deleted("keys", *bounds(keys), reverse=descending), budget)
    return source.iterate("keys", *bounds(keys), reverse=descending)


def _passing_by_deleted(pairs: Iterator[tuple[bytes, bytes | None]], budget: Budget) -> Iterator[tuple[bytes, bytes]]:
    for key, record in pairs:
        if record is not None:
            yield key, record
        elif budget.deleted <= 0:
            raise TooManyKeys(key)
        else:
            budget.deleted -= 1


def _records_then(
    view: RevisionView, keys: KeyRange, now: Iterator[tuple[bytes, bytes]], budget: Budget, descending: bool
) -> Iterator[tuple[bytes, bytes]]:
    """The keys that existed at the view's revision, given those that exist now.

    Keys that have not changed since are taken from ``now``; the others are looked up in ``versions``. Both iterators
    are in key order. A key that occurs in both is taken from ``now``, because its record there is not newer than the
    revision.
    """
    source, revision = view.source, view.revision
    found = _changed_since(source, keys, revision, Budget(PAST_CHANGES) if view.far else budget)
    changed: Iterator[tuple[bytes, bytes | None]]
    if found is not None:
        changed = iter([(key, None) for key in sorted(found, reverse=descending)])
    elif view.far:
        changed = _ever_changed(source, keys, descending)
    else:
        raise TooManyKeys(keys.key)
    live = ((key, record) for key, record in now if REVISION.unpack_from(record)[0] <= revision)
    last = None
    for key, record in merge(live, changed, key=_key, reverse=descending):
        if key == last:
            continue
        last = key
        if budget.left <= 0:
            raise TooManyKeys(key)
        if record is None:
            record = record_at(source, key, source.get("keys", key), revision)
        if record is None:
            budget.left -= 1
        else:
            yield key, record


def _key(pair: tuple[bytes, bytes | None]) -> bytes:
    return pair[0]


def _changed_since(source: Source, keys: KeyRange, revision: int, budget: Budget) -> set[bytes] | None:
    """The keys of a range that have changed since a revision; ``None`` if the budget does not cover all changes."""
    start, end = bounds(keys)
    found = set()
    for _, change in source.iterate("revisions", REVISION.pack(revision + 1)):
        if budget.left <= 0:
            return None
        budget.left -= 1
        key = change[CHANGE.size :]
        if key >= start and (end is None or key < end):
            found.add(key)
    return found


def _ever_changed(source: Source, keys: KeyRange, descending: bool) -> Iterator[tuple[bytes, None]]:
    """The keys of a range that occur in ``versions``, by one seek for each."""
    start, end = bounds(keys)
    low, high = memcomparable(start), None if end is None else memcomparable(end)
    while True:
        pair = next(source.iterate("versions", low, high, reverse=descending), None)
        if pair is None:
            return
        key = plain_key(pair[0])[0]
        if descending:
            high = memcomparable(key)
        else:
            low = memcomparable(key) + b"\xff" * (REVISION.size + 1)
        yield key, None


def read_range(
    view: RevisionView, request: Range, budget: Budget, *, newest: int, max_items: int, max_bytes: int
) -> RangeAnswer | RangePart:
    """Answer a range: at most ``max_items`` items and ``max_bytes`` bytes (one item always fits); the count is of all
    keys. ``newest`` is the newest revision, which the answer names.

    If the budget does not cover the range, a part is answered. In parts, any range can be read with budgets of one key
    or more.
    """
    keys = request.keys
    if keys.end is None:
        item = find(view, keys.key, with_value=not (request.keys_only or request.count_only))
        budget.left -= 1
        if item is None:
            return RangeAnswer(newest, (), 0)
        return RangeAnswer(newest, () if request.count_only else (item,), 1)
    limit = min(request.limit, max_items) if request.limit else max_items
    in_order = request.sort is Sort.KEY or request.count_only
    descending = in_order and request.descending and not request.count_only
    page = (_Page if in_order else _SortedPage)(view.source, request, budget, limit, max_bytes)
    try:
        page.add_records(records(view, keys, budget, descending=descending))
    except TooManyKeys as stop:
        return RangePart(newest, page.items, page.count, stop.next)
    items, count = page.items, page.count
    more = count > len(items) and not request.count_only
    return RangeAnswer(newest, items, len(items) if request.uncounted and more else count, more)


class _Page:
    """The first items of a range in key order, and the number of keys."""

    def __init__(self, source: Source, request: Range, budget: Budget, limit: int, max_bytes: int) -> None:
        self._source = source
        self._request = request
        self._budget = budget
        self._limit = limit
        self._max_bytes = max_bytes
        self._items: list[Item] = []
        self.count = 0

    @property
    def items(self) -> tuple[Item, ...]:
        """The items of the answer."""
        return tuple(self._items)

    def add_records(self, found: Iterator[tuple[bytes, bytes]]) -> None:
        """Add keys with their records."""
        items, with_value, uncounted = self._items, not self._request.keys_only, self._request.uncounted
        full = self._request.count_only
        count = size = 0
        try:
            for key, record in found:
                if not full:
                    item = item_of(self._source, key, record, with_value=with_value)
                    size += _size(item)
                    if items and size > self._max_bytes:
                        full = True
                    else:
                        items.append(item)
                        full = len(items) >= self._limit
                elif uncounted and count > len(items):
                    return
                count += 1
        finally:
            self.count = count


class _SortedPage:
    """The first items of a range in another order than by key. Items that cannot be among them are dropped on the
    way."""

    def __init__(self, source: Source, request: Range, budget: Budget, limit: int, max_bytes: int) -> None:
        self._source = source
        self._request = request
        self._budget = budget
        self._limit = limit
        self._max_bytes = max_bytes
        self._best: list[tuple[Any, bytes | _Backwards, Item]] = []
        self._bytes = 0
        self.count = 0

    @property
    def items(self) -> tuple[Item, ...]:
        """The items of the answer."""
        best, size = self._best[:], self._bytes
        if self._request.descending:
            best.reverse()
        while len(best) > 1 and size > self._max_bytes:
            size -= _size(best.pop()[2])
        return tuple([item for _, _, item in best])

    def add_records(self, found: Iterator[tuple[bytes, bytes]]) -> None:
        """Add keys with their records."""
        target, keys_only = self._request.sort, self._request.keys_only
        best, descending = self._best, self._request.descending
        worst = 0 if descending else -1
        for key, record in found:
            self.count += 1
            item = item_of(self._source, key, record, with_value=target is Sort.VALUE or not keys_only)
            self._budget.left -= len(item.value) >> WEIGHT_SHIFT
            place = _sort_value(item, target)
            if target is Sort.VALUE and keys_only:
                item = Item(key, b"", item.create_revision, item.mod_revision, item.version, item.lease)
            insort(best, (place, _Backwards(key) if descending else key, item), key=_sort_key)
            self._bytes += _size(item)
            while len(best) > 1 and (len(best) > self._limit or self._bytes - _size(best[worst][2]) >= self._max_bytes):
                self._bytes -= _size(best.pop(worst)[2])


class _Backwards(bytes):
    """A key that sorts backwards: ties are in key order in a descending answer, too."""

    def __lt__(self, other: bytes) -> bool:
        return bytes.__gt__(self, other)


def _sort_key(entry: tuple[Any, bytes | _Backwards, Item]) -> tuple[Any, bytes | _Backwards]:
    return entry[0], entry[1]


def _size(item: Item) -> int:
    return len(item.key) + len(item.value) + ITEM_OVERHEAD


def _sort_value(item: Item, target: Sort) -> int | bytes:
    if target is Sort.VERSION:
        return item.version
    if target is Sort.CREATE_REVISION:
        return item.create_revision
    if target is Sort.MOD_REVISION:
        return item.mod_revision
    return item.value
