"""The past of the keys as a sequence of changes: what watches are fed from.

Every change stands in ``revisions`` under (revision, sub) until compaction takes it, and its record in ``keys`` or
``versions``. So a watch needs no memory of its own anywhere: wherever it stands, the history goes on from there, on
every member alike. History from the compacted revision on is complete (its own changes included, deletions too).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .commands import Item, KeyRange
from .engine import Engine
from .mvcc import (
    CHANGE,
    INLINE,
    ITEM_OVERHEAD,
    RECORD,
    REVISION_SUB,
    TOMBSTONE,
    version_key,
)
from .ranges import Vanished, View, find

_NUMBERS = RECORD.size


@dataclass(slots=True)
class Change:
    """One key's change in one revision. A deleted key's item has no value and version 0."""

    deleted: bool
    item: Item
    prev: Item | None = None


@dataclass(slots=True)
class Changes:
    """Changes up to and including revision ``upto``, whole revisions, in order."""

    upto: int
    changes: list[Change] = field(default_factory=list)
    size: int = 0

    def forget_before(self, mark: int) -> None:
        """What was before the changes of the compacted revision is gone, whether its removal has come that far or not:
        so all members say the same (etcd: the read of the previous value fails then)."""
        for change in self.changes:
            if change.item.mod_revision > mark:
                return
            change.prev = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants to see of the history."""

    keys: KeyRange
    prev: bool = False
    puts: bool = True
    deletes: bool = True


def covers(keys: KeyRange, key: bytes) -> bool:
    """Whether a range has a key in it."""
    if keys.end is None:
        return key == keys.key
    return key >= keys.key and (not keys.end or key < keys.end)


def read_history(engine: Engine, wanted: Wanted, low: int, high: int, *, max_bytes: int, max_scanned: int) -> Changes:
    """The changes with ``low <= revision <= high`` that are wanted.

    Args:
        max_bytes: stop before the revision that would exceed this, but not before the first.
        max_scanned: look at about so many changes of all keys; ``upto`` says how far that went.

    Raises:
        Vanished: compaction has overtaken the reader (or, if the mark has not passed ``low``, data is missing).
    """
    if wanted.keys.end is None:
        return _of_key(engine, wanted, low, high, max_bytes)
    return _of_range(engine, wanted, low, high, max_bytes, max_scanned)


def _of_key(engine: Engine, wanted: Wanted, low: int, high: int, max_bytes: int) -> Changes:
    key = wanted.keys.key
    # First the latest record, then those it has overtaken: what moves from one place to the other meanwhile is seen.
    latest = engine.get("keys", key)
    records: dict[int, bytes] = {}
    for stored, record in engine.iterate("versions", version_key(key, low), version_key(key, high + 1)):
        records[int.from_bytes(stored[-8:], "big")] = record
        if len(records) * ITEM_OVERHEAD > max_bytes:
            break
    else:
        mod = 0 if latest is None else RECORD.unpack_from(latest)[0]
        if latest is not None and low <= mod <= high and mod not in records:
            records[mod] = latest
    found = Changes(high)
    for revision in sorted(records):
        change = _change(engine, wanted, key, revision, records[revision])
        if change is not None and not _add(found, [change], max_bytes):
            found.upto = revision - 1
            return found
    if len(records) * ITEM_OVERHEAD > max_bytes:
        found.upto = max(records)
    return found


def _of_range(engine: Engine, wanted: Wanted, low: int, high: int, max_bytes: int, max_scanned: int) -> Changes:
    found = Changes(high)
    revision, group = low, list[Change]()
    changes = engine.iterate("revisions", REVISION_SUB.pack(low, 0), REVISION_SUB.pack(high + 1, 0))
    for scanned, (where, stored) in enumerate(changes):
        main = REVISION_SUB.unpack(where)[0]
        if main != revision:
            if group and not _add(found, group, max_bytes):
                found.upto = revision - 1
                return found
            revision, group = main, []
            if scanned >= max_scanned:
                found.upto = main - 1
                return found
        key = stored[CHANGE.size :]
        if covers(wanted.keys, key):
            change = _change(engine, wanted, key, main, _record(engine, key, main))
            if change is not None:
                group.append(change)
    if group and not _add(found, group, max_bytes):
        found.upto = revision - 1
    return found


def _add(found: Changes, group: list[Change], max_bytes: int) -> bool:
    """Add one revision's changes if there is room; the first revision always fits."""
    size = 0
    for change in group:
        size += len(change.item.key) + len(change.item.value) + ITEM_OVERHEAD
        if change.prev is not None:
            size += len(change.prev.value) + ITEM_OVERHEAD
    if found.changes and found.size + size > max_bytes:
        return False
    found.changes += group
    found.size += size
    return True


def _record(engine: Engine, key: bytes, revision: int) -> bytes:
    record = engine.get("keys", key)
    if record is None or RECORD.unpack_from(record)[0] != revision:
        record = engine.get("versions", version_key(key, revision))
        if record is None:
            raise Vanished
    return record


def _change(engine: Engine, wanted: Wanted, key: bytes, revision: int, record: bytes) -> Change | None:
    mod, create, version, lease, kind = RECORD.unpack_from(record)
    if mod != revision:
        raise Vanished
    deleted = kind == TOMBSTONE
    if not (wanted.deletes if deleted else wanted.puts):
        return None
    if deleted:
        item = Item(key, b"", 0, revision, 0, 0)
    else:
        if kind == INLINE:
            value = record[_NUMBERS:]
        else:
            whole = engine.get("versions", version_key(key, revision))
            if whole is None:
                raise Vanished
            value = whole[_NUMBERS:]
        item = Item(key, value, create, mod, version, lease)
    prev = find(View(engine, revision - 1), key) if wanted.prev else None
    return Change(deleted, item, prev)
