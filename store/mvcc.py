"""Keys with all their past: what etcd calls multi-version concurrency control, on three column families.

``keys``       user key -> its latest record, of the keys that live, and of no others;
``versions``   memcomparable(key) + revision -> every record that was overtaken, the latest of a long value, and that a
               key was deleted;
``revisions``  (revision, sub) -> whether it deleted, the key's revision before, key: the history that watches read.

A record is mod revision, create revision, version, lease, and the value. Long values lie in ``versions`` alone, so
counting and listing keys stays cheap. How it is read: ``ranges``. Here is the format, the writer, and compaction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from heapq import merge

from ..errors import DataCorrupted
from ..limits import INLINE_VALUE_BYTES
from .commands import KeyRange
from .engine import Write
from .pending import Ordered, Pending

TOMBSTONE, INLINE, APART = 0, 1, 2
"""What follows a record's numbers: nothing, the key is deleted; the value; nothing, the value is in ``versions``."""

RECORD = struct.Struct(">QQQQB")
"""Mod revision, create revision, version, lease, kind."""
HEAD = RECORD.size
REVISION = struct.Struct(">Q")
REVISION_SUB = struct.Struct(">QI")
CHANGE = struct.Struct(">BQ")
"""Value in ``revisions``, before the key: 1 if the key was deleted, and its mod revision before (0 for none)."""

ITEM_OVERHEAD = 40
"""What an item counts in bounds on bytes, beside key and value."""


def memcomparable(key: bytes) -> bytes:
    """A key such that nothing that follows it changes the order, and none is a prefix of another."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1"


def version_key(key: bytes, revision: int) -> bytes:
    """Where ``versions`` holds a key's record of a revision."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1" + REVISION.pack(revision)


def plain_key(stored: bytes) -> tuple[bytes, int]:
    """Key and revision of a key in ``versions``."""
    return stored[:-10].replace(b"\0\xff", b"\0"), REVISION.unpack(stored[-8:])[0]


def bounds(keys: KeyRange) -> tuple[bytes, bytes | None]:
    """A range as ``Engine.iterate`` wants it."""
    if keys.end is None:
        return keys.key, keys.key + b"\0"
    return keys.key, keys.end or None


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
        """Set a key whose record is ``old``, ``None`` if it does not live; returns the revision."""
        main = self.revision + 1
        before = 0
        create, version = main, 1
        put = self._pending.set
        if old is not None:
            before, create, version, _, kind = RECORD.unpack_from(old)
            version += 1
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
        """Delete a key that lives, and whose record is ``old``; returns the revision."""
        main = self.revision + 1
        before, kind = REVISION.unpack_from(old)[0], old[HEAD - 1]
        put = self._pending.set
        if kind != APART:
            put("versions", version_key(key, before), old)
        put("keys", key, None)
        self._pending.dead.add(key)
        put("versions", version_key(key, main), RECORD.pack(main, 0, 0, 0, TOMBSTONE))
        put("revisions", REVISION_SUB.pack(main, self.sub), CHANGE.pack(1, before) + key)
        self.changed.append(key)
        self.sub += 1
        return main


# --- compaction ------------------------------------------------------------------------------------------------------


def compaction_slice(source: Ordered, mark: int, start: bytes, count: int) -> tuple[list[Write], bytes, bool]:
    """What to remove next, looking at no more than ``count`` changes.

    A change at or below the mark makes the record before it unreachable, and its own if it was a deletion. Changes *at*
    the mark stay in the history, because the compacted revision itself can still be read and watched; so the pass for
    the next mark, or for one that is raised in the middle of a pass, begins with them (:func:`next_pass`).

    Args:
        mark: the compacted revision.
        start: the key in ``revisions`` to go on from.

    Returns:
        writes, the new ``start``, and whether there is more.
    """
    writes: list[Write] = []
    for looked, (where, change) in enumerate(source.iterate("revisions", start, REVISION.pack(mark + 1))):
        if looked == count:
            return writes, start, True
        main = REVISION.unpack_from(where)[0]
        deleted, before = CHANGE.unpack_from(change)
        key = change[CHANGE.size :]
        if before:
            writes.append(("versions", version_key(key, before), None))
        if main < mark:
            if deleted:
                writes.append(("versions", version_key(key, main), None))
            writes.append(("revisions", where, None))
        start = where + b"\0"
    return writes, start, False


def next_pass(start: bytes, mark: int) -> bytes:
    """Where a pass for a higher mark begins that follows one which came to ``start`` for ``mark``: no later than with
    the changes of ``mark``, which that one had to leave."""
    return min(start, REVISION.pack(mark))


def surviving_history(source: Ordered, mark: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, record with its value) of all that can be read or watched at or above the mark, however far compaction is.

    Keys in order, the records of each from old to new.
    """
    held: tuple[bytes, bytes] | None = None  # the newest record so far of a key below the mark
    for key, revision, record in _with_values(source):
        if held is not None and (held[0] != key or revision > mark):
            if held[1][HEAD - 1] != TOMBSTONE:
                yield held
            held = None
        if revision < mark:
            held = key, record
        else:
            held = None
            yield key, record
    if held is not None and held[1][HEAD - 1] != TOMBSTONE:
        yield held


def _with_values(source: Ordered) -> Iterator[tuple[bytes, int, bytes]]:
    """(key, revision, record) of all that is stored, in that order; of a long value the record in ``versions``."""
    older = ((*plain_key(where), record) for where, record in source.iterate("versions"))
    latest = ((key, REVISION.unpack_from(record)[0], record) for key, record in source.iterate("keys"))
    last: tuple[bytes, int] | None = None
    for key, revision, record in merge(older, latest, key=_place):
        if record[HEAD - 1] != APART:
            last = key, revision
            yield key, revision, record
        elif last != (key, revision):
            raise DataCorrupted(f"the value of key {key!r} at revision {revision} is missing")


def _place(entry: tuple[bytes, int, bytes]) -> tuple[bytes, int]:
    return entry[:2]
