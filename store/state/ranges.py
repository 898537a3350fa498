"""Reading the keys as of a revision: one key or a range, within a budget.

Readers run on other threads, concurrent with the writer. What they read at a fixed revision cannot change, because
every record is kept until compaction. And compaction raises the compact revision before it removes the first record. So
a reader that finds the compact revision at or below its own *after* its last look at the disk has seen everything.

``keys`` holds the keys that exist now, in key order: a read of the present is one pass over it, however many keys were
deleted lately. A read of the past takes from ``keys`` what has not changed since, and from the history what was
replaced, as long as that is short. Beyond ``PAST_CHANGES`` changes it is cheaper to go back from each key in ``keys``,
and from each in ``deletions``; only the cost of that way depends on deleted keys. In every case the iterator over
``keys`` is opened first: later looks see what changes after that.

The cost of a read is counted in a :class:`Budget`: in keys that exist, existed then, or have changed since. It never
depends on what compaction has or has not removed, so a command that exceeds its budget does so on every member.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Generator, Iterable, Iterator
from heapq import merge
from typing import Any, Protocol

from ...limits import PAST_CHANGES, SCAN_SLICE, TXN_PAST_CHANGES
from ...schema.answers import Item, RangeAnswer, RangePart
from ...schema.operations import KeyRange, Range, Sort
from .mvcc import (
    CHANGE_BYTES,
    INLINE,
    ITEM_OVERHEAD,
    RECORD,
    REVISION,
    SKIPS,
    RecordMissing,
    bounds,
    changed_key,
    deleted_key,
    memcomparable,
    mod_revision,
    record_at,
    value_key,
)
from .write_batch import Source, WriteBatch

WEIGHT_SHIFT = 10
"""As a shift: this many bytes of values count as one key."""


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
        far: whether a distant past may be read key by key, at a cost that the budget does not count.
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


def item_of(source: Source, key: bytes, record: bytes, *, with_value: bool = True) -> Item:
    """The item of a record."""
    create, version, lease, kind, mod = RECORD.unpack_from(record)
    if not with_value:
        return Item(key, b"", create, mod, version, lease)
    if kind == INLINE:
        return Item(key, record[SKIPS + 8 * version.bit_count() :], create, mod, version, lease)
    value = source.get("values", value_key(key, mod))
    if value is None:
        raise RecordMissing
    return Item(key, value, create, mod, version, lease)


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
        return _passing_by_deleted(source.iterate_keys(*bounds(keys), reverse=descending), budget)
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
    """The keys that existed at the view's revision, given those that exist now."""
    source, revision = view.source, view.revision
    if view.far:
        changed = _changed_since(source, keys, revision, Budget(PAST_CHANGES))
    else:
        most = min(budget.left, TXN_PAST_CHANGES)
        past = Budget(most)
        changed = _changed_since(source, keys, revision, past)
        budget.left -= most - past.left
    found: Iterator[tuple[bytes, bytes | None]]
    if changed is not None:
        live = (pair for pair in now if mod_revision(pair[1]) <= revision)
        found = _one_for_each_key(live, sorted(changed.items(), reverse=descending), descending)
    elif view.far:
        ever = _one_for_each_key(now, _ever_deleted(source, keys, descending), descending)
        found = ((key, record_at(source, key, record, revision)) for key, record in ever)
    else:
        raise TooManyKeys(keys.key)
    for key, record in found:
        if budget.left <= 0:
            raise TooManyKeys(key)
        if record is None:
            budget.left -= 1
        else:
            yield key, record


def _one_for_each_key(
    now: Iterable[tuple[bytes, bytes]], more: Iterable[tuple[bytes, bytes | None]], descending: bool
) -> Iterator[tuple[bytes, bytes | None]]:
    """Both in key order. A key that occurs in both is taken from ``now``, which was looked at first."""
    pairs: tuple[Iterable[tuple[bytes, bytes | None]], ...] = now, more
    last = None
    for pair in merge(*pairs, key=_key, reverse=descending):
        if pair[0] != last:
            last = pair[0]
            yield pair


def _key(pair: tuple[bytes, bytes | None]) -> bytes:
    return pair[0]


