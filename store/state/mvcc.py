"""Multi-version concurrency control: all versions of the keys, in three column families (etcd: mvcc).

``keys``       key -> its latest record, of existing keys only;
``versions``   memcomparable(key) + revision -> every older record, the latest record of a long value, and tombstones;
``revisions``  (revision, sub) -> whether it deleted, the key's revision before, key: the history that watches read.

A record is mod revision, create revision, version, lease, kind, and the value. Long values are in ``versions`` only, so
counting and listing keys stays cheap. ``ranges`` reads them; here are the format, the writer, and what compaction
leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from heapq import merge

from ...errors import DataCorrupted
from ...limits import INLINE_VALUE_BYTES
from ...schema.operations import KeyRange
from .write_batch import OrderedReader, WriteBatch

TOMBSTONE, INLINE, APART = 0, 1, 2
"""A record's kind: the key is deleted; the value follows; the value is in ``versions``."""

RECORD = struct.Struct(">QQQqB")
"""Mod revision, create revision, version, lease, kind."""
HEAD = RECORD.size
REVISION = struct.Struct(">Q")
REVISION_SUB = struct.Struct(">QI")
CHANGE = struct.Struct(">BQ")
"""The value in ``revisions``, before the key: 1 if the key was deleted, and its mod revision before (0 for none)."""

ITEM_OVERHEAD = 40
"""Bytes that an item counts in bounds, on top of key and value."""


def memcomparable(key: bytes) -> bytes:
    """An encoding of keys that keeps their order whatever bytes follow, and in which none is a prefix of another."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1"


def version_key(key: bytes, revision: int) -> bytes:
    """The key in ``versions`` of a key's record at a revision."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1" + REVISION.pack(revision)


def plain_key(stored: bytes) -> tuple[bytes, int]:
    """Key and revision of a key in ``versions``."""
    return stored[:-10].replace(b"\0\xff", b"\0"), REVISION.unpack(stored[-8:])[0]


def bounds(keys: KeyRange) -> tuple[bytes, bytes | None]:
    """Start and end of a range for ``Engine.iterate``."""
    if keys.end is None:
        return keys.key, keys.key + b"\0"
    return keys.key, keys.end or None


# --- writing ---------------------------------------------------------------------------------------------------------


class Mvcc:
    """The writer: counts revisions and changes keys. All changes before ``finish`` share one revision.

    A key changes at most once in a revision: the executor refuses transactions that would change one twice.
    """

    def __init__(self, batch: WriteBatch, revision: int) -> None:
        self._batch = batch
        self.revision = revision
        """The newest revision. An empty store is at 1, as in etcd."""
        self.sub = 0
        """The number of changes so far in the unfinished revision."""
        self.changed: list[bytes] = []
        """Keys changed since the owner last emptied this list."""

    @property
    def now(self) -> int:
        """The revision at which a read sees everything so far, including unfinished changes."""
        return self.revision + 1 if self.sub else self.revision

    def finish(self) -> None:
        """The running operation has ended: if it changed anything, that makes a revision."""
        if self.sub:
            self.revision += 1
            self.sub = 0

    def put(self, key: bytes, value: bytes, lease: int, old: bytes | None) -> int:
        """Put a key whose record is ``old`` (``None`` if it does not exist). Returns the revision."""
        main = self.revision + 1
        before = 0
        create, version = main, 1
        put = self._batch.set
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
        """Delete an existing key whose record is ``old``. Returns the revision."""
        main = self.revision + 1
        before, kind = REVISION.unpack_from(old)[0], old[HEAD - 1]
        put = self._batch.set
        if kind != APART:
            put("versions", version_key(key, before), old)
        put("keys", key, None)
        self._batch.deleted_keys.add(key)
        put("versions", version_key(key, main), RECORD.pack(main, 0, 0, 0, TOMBSTONE))
        put("revisions", REVISION_SUB.pack(main, self.sub), CHANGE.pack(1, before) + key)
        self.changed.append(key)
        self.sub += 1
        return main


# --- reading ---------------------------------------------------------------------------------------------------------


def newest_change(source: OrderedReader) -> int:
    """The revision at which the history ends; 1 for an empty store. Compaction always leaves it."""
    for where, _ in source.iterate("revisions", reverse=True):
        return int(REVISION.unpack_from(where)[0])
    return 1


def surviving_history(source: OrderedReader, compact_revision: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, record with its value) of everything that can be read or watched at or above ``compact_revision``,
    whether or not the removal has come that far.

    Keys are in order, and the records of each from old to new.
    """
    held: tuple[bytes, bytes] | None = None  # the newest record of a key below the compact revision
    for key, revision, record in _with_values(source):
        if held is not None and (held[0] != key or revision > compact_revision):
            if held[1][HEAD - 1] != TOMBSTONE:
                yield held
            held = None
        if revision < compact_revision:
            held = key, record
        else:
            held = None
            yield key, record
    if held is not None and held[1][HEAD - 1] != TOMBSTONE:
        yield held


def _with_values(source: OrderedReader) -> Iterator[tuple[bytes, int, bytes]]:
    """(key, revision, record) of everything stored, in that order; for a long value the record in ``versions``."""
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
