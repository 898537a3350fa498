"""Keys with all their past: what etcd calls multi-version concurrency control, on three column families.

``keys``       user key -> its latest record, also a tombstone until compaction takes it;
``versions``   memcomparable(key) + revision -> every record that was overtaken, and the latest of a long value;
``revisions``  (revision, sub) -> whether it deleted, the key's revision before, key: the history that watches read.

A record is mod revision, create revision, version, lease, and the value. So a read of now is one pass over ``keys``,
which holds them in the order of the users; only a key that changed after the revision that is read costs a seek in
``versions``. Long values lie in ``versions`` alone, so counting and listing keys stays cheap.

Readers run on other threads, beside the writer. What they read at a fixed revision cannot change, because every record
is kept until compaction; and compaction raises its mark before it removes the first record, so a reader that finds the
mark still at or below its revision *after* its last look at the disk has seen everything (design, rules of the disk).
"""

from __future__ import annotations

import struct
from bisect import insort
from collections.abc import Iterator
from typing import Any

from ..errors import DataCorrupted
from ..limits import INLINE_VALUE_BYTES
from .commands import Item, KeyRange, Range, RangeAnswer, RangePart, Sort
from .engine import Write
from .pending import Ordered, Pending, Source

TOMBSTONE, INLINE, APART = 0, 1, 2
"""What follows a record's numbers: nothing, the key is deleted; the value; nothing, the value is in ``versions``."""

RECORD = struct.Struct(">QQQQB")
"""Mod revision, create revision, version, lease, kind."""
_HEAD = RECORD.size
_REVISION = struct.Struct(">Q")
REVISION_SUB = struct.Struct(">QI")
CHANGE = struct.Struct(">BQ")
"""Value in ``revisions``, before the key: 1 if the key was deleted, and its mod revision before (0 for none)."""

ITEM_OVERHEAD = 40
"""What an item counts in bounds on bytes, beside key and value."""


class Vanished(Exception):
    """A record that must be there is not: compaction has overtaken the reader, or the data is damaged."""


class TooManyKeys(Exception):
    """A range covers more keys than may be looked at."""

    def __init__(self, next: bytes) -> None:
        super().__init__()
        self.next = next
        """The first key that was not looked at."""


def memcomparable(key: bytes) -> bytes:
    """A key such that nothing that follows it changes the order, and none is a prefix of another."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1"


def version_key(key: bytes, revision: int) -> bytes:
    """Where ``versions`` holds a key's record of a revision."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1" + _REVISION.pack(revision)


def plain_key(stored: bytes) -> tuple[bytes, int]:
    """Key and revision of a key in ``versions``."""
    return stored[:-10].replace(b"\0\xff", b"\0"), _REVISION.unpack(stored[-8:])[0]


def bounds(keys: KeyRange) -> tuple[bytes, bytes | None]:
    """A range as ``Engine.iterate`` wants it."""
    if keys.end is None:
        return keys.key, keys.key + b"\0"
    return keys.key, keys.end or None


# --- reading ---------------------------------------------------------------------------------------------------------


def _value(source: Source, key: bytes, record: bytes, mod: int, kind: int) -> bytes:
    if kind == INLINE:
        return record[_HEAD:]
    whole = source.get("versions", version_key(key, mod))
    if whole is None:
        raise Vanished
    return whole[_HEAD:]


def record_at(source: Source, key: bytes, record: bytes, revision: int) -> bytes | None:
    """The record of a key as of a revision, given its latest; ``None`` if there was no such key then."""
    if _REVISION.unpack_from(record)[0] > revision:
        start = version_key(key, 0)
        older = source.iterate("versions", start, start[:-8] + _REVISION.pack(revision + 1), reverse=True)
        for _, found in older:
            record = found
            break
        else:
            return None
    return None if record[_HEAD - 1] == TOMBSTONE else record


def item_of(source: Source, key: bytes, record: bytes, *, with_value: bool = True) -> Item:
    """The item that a live record stands for."""
    mod, create, version, lease, kind = RECORD.unpack_from(record)
    value = _value(source, key, record, mod, kind) if with_value else b""
    return Item(key, value, create, mod, version, lease)


def find(source: Source, key: bytes, revision: int, *, with_value: bool = True) -> Item | None:
    """One key as of a revision."""
    record = source.get("keys", key)
    if record is None:
        return None
    then = record_at(source, key, record, revision)
    return None if then is None else item_of(source, key, then, with_value=with_value)


