"""Removes, in slices, the records that compaction has made unreachable (etcd: physical compaction).

Raising the compact revision makes them unreachable at once, so removing them may take its time, and it need not happen
at the same entry on all members. A pass removes the history from its beginning, in order. Its position is stored such
that any later compact revision can continue from it, in this process or the next.
"""

from __future__ import annotations

from ..engine.interface import Engine, Write
from .mvcc import (
    APART,
    CHANGE,
    CHANGE_BYTES,
    KIND,
    REVISION,
    changed_key,
    deletion_key,
    mod_revision,
    replaced_key,
    value_key,
)
from .write_batch import OrderedReader

_COMPACTED = b"compacted"
"""The position's key in ``meta``."""


class PhysicalCompaction:
    """The removal from one database.

    Args:
        engine: the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._start = engine.get("meta", _COMPACTED) or b""
        """The key in ``history`` to continue from."""
        self.removed_to = 0
        """The compact revision up to which this process has removed everything."""
        self._target = 0
        """The compact revision of this process's last pass; 0 if there was none."""
        self.removed = 0
        """Records of changes that were removed so far; for metrics."""

    def remove_slice(self, target: int, changes: int) -> bool:
        """Remove what is unreachable since the compact revision ``target``, looking at no more than this many changes.

        Returns:
            Whether there is more to remove.
        """
        if self.removed_to >= target:
            return False
        if self._target and self._target != target:
            self._start = _next_pass(self._start, self._target)
        self._target = target
        before = self._start
        writes, start, more = _next_removals(self._engine, target, before, changes)
        self._start = start
        if not more:
            self.removed_to = target
        safe = _next_pass(start, target)  # for any compact revision at which another process may continue
        if safe != _next_pass(before, target):
            writes.append(("meta", _COMPACTED, safe))
        if writes:
            self._engine.write(writes)
            self.removed += sum([family == "history" for family, _, _ in writes])
        return more


def _next_removals(
    source: OrderedReader, compact_revision: int, start: bytes, count: int
) -> tuple[list[Write], bytes, bool]:
    """What to remove next, looking at no more than ``count`` changes.

    A change at or below the compact revision makes the record unreachable that it has replaced, and so that record's
    long value. Changes *at* the compact revision stay in the history, because that revision can still be read and
    watched. So the next pass, or one for a compact revision raised during this pass, starts with them
    (``_next_pass``).

    Args:
        compact_revision: everything below it is to be removed.
        start: the key in ``history`` to continue from.

    Returns:
        The writes, the new ``start``, and whether there is more.
    """
    writes: list[Write] = []
    for looked, (where, change) in enumerate(source.iterate("history", start, REVISION.pack(compact_revision + 1))):
        if looked == count:
            return writes, start, True
        main, key = changed_key(where)
        replaced = change[CHANGE_BYTES:]
        if replaced and replaced[KIND] == APART:
            before = mod_revision(replaced)
            writes += [("values", value_key(key, before), None), ("values", replaced_key(key, before), None)]
        if main < compact_revision:
            writes.append(("history", where, None))
            if CHANGE.unpack_from(change)[0]:
                writes.append(("deletions", deletion_key(key, main), None))
        start = where + b"\0"
    return writes, start, False


def _next_pass(start: bytes, compact_revision: int) -> bytes:
    """Where the pass for a higher compact revision starts, after one for ``compact_revision`` has reached ``start``: at
    the changes of ``compact_revision`` at the latest, since that pass had to leave them."""
    return min(start, REVISION.pack(compact_revision))
