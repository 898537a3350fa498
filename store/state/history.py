"""The history of the keys as a sequence of changes, from which watches are served.

Every change is kept in ``history`` until compaction removes it, and what it left in ``keys`` or in the key's next
change. So a watch needs no memory of its own: from any revision the history continues, the same on every member.
History from the compact revision on is complete, including the changes of that revision and deletions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from ...limits import HISTORY_WINDOW
from ...schema.answers import Item
from ...schema.operations import KeyRange
from ..engine.interface import Engine
from .mvcc import (
    CHANGE,
    CHANGE_BYTES,
    ITEM_OVERHEAD,
    REVISION,
    RecordMissing,
    change_key,
    changed_key,
    changes_after,
    mod_revision,
    record_at,
)
from .ranges import item_of


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
    engine: Engine, wanted: HistoryQuery, low: int, high: int, *, compacted: int, max_bytes: int, max_scanned: int
) -> Changes:
    """The wanted changes with ``low <= revision <= high``.

    Args:
        compacted: the compact revision. What changes at it have replaced is left out, since some members may have
            removed it already: so all answer alike (in etcd the read of the previous value fails then).
        max_bytes: stop before the revision that would exceed this; one revision always fits.
        max_scanned: look at about this many changes of any key; ``upto`` says how far that went.

    Raises:
        RecordMissing: compaction has overtaken the reader; or data is missing, if the compact revision has not passed
            ``low``.
    """
    if wanted.keys.end is None:
        return _of_key(engine, wanted, low, high, compacted, max_bytes)
    return _of_range(engine, wanted, low, high, compacted, max_bytes, max_scanned)


def _of_key(engine: Engine, wanted: HistoryQuery, low: int, high: int, compacted: int, max_bytes: int) -> Changes:
    """The changes of one key, from its own records: their number does not depend on the changes of other keys."""
    key, found = wanted.keys.key, Changes(high)
    for looked, (revision, record) in enumerate(changes_after(engine, key, low - 1)):
        if revision > high:
            break
        if looked * ITEM_OVERHEAD > max_bytes:
            found.upto = revision - 1
            break
        if not (wanted.puts if record is not None else wanted.deletes):
            continue
        old = None
        if wanted.prev and revision > compacted:
            old = (engine.get("history", change_key(revision, key)) or b"")[CHANGE_BYTES:]
        if not _add(found, [_change(engine, key, revision, record, old)], max_bytes):
            found.upto = revision - 1
            break
    return found


def _of_range(
    engine: Engine, wanted: HistoryQuery, low: int, high: int, compacted: int, max_bytes: int, max_scanned: int
) -> Changes:
    """The changes of a range, from the history of all keys. The bounds end it between two revisions, never inside one:
    a watch must see the changes of a revision together."""
    found = Changes(high)
    revision, window = low, list[tuple[int, bytes, bytes]]()
    changes = engine.iterate("history", REVISION.pack(low), REVISION.pack(high + 1))
    for scanned, (where, change) in enumerate(changes):
        main, key = changed_key(where)
        if main != revision:
            if len(window) >= HISTORY_WINDOW or scanned >= max_scanned:
                if not _add_window(engine, wanted, window, found, compacted, max_bytes):
                    return found
                if scanned >= max_scanned:
                    found.upto = main - 1
                    return found
                window = []
            revision = main
        if covers(wanted.keys, key):
            window.append((main, key, change))
    _add_window(engine, wanted, window, found, compacted, max_bytes)
    return found


def _add_window(
    engine: Engine,
    wanted: HistoryQuery,
    window: list[tuple[int, bytes, bytes]],
    found: Changes,
    compacted: int,
    max_bytes: int,
) -> bool:
    """Add what is wanted of some whole revisions, as far as there is room. Returns whether there was room for all.

    They are gone through backwards: what a change left is what the key's next change has replaced. So only the last of
    each key has to be looked up.
    """
    changes: list[tuple[int, int, KeyChange]] = []
    replaced: dict[bytes, bytes] = {}
    for revision, key, change in reversed(window):
        deleted, sub = CHANGE.unpack_from(change)
        old = change[CHANGE_BYTES:]
        if wanted.deletes if deleted else wanted.puts:
            record = None
            if not deleted:
                record = replaced.get(key)
                if record is None:
                    record = record_at(engine, key, engine.get("keys", key), revision)
                if not record:
                    raise RecordMissing
            prev = old if wanted.prev and revision > compacted else None
            changes.append((revision, sub, _change(engine, key, revision, record, prev)))
        replaced[key] = old
    changes.sort(key=itemgetter(0, 1))
    for revision, group in groupby(changes, key=itemgetter(0)):
        if not _add(found, [change for _, _, change in group], max_bytes):
            found.upto = revision - 1
            return False
    return True


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


def _change(engine: Engine, key: bytes, revision: int, record: bytes | None, old: bytes | None) -> KeyChange:
    """The change that left a record, or deleted the key, and replaced ``old``. A record of another revision than the
    history says means the same as a missing one."""
    prev = item_of(engine, key, old) if old else None
    if record is None:
        return KeyChange(True, Item(key, b"", 0, revision, 0, 0), prev)
    if mod_revision(record) != revision:
        raise RecordMissing
    return KeyChange(False, item_of(engine, key, record), prev)