def _changed_since(source: Source, keys: KeyRange, revision: int, budget: Budget) -> dict[bytes, bytes | None] | None:
    """The keys of a range that have changed since a revision, each with its record then (``None`` if it did not exist);
    ``None`` if the budget does not cover all changes."""
    start, end = bounds(keys)
    found: dict[bytes, bytes | None] = {}
    for where, change in source.iterate("history", REVISION.pack(revision + 1)):
        if budget.left <= 0:
            return None
        budget.left -= 1
        key = changed_key(where)[1]
        if key >= start and (end is None or key < end) and key not in found:
            found[key] = change[CHANGE_BYTES:] or None
    return found


def _ever_deleted(source: Source, keys: KeyRange, descending: bool) -> Iterator[tuple[bytes, None]]:
    """The keys of a range that occur in ``deletions``, by one seek for each."""
    start, end = bounds(keys)
    low, high = memcomparable(start), None if end is None else memcomparable(end)
    while True:
        pair = next(source.iterate("deletions", low, high, reverse=descending), None)
        if pair is None:
            return
        key = deleted_key(pair[0])[0]
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
    if request.keys.end is None:
        return _read_key(view, request, budget, newest)
    slices = read_in_slices(view, request, budget, newest=newest, max_items=max_items, max_bytes=max_bytes)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            answer: RangeAnswer | RangePart = end.value
            return answer


def _read_key(view: RevisionView, request: Range, budget: Budget, newest: int) -> RangeAnswer:
    item = find(view, request.keys.key, with_value=not (request.keys_only or request.count_only))
    budget.left -= 1
    if item is None:
        return RangeAnswer(newest, (), 0)
    return RangeAnswer(newest, () if request.count_only else (item,), 1)


def read_in_slices(
    view: RevisionView, request: Range, budget: Budget, *, newest: int, max_items: int, max_bytes: int
) -> Generator[None, None, RangeAnswer | RangePart]:
    """As :func:`read_range`; yields whenever another ``SCAN_SLICE`` of the budget is used up."""
    keys = request.keys
    if keys.end is None:
        return _read_key(view, request, budget, newest)
    limit = min(request.limit, max_items) if request.limit else max_items
    in_order = request.sort is Sort.KEY or request.count_only
    descending = in_order and request.descending and not request.count_only
    page = (_Page if in_order else _SortedPage)(view.source, request, budget, limit, max_bytes)
    found = records(view, keys, budget, descending=descending)
    try:
        while page.add_records(found, budget.left - SCAN_SLICE):
            yield
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
        self._bytes = 0
        self._full = request.count_only
        self.count = 0

    @property
    def items(self) -> tuple[Item, ...]:
        """The items of the answer."""
        return tuple(self._items)

    def add_records(self, found: Iterator[tuple[bytes, bytes]], pause_at: int) -> bool:
        """Add keys with their records, until no more than ``pause_at`` of the budget is left: then it returns True."""
        items, with_value, uncounted = self._items, not self._request.keys_only, self._request.uncounted
        budget, full, size, count = self._budget, self._full, self._bytes, self.count
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
                    return False
                count += 1
                if budget.left <= pause_at:
                    return True
            return False
        finally:
            self._full, self._bytes, self.count = full, size, count


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

    def add_records(self, found: Iterator[tuple[bytes, bytes]], pause_at: int) -> bool:
        """As :meth:`_Page.add_records`."""
        budget = self._budget
        target, keys_only = self._request.sort, self._request.keys_only
        best, descending = self._best, self._request.descending
        worst = 0 if descending else -1
        for key, record in found:
            self.count += 1
            item = item_of(self._source, key, record, with_value=target is Sort.VALUE or not keys_only)
            budget.left -= len(item.value) >> WEIGHT_SHIFT
            place = _sort_value(item, target)
            if target is Sort.VALUE and keys_only:
                item = Item(key, b"", item.create_revision, item.mod_revision, item.version, item.lease)
            insort(best, (place, _Backwards(key) if descending else key, item), key=_sort_key)
            self._bytes += _size(item)
            while len(best) > 1 and (len(best) > self._limit or self._bytes - _size(best[worst][2]) >= self._max_bytes):
                self._bytes -= _size(best.pop(worst)[2])
            if budget.left <= pause_at:
                return True
        return False


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
