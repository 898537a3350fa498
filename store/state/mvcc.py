"""Multi-version concurrency control: all versions of the keys (etcd: mvcc). A put writes two records.

``keys``       key -> its latest record, of existing keys only;
``history``    (revision, key) -> the change: what it was, and the record that it replaced;
``deletions``  memcomparable(key) + revision -> nothing, for each deletion;
``values``     long values: memcomparable(key) + revision -> the value, and the revision that has replaced it, if any.

A record is create revision, version, lease, kind, skip pointers, and the value. Long values are in ``values`` only, so
counting and listing keys stays cheap.

The past is read backwards. The record of a key at a revision is the one that the key's next change has replaced, and
that stands in the history. The *skip pointers* find this change in few steps, however often the key was put since. They
are the revision of the version itself, and those of earlier versions of the same generation (etcd: from creation to
deletion): the ones that remain as the 1 bits of the version are cleared, one after the other, from the lowest on.
Version 13 (binary 1101) points to 13, 12, and 8. So each step halves the number of versions in question. A generation
that has ended is found by its deletion.

Whatever reads at or above the compact revision needs only later changes. So compaction removes the history from its
beginning, and looks for nothing.

``ranges`` reads; here are the format, the writer, the steps into the past, and what compaction leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ...limits import INLINE_VALUE_BYTES
from ...schema.operations import KeyRange
from .write_batch import OrderedReader, Source, WriteBatch

INLINE, APART = 1, 2
"""A record's kind: the value follows; the value is in ``values``."""

RECORD = struct.Struct(">QQqBQ")
"""Create revision, version, lease, kind, and the first skip pointer, which is the mod revision."""
KIND = 24
SKIPS = 25
"""Where in a record the kind is, and where the skip pointers begin."""
REVISION = struct.Struct(">Q")
_LEASE = struct.Struct(">16xq")
CHANGE = struct.Struct(">BI")
"""Before the replaced record in ``history``: 1 if the key was deleted; the number of changes before it in its
revision."""
CHANGE_BYTES = CHANGE.size

_FIRST_PUT = CHANGE.pack(0, 0)

ITEM_OVERHEAD = 40
"""Bytes that an item counts in bounds, on top of key and value."""

_NO_REVISION = 1 << 63
_REPLACED, _VALUE = b"\0", b"\1"
"""The end of a key in ``values``: the revision that has replaced the value; the value."""


class RecordMissing(Exception):
    """A record is missing: compaction has overtaken the reader, or the data is damaged."""


def memcomparable(key: bytes) -> bytes:
    """An encoding of keys that keeps their order whatever bytes follow, and in which none is a prefix of another."""
    return key.replace(b"\0", b"\0\xff") + b"\0\1"


def deletion_key(key: bytes, revision: int) -> bytes:
    """The key in ``deletions`` of a deletion."""
    return memcomparable(key) + REVISION.pack(revision)


def deleted_key(stored: bytes) -> tuple[bytes, int]:
    """Key and revision of a key in ``deletions``."""
    return stored[:-10].replace(b"\0\xff", b"\0"), REVISION.unpack(stored[-8:])[0]


def value_key(key: bytes, revision: int) -> bytes:
    """The key in ``values`` of a long value."""
    return memcomparable(key) + REVISION.pack(revision) + _VALUE


def replaced_key(key: bytes, revision: int) -> bytes:
    """The key in ``values`` of the revision that has replaced a long value."""
    return memcomparable(key) + REVISION.pack(revision) + _REPLACED


def change_key(revision: int, key: bytes) -> bytes:
    """The key in ``history`` of a change."""
    return REVISION.pack(revision) + key


def changed_key(stored: bytes) -> tuple[int, bytes]:
    """Revision and key of a key in ``history``."""
    return REVISION.unpack_from(stored)[0], stored[8:]


def mod_revision(record: bytes) -> int:
    """The revision of a record."""
    revision: int = REVISION.unpack_from(record, SKIPS)[0]
    return revision


def lease_of(record: bytes) -> int:
    """The lease of a record; 0 for none."""
    lease: int = _LEASE.unpack_from(record)[0]
    return lease


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
        self.puts = 0
        """Puts so far, with those of refused transactions; for metrics, like the next."""
        self.deletes = 0

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
        main, sub, put = self.revision + 1, self.sub, self._batch.set
        self.sub = sub + 1
        self.puts += 1
        change = CHANGE.pack(0, sub) if sub else _FIRST_PUT
        kind = INLINE
        if len(value) > INLINE_VALUE_BYTES:
            put("values", value_key(key, main), value)
            kind, value = APART, b""
        if old is None:
            self._batch.small_ranges.key_added(key)
            record = RECORD.pack(main, 1, lease, kind, main) + value
        else:
            create, before, _, old_kind, mod = RECORD.unpack_from(old)
            if old_kind == APART:
                put("values", replaced_key(key, mod), REVISION.pack(main))
            change += old
            # The skip pointers of ``before``, but those that its trailing 1 bits stand for: the carry clears these.
            version = before + 1
            start = SKIPS - 8 + 8 * (version & -version).bit_length()
            skips = old[start : SKIPS + 8 * before.bit_count()]
            record = RECORD.pack(create, version, lease, kind, main) + skips + value
        put("keys", key, record)
        put("history", REVISION.pack(main) + key, change)
        self.changed.append(key)
        return main

    def delete(self, key: bytes, old: bytes) -> int:
        """Delete an existing key whose record is ``old``. Returns the revision."""
        main = self.revision + 1
        put = self._batch.set
        put("keys", key, None)
        self._batch.deleted_keys.add(key)
        self._batch.small_ranges.key_removed(key)
        put("history", change_key(main, key), CHANGE.pack(1, self.sub) + old)
        put("deletions", deletion_key(key, main), b"")
        if old[KIND] == APART:
            put("values", replaced_key(key, mod_revision(old)), REVISION.pack(main))
        self.changed.append(key)
        self.sub += 1
        self.deletes += 1
        return main


