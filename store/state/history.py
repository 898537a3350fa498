"""The history of the keys as a sequence of changes, from which watches are served.

Every change is kept in ``revisions`` under (revision, sub) until compaction removes it, and its record in ``keys`` or
``versions``. So a watch needs no memory of its own: from any revision the history continues, the same on every member.
History from the compact revision on is complete, including the changes of that revision and deletions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...schema.answers import Item
from ...schema.operations import KeyRange
from ..engine.interface import Engine
from .mvcc import CHANGE, INLINE, ITEM_OVERHEAD, RECORD, REVISION_SUB, TOMBSTONE, version_key
from .ranges import RecordMissing, RevisionView, find

_NUMBERS = RECORD.size


@dataclass(slots=True)
class KeyChange:
    """The change of one key in one revision. The item of a deleted key has no value and version 0."""

    deleted: bool
    item: Item
    prev: Item | None = None


@dataclass(slots=True)
class Changes:
    """Changes up to and including revision ``upto``: whole revisions, in order."""

    upto: int
    changes: list[KeyChange] = field(default_factory=list)
    size: int = 0

    def forget_before(self, compact_revision: int) -> None:
        """Drop the previous items of changes at ``compact_revision``. Some members may have removed them
        already; so all members answer alike (in etcd the read of the previous value fails then)."""
        for change in self.changes:
            if change.item.mod_revision > compact_revision:
                return
            change.prev = None


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """The part of the history that a watch asks for."""

    keys: KeyRange
    prev: bool = False
    puts: bool = True
    deletes: bool = True


def covers(keys: KeyRange, key: bytes) -> bool:
    """Whether a range contains a key."""
    if keys.end is None:
        return key == keys.key
    return key >= keys.key and (not keys.end or key < keys.end)


def read_history(
    engine: Engine, wanted: HistoryQuery, low: int, high: int, *, max_bytes: int, max_scanned: int
) -> Changes:
    """The wanted changes with ``low <= revision <= high``.

    Args:
        max_bytes: stop before the revision that would exceed this; one revision always fits.
        max_scanned: look at about this many changes of any key; ``upto`` says how far that went.

    Raises:
        RecordMissing: compaction has overtaken the reader; or data is missing, if the compact revision has not passed
            ``low``.
    """
    if wanted.keys.end is None:
        return _of_key(engine, wanted, low, high, max_bytes)
    return _of_range(engine, wanted, low, high, max_bytes, max_scanned)


def _of_key(engine: Engine, wanted: HistoryQuery, low: int, high: int, max_bytes: int) -> Changes:
    """The changes of one key, from its own records: their number does not depend on the changes of other keys."""
    key = wanted.keys.key
    # First the latest record, then the older ones: a record that moves from ``keys`` to ``versions`` in between is seen
    # at least once.
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


def _of_range(engine: Engine, wanted: HistoryQuery, low: int, high: int, max_bytes: int, max_scanned: int) -> Changes:
    """The changes of a range, from the history of all keys. The bounds end it between two revisions, never inside one:
    a watch must see the changes of a revision together."""
    found = Changes(high)
    revision, group = low, list[KeyChange]()
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


def _add(found: Changes, group: list[KeyChange], max_bytes: int) -> bool:
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
            raise RecordMissing
    return record


def _change(engine: Engine, wanted: HistoryQuery, key: bytes, revision: int, record: bytes) -> KeyChange | None:
    """The change that a record stands for; ``None`` if it is not wanted. A record of another revision than the history
    says means the same as a missing one."""
    mod, create, version, lease, kind = RECORD.unpack_from(record)
    if mod != revision:
        raise RecordMissing
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
                raise RecordMissing
            value = whole[_NUMBERS:]
        item = Item(key, value, create, mod, version, lease)
    prev = find(RevisionView(engine, revision - 1), key) if wanted.prev else None
    return KeyChange(deleted, item, prev)