def records(
    source: Source, keys: KeyRange, revision: int, *, descending: bool = False, max_scanned: int = 0
) -> Iterator[tuple[bytes, bytes]]:
    """(key, record) of the keys in a range that existed at a revision, in key order or against it.

    Raises:
        TooManyKeys: more than ``max_scanned`` (0: no bound) were looked at.
    """
    if keys.end is None:
        latest = source.get("keys", keys.key)
        then = None if latest is None else record_at(source, keys.key, latest, revision)
        if then is not None:
            yield keys.key, then
        return
    start, end = bounds(keys)
    scanned = 0
    for key, record in source.iterate("keys", start, end, reverse=descending):
        if max_scanned:
            scanned += 1
            if scanned > max_scanned:
                raise TooManyKeys(key)
        if _REVISION.unpack_from(record)[0] > revision:
            then = record_at(source, key, record, revision)
            if then is not None:
                yield key, then
        elif record[_HEAD - 1] != TOMBSTONE:
            yield key, record


def read_range(
    source: Source, request: Range, revision: int, *, max_items: int, max_bytes: int, max_scanned: int
) -> RangeAnswer | RangePart:
    """Answer a range at a revision: at most so many items and bytes (one item always fits); the count is of all.

    Args:
        max_scanned: keys that may be looked at; of a longer range only a part is answered.
    """
    keys = request.keys
    if keys.end is None:
        item = find(source, keys.key, revision, with_value=not (request.keys_only or request.count_only))
        if item is None:
            return RangeAnswer(revision, (), 0)
        return RangeAnswer(revision, () if request.count_only else (item,), 1)
    limit = min(request.limit, max_items) if request.limit else max_items
    in_order = request.sort is Sort.KEY or request.count_only
    descending = in_order and request.descending and not request.count_only
    page = (_Page if in_order else _Best)(source, request, limit, max_bytes)
    try:
        page.take(records(source, keys, revision, descending=descending, max_scanned=max_scanned))
    except TooManyKeys as stop:
        return RangePart(revision, page.items, page.count, stop.next)
    items, count = page.items, page.count
    more = count > len(items) and not request.count_only
    return RangeAnswer(revision, items, len(items) if request.uncounted and more else count, more)


class _Page:
    """The first items of a range, and how many there are."""

    def __init__(self, source: Source, request: Range, limit: int, max_bytes: int) -> None:
        self._source = source
        self._request = request
        self._limit = limit
        self._max_bytes = max_bytes
        self._items: list[Item] = []
        self.count = 0

    @property
    def items(self) -> tuple[Item, ...]:
        """What is to be answered."""
        return tuple(self._items)

    def take(self, found: Iterator[tuple[bytes, bytes]]) -> None:
        """Take these keys in."""
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


class _Best:
    """The first items of a range in another order than the keys'. What cannot be among them is dropped on the way."""

    def __init__(self, source: Source, request: Range, limit: int, max_bytes: int) -> None:
        self._source = source
        self._request = request
        self._limit = limit
        self._max_bytes = max_bytes
        self._best: list[tuple[Any, bytes, Item]] = []
        self._bytes = 0
        self.count = 0

    @property
    def items(self) -> tuple[Item, ...]:
        """What is to be answered."""
        best, size = self._best[:], self._bytes
        if self._request.descending:
            best.reverse()
        while len(best) > 1 and size > self._max_bytes:
            size -= _size(best.pop()[2])
        return tuple([item for _, _, item in best])

    def take(self, found: Iterator[tuple[bytes, bytes]]) -> None:
        """Take these keys in."""
        target, keys_only = self._request.sort, self._request.keys_only
        best, worst = self._best, 0 if self._request.descending else -1
        for key, record in found:
            self.count += 1
            item = item_of(self._source, key, record, with_value=target is Sort.VALUE or not keys_only)
            place = _sort_value(item, target)
            if target is Sort.VALUE and keys_only:
                item = Item(key, b"", item.create_revision, item.mod_revision, item.version, item.lease)
            insort(best, (place, key, item), key=_place)
            self._bytes += _size(item)
            while len(best) > 1 and (len(best) > self._limit or self._bytes - _size(best[worst][2]) >= self._max_bytes):
                self._bytes -= _size(best.pop(worst)[2])


def _place(entry: tuple[Any, bytes, Item]) -> tuple[Any, bytes]:
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


# --- writing ---------------------------------------------------------------------------------------------------------