# --- the past of one key ---------------------------------------------------------------------------------------------


def record_at(source: Source, key: bytes, record: bytes | None, revision: int) -> bytes | None:
    """The record of a key as of a revision, given its record now; ``None`` if the key did not exist then.

    Raises:
        RecordMissing
    """
    if record is not None and mod_revision(record) <= revision:
        return record
    if record is None or RECORD.unpack_from(record)[0] > revision:
        record = None
        for where, _ in _deletions_after(source, key, revision):
            record = _replaced(source, key, deleted_key(where)[1])
            break
        if record is None or RECORD.unpack_from(record)[0] > revision:
            return None
    while mod_revision(record) > revision:
        record = _replaced(source, key, min(change for change in _skips(record) if change > revision))
    return record


def changes_after(source: Source, key: bytes, revision: int) -> Iterator[tuple[int, bytes | None]]:
    """(revision, record) of the changes of a key after a revision, in order; a deletion has no record. Their number
    does not depend on the changes of other keys.

    Raises:
        RecordMissing
    """
    # First the latest record: a generation that ends in between is seen at least once.
    latest = source.get("keys", key)
    if latest is None or RECORD.unpack_from(latest)[0] > revision:
        for where, _ in _deletions_after(source, key, revision):
            end = deleted_key(where)[1]
            yield from _versions_after(source, key, _replaced(source, key, end), revision)
            yield end, None
            revision = end
    if latest is not None and mod_revision(latest) > revision:
        yield from _versions_after(source, key, latest, revision)


def _versions_after(source: Source, key: bytes, last: bytes, revision: int) -> Iterator[tuple[int, bytes]]:
    """(mod revision, record) of one generation after a revision, in order, given its last record.

    Each version is found on the way to one before it, and kept until it is its turn.
    """
    wanted = max(revision, RECORD.unpack_from(last)[0])
    ahead = [(last, _skips(last), 0)]
    while ahead:
        record, skips, replaced_at = ahead[-1]
        while skips and skips[-1] <= wanted:
            skips.pop()
        if skips:
            before = _replaced(source, key, skips[-1])
            ahead.append((before, _skips(before), skips[-1]))
            continue
        ahead.pop()
        mod = mod_revision(record)
        if mod > revision:
            yield mod, record
        wanted = replaced_at


def _deletions_after(source: Source, key: bytes, revision: int) -> Iterator[tuple[bytes, bytes]]:
    return source.iterate("deletions", deletion_key(key, revision + 1), deletion_key(key, _NO_REVISION))


def _replaced(source: Source, key: bytes, revision: int) -> bytes:
    """The record that the change of a key at a revision has replaced."""
    change = source.get("history", change_key(revision, key))
    if change is None or len(change) == CHANGE_BYTES:
        raise RecordMissing
    return change[CHANGE_BYTES:]


def _skips(record: bytes) -> list[int]:
    """The skip pointers of a record, from new to old."""
    return [*struct.unpack_from(f">{RECORD.unpack_from(record)[1].bit_count()}Q", record, SKIPS)]


# --- everything ------------------------------------------------------------------------------------------------------


def newest_change(source: OrderedReader) -> int:
    """The revision at which the history ends; 1 for an empty store. Compaction always leaves it."""
    for where, _ in source.iterate("history", reverse=True):
        return changed_key(where)[0]
    return 1


def content_ranges(compact_revision: int, revision: int) -> tuple[tuple[str, bytes, bytes | None], ...]:
    """What ``surviving_content`` reads: family, start, end."""
    history = REVISION.pack(compact_revision), REVISION.pack(revision + 1)
    return ("keys", b"", None), ("history", *history), ("deletions", b"", None), ("values", b"", None)


def surviving_content(source: OrderedReader, compact_revision: int, revision: int) -> Iterator[bytes]:
    """Everything that can be read or watched from ``compact_revision`` to ``revision``, the newest: whether or not the
    removal has come that far, and whatever is written ahead for the next one (see ``unfinished``)."""
    keys, history, deletions, values = content_ranges(compact_revision, revision)
    for pair in source.iterate(*keys):
        yield from pair
    for where, change in source.iterate(*history):
        yield where
        # What was replaced at the compact revision itself cannot be read.
        yield change if changed_key(where)[0] > compact_revision else change[:CHANGE_BYTES]
    for where, _ in source.iterate(*deletions):
        if compact_revision <= deleted_key(where)[1] <= revision:
            yield where
    gone = b""
    for where, value in source.iterate(*values):
        if REVISION.unpack(where[-9:-1])[0] > revision:
            continue
        if where[-1:] == _REPLACED:
            replaced_at = REVISION.unpack(value)[0]
            if replaced_at <= compact_revision:
                gone = where[:-1]
                continue
            if replaced_at > revision:
                continue
        if where[:-1] != gone:
            yield where
            yield value