class Mvcc:
    """The writer: counts revisions and changes keys. All changes up to ``finish`` share one main revision.

    No key changes twice within one revision: transactions that would are refused.
    """

    def __init__(self, pending: Pending, revision: int) -> None:
        self._pending = pending
        self.revision = revision
        """The newest revision. An empty store is at 1, as in etcd."""
        self.sub = 0
        """Changes so far in the revision that is being made."""
        self.changed: list[bytes] = []
        """Keys that were changed since somebody took this list."""

    @property
    def now(self) -> int:
        """The revision at which a read sees everything so far, unfinished changes included."""
        return self.revision + 1 if self.sub else self.revision

    def finish(self) -> None:
        """The running command has ended: if it changed something, that is a revision."""
        if self.sub:
            self.revision += 1
            self.sub = 0

    def put(self, key: bytes, value: bytes, lease: int, old: bytes | None) -> int:
        """Set a key whose latest record is ``old``; returns the revision."""
        main = self.revision + 1
        before = 0
        create, version = main, 1
        put = self._pending.set
        if old is not None:
            before, old_create, old_version, _, kind = RECORD.unpack_from(old)
            if kind != TOMBSTONE:
                create, version = old_create, old_version + 1
            if kind != APART:
                put("versions", version_key(key, before), old)
        if len(value) <= INLINE_VALUE_BYTES:
            put("keys", key, RECORD.pack(main, create, version, lease, INLINE) + value)
        else:
            put("keys", key, RECORD.pack(main, create, version, lease, APART))
            put("versions", version_key(key, main), RECORD.pack(main, create, version, lease, INLINE) + value)
        put("revisions", REVISION_SUB.pack(main, self.sub), CHANGE.pack(0, before) + key)
        self.changed.append(key)
        self.sub += 1
        return main

    def delete(self, key: bytes, old: bytes) -> int:
        """Delete a key whose latest record, a live one, is ``old``; returns the revision."""
        main = self.revision + 1
        before, kind = _REVISION.unpack_from(old)[0], old[_HEAD - 1]
        put = self._pending.set
        if kind != APART:
            put("versions", version_key(key, before), old)
        put("keys", key, RECORD.pack(main, 0, 0, 0, TOMBSTONE))
        put("revisions", REVISION_SUB.pack(main, self.sub), CHANGE.pack(1, before) + key)
        self.changed.append(key)
        self.sub += 1
        return main


# --- compaction ------------------------------------------------------------------------------------------------------


def compaction_slice(source: Source, mark: int, start: bytes, count: int) -> tuple[list[Write], bytes, bool]:
    """What to remove next, looking at no more than ``count`` changes.

    A change at or below the mark makes the record before it unreachable, and its own if it was a deletion. Changes *at*
    the mark stay in the history, because the compacted revision itself can still be read and watched; so the pass for
    the next mark begins with them (:func:`next_pass`).

    Args:
        mark: the compacted revision.
        start: the key in ``revisions`` to go on from.

    Returns:
        writes, the new ``start``, and whether there is more.
    """
    writes: list[Write] = []
    for looked, (where, change) in enumerate(source.iterate("revisions", start, _REVISION.pack(mark + 1))):
        if looked == count:
            return writes, start, True
        main = _REVISION.unpack_from(where)[0]
        deleted, before = CHANGE.unpack_from(change)
        key = change[CHANGE.size :]
        if before:
            writes.append(("versions", version_key(key, before), None))
        if main < mark:
            if deleted:
                latest = source.get("keys", key)
                if latest is not None and _REVISION.unpack_from(latest)[0] == main:
                    writes.append(("keys", key, None))
                else:
                    writes.append(("versions", version_key(key, main), None))
            writes.append(("revisions", where, None))
        start = where + b"\0"
    return writes, start, False


def next_pass(start: bytes) -> bytes:
    """Where the pass for a raised mark begins: with all changes of the revision that the last one ended in."""
    return start[: _REVISION.size]


def surviving_history(source: Ordered, mark: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, record with its value) of all that can be read or watched at or above the mark, however far compaction is.

    Keys in order, the records of each from old to new.
    """
    versions = source.iterate("versions")
    version = next(versions, None)
    for key, latest in source.iterate("keys"):
        prefix = memcomparable(key)
        history: dict[int, bytes] = {}
        while version is not None and version[0][:-8] <= prefix:
            if version[0][:-8] == prefix:
                history[_REVISION.unpack(version[0][-8:])[0]] = version[1]
            version = next(versions, None)
        mod, kind = _REVISION.unpack_from(latest)[0], latest[_HEAD - 1]
        if kind != APART:
            history[mod] = latest
        elif mod not in history:
            raise DataCorrupted(f"the value of key {key!r} at revision {mod} is missing")
        at_mark = max((revision for revision in history if revision <= mark), default=0)
        for revision in sorted(history):
            record = history[revision]
            if revision >= mark or (revision == at_mark and record[_HEAD - 1] != TOMBSTONE):
                yield key, record
